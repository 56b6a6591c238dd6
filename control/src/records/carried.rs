//! Counts on their way from one region to another: the tallies themselves with their sketches, so
//! that quantiles over regions are those of all requests. A mean of quantiles would be none.
//! Pure.

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use serde_json::{Value, json};

use super::aggregate::{Aggregates, Group, Groups, Question};
use super::tally::Tally;

/// Fewest and most groups that each region is asked for.
const GROUPS: (usize, usize) = (100, 1_000);
/// How many times more groups each is asked for than are shown.
const WIDER: usize = 10;
/// Most cells of groups and spans that each region is asked for.
const CELLS_MAX: usize = 40_000;

/// What one region has counted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counts {
    groups: Groups,
    rest: Groups,
    complete_from_s: i64,
}

impl Counts {
    /// From a region's answer to a question.
    pub fn of(question: &Question, found: Aggregates) -> Self {
        let cells = |group: Group| -> Vec<((String, i64), Tally)> {
            let value = group.value;
            match question.bucket_s {
                None => vec![((value, question.from_s), group.total)],
                Some(_) => {
                    let buckets = group.buckets.into_iter();
                    buckets
                        .map(|(start_s, tally)| ((value.clone(), start_s), tally))
                        .collect()
                }
            }
        };
        Self {
            groups: found.groups.into_iter().flat_map(cells).collect(),
            rest: found.rest.into_iter().flat_map(cells).collect(),
            complete_from_s: found.complete_from_s,
        }
    }

    /// The same with the region before each value, for what is a name in its region alone.
    pub fn within(self, region: &str) -> Self {
        let named = |((value, start_s), tally)| match value {
            // What has no value has none anywhere.
            value if String::is_empty(&value) => ((value, start_s), tally),
            value => ((format!("{region}/{value}"), start_s), tally),
        };
        Self {
            groups: self.groups.into_iter().map(named).collect(),
            ..self
        }
    }

    /// Whether it has more groups than it tells.
    pub fn has_rest(&self) -> bool {
        !self.rest.is_empty()
    }

    /// As another region reads it.
    pub fn to_json(&self) -> Value {
        let cells = |groups: &Groups| {
            let cells = groups.iter().map(|((value, start_s), tally)| {
                json!([value, start_s, STANDARD_NO_PAD.encode(tally.encode())])
            });
            Value::Array(cells.collect())
        };
        json!({
            "groups": cells(&self.groups),
            "rest": cells(&self.rest),
            "complete_from_s": self.complete_from_s,
        })
    }

    /// What another region told in answer to a question; `None` where it is no answer to it.
    pub fn from_json(question: &Question, told: &Value) -> Option<Self> {
        let first_s = question.start_of(question.from_s)?;
        let cells = |key: &str| {
            let cells = told.get(key)?.as_array()?.iter().map(|cell| {
                let value = cell.get(0)?.as_str()?.to_owned();
                let start_s = cell.get(1)?.as_i64()?;
                let is_asked = (first_s..question.to_s).contains(&start_s)
                    && question.start_of(start_s) == Some(start_s);
                let tally = STANDARD_NO_PAD.decode(cell.get(2)?.as_str()?).ok()?;
                is_asked.then_some(((value, start_s), Tally::decode(&tally)?))
            });
            cells.collect::<Option<Groups>>()
        };
        Some(Self {
            groups: cells("groups")?,
            rest: cells("rest")?,
            complete_from_s: told.get("complete_from_s")?.as_i64()?,
        })
    }
}

impl Question {
    /// The question as each of several regions is asked it: for more groups than are shown, since
    /// the largest of all regions together need not be among the largest of each.
    pub fn wider(&self) -> Self {
        let (fewest, most) = GROUPS;
        let limit = self.limit.saturating_mul(WIDER).clamp(fewest, most);
        Self {
            limit: limit.min(CELLS_MAX / self.spans()).max(self.limit),
            ..self.clone()
        }
    }

    /// The answer of several regions together.
    pub fn together(&self, parts: impl IntoIterator<Item = Counts>) -> Aggregates {
        let (mut groups, mut rest) = (Groups::new(), Groups::new());
        let mut complete_from_s = self.from_s;
        let add = |all: &mut Groups, cells: Groups| {
            for (cell, tally) in cells {
                all.entry(cell).or_default().merge(&tally);
            }
        };
        for part in parts {
            add(&mut groups, part.groups);
            add(&mut rest, part.rest);
            complete_from_s = complete_from_s.max(part.complete_from_s);
        }
        self.arrange(groups, rest, complete_from_s)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proto::id::OrgId;

    use super::*;
    use crate::records::RecordFilter;
    use crate::records::aggregate::Order;
    use crate::records::tally::Dimension;

    /// A request: its group, when, and how long it took in microseconds.
    type Request = (u8, i64, u64);

    fn question(limit: usize, bucket_s: Option<i64>) -> Question {
        Question {
            org: OrgId::from_bits(1),
            by: Dimension::Path,
            from_s: 0,
            to_s: 600,
            bucket_s,
            filter: RecordFilter::default(),
            order: Order::Count,
            limit,
        }
    }

    /// What a region that had these requests answers.
    fn answer(question: &Question, requests: &[Request]) -> Aggregates {
        let mut groups = Groups::new();
        for (group, at_s, us) in requests {
            let cell = (format!("/{group}"), question.bucket(*at_s));
            let tally: &mut Tally = groups.entry(cell).or_default();
            tally.count += 1;
            tally.total_us = tally.total_us.saturating_add(*us);
            tally.durations.add(*us);
        }
        question.arrange(groups, Groups::new(), question.from_s)
    }

    fn requests() -> impl Strategy<Value = Vec<Request>> {
        proptest::collection::vec((0u8..20, 0i64..600, 0u64..10_000_000), 0..200)
    }

    proptest! {
        #[test]
        fn regions_together_answer_as_one_that_had_all_requests(
            regions in proptest::collection::vec(requests(), 3),
            limit in 1usize..30,
            is_bucketed: bool,
        ) {
            let question = question(limit, is_bucketed.then_some(60));
            let wider = question.wider();
            let parts = regions.iter().map(|requests| {
                let counts = Counts::of(&wider, answer(&wider, requests));
                assert!(!counts.has_rest(), "twenty groups fit");
                let read = Counts::from_json(&wider, &counts.to_json());
                assert_eq!(read.as_ref(), Some(&counts));
                read.unwrap()
            });
            let together = question.together(parts);
            prop_assert_eq!(together, answer(&question, &regions.concat()));
        }
    }

    #[test]
    fn what_a_region_does_not_name_is_counted_in_the_rest() {
        let question = question(1, None);
        let many: Vec<Request> = (0..150).map(|group| (group, 0, 1_000)).collect();
        let wider = question.wider();
        let counts = Counts::of(&wider, answer(&wider, &many));
        assert!(counts.has_rest());
        let together = question.together([counts.clone(), counts]);
        let rest = together.rest.unwrap();
        assert_eq!(together.groups[0].total.count + rest.total.count, 300);
    }

    #[test]
    fn many_spans_leave_room_for_fewer_groups() {
        assert_eq!(question(10, None).wider().limit, 100);
        assert_eq!(question(500, None).wider().limit, 1_000);
        // 601 spans of a second.
        assert_eq!(question(10, Some(1)).wider().limit, CELLS_MAX / 601);
        assert_eq!(
            question(500, Some(1)).wider().limit,
            500,
            "never fewer than are shown"
        );
    }

    #[test]
    fn nodes_of_one_name_in_two_regions_are_two() {
        let question = question(10, None);
        let counts = Counts::of(&question, answer(&question, &[(1, 0, 1), (1, 1, 1)]));
        let parts = ["eu", "us"].map(|region| counts.clone().within(region));
        let groups = question.together(parts).groups;
        let values: Vec<_> = groups.iter().map(|group| group.value.as_str()).collect();
        assert_eq!(values, ["eu//1", "us//1"]);
    }

    #[test]
    fn what_cannot_be_read_is_nothing() {
        let counts = json!({"groups": [], "rest": [], "complete_from_s": 1});
        let asked = question(1, Some(60));
        let read = |told: &Value| Counts::from_json(&asked, told);
        assert!(read(&counts).is_some());
        let at = |start_s: i64| {
            let mut one = counts.clone();
            one["groups"] = json!([[
                "a",
                start_s,
                STANDARD_NO_PAD.encode(Tally::default().encode())
            ]]);
            read(&one).is_some()
        };
        assert!(at(0) && at(540), "the first and the last span");
        // Spans that were not asked for, and what is the start of none.
        for start_s in [-60, 600, 61, i64::MIN, i64::MAX] {
            assert!(!at(start_s), "{start_s}");
        }
        for (key, value) in [
            ("groups", json!(null)),
            ("groups", json!([["a", 1, "!"]])),
            ("groups", json!([["a", 1, "AA"]])),
            ("rest", json!([[1, 1, ""]])),
            ("complete_from_s", json!("1")),
        ] {
            let mut wrong = counts.clone();
            wrong[key] = value;
            assert_eq!(read(&wrong), None, "{wrong}");
        }
    }
}
