//! Text to segments: RFC 9535 §2.1 to §2.5, read from left to right without ever going back.

use super::{
    JsonPath, NESTING_MAX, PATH_BYTES_MAX, PathError, Query, SEGMENTS_MAX, SELECTORS_MAX, Segment,
    Selector,
};
use crate::json_text::unicode_escape;
use crate::pattern_size;

/// RFC 9535 §2.1: integers lie in the range of I-JSON, ±(2⁵³ − 1).
const INTEGER_MAX: i64 = (1 << 53) - 1;

pub(super) fn parse(text: &str) -> Result<Vec<Segment>, PathError> {
    let mut parser = Parser {
        text,
        at: 0,
        nesting: 0,
        filters: 0,
        descents: 0,
        made_before: pattern_size::made_bytes(),
    };
    if text.len() > PATH_BYTES_MAX {
        return Err(parser.too_complex(format!(
            "the path has {} bytes, at most {PATH_BYTES_MAX} are allowed",
            text.len()
        )));
    }
    if !parser.eat("$") {
        return Err(parser.invalid("a path begins with `$`"));
    }
    let segments = parser.segments()?;
    match parser.peek() {
        None => Ok(segments),
        Some(found) => Err(parser.invalid(&format!("`{found}` cannot stand here"))),
    }
}

pub(super) struct Parser<'t> {
    text: &'t str,
    at: usize,
    /// Open filters, parentheses and functions.
    nesting: usize,
    /// Open filters among them.
    filters: usize,
    /// Descendant segments so far.
    descents: usize,
    /// What this thread had compiled before this path.
    pub(super) made_before: usize,
}

impl<'t> Parser<'t> {
    /// RFC 9535 §2.1.1: segments, each with whitespace allowed before it.
    fn segments(&mut self) -> Result<Vec<Segment>, PathError> {
        let mut segments = Vec::new();
        loop {
            let end = self.at;
            self.skip_space();
            if !matches!(self.peek(), Some('.' | '[')) {
                self.at = end;
                return Ok(segments);
            }
            if segments.len() == SEGMENTS_MAX {
                return Err(self.too_complex(format!("more than {SEGMENTS_MAX} segments")));
            }
            segments.push(self.segment()?);
        }
    }

    fn segment(&mut self) -> Result<Segment, PathError> {
        if self.peek() == Some('[') {
            return Ok(Segment {
                descendant: false,
                selectors: self.brackets()?,
            });
        }
        let descendant = self.rest().starts_with("..");
        if descendant {
            self.count_descent()?;
            self.eat("..");
        } else {
            self.eat(".");
        }
        let selectors = match self.peek() {
            Some('*') => {
                self.eat("*");
                vec![Selector::Wildcard]
            }
            Some('[') if descendant => self.brackets()?,
            Some(first) if is_name_first(first) => vec![Selector::Name(self.shorthand().into())],
            _ => return Err(self.invalid("a name, `*` or, after `..`, `[` must follow")),
        };
        Ok(Segment {
            descendant,
            selectors,
        })
    }

    fn count_descent(&mut self) -> Result<(), PathError> {
        self.descents += 1;
        if self.filters > 0 {
            return Err(self.too_complex("`..` is not allowed in a filter expression".into()));
        }
        if self.descents > 1 {
            return Err(self.too_complex("at most one `..` is allowed in a path".into()));
        }
        Ok(())
    }

    fn shorthand(&mut self) -> &'t str {
        let rest = self.rest();
        let end = rest
            .find(|c| !is_name_first(c) && !c.is_ascii_digit())
            .unwrap_or(rest.len());
        self.at += end;
        rest.get(..end).unwrap_or("")
    }

    /// RFC 9535 §2.5.1.1: `[` selectors `]`.
    fn brackets(&mut self) -> Result<Vec<Selector>, PathError> {
        self.eat("[");
        let mut selectors = Vec::new();
        loop {
            self.skip_space();
            if selectors.len() == SELECTORS_MAX {
                return Err(self.too_complex(format!("more than {SELECTORS_MAX} selectors")));
            }
            selectors.push(self.selector()?);
            self.skip_space();
            if self.eat("]") {
                return Ok(selectors);
            }
            if !self.eat(",") {
                return Err(self.invalid("`,` or `]` expected"));
            }
        }
    }

    fn selector(&mut self) -> Result<Selector, PathError> {
        match self.peek() {
            Some('\'' | '"') => self.string().map(Selector::Name),
            Some('*') => {
                self.eat("*");
                Ok(Selector::Wildcard)
            }
            Some('?') => {
                self.eat("?");
                self.enter()?;
                self.filters += 1;
                self.skip_space();
                let expression = self.expression()?;
                self.filters -= 1;
                self.leave();
                Ok(Selector::Filter(expression))
            }
            Some(':' | '-' | '0'..='9') => self.index_or_slice(),
            _ => Err(self.invalid("a selector must follow: a quoted name, an index, `*` or `?`")),
        }
    }

    /// RFC 9535 §2.3.3, §2.3.4.
    fn index_or_slice(&mut self) -> Result<Selector, PathError> {
        let start = self.optional_integer()?;
        let end_of_index = self.at;
        self.skip_space();
        if !self.eat(":") {
            self.at = end_of_index;
            return match start {
                Some(index) => Ok(Selector::Index(index)),
                None => Err(self.invalid("an integer expected")),
            };
        }
        self.skip_space();
        let end = self.optional_integer()?;
        let end_of_slice = self.at;
        self.skip_space();
        let mut step = None;
        if self.eat(":") {
            let end_of_colon = self.at;
            self.skip_space();
            step = self.optional_integer()?;
            if step.is_none() {
                self.at = end_of_colon;
            }
        } else {
            self.at = end_of_slice;
        }
        Ok(Selector::Slice {
            start,
            end,
            step: step.unwrap_or(1),
        })
    }

    fn optional_integer(&mut self) -> Result<Option<i64>, PathError> {
        if !matches!(self.peek(), Some('-' | '0'..='9')) {
            return Ok(None);
        }
        let rest = self.rest();
        let digits = rest.strip_prefix('-').unwrap_or(rest);
        let length = digits
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(digits.len());
        let whole = rest.len() - digits.len() + length;
        let text = rest.get(..whole).unwrap_or("");
        if matches!(text, "-" | "-0") || (digits.starts_with('0') && length > 1) {
            return Err(self.invalid("an integer has no leading zero and is not `-0`"));
        }
        match text.parse::<i64>() {
            Ok(value) if (-INTEGER_MAX..=INTEGER_MAX).contains(&value) => {
                self.at += whole;
                Ok(Some(value))
            }
            _ => Err(self.invalid("an integer lies between -(2^53-1) and 2^53-1")),
        }
    }

    /// RFC 9535 §2.3.1: a string in single or double quotes.
    pub(super) fn string(&mut self) -> Result<String, PathError> {
        let quote = if self.eat("'") { '\'' } else { '"' };
        if quote == '"' {
            self.eat("\"");
        }
        let mut text = String::new();
        loop {
            match self.peek() {
                Some(c) if c == quote => {
                    self.bump();
                    return Ok(text);
                }
                Some('\\') => {
                    self.bump();
                    text.push(self.escaped(quote)?);
                }
                Some(c) if c >= ' ' => {
                    self.bump();
                    text.push(c);
                }
                Some(_) => return Err(self.invalid("a control character must be escaped")),
                None => return Err(self.invalid("a string is not closed")),
            }
        }
    }

    fn escaped(&mut self, quote: char) -> Result<char, PathError> {
        let fault = self.invalid("no such escape");
        let escape = self.peek().ok_or(fault.clone())?;
        self.bump();
        match escape {
            'b' => Ok('\u{8}'),
            'f' => Ok('\u{c}'),
            'n' => Ok('\n'),
            'r' => Ok('\r'),
            't' => Ok('\t'),
            '/' | '\\' => Ok(escape),
            _ if escape == quote => Ok(quote),
            'u' => {
                let rest = self.rest();
                let (character, after) = unicode_escape(rest).ok_or(fault.clone())?;
                self.at += rest.len() - after.len();
                character.ok_or(fault)
            }
            _ => Err(fault),
        }
    }

    /// The rest of a query after its `$` or `@`.
    pub(super) fn query(&mut self) -> Result<Query, PathError> {
        let absolute = self.eat("$");
        if !absolute {
            self.eat("@");
        }
        Ok(Query {
            absolute,
            segments: self.segments()?,
        })
    }

    pub(super) fn enter(&mut self) -> Result<(), PathError> {
        self.nesting += 1;
        if self.nesting > NESTING_MAX {
            return Err(self.too_complex(format!(
                "filters, parentheses and functions nested deeper than {NESTING_MAX}"
            )));
        }
        Ok(())
    }

    pub(super) fn leave(&mut self) {
        self.nesting -= 1;
    }

    /// RFC 9535 §2.1.1: space, tab, line feed, carriage return.
    pub(super) fn skip_space(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start_matches([' ', '\t', '\n', '\r']).len();
    }

    pub(super) fn rest(&self) -> &'t str {
        self.text.get(self.at..).unwrap_or("")
    }

    pub(super) fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    pub(super) fn eat(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    pub(super) fn at(&self) -> usize {
        self.at
    }

    pub(super) fn advance(&mut self, bytes: usize) {
        self.at += bytes;
    }

    fn bump(&mut self) {
        self.at += self.peek().map_or(0, char::len_utf8);
    }

    pub(super) fn invalid(&self, detail: &str) -> PathError {
        invalid_at(self.at, detail)
    }

    pub(super) fn too_complex(&self, detail: String) -> PathError {
        PathError {
            offset: self.at,
            code: "path-too-complex",
            detail,
        }
    }

    pub(super) fn bad_pattern(&self, detail: String) -> PathError {
        PathError {
            offset: self.at,
            code: "path-pattern-invalid",
            detail,
        }
    }
}

pub(super) fn invalid_at(offset: usize, detail: &str) -> PathError {
    PathError {
        offset,
        code: "path-invalid",
        detail: detail.into(),
    }
}

/// RFC 9535 §2.5.1.1, `name-first`.
fn is_name_first(c: char) -> bool {
    c.is_ascii_alphabetic() || c == '_' || !c.is_ascii()
}

impl std::str::FromStr for JsonPath {
    type Err = PathError;

    fn from_str(text: &str) -> Result<JsonPath, PathError> {
        JsonPath::parse(text)
    }
}
