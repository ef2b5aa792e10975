//! JSON Schemas of `pipelines/*.yaml` and `stage.yaml`, made from the interfaces, so that editors complete and check as one types.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::check::describe;
use super::declare::{KINDS, TYPES};
use super::executor::EXECUTORS;
use super::interface::{Interface, Param, ParamKind, Port};
use super::matrix::LIMIT;
use super::models::ModelSpec;
use super::tracking::MODES;

/// Draft 7 is what editors understand best.
const DRAFT: &str = "http://json-schema.org/draft-07/schema#";
/// A text that stands for a value of another type: `${NAME}` in a pipeline, `$param` in a step.
const FROM_ENVIRONMENT: &str = r"\$\{";
const FROM_PARAM: &str = r"^\$";

pub type Interfaces = BTreeMap<String, Interface>;

/// The schema of a pipeline, given the ops and stages it can use.
pub fn pipeline(uses: &Interfaces) -> Value {
    let settings = schemars::generate::SchemaSettings::draft07();
    let mut model = settings
        .into_generator()
        .into_root_schema_for::<ModelSpec>()
        .to_value();
    if let Some(model) = model.as_object_mut() {
        model.remove("$schema");
        model.insert(
            "oneOf".to_owned(),
            json!([{ "required": ["path"] }, { "required": ["hf"] }, { "required": ["url"] }]),
        );
    }
    let mut call = call("uses", "The op or stage this is.", uses, FROM_ENVIRONMENT);
    call["properties"]["resources"] = resources();
    let overrides = "Overrides by dotted or nested keys: models.<name>, <stage>.with.<param>, <stage>.inputs.<input>, <stage>.resources.<resource>, seed, cache, tracking, executor.";
    json!({
        "$schema": DRAFT,
        "title": "flow pipeline",
        "type": "object",
        "required": ["stages"],
        "additionalProperties": false,
        "properties": {
            "name": { "type": "string", "description": "Name of the pipeline; by default that of the file." },
            "description": { "type": "string" },
            "seed": { "description": "The one seed all others come from.", "anyOf": [{ "type": "integer", "minimum": 0 }, stand_in(FROM_ENVIRONMENT)] },
            "models": { "description": "Language models by name.", "type": "object", "additionalProperties": { "$ref": "#/definitions/model" } },
            "stages": { "type": "object", "minProperties": 1, "additionalProperties": { "$ref": "#/definitions/stage" } },
            "show": { "description": "Outputs (`stage` or `stage.output`) whose rows are printed at the end of a run, after those that stages show by themselves.", "type": "array", "items": { "type": "string" } },
            "matrix": {
                "description": "Lists of values by dotted or nested keys (`<stage>.with.<param>`, `models.<name>.<place>`, `seed`): a variant of the pipeline for each combination.",
                "type": "object",
                "properties": {
                    "include": { "description": "Further variants, each with a value for every key.", "type": "array", "items": { "type": "object" } },
                    "exclude": { "description": "Variants that have all of these values are left out.", "type": "array", "items": { "type": "object" } },
                    "limit": { "description": "More variants than this are refused.", "type": "integer", "minimum": 1, "default": LIMIT },
                },
                "additionalProperties": { "type": ["array", "object"] },
            },
            "profiles": { "description": overrides, "type": "object", "additionalProperties": { "type": "object" } },
            "cache": { "type": "object", "additionalProperties": false, "properties": { "path": { "type": "string", "description": "Folder of the cache, relative to the project." }, "remote": { "type": "string", "pattern": "^(s3|gs|az|file)://|\\$\\{", "description": "Where results are shared with other machines (s3://bucket/prefix, gs://…, az://…, file:///folder); `FLOW_CACHE_REMOTE` wins over it. Keys come from the environment (`AWS_ACCESS_KEY_ID`, …)." } } },
            "tracking": {
                "description": "Where runs are tracked, by W&B's protocol; `WANDB_BASE_URL`, `WANDB_PROJECT`, `WANDB_ENTITY` and `WANDB_MODE` win over it.",
                "type": "object",
                "additionalProperties": false,
                "properties": {
                    "entity": { "type": "string", "description": "The user or team; by default that of the API key." },
                    "project": { "type": "string", "description": "By default the pipeline's name." },
                    "base_url": { "type": "string", "description": "The server; by default https://api.wandb.ai. The key comes from `WANDB_API_KEY` or ~/.netrc." },
                    "mode": { "enum": MODES, "description": "`offline` keeps a journal for `flow sync`; `disabled` keeps nothing." },
                },
            },
            "executor": executor(),
        },
        "definitions": { "model": model, "stage": call },
    })
}

/// The schema of a stage definition, given the ops its steps can call.
pub fn stage(ops: &Interfaces) -> Value {
    let names = json!({ "anyOf": [{ "type": "array", "items": { "type": "string" } }, { "type": "object", "additionalProperties": { "type": "string" } }] });
    let param = json!({
        "type": "object",
        "required": ["type"],
        "additionalProperties": false,
        "properties": {
            "type": { "enum": TYPES },
            "doc": { "type": "string" },
            "default": {},
            "required": { "type": "boolean" },
            "optional": { "type": "boolean" },
            "choices": { "type": "array", "items": { "type": "string" } },
            "min": { "type": "number" },
            "max": { "type": "number" },
            "items": { "description": "What a list or a map holds.", "anyOf": [{ "enum": TYPES }, { "$ref": "#/definitions/param" }] },
            "fields": { "type": "object", "additionalProperties": { "$ref": "#/definitions/param" } },
        },
    });
    json!({
        "$schema": DRAFT,
        "title": "flow stage",
        "type": "object",
        "required": ["outputs", "steps"],
        "additionalProperties": false,
        "properties": {
            "description": { "type": "string" },
            "params": { "type": "object", "additionalProperties": { "$ref": "#/definitions/param" } },
            "inputs": {
                "type": "object",
                "additionalProperties": {
                    "type": "object",
                    "additionalProperties": false,
                    "properties": { "kind": { "enum": KINDS }, "columns": names, "optional": { "type": "boolean" }, "doc": { "type": "string" } },
                },
            },
            "outputs": {
                "type": "object",
                "additionalProperties": {
                    "type": "object",
                    "required": ["from"],
                    "additionalProperties": false,
                    "properties": { "from": { "type": "string", "description": "`step` or `step.output`." }, "columns": names, "show": { "type": "boolean", "description": "Its rows are printed at the end of a run." }, "doc": { "type": "string" } },
                },
            },
            "steps": { "type": "object", "minProperties": 1, "additionalProperties": { "$ref": "#/definitions/step" } },
        },
        "definitions": { "param": param, "step": call("op", "The op this step calls.", ops, FROM_PARAM) },
    })
}

/// What a stage's nodes take: slots here, resources of a job on a cluster.
fn resources() -> Value {
    let slots = json!({ "anyOf": [{ "type": "integer", "minimum": 0, "maximum": 1024 }, { "const": "all" }, stand_in(FROM_ENVIRONMENT)] });
    let mut properties = limits();
    for (name, doc) in [
        (
            "cpus",
            "CPU slots while a node runs; processors of its job.",
        ),
        ("gpus", "GPU slots while a node runs; GPUs of its job."),
    ] {
        properties[name] = slots.clone();
        properties[name]["description"] = json!(doc);
    }
    // Older names of the two.
    properties["cpu"] = slots.clone();
    properties["gpu"] = slots;
    json!({
        "description": "What each node of the stage takes while it runs.",
        "type": "object", "additionalProperties": false, "properties": properties,
    })
}

/// What a job may be limited to.
fn limits() -> Value {
    json!({
        "memory": { "type": "string", "description": "Of a job: `16G`, `512M`." },
        "time": { "type": ["string", "integer"], "description": "Of a job: `90m`, `2h`, `1d`, `hours:minutes:seconds`, `days-hours`; a number is minutes." },
        "partition": { "type": "string", "description": "Of the cluster." },
    })
}

fn executor() -> Value {
    let natural = |least: u32, most: u32, doc: &str| json!({ "description": doc, "anyOf": [{ "type": "integer", "minimum": least, "maximum": most }, stand_in(FROM_ENVIRONMENT)] });
    let mut slurm = limits();
    slurm["account"] = json!({ "type": "string" });
    slurm["qos"] = json!({ "type": "string", "description": "Quality of service." });
    slurm["cpus"] = natural(1, 1024, "Processors of a job.");
    slurm["gpus"] = natural(0, 64, "GPUs of a job.");
    slurm["max_jobs"] = natural(1, 10_000, "Jobs in the queue at a time.");
    slurm["options"] = json!({
        "description": "Further long options of `sbatch`, such as `constraint: a100`; `true` for one without a value.",
        "type": "object", "additionalProperties": { "type": ["string", "number", "boolean"] },
    });
    json!({
        "description": "Where nodes run whose op asks for a machine of its own.",
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "use": { "enum": EXECUTORS, "description": "By default `local`; `--executor` wins." },
            "slurm": { "description": "What every job gets; a stage's `resources` win.", "type": "object", "additionalProperties": false, "properties": slurm },
        },
    })
}

/// One call; what may stand in `with` and `inputs` depends on what is called.
fn call(key: &str, doc: &str, uses: &Interfaces, stands_in: &str) -> Value {
    let names: Vec<_> = uses.keys().collect();
    let by_use = |(name, interface): (&String, &Interface)| {
        let mut then = json!({ "properties": { "with": params(&interface.params, stands_in), "inputs": inputs(interface) } });
        let wants = |required: &Value| {
            required["required"]
                .as_array()
                .is_some_and(|names| !names.is_empty())
        };
        let required: Vec<_> = ["with", "inputs"]
            .into_iter()
            .filter(|part| wants(&then["properties"][part]))
            .collect();
        then["required"] = json!(required);
        json!({ "if": { "properties": { key: { "const": name } }, "required": [key] }, "then": then })
    };
    json!({
        "type": "object",
        "required": [key],
        "additionalProperties": false,
        "properties": { key: { "description": doc, "enum": names }, "with": { "type": "object" }, "inputs": { "type": "object" } },
        "allOf": uses.iter().map(by_use).collect::<Vec<_>>(),
    })
}

fn params(params: &BTreeMap<String, Param>, stands_in: &str) -> Value {
    let required: Vec<_> = params
        .iter()
        .filter(|(_, param)| {
            param.default.is_none() && !param.optional && !fills_itself(&param.kind)
        })
        .map(|(name, _)| name)
        .collect();
    let properties: Map<_, _> = params
        .iter()
        .map(|(name, param)| (name.clone(), self::param(param, stands_in)))
        .collect();
    json!({ "type": "object", "additionalProperties": false, "properties": properties, "required": required })
}

/// A record all of whose fields have defaults need not be given.
fn fills_itself(kind: &ParamKind) -> bool {
    matches!(kind, ParamKind::Record(fields) if fields.values().all(|field| field.optional || field.default.is_some()))
}

fn param(param: &Param, stands_in: &str) -> Value {
    let mut schema = kind(&param.kind, stands_in);
    if !param.doc.is_empty() {
        schema["description"] = json!(param.doc);
    }
    if let Some(default) = &param.default {
        schema["default"] = default.clone();
    }
    schema
}

fn kind(kind: &ParamKind, stands_in: &str) -> Value {
    let bounded = |name: &str, min: Value, max: Value| {
        let mut number = json!({ "type": name });
        for (key, bound) in [("minimum", min), ("maximum", max)] {
            if !bound.is_null() {
                number[key] = bound;
            }
        }
        json!({ "anyOf": [number, stand_in(stands_in)] })
    };
    match kind {
        ParamKind::Bool => json!({ "anyOf": [{ "type": "boolean" }, stand_in(stands_in)] }),
        ParamKind::Integer { min, max } => bounded("integer", json!(min), json!(max)),
        ParamKind::Number { min, max } => bounded("number", json!(min), json!(max)),
        ParamKind::Choice(choices) => {
            json!({ "anyOf": [{ "enum": choices }, stand_in(stands_in)] })
        }
        ParamKind::Text => json!({ "type": "string" }),
        ParamKind::Model | ParamKind::File | ParamKind::Path => {
            json!({ "type": "string", "description": describe(kind) })
        }
        ParamKind::List(item) => {
            json!({ "anyOf": [{ "type": "array", "items": self::kind(item, stands_in) }, stand_in(stands_in)] })
        }
        ParamKind::Map(item) => {
            json!({ "anyOf": [{ "type": "object", "additionalProperties": self::kind(item, stands_in) }, stand_in(stands_in)] })
        }
        ParamKind::Record(fields) => {
            json!({ "anyOf": [params(fields, stands_in), stand_in(stands_in)] })
        }
        ParamKind::Any => json!({}),
    }
}

fn stand_in(pattern: &str) -> Value {
    json!({ "type": "string", "pattern": pattern })
}

fn inputs(interface: &Interface) -> Value {
    let required: Vec<_> = interface
        .inputs
        .iter()
        .filter(|(_, port)| !port.optional)
        .map(|(name, _)| name)
        .collect();
    let property = |(name, port): (&String, &Port)| {
        (
            name.clone(),
            json!({ "type": "string", "description": port.doc }),
        )
    };
    let properties: Map<_, _> = interface.inputs.iter().map(property).collect();
    let open = if interface.open_inputs {
        json!({ "type": "string" })
    } else {
        json!(false)
    };
    json!({ "type": "object", "additionalProperties": open, "properties": properties, "required": required })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uses() -> Interfaces {
        let mut interface = Interface::default();
        interface.params.insert(
            "limit".into(),
            Param::default(
                ParamKind::Integer {
                    min: Some(1),
                    max: None,
                },
                5,
                "Rows at most.",
            ),
        );
        interface
            .params
            .insert("model".into(), Param::required(ParamKind::Model, ""));
        interface
            .inputs
            .insert("rows".into(), Port::table("What to read.", &[]));
        Interfaces::from([("ask".to_owned(), interface)])
    }

    #[test]
    fn a_call_is_checked_by_what_it_uses() {
        let schema = pipeline(&uses());
        let then = &schema["definitions"]["stage"]["allOf"][0]["then"];
        assert_eq!(
            then["properties"]["with"]["properties"]["limit"]["anyOf"][0],
            json!({ "type": "integer", "minimum": 1 })
        );
        assert_eq!(then["properties"]["with"]["required"], json!(["model"]));
        assert_eq!(then["properties"]["inputs"]["required"], json!(["rows"]));
        assert_eq!(then["required"], json!(["with", "inputs"]));
        assert_eq!(
            schema["definitions"]["stage"]["properties"]["uses"]["enum"],
            json!(["ask"])
        );
        assert!(schema["definitions"]["model"]["properties"]["hf"].is_object());
    }

    #[test]
    fn a_step_may_name_params() {
        let schema = stage(&uses());
        let then = &schema["definitions"]["step"]["allOf"][0]["then"];
        assert_eq!(
            then["properties"]["with"]["properties"]["limit"]["anyOf"][1]["pattern"],
            FROM_PARAM
        );
    }
}
