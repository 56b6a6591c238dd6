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

    /// What another region told; `None` where it cannot be read.
    pub fn from_json(told: &Value) -> Option<Self> {
        let cells = |key: &str| {
            let cells = told.get(key)?.as_array()?.iter().map(|cell| {
                let value = cell.get(0)?.as_str()?.to_owned();
                let tally = STANDARD_NO_PAD.decode(cell.get(2)?.as_str()?).ok()?;
                Some(((value, cell.get(1)?.as_i64()?), Tally::decode(&tally)?))
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
        let limit = self.limit.saturating_mul(WIDER);
        Self {
            limit: limit.clamp(fewest, most),
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
                let read = Counts::from_json(&counts.to_json());
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
    fn what_cannot_be_read_is_nothing() {
        let counts = json!({"groups": [], "rest": [], "complete_from_s": 1});
        assert!(Counts::from_json(&counts).is_some());
        for (key, value) in [
            ("groups", json!(null)),
            ("groups", json!([["a", 1, "!"]])),
            ("groups", json!([["a", 1, "AA"]])),
            ("rest", json!([[1, 1, ""]])),
            ("complete_from_s", json!("1")),
        ] {
            let mut wrong = counts.clone();
            wrong[key] = value;
            assert_eq!(Counts::from_json(&wrong), None, "{wrong}");
        }
    }
}
