//! Walks the nodes in order and notes, for every table with ids, whether and as what it has the row.

use std::collections::{BTreeMap, HashSet};

use serde_json::{Map, Value};

use super::find::literal;
use super::{Answer, Happening, Member, Score, Step, Trace};
use crate::cache::CacheError;
use crate::insight::Tables;
use crate::insight::numbers::Decimals;
use crate::insight::report::label;
use crate::insight::roles::Roles;
use crate::insight::scores::{Scored, scored};
use crate::runs::GraphNode;
use crate::ui::number;

/// As what a table has the row.
#[derive(Debug, Clone, PartialEq)]
enum Presence {
    Row,
    /// In the group of this id.
    Group(String),
    /// A verdict under this id.
    Verdict(Ruling),
    Absent,
}

/// What a judge said.
#[derive(Debug, Clone, PartialEq)]
struct Ruling {
    choice: i64,
    probability: f64,
    of_group: bool,
}

/// The group the row competed in.
#[derive(Debug, Clone)]
struct Group {
    ids: Vec<String>,
    /// The id that the judge chose; `None` before the verdict, and where it chose none.
    winner: Option<String>,
    judged: bool,
}

struct Walk<'a> {
    tables: &'a Tables<'a>,
    id: &'a str,
    exported: HashSet<&'a str>,
    roles: Roles,
    scored: Vec<Scored>,
    /// By full output name.
    presence: BTreeMap<String, Presence>,
    group: Option<Group>,
    row: Map<String, Value>,
    steps: Vec<Step>,
}

pub(super) fn walk(tables: &Tables, id: &str) -> Result<Option<Trace>, CacheError> {
    let run = tables.run();
    let mut walk = Walk {
        tables,
        id,
        exported: run.view.head.exports.values().map(String::as_str).collect(),
        roles: Roles::of(tables),
        scored: scored(run),
        presence: BTreeMap::new(),
        group: None,
        row: Map::new(),
        steps: Vec::new(),
    };
    for full in tables.names() {
        if let Some(node) = full
            .rsplit_once('.')
            .and_then(|(node, _)| run.graph.node(node))
        {
            walk.visit(node, full)?;
        }
    }
    if walk.row.is_empty() {
        return Ok(None);
    }
    Ok(Some(Trace {
        run: run.id().to_owned(),
        id: id.to_owned(),
        fate: walk.fate(),
        row: walk.row,
        steps: walk.steps,
    }))
}

impl Walk<'_> {
    fn visit(&mut self, node: &GraphNode, full: &str) -> Result<(), CacheError> {
        if !self.tables.has(full, &["id"]) {
            return Ok(());
        }
        let presence = if let Some(list) = self.list_of_ids(full) {
            self.in_group(node, full, &list)?
        } else if self.tables.has(full, &["choice", "probability"]) {
            self.in_verdicts(node, full)?
        } else {
            self.in_rows(node, full)?
        };
        self.presence.insert(full.to_owned(), presence);
        Ok(())
    }

    fn tell(&mut self, node: &GraphNode, full: &str, event: Happening) {
        self.steps.push(Step {
            node: node.name.clone(),
            output: self.tables.run().short_name(full),
            event,
        });
    }

    /// The condition that a group has the row, where the table is one of groups.
    fn list_of_ids(&self, full: &str) -> Option<String> {
        let conditions: Vec<String> = self
            .tables
            .columns(full)
            .iter()
            .filter(|(name, kind)| {
                ["ids", "every_id"].contains(&name.as_str()) && kind.ends_with("[]")
            })
            .map(|(name, _)| format!("list_contains({name}::varchar[], {})", literal(self.id)))
            .collect();
        (!conditions.is_empty()).then(|| conditions.join(" or "))
    }

    fn read(&self, full: &str, condition: &str) -> Result<Option<Map<String, Value>>, CacheError> {
        let sql = format!("select * from data where {condition} limit 1");
        Ok(self.tables.objects(&[("data", full)], &sql)?.pop())
    }

    fn has_id(&self, id: &str) -> String {
        format!("id::varchar = {}", literal(id))
    }

    fn in_group(
        &mut self,
        node: &GraphNode,
        full: &str,
        condition: &str,
    ) -> Result<Presence, CacheError> {
        let Some(row) = self.read(full, condition)? else {
            return Ok(Presence::Absent);
        };
        let ids = texts(&row, "ids");
        let answers = texts(&row, "answers");
        let members = ids.iter().enumerate().map(|(index, id)| Member {
            number: index + 1,
            answer: answers.get(index).cloned().unwrap_or_default(),
            is_this: *id == self.id,
            id: id.clone(),
        });
        let group = text(&row, "id");
        if self.group.is_none() {
            let members = members.collect();
            let event = Happening::Group {
                group: group.clone(),
                members,
            };
            self.tell(node, full, event);
            self.group = Some(Group {
                ids,
                winner: None,
                judged: false,
            });
        }
        Ok(Presence::Group(group))
    }

    fn in_verdicts(&mut self, node: &GraphNode, full: &str) -> Result<Presence, CacheError> {
        let key = self.inputs(node).find_map(|presence| match presence {
            Presence::Row => Some((self.id.to_owned(), false)),
            Presence::Group(group) => Some((group.clone(), true)),
            _ => None,
        });
        let Some((key, of_group)) = key else {
            return Ok(Presence::Absent);
        };
        let Some(row) = self.read(full, &self.has_id(&key))? else {
            return Ok(Presence::Absent);
        };
        let ruling = Ruling {
            choice: row
                .get("choice")
                .and_then(Value::as_i64)
                .unwrap_or_default(),
            probability: row
                .get("probability")
                .and_then(Value::as_f64)
                .unwrap_or(f64::NAN),
            of_group,
        };
        // The agreement of an answer with its reference is told with the other scores.
        if !self.is_scored_stage(node) {
            let meaning = self.meaning(&ruling);
            let truncated = row.get("truncated") == Some(&Value::Bool(true));
            let event = Happening::Verdict {
                choice: ruling.choice,
                probability: ruling.probability,
                truncated,
                meaning,
            };
            self.tell(node, full, event);
        }
        Ok(Presence::Verdict(ruling))
    }

    /// Says what a choice means, and notes who won the group.
    fn meaning(&mut self, ruling: &Ruling) -> String {
        let group = self.group.as_mut().filter(|_| ruling.of_group);
        let Some(group) = group else {
            return match ruling.choice {
                0 => "the judge does not accept it".to_owned(),
                1 => "the judge accepts it".to_owned(),
                other => format!("the judge says {other}"),
            };
        };
        group.judged = true;
        let place = usize::try_from(ruling.choice - 1).ok();
        group.winner = place.and_then(|place| group.ids.get(place)).cloned();
        match &group.winner {
            None => "none of the answers is acceptable".to_owned(),
            Some(winner) if winner == self.id => "this row wins".to_owned(),
            Some(winner) => format!("{winner} wins"),
        }
    }

    fn in_rows(&mut self, node: &GraphNode, full: &str) -> Result<Presence, CacheError> {
        let found = self.read(full, &self.has_id(self.id))?;
        if let Some(row) = &found {
            if self.row.is_empty() {
                self.row = row.clone();
                self.tell(node, full, Happening::Source);
                return Ok(Presence::Row);
            }
            if let Some(scored) = self.scored.iter().find(|scored| scored.table == full) {
                let event = scores(row, scored);
                self.tell(node, full, event);
                return Ok(Presence::Row);
            }
        }
        let presence = if found.is_some() {
            Presence::Row
        } else {
            Presence::Absent
        };
        let is_shown = self.exported.contains(full) || node.name == node.stage;
        let came_in = self.inputs(node).any(|presence| *presence == Presence::Row);
        if self.is_scored_stage(node) || !came_in {
            return Ok(presence);
        }
        match presence {
            Presence::Row if self.is_part(full) => {
                let is_train = self.roles.train.as_deref() == Some(full);
                let part = if is_train { "training" } else { "validation" };
                let part = part.to_owned();
                self.tell(node, full, Happening::Drawn { part });
            }
            Presence::Row if is_shown => self.tell(node, full, Happening::Kept),
            // A part of the split that the row is not in is no loss.
            Presence::Absent if is_shown && !self.is_part(full) => {
                let event = self.absence(node, full)?;
                self.tell(node, full, event);
            }
            _ => {}
        }
        Ok(presence)
    }

    /// Why a row that came in is not in what went out.
    fn absence(&self, node: &GraphNode, full: &str) -> Result<Happening, CacheError> {
        let dropped = |why: String| Ok(Happening::Dropped { why });
        let inputs: Vec<&Presence> = self.inputs(node).collect();
        let ruling = inputs.iter().find_map(|presence| match presence {
            Presence::Verdict(ruling) => Some(ruling),
            _ => None,
        });
        if let Some(group) = &self.group
            && (ruling.is_some_and(|ruling| ruling.of_group)
                || inputs
                    .iter()
                    .any(|input| matches!(input, Presence::Group(_))))
        {
            return dropped(match &group.winner {
                Some(winner) if winner == self.id => {
                    format!("the query of `{}` left it out", node.name)
                }
                Some(winner) => format!("{winner} was chosen for its question"),
                None if group.judged => "no answer to its question was acceptable".to_owned(),
                None => "its group was not judged".to_owned(),
            });
        }
        if let Some(ruling) = ruling {
            let threshold = node.param("params.threshold");
            let threshold = threshold
                .map(|threshold| format!("; kept from a probability of 1 of {threshold} on"))
                .unwrap_or_default();
            return dropped(format!(
                "the judge chose {} with probability {}{threshold}",
                ruling.choice,
                number(ruling.probability)
            ));
        }
        if let Some(twin) = self.twin(full)? {
            return dropped(format!("{twin} has the same question and answer"));
        }
        let reads_groups = node
            .inputs
            .values()
            .any(|origin| self.list_of_ids(&origin.to_string()).is_some());
        if reads_groups && self.group.is_none() {
            return Ok(Happening::PassedBy {
                why: "no other answer to its question, so there was nothing to choose".to_owned(),
            });
        }
        dropped(format!("the query of `{}` left it out", node.name))
    }

    /// Another row of a table with the same question and answer.
    fn twin(&self, full: &str) -> Result<Option<String>, CacheError> {
        let (question, answer) = (text(&self.row, "question"), text(&self.row, "answer"));
        if !self.tables.has(full, &["question", "answer"]) {
            return Ok(None);
        }
        let condition = format!(
            "question = {} and answer = {}",
            literal(&question),
            literal(&answer)
        );
        Ok(self.read(full, &condition)?.map(|row| text(&row, "id")))
    }

    fn inputs<'b>(&'b self, node: &'b GraphNode) -> impl Iterator<Item = &'b Presence> {
        node.inputs
            .values()
            .filter_map(|origin| self.presence.get(&origin.to_string()))
    }

    fn is_scored_stage(&self, node: &GraphNode) -> bool {
        self.scored
            .iter()
            .any(|scored| scored.stage == node.stage || scored.stage == node.name)
    }

    fn is_part(&self, full: &str) -> bool {
        [&self.roles.train, &self.roles.validation]
            .iter()
            .any(|part| part.as_deref() == Some(full))
    }

    fn fate(&self) -> String {
        let has = |full: &Option<String>| {
            full.as_ref()
                .is_some_and(|full| self.presence.get(full) == Some(&Presence::Row))
        };
        let dropped = self.steps.iter().rev().find_map(|step| match &step.event {
            Happening::Dropped { why } => Some(format!("dropped at {}: {why}", step.output)),
            _ => None,
        });
        if has(&self.roles.train) {
            return "learnt from: it is in the training rows".to_owned();
        }
        if has(&self.roles.validation) {
            let scored = self.steps.iter().find_map(|step| match &step.event {
                Happening::Scored { scores, .. } => scores
                    .iter()
                    .find(|score| score.metric == "f1")
                    .or(scores.first()),
                _ => None,
            });
            let scored = scored.map(|score| format!("; {}", score_text(score)));
            return format!("held out for validation{}", scored.unwrap_or_default());
        }
        dropped.unwrap_or_else(|| "kept to the end".to_owned())
    }
}

/// `F1 (0–100) 23.1 → 31.0`.
pub fn score_text(score: &Score) -> String {
    let decimals = Decimals::of(score.before.into_iter().chain(score.value));
    let value = |value: Option<f64>| decimals.plain(value.unwrap_or(f64::NAN));
    let name = label(&score.metric);
    match score.before {
        Some(before) => format!("{name} {} → {}", value(Some(before)), value(score.value)),
        None => format!("{name} {}", value(score.value)),
    }
}

fn scores(row: &Map<String, Value>, scored: &Scored) -> Happening {
    let value = |column: &String| row.get(column).and_then(Value::as_f64);
    let scores = scored.metrics.iter().map(|metric| Score {
        metric: metric.name.clone(),
        before: metric.base.as_ref().and_then(value),
        value: value(&metric.value),
    });
    let (base, prediction) = scored.main_metric().predictions();
    let answers = match base {
        Some(base) => vec![("before tuning", base), ("after tuning", prediction)],
        None => vec![("prediction", prediction)],
    };
    Happening::Scored {
        reference: text(row, "reference"),
        answers: answers
            .into_iter()
            .filter(|(_, column)| row.contains_key(column))
            .map(|(name, column)| Answer {
                name: name.to_owned(),
                text: text(row, &column),
            })
            .collect(),
        scores: scores.collect(),
    }
}

fn text(row: &Map<String, Value>, column: &str) -> String {
    match row.get(column) {
        Some(Value::String(text)) => text.clone(),
        None | Some(Value::Null) => String::new(),
        Some(other) => other.to_string(),
    }
}

fn texts(row: &Map<String, Value>, column: &str) -> Vec<String> {
    let items = row.get(column).and_then(Value::as_array);
    let text = |item: &Value| {
        item.as_str()
            .map_or_else(|| item.to_string(), str::to_owned)
    };
    items.into_iter().flatten().map(text).collect()
}
