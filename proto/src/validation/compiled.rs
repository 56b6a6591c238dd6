//! A schema that bodies can be held against, and what is said of one that it does not describe.

use jsonschema::{PatternOptions, Validator};

use super::bounds::{self, Bounds};
use super::instance::{Instance, Text};
use super::{BodySchema, ValidationMode};
use crate::json_text::{JsonError, JsonText, Kind, NodeId};
use crate::problem::Problem;
use crate::rule::PATTERN_COMPILED_BYTES_MAX;

/// Most problems of one body that are told.
pub const PROBLEMS_MAX: usize = 20;
/// Longest pointer that is told, in characters.
const POINTER_CHARS_MAX: usize = 256;
/// What the validator may do with one body.
const STEPS_MAX: u32 = 2_000_000;
/// Levels of a body times the longest chain of subschemas at each, which is how deep the
/// validator's calls nest. What a worker's stack takes, with room to spare.
const CALLS_MAX: u32 = 512;

/// A schema, ready to hold bodies against.
#[derive(Debug)]
pub struct BodyValidator {
    /// What happens to a body that is not valid.
    pub mode: ValidationMode,
    validator: Validator<Text>,
    bounds: Bounds,
}

/// Why a body is not valid. Holds nothing of its values, only where they stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// Each with the place in the body; at most [`PROBLEMS_MAX`].
    pub problems: Vec<Problem>,
    /// Whether there are more.
    pub more: bool,
}

impl Invalid {
    /// One line: where the first problem is, and how many there are.
    pub fn summary(&self) -> String {
        let Some(first) = self.problems.first() else {
            return String::new();
        };
        let place = match first.pointer.as_str() {
            "" => "as a whole",
            pointer => &format!("at {pointer}"),
        };
        let others = match (self.problems.len() - 1, self.more) {
            (0, false) => String::new(),
            (count, false) => format!(" (and {count} more)"),
            (count, true) => format!(" (and {count} more at least)"),
        };
        format!("{place}: {}{others}", first.detail)
    }

    fn one(pointer: &str, code: &'static str, detail: impl Into<String>) -> Self {
        Self {
            problems: vec![Problem::new(pointer, code, detail)],
            more: false,
        }
    }
}

impl BodyValidator {
    /// Compiles a schema.
    ///
    /// # Errors
    /// What is wrong with it, at `/schema/…`. Codes: `schema-invalid`, `schema-too-large`,
    /// `schema-too-complex`, `schema-reference`, `schema-dialect`, and those of patterns of rules.
    pub fn new(body: &BodySchema) -> Result<BodyValidator, Vec<Problem>> {
        let bounds = bounds::judge(&body.schema)?;
        let patterns = PatternOptions::regex()
            .size_limit(PATTERN_COMPILED_BYTES_MAX)
            .dfa_size_limit(PATTERN_COMPILED_BYTES_MAX);
        let validator = jsonschema::options_for::<Text>()
            .with_draft(jsonschema::Draft::Draft202012)
            .should_validate_formats(false)
            .with_pattern_options(patterns)
            .offline()
            .build(&body.schema)
            .map_err(|error| {
                let pointer = format!("/schema{}", error.instance_path());
                let detail: String = error.to_string().chars().take(200).collect();
                vec![Problem::new(pointer, "schema-invalid", detail)]
            })?;
        Ok(BodyValidator {
            mode: body.mode,
            validator,
            bounds,
        })
    }

    /// Holds a body against the schema.
    ///
    /// # Errors
    /// What is wrong with it. Codes: `schema-violated`, `unreadable` (not JSON that can be read
    /// in exactly one way), `number-out-of-range` (of a double), `too-complex` (validating it
    /// would take too much).
    pub fn check(&self, body: &[u8]) -> Result<(), Invalid> {
        let document = JsonText::parse(body).map_err(|error| unreadable(&error))?;
        let (mut depth, mut numbers) = (0, None);
        for id in document.subtree(NodeId::ROOT) {
            match document.kind(id) {
                Kind::Number if !is_double(document.raw(id)) => numbers = numbers.or(Some(id)),
                Kind::Array | Kind::Object => depth = depth.max(document.depth(id) + 1),
                _ => {}
            }
        }
        if let Some(id) = numbers {
            let detail = "is a number beyond the range of a double";
            return Err(Invalid::one(
                &document.pointer(id),
                "number-out-of-range",
                detail,
            ));
        }
        let too_complex = || {
            let detail = "takes too much to validate; send less, or simplify the schema";
            Err(Invalid::one("", "too-complex", detail))
        };
        if (depth + 1).saturating_mul(self.bounds.chain) > CALLS_MAX {
            return too_complex();
        }
        let cost = self.bounds.apply;
        let instance = Instance::new(&document, STEPS_MAX, cost);
        let valid = self.validator.is_valid(instance.root());
        if instance.is_spent() {
            return too_complex();
        }
        if valid {
            return Ok(());
        }
        let instance = Instance::new(&document, STEPS_MAX, cost);
        let errors = self.validator.iter_errors(instance.root());
        let mut problems: Vec<Problem> = errors
            // Those from after the budget was used up are none.
            .filter(|error| error.instance().as_bool() == Some(true))
            .take(PROBLEMS_MAX + 1)
            .map(|error| problem(&error))
            .collect();
        let more = problems.len() > PROBLEMS_MAX;
        problems.truncate(PROBLEMS_MAX);
        if problems.is_empty() {
            return too_complex();
        }
        Err(Invalid { problems, more })
    }
}

fn unreadable(error: &JsonError) -> Invalid {
    Invalid::one("", "unreadable", format!("must be JSON: {error}"))
}

/// Whether a number has a double beside it.
fn is_double(text: &str) -> bool {
    // No shorter text without an exponent leaves the range.
    let short = text.len() < 300 && !text.contains(['e', 'E']);
    short || text.parse::<f64>().is_ok_and(f64::is_finite)
}

/// Where it is and which keyword it breaks; never the value, which the message of the crate holds.
fn problem(error: &jsonschema::ValidationError<'_>) -> Problem {
    use jsonschema::error::ValidationErrorKind as Why;
    let keyword = error.schema_path();
    let missing = match error.kind() {
        Why::Required { property } => property
            .as_str()
            .map(|name| format!("; `{name}` is missing")),
        _ => None,
    };
    let missing = missing.unwrap_or_default();
    let pointer: String = error
        .instance_path()
        .as_str()
        .chars()
        .take(POINTER_CHARS_MAX)
        .collect();
    Problem::new(
        pointer,
        "schema-violated",
        format!("breaks {keyword} of the schema{missing}"),
    )
}
