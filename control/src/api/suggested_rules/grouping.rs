//! What a proxy was used for, grouped to the few rules of an allow-list. Pure, and of bounded work
//! and memory.
//!
//! Segments that look like ids stand for any from the start ([`segments`]). What is left of
//! variety shows in numbers: where very many different segments follow one beginning, and few
//! requests each, they are names that callers choose, and stand for any too. A few words more are
//! better than a rule that is too wide, so the bounds for that are high.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use proto::path::PathOptions;
use proto::rule::PARTS_MAX;

use super::segments::{Left, Segment, pattern, segments};

/// Most different paths that are told apart, ids counting as one.
pub const PATHS_MAX: usize = 10_000;
/// Most rules of one answer.
pub const RULES_MAX: usize = 200;
/// More different segments than this in one place are names, if each is seldom.
const WORDS_MAX: usize = 32;
/// A name is requested less than so often, on average.
const REQUESTS_EACH: u64 = 4;
/// More different segments than this in one place are names, however often each is.
const WORDS_MAX_EVER: usize = 200;
/// Longest example of a path, in characters.
const EXAMPLE_CHARS_MAX: usize = 200;

/// Requests of one form of path.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Used {
    methods: BTreeSet<String>,
    records: u64,
    example: String,
}

impl Used {
    fn merge(&mut self, other: Self) {
        self.methods.extend(other.methods);
        self.records += other.records;
    }
}

/// What was used, while records are read.
#[derive(Debug, Default)]
pub struct Uses {
    by_path: BTreeMap<Vec<Segment>, Used>,
    left: BTreeMap<Left, u64>,
}

/// An allow rule that is suggested.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suggested {
    /// In upper case; HEAD is not among them where GET is, which covers it.
    pub methods: Vec<String>,
    /// Of the path.
    pub pattern: String,
    /// Requests that it covers.
    pub records: u64,
    /// The path of one of them.
    pub example: String,
}

impl Uses {
    /// Counts a request that was sent to the target.
    pub fn add(&mut self, method: &str, path: &str, options: PathOptions) {
        let segments = match segments(path, options) {
            Ok(segments) => segments,
            Err(left) => return self.leave(left, 1),
        };
        let is_full = self.by_path.len() >= PATHS_MAX;
        let used = match self.by_path.entry(segments) {
            Entry::Occupied(used) => used.into_mut(),
            Entry::Vacant(_) if is_full => return self.leave(Left::TooMany, 1),
            Entry::Vacant(place) => place.insert(Used {
                methods: BTreeSet::new(),
                records: 0,
                example: path.chars().take(EXAMPLE_CHARS_MAX).collect(),
            }),
        };
        let method = method.to_ascii_uppercase();
        if !used.methods.contains(&method) && used.methods.len() >= PARTS_MAX {
            return self.leave(Left::TooMany, 1);
        }
        used.methods.insert(method);
        used.records += 1;
    }

    fn leave(&mut self, why: Left, records: u64) {
        *self.left.entry(why).or_default() += records;
    }

    /// The rules, those that cover most first, and how many requests are left over, by why.
    pub fn suggest(mut self) -> (Vec<Suggested>, BTreeMap<Left, u64>) {
        let paths = names_as_any(std::mem::take(&mut self.by_path));
        let mut groups: Vec<_> = paths.into_iter().collect();
        groups.sort_by(|(a, used_a), (b, used_b)| (used_b.records, a).cmp(&(used_a.records, b)));
        let beyond = groups.split_off(RULES_MAX.min(groups.len()));
        let mut rules = Vec::new();
        for (segments, used) in without_covered(groups) {
            match (pattern(&segments), used.methods.len() <= PARTS_MAX) {
                (Some(pattern), true) => rules.push(suggested(pattern, used)),
                _ => self.leave(Left::TooMany, used.records),
            }
        }
        for (_, used) in beyond {
            self.leave(Left::TooMany, used.records);
        }
        rules.sort_by(|a, b| (b.records, &a.pattern).cmp(&(a.records, &b.pattern)));
        (rules, self.left)
    }
}

fn suggested(pattern: String, used: Used) -> Suggested {
    let mut methods = used.methods;
    if methods.contains("GET") {
        methods.remove("HEAD");
    }
    Suggested {
        methods: methods.into_iter().collect(),
        pattern,
        records: used.records,
        example: used.example,
    }
}

/// Puts any segment in the place of names, beginning by beginning.
fn names_as_any(mut paths: BTreeMap<Vec<Segment>, Used>) -> BTreeMap<Vec<Segment>, Used> {
    let deepest = paths.keys().map(Vec::len).max().unwrap_or_default();
    for depth in 0..deepest {
        let names = names_at(&paths, depth);
        if names.is_empty() {
            continue;
        }
        let mut merged: BTreeMap<Vec<Segment>, Used> = BTreeMap::new();
        for (mut path, used) in paths {
            let is_name = path.get(..depth).is_some_and(|begun| names.contains(begun));
            if let (true, Some(segment @ Segment::Fixed(_))) = (is_name, path.get_mut(depth))
                && *segment != Segment::Fixed(String::new())
            {
                *segment = Segment::Any;
            }
            match merged.entry(path) {
                Entry::Occupied(mut there) => there.get_mut().merge(used),
                Entry::Vacant(place) => {
                    place.insert(used);
                }
            }
        }
        paths = merged;
    }
    paths
}

/// The beginnings of so many segments behind which names stand.
fn names_at(paths: &BTreeMap<Vec<Segment>, Used>, depth: usize) -> BTreeSet<Vec<Segment>> {
    let mut behind: BTreeMap<&[Segment], (BTreeSet<&str>, u64)> = BTreeMap::new();
    for (path, used) in paths {
        let (Some(begun), Some(Segment::Fixed(word))) = (path.get(..depth), path.get(depth)) else {
            continue;
        };
        let (words, records) = behind.entry(begun).or_default();
        words.insert(word);
        *records += used.records;
    }
    let are_names = |words: usize, records: u64| {
        let seldom = records < REQUESTS_EACH.saturating_mul(words as u64);
        words > WORDS_MAX_EVER || (words > WORDS_MAX && seldom)
    };
    let behind = behind.into_iter();
    behind
        .filter(|(_, (words, records))| are_names(words.len(), *records))
        .map(|(begun, _)| begun.to_vec())
        .collect()
}

/// A form of path, and how it was used.
type Group = (Vec<Segment>, Used);

/// Drops groups that another one covers, which counts their requests.
fn without_covered(groups: Vec<Group>) -> Vec<Group> {
    let (covered, mut kept): (Vec<Group>, Vec<Group>) = groups
        .iter()
        .cloned()
        .partition(|one| groups.iter().any(|other| covers(other, one)));
    for one in covered {
        // What covers a group and is covered itself has one above it that covers both.
        if let Some((_, wide)) = kept.iter_mut().find(|wide| covers(wide, &one)) {
            wide.records += one.1.records;
        }
    }
    kept
}

/// Whether the rule of one group, and not the same one, allows all requests of the other.
fn covers((wide, by): &Group, (path, used): &Group) -> bool {
    let fits = |(wide, one): (&Segment, &Segment)| match wide {
        Segment::Fixed(_) => wide == one,
        Segment::Any => *one != Segment::Fixed(String::new()),
    };
    let allowed = |method: &String| {
        let is_head = method == "HEAD" && by.methods.contains("GET");
        is_head || by.methods.contains(method)
    };
    wide != path
        && wide.len() == path.len()
        && wide.iter().zip(path).all(fits)
        && used.methods.iter().all(allowed)
}

#[cfg(test)]
mod tests {
    use proto::rule::compile_pattern;

    use super::*;

    fn of<'a>(requests: impl IntoIterator<Item = (&'a str, &'a str)>) -> Uses {
        let mut uses = Uses::default();
        for (method, path) in requests {
            uses.add(method, path, PathOptions::default());
        }
        uses
    }

    fn shown(uses: Uses) -> (Vec<String>, u64) {
        let (rules, left) = uses.suggest();
        let line = |rule: &Suggested| {
            let methods = rule.methods.join(",");
            format!("{methods} {} {}", rule.pattern, rule.records)
        };
        (rules.iter().map(line).collect(), left.values().sum())
    }

    #[test]
    fn requests_become_few_rules() {
        let check = |requests: &[(&str, &str)], expected: &[&str]| {
            let (rules, left) = shown(of(requests.iter().copied()));
            assert_eq!(rules, expected, "{requests:?}");
            assert_eq!(left, 0);
        };
        check(&[], &[]);
        check(
            &[
                ("GET", "/v1/charges/1"),
                ("GET", "/v1/charges/2"),
                ("post", "/v1/charges"),
            ],
            &["GET ^/v1/charges/[^/]+$ 2", "POST ^/v1/charges$ 1"],
        );
        // Methods of one path are one rule; GET covers HEAD.
        check(
            &[("HEAD", "/a"), ("GET", "/a"), ("DELETE", "/a")],
            &["DELETE,GET ^/a$ 3"],
        );
        check(&[("HEAD", "/a")], &["HEAD ^/a$ 1"]);
        // A word beside ids that the rule of the ids covers anyhow, and one that it does not.
        check(
            &[("GET", "/u/7"), ("GET", "/u/8"), ("HEAD", "/u/me")],
            &["GET ^/u/[^/]+$ 3"],
        );
        check(
            &[("GET", "/u/7"), ("GET", "/u/8"), ("DELETE", "/u/me")],
            &["GET ^/u/[^/]+$ 2", "DELETE ^/u/me$ 1"],
        );
        // No segment is not any segment.
        check(
            &[("GET", "/u/7"), ("GET", "/u/")],
            &["GET ^/u/$ 1", "GET ^/u/[^/]+$ 1"],
        );
    }

    #[test]
    fn names_stand_for_any_and_words_do_not() {
        let named = |count: usize| (0..count).map(|n| format!("/u/{}/posts", letters(n)));
        let rules = |paths: Vec<String>, times: usize| {
            let again = paths
                .iter()
                .flat_map(|path| std::iter::repeat_n(path, times));
            shown(of(again.map(|path| ("GET", path.as_str())))).0
        };
        let seldom = rules(named(WORDS_MAX + 1).collect(), 1);
        assert_eq!(seldom, [format!("GET ^/u/[^/]+/posts$ {}", WORDS_MAX + 1)]);
        assert_eq!(rules(named(WORDS_MAX).collect(), 1).len(), WORDS_MAX);
        let often = rules(named(WORDS_MAX + 1).collect(), 4);
        assert_eq!(often.len(), WORDS_MAX + 1);
        assert_eq!(rules(named(WORDS_MAX_EVER + 1).collect(), 4).len(), 1);
    }

    /// A word without digits.
    fn letters(n: usize) -> String {
        let letter = |n: usize| char::from(b'a' + (n % 26) as u8);
        [letter(n / 676), letter(n / 26), letter(n)]
            .into_iter()
            .collect()
    }

    #[test]
    fn what_is_beyond_the_bounds_is_left_over_and_counted() {
        let mut uses = Uses::default();
        for n in 0..PATHS_MAX + 5 {
            let path = format!("/{}/{}", letters(n / 100), letters(n % 100));
            uses.add("GET", &path, PathOptions::default());
        }
        assert_eq!(uses.by_path.len(), PATHS_MAX);
        let (rules, left) = uses.suggest();
        assert!(rules.len() <= RULES_MAX);
        let covered: u64 = rules.iter().map(|rule| rule.records).sum();
        assert_eq!(covered + left[&Left::TooMany], PATHS_MAX as u64 + 5);

        let uses = of([("GET", ""), ("GET", "/a//b"), ("GET", "/a")]);
        let (rules, left) = uses.suggest();
        assert_eq!(rules.len(), 1);
        assert_eq!(
            left,
            BTreeMap::from([(Left::NoPath, 1), (Left::Ambiguous, 1)])
        );
        let mut uses = Uses::default();
        for n in 0..PARTS_MAX + 1 {
            uses.add(&format!("M{n}"), "/a", PathOptions::default());
        }
        let (rules, left) = uses.suggest();
        assert_eq!(rules[0].methods.len(), PARTS_MAX);
        assert_eq!(left, BTreeMap::from([(Left::TooMany, 1)]));
    }

    #[test]
    fn every_request_that_is_counted_fits_a_rule_of_its_method() {
        let mut requests = Vec::new();
        for n in 0..300 {
            let path = match n % 5 {
                0 => format!("/v1/users/{}/posts", letters(n)),
                1 => format!("/v1/charges/ch_{n:012}"),
                2 => format!("/v1/a%20{}/x.y", letters(n % 7)),
                3 => format!("/v1/{}", letters(n % 9)),
                _ => "/v1/users/me".to_owned(),
            };
            requests.push((["GET", "POST", "HEAD"][n % 3], path));
        }
        let uses = of(requests
            .iter()
            .map(|(method, path)| (*method, path.as_str())));
        let (rules, left) = uses.suggest();
        assert!(left.is_empty(), "{left:?}");
        let total: u64 = rules.iter().map(|rule| rule.records).sum();
        assert_eq!(total, 300);
        assert!(rules.len() < 30, "{rules:?}");
        let compiled = |rule: &Suggested| compile_pattern(&rule.pattern, "").unwrap().0;
        let compiled: Vec<_> = rules.iter().map(|rule| (rule, compiled(rule))).collect();
        for (method, path) in &requests {
            let allowed = |rule: &Suggested| {
                let named = |name: &str| rule.methods.iter().any(|m| m == name);
                named(method) || (*method == "HEAD" && named("GET"))
            };
            let fits = compiled
                .iter()
                .any(|(rule, p)| allowed(rule) && p.is_match(path));
            assert!(fits, "{method} {path}");
        }
    }
}
