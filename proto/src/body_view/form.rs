//! `application/x-www-form-urlencoded` as one flat object; repeated names become arrays.

use serde_json::map::Entry;
use serde_json::{Map, Value};

use super::{BodyLimits, Document, Unreadable};
use crate::query;

/// Reads a form body.
pub(super) fn read(plain: &[u8], limits: &BodyLimits) -> Result<Document, Unreadable> {
    let mut fields = Fields::new(limits);
    for (name, value) in query::pairs(plain) {
        fields.add(&name, &value)?;
    }
    Ok(fields.into_document())
}

/// The fields of a form as they are read.
pub(super) struct Fields {
    members: Map<String, Value>,
    free: usize,
}

impl Fields {
    pub(super) fn new(limits: &BodyLimits) -> Self {
        Self {
            members: Map::new(),
            free: limits.nodes_max,
        }
    }

    pub(super) fn add(&mut self, name: &[u8], value: &[u8]) -> Result<(), Unreadable> {
        self.free = self.free.checked_sub(1).ok_or(Unreadable::TooManyNodes)?;
        let name = utf8(name)?.to_owned();
        let value = Value::String(utf8(value)?.to_owned());
        match self.members.entry(name) {
            Entry::Vacant(vacant) => {
                vacant.insert(value);
            }
            Entry::Occupied(mut occupied) => match occupied.get_mut() {
                Value::Array(values) => values.push(value),
                first => *first = Value::Array(vec![first.take(), value]),
            },
        }
        Ok(())
    }

    pub(super) fn into_document(self) -> Document {
        Document {
            tree: Value::Object(self.members),
            is_form: true,
            spellings: Vec::new(),
        }
    }
}

fn utf8(bytes: &[u8]) -> Result<&str, Unreadable> {
    std::str::from_utf8(bytes).map_err(|_| Unreadable::NotUtf8)
}
