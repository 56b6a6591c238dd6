//! Many rules that each ask for a header field or a query parameter: which of them can match.
//!
//! A rule with a part that names one field and wants it to be present matches only where a value
//! of that field fits. So the request's fields are looked up instead of the rules, and the value
//! patterns of one field are one [`RegexSet`].

use std::collections::HashMap;

use http::header::HeaderName;
use regex::{RegexSet, RegexSetBuilder};

use super::compile::CompiledRule;
use super::facts::Facts;
use super::parts::NameMatcher;
use super::pattern::Flags;
use super::set::{SET_CACHE_BYTES, SET_FROM, mark};
use super::{COMPILED_BYTES_MAX, NamedPart, Presence, Rule};
use crate::query;

/// The rules of a scope that a field decides first.
#[derive(Clone, Debug)]
pub(super) struct FieldSet {
    headers: HashMap<HeaderName, Field>,
    query: HashMap<Vec<u8>, Field>,
}

/// What one field lets match.
#[derive(Clone, Debug, Default)]
struct Field {
    /// Places of the rules to be tried wherever the field is there.
    by_name: Vec<usize>,
    by_value: Option<Values>,
}

/// Value patterns of a field, and the places of their rules.
#[derive(Clone, Debug)]
struct Values {
    set: RegexSet,
    places: Vec<usize>,
}

/// The rules of one field before they are a set: the place of each and its part.
type Members<'r> = Vec<(usize, &'r NamedPart)>;

impl FieldSet {
    /// Takes out of `unfiltered` the rules that a field decides first; `None` where they are few.
    pub(super) fn of(
        unfiltered: &mut Vec<usize>,
        compiled: &[CompiledRule],
        rules: &[Rule],
    ) -> Option<Self> {
        let mut headers: HashMap<HeaderName, Members<'_>> = HashMap::new();
        let mut queries: HashMap<Vec<u8>, Members<'_>> = HashMap::new();
        let mut rest = Vec::new();
        for &place in unfiltered.iter() {
            let (Some(rule), Some(parts)) = (compiled.get(place), rules.get(place)) else {
                continue;
            };
            let names = rule.headers.iter().map(|part| &part.name);
            if let Some((name, part)) = first(names.zip(&parts.headers)) {
                headers.entry(name.clone()).or_default().push((place, part));
                continue;
            }
            let names = rule.query.iter().map(|part| &part.name);
            match first(names.zip(&parts.query)) {
                Some((name, part)) => queries.entry(name.clone()).or_default().push((place, part)),
                None => rest.push(place),
            }
        }
        if unfiltered.len() - rest.len() < SET_FROM {
            return None;
        }
        *unfiltered = rest;
        // Those that become sets share the memory for automata.
        let members = headers.values().chain(queries.values());
        let sets = members.filter(|members| with_value(members).count() >= SET_FROM);
        let cache_bytes = SET_CACHE_BYTES / sets.count().max(1);
        Some(Self {
            headers: headers
                .into_iter()
                .map(|(name, members)| (name, Field::of(members, cache_bytes)))
                .collect(),
            query: queries
                .into_iter()
                .map(|(name, members)| (name, Field::of(members, cache_bytes)))
                .collect(),
        })
    }

    /// Marks the places of the rules that can match.
    pub(super) fn mark_found(&self, facts: &Facts<'_>, places: &mut [bool]) {
        if !self.headers.is_empty() {
            for (name, value) in facts.headers {
                if let Some(field) = self.headers.get(name) {
                    field.mark_found(value.as_bytes(), places);
                }
            }
        }
        if !self.query.is_empty() {
            for (name, value) in query::pairs(facts.query) {
                if let Some(field) = self.query.get(&*name) {
                    field.mark_found(&value, places);
                }
            }
        }
    }
}

/// Those with a pattern for the value.
fn with_value<'m>(members: &'m Members<'_>) -> impl Iterator<Item = &'m (usize, &'m NamedPart)> {
    members.iter().filter(|(_, part)| part.value.is_some())
}

impl Field {
    /// Of these rules, with so much memory for an automaton.
    fn of(members: Members<'_>, cache_bytes: usize) -> Self {
        let (with_value, mut by_name): (Members<'_>, Members<'_>) = members
            .into_iter()
            .partition(|(_, part)| part.value.is_some());
        // Each pattern and its flags were compiled alone, so neither can fail here.
        let inline = |(_, part): &(usize, &NamedPart)| {
            let flags = Flags::parse(&part.flags).unwrap_or_default();
            flags.inline(part.value.as_deref().unwrap_or_default())
        };
        let set = || {
            RegexSetBuilder::new(with_value.iter().map(inline))
                .size_limit(COMPILED_BYTES_MAX)
                .dfa_size_limit(cache_bytes)
                .build()
                .ok()
        };
        let place = |(place, _): &(usize, &NamedPart)| *place;
        let set = (with_value.len() >= SET_FROM).then(set).flatten();
        let by_value = set.map(|set| Values {
            set,
            places: with_value.iter().map(place).collect(),
        });
        if by_value.is_none() {
            by_name.extend(with_value);
        }
        Self {
            by_name: by_name.iter().map(place).collect(),
            by_value,
        }
    }

    fn mark_found(&self, value: &[u8], places: &mut [bool]) {
        self.by_name.iter().for_each(|place| mark(places, *place));
        if let Some(values) = &self.by_value {
            let found = values.set.matches(&String::from_utf8_lossy(value));
            let found = found.iter().filter_map(|number| values.places.get(number));
            found.for_each(|place| mark(places, *place));
        }
    }
}

/// The first part that wants one field to be present, one with a value before one without.
fn first<'c, 'r, E: 'c>(
    parts: impl Iterator<Item = (&'c NameMatcher<E>, &'r NamedPart)> + Clone,
) -> Option<(&'c E, &'r NamedPart)> {
    let exact = parts.filter_map(|(name, part)| match name {
        NameMatcher::Exact(name) if part.presence == Presence::Present => Some((name, part)),
        NameMatcher::Exact(_) | NameMatcher::Pattern(_) => None,
    });
    let with_value = exact.clone().find(|(_, part)| part.value.is_some());
    with_value.or_else(|| exact.clone().next())
}
