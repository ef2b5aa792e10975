//! The thread that owns the model: takes jobs from a bounded queue and continues all answers together, those of the base
//! and those of the tuned model in turns.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Instant;

use super::{Job, Piece, Prompts, Traffic, Voice};
use crate::lm::{
    AdapterSwitch, Advance, ChatTemplate, Decoder, Finish, LanguageModel, LmError, ModelConfig,
    NewStream, SampleOptions, Streams, TextStream, check_template, load_adapter, read_adapter,
};

/// Before the first question: tokens of a prompt like those that come, tokens written after it, enough for steps to be
/// recorded, and those that room is made for.
const WARM_UP_PROMPT: usize = 48;
const WARM_UP_TOKENS: usize = 16;
const WARM_UP_ROOM: usize = 960;

/// What the engine takes.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Answers written together.
    pub slots: usize,
    /// Jobs that may wait for a slot.
    pub queue: usize,
    /// The most tokens of prompt and answer together.
    pub context: usize,
}

/// Why a job is not taken.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused {
    /// Prompt and answer are longer than the context.
    TooLong { tokens: usize, limit: usize },
    /// As many wait as may.
    Full,
    /// The engine has ended.
    Gone,
}

pub struct Engine {
    jobs: Option<Sender<Waiting>>,
    thread: Option<JoinHandle<()>>,
    open: Arc<AtomicUsize>,
    pub limits: Limits,
    pub prompts: Arc<Prompts>,
    pub traffic: Arc<Traffic>,
}

struct Waiting {
    job: Job,
    since: Instant,
}

/// An answer that is being written.
struct Running {
    job: Waiting,
    text: TextStream,
    tokens: usize,
}

impl Engine {
    /// Starts the thread with a loaded `model` and the PEFT folder of its `adapter`. The context is cut to the model's.
    ///
    /// # Errors
    /// An adapter that does not fit, or was trained with another chat template; a model without one.
    pub fn start(
        mut model: LanguageModel,
        adapter: &std::path::Path,
        system: String,
        mut limits: Limits,
    ) -> Result<Self, LmError> {
        let saved = read_adapter(adapter)?;
        let template = ChatTemplate::of_model(model.template.as_ref())?;
        check_template(adapter, &saved, template.source())?;
        let mut switch =
            AdapterSwitch::new(&load_adapter(adapter, &model.decoder)?, &mut model.decoder)?;
        let LanguageModel {
            config,
            mut decoder,
            tokenizer,
            template,
        } = model;
        let template = match template {
            Some(template) => template,
            None => {
                return Err(LmError::Template(
                    "the model has none; it is a base model".into(),
                ));
            }
        };
        limits.context = limits
            .context
            .min(usize::try_from(config.context).unwrap_or(usize::MAX));
        let prompts = Arc::new(Prompts::new(tokenizer, template, system));
        let traffic = Arc::new(Traffic::new().map_err(|error| LmError::Prompt(error.to_string()))?);
        let open = Arc::new(AtomicUsize::new(0));
        let (sender, inbox) = channel();
        let slots = limits.slots.max(1);
        let stop_ids = prompts.tokenizer.stop_ids();
        let streams = Voice::ALL.map(|voice| {
            switch.set(&mut decoder, voice == Voice::Tuned);
            Streams::new(&decoder, &config, stop_ids, slots)
        });
        let worker = Worker {
            streams,
            config,
            decoder,
            switch,
            prompts: prompts.clone(),
            traffic: traffic.clone(),
            slots,
            context: limits.context,
            open: open.clone(),
            queue: VecDeque::new(),
            running: HashMap::new(),
            next_id: 0,
        };
        let thread = std::thread::Builder::new()
            .name("model".to_owned())
            .spawn(move || worker.run(&inbox))
            .map_err(|error| LmError::Prompt(error.to_string()))?;
        Ok(Self {
            jobs: Some(sender),
            thread: Some(thread),
            open,
            limits,
            prompts,
            traffic,
        })
    }

    /// Whether the model still answers.
    pub fn is_alive(&self) -> bool {
        self.thread
            .as_ref()
            .is_some_and(|thread| !thread.is_finished())
    }

    /// Puts a job into the queue.
    ///
    /// # Errors
    /// Why it is not taken.
    pub fn submit(&self, job: Job) -> Result<(), Refused> {
        let (tokens, limit) = (
            job.prompt.len().saturating_add(job.decoding.max_new_tokens),
            self.limits.context,
        );
        if tokens > limit {
            return Err(Refused::TooLong { tokens, limit });
        }
        // Who finds a slot free does not take a place in the queue, though the worker may not have come to it yet.
        let most = self.limits.slots.max(1).saturating_add(self.limits.queue);
        let taken = self
            .open
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |count| {
                (count < most).then_some(count + 1)
            });
        if taken.is_err() {
            return Err(Refused::Full);
        }
        self.traffic.waiting.inc();
        let waiting = Waiting {
            job,
            since: Instant::now(),
        };
        let jobs = self.jobs.as_ref().ok_or(Refused::Gone)?;
        jobs.send(waiting).map_err(|_| Refused::Gone)
    }
}

impl Drop for Engine {
    /// Waits for the answers under way.
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been printed by itself.
            let _ = thread.join();
        }
    }
}

struct Worker {
    config: ModelConfig,
    decoder: Decoder,
    switch: AdapterSwitch,
    /// By the order of [`Voice::ALL`].
    streams: [Streams; 2],
    prompts: Arc<Prompts>,
    traffic: Arc<Traffic>,
    slots: usize,
    /// The most tokens of prompt and answer together.
    context: usize,
    /// Jobs that wait, in the channel or here, or run.
    open: Arc<AtomicUsize>,
    queue: VecDeque<Waiting>,
    running: HashMap<u64, Running>,
    next_id: u64,
}

impl Worker {
    fn run(mut self, inbox: &Receiver<Waiting>) {
        self.warm_up();
        loop {
            if self.running.is_empty() && self.queue.is_empty() {
                match inbox.recv() {
                    Ok(job) => self.queue.push_back(job),
                    Err(_) => return,
                }
            }
            // Without a sender the thread ends when all is answered.
            while let Ok(job) = inbox.try_recv() {
                self.queue.push_back(job);
            }
            self.drop_abandoned();
            let admitted = self.admit();
            for (index, new) in admitted.into_iter().enumerate() {
                self.advance(index, new);
            }
            self.traffic.running.set(self.running.len() as i64);
        }
    }

    /// Lets both voices of a GPU write a few tokens that nobody reads: kernels are compiled and steps recorded before the
    /// first question comes.
    fn warm_up(&mut self) {
        if self.decoder.placement().is_cpu() || self.context < WARM_UP_PROMPT + WARM_UP_ROOM {
            return;
        }
        for voice in Voice::ALL {
            let streams = &mut self.streams[index(voice)];
            self.switch.set(&mut self.decoder, voice == Voice::Tuned);
            let stream = NewStream {
                id: 0,
                prompt: vec![0; WARM_UP_PROMPT],
                max_new_tokens: WARM_UP_ROOM,
                sample: SampleOptions {
                    min_new_tokens: WARM_UP_TOKENS,
                    ..SampleOptions::default()
                },
            };
            let mut result = streams
                .join(&self.decoder, vec![stream])
                .map(|advances| advances.len());
            while let Ok(tokens) = result
                && tokens < WARM_UP_TOKENS
                && !streams.is_empty()
            {
                let more = streams.step(&self.decoder);
                result = more.map(|advances| tokens + advances.len());
            }
            let result = result.and_then(|_| streams.leave(&self.decoder, 0));
            if let Err(error) = result {
                tracing::warn!("the {} model cannot warm up: {error}", voice.name());
                self.start_again(index(voice));
            }
        }
    }

    /// Streams whose memory is in order, after an error.
    fn start_again(&mut self, index: usize) {
        self.switch
            .set(&mut self.decoder, Voice::ALL[index] == Voice::Tuned);
        let stop_ids = self.prompts.tokenizer.stop_ids();
        self.streams[index] = Streams::new(&self.decoder, &self.config, stop_ids, self.slots);
    }

    /// Ends the jobs whose reader has gone.
    fn drop_abandoned(&mut self) {
        let before = self.queue.len();
        self.queue.retain(|waiting| !waiting.job.pieces.is_closed());
        let dropped = before - self.queue.len();
        self.traffic.waiting.sub(dropped as i64);
        self.open.fetch_sub(dropped, Ordering::SeqCst);
        let gone: Vec<u64> = self
            .running
            .iter()
            .filter(|(_, running)| running.job.job.pieces.is_closed())
            .map(|(id, _)| *id)
            .collect();
        for id in gone {
            self.end(id, "cancelled", None);
        }
    }

    /// Gives free slots to waiting jobs, in their order.
    fn admit(&mut self) -> [Vec<NewStream>; 2] {
        let mut admitted = [Vec::new(), Vec::new()];
        while self.running.len() < self.slots
            && let Some(mut waiting) = self.queue.pop_front()
        {
            self.traffic.waiting.sub(1);
            let id = self.next_id;
            self.next_id += 1;
            let index = index(waiting.job.voice);
            if let Some(error) = self.streams[index]
                .refusal(&waiting.job.prompt, waiting.job.decoding.max_new_tokens)
            {
                self.open.fetch_sub(1, Ordering::SeqCst);
                // Nobody may be there to read it.
                let _ = waiting.job.pieces.send(Piece::Failed(error.to_string()));
                continue;
            }
            admitted[index].push(NewStream {
                id,
                prompt: std::mem::take(&mut waiting.job.prompt),
                max_new_tokens: waiting.job.decoding.max_new_tokens,
                sample: waiting.job.decoding.sample.clone(),
            });
            let text = TextStream::new(std::mem::take(&mut waiting.job.decoding.stops));
            self.running.insert(
                id,
                Running {
                    job: waiting,
                    text,
                    tokens: 0,
                },
            );
        }
        admitted
    }

    /// One step of one voice's answers, and the prompts of those that are new.
    fn advance(&mut self, index: usize, new: Vec<NewStream>) {
        if new.is_empty() && self.streams[index].is_empty() {
            return;
        }
        self.switch
            .set(&mut self.decoder, Voice::ALL[index] == Voice::Tuned);
        let lengths: Vec<(u64, usize)> = new
            .iter()
            .map(|stream| (stream.id, stream.prompt.len()))
            .collect();
        match self.streams[index].join(&self.decoder, new) {
            Ok(advances) => {
                for (id, prompt_tokens) in &lengths {
                    if let Some(running) = self.running.get(id) {
                        self.traffic.started(
                            running.job.job.voice,
                            *prompt_tokens,
                            running.job.since.elapsed(),
                        );
                    }
                }
                self.hand_over(advances);
            }
            Err(error) => lengths.iter().for_each(|(id, _)| self.fail(*id, &error)),
        }
        match self.streams[index].step(&self.decoder) {
            Ok(advances) => self.hand_over(advances),
            Err(error) => self.break_off(index, &error),
        }
    }

    /// Fails all answers of a voice.
    fn break_off(&mut self, index: usize, error: &LmError) {
        self.start_again(index);
        let all: Vec<u64> = self
            .running
            .iter()
            .filter(|(_, running)| self::index(running.job.job.voice) == index)
            .map(|(id, _)| *id)
            .collect();
        all.into_iter().for_each(|id| self.fail(id, error));
    }

    fn hand_over(&mut self, advances: Vec<Advance>) {
        for of_one in advances.chunk_by(|one, next| one.id == next.id) {
            if let Err(error) = self.hand_one(of_one) {
                self.fail(of_one[0].id, &error);
            }
        }
    }

    /// What one answer has got: some tokens, one piece of text.
    fn hand_one(&mut self, advances: &[Advance]) -> Result<(), LmError> {
        let id = advances[0].id;
        let Some(running) = self.running.get_mut(&id) else {
            return Ok(());
        };
        let tokenizer = &self.prompts.tokenizer;
        let mut text = String::new();
        let mut finish = None;
        for advance in advances {
            if advance.failed {
                return Err(LmError::NotANumber);
            }
            if let Some(token) = advance.token {
                running.tokens += 1;
                self.traffic.token(running.job.job.voice);
                text.push_str(&running.text.push(tokenizer, token)?);
            }
            if advance.finish.is_some() {
                text.push_str(&running.text.finish(tokenizer)?);
                finish = advance.finish;
            }
            if running.text.stopped() {
                finish = Some(Finish::Stop);
                break;
            }
        }
        if !text.is_empty() {
            // A reader that has gone is seen before the next step.
            let _ = running.job.job.pieces.send(Piece::Text(text));
        }
        if let Some(finish) = finish {
            let tokens = running.tokens;
            let how = match finish {
                Finish::Stop => "stop",
                Finish::Length => "length",
            };
            self.end(id, how, Some(Piece::Done { finish, tokens }));
        }
        Ok(())
    }

    fn fail(&mut self, id: u64, error: &LmError) {
        self.end(id, "failed", Some(Piece::Failed(error.to_string())));
    }

    fn end(&mut self, id: u64, how: &str, last: Option<Piece>) {
        let Some(running) = self.running.remove(&id) else {
            return;
        };
        // Before the last piece: who has the whole answer may ask again at once.
        self.open.fetch_sub(1, Ordering::SeqCst);
        let voice = running.job.job.voice;
        let left = self.streams[index(voice)].leave(&self.decoder, id);
        self.traffic.ended(voice, how, running.job.since.elapsed());
        if let Some(last) = last {
            let _ = running.job.job.pieces.send(last);
        }
        if let Err(error) = left {
            self.break_off(index(voice), &error);
        }
    }
}

fn index(voice: Voice) -> usize {
    match voice {
        Voice::Base => 0,
        Voice::Tuned => 1,
    }
}
