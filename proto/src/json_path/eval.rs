//! Evaluation: segments over sets of values, each segment a pass in document order.

use super::compare::{Number, Operand};
use super::{Comparable, Expression, Query, Segment, SelectError, Selector, VISITS_MAX, Work};
use crate::json_text::{JsonText, Kind, NodeId};

/// One evaluation of one path. `'x` is the document's borrow, `'d` its text's.
pub(super) struct Walk<'x, 'd, 'w> {
    document: &'x JsonText<'d>,
    work: &'w mut Work,
    visits_left: u32,
}

impl<'x, 'd, 'w> Walk<'x, 'd, 'w> {
    pub(super) fn new(document: &'x JsonText<'d>, work: &'w mut Work) -> Walk<'x, 'd, 'w> {
        Walk {
            document,
            work,
            visits_left: VISITS_MAX,
        }
    }

    /// What a query selects from one value: document order, each value once.
    pub(super) fn segments(
        &mut self,
        from: NodeId,
        segments: &[Segment],
    ) -> Result<Vec<NodeId>, SelectError> {
        let mut found = vec![from];
        for segment in segments {
            let mut next = Vec::new();
            for id in found {
                if segment.descendant {
                    for descendant in self.document.subtree(id) {
                        self.visit()?;
                        self.children(descendant, &segment.selectors, &mut next)?;
                    }
                } else {
                    self.children(id, &segment.selectors, &mut next)?;
                }
            }
            next.sort_unstable();
            next.dedup();
            found = next;
        }
        Ok(found)
    }

    fn children(
        &mut self,
        id: NodeId,
        selectors: &[Selector],
        out: &mut Vec<NodeId>,
    ) -> Result<(), SelectError> {
        let kind = self.document.kind(id);
        if !kind.is_container() {
            return Ok(());
        }
        for selector in selectors {
            match selector {
                Selector::Name(_) | Selector::Index(_) => {
                    if let Some(child) = self.child(id, selector)? {
                        self.visit()?;
                        out.push(child);
                    }
                }
                Selector::Wildcard => {
                    for child in self.document.children(id) {
                        self.visit()?;
                        out.push(child);
                    }
                }
                Selector::Slice { start, end, step } => {
                    self.slice(id, *start, *end, *step, out)?;
                }
                Selector::Filter(expression) => {
                    for child in self.document.children(id) {
                        self.visit()?;
                        if self.test(expression, child)? {
                            out.push(child);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// The one child that a name or an index selects.
    fn child(&mut self, id: NodeId, selector: &Selector) -> Result<Option<NodeId>, SelectError> {
        match (self.document.kind(id), selector) {
            (Kind::Object, Selector::Name(name)) => self.child_named(id, name),
            (Kind::Array, Selector::Index(index)) => self.child_at(id, *index),
            _ => Ok(None),
        }
    }

    pub(super) fn child_named(
        &mut self,
        id: NodeId,
        name: &str,
    ) -> Result<Option<NodeId>, SelectError> {
        for child in self.document.children(id) {
            self.step()?;
            if self.document.is_named(child, name) {
                return Ok(Some(child));
            }
        }
        Ok(None)
    }

    fn child_at(&mut self, id: NodeId, index: i64) -> Result<Option<NodeId>, SelectError> {
        let index = if index < 0 {
            index + self.count(id)?
        } else {
            index
        };
        for (position, child) in (0i64..).zip(self.document.children(id)) {
            self.step()?;
            if position == index {
                return Ok(Some(child));
            }
        }
        Ok(None)
    }

    /// RFC 9535 §2.3.4.2.2. A slice with a negative step selects the same set as its mirror image.
    fn slice(
        &mut self,
        id: NodeId,
        start: Option<i64>,
        end: Option<i64>,
        step: i64,
        out: &mut Vec<NodeId>,
    ) -> Result<(), SelectError> {
        if step == 0 || self.document.kind(id) != Kind::Array {
            return Ok(());
        }
        let length = self.count(id)?;
        let normalize = |index: i64| if index < 0 { length + index } else { index };
        // Selected: first, first ± |step|, … as long as within (low, high), both inclusive.
        let (first, low, high) = if step > 0 {
            let low = start.map_or(0, normalize).clamp(0, length);
            (low, low, end.map_or(length, normalize).clamp(0, length) - 1)
        } else {
            let high = start.map_or(length - 1, normalize).clamp(-1, length - 1);
            (
                high,
                end.map_or(-1, normalize).clamp(-1, length - 1) + 1,
                high,
            )
        };
        for (position, child) in (0i64..).zip(self.document.children(id)) {
            self.step()?;
            if (low..=high).contains(&position) && (position - first) % step == 0 {
                self.visit()?;
                out.push(child);
            }
        }
        Ok(())
    }

    fn test(&mut self, expression: &Expression, current: NodeId) -> Result<bool, SelectError> {
        self.step()?;
        match expression {
            Expression::Any(parts) => {
                for part in parts {
                    if self.test(part, current)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            Expression::All(parts) => {
                for part in parts {
                    if !self.test(part, current)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            Expression::Not(inner) => Ok(!self.test(inner, current)?),
            Expression::Exists(query) if query.is_singular() => {
                Ok(self.singular(query, current)?.is_some())
            }
            Expression::Exists(query) => Ok(!self.query(query, current)?.is_empty()),
            Expression::Compare {
                left,
                operator,
                right,
            } => {
                let left = self.comparable(left, current)?;
                let right = self.comparable(right, current)?;
                self.compare(&left, *operator, &right)
            }
            Expression::Matches { value, pattern } => match self.comparable(value, current)? {
                Operand::String(text) => {
                    self.work.search(text.len())?;
                    Ok(pattern.is_match(&text))
                }
                _ => Ok(false),
            },
        }
    }

    fn comparable<'e>(
        &mut self,
        comparable: &'e Comparable,
        current: NodeId,
    ) -> Result<Operand<'e>, SelectError>
    where
        'x: 'e,
    {
        Ok(match comparable {
            Comparable::Null => Operand::Null,
            Comparable::Bool(value) => Operand::Bool(*value),
            Comparable::Number(number) => Operand::Number(*number),
            Comparable::String(text) => Operand::String(text.as_str().into()),
            Comparable::Query(query) => match self.singular(query, current)? {
                Some(id) => self.operand(id)?,
                None => Operand::Nothing,
            },
            Comparable::Value(query) => match self.query(query, current)?.as_slice() {
                [only] => self.operand(*only)?,
                _ => Operand::Nothing,
            },
            Comparable::Count(query) => integer(self.query(query, current)?.len()),
            Comparable::Length(inner) => match self.comparable(inner, current)? {
                Operand::String(text) => integer(text.chars().count()),
                Operand::Container(id) => {
                    Operand::Number(Number::Integer(i128::from(self.count(id)?)))
                }
                _ => Operand::Nothing,
            },
        })
    }

    /// A value of the document as one side of a comparison.
    pub(super) fn operand(&mut self, id: NodeId) -> Result<Operand<'x>, SelectError> {
        let kind = self.document.kind(id);
        if !kind.is_container() {
            self.bytes(self.document.raw(id).len())?;
        }
        Ok(match kind {
            Kind::Null => Operand::Null,
            Kind::Bool => Operand::Bool(self.document.raw(id) == "true"),
            Kind::Number => Operand::Number(Number::parse(self.document.raw(id))),
            Kind::String => Operand::String(self.document.string(id)),
            Kind::Array | Kind::Object => Operand::Container(id),
        })
    }

    fn query(&mut self, query: &Query, current: NodeId) -> Result<Vec<NodeId>, SelectError> {
        let from = if query.absolute {
            NodeId::ROOT
        } else {
            current
        };
        self.segments(from, &query.segments)
    }

    /// A singular query, without the vectors of the general one.
    fn singular(&mut self, query: &Query, current: NodeId) -> Result<Option<NodeId>, SelectError> {
        let mut id = if query.absolute {
            NodeId::ROOT
        } else {
            current
        };
        for segment in &query.segments {
            let Some(selector) = segment.selectors.first() else {
                return Ok(None);
            };
            match self.child(id, selector)? {
                Some(child) => id = child,
                None => return Ok(None),
            }
        }
        Ok(Some(id))
    }

    fn count(&mut self, id: NodeId) -> Result<i64, SelectError> {
        let mut count = 0;
        for _ in self.document.children(id) {
            self.step()?;
            count += 1;
        }
        Ok(count)
    }

    pub(super) fn document(&self) -> &'x JsonText<'d> {
        self.document
    }

    /// Pays for looking at one value.
    pub(super) fn step(&mut self) -> Result<(), SelectError> {
        self.steps(1)
    }

    /// Pays for reading text: a long string costs as much as many small values.
    pub(super) fn bytes(&mut self, count: usize) -> Result<(), SelectError> {
        self.work.read(count)
    }

    fn steps(&mut self, count: usize) -> Result<(), SelectError> {
        self.work.steps(count)
    }

    /// Pays for reaching one value.
    fn visit(&mut self) -> Result<(), SelectError> {
        self.visits_left = self
            .visits_left
            .checked_sub(1)
            .ok_or(SelectError::TooManyVisits)?;
        self.step()
    }
}

fn integer(count: usize) -> Operand<'static> {
    Operand::Number(Number::Integer(count as i128))
}
