//! From each format to the view or table `raw`, its columns as they are in the data.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use duckdb::Connection;
use duckdb::arrow::array::{ArrayRef, LargeStringBuilder};
use duckdb::arrow::record_batch::RecordBatch;
use rayon::prelude::*;

use super::medquad;
use super::members::{self, Member, Members};
use super::{Format, Params};
use crate::cache::{CacheError, file_literal};
use crate::config::{Columns, display};
use crate::ops::OpError;

/// Called with units done and in total between steps; an error ends the reading.
pub(super) type Tick<'a> = dyn FnMut(u64, u64) -> Result<(), OpError> + 'a;

/// Files parsed at a time; with 60 kB a file this bounds the memory.
const BATCH: usize = 512;
/// Files that one thread takes at a time: their rows go to the database together.
const FILES_OF_A_TASK: usize = 32;

/// The largest JSON object; every thread of the reader holds two of this size.
const MAX_OBJECT: u64 = 16 << 20;

const MEDQUAD: [&str; 8] = [
    "id",
    "question",
    "answer",
    "question_type",
    "focus",
    "source",
    "url",
    "file",
];

pub(super) fn medquad_columns() -> Columns {
    MEDQUAD
        .iter()
        .map(|name| ((*name).to_owned(), "VARCHAR".to_owned()))
        .collect()
}

/// Makes `raw`: a table for MedQuAD, else a view over DuckDB's reader. Gives the names of files that are of another kind.
pub(super) fn read(
    connection: &Connection,
    format: Format,
    path: &Path,
    params: &Params,
    tick: &mut Tick,
) -> Result<Vec<String>, OpError> {
    if format == Format::Medquad {
        return read_medquad(connection, path, tick);
    }
    let reader = reader(connection, format, path, params, true)?;
    connection
        .execute_batch(&format!("create view raw as select * from {reader}"))
        .map_err(|error| failure(path, &error))?;
    Ok(Vec::new())
}

/// What to say about files that were not read.
pub(super) fn skipped(names: &[String]) -> Option<String> {
    let first = names.first()?;
    let more = if names.len() > 1 {
        format!(" and {} more", names.len() - 1)
    } else {
        String::new()
    };
    Some(format!(
        "{} files without `QAPairs` are no MedQuAD documents and were not read: `{first}`{more}",
        names.len()
    ))
}

/// The columns that [`read`] would give, as the head of the data tells.
pub(super) fn describe(
    connection: &Connection,
    format: Format,
    path: &Path,
    params: &Params,
) -> Result<Columns, OpError> {
    let reader = reader(connection, format, path, params, false)?;
    names_and_types(connection, &format!("select * from {reader}"))
        .map_err(|error| failure(path, &error))
}

/// The columns of `raw`.
pub(super) fn columns(connection: &Connection) -> Result<Columns, OpError> {
    Ok(names_and_types(connection, "raw")?)
}

fn names_and_types(connection: &Connection, from: &str) -> duckdb::Result<Columns> {
    let mut statement = connection.prepare(&format!(
        "select column_name, column_type from (describe {from})"
    ))?;
    statement
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect()
}

/// A text literal of SQL.
pub(super) fn text(value: impl AsRef<Path>) -> String {
    format!("'{}'", value.as_ref().to_string_lossy().replace('\'', "''"))
}

/// DuckDB's table function for the format; `whole` looks at every row to be sure of the types.
fn reader(
    connection: &Connection,
    format: Format,
    path: &Path,
    params: &Params,
    whole: bool,
) -> Result<String, OpError> {
    let (format, files) = match format {
        Format::Hf => split_files(path, &params.split)?,
        format => (format, vec![path.to_owned()]),
    };
    for file in &files {
        let metadata = fs_err::metadata(file)?;
        if metadata.is_file() && metadata.len() == 0 {
            return Err(OpError::with_help(
                format!("`{}` is empty", display(file)),
                "give a file with rows",
            ));
        }
    }
    let list: Vec<String> = files.iter().map(|file| file_literal(file)).collect();
    let list = format!("[{}]", list.join(", "));
    // No surprise after the first 20,000 rows, at the price of reading twice.
    let sample = if whole { ", sample_size = -1" } else { "" };
    match format {
        Format::Csv => {
            let dialect = format!(
                "union_by_name = true, header = true, quote = '\"', escape = '\"'{}",
                delimiter(&files[0])?
            );
            let failed = |error: duckdb::Error| {
                ragged(connection, &files).unwrap_or_else(|| failure(path, &error))
            };
            // Told in advance, as `001` is an id and no number.
            let head = names_and_types(
                connection,
                &format!("select * from read_csv({list}, {dialect}, all_varchar = true)"),
            );
            let head = head.map_err(failed)?;
            let types: Vec<String> = params
                .text_columns()
                .filter(|name| {
                    head.iter()
                        .any(|column| column.0.eq_ignore_ascii_case(name))
                })
                .map(|name| format!("{}: 'VARCHAR'", text(name)))
                .collect();
            let types = if types.is_empty() {
                String::new()
            } else {
                format!(", types = {{{}}}", types.join(", "))
            };
            Ok(format!("read_csv({list}, {dialect}{types}{sample})"))
        }
        Format::Jsonl => Ok(format!(
            "read_json({list}, union_by_name = true, maximum_object_size = {MAX_OBJECT}{sample})"
        )),
        Format::Parquet => Ok(format!("read_parquet({list}, union_by_name = true)")),
        other => Err(OpError::new(format!("{other:?} is no table"))),
    }
}

/// The sign that the first line has most of. Left to DuckDB for a compressed file: guessing from the data, it takes a
/// file with one ragged row for another dialect instead of saying so.
fn delimiter(path: &Path) -> Result<String, OpError> {
    Ok(first_line(path)?.map_or_else(String::new, |(sign, _)| format!(", delim = '{sign}'")))
}

/// The delimiter and the number of fields of the first line; `None` for a compressed file.
fn first_line(path: &Path) -> Result<Option<(char, usize)>, OpError> {
    let mut head = Vec::new();
    fs_err::File::open(path)?
        .take(1 << 16)
        .read_to_end(&mut head)?;
    if head.starts_with(&[0x1f, 0x8b]) || head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        return Ok(None);
    }
    let line = head.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let count = |sign: &u8| line.iter().filter(|byte| *byte == sign).count();
    let sign = [b'|', b';', b'\t', b',']
        .into_iter()
        .max_by_key(count)
        .unwrap_or(b',');
    Ok(Some((char::from(sign), count(&sign) + 1)))
}

/// The first row of a CSV file that has more or fewer fields than the first line, which DuckDB does not name when it
/// looks for columns.
fn ragged(connection: &Connection, files: &[PathBuf]) -> Option<OpError> {
    files.iter().find_map(|file| {
        let (sign, fields) = first_line(file).ok()??;
        let fields: Vec<String> = (0..fields).map(|index| format!("'{index}': 'VARCHAR'")).collect();
        let sql = format!(
            "select count(*) from read_csv([{}], auto_detect = false, header = true, delim = '{sign}', quote = '\"', escape = '\"', columns = {{{}}})",
            file_literal(file),
            fields.join(", ")
        );
        connection.query_row(&sql, [], |row| row.get::<_, u64>(0)).err().map(|error| failure(file, &error))
    })
}

/// The files of a split: named after it as the Hub does (`train-00000-of-00002.parquet`, `data/train.jsonl`,
/// `train/part.csv`). A dataset that names no split at all is one split, `train`.
fn split_files(folder: &Path, split: &str) -> Result<(Format, Vec<PathBuf>), OpError> {
    const META: [&str; 4] = [
        "dataset_info.json",
        "dataset_infos.json",
        "dataset_dict.json",
        "state.json",
    ];
    let shown = display(folder);
    let names = members::files(folder)?;
    let base = |name: &str| name.rsplit('/').next().unwrap_or_default().to_owned();
    let data = names
        .iter()
        .filter(|name| !META.contains(&base(name).as_str()));
    let mut found: Vec<(&String, Format)> = data
        .filter_map(|name| Some((name, Format::of_name(&base(name))?)))
        .collect();
    let Some(format) = [Format::Parquet, Format::Jsonl, Format::Csv]
        .into_iter()
        .find(|format| found.iter().any(|file| file.1 == *format))
    else {
        let arrow = names.iter().any(|name| name.ends_with(".arrow"));
        let help = if arrow {
            "it was written by `save_to_disk`; write it with `to_parquet` instead"
        } else {
            "give the folder of a dataset"
        };
        return Err(OpError::with_help(
            format!("`{shown}` has no Parquet, JSONL or CSV files"),
            help,
        ));
    };
    found.retain(|file| file.1 == format);
    let splits = |name: &str| -> Vec<String> {
        let words = name
            .split(|c: char| !c.is_alphanumeric())
            .map(str::to_ascii_lowercase);
        words
            .map(|word| {
                if matches!(word.as_str(), "val" | "valid" | "dev") {
                    "validation".to_owned()
                } else {
                    word
                }
            })
            .collect()
    };
    let wanted = splits(split).pop().unwrap_or_default();
    let of_split: Vec<PathBuf> = found
        .iter()
        .filter(|(name, _)| splits(name).contains(&wanted))
        .map(|(name, _)| folder.join(name))
        .collect();
    if !of_split.is_empty() {
        return Ok((format, of_split));
    }
    let named = ["train", "validation", "test"];
    let unnamed = !found.iter().any(|(name, _)| {
        splits(name)
            .iter()
            .any(|word| named.contains(&word.as_str()))
    });
    if unnamed && wanted == "train" {
        return Ok((
            format,
            found
                .into_iter()
                .map(|(name, _)| folder.join(name))
                .collect(),
        ));
    }
    let names: Vec<String> = found
        .iter()
        .take(5)
        .map(|(name, _)| format!("`{name}`"))
        .collect();
    Err(OpError::with_help(
        format!("`{shown}` has no split `{split}`"),
        format!("its files are {}", names.join(", ")),
    ))
}

/// DuckDB's message with the file, and without the advice on its own options.
pub(super) fn failure(path: &Path, error: &duckdb::Error) -> OpError {
    let whole = error.to_string();
    if let Some((_, what)) = whole.split_once("Out of Memory Error: ") {
        let what = what.lines().next().unwrap_or_default().to_owned();
        return CacheError::OutOfMemory(what).into();
    }
    let (_, message) = whole.split_once("Error: ").unwrap_or(("", &whole));
    let lines = message
        .lines()
        .map(str::trim)
        .take_while(|line| !line.is_empty() && !line.starts_with("LINE "));
    let lines = lines.filter(|line| {
        !["Original Line:", "Possible", "*"]
            .iter()
            .any(|noise| line.starts_with(noise))
    });
    let message = lines
        .collect::<Vec<_>>()
        .join(": ")
        .replace("CSV Error on Line: ", "line ")
        .replace(&path.display().to_string(), &display(path));
    OpError::with_help(
        format!("`{}` cannot be read: {message}", display(path)),
        "correct the file, or its `format`",
    )
}

fn read_medquad(
    connection: &Connection,
    path: &Path,
    tick: &mut Tick,
) -> Result<Vec<String>, OpError> {
    let fields: Vec<String> = MEDQUAD
        .iter()
        .map(|name| format!("{name} varchar"))
        .collect();
    connection.execute_batch(&format!("create table raw ({})", fields.join(", ")))?;
    let mut appender = connection.appender("raw")?;
    let members = Members::list(path, ".xml")?;
    if members.as_slice().is_empty() {
        return Err(OpError::with_help(
            format!("`{}` has no `.xml` files", display(path)),
            "give MedQuAD's archive or folder",
        ));
    }
    let total = members.as_slice().len() as u64;
    let (mut done, mut skipped) = (0, Vec::new());
    for files in members.as_slice().chunks(BATCH) {
        tick(done, total)?;
        let read: Vec<Result<Pairs, OpError>> = files
            .par_chunks(FILES_OF_A_TASK)
            .map_init(
                || members.handle(),
                |handle, files| pairs(path, &members, handle, files),
            )
            .collect();
        for pairs in read {
            let pairs = pairs?;
            appender.append_record_batch(pairs.rows)?;
            skipped.extend(pairs.skipped);
        }
        done += files.len() as u64;
    }
    appender.flush()?;
    tick(total, total)?;
    if skipped.len() == members.as_slice().len() {
        let message = format!(
            "none of the {total} `.xml` files of `{}` has `QAPairs`",
            display(path)
        );
        return Err(OpError::with_help(
            message,
            "give MedQuAD's archive or folder",
        ));
    }
    Ok(skipped)
}

/// What some files hold.
struct Pairs {
    /// The columns [`MEDQUAD`].
    rows: RecordBatch,
    /// Names of files of another kind.
    skipped: Vec<String>,
}

fn pairs(
    path: &Path,
    members: &Members,
    handle: &mut members::Handle,
    files: &[Member],
) -> Result<Pairs, OpError> {
    let mut columns = MEDQUAD.map(|_| LargeStringBuilder::new());
    let mut skipped = Vec::new();
    for member in files {
        let bytes = members.read(handle, member)?;
        let document = medquad::parse(&bytes).map_err(|error| {
            let message = format!("`{}` in `{}`, {error}", member.name, display(path));
            OpError::with_help(message, "correct the file, or take it out")
        })?;
        let Some(document) = document else {
            skipped.push(member.name.clone());
            continue;
        };
        for pair in &document.pairs {
            let row = [
                &pair_id(&member.name, &pair.qid),
                &pair.question,
                &pair.answer,
                &pair.question_type,
                &document.focus,
                &document.source,
                &document.url,
                &member.name,
            ];
            for (column, value) in columns.iter_mut().zip(row) {
                column.append_value(value);
            }
        }
    }
    let arrays = MEDQUAD.iter().zip(&mut columns).map(|(name, column)| {
        let array: ArrayRef = Arc::new(column.finish());
        (*name, array)
    });
    let rows = RecordBatch::try_from_iter(arrays)
        .map_err(|error| OpError::new(format!("`{}`: {error}", display(path))))?;
    Ok(Pairs { rows, skipped })
}

/// A question's id is unique in its collection only, and a collection is a folder: `2_GARD_QA/0000001-1`. A few files
/// carry the ids of another one; then the file's name stands before it.
fn pair_id(file: &str, qid: &str) -> String {
    let (folder, name) = file.rsplit_once('/').map_or(("", file), |(path, name)| {
        (path.rsplit('/').next().unwrap_or(path), name)
    });
    let stem = name.strip_suffix(".xml").unwrap_or(name);
    let of_file = qid
        .strip_prefix(stem)
        .is_some_and(|rest| rest.starts_with('-'));
    let parts = [folder, if of_file { "" } else { stem }, qid];
    parts
        .into_iter()
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join("/")
}
