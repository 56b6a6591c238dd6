//! Lists of several regions as one: which records come next, and where each region is read on.
//! Pure.
//!
//! A page's cursor holds the place of each region, not one for all: a region that was away for a
//! page is read on where it was, so that nothing is left out and nothing comes twice.

use std::collections::BTreeMap;
use std::str::FromStr;

use serde_json::Value;

use super::RecordCursor;

/// How the end of a region's list stands in a cursor.
const END: &str = "end";

/// Where one region is read on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Behind this record.
    After(RecordCursor),
    /// Nothing follows.
    End,
}

/// Where each region is read on. One that is not in it is read from its newest record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places(BTreeMap<String, Place>);

/// What one region answered.
#[derive(Clone, Debug)]
pub struct Part<T> {
    /// The region.
    pub region: String,
    /// What it has next, newest first, each with its place.
    pub items: Vec<(RecordCursor, T)>,
    /// Where it goes on: behind all of its items; `None` where nothing follows.
    pub next: Option<RecordCursor>,
}

/// What is left of a region's answer.
struct Left {
    items: usize,
    newest: Option<RecordCursor>,
    next: Option<RecordCursor>,
}

impl Places {
    /// Behind which record a region is read on.
    pub fn after(&self, region: &str) -> Option<RecordCursor> {
        match self.0.get(region) {
            Some(Place::After(place)) => Some(*place),
            Some(Place::End) | None => None,
        }
    }

    /// Whether nothing follows in a region.
    pub fn is_at_end(&self, region: &str) -> bool {
        self.0.get(region) == Some(&Place::End)
    }

    /// The regions of which a place is known.
    pub fn regions(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// The newest of what regions answered, at most `limit`, and the places behind them; `None`
    /// where nothing follows in any that answered. A region that gave no answer stays where it was.
    ///
    /// Nothing is shown that a region may yet have a newer record than: one whose search ended
    /// early has more from its `next` on.
    pub fn merge<T>(mut self, parts: Vec<Part<T>>, limit: usize) -> (Vec<T>, Option<Self>) {
        let bound = parts.iter().filter_map(|part| part.next).max();
        let (mut all, mut left) = (Vec::new(), BTreeMap::new());
        for part in parts {
            let of_part = Left {
                items: part.items.len(),
                newest: part.items.first().map(|(at, _)| *at),
                next: part.next,
            };
            left.insert(part.region.clone(), of_part);
            let region = part.region;
            let items = part.items.into_iter();
            all.extend(items.map(|(at, item)| (at, region.clone(), item)));
        }
        all.sort_by(|a, b| (b.0, &a.1).cmp(&(a.0, &b.1)));
        let (mut shown, mut last) = (Vec::new(), None);
        for (at, region, item) in all {
            if shown.len() == limit || bound.is_some_and(|bound| at < bound) {
                break;
            }
            if let Some(left) = left.get_mut(&region) {
                left.items -= 1;
            }
            self.0.insert(region, Place::After(at));
            shown.push(item);
            last = Some(at);
        }
        let mut more = false;
        for (region, left) in left {
            more |= left.items > 0 || left.next.is_some();
            let place = match (left.items, left.next, last) {
                (0, Some(next), _) => Place::After(next),
                (0, None, _) => Place::End,
                // All it had is older than what was shown, and what it has since is newer: it goes
                // on where this page ends.
                (_, _, Some(last)) if !self.0.contains_key(&region) && left.newest < Some(last) => {
                    Place::After(last)
                }
                _ => continue,
            };
            self.0.insert(region, place);
        }
        (shown, more.then_some(self))
    }
}

impl std::fmt::Display for Places {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let place = |place: &Place| match place {
            Place::After(place) => place.to_string(),
            Place::End => END.to_owned(),
        };
        let places = self.0.iter();
        let places: serde_json::Map<String, Value> = places
            .map(|(region, at)| (region.clone(), place(at).into()))
            .collect();
        write!(f, "{}", Value::Object(places))
    }
}

impl FromStr for Places {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let places: BTreeMap<String, String> = serde_json::from_str(text).map_err(|_| ())?;
        let place = |text: &str| match text {
            END => Ok(Place::End),
            text => text.parse().map(Place::After),
        };
        let places = places.into_iter();
        let places = places.map(|(region, text)| Ok((region, place(&text)?)));
        places.collect::<Result<_, ()>>().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proto::id::RequestId;

    use super::*;

    type Item = (RecordCursor, &'static str);

    const NAMES: [&str; 3] = ["ap", "eu", "us"];

    fn at(us: i64, id: u128) -> RecordCursor {
        RecordCursor::new(us, RequestId::from_bits(id))
    }

    /// Whether a record is what is searched for.
    fn is_wanted((place, _): &Item) -> bool {
        place.place().1 != RequestId::from_bits(0)
    }

    /// What a region answers: at most `limit`; a search ends when it has looked at `looks` records.
    fn ask(list: &[Item], places: &Places, limit: usize, looks: usize) -> Part<Item> {
        let region = list.first().map_or("", |(_, region)| *region);
        let after = places.after(region);
        let follows = |(place, _): &&Item| after.is_none_or(|after| *place < after);
        let (mut items, mut next) = (Vec::new(), None);
        for (looked, item) in list.iter().filter(follows).enumerate() {
            if looked == looks || items.len() == limit {
                return Part {
                    region: region.into(),
                    items,
                    next,
                };
            }
            next = Some(item.0);
            items.extend(is_wanted(item).then_some((item.0, *item)));
        }
        Part {
            region: region.into(),
            items,
            next: None,
        }
    }

    fn lists() -> impl Strategy<Value = Vec<Vec<Item>>> {
        // Few instants, so that many records began at the same one, in all regions.
        let one = proptest::collection::btree_set((0i64..12, 0u128..4), 1..30);
        proptest::collection::vec(one, 3).prop_map(|lists| {
            let lists = lists.into_iter().zip(NAMES);
            let list = |(list, name): (std::collections::BTreeSet<(i64, u128)>, _)| {
                let items = list.into_iter().rev();
                items.map(|(us, id)| (at(us, id), name)).collect()
            };
            lists.map(list).collect()
        })
    }

    /// Pages through all lists; `answers` tells which regions do, page by page.
    fn paged(
        lists: &[Vec<Item>],
        limit: usize,
        looks: usize,
        mut answers: impl FnMut(usize, &str) -> bool,
    ) -> (Vec<Item>, Vec<&'static str>) {
        let (mut shown, mut places) = (Vec::new(), Places::default());
        for page in 0.. {
            assert!(page < 1_000, "pages come to an end");
            let asked = lists.iter().filter(|list| {
                let name = list[0].1;
                !places.is_at_end(name) && answers(page, name)
            });
            let parts: Vec<_> = asked.map(|list| ask(list, &places, limit, looks)).collect();
            let last: Vec<_> = parts.iter().map(|part| part.region.clone()).collect();
            let (items, next) = places.clone().merge(parts, limit);
            assert!(items.len() <= limit);
            shown.extend(items);
            let Some(next) = next else {
                let done = |name: &&str| {
                    places.is_at_end(name) || last.iter().any(|region| region == name)
                };
                return (shown, NAMES.into_iter().filter(done).collect());
            };
            assert_eq!(next.to_string().parse(), Ok(next.clone()));
            places = next;
        }
        unreachable!()
    }

    proptest! {
        #[test]
        fn pages_of_three_regions_are_their_sorted_union(
            lists in lists(), limit in 1usize..12, looks in 1usize..12,
        ) {
            let (shown, _) = paged(&lists, limit, looks, |_, _| true);
            let mut union: Vec<Item> = lists.concat().into_iter().filter(is_wanted).collect();
            union.sort_by(|a, b| (b.0, a.1).cmp(&(a.0, b.1)));
            prop_assert_eq!(shown, union);
        }

        #[test]
        fn a_region_that_is_away_for_some_pages_loses_and_doubles_nothing(
            lists in lists(), limit in 1usize..12, away: [u64; 3],
        ) {
            let answers = |page: usize, name: &str| {
                let at = NAMES.iter().position(|known| *known == name).unwrap();
                page >= 64 || away[at] >> page & 1 == 0
            };
            let (mut shown, done) = paged(&lists, limit, 12, answers);
            let count = shown.len();
            shown.sort_unstable();
            shown.dedup();
            prop_assert_eq!(shown.len(), count, "nothing comes twice");
            for list in lists.iter().filter(|list| done.contains(&list[0].1)) {
                let of_it = shown.iter().filter(|item| item.1 == list[0].1);
                let wanted = list.iter().filter(|item| is_wanted(item));
                prop_assert_eq!(of_it.count(), wanted.count(), "{}", list[0].1);
            }
        }

        #[test]
        fn any_text_is_places_or_none(text: String) {
            let _ = text.parse::<Places>();
        }
    }

    #[test]
    fn what_a_region_gets_meanwhile_is_not_shown_behind_older_ones() {
        let part = |region: &str, items: &[i64]| Part {
            region: region.to_owned(),
            items: items.iter().map(|us| (at(*us, 1), *us)).collect(),
            next: None,
        };
        let parts = vec![part("eu", &[9, 8]), part("us", &[7])];
        let (shown, next) = Places::default().merge(parts, 1);
        assert_eq!(shown, [9]);
        let next = next.unwrap();
        assert_eq!(
            next.after("us"),
            Some(at(9, 1)),
            "not from what is newest then"
        );
        // Unless both were of one instant and name.
        let parts = vec![part("eu", &[9, 8]), part("us", &[9])];
        let (_, next) = Places::default().merge(parts, 1);
        assert_eq!(next.unwrap().after("us"), None);
    }

    #[test]
    fn nothing_older_is_shown_than_where_a_search_ended_early() {
        let part = |region: &str, at: Option<RecordCursor>, next| Part {
            region: region.to_owned(),
            items: at.into_iter().map(|at| (at, region.to_owned())).collect(),
            next,
        };
        let parts = vec![
            part("eu", Some(at(5, 1)), None),
            part("us", None, Some(at(7, 0))),
        ];
        let (shown, next) = Places::default().merge(parts, 10);
        assert!(shown.is_empty());
        let next = next.unwrap();
        assert_eq!(next.after("us"), Some(at(7, 0)));
        assert_eq!((next.after("eu"), next.is_at_end("eu")), (None, false));
    }
}
