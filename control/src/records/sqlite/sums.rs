//! Requests on their way into an answer: counted by value and span of time, within bounds. Pure.
//!
//! A value that is told apart is counted under its name in every span; what is one too many is
//! counted among the rest. Where there are too many cells, the groups that are the largest until
//! then are the ones that the answer shows.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use crate::records::aggregate::{Aggregates, CELLS_MAX, Question};
use crate::records::tally::{Dimension, Tally};

/// The tallies of one group by the start of a span.
type Spans = BTreeMap<i64, Tally>;

/// The groups of an answer and all other requests.
pub(super) struct Sums<'a> {
    question: &'a Question,
    values_max: usize,
    groups: BTreeMap<String, Spans>,
    rest: Spans,
    /// Groups times spans.
    cells: usize,
    /// Whether no further group is told apart.
    closed: bool,
}

impl<'a> Sums<'a> {
    /// Nothing yet; of so many values at most that come first.
    pub(super) fn new(question: &'a Question, values_max: usize) -> Self {
        Self {
            question,
            values_max,
            groups: BTreeMap::new(),
            rest: Spans::new(),
            cells: 0,
            closed: false,
        }
    }

    /// Nothing yet; of these values.
    pub(super) fn of(question: &'a Question, values: Vec<String>) -> Self {
        let groups = values.into_iter().map(|value| (value, Spans::new()));
        Self {
            groups: groups.collect(),
            closed: true,
            ..Self::new(question, 0)
        }
    }

    /// The tally in which a request with this value counts that began in this second.
    pub(super) fn tally(&mut self, value: String, at_s: i64) -> &mut Tally {
        if self.cells >= CELLS_MAX && !self.closed {
            self.narrow();
        }
        let value = match self.question.by {
            Dimension::All => String::new(),
            _ => value,
        };
        let start_s = self.question.bucket(at_s);
        let is_full = self.closed || self.groups.len() >= self.values_max;
        if is_full && !self.groups.contains_key(&value) {
            return self.rest.entry(start_s).or_default();
        }
        match self.groups.entry(value).or_default().entry(start_s) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => {
                self.cells += 1;
                place.insert(Tally::default())
            }
        }
    }

    /// Whether it was not all told apart because there was too much.
    pub(super) fn is_narrowed(&self) -> bool {
        self.closed
    }

    /// The largest values, so many at most.
    pub(super) fn largest(&self, most: usize) -> Vec<String> {
        let mut sorted: Vec<_> = self.groups.iter().collect();
        sorted.sort_by_cached_key(|(value, spans)| {
            let mut total = Tally::default();
            spans.values().for_each(|tally| total.merge(tally));
            (Reverse(self.question.order.key(&total)), (*value).clone())
        });
        let largest = sorted.into_iter().take(most);
        largest.map(|(value, _)| value.clone()).collect()
    }

    /// Tells only the largest groups apart from now on.
    fn narrow(&mut self) {
        let shown = self.largest(self.question.shown());
        let mut others = std::mem::take(&mut self.groups);
        self.groups = shown
            .into_iter()
            .filter_map(|value| others.remove_entry(&value))
            .collect();
        for (start_s, tally) in others.into_values().flatten() {
            self.rest.entry(start_s).or_default().merge(&tally);
        }
        self.cells = self.groups.values().map(BTreeMap::len).sum();
        self.closed = true;
    }

    /// The answer.
    pub(super) fn answer(self, complete_from_s: i64) -> Aggregates {
        let cells = self.groups.into_iter().flat_map(|(value, spans)| {
            let spans = spans.into_iter();
            spans.map(move |(start_s, tally)| ((value.clone(), start_s), tally))
        });
        let rest = self.rest.into_iter();
        let rest = rest.map(|(start_s, tally)| ((String::new(), start_s), tally));
        self.question
            .arrange(cells.collect(), rest.collect(), complete_from_s)
    }
}

#[cfg(test)]
mod tests {
    use proto::id::OrgId;

    use super::*;
    use crate::records::RecordFilter;
    use crate::records::aggregate::Order;

    fn question(bucket_s: Option<i64>) -> Question {
        Question {
            org: OrgId::from_bits(1),
            by: Dimension::Path,
            from_s: 0,
            to_s: 1_000,
            bucket_s,
            filter: RecordFilter::default(),
            order: Order::Count,
            limit: 2,
        }
    }

    #[test]
    fn beyond_the_bound_the_largest_are_told_apart_and_nothing_is_lost() {
        let question = question(Some(1));
        let mut sums = Sums::new(&question, usize::MAX);
        let mut counted = 0;
        let mut count = |sums: &mut Sums<'_>, value: String, at_s| {
            sums.tally(value, at_s).count += 1;
            counted += 1;
        };
        for at_s in 0..1_000 {
            for value in 0..150 {
                count(&mut sums, format!("/{value:03}"), at_s);
            }
            count(&mut sums, "/007".into(), at_s);
        }
        assert!(sums.is_narrowed() && sums.cells <= CELLS_MAX);
        count(&mut sums, "/new".into(), 0);
        let found = sums.answer(0);
        let shown = found.groups.iter();
        let shown: Vec<_> = shown
            .map(|group| (group.value.as_str(), group.total.count))
            .collect();
        assert_eq!(shown, [("/007", 2_000), ("/000", 1_000)]);
        let rest = found.rest.unwrap();
        assert_eq!(rest.total.count, counted - 3_000);
        assert_eq!(rest.buckets.len(), 1_000);
    }

    #[test]
    fn what_is_one_value_too_many_is_among_the_rest() {
        let question = question(None);
        let mut sums = Sums::new(&question, 2);
        for value in ["/a", "/b", "/c", "/b", "/c"] {
            sums.tally(value.into(), 5).count += 1;
        }
        assert!(!sums.is_narrowed());
        let found = sums.answer(0);
        assert_eq!(found.groups[0].value, "/b");
        assert_eq!(found.groups[1].value, "/a");
        assert_eq!(found.rest.unwrap().total.count, 2);
        let mut of = Sums::of(&question, vec!["/c".into()]);
        for value in ["/a", "/c"] {
            of.tally(value.into(), 5).count += 1;
        }
        let found = of.answer(0);
        assert_eq!(
            (found.groups.len(), found.groups[0].value.as_str()),
            (1, "/c")
        );
        assert_eq!(found.rest.unwrap().total.count, 1);
    }
}
