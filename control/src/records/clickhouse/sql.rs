//! A question in SQL with the values that are asked for beside it. Pure.

use ::clickhouse::Client;
use ::clickhouse::query::Query;
use serde::Serialize;

/// A value, which the client writes as SQL itself: nothing of a caller is ever part of the text.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub(super) enum Value {
    /// A string.
    Text(String),
    /// An `Int64`.
    Signed(i64),
    /// A `UInt64` or less.
    Unsigned(u64),
    /// A `UInt128`.
    Wide(u128),
    /// An array of strings.
    Texts(Vec<String>),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Signed(number)
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Unsigned(number)
    }
}

impl From<u128> for Value {
    fn from(number: u128) -> Self {
        Self::Wide(number)
    }
}

/// A text with a `?` for each value.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Sql {
    text: String,
    values: Vec<Value>,
}

impl Sql {
    /// A text of ours, with its values.
    pub(super) fn new(text: &str, values: impl IntoIterator<Item = Value>) -> Self {
        let (text, values) = (text.to_owned(), values.into_iter().collect());
        Self { text, values }
    }

    /// The same with another behind it.
    pub(super) fn then(mut self, other: Self) -> Self {
        self.text.push(' ');
        self.text.push_str(&other.text);
        self.values.extend(other.values);
        self
    }

    /// All of them must hold.
    pub(super) fn all(parts: impl IntoIterator<Item = Self>) -> Self {
        let mut all = Self::default();
        for part in parts {
            if !all.text.is_empty() {
                all.text.push_str(" AND ");
            }
            all.text.push_str(&part.text);
            all.values.extend(part.values);
        }
        all
    }

    /// Ready to be asked.
    pub(super) fn query(self, client: &Client) -> Query {
        let query = client.query(&self.text);
        self.values.into_iter().fold(query, Query::bind)
    }
}

/// A text of ours without values.
impl From<&str> for Sql {
    fn from(text: &str) -> Self {
        Self::new(text, [])
    }
}
