//! RFC 9535 JSONPath over [`JsonText`], under caps that outside input cannot exceed.
//!
//! **Why not `serde_json_path`**, which this follows and is tested against: it works on a value
//! tree that cannot hold `1e400` and loses number text; it parses nested filters by trying each
//! alternative in turn, so that `$[?@[?@[?…` of a kilobyte never ends; it compiles the pattern of
//! `match` and `search` anew for every value it tests; and nothing in it can be stopped when a
//! query visits too much. Each of the four is a way to stall a worker, and this is on every body.
//!
//! **A result is a set**: a value that a path selects twice is selected once, and order is
//! document order. Rules and filters ask nothing else, and it makes every segment linear.
//!
//! **Caps** (`hardening` 26). At save: [`PATH_BYTES_MAX`], [`SEGMENTS_MAX`], [`SELECTORS_MAX`],
//! [`NESTING_MAX`], one `..` in a path and none in a filter expression, patterns literal and under
//! [`PATTERN_COMPILED_BYTES_MAX`]. At run time: [`VISITS_MAX`] and [`RESULTS_MAX`] per path, and
//! [`Work`] for all paths of one body together, which stands for the 50 ms of CPU time (pure code
//! has no clock, and the same body must always get the same answer).

mod compare;
mod eval;
mod expression;
mod parse;

#[cfg(test)]
mod tests;

use crate::json_text::{JsonText, NodeId};

/// Longest path, in bytes.
pub const PATH_BYTES_MAX: usize = 1_024;
/// Most segments in one query.
pub const SEGMENTS_MAX: usize = 32;
/// Most selectors in one pair of brackets, and most operands of one `&&` or `||`.
pub const SELECTORS_MAX: usize = 32;
/// Deepest nesting of filters, parentheses and functions in a filter expression.
pub const NESTING_MAX: usize = 8;
/// Largest compiled form of one `match` or `search` pattern.
pub const PATTERN_COMPILED_BYTES_MAX: usize = 1 << 20;
/// How much the patterns of one path may compile to before no further one is compiled.
pub const PATTERNS_COMPILED_BYTES_MAX: usize = 2 << 20;
/// Most values that one evaluation of one path may reach: stepped through by `..`, tested by a
/// filter, or selected by a segment.
pub const VISITS_MAX: u32 = 100_000;
/// Most values that one path may select.
pub const RESULTS_MAX: usize = 10_000;
/// Steps that all paths may take over one body: a step looks at one value, also when it only
/// passes over it in search of a name or an index.
pub const STEPS_MAX: u32 = 5_000_000;

/// Text read in about the time that one step takes.
const BYTES_PER_STEP: usize = 64;

/// The same for a pattern, which may have to follow many alternatives through each byte.
const PATTERN_BYTES_PER_STEP: usize = 4;

/// A path that parsed and is within the caps.
#[derive(Clone, Debug)]
pub struct JsonPath {
    segments: Vec<Segment>,
}

/// Why a path is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{detail} (at byte {offset} of the path)")]
pub struct PathError {
    /// Where in the path, in bytes.
    pub offset: usize,
    /// `path-invalid` (RFC 9535 does not allow it), `path-too-complex` (a cap), or
    /// `path-pattern-invalid`.
    pub code: &'static str,
    /// The rule that was broken.
    pub detail: String,
}

/// Why an evaluation was given up. Its body then counts as unreadable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectError {
    /// One path reached more than [`VISITS_MAX`] values.
    #[error("a path visits more than {VISITS_MAX} values")]
    TooManyVisits,
    /// One path selected more than [`RESULTS_MAX`] values.
    #[error("a path selects more than {RESULTS_MAX} values")]
    TooManyResults,
    /// All paths over one body took more than [`STEPS_MAX`] steps.
    #[error("the paths take more than {STEPS_MAX} steps over one body")]
    TooManySteps,
}

/// What the paths over one body may still do together. One for each body.
#[derive(Debug)]
pub struct Work {
    steps_left: u32,
}

impl Work {
    /// A whole budget of [`STEPS_MAX`] steps.
    pub fn for_one_body() -> Work {
        Work {
            steps_left: STEPS_MAX,
        }
    }

    /// Pays for reading text: a long string costs as much as many small values.
    pub(crate) fn read(&mut self, bytes: usize) -> Result<(), SelectError> {
        self.steps(bytes / BYTES_PER_STEP)
    }

    /// Pays for a pattern's way through text.
    pub(crate) fn search(&mut self, bytes: usize) -> Result<(), SelectError> {
        self.steps(bytes / PATTERN_BYTES_PER_STEP)
    }

    /// Pays for looking at `count` values.
    pub(crate) fn steps(&mut self, count: usize) -> Result<(), SelectError> {
        let left = u32::try_from(count)
            .ok()
            .and_then(|count| self.steps_left.checked_sub(count));
        self.steps_left = left.unwrap_or(0);
        match left {
            Some(_) => Ok(()),
            None => Err(SelectError::TooManySteps),
        }
    }
}

impl JsonPath {
    /// Parses a path.
    ///
    /// Two things that RFC 9535 allows are refused: a second `..` (or one in a filter expression),
    /// and a pattern of `match` or `search` that is not a literal, for it would let a body choose
    /// the pattern that a node compiles.
    ///
    /// # Errors
    /// [`PathError`] with the first fault.
    ///
    /// ```
    /// use proto::json_path::JsonPath;
    /// assert!(JsonPath::parse("$.data[*].email").is_ok());
    /// assert_eq!(JsonPath::parse("data").unwrap_err().code, "path-invalid");
    /// assert_eq!(JsonPath::parse("$..a..b").unwrap_err().code, "path-too-complex");
    /// ```
    pub fn parse(text: &str) -> Result<JsonPath, PathError> {
        parse::parse(text).map(|segments| JsonPath { segments })
    }

    /// Whether this is `$`, the path of the whole document.
    pub fn is_root(&self) -> bool {
        self.segments.is_empty()
    }

    /// The values that the path selects among those that are not removed, in document order, each
    /// once.
    ///
    /// # Errors
    /// [`SelectError`] when a cap is exceeded.
    pub fn select(
        &self,
        document: &JsonText<'_>,
        work: &mut Work,
    ) -> Result<Vec<NodeId>, SelectError> {
        let found = eval::Walk::new(document, work).segments(NodeId::ROOT, &self.segments)?;
        if found.len() > RESULTS_MAX {
            Err(SelectError::TooManyResults)
        } else {
            Ok(found)
        }
    }
}

/// RFC 9535 §2.5: what one step of a query selects below a value, or below all its descendants.
#[derive(Clone, Debug)]
struct Segment {
    descendant: bool,
    selectors: Vec<Selector>,
}

/// RFC 9535 §2.3.
#[derive(Clone, Debug)]
enum Selector {
    Name(String),
    Wildcard,
    Index(i64),
    Slice {
        start: Option<i64>,
        end: Option<i64>,
        step: i64,
    },
    Filter(Expression),
}

/// RFC 9535 §2.3.5: a test of one value.
#[derive(Clone, Debug)]
enum Expression {
    Any(Vec<Expression>),
    All(Vec<Expression>),
    Not(Box<Expression>),
    Exists(Query),
    Compare {
        left: Comparable,
        operator: Operator,
        right: Comparable,
    },
    Matches {
        value: Comparable,
        pattern: regex::Regex,
    },
}

/// A query inside a filter expression.
#[derive(Clone, Debug)]
struct Query {
    /// From `$`, not from `@`.
    absolute: bool,
    segments: Vec<Segment>,
}

impl Query {
    /// RFC 9535 §2.3.5.1: selects at most one value by its form.
    fn is_singular(&self) -> bool {
        self.segments.iter().all(|segment| {
            !segment.descendant
                && matches!(
                    segment.selectors[..],
                    [Selector::Name(_) | Selector::Index(_)]
                )
        })
    }
}

/// What can stand beside a comparison operator, or as a value argument of a function.
#[derive(Clone, Debug)]
enum Comparable {
    Null,
    Bool(bool),
    Number(compare::Number),
    String(String),
    /// A singular query.
    Query(Query),
    /// RFC 9535 §2.4.4.
    Length(Box<Comparable>),
    /// RFC 9535 §2.4.5.
    Count(Query),
    /// RFC 9535 §2.4.8.
    Value(Query),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}
