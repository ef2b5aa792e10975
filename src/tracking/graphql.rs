//! The three GraphQL calls a run needs. Only fields that are used are asked for: servers by others lack some.

use serde::Deserialize;
use serde_json::{Value, json};

use super::client::Client;
use super::failure::{Call, Failure};
use super::head::Head;
use super::sent::Sent;

/// The run's place at the server, from its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    pub storage_id: Option<String>,
    pub entity: String,
    pub project: String,
}

/// Makes the run, or reopens it; sending it twice is harmless.
pub fn upsert(client: &Client, head: &Head, sent: &Sent) -> Result<Bucket, Failure> {
    const QUERY: &str = "mutation UpsertBucket($id:String,$name:String,$project:String,$entity:String,$groupName:String,$jobType:String,$displayName:String,$config:JSONString) {
  upsertBucket(input:{id:$id,name:$name,modelName:$project,entityName:$entity,groupName:$groupName,jobType:$jobType,displayName:$displayName,config:$config}) {
    bucket { id name project { name entity { name } } } } }";
    let variables = json!({
        "id": sent.storage_id,
        "name": head.id,
        "project": head.project,
        "entity": sent.entity.as_ref().or(head.entity.as_ref()),
        "groupName": head.group,
        "jobType": head.job_type,
        "displayName": head.name,
        "config": head.config_document().to_string(),
    });
    let answer: Value = client.graphql(Call::Upsert, "UpsertBucket", QUERY, &variables)?;
    let bucket = &answer["upsertBucket"]["bucket"];
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let project = text(&bucket["project"]["name"]);
    let entity = text(&bucket["project"]["entity"]["name"]);
    let (Some(project), Some(entity)) = (project, entity) else {
        let message = "the server does not say where the run is";
        return Err(Failure::Refused(message.to_owned()));
    };
    Ok(Bucket {
        storage_id: text(&bucket["id"]),
        entity,
        project,
    })
}

/// What the server has of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    pub id: Option<String>,
    pub history_line_count: Option<u64>,
    pub events_line_count: Option<u64>,
    pub log_line_count: Option<u64>,
}

/// `None` where the server does not know the run.
pub fn status(client: &Client, head: &Head, sent: &Sent) -> Result<Option<Status>, Failure> {
    const QUERY: &str = "query RunResumeStatus($project:String,$entity:String,$name:String!) {
  model(name:$project, entityName:$entity) {
    bucket(name:$name, missingOk:true) { id historyLineCount eventsLineCount logLineCount } } }";
    #[derive(Deserialize)]
    struct Answer {
        model: Option<Model>,
    }
    #[derive(Deserialize)]
    struct Model {
        bucket: Option<Status>,
    }
    let variables = json!({
        "project": sent.project.as_ref().unwrap_or(&head.project),
        "entity": sent.entity.as_ref().or(head.entity.as_ref()),
        "name": head.id,
    });
    let answer: Answer = client.graphql(Call::Graphql, "RunResumeStatus", QUERY, &variables)?;
    Ok(answer.model.and_then(|model| model.bucket))
}

/// Where a run's files are to be put.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Places {
    #[serde(default)]
    pub upload_headers: Vec<String>,
    pub files: Vec<Place>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Place {
    pub name: String,
    /// `None`: not wanted.
    pub upload_url: Option<String>,
}

pub fn places(
    client: &Client,
    head: &Head,
    sent: &Sent,
    files: &[&str],
) -> Result<Places, Failure> {
    const QUERY: &str =
        "mutation CreateRunFiles($entity:String!,$project:String!,$run:String!,$files:[String!]!) {
  createRunFiles(input:{entityName:$entity,projectName:$project,runName:$run,files:$files}) {
    runID uploadHeaders files { name uploadUrl } } }";
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Answer {
        create_run_files: Places,
    }
    let variables =
        json!({ "entity": sent.entity, "project": sent.project, "run": head.id, "files": files });
    let answer: Answer = client.graphql(Call::Graphql, "CreateRunFiles", QUERY, &variables)?;
    Ok(answer.create_run_files)
}
