//! What a schema may be at all, and how much of it can apply to one value.
//!
//! A walk over the schema lists its subschemas, each with those that apply to the *same* value:
//! `allOf`, `anyOf`, `oneOf`, `not`, `if`, `then`, `else`, `dependentSchemas` and what `$ref`
//! names. Their number, through all references, is the most that a node does with one value each
//! time it reaches it; a chain of them that comes back to itself would never end.

use std::collections::HashMap;

use serde_json::Value;

use super::SCHEMA_BYTES_MAX;
use crate::problem::Problem;
use crate::rule;

/// Most subschemas of one schema.
const SUBSCHEMAS_MAX: usize = 2_000;
/// Most subschemas that may apply to one value, counted through references.
const APPLY_MAX: u32 = 1_000;
/// Longest chain of subschemas that apply to one value.
const CHAIN_MAX: u32 = 24;
/// Deepest nesting of the schema's JSON.
const NESTING_MAX: usize = 64;
/// What all patterns of one schema may take when compiled, in bytes.
const PATTERNS_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The only dialect.
const DIALECT: &str = "https://json-schema.org/draft/2020-12/schema";

/// How much of a schema can apply to one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    /// Subschemas, patterns and values to compare with, at most.
    pub(super) apply: u32,
    /// The longest chain of them.
    pub(super) chain: u32,
}

/// A subschema.
#[derive(Default)]
struct Sub {
    /// What it costs by itself.
    cost: u32,
    /// Subschemas for the same value, by place in the list.
    same_value: Vec<usize>,
    /// What `$ref` and `$dynamicRef` name.
    references: Vec<String>,
    known: Option<Known>,
}

#[derive(Clone, Copy)]
enum Known {
    /// Its sum is being made: whoever comes here again has come in a circle.
    Open,
    Closed(Bounds),
}

#[derive(Default)]
struct Walk {
    subs: Vec<Sub>,
    /// Places of subschemas by pointer (`/properties/a`) and by anchor (`#name` without `#`).
    places: HashMap<String, usize>,
    problems: Vec<Problem>,
    patterns_bytes: usize,
}

/// Judges a schema; problems are at `/schema/…`.
pub(super) fn judge(schema: &Value) -> Result<Bounds, Vec<Problem>> {
    let refuse = |code, detail: String| Err(vec![Problem::new("/schema", code, detail)]);
    if !schema.is_object() && !schema.is_boolean() {
        return refuse(
            "schema-invalid",
            "must be an object or a boolean".to_owned(),
        );
    }
    let bytes = schema.to_string().len();
    if bytes > SCHEMA_BYTES_MAX {
        let detail = format!("has {bytes} bytes, at most {SCHEMA_BYTES_MAX} are allowed");
        return refuse("schema-too-large", detail);
    }
    let mut walk = Walk::default();
    walk.schema(schema, "", 0);
    if walk.subs.len() >= SUBSCHEMAS_MAX {
        let detail = format!("has more than {SUBSCHEMAS_MAX} subschemas");
        return refuse("schema-too-large", detail);
    }
    if walk.patterns_bytes > PATTERNS_BYTES_MAX {
        let detail = format!("its patterns compile to more than {PATTERNS_BYTES_MAX} bytes");
        return refuse("schema-too-large", detail);
    }
    if !walk.problems.is_empty() {
        return Err(walk.problems);
    }
    match walk.sums() {
        Ok(bounds) if bounds.apply > APPLY_MAX || bounds.chain > CHAIN_MAX => {
            let detail = format!(
                "{} subschemas can apply to one value, in chains of {}; at most {APPLY_MAX} and \
                 {CHAIN_MAX} may",
                bounds.apply, bounds.chain
            );
            refuse("schema-too-complex", detail)
        }
        Ok(bounds) => Ok(bounds),
        Err(problem) => Err(vec![problem]),
    }
}

/// An upper bound of what a schema's patterns take when compiled, in bytes.
pub(super) fn patterns_bytes_max(schema: &Value) -> usize {
    rule::remembered_size(schema, || {
        let mut walk = Walk::default();
        walk.schema(schema, "", 0);
        walk.patterns_bytes
    })
}

impl Walk {
    /// Lists a subschema and all in it; its place.
    fn schema(&mut self, schema: &Value, pointer: &str, depth: usize) -> usize {
        let place = self.subs.len();
        if place >= SUBSCHEMAS_MAX || depth > NESTING_MAX {
            if depth > NESTING_MAX {
                let detail = format!("nested deeper than {NESTING_MAX} levels");
                self.problem(pointer, "schema-too-large", detail);
            }
            return place.saturating_sub(1);
        }
        self.subs.push(Sub {
            cost: 1,
            ..Sub::default()
        });
        self.places.insert(pointer.to_owned(), place);
        let Value::Object(members) = schema else {
            return place;
        };
        for (keyword, value) in members {
            let at = format!("{pointer}/{}", escaped(keyword));
            match keyword.as_str() {
                "allOf" | "anyOf" | "oneOf" => self.list(value, &at, depth, Some(place)),
                "prefixItems" => self.list(value, &at, depth, None),
                "not" | "if" | "then" | "else" => {
                    let inner = self.schema(value, &at, depth + 1);
                    self.same_value(place, inner);
                }
                "dependentSchemas" => self.map(value, &at, depth, Some(place)),
                "properties" | "$defs" | "definitions" => self.map(value, &at, depth, None),
                "patternProperties" => {
                    for name in value.as_object().into_iter().flat_map(|map| map.keys()) {
                        self.pattern(name, &format!("{at}/{}", escaped(name)));
                        self.cost(place, 1);
                    }
                    self.map(value, &at, depth, None);
                }
                "items"
                | "contains"
                | "additionalProperties"
                | "propertyNames"
                | "unevaluatedItems"
                | "unevaluatedProperties" => {
                    self.schema(value, &at, depth + 1);
                }
                other => self.plain(place, other, value, &at),
            }
        }
        place
    }

    /// A keyword without subschemas.
    fn plain(&mut self, place: usize, keyword: &str, value: &Value, at: &str) {
        match (keyword, value) {
            ("$ref" | "$dynamicRef", Value::String(reference)) => {
                let Some(fragment) = reference.strip_prefix('#') else {
                    let detail = "refers to another document; references stay within the schema \
                                  (`#/$defs/…`)";
                    return self.problem(at, "schema-reference", detail.to_owned());
                };
                let decoded = percent_encoding::percent_decode_str(fragment).decode_utf8_lossy();
                if let Some(sub) = self.subs.get_mut(place) {
                    sub.references.push(decoded.into_owned());
                }
            }
            ("$anchor" | "$dynamicAnchor", Value::String(name)) => {
                self.places.insert(name.clone(), place);
            }
            ("$id", _) if place > 0 => {
                let detail = "only the whole schema can have a name of its own; remove it";
                self.problem(at, "schema-reference", detail.to_owned());
            }
            ("$schema", Value::String(dialect)) if dialect.trim_end_matches('#') != DIALECT => {
                self.problem(at, "schema-dialect", format!("must be {DIALECT}"));
            }
            ("pattern", Value::String(pattern)) => {
                self.pattern(pattern, at);
                self.cost(place, 1);
            }
            ("enum" | "required", Value::Array(values)) => {
                self.cost(place, u32::try_from(values.len() / 8).unwrap_or(u32::MAX));
            }
            ("dependentRequired", Value::Object(lists)) => {
                self.cost(place, u32::try_from(lists.len()).unwrap_or(u32::MAX));
            }
            _ => {}
        }
    }

    fn list(&mut self, value: &Value, at: &str, depth: usize, same_value_as: Option<usize>) {
        for (index, inner) in value.as_array().into_iter().flatten().enumerate() {
            let inner = self.schema(inner, &format!("{at}/{index}"), depth + 2);
            if let Some(place) = same_value_as {
                self.same_value(place, inner);
            }
        }
    }

    fn map(&mut self, value: &Value, at: &str, depth: usize, same_value_as: Option<usize>) {
        for (name, inner) in value.as_object().into_iter().flatten() {
            let inner = self.schema(inner, &format!("{at}/{}", escaped(name)), depth + 2);
            if let Some(place) = same_value_as {
                self.same_value(place, inner);
            }
        }
    }

    fn same_value(&mut self, place: usize, inner: usize) {
        if let Some(sub) = self.subs.get_mut(place) {
            sub.same_value.push(inner);
        }
    }

    fn cost(&mut self, place: usize, more: u32) {
        if let Some(sub) = self.subs.get_mut(place) {
            sub.cost = sub.cost.saturating_add(more);
        }
    }

    fn pattern(&mut self, pattern: &str, at: &str) {
        // Refused anyway, and each further one may take tens of milliseconds.
        if self.patterns_bytes > PATTERNS_BYTES_MAX {
            return;
        }
        match rule::compile_pattern(pattern, "") {
            Ok((_, bytes)) => self.patterns_bytes = self.patterns_bytes.saturating_add(bytes),
            Err(problem) => {
                if problem.code == rule::PATTERN_TOO_LARGE {
                    let made = rule::PATTERN_COMPILED_BYTES_MAX;
                    self.patterns_bytes = self.patterns_bytes.saturating_add(made);
                }
                self.problem(at, problem.code, problem.detail);
            }
        }
    }

    fn problem(&mut self, pointer: &str, code: &'static str, detail: String) {
        let pointer = format!("/schema{pointer}");
        self.problems.push(Problem::new(pointer, code, detail));
    }

    /// The largest sums over all subschemas.
    fn sums(&mut self) -> Result<Bounds, Problem> {
        for sub in &mut self.subs {
            for reference in std::mem::take(&mut sub.references) {
                let Some(place) = self.places.get(&reference) else {
                    let detail = format!("`#{reference}` is no subschema; put it under `$defs`");
                    return Err(Problem::new("/schema", "schema-reference", detail));
                };
                sub.same_value.push(*place);
            }
        }
        let mut most = Bounds { apply: 0, chain: 0 };
        for place in 0..self.subs.len() {
            let bounds = self.sum(place, 0)?;
            most.apply = most.apply.max(bounds.apply);
            most.chain = most.chain.max(bounds.chain);
        }
        Ok(most)
    }

    fn sum(&mut self, place: usize, depth: u32) -> Result<Bounds, Problem> {
        let endless = |detail: &str| Problem::new("/schema", "schema-too-complex", detail);
        let Some(sub) = self.subs.get_mut(place) else {
            return Ok(Bounds { apply: 0, chain: 0 });
        };
        match sub.known {
            Some(Known::Closed(bounds)) => return Ok(bounds),
            Some(Known::Open) => {
                return Err(endless(
                    "a subschema applies to the same value again through its references, without \
                     end",
                ));
            }
            None => sub.known = Some(Known::Open),
        }
        if depth > CHAIN_MAX {
            return Err(endless(&format!(
                "more than {CHAIN_MAX} subschemas apply to one value one through another"
            )));
        }
        let mut bounds = Bounds {
            apply: sub.cost,
            chain: 0,
        };
        for inner in sub.same_value.clone() {
            let inner = self.sum(inner, depth + 1)?;
            bounds.apply = bounds.apply.saturating_add(inner.apply);
            bounds.chain = bounds.chain.max(inner.chain);
        }
        bounds.chain += 1;
        if let Some(sub) = self.subs.get_mut(place) {
            sub.known = Some(Known::Closed(bounds));
        }
        Ok(bounds)
    }
}

/// A name as a token of a JSON pointer (RFC 6901 §3).
fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}
