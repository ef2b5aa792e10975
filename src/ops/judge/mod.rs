//! The op `judge`: a model chooses one of a few allowed integers for every row of a table.
//!
//! A model of ours scores the allowed answers by log-probability (nothing is parsed); an OpenAI-compatible endpoint answers
//! in text. Verdicts are kept by the digest of model, decoding and rendered prompt, so that no prompt is judged twice, also
//! not after a crash or an edit of the stage.

mod endpoint;
#[cfg(feature = "torch")]
mod local;
mod parts;
mod prompt;

use std::collections::BTreeMap;
use std::collections::HashMap;

use serde::Deserialize;
use serde_json::Value;

use self::prompt::{PromptTemplate, Rendered};
use super::language_model::{
    PRECISION_CHOICES, all_slots, dtype_param, missing_column, quant_param,
};
use super::{Cell, ColumnType, Context, Op, OpError, Outputs, Problem, Table};
use crate::cache::Verdict;
use crate::config::{Columns, Interface, JobSpec, Param, ParamKind, Port};
use crate::digest::Digest;
use crate::graph::{Node, Resources};

pub struct Judge;

#[derive(Debug, Deserialize)]
struct Params {
    choices: String,
    truncate: Option<String>,
    quant: String,
    max_length: usize,
    dtype: String,
}

/// How many prompts a model of ours is given at a time, which are a few batches: between them the run can be cancelled and
/// verdicts become durable.
const CPU_WINDOW: usize = 8;
const GPU_WINDOW: usize = 512;

/// What [`Verdict::detail`] says of a prompt that did not fit and was cut.
const TRUNCATED: &str = r#"{"truncated":true}"#;

fn was_truncated(verdict: &Verdict) -> bool {
    verdict.detail == TRUNCATED
}

/// One prompt to be judged.
#[derive(Clone)]
struct Job {
    id: String,
    key: Digest,
    prompt: Rendered,
}

/// Makes a batch of verdicts, each with the position of its job, durable and reports progress.
type Done<'a> = dyn FnMut(&[(usize, Verdict)]) -> Result<(), OpError> + 'a;

/// Judges prompts that no verdict is known for.
type JudgeFn = fn(&Context, &Params, &PromptTemplate, &[Job], &mut Done<'_>) -> Result<(), OpError>;

impl Op for Judge {
    fn name(&self) -> &'static str {
        "judge"
    }

    fn version(&self) -> u32 {
        3
    }

    fn interface(&self) -> Interface {
        let text = || ParamKind::Text;
        let params = BTreeMap::from([
            ("model", Param::required(ParamKind::Model, "The judge.")),
            (
                "prompt",
                Param::required(
                    ParamKind::File,
                    "MiniJinja template with the blocks `system` (optional) and `user`; sees the row's columns.",
                ),
            ),
            (
                "choices",
                Param::required(
                    text(),
                    "MiniJinja expression over the row: the list of allowed integers.",
                ),
            ),
            (
                "truncate",
                Param::optional(
                    text(),
                    "The column (text, or list of texts) that is cut where a prompt does not fit.",
                ),
            ),
            (
                "max_length",
                Param::default(
                    ParamKind::Integer {
                        min: Some(16),
                        max: None,
                    },
                    2048,
                    "Tokens of one prompt.",
                ),
            ),
            (
                "shards",
                Param::default(
                    ParamKind::Integer {
                        min: Some(1),
                        max: Some(1000),
                    },
                    1,
                    "Jobs of a cluster, or GPUs of this machine, that share the rows.",
                )
                .unhashed(),
            ),
            ("quant", quant_param(&PRECISION_CHOICES, "none")),
            ("dtype", dtype_param()),
        ]);
        let rows = Port::table("Rows to judge.", &[("id", "VARCHAR")]);
        let verdicts = Port::table(
            "One row per input row: the chosen integer and its probability among the allowed ones.",
            &[
                ("id", "VARCHAR"),
                ("choice", "BIGINT"),
                ("probability", "DOUBLE"),
                ("truncated", "BOOLEAN"),
            ],
        );
        Interface {
            doc: "Lets a model choose one of a few allowed integers for every row.".to_owned(),
            params: params
                .into_iter()
                .map(|(name, param)| (name.to_owned(), param))
                .collect(),
            inputs: BTreeMap::from([("rows".to_owned(), rows)]),
            outputs: BTreeMap::from([("rows".to_owned(), verdicts)]),
            open_inputs: false,
        }
    }

    fn resources(&self, node: &Node) -> Resources {
        if self.needs_language_model(node) {
            // A GPU for each shard, as far as there are so many.
            Resources {
                gpu: self.parts(node),
                ..all_slots()
            }
        } else {
            Resources::default()
        }
    }

    fn needs_language_model(&self, node: &Node) -> bool {
        node.models
            .get("model")
            .is_some_and(|model| model.url.is_none())
    }

    /// A judge behind a URL does its work elsewhere anyhow, unless the pipeline asks for it.
    fn wants_machine(&self, node: &Node) -> bool {
        self.needs_language_model(node) || self.parts(node) > 1 || node.job != JobSpec::default()
    }

    fn parts(&self, node: &Node) -> u32 {
        let shards = node.params.get("shards").and_then(Value::as_u64);
        shards.map_or(1, |shards| shards as u32)
    }

    fn environment(&self, node: &Node) -> Vec<String> {
        let models = node.models.values();
        models
            .filter_map(|model| model.api_key_env.clone())
            .collect()
    }

    fn columns(
        &self,
        node: &Node,
        inputs: &BTreeMap<String, Option<Columns>>,
    ) -> Result<BTreeMap<String, Option<Columns>>, Vec<Problem>> {
        let mut problems = Vec::new();
        let known = inputs.get("rows").and_then(Option::as_ref);
        let text = |name: &str| node.params.get(name).and_then(Value::as_str);
        let template = node
            .files
            .get("prompt")
            .map(|file| PromptTemplate::parse(&file.text, text("choices").unwrap_or("[]")));
        match template {
            Some(Ok(template)) => {
                for (at, name) in template.undeclared() {
                    if let Some(columns) = known
                        && !columns.iter().any(|(column, _)| *column == name)
                    {
                        problems.push(missing_column(at, &name, columns));
                    }
                }
            }
            Some(Err(problem)) => problems.push(problem),
            None => {}
        }
        if let (Some(column), Some(columns)) = (text("truncate"), known)
            && !columns.iter().any(|(name, _)| name == column)
        {
            problems.push(missing_column("truncate", column, columns));
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let outputs = self.interface().outputs;
        Ok(outputs
            .into_iter()
            .map(|(name, port)| (name, Some(port.columns)))
            .collect())
    }
}

/// Runs the op where the language-model runtime is not linked in: endpoints only.
pub fn run_endpoint(context: &mut Context) -> Result<Outputs, OpError> {
    run_with(context, endpoint::judge)
}

/// Runs the op with a local model or an endpoint.
#[cfg(feature = "torch")]
pub fn run(context: &mut Context) -> Result<Outputs, OpError> {
    let endpoint = context
        .node
        .models
        .get("model")
        .is_some_and(|model| model.url.is_some());
    run_with(
        context,
        if endpoint {
            endpoint::judge
        } else {
            local::judge
        },
    )
}

fn run_with(context: &mut Context, judge: JudgeFn) -> Result<Outputs, OpError> {
    let params: Params = context.params()?;
    let source = context.file("prompt").unwrap_or_default().to_owned();
    let template = PromptTemplate::parse(&source, &params.choices)
        .map_err(|problem| OpError::new(problem.message))?;
    if context.part.is_some() {
        return parts::answer(context, &params, &template, judge);
    }
    let jobs = render_jobs(context, &params, &template)?;
    let keys: Vec<Digest> = jobs.iter().map(|job| job.key).collect();
    let mut verdicts: HashMap<Digest, Verdict> = context.cache().verdicts_get(&keys)?;
    // Equal prompts are judged once.
    let mut asked = std::collections::HashSet::new();
    let missing: Vec<Job> = jobs
        .iter()
        .filter(|job| !verdicts.contains_key(&job.key) && asked.insert(job.key))
        .cloned()
        .collect();
    let (known, total) = (jobs.len() - missing.len(), jobs.len());
    if known > 0 && !missing.is_empty() {
        context.info(format!("{known} of {total} verdicts are known from before"));
    }
    let mut done = known as u64;
    if !missing.is_empty() {
        let cache = context.cache();
        let mut keep = |rows: Vec<(Digest, Verdict)>| {
            cache.verdicts_put(&rows)?;
            done += rows.len() as u64;
            verdicts.extend(rows);
            context.progress(done.min(total as u64), total as u64, "rows", "");
            Ok(())
        };
        match &context.parts {
            Some(others) => parts::hand_out(context, &**others, &missing, &mut keep)?,
            None => judge(context, &params, &template, &missing, &mut |batch| {
                let verdict =
                    |(index, verdict): &(usize, Verdict)| (missing[*index].key, verdict.clone());
                keep(batch.iter().map(verdict).collect())
            })?,
        }
    }
    let mut table = Table::new(&[
        ("id", ColumnType::Text),
        ("choice", ColumnType::Integer),
        ("probability", ColumnType::Double),
        ("truncated", ColumnType::Boolean),
    ]);
    let mut counts = BTreeMap::<i64, u64>::new();
    let mut truncated = 0;
    for job in &jobs {
        let verdict = verdicts
            .get(&job.key)
            .ok_or_else(|| OpError::new(format!("no verdict for row `{}`", job.id)))?;
        *counts.entry(verdict.choice).or_default() += 1;
        truncated += u64::from(was_truncated(verdict));
        table.rows.push(vec![
            Cell::from(job.id.as_str()),
            verdict.choice.into(),
            verdict.probability.into(),
            was_truncated(verdict).into(),
        ]);
    }
    context.report("asked", missing.len() as f64);
    for (choice, count) in &counts {
        context.report(&format!("choice_{choice}"), *count as f64);
    }
    let tally: Vec<String> = counts
        .iter()
        .map(|(choice, count)| format!("{choice}: {count}"))
        .collect();
    context.info(format!("verdicts {}", tally.join(", ")));
    if truncated > 0 {
        context.report("prompts_truncated", truncated as f64);
        context.warn(format!(
            "longer than max_length {} and cut at `{}`: {truncated} of {total} prompts",
            params.max_length,
            params.truncate.as_deref().unwrap_or("?")
        ));
    }
    context.give_table("rows", &table, false)?;
    context.finish()
}

/// Renders the prompt of every row, in the order of ids.
fn render_jobs(
    context: &Context,
    params: &Params,
    template: &PromptTemplate,
) -> Result<Vec<Job>, OpError> {
    let rows = context
        .query("select id::varchar as id, to_json(rows)::varchar as row from rows order by id")?;
    let model = context.model_digest("model")?;
    let mut jobs = Vec::with_capacity(rows.rows.len());
    for cells in &rows.rows {
        let (Some(id), Some(text)) = (cells[0].as_str(), cells[1].as_str()) else {
            return Err(OpError::with_help(
                "a row has no `id`",
                "give every row an id, for example with `select row_number() over ()::varchar as id, …`",
            ));
        };
        let row: Value = serde_json::from_str(text)
            .map_err(|error| OpError::new(format!("row `{id}`: {error}")))?;
        let prompt = template
            .render(&row)
            .map_err(|message| OpError::new(format!("row `{id}`: {message}")))?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(model.as_bytes());
        let decoding = (
            &params.quant,
            &params.dtype,
            params.max_length,
            &params.truncate,
        );
        let identity = (decoding, &prompt.system, &prompt.user, &prompt.choices);
        serde_json::to_writer(&mut hasher, &identity)
            .map_err(|error| OpError::new(error.to_string()))?;
        jobs.push(Job {
            id: id.to_owned(),
            key: hasher.finalize().into(),
            prompt,
        });
    }
    Ok(jobs)
}
