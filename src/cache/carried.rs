//! Column types as Parquet carries them: the types it has no like of travel as text and come back by a cast.

/// A DuckDB column type, as `describe` writes it, and the type in which its values travel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Carried {
    /// Written anew from what was read, so that it is a type and no other SQL whoever wrote the text.
    pub(super) kind: String,
    pub(super) carrier: String,
}

/// Types that a Parquet file of DuckDB gives back to the bit. A HUGEINT, for one, becomes a DOUBLE there.
const KEPT: [&str; 17] = [
    "BIGINT",
    "BLOB",
    "BOOLEAN",
    "DATE",
    "DOUBLE",
    "FLOAT",
    "INTEGER",
    "SMALLINT",
    "TIME",
    "TIMESTAMP",
    "TIMESTAMP WITH TIME ZONE",
    "TINYINT",
    "UBIGINT",
    "UINTEGER",
    "USMALLINT",
    "UTINYINT",
    "VARCHAR",
];

/// Types whose text does not give back every value.
const REFUSED: [&str; 2] = ["GEOMETRY", "VARIANT"];

impl Carried {
    /// `None` for what is not a type or cannot travel.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut reader = Reader { rest: text };
        let carried = reader.kind()?;
        reader.rest.is_empty().then_some(carried)
    }

    fn same(kind: String) -> Self {
        Self {
            carrier: kind.clone(),
            kind,
        }
    }

    fn as_text(kind: String) -> Self {
        Self {
            kind,
            carrier: "VARCHAR".to_owned(),
        }
    }
}

struct Reader<'a> {
    rest: &'a str,
}

impl<'a> Reader<'a> {
    fn eat(&mut self, text: &str) -> Option<()> {
        self.rest = self.rest.strip_prefix(text)?;
        Some(())
    }

    fn take(&mut self, wanted: impl Fn(char) -> bool) -> Option<&'a str> {
        let end = self
            .rest
            .find(|letter| !wanted(letter))
            .unwrap_or(self.rest.len());
        let (taken, rest) = self.rest.split_at(end);
        self.rest = rest;
        (!taken.is_empty()).then_some(taken)
    }

    /// A quoted text with its quotes; a quote in it is doubled.
    fn quoted(&mut self, quote: char) -> Option<&'a str> {
        let inner = self.rest.strip_prefix(quote)?;
        let mut letters = inner.char_indices().peekable();
        while let Some((index, letter)) = letters.next() {
            if letter == quote && letters.next_if(|(_, next)| *next == quote).is_none() {
                let (taken, rest) = self.rest.split_at(index + 2 * quote.len_utf8());
                self.rest = rest;
                return Some(taken);
            }
        }
        None
    }

    /// `(a, b, c)`, each read by `item`.
    fn list<T>(&mut self, item: impl Fn(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        self.eat("(")?;
        let mut items = vec![item(self)?];
        while self.eat(",").is_some() {
            // `DECIMAL(18,3)` has no blank there.
            let _ = self.eat(" ");
            items.push(item(self)?);
        }
        self.eat(")")?;
        Some(items)
    }

    fn kind(&mut self) -> Option<Carried> {
        let mut kind = self.element()?;
        while self.eat("[").is_some() {
            let length = self
                .take(|letter| letter.is_ascii_digit())
                .unwrap_or_default();
            self.eat("]")?;
            kind = Carried {
                kind: format!("{}[{length}]", kind.kind),
                // A list of a fixed length is a list there.
                carrier: format!("{}[]", kind.carrier),
            };
        }
        Some(kind)
    }

    fn element(&mut self) -> Option<Carried> {
        let name = self.take(|letter| {
            letter.is_ascii_uppercase() || letter.is_ascii_digit() || "_ ".contains(letter)
        })?;
        match name {
            "STRUCT" => {
                let fields = self.list(Self::field)?;
                let all = |part: fn(&Carried) -> &String| {
                    let fields = fields
                        .iter()
                        .map(|(name, kind)| format!("{name} {}", part(kind)));
                    format!("STRUCT({})", fields.collect::<Vec<_>>().join(", "))
                };
                Some(Carried {
                    kind: all(|kind| &kind.kind),
                    carrier: all(|kind| &kind.carrier),
                })
            }
            "MAP" => {
                let [key, value] = <[_; 2]>::try_from(self.list(Self::kind)?).ok()?;
                Some(Carried {
                    kind: format!("MAP({}, {})", key.kind, value.kind),
                    carrier: format!("MAP({}, {})", key.carrier, value.carrier),
                })
            }
            "ENUM" => {
                let values = self.list(|reader| reader.quoted('\''))?;
                Some(Carried::as_text(format!("ENUM({})", values.join(", "))))
            }
            "DECIMAL" => {
                let numbers = self.list(|reader| reader.take(|letter| letter.is_ascii_digit()))?;
                Some(Carried::same(format!("DECIMAL({})", numbers.join(","))))
            }
            name if REFUSED.contains(&name) => None,
            name if KEPT.contains(&name) => Some(Carried::same(name.to_owned())),
            name => Some(Carried::as_text(name.to_owned())),
        }
    }

    fn field(&mut self) -> Option<(&'a str, Carried)> {
        let name = if self.rest.starts_with('"') {
            self.quoted('"')?
        } else {
            self.take(|letter| letter.is_alphanumeric() || letter == '_')?
        };
        self.eat(" ")?;
        Some((name, self.kind()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn carrier(text: &str) -> String {
        let carried = Carried::parse(text).unwrap();
        assert_eq!(carried.kind, text);
        carried.carrier
    }

    #[test]
    fn only_what_parquet_lacks_travels_as_text() {
        assert_eq!(carrier("DECIMAL(18,3)"), "DECIMAL(18,3)");
        assert_eq!(carrier("HUGEINT"), "VARCHAR");
        assert_eq!(
            carrier("TIMESTAMP WITH TIME ZONE[]"),
            "TIMESTAMP WITH TIME ZONE[]"
        );
        assert_eq!(carrier("TIME WITH TIME ZONE"), "VARCHAR");
        assert_eq!(
            carrier("STRUCT(hugeint BIGINT, \"a \"\"b, \" HUGEINT[3][], c ENUM('x', 'it''s)'))[]"),
            "STRUCT(hugeint BIGINT, \"a \"\"b, \" VARCHAR[][], c VARCHAR)[]"
        );
        assert_eq!(
            carrier("MAP(VARCHAR, STRUCT(a UHUGEINT))"),
            "MAP(VARCHAR, STRUCT(a VARCHAR))"
        );
    }

    #[test]
    fn what_is_no_type_is_none() {
        for text in [
            "",
            "integer",
            "INTEGER) from x; drop table y --",
            "STRUCT(a INTEGER",
            "STRUCT(\"a INTEGER)",
            "ENUM('a)",
            "MAP(VARCHAR)",
            "INTEGER[",
            "DECIMAL(1;2)",
            "VARIANT",
        ] {
            assert_eq!(Carried::parse(text), None, "{text}");
        }
    }
}
