//! JSONPath (RFC 9535) with a bounded cost.
//!
//! The engine has no budget of its own: nested descents are polynomial, repeated selectors
//! (`[*,*][*,*]…`) and nested filters exponential (the latter already while parsing), and
//! `match()` compiles its pattern, which may come from the document, for every node. All of these
//! are refused when the path is saved; what is left costs a small multiple of the document's
//! nodes, which [`super::BodyLimits`] bounds.

use serde_json::Value;

/// Characters of a path, at most.
const LENGTH_MAX: usize = 512;
/// Product of the numbers of selectors in brackets, at most: how often one node can be found.
const SELECTIONS_MAX: usize = 16;
/// Nested parentheses, at most.
const PARENTHESES_MAX: usize = 4;
/// `&&`, `||` and comparisons, at most.
const OPERATORS_MAX: usize = 16;

/// A compiled JSONPath whose cost is bounded.
#[derive(Clone, Debug)]
pub struct JsonPath(serde_json_path::JsonPath);

/// Why a JSONPath is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JsonPathProblem {
    /// Not RFC 9535.
    #[error("not a valid JSONPath (RFC 9535): {0}")]
    Invalid(String),
    /// Longer than allowed.
    #[error("a JSONPath has at most {LENGTH_MAX} characters, this one has {0}")]
    TooLong(usize),
    /// A second `..`.
    #[error("a JSONPath may hold one `..`; nested descents have no bounded cost")]
    SecondDescent,
    /// `..` inside of a filter.
    #[error("a filter may not hold `..`; nested descents have no bounded cost")]
    DescentInFilter,
    /// A filter inside of a filter.
    #[error("a filter may not hold another filter; their cost multiplies")]
    NestedFilter,
    /// `$` with a wildcard, slice or list in one filter.
    #[error("a filter that reads from the root `$` may use only names and indexes")]
    WideRootInFilter,
    /// `match()` or `search()`.
    #[error("match() and search() are not supported; use `value` for a pattern")]
    PatternFunction,
    /// Too many selectors in brackets.
    #[error("the selectors in brackets multiply to more than {SELECTIONS_MAX}")]
    TooManySelectors,
    /// Parentheses nested too deeply.
    #[error("parentheses are nested more than {PARENTHESES_MAX} deep")]
    TooDeep,
    /// Too many operators.
    #[error("the filters have more than {OPERATORS_MAX} operators")]
    TooManyOperators,
}

impl JsonPath {
    /// Parses a path and checks that its cost is bounded.
    ///
    /// # Errors
    /// The first [`JsonPathProblem`].
    pub fn parse(path: &str) -> Result<Self, JsonPathProblem> {
        Self::parse_at(path).map_err(|(problem, _)| problem)
    }

    /// The same, with the place of what is refused in words.
    ///
    /// # Errors
    /// What is wrong, and after what in the path.
    pub fn parse_told(path: &str) -> Result<Self, String> {
        Self::parse_at(path).map_err(
            |(problem, place)| match place.and_then(|at| path.get(..at)) {
                Some("") | None => problem.to_string(),
                Some(before) => format!("{problem} (after `{before}`)"),
            },
        )
    }

    /// The first problem, with its place in bytes where that is known.
    fn parse_at(path: &str) -> Result<Self, (JsonPathProblem, Option<usize>)> {
        let length = path.chars().count();
        if length > LENGTH_MAX {
            return Err((JsonPathProblem::TooLong(length), None));
        }
        Scan::default().run(path)?;
        let parsed = serde_json_path::JsonPath::parse(path);
        let parsed = parsed.map_err(|problem| match crate::json_path::JsonPath::parse(path) {
            // The engine of filters tells what it expected, and where.
            Err(error) => (JsonPathProblem::Invalid(error.detail), Some(error.offset)),
            Ok(_) => (JsonPathProblem::Invalid(problem.to_string()), None),
        })?;
        Ok(Self(parsed))
    }

    /// All nodes that the path finds.
    pub fn query<'d>(&self, document: &'d Value) -> Vec<&'d Value> {
        self.0.query(document).all()
    }
}

/// What an open bracket is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Open {
    Selectors { count: usize, in_filter: bool },
    Parenthesis,
}

/// A walk over the characters of a path that counts what costs.
///
/// It need not know the grammar: it runs before the parser and may only be stricter.
#[derive(Default)]
struct Scan {
    open: Vec<Open>,
    descents: usize,
    operators: usize,
    selections: usize,
    root_in_filter: bool,
    wide_in_filter: bool,
}

impl Scan {
    fn run(mut self, path: &str) -> Result<(), (JsonPathProblem, Option<usize>)> {
        let mut rest = path.chars();
        let mut word = String::new();
        self.selections = 1;
        loop {
            let at = path.len().saturating_sub(rest.as_str().len());
            let Some(character) = rest.next() else {
                break;
            };
            let counted = self.count(character, &mut rest, &word);
            counted.map_err(|problem| (problem, Some(at)))?;
            if character.is_alphanumeric() {
                word.push(character);
            } else if !character.is_whitespace() {
                word.clear();
            }
        }
        if self.root_in_filter && self.wide_in_filter {
            return Err((JsonPathProblem::WideRootInFilter, None));
        }
        // Each operator is written with up to two characters.
        if self.operators > 2 * OPERATORS_MAX {
            return Err((JsonPathProblem::TooManyOperators, None));
        }
        Ok(())
    }

    fn count(
        &mut self,
        character: char,
        rest: &mut std::str::Chars<'_>,
        word: &str,
    ) -> Result<(), JsonPathProblem> {
        match character {
            '\'' | '"' => skip_string(rest, character),
            '.' if rest.as_str().starts_with('.') => self.descend()?,
            '[' => self.open.push(Open::Selectors {
                count: 1,
                in_filter: false,
            }),
            ']' => self.close_selectors()?,
            '(' => self.open_parenthesis(word)?,
            ')' => {
                self.open.pop();
            }
            '?' => self.begin_filter()?,
            ',' => self.next_selector(),
            '$' => self.root_in_filter |= self.in_filter(),
            '*' | ':' => self.wide_in_filter |= self.in_filter(),
            '&' | '|' | '=' | '<' | '>' | '!' => self.operators += 1,
            _ => {}
        }
        Ok(())
    }

    fn in_filter(&self) -> bool {
        self.open.iter().any(|open| {
            matches!(
                open,
                Open::Selectors {
                    in_filter: true,
                    ..
                }
            )
        })
    }

    fn descend(&mut self) -> Result<(), JsonPathProblem> {
        if self.in_filter() {
            return Err(JsonPathProblem::DescentInFilter);
        }
        self.descents += 1;
        if self.descents > 1 {
            Err(JsonPathProblem::SecondDescent)
        } else {
            Ok(())
        }
    }

    fn open_parenthesis(&mut self, word: &str) -> Result<(), JsonPathProblem> {
        if matches!(word, "match" | "search") {
            return Err(JsonPathProblem::PatternFunction);
        }
        self.open.push(Open::Parenthesis);
        let depth = self
            .open
            .iter()
            .filter(|open| **open == Open::Parenthesis)
            .count();
        if depth > PARENTHESES_MAX {
            Err(JsonPathProblem::TooDeep)
        } else {
            Ok(())
        }
    }

    fn begin_filter(&mut self) -> Result<(), JsonPathProblem> {
        if self.in_filter() {
            return Err(JsonPathProblem::NestedFilter);
        }
        if let Some(Open::Selectors { in_filter, .. }) = self.open.last_mut() {
            *in_filter = true;
        }
        Ok(())
    }

    fn next_selector(&mut self) {
        let mut around = self.open.iter().rev().skip(1);
        let in_outer_filter = around.any(|open| {
            matches!(
                open,
                Open::Selectors {
                    in_filter: true,
                    ..
                }
            )
        });
        if let Some(Open::Selectors { count, in_filter }) = self.open.last_mut() {
            *count += 1;
            *in_filter = false;
            self.wide_in_filter |= in_outer_filter;
        }
    }

    fn close_selectors(&mut self) -> Result<(), JsonPathProblem> {
        if let Some(Open::Selectors { count, .. }) = self.open.pop() {
            self.selections = self.selections.saturating_mul(count);
        }
        if self.selections > SELECTIONS_MAX {
            return Err(JsonPathProblem::TooManySelectors);
        }
        Ok(())
    }
}

/// Skips to the end of a string literal whose opening quote was taken.
fn skip_string(rest: &mut std::str::Chars<'_>, quote: char) {
    while let Some(character) = rest.next() {
        match character {
            '\\' => {
                rest.next();
            }
            _ if character == quote => break,
            _ => {}
        }
    }
}
