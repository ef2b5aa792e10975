//! Rows in memory, for ops that work on them in Rust.

use duckdb::Connection;
use duckdb::arrow::datatypes::DataType;
use duckdb::types::ValueRef;

use serde_json::Value;

use super::OpError;
use crate::cache::bind;

/// The column types ops write; DuckDB's names in [`ColumnType::sql`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnType {
    Boolean,
    Integer,
    Double,
    Text,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Cell {
    Null,
    Boolean(bool),
    Integer(i64),
    Double(f64),
    Text(String),
}

/// A table small enough to hold; columns in order, rows of cells.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Table {
    pub columns: Vec<(String, ColumnType)>,
    pub rows: Vec<Vec<Cell>>,
}

impl ColumnType {
    pub fn sql(self) -> &'static str {
        match self {
            Self::Boolean => "BOOLEAN",
            Self::Integer => "BIGINT",
            Self::Double => "DOUBLE",
            Self::Text => "VARCHAR",
        }
    }
}

impl Table {
    pub fn new(columns: &[(&str, ColumnType)]) -> Self {
        Self {
            columns: columns
                .iter()
                .map(|(name, kind)| ((*name).to_owned(), *kind))
                .collect(),
            rows: Vec::new(),
        }
    }

    /// The position of a column.
    pub fn column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|(column, _)| column == name)
    }
}

impl Cell {
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    pub fn as_i64(&self) -> Option<i64> {
        match self {
            Self::Integer(number) => Some(*number),
            _ => None,
        }
    }

    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Double(number) => Some(*number),
            Self::Integer(number) => Some(*number as f64),
            _ => None,
        }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<i64> for Cell {
    fn from(number: i64) -> Self {
        Self::Integer(number)
    }
}

impl From<f64> for Cell {
    fn from(number: f64) -> Self {
        Self::Double(number)
    }
}

impl From<bool> for Cell {
    fn from(value: bool) -> Self {
        Self::Boolean(value)
    }
}

impl<T: Into<Cell>> From<Option<T>> for Cell {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

impl Table {
    /// Reads the rows of a query. Integers of any width, booleans, floating point and decimal numbers, and text (also
    /// enums) have a cell type; a column of another type has to be cast in the query.
    pub fn query(connection: &Connection, sql: &str) -> Result<Self, OpError> {
        Self::query_with(connection, sql, &[])
    }

    /// Like [`Table::query`] with values for the `$name`s of the query.
    pub fn query_with(
        connection: &Connection,
        sql: &str,
        params: &[(String, Value)],
    ) -> Result<Self, OpError> {
        let mut statement = connection.prepare(sql)?;
        bind(&mut statement, params)?;
        statement.raw_execute()?;
        let mut rows = statement.raw_query();
        let Some(result) = rows.as_ref() else {
            return Ok(Self::default());
        };
        let mut table = Self::default();
        for (index, name) in result.column_names().into_iter().enumerate() {
            let kind = result.column_type(index);
            let cell = ColumnType::of(&kind).ok_or_else(|| {
                let help = format!("cast it in the query, for example `{name}::varchar`");
                OpError::with_help(
                    format!("column `{name}` has the type {kind}, which is not read here"),
                    help,
                )
            })?;
            table.columns.push((name, cell));
        }
        while let Some(row) = rows.next()? {
            let cell = |(index, (name, kind)): (usize, &(String, ColumnType))| {
                Cell::read(row.get_ref(index)?, name, *kind)
            };
            table.rows.push(
                table
                    .columns
                    .iter()
                    .enumerate()
                    .map(cell)
                    .collect::<Result<_, _>>()?,
            );
        }
        Ok(table)
    }
}

impl ColumnType {
    fn of(kind: &DataType) -> Option<Self> {
        Some(match kind {
            DataType::Boolean => Self::Boolean,
            kind if kind.is_integer() => Self::Integer,
            // DuckDB's 128-bit integers, such as a sum of integers.
            DataType::Decimal128(_, 0) => Self::Integer,
            kind if kind.is_floating() || matches!(kind, DataType::Decimal128(..)) => Self::Double,
            DataType::Utf8
            | DataType::LargeUtf8
            | DataType::Utf8View
            | DataType::Dictionary(..)
            | DataType::Null => Self::Text,
            _ => return None,
        })
    }
}

impl Cell {
    fn read(value: ValueRef<'_>, column: &str, kind: ColumnType) -> Result<Self, OpError> {
        let unreadable = || {
            OpError::new(format!(
                "column `{column}` holds {value:?}, which does not fit {}",
                kind.sql()
            ))
        };
        let integer = |number: i128| {
            i64::try_from(number)
                .map(Self::Integer)
                .map_err(|_| unreadable())
        };
        match value {
            ValueRef::Null => Ok(Self::Null),
            ValueRef::Boolean(value) => Ok(Self::Boolean(value)),
            ValueRef::TinyInt(number) => integer(number.into()),
            ValueRef::SmallInt(number) => integer(number.into()),
            ValueRef::Int(number) => integer(number.into()),
            ValueRef::BigInt(number) => integer(number.into()),
            ValueRef::HugeInt(number) => integer(number),
            ValueRef::UTinyInt(number) => integer(number.into()),
            ValueRef::USmallInt(number) => integer(number.into()),
            ValueRef::UInt(number) => integer(number.into()),
            ValueRef::UBigInt(number) => integer(number.into()),
            ValueRef::Float(number) => Ok(Self::Double(number.into())),
            ValueRef::Double(number) => Ok(Self::Double(number)),
            ValueRef::Decimal(decimal) if kind == ColumnType::Integer => decimal
                .to_string()
                .parse()
                .map(Self::Integer)
                .map_err(|_| unreadable()),
            ValueRef::Decimal(decimal) => decimal
                .to_string()
                .parse()
                .map(Self::Double)
                .map_err(|_| unreadable()),
            ValueRef::Text(text) => String::from_utf8(text.to_vec())
                .map(Self::Text)
                .map_err(|_| unreadable()),
            other => match duckdb::types::Value::from(other) {
                duckdb::types::Value::Enum(text) | duckdb::types::Value::Text(text) => {
                    Ok(Self::Text(text))
                }
                _ => Err(unreadable()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(sql: &str) -> Result<Table, OpError> {
        Table::query(&Connection::open_in_memory().unwrap(), sql)
    }

    #[test]
    fn every_usual_type_has_a_cell() {
        let table = query(
            "select 1::tinyint a, sum(2) b, 1.5::decimal(4,2) c, 2.5::real d, 'x' e, true f, null g, 'y'::enum('y') h, 9::ubigint i",
        )
        .unwrap();
        let expected = [
            Cell::Integer(1),
            Cell::Integer(2),
            Cell::Double(1.5),
            Cell::Double(2.5),
            Cell::from("x"),
            Cell::Boolean(true),
            Cell::Null,
            Cell::from("y"),
            Cell::Integer(9),
        ];
        assert_eq!(table.rows, [expected]);
        assert_eq!(table.column("e"), Some(4));
    }

    #[test]
    fn an_empty_result_keeps_its_columns() {
        let table = query("select 1 as n, 'a' as t where false").unwrap();
        assert_eq!(
            table.columns,
            [
                ("n".to_owned(), ColumnType::Integer),
                ("t".to_owned(), ColumnType::Text)
            ]
        );
        assert!(table.rows.is_empty());
    }

    #[test]
    fn other_types_are_named() {
        let error = query("select [1, 2] as list").unwrap_err();
        insta::assert_snapshot!(error, @"column `list` has the type List(Int32, field: 'l'), which is not read here");
    }

    #[test]
    fn too_large_a_number_is_an_error() {
        assert!(query("select 18446744073709551615::ubigint as n").is_err());
    }
}
