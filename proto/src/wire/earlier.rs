//! Reading layouts of earlier releases: a record whose last fields were not there yet.

use std::sync::Arc;

use serde::de::{Deserialize, Deserializer, Visitor};
use serde::forward_to_deserialize_any;

use super::RecordBatch;
use crate::record::Record;

/// A deserializer that gives a struct so many of its fields, from the first on; the others take
/// their defaults.
struct FirstFields<D> {
    inner: D,
    count: usize,
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for FirstFields<D> {
    type Error = D::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_any(visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let fields = fields.get(..self.count).unwrap_or(fields);
        self.inner.deserialize_struct(name, fields, visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

/// A value of which the first `N` fields are there.
pub(super) struct First<T, const N: usize>(pub T);

impl<'de, T: Deserialize<'de>, const N: usize> Deserialize<'de> for First<T, N> {
    fn deserialize<D: Deserializer<'de>>(inner: D) -> Result<Self, D::Error> {
        T::deserialize(FirstFields { inner, count: N }).map(Self)
    }
}

/// The layout of a [`RecordBatch`] whose records have the first `N` fields.
#[derive(serde::Deserialize)]
pub(super) struct EarlierBatch<const N: usize> {
    node: String,
    sequence: u64,
    dropped: u64,
    records: Vec<First<Record, N>>,
}

impl<const N: usize> From<EarlierBatch<N>> for RecordBatch {
    fn from(batch: EarlierBatch<N>) -> Self {
        Self {
            node: batch.node,
            sequence: batch.sequence,
            dropped: batch.dropped,
            records: batch
                .records
                .into_iter()
                .map(|record| Arc::new(record.0))
                .collect(),
        }
    }
}
