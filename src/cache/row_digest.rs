//! The digest of a table: a bag of rows, so that it does not depend on the order in which threads wrote them.
//!
//! Each row is hashed in Arrow's row format; the 256-bit hashes are added up lane by lane (wrapping), which is
//! commutative and, unlike exclusive or, counts repeated rows. Count, column names and types go into the final hash.
//! Where the order is meant (a top-level ORDER BY) the row's position is hashed with it.

use arrow::record_batch::RecordBatch;
use arrow::row::{RowConverter, SortField};
use duckdb::arrow;
use rayon::prelude::*;

use super::CacheError;
use crate::digest::Digest;

/// Batches hashed at a time; with DuckDB's 2,048 rows a batch this bounds the memory.
const WINDOW: usize = 32;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Sum {
    lanes: [u64; 4],
    rows: u64,
    bytes: u64,
}

impl Sum {
    fn add(mut self, other: Self) -> Self {
        for (lane, more) in self.lanes.iter_mut().zip(other.lanes) {
            *lane = lane.wrapping_add(more);
        }
        self.rows += other.rows;
        self.bytes += other.bytes;
        self
    }

    fn add_row(&mut self, row: &[u8], position: Option<u64>) {
        let mut hasher = blake3::Hasher::new();
        hasher.update(row);
        if let Some(position) = position {
            hasher.update(&position.to_le_bytes());
        }
        let hash = hasher.finalize();
        for (lane, bytes) in self
            .lanes
            .iter_mut()
            .zip(hash.as_bytes().as_chunks::<8>().0)
        {
            *lane = lane.wrapping_add(u64::from_le_bytes(*bytes));
        }
        self.rows += 1;
        self.bytes += row.len() as u64;
    }
}

/// Digest, number of rows and size in bytes (of the encoded rows) of a table read batch by batch.
pub(super) fn digest(
    columns: &[(String, String)],
    ordered: bool,
    batches: impl Iterator<Item = RecordBatch>,
) -> Result<(Digest, u64, u64), CacheError> {
    let mut total = Sum::default();
    let mut position = 0;
    let mut batches = batches.peekable();
    while batches.peek().is_some() {
        let window: Vec<(u64, RecordBatch)> = batches
            .by_ref()
            .take(WINDOW)
            .map(|batch| {
                let start = position;
                position += batch.num_rows() as u64;
                (start, batch)
            })
            .collect();
        let hashed: Result<Sum, CacheError> = window
            .par_iter()
            .map(|(start, batch)| batch_sum(batch, ordered.then_some(*start)))
            .try_reduce(Sum::default, |left, right| Ok(left.add(right)));
        total = total.add(hashed?);
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(if ordered {
        b"flow table ordered 1"
    } else {
        b"flow table bag 1\0\0\0\0"
    });
    for (name, kind) in columns {
        for text in [name, kind] {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
    }
    hasher.update(&total.rows.to_le_bytes());
    for lane in total.lanes {
        hasher.update(&lane.to_le_bytes());
    }
    Ok((hasher.finalize().into(), total.rows, total.bytes))
}

fn batch_sum(batch: &RecordBatch, start: Option<u64>) -> Result<Sum, CacheError> {
    let unsupported = |error: arrow::error::ArrowError| {
        let types: Vec<_> = batch
            .schema()
            .fields()
            .iter()
            .map(|field| format!("{}: {}", field.name(), field.data_type()))
            .collect();
        CacheError::Query(format!(
            "a column has a type that tables cannot keep ({error}; columns {}); cast it",
            types.join(", ")
        ))
    };
    let fields = batch
        .schema()
        .fields()
        .iter()
        .map(|field| SortField::new(field.data_type().clone()))
        .collect();
    let rows = RowConverter::new(fields)
        .and_then(|converter| converter.convert_columns(batch.columns()))
        .map_err(unsupported)?;
    let mut sum = Sum::default();
    for (offset, row) in rows.iter().enumerate() {
        sum.add_row(row.as_ref(), start.map(|start| start + offset as u64));
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int64Array, StringArray};

    use super::*;

    fn table(rows: &[(&str, i64)]) -> RecordBatch {
        let names: StringArray = rows.iter().map(|(name, _)| Some(*name)).collect();
        let numbers: Int64Array = rows.iter().map(|(_, number)| Some(*number)).collect();
        RecordBatch::try_from_iter([
            ("name", Arc::new(names) as _),
            ("number", Arc::new(numbers) as _),
        ])
        .unwrap()
    }

    fn of(batches: &[RecordBatch], ordered: bool) -> Digest {
        let columns = [
            ("name".to_owned(), "VARCHAR".to_owned()),
            ("number".to_owned(), "BIGINT".to_owned()),
        ];
        digest(&columns, ordered, batches.iter().cloned())
            .unwrap()
            .0
    }

    #[test]
    fn a_bag_forgets_order_and_batches_but_counts_repeats() {
        let one = of(&[table(&[("a", 1), ("b", 2), ("b", 2)])], false);
        assert_eq!(
            one,
            of(&[table(&[("b", 2)]), table(&[("a", 1), ("b", 2)])], false)
        );
        assert_ne!(one, of(&[table(&[("a", 1), ("b", 2)])], false));
        assert_ne!(one, of(&[table(&[("a", 2), ("b", 1), ("b", 2)])], false));
    }

    #[test]
    fn an_ordered_table_keeps_order_but_forgets_batches() {
        let one = of(&[table(&[("a", 1), ("b", 2)])], true);
        assert_eq!(one, of(&[table(&[("a", 1)]), table(&[("b", 2)])], true));
        assert_ne!(one, of(&[table(&[("b", 2), ("a", 1)])], true));
        assert_ne!(one, of(&[table(&[("a", 1), ("b", 2)])], false));
    }

    /// A change here means that tables in existing caches no longer verify: bump the cache layout.
    #[test]
    fn the_encoding_has_not_moved() {
        let digest = of(&[table(&[("a", 1), ("b", 2)])], false);
        insta::assert_snapshot!(digest.short(), @"28266cf428c4");
    }
}
