//! The reader: one pass over the text, one row per value, an explicit stack of open containers.

use std::borrow::Cow;
use std::collections::HashSet;

use super::unescape::unescape;
use super::{DEPTH_MAX, JsonError, Kind, NODES_MAX, Node, without_quotes};

/// Objects up to this many members are checked for duplicate names by comparing pairs; a set
/// costs more than that.
const PAIRWISE_MEMBERS_MAX: usize = 12;

/// Reads one document into its table.
pub(super) fn scan(text: &str) -> Result<Vec<Node>, JsonError> {
    if u32::try_from(text.len()).is_err() {
        return Err(JsonError::NotJson {
            offset: text.len(),
            reason: "longer than 4 GiB",
        });
    }
    let mut scanner = Scanner {
        text,
        at: 0,
        nodes: Vec::new(),
        open: Vec::new(),
    };
    scanner.document()?;
    Ok(scanner.nodes)
}

struct Scanner<'a> {
    text: &'a str,
    at: usize,
    nodes: Vec<Node>,
    /// Rows of the containers that are not closed yet; at most [`DEPTH_MAX`].
    open: Vec<u32>,
}

/// What follows a value.
enum Next {
    Value { key: (u32, u32) },
    End,
}

impl Scanner<'_> {
    fn document(&mut self) -> Result<(), JsonError> {
        let mut key = (0, 0);
        self.skip_space();
        loop {
            let opened = self.value(key)?;
            let next = if opened {
                self.first_of_container()?
            } else {
                self.after_value()?
            };
            match next {
                Next::Value { key: name } => key = name,
                Next::End => break,
            }
        }
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.fault("something follows the value")),
        }
    }

    /// Reads a scalar, or the opening bracket of a container (then true).
    fn value(&mut self, key: (u32, u32)) -> Result<bool, JsonError> {
        let start = self.at;
        let kind = match self.peek() {
            Some(b'{') => Kind::Object,
            Some(b'[') => Kind::Array,
            Some(b'"') => {
                self.string()?;
                Kind::String
            }
            Some(b'-' | b'0'..=b'9') => {
                self.number()?;
                Kind::Number
            }
            Some(b't') => self.word("true", Kind::Bool)?,
            Some(b'f') => self.word("false", Kind::Bool)?,
            Some(b'n') => self.word("null", Kind::Null)?,
            Some(_) => return Err(self.fault("no value begins like this")),
            None => return Err(self.fault("a value is missing")),
        };
        if kind.is_container() {
            if self.open.len() >= DEPTH_MAX {
                return Err(JsonError::TooDeep { offset: start });
            }
            self.at += 1;
        }
        if self.nodes.len() >= NODES_MAX {
            return Err(JsonError::TooManyNodes);
        }
        let row = self.nodes.len() as u32;
        self.nodes.push(Node {
            key,
            span: (start as u32, self.at as u32),
            parent: self.open.last().copied().unwrap_or(0),
            after: row + 1,
            kind,
            removed: false,
            thinned: false,
            replaced: false,
        });
        if kind.is_container() {
            self.open.push(row);
        }
        Ok(kind.is_container())
    }

    /// After an opening bracket: the first child, or the closing bracket.
    fn first_of_container(&mut self) -> Result<Next, JsonError> {
        self.skip_space();
        match (self.open_kind(), self.peek()) {
            (Some(Kind::Object), Some(b'}')) | (Some(Kind::Array), Some(b']')) => {
                self.close()?;
                self.after_value()
            }
            (Some(Kind::Object), _) => self.member_name(),
            _ => Ok(Next::Value { key: (0, 0) }),
        }
    }

    /// After a complete value: closing brackets, then the next sibling or the end of the text.
    fn after_value(&mut self) -> Result<Next, JsonError> {
        loop {
            self.skip_space();
            let Some(kind) = self.open_kind() else {
                return Ok(Next::End);
            };
            match (self.peek(), kind) {
                (Some(b','), _) => {
                    self.at += 1;
                    self.skip_space();
                    return match kind {
                        Kind::Object => self.member_name(),
                        _ => Ok(Next::Value { key: (0, 0) }),
                    };
                }
                (Some(b'}'), Kind::Object) | (Some(b']'), Kind::Array) => self.close()?,
                (_, Kind::Object) => return Err(self.fault("`,` or `}` expected")),
                _ => return Err(self.fault("`,` or `]` expected")),
            }
        }
    }

    /// A member's name and its colon.
    fn member_name(&mut self) -> Result<Next, JsonError> {
        let start = self.at;
        if self.peek() != Some(b'"') {
            return Err(self.fault("a member's name expected"));
        }
        self.string()?;
        let key = (start as u32, self.at as u32);
        self.skip_space();
        if self.peek() != Some(b':') {
            return Err(self.fault("`:` expected"));
        }
        self.at += 1;
        self.skip_space();
        Ok(Next::Value { key })
    }

    fn open_kind(&self) -> Option<Kind> {
        self.open
            .last()
            .and_then(|row| self.nodes.get(*row as usize))
            .map(|node| node.kind)
    }

    /// At the closing bracket of the innermost open container.
    fn close(&mut self) -> Result<(), JsonError> {
        self.at += 1;
        let after = self.nodes.len() as u32;
        let Some(row) = self.open.pop() else {
            return Ok(());
        };
        let Some(node) = self.nodes.get_mut(row as usize) else {
            return Ok(());
        };
        node.after = after;
        node.span.1 = self.at as u32;
        let offset = node.span.0 as usize;
        if node.kind == Kind::Object {
            self.check_names(row, after, offset)
        } else {
            Ok(())
        }
    }

    /// No two members of one name, and no name that parsers read differently.
    fn check_names(&self, row: u32, after: u32, offset: usize) -> Result<(), JsonError> {
        let mut names: Vec<Cow<'_, str>> = Vec::new();
        let mut at = row + 1;
        while at < after {
            let Some(node) = self.nodes.get(at as usize) else {
                break;
            };
            let quoted = self
                .text
                .get(node.key.0 as usize..node.key.1 as usize)
                .unwrap_or("");
            let name = unescape(without_quotes(quoted));
            if name.lone_surrogate {
                let offset = node.key.0 as usize;
                return Err(JsonError::NotJson {
                    offset,
                    reason: "lone surrogate in a name",
                });
            }
            names.push(name.text);
            at = node.after;
        }
        let unique = if names.len() <= PAIRWISE_MEMBERS_MAX {
            let mut rest = names.as_slice();
            loop {
                match rest.split_first() {
                    Some((first, others)) if others.contains(first) => break false,
                    Some((_, others)) => rest = others,
                    None => break true,
                }
            }
        } else {
            let mut seen = HashSet::with_capacity(names.len());
            names.iter().all(|name| seen.insert(name.as_ref()))
        };
        if unique {
            Ok(())
        } else {
            Err(JsonError::DuplicateKey { offset })
        }
    }

    /// From an opening quote to behind the closing one.
    fn string(&mut self) -> Result<(), JsonError> {
        self.at += 1;
        loop {
            let rest = self.text.as_bytes().get(self.at..).unwrap_or_default();
            let special = |byte: &u8| matches!(byte, b'"' | b'\\' | 0..0x20);
            let Some(run) = rest.iter().position(special) else {
                self.at = self.text.len();
                return Err(self.fault("a string is not closed"));
            };
            self.at += run;
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(());
                }
                Some(b'\\') => self.escape()?,
                _ => return Err(self.fault("a control character in a string")),
            }
        }
    }

    fn escape(&mut self) -> Result<(), JsonError> {
        let rest = self.text.as_bytes().get(self.at + 1..).unwrap_or_default();
        let length = match rest {
            [b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't', ..] => 2,
            [b'u', a, b, c, d, ..] if [a, b, c, d].iter().all(|h| h.is_ascii_hexdigit()) => 6,
            _ => return Err(self.fault("no such escape")),
        };
        self.at += length;
        Ok(())
    }

    /// RFC 8259 §6: `-`, an integer without leading zeros, a fraction, an exponent.
    fn number(&mut self) -> Result<(), JsonError> {
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), JsonError> {
        let start = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        if self.at == start {
            Err(self.fault("a digit expected"))
        } else {
            Ok(())
        }
    }

    fn word(&mut self, word: &str, kind: Kind) -> Result<Kind, JsonError> {
        let rest = self.text.as_bytes().get(self.at..).unwrap_or_default();
        if !rest.starts_with(word.as_bytes()) {
            return Err(self.fault("no value begins like this"));
        }
        self.at += word.len();
        Ok(kind)
    }

    fn skip_space(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.at += 1;
        }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn fault(&self, reason: &'static str) -> JsonError {
        JsonError::NotJson {
            offset: self.at,
            reason,
        }
    }
}
