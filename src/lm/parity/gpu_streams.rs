//! Streams on a GPU against `generate` there: the same recorded steps, with prompts that come and go.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use tch::{Device, Kind};

use super::{FAMILIES, at, fixture, gpu, tiny_at};
use crate::lm::generate::Generator;
use crate::lm::{
    AdapterSwitch, Advance, Decoder, Finish, GenerateOptions, ModelConfig, NewStream,
    SampleOptions, Streams, load_adapter,
};

const NEW_TOKENS: usize = 21;

fn stop_ids() -> Vec<i64> {
    (0..512).step_by(32).collect()
}

/// Prompts and how each is continued: greedily, with processors, drawn.
fn requests() -> Vec<(Vec<i64>, SampleOptions)> {
    (0..9_i64)
        .map(|row| {
            let prompt = (0..=row * 5).map(|at| (at * 37 + row * 11) % 500 + 4);
            let processed = SampleOptions {
                repetition_penalty: 1.2,
                no_repeat_ngram: 2,
                min_new_tokens: 3,
                ..SampleOptions::default()
            };
            let sample = match row % 3 {
                0 => SampleOptions::default(),
                1 => processed,
                _ => SampleOptions {
                    temperature: 0.8,
                    top_k: 40,
                    top_p: 0.9,
                    seed: row as u64,
                    ..processed
                },
            };
            (prompt.collect(), sample)
        })
        .collect()
}

/// What `generate` gives for each request by itself.
fn generated(config: &ModelConfig, decoder: &Decoder) -> Vec<(Vec<i64>, Finish)> {
    let stop_ids = stop_ids();
    let alone = |(prompt, sample): (Vec<i64>, SampleOptions)| {
        let options = GenerateOptions {
            max_new_tokens: NEW_TOKENS,
            batch_size: 1,
            sample,
        };
        let generator = Generator {
            decoder,
            config,
            stop_ids: &stop_ids,
            options: &options,
        };
        let mut found = None;
        generator
            .run(&[prompt], &mut |_, result| {
                found = Some(result.unwrap());
                ControlFlow::Continue(())
            })
            .unwrap();
        found.unwrap()
    };
    requests().into_iter().map(alone).collect()
}

fn new_stream(id: usize) -> NewStream {
    let (prompt, sample) = requests().swap_remove(id);
    NewStream {
        id: id as u64,
        prompt,
        max_new_tokens: NEW_TOKENS,
        sample,
    }
}

/// What streams have given so far, by id.
#[derive(Default)]
struct Heard(BTreeMap<u64, (Vec<i64>, Option<Finish>)>);

impl Heard {
    fn take(&mut self, advances: Vec<Advance>) {
        for advance in advances {
            assert!(!advance.failed);
            let (ids, finish) = self.0.entry(advance.id).or_default();
            assert_eq!(*finish, None, "stream {} goes on", advance.id);
            ids.extend(advance.token);
            *finish = advance.finish;
        }
    }

    fn of(&self, id: usize) -> (Vec<i64>, Finish) {
        let (ids, finish) = &self.0[&(id as u64)];
        (ids.clone(), finish.expect("it has ended"))
    }
}

fn fast(family: &str, device: Device) -> (ModelConfig, Decoder) {
    tiny_at(family, at(device, Kind::BFloat16))
}

#[test]
fn a_stream_alone_is_what_generate_gives_where_there_is_a_gpu() {
    let Some(device) = gpu() else { return };
    for family in FAMILIES {
        let (config, decoder) = fast(family, device);
        let expected = generated(&config, &decoder);
        let mut streams = Streams::new(&decoder, &config, &stop_ids(), 4);
        for (id, expected) in expected.iter().enumerate() {
            let mut heard = Heard::default();
            heard.take(streams.join(&decoder, vec![new_stream(id)]).unwrap());
            while !streams.is_empty() {
                heard.take(streams.step(&decoder).unwrap());
            }
            assert_eq!(heard.of(id), *expected, "{family} {id}");
        }
    }
}

/// Streams join while others are under way, one leaves early, and one needs longer slots than there are.
#[test]
fn streams_come_and_go_together_where_there_is_a_gpu() {
    let Some(device) = gpu() else { return };
    let (config, decoder) = fast(FAMILIES[0], device);
    let expected = generated(&config, &decoder);
    let mut streams = Streams::new(&decoder, &config, &stop_ids(), requests().len() + 2);
    let mut heard = Heard::default();
    let left = 1000;
    for id in 0..expected.len() {
        let mut new = vec![new_stream(id)];
        if id == 2 {
            new.push(NewStream {
                id: left,
                ..new_stream(0)
            });
        }
        if id == 4 {
            streams.leave(&decoder, left).unwrap();
            heard.0.remove(&left);
            // Longer than the slots so far.
            new.push(NewStream {
                id: 2000,
                prompt: vec![7; 300],
                max_new_tokens: 100,
                sample: SampleOptions {
                    min_new_tokens: 100,
                    ..SampleOptions::default()
                },
            });
        }
        heard.take(streams.join(&decoder, new).unwrap());
        heard.take(streams.step(&decoder).unwrap());
    }
    while !streams.is_empty() {
        heard.take(streams.step(&decoder).unwrap());
    }
    assert!(!heard.0.contains_key(&left));
    assert_eq!(heard.of(2000).0.len(), 100);
    // Near a tie the rounding of a product of another number of rows decides.
    let ids = 0..expected.len();
    let same = ids.filter(|&id| heard.of(id) == expected[id]).count();
    assert!(same * 2 > expected.len(), "{same} of {}", expected.len());
}

/// Base and tuned model in turns, from one set of weights, are what each is alone.
#[test]
fn voices_in_turns_are_those_alone_where_there_is_a_gpu() {
    let Some(device) = gpu() else { return };
    for family in FAMILIES {
        let (config, mut decoder) = fast(family, device);
        let folder = fixture(&format!("b_{family}_lora_adapter"));
        let adapter = load_adapter(&folder, &decoder).unwrap();
        let mut switch = AdapterSwitch::new(&adapter, &mut decoder).unwrap();
        let expected = [false, true].map(|on| {
            switch.set(&mut decoder, on);
            generated(&config, &decoder)
        });
        assert_ne!(expected[0], expected[1], "the adapter does nothing");
        let mut voices = [false, true].map(|on| {
            switch.set(&mut decoder, on);
            let streams = Streams::new(&decoder, &config, &stop_ids(), 1);
            (on, streams, Heard::default())
        });
        for id in 0..requests().len() {
            for (on, streams, heard) in &mut voices {
                switch.set(&mut decoder, *on);
                heard.take(streams.join(&decoder, vec![new_stream(id)]).unwrap());
            }
            while voices.iter().any(|(_, streams, _)| !streams.is_empty()) {
                for (on, streams, heard) in &mut voices {
                    switch.set(&mut decoder, *on);
                    heard.take(streams.step(&decoder).unwrap());
                }
            }
            for ((_, _, heard), expected) in voices.iter().zip(&expected) {
                assert_eq!(heard.of(id), expected[id], "{family} {id}");
            }
        }
    }
}
