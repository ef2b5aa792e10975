//! Runs `generate`. Completions are kept in a journal beside the node's scratch, so a run that was killed goes on where it was.

use std::collections::HashMap;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Params;
use crate::digest::derive_seed;
use crate::lm::{
    Adapter, Completion, Finish, GenerateOptions, LanguageModel, LmError, Message, SampleOptions,
    check_template, generate, load_adapter, read_adapter,
};
use crate::ops::loaded::with_model;
use crate::ops::{Cell, ColumnType, Context, OpError, Outputs, Table};

/// What was answered to a row.
#[derive(Serialize, Deserialize)]
struct Answer {
    id: String,
    prediction: String,
    tokens: u64,
    finish: String,
}

pub fn run(context: &mut Context) -> Result<Outputs, OpError> {
    let params: Params = context.params()?;
    let rows = context
        .query("select id::varchar as id, to_json(rows)::varchar as row from rows order by id")?;
    let journal = context.scratch.join("answers.jsonl");
    let mut answers = read_journal(&journal)?;
    let adapter = context.input_files("adapter");
    let total = rows.rows.len() as u64;
    with_model(context, "model", &params.quant, &params.dtype, |model| {
        let mut prompts = Vec::with_capacity(rows.rows.len());
        let templates = params
            .chat
            .templates()
            .map_err(|problem| OpError::new(problem.message))?;
        for cells in &rows.rows {
            let (id, text) = (
                cells[0].as_str().unwrap_or_default(),
                cells[1].as_str().unwrap_or_default(),
            );
            let row: Value = serde_json::from_str(text)
                .map_err(|error| OpError::new(format!("row `{id}`: {error}")))?;
            let messages: Vec<Message> = templates
                .render(&row)?
                .into_iter()
                .map(|(role, content)| Message::new(role, content))
                .collect();
            prompts.push((
                id.to_owned(),
                model.tokenizer.encode(&model.render(&messages, true)?)?,
            ));
        }
        if let Some(folder) = &adapter {
            attach(model, folder)?;
        }
        let result = answer_all(
            context,
            &params,
            model,
            prompts,
            &mut answers,
            &journal,
            total,
        );
        Adapter::remove(&mut model.decoder);
        result
    })?;
    let mut table = Table::new(&[
        ("id", ColumnType::Text),
        ("prediction", ColumnType::Text),
        ("tokens", ColumnType::Integer),
        ("finish", ColumnType::Text),
    ]);
    let (mut tokens, mut cut) = (0, 0);
    for cells in &rows.rows {
        let id = cells[0].as_str().unwrap_or_default();
        let answer = answers
            .get(id)
            .ok_or_else(|| OpError::new(format!("no answer for row `{id}`")))?;
        tokens += answer.tokens;
        cut += u64::from(answer.finish == "length");
        let row = [
            Cell::from(id),
            answer.prediction.as_str().into(),
            (answer.tokens as i64).into(),
            answer.finish.as_str().into(),
        ];
        table.rows.push(row.into());
    }
    context.report("tokens", tokens as f64);
    context.report("cut_at_max_new_tokens", cut as f64);
    context.give_table("rows", &table, false)?;
    context.finish()
}

/// Installs a PEFT adapter; refuses one that was trained with another chat template.
fn attach(model: &mut LanguageModel, folder: &Path) -> Result<(), LmError> {
    if let Some(template) = &model.template {
        check_template(folder, &read_adapter(folder)?, template.source())?;
    }
    load_adapter(folder, &model.decoder)?.install_for_inference(&mut model.decoder)
}

fn answer_all(
    context: &Context,
    params: &Params,
    model: &LanguageModel,
    prompts: Vec<(String, Vec<i64>)>,
    answers: &mut HashMap<String, Answer>,
    journal: &Path,
    total: u64,
) -> Result<(), OpError> {
    let decoding = &params.generation;
    let options = GenerateOptions {
        max_new_tokens: decoding.max_new_tokens,
        batch_size: params.batch_size,
        sample: SampleOptions {
            repetition_penalty: decoding.repetition_penalty,
            no_repeat_ngram: decoding.no_repeat_ngram_size,
            temperature: decoding.temperature,
            top_k: decoding.top_k,
            top_p: decoding.top_p,
            seed: derive_seed(context.node.seed, "rows"),
            ..SampleOptions::default()
        },
    };
    let (ids, prompts): (Vec<String>, Vec<Vec<i64>>) = prompts
        .into_iter()
        .filter(|(id, _)| !answers.contains_key(id))
        .unzip();
    let started = Instant::now();
    let mut written = Journal::new(journal);
    let mut tokens = 0;
    let mut failure = None;
    context.check_cancelled()?;
    generate(model, &prompts, &options, &mut |index, completion| {
        let id = &ids[index];
        let kept = completion
            .map_err(|error| OpError::new(format!("row `{id}`: {error}")))
            .and_then(|completion| {
                tokens += completion.ids.len() as u64;
                let answer = Answer::new(id, &completion);
                written.add(&answer)?;
                answers.insert(id.clone(), answer);
                let rate = tokens as f64 / started.elapsed().as_secs_f64();
                let note = format!("{rate:.0} tokens/s");
                context.progress(answers.len() as u64, total, "rows", note);
                context.check_cancelled()
            });
        match kept {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failure = Some(error);
                ControlFlow::Break(())
            }
        }
    })?;
    written.flush()?;
    failure.map_or(Ok(()), Err)
}

impl Answer {
    fn new(id: &str, completion: &Completion) -> Self {
        let finish = match completion.finish {
            Finish::Stop => "stop",
            Finish::Length => "length",
        };
        Self {
            id: id.to_owned(),
            prediction: completion.text.trim().to_owned(),
            tokens: completion.ids.len() as u64,
            finish: finish.to_owned(),
        }
    }
}

/// Answers become durable at least this often.
const WRITE_EVERY: Duration = Duration::from_secs(2);

/// Collects answers and appends them to the file now and then.
struct Journal<'a> {
    path: &'a Path,
    lines: Vec<u8>,
    flushed: Instant,
}

impl<'a> Journal<'a> {
    fn new(path: &'a Path) -> Self {
        Self {
            path,
            lines: Vec::new(),
            flushed: Instant::now(),
        }
    }

    fn add(&mut self, answer: &Answer) -> Result<(), OpError> {
        serde_json::to_writer(&mut self.lines, answer)
            .map_err(|error| OpError::new(error.to_string()))?;
        self.lines.push(b'\n');
        match self.flushed.elapsed() >= WRITE_EVERY {
            true => self.flush(),
            false => Ok(()),
        }
    }

    fn flush(&mut self) -> Result<(), OpError> {
        if !self.lines.is_empty() {
            append(self.path, &self.lines)?;
            self.lines.clear();
        }
        self.flushed = Instant::now();
        Ok(())
    }
}

/// Appends whole lines with one write and makes it durable.
fn append(path: &Path, lines: &[u8]) -> Result<(), OpError> {
    let mut file = fs_err::OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)?;
    file.write_all(lines)?;
    file.sync_data()?;
    Ok(())
}

/// What was finished before; a last line that was cut off by a crash does not count.
fn read_journal(path: &Path) -> Result<HashMap<String, Answer>, OpError> {
    let mut answers = HashMap::new();
    let text = match fs_err::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(answers),
        Err(error) => return Err(error.into()),
    };
    let whole = text
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |at| at + 1);
    if whole < text.len() {
        fs_err::OpenOptions::new()
            .write(true)
            .open(path)?
            .set_len(whole as u64)?;
    }
    for line in text[..whole]
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
    {
        let answer: Answer = serde_json::from_slice(line)
            .map_err(|error| OpError::new(format!("{}: {error}", path.display())))?;
        answers.insert(answer.id.clone(), answer);
    }
    Ok(answers)
}
