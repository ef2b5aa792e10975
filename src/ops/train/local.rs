//! Runs `train`: rows to examples, the trainer with its checkpoint in the node's scratch, the adapter folder.

use serde_json::Value;

use super::Params;
use crate::lm::{
    Adapter, Compute, Conversation, Example, LanguageModel, LoraConfig, Message, Optimizer,
    Recompute, StepReport, TrainConfig, TrainHooks, prepare_examples, train, write_adapter,
};
use crate::ops::loaded::with_model;
use crate::ops::{Cell, ColumnType, Context, OpError, Outputs, Table};

pub fn run(context: &mut Context) -> Result<Outputs, OpError> {
    let params: Params = context.params()?;
    let training = conversations(context, &params, "train")?;
    if training.is_empty() {
        return Err(OpError::with_help(
            "there are no rows to train on",
            "look at what the stages before it keep, with `flow data latest`",
        ));
    }
    let validation = if context.inputs.contains_key("validation") {
        conversations(context, &params, "validation")?
    } else {
        Vec::new()
    };
    let folder = context.scratch.join("adapter");
    let checkpoints = context.scratch.join("checkpoint");
    fs_err::create_dir_all(&checkpoints)?;
    let report = with_model(context, "model", &params.quant, &params.dtype, |model| {
        let training = examples(context, model, &training, params.max_length, "training")?;
        let validation = examples(context, model, &validation, params.max_length, "validation")?;
        let mut hooks = Hooks { context };
        let trained = train(
            model,
            &lora(&params),
            &training,
            &validation,
            &config(&params, context.node.seed),
            &checkpoints,
            &mut hooks,
        );
        Adapter::remove(&mut model.decoder);
        let report = trained?;
        let template = model.template.as_ref().map(|template| template.source());
        write_adapter(
            &folder,
            &report.adapter,
            template,
            base_name(context).as_deref(),
        )?;
        Ok(report)
    })?;
    let mut curve = Table::new(&[
        ("step", ColumnType::Integer),
        ("epoch", ColumnType::Double),
        ("loss", ColumnType::Double),
        ("learning_rate", ColumnType::Double),
        ("grad_norm", ColumnType::Double),
        ("tokens", ColumnType::Integer),
        ("validation_loss", ColumnType::Double),
    ]);
    for row in &report.curve {
        curve.rows.push(vec![
            Cell::from(row.step as i64),
            row.epoch.into(),
            row.loss.into(),
            row.learning_rate.into(),
            row.grad_norm.into(),
            (row.tokens as i64).into(),
            row.eval_loss.into(),
        ]);
    }
    context.report("steps", report.curve.len() as f64);
    if let Some(last) = report.curve.last() {
        context.report("final_loss", last.loss);
    }
    if let Some(best) = &report.best {
        context.report("best_validation_loss", best.loss);
        context.report("best_step", best.step as f64);
    }
    if report.stopped_early {
        context.info(format!(
            "stopped early: {} evaluations without a better validation loss",
            params.early_stopping_patience
        ));
    }
    context.give_files("adapter", &folder)?;
    context.give_table("curve", &curve, true)?;
    context.finish()
}

/// The rows of a port as conversations that end with the response, by id.
fn conversations(
    context: &Context,
    params: &Params,
    port: &str,
) -> Result<Vec<Conversation>, OpError> {
    let rows = context.query(&format!(
        "select id::varchar as id, to_json({port})::varchar as row from {port} order by id"
    ))?;
    let templates = params
        .chat
        .templates()
        .map_err(|problem| OpError::new(problem.message))?;
    let mut conversations = Vec::with_capacity(rows.rows.len());
    for cells in &rows.rows {
        let (id, text) = (
            cells[0].as_str().unwrap_or_default(),
            cells[1].as_str().unwrap_or_default(),
        );
        let row: Value = serde_json::from_str(text)
            .map_err(|error| OpError::new(format!("row `{id}`: {error}")))?;
        let mut messages: Vec<Message> = templates
            .render(&row)?
            .into_iter()
            .map(|(role, content)| Message::new(role, content))
            .collect();
        let response = row.get(&params.chat.response).and_then(Value::as_str);
        let response = response.ok_or_else(|| {
            OpError::new(format!(
                "row `{id}` has no text in `{}`",
                params.chat.response
            ))
        })?;
        messages.push(Message::assistant(response));
        conversations.push(Conversation {
            id: id.to_owned(),
            messages,
        });
    }
    Ok(conversations)
}

fn examples(
    context: &Context,
    model: &LanguageModel,
    conversations: &[Conversation],
    max_length: usize,
    what: &str,
) -> Result<Vec<Example>, OpError> {
    let prepared = prepare_examples(model, conversations, max_length)?;
    if prepared.truncated > 0 {
        context.warn(format!(
            "{} of {} {what} rows are longer than max_length {max_length} and were cut",
            prepared.truncated,
            conversations.len()
        ));
    }
    if let Some(first) = prepared.rejected.first() {
        context.warn(format!("{} {what} rows have no trained token left within max_length {max_length} and were left out, `{first}` first", prepared.rejected.len()));
    }
    Ok(prepared.examples)
}

fn lora(params: &Params) -> LoraConfig {
    let lora = &params.lora;
    LoraConfig {
        r: lora.r,
        alpha: lora.alpha,
        dropout: lora.dropout,
        targets: lora.targets.clone(),
        rslora: lora.rslora,
        dora: lora.dora,
    }
}

fn config(params: &Params, seed: u64) -> TrainConfig {
    TrainConfig {
        batch_size: params.batch_size,
        gradient_accumulation: params.gradient_accumulation,
        epochs: params.epochs,
        learning_rate: params.learning_rate,
        warmup_ratio: params.warmup_ratio,
        weight_decay: params.weight_decay,
        max_grad_norm: if params.max_grad_norm == 0.0 {
            f64::MAX
        } else {
            params.max_grad_norm
        },
        optimizer: if params.optimizer == "adamw" {
            Optimizer::AdamW
        } else {
            Optimizer::AdamW8bit
        },
        max_length: params.max_length,
        eval_every: params.eval_every,
        early_stopping_patience: params.early_stopping_patience,
        recompute: match params.recompute.as_str() {
            "full" => Recompute::Full,
            "none" => Recompute::None,
            _ => Recompute::Auto,
        },
        compute: match params.compute.as_str() {
            "fp8" => Compute::Fp8,
            _ => Compute::Auto,
        },
        deterministic: params.deterministic,
        memory_limit: params.memory_limit.map(gibibytes),
        packing: params.packing,
        seed,
        checkpoint_every: params.checkpoint_every,
        ..TrainConfig::default()
    }
}

fn gibibytes(number: f64) -> u64 {
    (number * f64::from(1 << 30)) as u64
}

/// What PEFT records as the base model: the hub's name, or the file's name without the folders of this machine.
fn base_name(context: &Context) -> Option<String> {
    let spec = context.node.models.get("model")?;
    spec.hf.clone().or_else(|| {
        let path = std::path::Path::new(spec.path.as_deref()?);
        path.file_name()
            .map(|name| name.to_string_lossy().into_owned())
    })
}

struct Hooks<'a, 'run> {
    context: &'a Context<'run>,
}

impl TrainHooks for Hooks<'_, '_> {
    fn step(&mut self, report: &StepReport) {
        let values = [
            ("train/loss", report.loss),
            ("train/lr", report.learning_rate),
            ("train/grad_norm", report.grad_norm),
            ("train/tokens", report.tokens as f64),
            ("train/tokens_per_second", report.tokens_per_second),
        ];
        self.context.metric(report.step, &values);
        let note = format!(
            "loss {:.4}, {:.0} tokens/s",
            report.loss, report.tokens_per_second
        );
        self.context
            .progress(report.step, report.total, "steps", note);
    }

    fn eval(&mut self, step: u64, loss: f64) {
        self.context.metric(step, &[("eval/loss", loss)]);
        self.context
            .info(format!("step {step}: validation loss {loss:.4}"));
    }

    fn log(&mut self, line: &str) {
        self.context.info(line);
    }

    fn cancelled(&mut self) -> bool {
        self.context.cancel.is_cancelled()
    }
}
