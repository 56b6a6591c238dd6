//! What a proxy was used for, grouped to the few rules of an allow-list. Pure, and of bounded work
//! and memory.
//!
//! Segments that look like ids stand for any from the start ([`segments`]). What is left of
//! variety shows in numbers: where very many different segments follow one beginning, and few
//! requests each, they are names that callers choose, and stand for any too. A few words more are
//! better than a rule that is too wide, so the bounds for that are high, what stands for any in
//! place of words needs several values itself, and every method is looked at alone: what was
//! deleted once allows to delete nothing beside it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use proto::path::PathOptions;
use proto::record::Record;
use proto::rule::PARTS_MAX;

use super::segments::{Left, Segment, pattern, segments, stands_for};

/// Most different paths and methods that are told apart, ids counting as one.
pub const PATHS_MAX: usize = 10_000;
/// Most rules of one answer.
pub const RULES_MAX: usize = 200;
/// More different segments than this in one place are names, if each is seldom.
const WORDS_MAX: usize = 32;
/// A name is requested less than so often, on average.
const REQUESTS_EACH: u64 = 4;
/// More different segments than this in one place are names, however often each is.
const WORDS_MAX_EVER: usize = 200;
/// What stands for any takes the place of words from so many different values on: one request with
/// a number must not swallow the names beside it.
const VALUES_MIN: usize = 3;
/// Longest example of a path, in characters.
const EXAMPLE_CHARS_MAX: usize = 200;

/// Different segments in one place, as hashes, to [`VALUES_MIN`]. Should two collide, fewer are
/// seen, and rules stay narrow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Values(Vec<u64>);

impl Values {
    fn add(&mut self, segment: &str) {
        let mut hasher = DefaultHasher::new();
        segment.hash(&mut hasher);
        self.add_hash(hasher.finish());
    }

    fn add_hash(&mut self, hash: u64) {
        if self.0.len() < VALUES_MIN && !self.0.contains(&hash) {
            self.0.push(hash);
        }
    }

    fn are_several(&self) -> bool {
        self.0.len() >= VALUES_MIN
    }
}

/// How a form of path was used.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Used {
    /// Requests.
    by_method: BTreeMap<String, u64>,
    /// For each segment that stands for many what was there.
    values: Vec<Values>,
    example: String,
}

impl Used {
    fn records(&self) -> u64 {
        self.by_method.values().sum()
    }

    fn merge(&mut self, other: Self) {
        for (method, records) in other.by_method {
            *self.by_method.entry(method).or_default() += records;
        }
        for (own, others) in self.values.iter_mut().zip(other.values) {
            others.0.into_iter().for_each(|hash| own.add_hash(hash));
        }
    }
}

/// A form of path, by segments.
type Form = Vec<Segment>;

/// Requests of one method and one form of path.
#[derive(Clone, Debug)]
struct Group {
    method: String,
    form: Form,
    used: Used,
}

/// What was used, while records are read.
#[derive(Debug, Default)]
pub struct Uses {
    by_path: BTreeMap<(String, Form), Used>,
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
    /// The same by method.
    pub by_method: BTreeMap<String, u64>,
    /// The path of one of them.
    pub example: String,
}

impl Uses {
    /// Counts a request that was sent to the target, if the target took it.
    pub fn add(&mut self, record: &Record, options: PathOptions) {
        match taken(record.upstream_status, record.forwarded_to.as_deref()) {
            Ok(()) => self.add_path(&record.method, &record.path, options),
            Err(left) => self.leave(left, 1),
        }
    }

    fn add_path(&mut self, method: &str, path: &str, options: PathOptions) {
        let form = match segments(path, options) {
            Ok(form) => form,
            Err(left) => return self.leave(left, 1),
        };
        let key = (method.to_ascii_uppercase(), form);
        if !self.by_path.contains_key(&key) && self.by_path.len() >= PATHS_MAX {
            return self.leave(Left::TooMany, 1);
        }
        let (method, is_wild) = (key.0.clone(), key.1.iter().map(Segment::is_wild));
        let is_wild: Vec<bool> = is_wild.collect();
        let used = self.by_path.entry(key).or_insert_with(|| Used {
            by_method: BTreeMap::new(),
            values: vec![Values::default(); is_wild.len()],
            example: path.chars().take(EXAMPLE_CHARS_MAX).collect(),
        });
        *used.by_method.entry(method).or_default() += 1;
        let sent = path.split('/').skip(1);
        for ((values, sent), is_wild) in used.values.iter_mut().zip(sent).zip(is_wild) {
            if is_wild {
                values.add(sent);
            }
        }
    }

    fn leave(&mut self, why: Left, records: u64) {
        *self.left.entry(why).or_default() += records;
    }

    /// The rules, those that cover most first, and how many requests are left over, by why.
    pub fn suggest(mut self) -> (Vec<Suggested>, BTreeMap<Left, u64>) {
        let groups = names_as_any(std::mem::take(&mut self.by_path));
        // Methods are joined where the form is the same, and nowhere else.
        let mut by_form: BTreeMap<Form, Used> = BTreeMap::new();
        for group in without_covered(groups) {
            match by_form.get_mut(&group.form) {
                Some(used) => used.merge(group.used),
                None => {
                    by_form.insert(group.form, group.used);
                }
            }
        }
        let mut forms: Vec<(Form, Used)> = by_form.into_iter().collect();
        // What is equal stays in order.
        forms.sort_by_key(|(_, used)| std::cmp::Reverse(used.records()));
        let mut rules = Vec::new();
        for (form, mut used) in forms {
            let Some(pattern) = pattern(&form) else {
                self.leave(Left::TooLong, used.records());
                continue;
            };
            if rules.len() >= RULES_MAX {
                self.leave(Left::TooMany, used.records());
                continue;
            }
            while used.by_method.len() > PARTS_MAX
                && let Some((_, records)) = used.by_method.pop_last()
            {
                self.leave(Left::TooMany, records);
            }
            rules.push(suggested(pattern, used));
        }
        rules.sort_by(|a, b| (b.records, &a.pattern).cmp(&(a.records, &b.pattern)));
        (rules, self.left)
    }
}

/// Whether the target took a request that was sent: what it refused is not used, and what another
/// region passed on or denied is told by the records there.
fn taken(upstream_status: Option<u16>, forwarded_to: Option<&str>) -> Result<(), Left> {
    match (forwarded_to, upstream_status) {
        (Some(_), _) => Err(Left::OtherRegion),
        (None, None) => Err(Left::NoAnswer),
        (None, Some(400..)) => Err(Left::RefusedByTarget),
        (None, Some(_)) => Ok(()),
    }
}

fn suggested(pattern: String, used: Used) -> Suggested {
    let is_covered = |method: &str| method == "HEAD" && used.by_method.contains_key("GET");
    let methods = used.by_method.keys().filter(|method| !is_covered(method));
    Suggested {
        methods: methods.cloned().collect(),
        pattern,
        records: used.records(),
        by_method: used.by_method,
        example: used.example,
    }
}

/// Puts what stands for any in the place of names, beginning by beginning, where it has several
/// values in the end.
fn names_as_any(paths: BTreeMap<(String, Form), Used>) -> Vec<Group> {
    let groups: Vec<Group> = paths
        .into_iter()
        .map(|((method, form), used)| Group { method, form, used })
        .collect();
    let mut forms: Vec<Form> = groups.iter().map(|group| group.form.clone()).collect();
    let deepest = forms.iter().map(Vec::len).max().unwrap_or_default();
    for depth in 0..deepest {
        let names = names_at(&groups, &forms, depth);
        if names.is_empty() {
            continue;
        }
        for (group, form) in groups.iter().zip(&mut forms) {
            let Some((begun, wild)) = name_at(form, depth) else {
                continue;
            };
            let place = (group.method.as_str(), begun.to_vec(), wild);
            if names.contains(&place)
                && let Some(segment) = form.get_mut(depth)
            {
                *segment = place.2;
            }
        }
    }
    let mut alike: BTreeMap<(String, Form), Vec<Group>> = BTreeMap::new();
    for (group, form) in groups.into_iter().zip(forms) {
        let place = (group.method.clone(), form);
        alike.entry(place).or_default().push(group);
    }
    let alike = alike.into_iter();
    alike
        .flat_map(|((_, form), groups)| as_one(form, groups))
        .collect()
}

/// A place in which names may stand: a method, what is before, and what would stand for them.
type Place<'a> = (&'a str, Form, Segment);

/// What is before a word, and what would stand for it and others.
fn name_at(form: &[Segment], depth: usize) -> Option<(&[Segment], Segment)> {
    let (begun, rest) = form.split_at_checked(depth)?;
    match rest.first()? {
        Segment::Fixed(word) => Some((begun, stands_for(word)?)),
        _ => None,
    }
}

/// The places of so many segments before them where names stand.
fn names_at<'a>(groups: &'a [Group], forms: &[Form], depth: usize) -> BTreeSet<Place<'a>> {
    let mut words_at: BTreeMap<_, (BTreeSet<&Segment>, u64)> = BTreeMap::new();
    for (group, form) in groups.iter().zip(forms) {
        let (Some((begun, wild)), Some(word)) = (name_at(form, depth), form.get(depth)) else {
            continue;
        };
        let place = (group.method.as_str(), begun, wild);
        let (words, records) = words_at.entry(place).or_default();
        words.insert(word);
        *records += group.used.records();
    }
    let are_names = |words: usize, records: u64| {
        let seldom = records < REQUESTS_EACH.saturating_mul(words as u64);
        words > WORDS_MAX_EVER || (words > WORDS_MAX && seldom)
    };
    let names = words_at.into_iter();
    names
        .filter(|(_, (words, records))| are_names(words.len(), *records))
        .map(|((method, begun, wild), _)| (method, begun.to_vec(), wild))
        .collect()
}

/// The groups as one of this form; or as they are, where what would stand for their words has too
/// few values.
fn as_one(form: Form, groups: Vec<Group>) -> Vec<Group> {
    let mut values = vec![Values::default(); form.len()];
    let mut is_of_words = vec![false; form.len()];
    for group in &groups {
        let own = group.form.iter().zip(&group.used.values);
        let places = values.iter_mut().zip(&mut is_of_words).zip(&form);
        for (((values, is_of_words), wide), (segment, seen)) in places.zip(own) {
            match segment {
                Segment::Fixed(word) if wide.is_wild() => {
                    values.add(word);
                    *is_of_words = true;
                }
                _ => seen.0.iter().for_each(|hash| values.add_hash(*hash)),
            }
        }
    }
    let mut places = values.iter().zip(is_of_words);
    if !places.all(|(values, is_of_words)| !is_of_words || values.are_several()) {
        return groups;
    }
    let mut groups = groups.into_iter();
    let Some(mut one) = groups.next() else {
        return Vec::new();
    };
    groups.for_each(|group| one.used.merge(group.used));
    (one.form, one.used.values) = (form, values);
    vec![one]
}

/// Drops groups that another one covers, which counts their requests.
fn without_covered(mut groups: Vec<Group>) -> Vec<Group> {
    groups.sort_by_key(|group| std::cmp::Reverse(group.used.records()));
    let (mut wide, mut kept) = (Vec::new(), Vec::new());
    for group in groups {
        let may_cover = wides(&group.form) > (0, 0) && pattern(&group.form).is_some();
        match may_cover && wide.len() < RULES_MAX {
            true => wide.push(group),
            false => kept.push(group),
        }
    }
    kept.retain(|group| !is_counted(group, wide.iter_mut()));
    // The narrow ones first: what they have counted is counted on.
    wide.sort_by_key(|group| wides(&group.form));
    let mut wide = VecDeque::from(wide);
    while let Some(group) = wide.pop_front() {
        if !is_counted(&group, wide.iter_mut()) {
            kept.push(group);
        }
    }
    kept
}

/// How much of a form stands for many.
fn wides(form: &[Segment]) -> (usize, usize) {
    let hidden = form.iter().filter(|one| **one == Segment::Hidden);
    let wild = form.iter().filter(|one| one.is_wild());
    (wild.count(), hidden.count())
}

/// Counts a group where another one covers it, if one does.
fn is_counted<'a>(group: &Group, mut wide: impl Iterator<Item = &'a mut Group>) -> bool {
    match wide.find(|wide| covers(wide, group)) {
        Some(wide) => {
            wide.used.merge(group.used.clone());
            true
        }
        None => false,
    }
}

/// Whether the rule of one group, and not the same one, allows all requests of the other, and is
/// made of several where the other has words.
fn covers(wide: &Group, one: &Group) -> bool {
    let stands = |wild: &Segment, word: &str| stands_for(word).as_ref() == Some(wild);
    let fits = |(wild, segment, values): (&Segment, &Segment, &Values)| match (wild, segment) {
        _ if wild == segment => true,
        (Segment::Hidden, Segment::Any) => true,
        (_, Segment::Fixed(word)) => values.are_several() && stands(wild, word),
        (_, Segment::Either(raw, canonical)) => {
            values.are_several() && stands(wild, raw) && stands(wild, canonical)
        }
        _ => false,
    };
    let is_head = wide.method == "GET" && one.method == "HEAD";
    let pairs = wide.form.iter().zip(&one.form).zip(&wide.used.values);
    (wide.method == one.method || is_head)
        && wide.form.len() == one.form.len()
        && wide.form != one.form
        && pairs
            .map(|((wild, segment), values)| (wild, segment, values))
            .all(fits)
}

#[cfg(test)]
mod tests {
    use proto::rule::compile_pattern;

    use super::*;

    fn of<'a>(requests: impl IntoIterator<Item = (&'a str, &'a str)>) -> Uses {
        let mut uses = Uses::default();
        for (method, path) in requests {
            uses.add_path(method, path, PathOptions::default());
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
            &["GET ^/v1/charges/[^/:]+$ 2", "POST ^/v1/charges$ 1"],
        );
        // Methods of one path are one rule; GET covers HEAD.
        check(
            &[("HEAD", "/a"), ("GET", "/a"), ("DELETE", "/a")],
            &["DELETE,GET ^/a$ 3"],
        );
        let joined = of([("HEAD", "/a"), ("GET", "/a"), ("GET", "/a")]);
        let by_method = [("GET", 2), ("HEAD", 1)].map(|(name, count)| (name.to_owned(), count));
        let (rules, _) = joined.suggest();
        assert_eq!(rules[0].by_method, BTreeMap::from(by_method));
        check(&[("HEAD", "/a")], &["HEAD ^/a$ 1"]);
        // A word beside ids that the rule of the ids covers anyhow, and one that it does not.
        check(
            &[
                ("GET", "/u/7"),
                ("GET", "/u/8"),
                ("GET", "/u/9"),
                ("HEAD", "/u/me"),
            ],
            &["GET ^/u/[^/:]+$ 4"],
        );
        check(
            &[
                ("GET", "/u/7"),
                ("GET", "/u/8"),
                ("GET", "/u/9"),
                ("GET", "/u/me"),
                ("DELETE", "/u/me"),
            ],
            &["GET ^/u/[^/:]+$ 4", "DELETE ^/u/me$ 1"],
        );
        // No segment is not any segment.
        check(
            &[("GET", "/u/7"), ("GET", "/u/")],
            &["GET ^/u/$ 1", "GET ^/u/[^/:]+$ 1"],
        );
    }

    #[test]
    fn a_number_does_not_swallow_the_names_beside_it() {
        let names = ["/v1/charges", "/v1/refunds", "/v1/%63ustomers"];
        let rules = |ids: &[&'static str]| {
            let paths = names.iter().chain(ids).map(|path| ("GET", *path));
            shown(of(paths)).0
        };
        // The same one often is one.
        for ids in [&["/v1/42"][..], &["/v1/42"; 9], &["/v1/42", "/v1/43"]] {
            assert_eq!(rules(ids).len(), names.len() + 1, "{ids:?}");
        }
        let several = rules(&["/v1/42", "/v1/43", "/v1/44"]);
        assert_eq!(several, ["GET ^/v1/[^/:]+$ 6"]);
        // A mark stands for who knows what: it is one value.
        assert_eq!(rules(&["/v1/*"; 9]).len(), names.len() + 1);
        // An escape makes no rule wider.
        let (rules, _) = shown(of([("GET", "/v1/%63harges")]));
        assert_eq!(rules, ["GET ^/v1/(?:%63harges|charges)$ 1"]);
    }

    #[test]
    fn what_was_seen_behind_one_name_is_not_allowed_behind_all() {
        let named = |count: usize| (0..count).map(|n| format!("/u/{}/posts", letters(n)));
        let mut paths: Vec<String> = named(WORDS_MAX + 1).collect();
        paths.push("/u/admin/secrets".into());
        // Ids themselves are no words.
        paths.push("/u/7/once".into());
        let mut requests: Vec<(&str, &str)> =
            paths.iter().map(|path| ("GET", path.as_str())).collect();
        requests.push(("DELETE", "/u/aaa/posts"));
        let (rules, left) = shown(of(requests));
        let expected = [
            format!("GET ^/u/[^/:]+/posts$ {}", WORDS_MAX + 1),
            "GET ^/u/[^/:]+/once$ 1".into(),
            "GET ^/u/admin/secrets$ 1".into(),
            "DELETE ^/u/aaa/posts$ 1".into(),
        ];
        let sorted = |mut rules: Vec<String>| {
            rules.sort();
            rules
        };
        assert_eq!(sorted(rules), sorted(expected.to_vec()));
        assert_eq!(left, 0);
    }

    #[test]
    fn what_is_covered_twice_is_counted_once() {
        // Words below ids below ids.
        let mut paths = vec!["/a/x/me".to_owned()];
        paths.extend((0..3).map(|n| format!("/a/x/{n}")));
        paths.extend((0..3).map(|n| format!("/a/{n}/7")));
        let (rules, left) = shown(of(paths.iter().map(|path| ("GET", path.as_str()))));
        assert_eq!(rules, ["GET ^/a/[^/:]+/[^/:]+$ 7"]);
        assert_eq!(left, 0);
        // A mark hides ids; those that were seen are in its rule.
        let (rules, _) = shown(of([("GET", "/a/7"), ("GET", "/a/*")]));
        assert_eq!(rules, ["GET ^/a/[^/]+$ 2"]);
        // Verbs are apart from ids, and from each other.
        let ids = ["/a/7", "/a/8", "/a/9", "/a/7:get", "/a/x:set"];
        let (rules, _) = shown(of(ids.map(|path| ("GET", path))));
        assert_eq!(
            rules,
            [
                "GET ^/a/[^/:]+$ 3",
                "GET ^/a/[^/:]+:get$ 1",
                "GET ^/a/x:set$ 1"
            ]
        );
    }

    #[test]
    fn only_what_the_target_took_is_used() {
        for (status, region, expected) in [
            (Some(101), None, Ok(())),
            (Some(200), None, Ok(())),
            (Some(399), None, Ok(())),
            (Some(400), None, Err(Left::RefusedByTarget)),
            (Some(404), None, Err(Left::RefusedByTarget)),
            (Some(503), None, Err(Left::RefusedByTarget)),
            (None, None, Err(Left::NoAnswer)),
            (Some(200), Some("eu"), Err(Left::OtherRegion)),
            (None, Some("eu"), Err(Left::OtherRegion)),
        ] {
            assert_eq!(taken(status, region), expected, "{status:?} {region:?}");
        }
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
        assert_eq!(seldom, [format!("GET ^/u/[^/:]+/posts$ {}", WORDS_MAX + 1)]);
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
            uses.add_path("GET", &path, PathOptions::default());
        }
        assert_eq!(uses.by_path.len(), PATHS_MAX);
        let (rules, left) = uses.suggest();
        assert!(rules.len() <= RULES_MAX);
        let covered: u64 = rules.iter().map(|rule| rule.records).sum();
        assert_eq!(covered + left[&Left::TooMany], PATHS_MAX as u64 + 5);

        let long = "/a".repeat(2_000);
        let uses = of([("GET", ""), ("GET", "/a//b"), ("GET", &long)]);
        let (rules, left) = uses.suggest();
        assert_eq!(rules.len(), 1);
        assert_eq!(rules[0].pattern, "^/$");
        assert_eq!(
            left,
            BTreeMap::from([(Left::TooLong, 1), (Left::Ambiguous, 1)])
        );
        let mut uses = Uses::default();
        for n in 0..PARTS_MAX + 1 {
            uses.add_path(&format!("M{n}"), "/a", PathOptions::default());
        }
        let (rules, left) = uses.suggest();
        assert_eq!(rules[0].methods.len(), PARTS_MAX);
        assert_eq!(left, BTreeMap::from([(Left::TooMany, 1)]));
    }

    #[test]
    fn every_request_that_is_counted_fits_a_rule_of_its_method() {
        let mut requests = Vec::new();
        for n in 0..600 {
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
        assert_eq!(total, 600);
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
