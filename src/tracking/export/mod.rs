//! A tracked run as the folder that W&B's own `wandb sync` uploads.
//!
//! Written whole from the journal. `wandb sync` adds to what the server has and knows nothing of offsets, so such a folder is
//! for servers that `flow` did not send the run to.

mod log;
mod records;

use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};

use fs_err as fs;
use serde_json::Value;

use self::log::LogWriter;
use self::records::{
    Config, Exit, File, Files, Header, History, Item, Kind, Metric, MetricOptions, Output, Record,
    Run, Stats, Step, Summary, Timestamp, Version,
};
use super::failure::Failure;
use super::head::Head;
use super::journal::{CONSOLE, HISTORY, SYSTEM};
use super::lines::LineReader;
use super::row::Row;
use super::upload;
use prost::Message as _;

/// The first version of W&B's client that reads all of this.
const OLDEST_READER: &str = "0.70.0";

/// Writes `offline-run-<id>` into `into`, which it makes; returns its path.
pub fn export(journal: &Path, into: &Path) -> Result<PathBuf, Failure> {
    let head = Head::read(journal)?;
    // The name tells `wandb sync` that the run was not sent while it was on.
    let folder = into.join(format!("offline-run-{}", head.id));
    fs::create_dir_all(into)?;
    fs::create_dir(&folder)?;
    let files = upload::all(journal)?;
    for (name, content) in &files {
        let path = folder.join("files").join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(path, content)?;
    }
    let file = fs::File::create(folder.join(format!("run-{}.wandb", head.id)))?;
    let mut writer = Writer {
        log: LogWriter::new(BufWriter::new(file))?,
        num: 0,
    };
    writer.begin(&head)?;
    let runtime = writer.rows(journal)?;
    writer.system(journal)?;
    writer.console(journal)?;
    let files = files.into_keys().map(|path| File { path });
    writer.put(Kind::Files(Files {
        files: files.collect(),
    }))?;
    if let Some(exit_code) = head.exit_code {
        writer.put(Kind::Exit(Exit {
            exit_code,
            runtime: runtime as i32,
        }))?;
    }
    writer.log.finish()?;
    Ok(folder)
}

struct Writer<W> {
    log: LogWriter<W>,
    num: i64,
}

impl<W: io::Write> Writer<W> {
    fn put(&mut self, kind: Kind) -> io::Result<()> {
        self.num += 1;
        let record = Record {
            num: self.num,
            kind: Some(kind),
        };
        self.log.record(&record.encode_to_vec())
    }

    fn begin(&mut self, head: &Head) -> io::Result<()> {
        let version = Version {
            producer: format!("flow {}", env!("CARGO_PKG_VERSION")),
            min_consumer: OLDEST_READER.to_owned(),
        };
        self.put(Kind::Header(Header {
            version: Some(version),
        }))?;
        let update = head
            .config
            .iter()
            .map(|(key, value)| item(key, &value.to_string()));
        self.put(Kind::Run(Run {
            run_id: head.id.clone(),
            entity: head.entity.clone().unwrap_or_default(),
            project: head.project.clone(),
            config: Some(Config {
                update: update.collect(),
            }),
            run_group: head.group.clone().unwrap_or_default(),
            job_type: head.job_type.clone().unwrap_or_default(),
            display_name: head.name.clone(),
            start_time: Some(timestamp(head.started)),
        }))?;
        let axes = head.axes_in_order().into_iter().map(|axis| (axis, ""));
        let metrics = head
            .axes
            .iter()
            .map(|(metric, axis)| (metric.as_str(), axis.as_str()));
        for (name, step_metric) in axes.chain(metrics) {
            self.put(Kind::Metric(Metric {
                name: name.to_owned(),
                step_metric: step_metric.to_owned(),
                options: Some(MetricOptions {
                    step_sync: !step_metric.is_empty(),
                    defined: true,
                }),
            }))?;
        }
        Ok(())
    }

    /// History, then the summary it makes; seconds the run took.
    fn rows(&mut self, journal: &Path) -> Result<f64, Failure> {
        let mut summary = super::summary::Summary::default();
        let mut runtime = 0.0_f64;
        let mut step = 0;
        let mut reader = LineReader::open(&journal.join(HISTORY))?;
        while let Some(line) = reader.next()? {
            let row: Row = serde_json::from_str(&line)?;
            summary.add(&row);
            runtime = runtime.max(row.runtime());
            self.put(Kind::History(History {
                item: items(&row.fields),
                step: Some(Step { num: step }),
            }))?;
            step += 1;
        }
        self.put(Kind::Summary(Summary {
            update: items(&summary.fields()),
        }))?;
        Ok(runtime)
    }

    fn system(&mut self, journal: &Path) -> Result<(), Failure> {
        let mut reader = LineReader::open(&journal.join(SYSTEM))?;
        while let Some(line) = reader.next()? {
            let fields: serde_json::Map<String, Value> = serde_json::from_str(&line)?;
            let metrics = fields.iter().filter_map(|(key, value)| {
                Some(item(key.strip_prefix("system.")?, &value.to_string()))
            });
            let time = fields.get("_timestamp").and_then(Value::as_f64);
            self.put(Kind::Stats(Stats {
                timestamp: time.map(timestamp),
                item: metrics.collect(),
            }))?;
        }
        Ok(())
    }

    fn console(&mut self, journal: &Path) -> Result<(), Failure> {
        let mut reader = LineReader::open(&journal.join(CONSOLE))?;
        while let Some(line) = reader.next()? {
            let (output_type, line) = match line.strip_prefix("ERROR ") {
                Some(line) => (0, line),
                None => (1, line.as_str()),
            };
            let (time, text) = line.split_once(' ').unwrap_or(("", line));
            let time = format!("{time}Z").parse::<jiff::Timestamp>().ok();
            self.put(Kind::Output(Output {
                output_type,
                timestamp: time.map(|time| timestamp(time.as_duration().as_secs_f64())),
                line: format!("{text}\n"),
            }))?;
        }
        Ok(())
    }
}

fn items(fields: &std::collections::BTreeMap<String, String>) -> Vec<Item> {
    fields.iter().map(|(key, value)| item(key, value)).collect()
}

fn item(key: &str, value_json: &str) -> Item {
    Item {
        key: key.to_owned(),
        value_json: value_json.to_owned(),
    }
}

/// From Unix seconds.
fn timestamp(seconds: f64) -> Timestamp {
    Timestamp {
        seconds: seconds.floor() as i64,
        nanos: (seconds.fract() * 1e9) as i32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tracking::journal::Journal;

    #[test]
    fn everything_in_the_journal_is_in_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let journal_folder = folder.path().join("journal");
        let mut journal = {
            fs::create_dir(&journal_folder).unwrap();
            Journal::open(&journal_folder, |_| ()).unwrap()
        };
        let fields = |key: &str, value: &str| [(key.to_owned(), value.to_owned())].into();
        journal.row("a".into(), 1, fields("loss", "2")).unwrap();
        journal.row("a".into(), 2, fields("loss", "NaN")).unwrap();
        journal.system(fields("system.cpu", "12.5")).unwrap();
        journal.console("hello", false).unwrap();
        journal.console("oh", true).unwrap();
        fs::write(journal_folder.join("files/report.html"), "<p>").unwrap();
        let mut head = crate::tracking::head::tests::head();
        head.exit_code = Some(7);
        head.axes.insert("loss".into(), "step".into());
        head.write(&journal_folder).unwrap();

        let into = folder.path().join("wandb");
        let written = export(&journal_folder, &into).unwrap();
        assert_eq!(written, into.join("offline-run-20261124-001835-3fa2"));
        assert_eq!(
            fs::read_to_string(written.join("files/report.html")).unwrap(),
            "<p>"
        );
        let bytes = fs::read(written.join("run-20261124-001835-3fa2.wandb")).unwrap();
        let records: Vec<Record> = log::tests::records(&bytes)
            .iter()
            .map(|record| Record::decode(record.as_slice()).unwrap())
            .collect();
        let nums: Vec<_> = records.iter().map(|record| record.num).collect();
        assert_eq!(nums, (1..=records.len() as i64).collect::<Vec<_>>());
        let mut told = Vec::new();
        for record in records {
            told.push(match record.kind.unwrap() {
                Kind::Header(header) => header.version.unwrap().min_consumer,
                Kind::Run(run) => {
                    format!(
                        "{} {} {:?}",
                        run.project,
                        run.display_name,
                        run.config.unwrap().update
                    )
                }
                Kind::Metric(metric) => format!("{} by {:?}", metric.name, metric.step_metric),
                Kind::History(history) => {
                    let loss = history.item.iter().find(|item| item.key == "loss");
                    format!("{} {}", history.step.unwrap().num, loss.unwrap().value_json)
                }
                Kind::Summary(summary) => {
                    let loss = summary.update.iter().find(|item| item.key == "loss");
                    loss.unwrap().value_json.clone()
                }
                Kind::Stats(stats) => format!("{:?}", stats.item),
                Kind::Output(output) => format!("{} {:?}", output.output_type, output.line),
                Kind::Files(files) => files.files[0].path.clone(),
                Kind::Exit(exit) => format!("exit {}", exit.exit_code),
            });
        }
        assert_eq!(
            told,
            [
                "0.70.0",
                r#"p first [Item { key: "seed", value_json: "7" }]"#,
                r#"step by """#,
                r#"loss by "step""#,
                "0 2",
                "1 NaN",
                "NaN",
                r#"[Item { key: "cpu", value_json: "12.5" }]"#,
                r#"1 "hello\n""#,
                r#"0 "oh\n""#,
                "report.html",
                "exit 7",
            ]
        );
        assert!(matches!(
            export(&journal_folder, &into),
            Err(Failure::Journal(error)) if error.kind() == io::ErrorKind::AlreadyExists
        ));
    }
}
