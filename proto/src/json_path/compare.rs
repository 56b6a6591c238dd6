//! Comparison of values: RFC 9535 §2.3.5.2.2.
//!
//! Integers of up to 38 digits are compared exactly, all other numbers as IEEE doubles (the range
//! that RFC 9535 and I-JSON promise); what overflows a double compares as infinite.

use std::borrow::Cow;
use std::cmp::Ordering;

use super::eval::Walk;
use super::{Operator, SelectError};
use crate::json_text::{Kind, NodeId};

/// A number as far as comparison needs it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Number {
    Integer(i128),
    Double(f64),
}

impl Number {
    /// From text that the JSON grammar allows.
    pub(super) fn parse(text: &str) -> Number {
        match text.parse() {
            Ok(integer) => Number::Integer(integer),
            Err(_) => Number::Double(text.parse().unwrap_or(f64::NAN)),
        }
    }

    fn order(self, other: Number) -> Option<Ordering> {
        match (self, other) {
            (Number::Integer(a), Number::Integer(b)) => Some(a.cmp(&b)),
            (a, b) => a.double().partial_cmp(&b.double()),
        }
    }

    fn double(self) -> f64 {
        match self {
            Number::Integer(integer) => integer as f64,
            Number::Double(double) => double,
        }
    }
}

/// One side of a comparison, evaluated.
#[derive(Clone, Debug)]
pub(super) enum Operand<'x> {
    /// A query that selected nothing.
    Nothing,
    Null,
    Bool(bool),
    Number(Number),
    String(Cow<'x, str>),
    /// An array or object of the document.
    Container(NodeId),
}

impl Walk<'_, '_, '_> {
    pub(super) fn compare(
        &mut self,
        left: &Operand<'_>,
        operator: Operator,
        right: &Operand<'_>,
    ) -> Result<bool, SelectError> {
        let order = order(left, right);
        Ok(match operator {
            Operator::Equal => self.equal(left, right)?,
            Operator::NotEqual => !self.equal(left, right)?,
            Operator::Less => order == Some(Ordering::Less),
            Operator::Greater => order == Some(Ordering::Greater),
            Operator::LessOrEqual => order == Some(Ordering::Less) || self.equal(left, right)?,
            Operator::GreaterOrEqual => {
                order == Some(Ordering::Greater) || self.equal(left, right)?
            }
        })
    }

    fn equal(&mut self, left: &Operand<'_>, right: &Operand<'_>) -> Result<bool, SelectError> {
        Ok(match (left, right) {
            (Operand::Nothing, Operand::Nothing) | (Operand::Null, Operand::Null) => true,
            (Operand::Bool(a), Operand::Bool(b)) => a == b,
            (Operand::Container(a), Operand::Container(b)) => self.same_content(*a, *b)?,
            _ => order(left, right) == Some(Ordering::Equal),
        })
    }

    /// Recurses once per level of the document, of which there are at most
    /// [`DEPTH_MAX`](crate::json_text::DEPTH_MAX).
    fn same_content(&mut self, a: NodeId, b: NodeId) -> Result<bool, SelectError> {
        let document = self.document();
        let kind = document.kind(a);
        if kind != document.kind(b) {
            return Ok(false);
        }
        if !kind.is_container() {
            self.step()?;
            let (left, right) = (self.operand(a)?, self.operand(b)?);
            return self.equal(&left, &right);
        }
        let mut others = document.children(b);
        for child in document.children(a) {
            self.step()?;
            let Some(next) = others.next() else {
                return Ok(false);
            };
            let other = match kind {
                Kind::Object => {
                    let name = document.name(child);
                    self.bytes(name.len())?;
                    self.child_named(b, &name)?
                }
                _ => Some(next),
            };
            match other {
                Some(other) if self.same_content(child, other)? => {}
                _ => return Ok(false),
            }
        }
        Ok(others.next().is_none())
    }
}

/// Only numbers and strings have an order; strings by Unicode scalar values, which is the order
/// of their UTF-8 bytes.
fn order(left: &Operand<'_>, right: &Operand<'_>) -> Option<Ordering> {
    match (left, right) {
        (Operand::Number(a), Operand::Number(b)) => a.order(*b),
        (Operand::String(a), Operand::String(b)) => Some(a.as_ref().cmp(b.as_ref())),
        _ => None,
    }
}
