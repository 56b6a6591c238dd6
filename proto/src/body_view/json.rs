//! JSON (RFC 8259) that every parser reads the same way.
//!
//! serde_json does the grammar; the visitor below refuses equal keys, depth and number of values,
//! which `serde_json::Value` would accept. Numbers lose their text when they are parsed (`1e2`
//! prints as `100.0`), and rules match texts, so a second pass keeps the texts that differ.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::{BodyLimits, Document, Unreadable};

/// Why bytes are not a JSON document that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// They are not JSON, and do not look as if they wanted to be.
    NotJson,
    /// They are, or look like, JSON that parsers disagree about.
    Unreadable(Unreadable),
}

/// Reads a whole body as JSON, whatever its type says.
///
/// What begins like an object or array and is not valid is unreadable, not "something else": a
/// lenient upstream (`NaN`, comments, a missing bracket) would read it.
pub(super) fn read(plain: &[u8], limits: &BodyLimits) -> Result<Document, Refused> {
    let looks_like_json = match plain.trim_ascii_start().first() {
        Some(b'{' | b'[') => true,
        Some(b'"' | b'-' | b'0'..=b'9' | b't' | b'f' | b'n') => false,
        _ => return Err(Refused::NotJson),
    };
    let refuse = |reason| {
        if looks_like_json {
            Refused::Unreadable(reason)
        } else {
            Refused::NotJson
        }
    };
    let text = std::str::from_utf8(plain).map_err(|_| refuse(Unreadable::NotUtf8))?;
    let reading = Reading {
        limits,
        nodes: Cell::new(0),
        refused: Cell::new(None),
    };
    let mut parser = serde_json::Deserializer::from_str(text);
    let tree = Node {
        reading: &reading,
        depth: 0,
    }
    .deserialize(&mut parser);
    match tree.and_then(|tree| parser.end().map(|()| tree)) {
        Ok(tree) => {
            let spellings = odd_spellings(&tree, text);
            Ok(Document {
                tree,
                is_form: false,
                spellings,
            })
        }
        Err(_) => Err(match reading.refused.get() {
            Some(reason) => Refused::Unreadable(reason),
            None => refuse(Unreadable::NotJson),
        }),
    }
}

/// All number nodes of a tree in document order.
pub(super) fn collect_numbers<'t>(node: &'t Value, numbers: &mut Vec<&'t Value>) {
    match node {
        Value::Number(_) => numbers.push(node),
        Value::Array(elements) => {
            elements
                .iter()
                .for_each(|element| collect_numbers(element, numbers));
        }
        Value::Object(members) => {
            members
                .values()
                .for_each(|member| collect_numbers(member, numbers));
        }
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

/// The numbers that are not written as they would be printed, by their place among all numbers.
fn odd_spellings(tree: &Value, text: &str) -> Vec<(usize, String)> {
    let mut numbers = Vec::new();
    collect_numbers(tree, &mut numbers);
    let placed = numbers.into_iter().zip(number_tokens(text)).enumerate();
    let odd = placed.filter(|(_, (number, token))| !is_printed_as(number, token));
    odd.map(|(place, (_, token))| (place, token.to_owned()))
        .collect()
}

fn is_printed_as(number: &Value, token: &str) -> bool {
    let printed = number.to_string();
    printed == token
}

/// The number tokens of a valid JSON text, in order: what begins a number outside of a string.
fn number_tokens(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        loop {
            let start = rest.find(|c: char| c == '"' || c == '-' || c.is_ascii_digit())?;
            let (_, token) = rest.split_at(start);
            if let Some(string) = token.strip_prefix('"') {
                rest = after_string(string);
                continue;
            }
            let in_number =
                |c: char| c.is_ascii_digit() || matches!(c, '-' | '+' | '.' | 'e' | 'E');
            let end = token.find(|c| !in_number(c)).unwrap_or(token.len());
            let (number, after) = token.split_at(end);
            rest = after;
            return Some(number);
        }
    })
}

/// What follows the closing quote of a string whose opening quote was taken.
fn after_string(string: &str) -> &str {
    let mut characters = string.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => break,
            '\\' => {
                characters.next();
            }
            _ => {}
        }
    }
    characters.as_str()
}

/// The state of one parse.
struct Reading<'l> {
    limits: &'l BodyLimits,
    nodes: Cell<usize>,
    refused: Cell<Option<Unreadable>>,
}

impl Reading<'_> {
    fn refuse<E: Error>(&self, reason: Unreadable) -> E {
        self.refused.set(Some(reason));
        E::custom(reason)
    }

    fn count<E: Error>(&self) -> Result<(), E> {
        let nodes = self.nodes.get() + 1;
        self.nodes.set(nodes);
        if nodes > self.limits.nodes_max {
            return Err(self.refuse(Unreadable::TooManyNodes));
        }
        Ok(())
    }
}

/// One value, inside `depth` arrays and objects.
#[derive(Clone, Copy)]
struct Node<'r, 'l> {
    reading: &'r Reading<'l>,
    depth: usize,
}

impl Node<'_, '_> {
    fn child<E: Error>(self) -> Result<Self, E> {
        let depth = self.depth + 1;
        if depth > self.reading.limits.depth_max {
            return Err(self.reading.refuse(Unreadable::TooDeep));
        }
        Ok(Self { depth, ..self })
    }
}

impl<'de> DeserializeSeed<'de> for Node<'_, '_> {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, parser: D) -> Result<Value, D::Error> {
        self.reading.count()?;
        parser.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_, '_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        let number = Number::from_f64(value);
        number
            .map(Value::Number)
            .ok_or_else(|| self.reading.refuse(Unreadable::NotJson))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let child = self.child()?;
        let mut elements = Vec::new();
        while let Some(element) = access.next_element_seed(child)? {
            elements.push(element);
        }
        Ok(Value::Array(elements))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let child = self.child()?;
        let mut members = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            let member = access.next_value_seed(child)?;
            if members.insert(key, member).is_some() {
                return Err(self.reading.refuse(Unreadable::DuplicateKey));
            }
        }
        Ok(Value::Object(members))
    }
}
