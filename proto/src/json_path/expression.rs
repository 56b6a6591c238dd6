//! Filter expressions: RFC 9535 §2.3.5 and the five functions of §2.4.
//!
//! The first character of an operand says what it is, so nothing is ever tried twice: parsing is
//! linear, and its depth is capped by [`NESTING_MAX`](super::NESTING_MAX).

use regex::RegexBuilder;

use super::compare::Number;
use super::parse::{Parser, invalid_at};
use super::{
    Comparable, Expression, Operator, PATTERN_COMPILED_BYTES_MAX, PATTERNS_COMPILED_BYTES_MAX,
    PathError, Query, SELECTORS_MAX,
};
use crate::pattern_size;

/// What one operand turned out to be; only what follows it says which of them is allowed.
enum Operand {
    Query(Query),
    Value(Comparable),
    Test(Expression),
}

impl Parser<'_> {
    /// `a && b || c && d`
    pub(super) fn expression(&mut self) -> Result<Expression, PathError> {
        let mut alternatives = vec![self.conjunction()?];
        loop {
            self.skip_space();
            if !self.eat("||") {
                return Ok(one_or(alternatives, Expression::Any));
            }
            self.skip_space();
            self.check_operands(alternatives.len())?;
            alternatives.push(self.conjunction()?);
        }
    }

    fn conjunction(&mut self) -> Result<Expression, PathError> {
        let mut parts = vec![self.basic()?];
        loop {
            self.skip_space();
            if !self.eat("&&") {
                return Ok(one_or(parts, Expression::All));
            }
            self.skip_space();
            self.check_operands(parts.len())?;
            parts.push(self.basic()?);
        }
    }

    fn check_operands(&self, count: usize) -> Result<(), PathError> {
        if count == SELECTORS_MAX {
            return Err(self.too_complex(format!("more than {SELECTORS_MAX} operands")));
        }
        Ok(())
    }

    fn basic(&mut self) -> Result<Expression, PathError> {
        if self.eat("!") {
            self.skip_space();
            let inner = if self.peek() == Some('(') {
                self.parentheses()?
            } else {
                self.test()?
            };
            return Ok(Expression::Not(Box::new(inner)));
        }
        if self.peek() == Some('(') {
            return self.parentheses();
        }
        let start = self.at();
        let left = self.operand()?;
        self.skip_space();
        let Some(operator) = self.operator() else {
            return as_test(left, start);
        };
        let left = as_comparable(left, start)?;
        self.skip_space();
        let right = self.comparable()?;
        Ok(Expression::Compare {
            left,
            operator,
            right,
        })
    }

    fn parentheses(&mut self) -> Result<Expression, PathError> {
        self.eat("(");
        self.enter()?;
        self.skip_space();
        let inner = self.expression()?;
        self.skip_space();
        if !self.eat(")") {
            return Err(self.invalid("`)` expected"));
        }
        self.leave();
        Ok(inner)
    }

    fn test(&mut self) -> Result<Expression, PathError> {
        let start = self.at();
        let operand = self.operand()?;
        as_test(operand, start)
    }

    fn operator(&mut self) -> Option<Operator> {
        const OPERATORS: [(&str, Operator); 6] = [
            ("==", Operator::Equal),
            ("!=", Operator::NotEqual),
            ("<=", Operator::LessOrEqual),
            (">=", Operator::GreaterOrEqual),
            ("<", Operator::Less),
            (">", Operator::Greater),
        ];
        OPERATORS
            .iter()
            .find(|(token, _)| self.eat(token))
            .map(|(_, operator)| *operator)
    }

    fn comparable(&mut self) -> Result<Comparable, PathError> {
        let start = self.at();
        let operand = self.operand()?;
        as_comparable(operand, start)
    }

    fn operand(&mut self) -> Result<Operand, PathError> {
        match self.peek() {
            Some('@' | '$') => self.query().map(Operand::Query),
            Some('\'' | '"') => self.string().map(Comparable::String).map(Operand::Value),
            Some('-' | '0'..='9') => self.number().map(Comparable::Number).map(Operand::Value),
            Some('a'..='z') => self.word_or_function(),
            _ => Err(self.invalid("a query, a literal or a function expected")),
        }
    }

    /// RFC 9535 §2.3.5.1: `(int / "-0") [frac] [exp]`.
    fn number(&mut self) -> Result<Number, PathError> {
        let rest = self.rest();
        let unsigned = rest.strip_prefix('-').unwrap_or(rest);
        let int = digits(unsigned);
        let mut length = rest.len() - unsigned.len() + int;
        let fraction = rest.get(length..).unwrap_or("");
        if fraction.starts_with('.') {
            let count = digits(fraction.get(1..).unwrap_or(""));
            if count == 0 {
                return Err(self.invalid("a fraction needs a digit"));
            }
            length += 1 + count;
        }
        let exponent = rest.get(length..).unwrap_or("");
        if exponent.starts_with(['e', 'E']) {
            let after = exponent.get(1..).unwrap_or("");
            let unsigned = after.strip_prefix(['+', '-']).unwrap_or(after);
            let count = digits(unsigned);
            if count == 0 {
                return Err(self.invalid("an exponent needs a digit"));
            }
            length += 1 + after.len() - unsigned.len() + count;
        }
        if int == 0 || (unsigned.starts_with('0') && int > 1) {
            return Err(self.invalid("a number has no leading zero"));
        }
        let number = Number::parse(rest.get(..length).unwrap_or(""));
        self.advance(length);
        Ok(number)
    }

    fn word_or_function(&mut self) -> Result<Operand, PathError> {
        let rest = self.rest();
        let in_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        let length = rest.find(|c| !in_name(c)).unwrap_or(rest.len());
        let name = rest.get(..length).unwrap_or("");
        let literal = match name {
            "null" => Some(Comparable::Null),
            "true" => Some(Comparable::Bool(true)),
            "false" => Some(Comparable::Bool(false)),
            "length" | "count" | "value" | "match" | "search" => None,
            _ => {
                return Err(self.invalid(&format!(
                    "no such function: `{name}` (there are length, count, value, match, search)"
                )));
            }
        };
        self.advance(length);
        if let Some(literal) = literal {
            return Ok(Operand::Value(literal));
        }
        if !self.eat("(") {
            return Err(self.invalid("`(` must follow a function's name"));
        }
        self.enter()?;
        self.skip_space();
        let call = self.arguments(name)?;
        self.skip_space();
        if !self.eat(")") {
            return Err(self.invalid("`)` expected: too many arguments?"));
        }
        self.leave();
        Ok(call)
    }

    fn arguments(&mut self, function: &str) -> Result<Operand, PathError> {
        match function {
            "count" => self.nodes().map(Comparable::Count).map(Operand::Value),
            "value" => self.nodes().map(Comparable::Value).map(Operand::Value),
            "length" => {
                let value = self.comparable()?;
                Ok(Operand::Value(Comparable::Length(Box::new(value))))
            }
            _ => {
                let value = self.comparable()?;
                self.skip_space();
                if !self.eat(",") {
                    return Err(self.invalid("`match` and `search` take a value and a pattern"));
                }
                self.skip_space();
                if !matches!(self.peek(), Some('\'' | '"')) {
                    return Err(self.bad_pattern("a pattern must be a literal string".into()));
                }
                let text = self.string()?;
                let pattern = self.pattern(&text, function == "match")?;
                Ok(Operand::Test(Expression::Matches { value, pattern }))
            }
        }
    }

    /// An argument that is a query of any number of values.
    fn nodes(&mut self) -> Result<Query, PathError> {
        match self.peek() {
            Some('@' | '$') => self.query(),
            _ => Err(self.invalid("`count` and `value` take a query")),
        }
    }

    /// RFC 9485 with the wider syntax of the regex crate; `.` is neither CR nor LF.
    fn pattern(&self, text: &str, whole: bool) -> Result<regex::Regex, PathError> {
        let made = pattern_size::made_bytes().wrapping_sub(self.made_before);
        if made > PATTERNS_COMPILED_BYTES_MAX {
            return Err(self.too_complex(format!(
                "its patterns compile to more than {PATTERNS_COMPILED_BYTES_MAX} bytes; use ASCII \
                 classes such as [0-9A-Za-z_] instead of \\w"
            )));
        }
        let compile = |text: &str| {
            let mut builder = RegexBuilder::new(text);
            builder
                .crlf(true)
                .dfa_size_limit(PATTERN_COMPILED_BYTES_MAX);
            pattern_size::compile(&mut builder, PATTERN_COMPILED_BYTES_MAX)
        };
        // Alone first, so that a stray `)` cannot end the group that is put around it.
        compile(text)
            .and_then(|alone| match whole {
                true => compile(&format!(r"\A(?:{text})\z")),
                false => Ok(alone),
            })
            .map(|(regex, _)| regex)
            .map_err(|fault| self.bad_pattern(format!("the pattern does not compile: {fault}")))
    }
}

fn as_test(operand: Operand, start: usize) -> Result<Expression, PathError> {
    match operand {
        Operand::Query(query) => Ok(Expression::Exists(query)),
        Operand::Test(test) => Ok(test),
        Operand::Value(_) => Err(invalid_at(start, "a value is not a test: compare it")),
    }
}

fn as_comparable(operand: Operand, start: usize) -> Result<Comparable, PathError> {
    match operand {
        Operand::Value(value) => Ok(value),
        Operand::Query(query) if query.is_singular() => Ok(Comparable::Query(query)),
        Operand::Query(_) => Err(invalid_at(
            start,
            "only a query of one value can be compared",
        )),
        Operand::Test(_) => Err(invalid_at(start, "`match` and `search` cannot be compared")),
    }
}

fn digits(text: &str) -> usize {
    text.find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len())
}

fn one_or(mut parts: Vec<Expression>, many: fn(Vec<Expression>) -> Expression) -> Expression {
    match (parts.pop(), parts.is_empty()) {
        (Some(only), true) => only,
        (last, _) => {
            parts.extend(last);
            many(parts)
        }
    }
}
