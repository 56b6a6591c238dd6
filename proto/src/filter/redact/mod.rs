//! `redact`: personal data and secrets, found in strings by what they look like, make way for a
//! mark such as `[email]`.
//!
//! **A tripwire, not a wall.** What is written in an unusual way, cut in two, encoded or spelled
//! out is not found. Where it is known which fields hold what, `destroy` and `mask` are certain.
//!
//! **What is told apart.** Check digits, ranges and surroundings decide, so that numbers of
//! orders, times, versions, addresses and identifiers stay; `corpus.txt` holds what must be found
//! and what must not.
//!
//! **Bounded.** One pass of a [`RegexSet`] says which detectors have anything to look at; nearly
//! no string has. Detectors are linear in the string's length. An organisation's own patterns are
//! linear for one match, so every further match pays for the rest of the string from the budget
//! of the body.

mod card;
mod checksum;
mod email;
mod iban;
mod national;
mod phone;
mod surroundings;
mod token;

#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::LazyLock;

use regex::RegexSet;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::own_pattern::Own;
use crate::json_path::{SelectError, Work};

/// Something that is known how to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Detector {
    /// Keys and tokens: JSON Web Tokens, keys with a known prefix, private keys in PEM, bearer
    /// tokens, passwords in URLs.
    Token,
    /// E-mail addresses.
    Email,
    /// International bank account numbers, by country, length and check digits.
    Iban,
    /// Payment cards, by the issuer's range, length and check digit.
    Card,
    /// Numbers of persons in BE, BR, CA, CH, CN, DE, ES, FI, FR, GB, IN, IT, NO, SE, US.
    NationalId,
    /// Telephone numbers with a `+`, of North America, or in groups behind a `0`.
    Phone,
}

impl Detector {
    /// All, those first whose word counts where two find the same.
    pub const ALL: [Detector; 6] = [
        Detector::Token,
        Detector::Email,
        Detector::Iban,
        Detector::Card,
        Detector::NationalId,
        Detector::Phone,
    ];

    /// The name, as in JSON and in marks.
    pub fn as_str(self) -> &'static str {
        match self {
            Detector::Token => "token",
            Detector::Email => "email",
            Detector::Iban => "iban",
            Detector::Card => "card",
            Detector::NationalId => "national_id",
            Detector::Phone => "phone",
        }
    }

    /// A pattern without which there is nothing to find.
    fn trigger(self) -> String {
        match self {
            Detector::Token => token::beginnings(),
            Detector::Email => "@|%40".to_owned(),
            Detector::Iban => "[A-Za-z]{2}[0-9]{2}".to_owned(),
            Detector::Card => r"[0-9](?:[ \-\x{a0}\x{202f}\x{2011}\x{2013}]?[0-9]){13}".to_owned(),
            Detector::NationalId => r"[0-9]{2}(?:[.+\- ]?[0-9A-Za-z]){5}".to_owned(),
            Detector::Phone => {
                r"[+0-9(](?:[ .()/\-\x{a0}\x{202f}\x{2011}\x{2013}]{0,3}[0-9]){8}".to_owned()
            }
        }
    }

    /// Tells `found` where in a text it finds something.
    pub fn find(self, text: &str, found: &mut dyn FnMut(Range<usize>)) {
        match self {
            Detector::Token => token::find(text, found),
            Detector::Email => email::find(text, found),
            Detector::Iban => iban::find(text, found),
            Detector::Card => card::find(text, found),
            Detector::NationalId => national::find(text, found),
            Detector::Phone => phone::find(text, found),
        }
    }
}

/// How often each detector found something; the last is for own patterns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Redactions([u32; Redactions::KINDS]);

impl Redactions {
    /// How many counts there are.
    pub const KINDS: usize = Detector::ALL.len() + 1;

    /// Whether nothing was found.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|count| *count == 0)
    }

    /// What was looked for, in the order of the counts.
    pub fn names() -> impl Iterator<Item = &'static str> {
        Detector::ALL
            .iter()
            .map(|known| known.as_str())
            .chain(["own_pattern"])
    }

    /// The counts.
    pub fn counts(&self) -> impl Iterator<Item = u32> {
        self.0.into_iter()
    }

    /// Adds those of another body.
    pub fn add(&mut self, other: &Redactions) {
        for (count, more) in self.0.iter_mut().zip(other.0) {
            *count = count.saturating_add(more);
        }
    }

    fn one(&mut self, what: usize) {
        if let Some(count) = self.0.get_mut(what.min(Detector::ALL.len())) {
            *count = count.saturating_add(1);
        }
    }
}

/// What a `redact` looks for, compiled.
#[derive(Clone, Debug)]
pub(super) struct Redactor {
    /// Places in [`Detector::ALL`].
    detectors: Vec<usize>,
    own: Option<Own>,
}

/// A find: where, and what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Find<'r> {
    range: Range<usize>,
    /// A place among the detectors and own patterns.
    what: usize,
    name: &'r str,
}

static TRIGGERS: LazyLock<RegexSet> = LazyLock::new(|| {
    let triggers = Detector::ALL.map(Detector::trigger);
    RegexSet::new(triggers).expect("constant patterns")
});

impl Redactor {
    pub(super) fn new(detectors: &[Detector], own: Option<Own>) -> Self {
        let mut detectors: Vec<usize> = detectors.iter().map(|known| *known as usize).collect();
        detectors.sort_unstable();
        detectors.dedup();
        Self { detectors, own }
    }

    /// Adds what there is in a text to `finds`.
    ///
    /// # Errors
    /// The budget of the body is used up.
    pub(super) fn find<'r>(
        &'r self,
        text: &str,
        work: &mut Work,
        finds: &mut Vec<Find<'r>>,
    ) -> Result<(), SelectError> {
        work.steps(1)?;
        work.read(text.len())?;
        if !self.detectors.is_empty() && TRIGGERS.is_match(text) {
            let triggered = TRIGGERS.matches(text);
            let detectors = self.detectors.iter().copied();
            for what in detectors.filter(|what| triggered.matched(*what)) {
                work.search(text.len())?;
                if let Some(detector) = Detector::ALL.get(what) {
                    let name = detector.as_str();
                    detector.find(text, &mut |range| finds.push(Find { range, what, name }));
                }
            }
        }
        let Some(own) = &self.own else { return Ok(()) };
        own.find(text, work, &mut |range, index| {
            let (what, name) = (Detector::ALL.len() + index, own.name(index));
            finds.push(Find { range, what, name });
        })
    }
}

/// A text with marks in the place of what was found in it.
pub(super) fn marked(text: &str, finds: Vec<Find<'_>>, counts: &mut Redactions) -> String {
    let mut out = String::with_capacity(text.len());
    let mut copied = 0;
    for find in apart(finds) {
        counts.one(find.what);
        out.push_str(text.get(copied..find.range.start).unwrap_or_default());
        out.push('[');
        out.push_str(find.name);
        out.push(']');
        copied = find.range.end;
    }
    out.push_str(text.get(copied..).unwrap_or_default());
    out
}

/// Joins finds that overlap, so that nothing of either stays: the longer of two that begin
/// together gives the name, then the first in order.
fn apart(mut finds: Vec<Find<'_>>) -> Vec<Find<'_>> {
    finds.sort_by(|one, other| {
        let start = one.range.start.cmp(&other.range.start);
        start
            .then(other.range.end.cmp(&one.range.end))
            .then(one.what.cmp(&other.what))
            .then(one.name.cmp(other.name))
    });
    let mut joined: Vec<Find<'_>> = Vec::with_capacity(finds.len());
    for find in finds {
        match joined.last_mut() {
            Some(last) if find.range.start < last.range.end => {
                last.range.end = last.range.end.max(find.range.end);
            }
            _ => joined.push(find),
        }
    }
    joined
}
