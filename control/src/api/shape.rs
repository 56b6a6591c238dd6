//! Whether a submitted document has the shape of its schema: every unknown field, wrong type,
//! unknown value and missing field at once, each with its JSON pointer.
//!
//! serde stops at its first error, so a caller would mend one fault a round trip. The schemas are
//! the ones of the OpenAPI document, so what is published is what is checked. serde still parses
//! afterwards and has the last word.

use jiff::Timestamp;
use proto::checks::{pointer_token, printable};
use proto::problem::Problem;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// Most faults that are listed; a document with more is not read to its end.
const PROBLEMS_MAX: usize = 100;
/// Deepest nesting of schemas; ours have fewer than ten levels.
const DEPTH_MAX: usize = 64;

/// What kind of document is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Document {
    /// A whole object: required fields must be there.
    Whole,
    /// A merge patch: nothing is required, and `null` removes a field.
    MergePatch,
}

/// Named schemas, as under `components.schemas` of an OpenAPI document.
pub type Schemas = Map<String, Value>;

/// Every way in which `value` differs from the schema `name`.
pub fn faults(schemas: &Schemas, name: &str, value: &Value, document: Document) -> Vec<Problem> {
    let mut check = Check {
        schemas,
        document,
        problems: Vec::new(),
    };
    match schemas.get(name) {
        Some(schema) => check.value(schema, value, "", 0),
        None => check.push("", "schema", format!("no schema is named {name}")),
    }
    check.problems
}

/// The document as a `T`, once its shape is right.
///
/// # Errors
/// All faults of its shape; or, where only serde can judge (ids, hosts), the first of those.
pub fn parse<T: DeserializeOwned>(
    schemas: &Schemas,
    name: &str,
    value: Value,
) -> Result<T, Vec<Problem>> {
    let problems = faults(schemas, name, &value, Document::Whole);
    if problems.is_empty() {
        deserialize(value)
    } else {
        Err(problems)
    }
}

/// serde's reading, with its error as a problem at the place where it happened.
///
/// # Errors
/// serde's first error.
pub fn deserialize<T: DeserializeOwned>(value: Value) -> Result<T, Vec<Problem>> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let mut pointer = String::new();
        for segment in error.path() {
            use serde_path_to_error::Segment;
            match segment {
                Segment::Seq { index } => pointer.push_str(&format!("/{index}")),
                Segment::Map { key } => pointer.push_str(&format!("/{}", pointer_token(key))),
                Segment::Enum { .. } | Segment::Unknown => {}
            }
        }
        vec![Problem::new(pointer, "value", error.inner().to_string())]
    })
}

struct Check<'a> {
    schemas: &'a Schemas,
    document: Document,
    problems: Vec<Problem>,
}

impl<'a> Check<'a> {
    fn push(&mut self, pointer: &str, code: &'static str, detail: impl Into<String>) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(Problem::new(pointer, code, detail));
        }
    }

    fn value(&mut self, schema: &'a Value, value: &Value, pointer: &str, depth: usize) {
        if depth > DEPTH_MAX {
            return self.push(pointer, "too-deep", "is nested too deep");
        }
        let schema = self.resolved(schema);
        if value.is_null() && (self.document == Document::MergePatch || nullable(schema)) {
            return;
        }
        for list in ["oneOf", "anyOf"] {
            if let Some(Value::Array(options)) = schema.get(list) {
                self.one_of(options, value, pointer, depth);
            }
        }
        if let Some(Value::Array(parts)) = schema.get("allOf") {
            for part in parts {
                self.value(part, value, pointer, depth + 1);
            }
        }
        if !self.has_type(schema, value, pointer) {
            return;
        }
        self.has_value(schema, value, pointer);
        match value {
            Value::Object(fields) => self.object(schema, fields, pointer, depth),
            Value::Array(items) => {
                if let Some(item_schema) = schema.get("items") {
                    for (at, item) in items.iter().enumerate() {
                        if self.problems.len() >= PROBLEMS_MAX {
                            return;
                        }
                        self.value(item_schema, item, &format!("{pointer}/{at}"), depth + 1);
                    }
                }
            }
            _ => {}
        }
    }

    fn resolved(&self, schema: &'a Value) -> &'a Value {
        let mut schema = schema;
        // A chain of references ends after a few steps; a ring would be a defect of the schemas.
        for _ in 0..8 {
            let Some(Value::String(location)) = schema.get("$ref") else {
                break;
            };
            let name = location.rsplit('/').next().unwrap_or_default();
            match self.schemas.get(name) {
                Some(named) => schema = named,
                None => break,
            }
        }
        schema
    }

    /// The value must fit one of the options; if it fits none, the faults of the nearest one.
    fn one_of(&mut self, options: &'a [Value], value: &Value, pointer: &str, depth: usize) {
        let mut nearest: Option<Vec<Problem>> = None;
        for option in options {
            let mut attempt = Check {
                schemas: self.schemas,
                document: self.document,
                problems: Vec::new(),
            };
            attempt.value(option, value, pointer, depth + 1);
            if attempt.problems.is_empty() {
                return;
            }
            let is_type = |problems: &[Problem]| {
                problems
                    .iter()
                    .any(|p| p.code == "type" && p.pointer == pointer)
            };
            let better = nearest.as_ref().is_none_or(|best| {
                (is_type(&attempt.problems), attempt.problems.len()) < (is_type(best), best.len())
                    || (is_type(best) && !nullish(option) && !is_type(&attempt.problems))
            });
            if better && !(nullish(option) && options.len() > 1) {
                nearest = Some(attempt.problems);
            }
        }
        for problem in nearest.unwrap_or_default() {
            self.push(&problem.pointer, problem.code, problem.detail);
        }
    }

    fn has_type(&mut self, schema: &Value, value: &Value, pointer: &str) -> bool {
        let allowed: Vec<&str> = match schema.get("type") {
            Some(Value::String(one)) => vec![one],
            Some(Value::Array(many)) => many.iter().filter_map(Value::as_str).collect(),
            _ => return true,
        };
        let actual = match value {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(number) if number.is_f64() => "number",
            Value::Number(_) => "integer",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        let fits =
            allowed.contains(&actual) || (actual == "integer" && allowed.contains(&"number"));
        if !fits {
            let detail = format!("must be {}, is {}", allowed.join(" or "), actual);
            self.push(pointer, "type", detail);
        }
        fits
    }

    fn has_value(&mut self, schema: &Value, value: &Value, pointer: &str) {
        if let Some(Value::Array(known)) = schema.get("enum")
            && !known.contains(value)
        {
            let names: Vec<&str> = known.iter().filter_map(Value::as_str).collect();
            let given = value.as_str().map(printable).unwrap_or_default();
            let mut detail = format!("`{given}` is none of {}", names.join(", "));
            if let Some(name) = nearest(&given, names.iter().copied()) {
                detail.push_str(&format!("; did you mean `{name}`?"));
            }
            self.push(pointer, "enum", detail);
        }
        let is_time = schema.get("format").and_then(Value::as_str) == Some("date-time");
        if let Some(text) = value.as_str().filter(|_| is_time)
            && text.parse::<Timestamp>().is_err()
        {
            let given = printable(text);
            let detail = format!(
                "`{given}` is no time: write date, time and offset, as in 2027-01-31T18:00:00Z or \
                 2027-01-31T18:00:00+01:00"
            );
            self.push(pointer, "value", detail);
        }
        if let (Some(least), Some(number)) = (
            schema.get("minimum").and_then(Value::as_f64),
            value.as_f64(),
        ) && number < least
        {
            self.push(pointer, "range", format!("{number} is below {least}"));
        }
    }

    fn object(
        &mut self,
        schema: &'a Value,
        fields: &Map<String, Value>,
        pointer: &str,
        depth: usize,
    ) {
        let properties = schema.get("properties").and_then(Value::as_object);
        let additional = schema.get("additionalProperties");
        let open = properties.is_none() && additional.is_none();
        if open {
            return;
        }
        let known = |name: &str| properties.and_then(|properties| properties.get(name));
        for (name, value) in fields {
            if self.problems.len() >= PROBLEMS_MAX {
                return;
            }
            let below = format!("{pointer}/{}", pointer_token(name));
            match (known(name), additional) {
                (Some(property), _) if read_only(property) => {
                    let detail = "is set by the gateway and cannot be written; leave it out";
                    self.push(&below, "read-only", detail);
                }
                (Some(property), _) => self.value(property, value, &below, depth + 1),
                (None, Some(rest @ Value::Object(_))) => {
                    self.value(rest, value, &below, depth + 1);
                }
                (None, Some(Value::Bool(true))) => {}
                (None, _) => {
                    let names = properties
                        .into_iter()
                        .flat_map(|p| p.keys())
                        .map(String::as_str);
                    self.push(&below, "unknown-field", unknown(name, names));
                }
            }
        }
        if self.document == Document::Whole {
            for name in required(schema) {
                if !fields.contains_key(name) {
                    let below = format!("{pointer}/{}", pointer_token(name));
                    self.push(&below, "required", "is missing");
                }
            }
        }
    }
}

fn required(schema: &Value) -> impl Iterator<Item = &str> {
    let names = schema.get("required").and_then(Value::as_array);
    names.into_iter().flatten().filter_map(Value::as_str)
}

fn read_only(schema: &Value) -> bool {
    schema.get("readOnly").and_then(Value::as_bool) == Some(true)
}

fn nullish(schema: &Value) -> bool {
    schema.get("type").and_then(Value::as_str) == Some("null")
}

fn nullable(schema: &Value) -> bool {
    match schema.get("type") {
        Some(Value::String(one)) => one == "null",
        Some(Value::Array(many)) => many.iter().any(|name| name == "null"),
        _ => ["oneOf", "anyOf"]
            .iter()
            .filter_map(|list| schema.get(list).and_then(Value::as_array))
            .any(|options| options.iter().any(nullish)),
    }
}

fn unknown<'n>(name: &str, known: impl Iterator<Item = &'n str> + Clone) -> String {
    match nearest(name, known.clone()) {
        Some(near) => format!(
            "`{}` is not a field here; did you mean `{near}`?",
            printable(name)
        ),
        None => format!(
            "`{}` is not a field here; known are {}",
            printable(name),
            known.collect::<Vec<_>>().join(", ")
        ),
    }
}

/// The known name that `name` is most likely a slip of, if any is near enough.
pub fn nearest<'n>(name: &str, known: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    let plain = |text: &str| -> Vec<char> {
        text.chars()
            .filter(|c| *c != '_' && *c != '-')
            .flat_map(char::to_lowercase)
            .take(64)
            .collect()
    };
    let given = plain(name);
    let allowed = 1 + given.len() / 4;
    known
        .map(|candidate| (edits(&given, &plain(candidate)), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance: insertions, deletions and substitutions, each at cost one.
fn edits(a: &[char], b: &[char]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (y, cell) in b.iter().zip(row.iter_mut().skip(1)) {
            let above = *cell;
            let cost = (diagonal + usize::from(x != y))
                .min(above + 1)
                .min(left + 1);
            diagonal = above;
            left = cost;
            *cell = cost;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(a.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn schemas() -> Schemas {
        let schemas = json!({
            "Thing": {
                "type": "object",
                "required": ["name", "inner"],
                "additionalProperties": false,
                "properties": {
                    "name": {"type": "string"},
                    "count": {"type": ["integer", "null"], "minimum": 0},
                    "inner": {"$ref": "#/components/schemas/Inner"},
                    "maybe": {"oneOf": [{"type": "null"}, {"$ref": "#/components/schemas/Inner"}]},
                    "list": {"type": "array", "items": {"$ref": "#/components/schemas/Effect"}},
                    "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                    "id": {"type": "string", "readOnly": true}
                }
            },
            "Inner": {
                "type": "object",
                "additionalProperties": false,
                "properties": {"connect_ms": {"type": "integer"}}
            },
            "Effect": {"type": "string", "enum": ["allow", "deny"]}
        });
        schemas.as_object().unwrap().clone()
    }

    fn check(value: Value, document: Document, expected: &[(&str, &str)]) {
        let problems = faults(&schemas(), "Thing", &value, document);
        let found: Vec<_> = problems
            .iter()
            .map(|p| (p.pointer.as_str(), p.code))
            .collect();
        assert_eq!(found, expected, "{value} {problems:?}");
    }

    #[test]
    fn all_faults_of_a_document_are_found_at_once() {
        check(json!({"name": "a", "inner": {}}), Document::Whole, &[]);
        check(
            json!({"name": 1, "nmae": "x", "inner": {"conect_ms": 1}, "list": ["allow", "alow"],
                   "labels": {"a/b": 1}, "id": "x", "count": -1, "maybe": {"connect_ms": "1"}}),
            Document::Whole,
            &[
                ("/name", "type"),
                ("/nmae", "unknown-field"),
                ("/inner/conect_ms", "unknown-field"),
                ("/list/1", "enum"),
                ("/labels/a~1b", "type"),
                ("/id", "read-only"),
                ("/count", "range"),
                ("/maybe/connect_ms", "type"),
            ],
        );
        check(
            json!({"maybe": null, "count": null}),
            Document::Whole,
            &[("/name", "required"), ("/inner", "required")],
        );
        check(
            json!({"maybe": 7}),
            Document::MergePatch,
            &[("/maybe", "type")],
        );
        check(json!([]), Document::Whole, &[("", "type")]);
        check(
            json!({"name": null, "inner": {"x": null}}),
            Document::MergePatch,
            &[("/inner/x", "unknown-field")],
        );
    }

    #[test]
    fn a_slip_is_answered_with_the_nearest_name() {
        for (given, expected) in [
            ("baseurl", Some("base_url")),
            ("base-url", Some("base_url")),
            ("baseUrl", Some("base_url")),
            ("lables", Some("labels")),
            ("zzzzzz", None),
            ("", None),
        ] {
            assert_eq!(
                nearest(given, ["base_url", "labels"].into_iter()),
                expected,
                "{given}"
            );
        }
    }

    #[test]
    fn faults_are_bounded() {
        let many: Map<String, Value> = (0..1000).map(|n| (format!("x{n}"), json!(1))).collect();
        let problems = faults(&schemas(), "Thing", &Value::Object(many), Document::Whole);
        assert_eq!(problems.len(), PROBLEMS_MAX);
    }
}
