//! Answers of a judge, kept by what was asked, so that they outlive an edit of the stage that asked.

use std::collections::HashMap;

use duckdb::{Connection, params};
use serde::{Deserialize, Serialize};

use super::{Cache, CacheError, ledger};
use crate::digest::Digest;
use crate::failpoint;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    pub choice: i64,
    pub probability: f64,
    /// JSON, for the op that wrote it.
    pub detail: String,
}

impl Cache {
    /// The verdicts that are there, by key.
    pub fn verdicts_get(&self, keys: &[Digest]) -> Result<HashMap<Digest, Verdict>, CacheError> {
        if keys.is_empty() || !self.database.path().exists() {
            return Ok(HashMap::new());
        }
        let connection = self.database.connection()?;
        connection.execute_batch("create temp table asked (digest varchar)")?;
        let mut asked = connection.appender_to_catalog_and_db("asked", "temp", "main")?;
        for key in keys {
            asked.append_row([key.to_string()])?;
        }
        asked.flush()?;
        drop(asked);
        // Where two judged the same at once there are two, of which the first counts.
        let sql = "select digest, arg_min(choice, v.rowid), arg_min(probability, v.rowid), arg_min(detail, v.rowid)
            from verdicts v semi join asked using (digest) group by digest";
        let mut statement = connection.prepare(sql)?;
        let mut rows = statement.query([])?;
        let mut found = HashMap::new();
        while let Some(row) = rows.next()? {
            let digest: String = row.get(0)?;
            let digest = digest.parse().map_err(|error| CacheError::Damaged {
                path: self.database.path().to_path_buf(),
                message: format!("`verdicts.digest`: {error}"),
            })?;
            found.insert(
                digest,
                Verdict {
                    choice: row.get(1)?,
                    probability: row.get(2)?,
                    detail: row.get(3)?,
                },
            );
        }
        Ok(found)
    }

    /// Keeps verdicts; when this returns they survive a crash. Of several under one key the first counts.
    ///
    /// Does not look for those that are there: that would read all of them for every batch. Who asks first
    /// ([`Cache::verdicts_get`]) puts hardly any twice.
    pub fn verdicts_put(&self, verdicts: &[(Digest, Verdict)]) -> Result<(), CacheError> {
        if verdicts.is_empty() {
            return Ok(());
        }
        let connection = self.database.connection()?;
        connection.execute_batch("begin")?;
        insert(&connection, verdicts)?;
        ledger::add_verdicts(&self.layout, verdicts.to_vec())?;
        failpoint::hit("verdicts.commit")?;
        connection
            .execute_batch("commit")
            .map_err(|error| CacheError::database(error, self.database.path()))?;
        failpoint::pass("verdicts.committed");
        Ok(())
    }
}

/// Writes rows in the caller's transaction.
pub(super) fn insert(
    connection: &Connection,
    verdicts: &[(Digest, Verdict)],
) -> Result<(), CacheError> {
    let mut appender = connection.appender("verdicts")?;
    for (key, verdict) in verdicts {
        appender.append_row(params![
            key.to_string(),
            verdict.choice,
            verdict.probability,
            verdict.detail
        ])?;
    }
    Ok(appender.flush()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In the ledger and from other processes they are JSON; the digest of a judge's table is over all their bits.
    #[test]
    fn probabilities_keep_their_last_bit_as_json() {
        for number in 0..10_000_u64 {
            let bits = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 11;
            let verdict = Verdict {
                choice: 1,
                probability: bits as f64 / (1u64 << 53) as f64,
                detail: String::new(),
            };
            let text = serde_json::to_string(&verdict).unwrap();
            assert_eq!(serde_json::from_str::<Verdict>(&text).unwrap(), verdict);
        }
    }
}
