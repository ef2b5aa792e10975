//! Rows made like MedQuAD's, by DuckDB out of their numbers: the same for the same version of DuckDB.
//!
//! As measured on MedQuAD: the question types in their shares; answers of log-normal length (median 890, mean 1303).
//! Of hundred rows twenty ask eight questions that others ask too (two to four answers each); three of thousand are exact
//! duplicates. Rows of one question lie far from each other.

use std::io::Write as _;
use std::path::Path;

use duckdb::Connection;
use fs_err as fs;
use zip::write::SimpleFileOptions;

use crate::cli::error::CliError;

/// Question types and their rows in MedQuAD.
const TYPES: [(&str, u32); 16] = [
    ("information", 4535),
    ("symptoms", 2748),
    ("treatment", 2442),
    ("inheritance", 1446),
    ("frequency", 1120),
    ("genetic changes", 1087),
    ("causes", 727),
    ("exams and tests", 653),
    ("research", 395),
    ("outlook", 361),
    ("susceptibility", 324),
    ("considerations", 235),
    ("prevention", 210),
    ("stages", 77),
    ("complications", 46),
    ("support groups", 1),
];

/// The spread of the logarithm of an answer's length; with it a mean of 1303 has the median 890.
const SPREAD: f64 = 0.873;

/// Words that answers are made of.
const WORDS: &str = "the of and to in is a may with are that can by disease people who for symptoms treatment or condition \
    cells blood this genetic as risk be have it cancer syndrome gene usually doctor disorder other cause not affected \
    children age body from some often muscle therapy family test skin more heart changes bone when brain care";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileFormat {
    Parquet,
    Jsonl,
    Csv,
    /// MedQuAD's own: a zip archive of XML documents.
    Xml,
}

pub struct Rows {
    pub count: u64,
    /// Mean characters of an answer.
    pub answer: u64,
}

impl FileFormat {
    pub const ALL: [Self; 4] = [Self::Parquet, Self::Jsonl, Self::Csv, Self::Xml];

    pub fn name(self) -> &'static str {
        match self {
            Self::Parquet => "parquet",
            Self::Jsonl => "jsonl",
            Self::Csv => "csv",
            Self::Xml => "medquad",
        }
    }

    pub fn file(self) -> &'static str {
        match self {
            Self::Parquet => "rows.parquet",
            Self::Jsonl => "rows.jsonl",
            Self::Csv => "rows.csv",
            Self::Xml => "rows.zip",
        }
    }
}

impl Rows {
    /// Writes the rows; gives the bytes of the text before it is packed, or of the file where DuckDB packs it.
    pub fn write(&self, path: &Path, format: FileFormat) -> Result<u64, CliError> {
        let failed = |error: duckdb::Error| CliError::failed(error.to_string(), None);
        let connection = Connection::open_in_memory().map_err(failed)?;
        let options = match format {
            FileFormat::Parquet => "format parquet",
            FileFormat::Jsonl => "format json",
            FileFormat::Csv => "format csv, header",
            FileFormat::Xml => return self.archive(&connection, path),
        };
        let target = path.to_string_lossy().replace('\'', "''");
        connection
            .execute_batch(&format!("copy ({}) to '{target}' ({options})", self.sql()))
            .map_err(failed)?;
        Ok(fs::metadata(path)?.len())
    }

    /// A document for every ten rows.
    fn archive(&self, connection: &Connection, path: &Path) -> Result<u64, CliError> {
        let failed = |error: duckdb::Error| CliError::failed(error.to_string(), None);
        let packed = |error: zip::result::ZipError| CliError::failed(error.to_string(), None);
        let sql = format!(
            "select id, question, answer, question_type, focus from ({})",
            self.sql()
        );
        let mut statement = connection.prepare(&sql).map_err(failed)?;
        let mut rows = statement.query([]).map_err(failed)?;
        let mut archive = zip::ZipWriter::new(std::fs::File::create(path)?);
        let (mut place, mut written) = (0, 0);
        while let Some(row) = rows.next().map_err(failed)? {
            let field = |index: usize| row.get::<_, String>(index).map_err(failed);
            let (id, question, answer) = (field(0)?, field(1)?, field(2)?);
            let (kind, focus) = (field(3)?, field(4)?);
            let document = place / 10;
            let mut text = String::new();
            if place % 10 == 0 {
                archive
                    .start_file(
                        format!("made/{document:07}.xml"),
                        SimpleFileOptions::default(),
                    )
                    .map_err(packed)?;
                text = format!(
                    "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Document id=\"{document:07}\" source=\"made\" url=\"\">\n<Focus>{focus}</Focus>\n<QAPairs>\n"
                );
            }
            text.push_str(&format!(
                "<QAPair pid=\"{place}\"><Question qid=\"{document:07}-{id}\" qtype=\"{kind}\">{question}</Question>\n<Answer>{answer}</Answer></QAPair>\n"
            ));
            place += 1;
            if place % 10 == 0 || place == self.count {
                text.push_str("</QAPairs>\n</Document>\n");
            }
            archive.write_all(text.as_bytes())?;
            written += text.len() as u64;
        }
        archive.finish().map_err(packed)?;
        Ok(written)
    }

    /// The SELECT that makes the rows.
    fn sql(&self) -> String {
        let total: u32 = TYPES.iter().map(|(_, rows)| rows).sum();
        let mut through = 0;
        let types: String = TYPES
            .iter()
            .map(|(name, rows)| {
                through += rows;
                format!("when hash(asked, 1) % {total} < {through} then '{name}' ")
            })
            .collect();
        let median = self.answer as f64 * (-SPREAD * SPREAD / 2.0).exp();
        let count = self.count;
        // Words of 97 pages, most of which are longer than the answers cut from them.
        let words = 97 * self.answer / 3;
        // The step has no factor in common with the count: every number comes once.
        let step = [7919_u64, 7927]
            .into_iter()
            .find(|prime| !count.is_multiple_of(*prime))
            .unwrap_or(1);
        format!(
            "with words as (
                select string_split('{WORDS}', ' ') as word
            ),
            lines as (
                select range % 97 as page, string_agg(word[1 + (hash(range) % len(word))::bigint]
                    || case when hash(range, 2) % 14 = 0 then '.' else '' end, ' ' order by range) as text
                from range({words}), words group by page
            ),
            book as (select list(text order by page) as pages from lines),
            numbered as (select range as place, range * {step} % {count} as number from range({count})),
            asked as (
                select place, number, number - number % 100 + case
                    when number % 100 < 80 then number % 100
                    when number % 100 < 90 then number % 100 - number % 2
                    when number % 100 < 93 then 90
                    when number % 100 < 96 then 93
                    else 96
                end as asked,
                -- An exact duplicate has the answer of the row before.
                case when number % 1000 in (81, 391, 699) then number - 1 else number end as answered
                from numbered
            ),
            drawn as (
                select *, greatest(1, ({median} * exp({SPREAD} * sqrt(-2 * ln((1 + hash(answered, 3) % 1000000) / 1000001.0))
                    * cos(2 * pi() * (hash(answered, 4) % 1000000) / 1000000.0)))::bigint) as length
                from asked
            )
            select 'row-' || place as id,
                'What is known of the ' || kind || ' of syndrome ' || to_base(asked + 46656, 36) || ' ?' as question,
                answered || ' ' || left(repeat(page, 1 + length // length(page)), length) as answer,
                kind as question_type, 'Syndrome ' || to_base(asked + 46656, 36) as focus
            from (
                select place, asked, answered, length, case {types} end as kind, pages[1 + (hash(answered, 5) % 97)::bigint] as page
                from drawn, book
            )"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_like_medquads() {
        let connection = Connection::open_in_memory().unwrap();
        let rows = Rows {
            count: 20_000,
            answer: 130,
        };
        connection
            .execute_batch(&format!("create table rows as {}", rows.sql()))
            .unwrap();
        let one = |sql: &str| -> f64 {
            let sql = format!("select ({sql})::double");
            connection.query_row(&sql, [], |row| row.get(0)).unwrap()
        };
        assert_eq!(one("select count(distinct id) from rows"), 20_000.0);
        let questions = one("select count(distinct question) from rows");
        assert_eq!(questions, 17_600.0);
        let conflicting = one(
            "select count(*) from (from rows select question group by all having count(distinct answer) > 1)",
        );
        assert_eq!(conflicting, 1_580.0);
        let duplicates = one("select count(*) - count(distinct (question, answer)) from rows");
        assert_eq!(duplicates, 60.0);
        let mean = one("select avg(length(answer)) from rows");
        assert!((115.0..145.0).contains(&mean), "{mean}");
        let share = one("select count(*) from rows where question_type = 'information'") / 20_000.0;
        assert!((share - 4535.0 / 16_407.0).abs() < 0.02, "{share}");
    }

    #[test]
    fn an_archive_holds_what_the_table_holds() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.zip");
        let rows = Rows {
            count: 1005,
            answer: 130,
        };
        let written = rows.write(&path, FileFormat::Xml).unwrap();
        let mut archive = zip::ZipArchive::new(std::fs::File::open(&path).unwrap()).unwrap();
        assert_eq!(archive.len(), 101);
        let bytes: u64 = (0..101)
            .map(|index| archive.by_index(index).unwrap().size())
            .sum();
        assert_eq!(bytes, written);
    }
}
