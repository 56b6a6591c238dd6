//! The objects of one version, in the order of their ids.
//!
//! A version mostly differs from the one before it in few of many objects, and both stay in use for
//! a while. So the objects lie in parts that versions share: a copy takes one count up per part and
//! not per object, a change copies the part that it is in, and what differs between a version and
//! its copy is found in the parts that they do not share.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::id::{CredentialId, MeterId, OrgId, ProxyId, RuleId, TokenId};
use crate::object::{Body, Object, ObjectId, StoredCredential, StoredToken};
use crate::proxy::Proxy;

/// Most objects in one part; one with more is cut in two.
const PART_MAX: usize = 256;

/// One object where it lies.
type Entry = (ObjectId, Arc<Object>);

/// Objects that follow each other; never empty.
#[derive(Clone, Debug)]
struct Part {
    /// The id of the first one.
    first: ObjectId,
    entries: Arc<Vec<Entry>>,
}

impl Part {
    fn of(entries: Vec<Entry>) -> Option<Self> {
        let first = entries.first()?.0;
        let entries = Arc::new(entries);
        Some(Self { first, entries })
    }

    fn place(&self, id: &ObjectId) -> Result<usize, usize> {
        self.entries.binary_search_by(|(other, _)| other.cmp(id))
    }
}

/// The objects of one version. Copies share what neither changes.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    parts: Vec<Part>,
    len: usize,
}

/// An object that two versions do not have the same of: its id, and its form in the first and in
/// the second, where it is there.
pub type Differing<'a> = (ObjectId, [Option<&'a Arc<Object>>; 2]);

impl Objects {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The part in which an id is, if it is there.
    fn part_of(&self, id: &ObjectId) -> Option<usize> {
        let behind = self.parts.partition_point(|part| part.first <= *id);
        behind.checked_sub(1)
    }

    /// An object by id.
    pub fn get(&self, id: &ObjectId) -> Option<&Arc<Object>> {
        let part = self.parts.get(self.part_of(id)?)?;
        let (_, object) = part.entries.get(part.place(id).ok()?)?;
        Some(object)
    }

    /// An object by id, to be replaced.
    pub fn get_mut(&mut self, id: &ObjectId) -> Option<&mut Arc<Object>> {
        let at = self.part_of(id)?;
        let part = self.parts.get_mut(at)?;
        let place = part.place(id).ok()?;
        let (_, object) = Arc::make_mut(&mut part.entries).get_mut(place)?;
        Some(object)
    }

    /// Whether there is an object with this id.
    pub fn contains_key(&self, id: &ObjectId) -> bool {
        self.get(id).is_some()
    }

    /// Puts an object in; gives the one that had the id before.
    pub fn insert(&mut self, id: ObjectId, object: Arc<Object>) -> Option<Arc<Object>> {
        let at = self.part_of(&id).unwrap_or(0);
        let Some(part) = self.parts.get_mut(at) else {
            self.parts.extend(Part::of(vec![(id, object)]));
            self.len += 1;
            return None;
        };
        let entries = Arc::make_mut(&mut part.entries);
        match entries.binary_search_by(|(other, _)| other.cmp(&id)) {
            Ok(place) => Some(std::mem::replace(&mut entries[place].1, object)),
            Err(place) => {
                entries.insert(place, (id, object));
                part.first = part.first.min(id);
                let upper = (entries.len() > PART_MAX).then(|| entries.split_off(PART_MAX / 2));
                if let Some(upper) = upper.and_then(Part::of) {
                    self.parts.insert(at + 1, upper);
                }
                self.len += 1;
                None
            }
        }
    }

    /// Takes an object out.
    pub fn remove(&mut self, id: &ObjectId) -> Option<Arc<Object>> {
        let at = self.part_of(id)?;
        let part = self.parts.get_mut(at)?;
        let place = part.place(id).ok()?;
        let entries = Arc::make_mut(&mut part.entries);
        let (_, object) = entries.remove(place);
        match entries.first() {
            Some((first, _)) => part.first = *first,
            None => drop(self.parts.remove(at)),
        }
        self.len -= 1;
        self.join(at);
        Some(object)
    }

    /// Joins a part with the one behind it or before it when both together are small, so that
    /// objects which come and go leave no trail of tiny parts.
    fn join(&mut self, at: usize) {
        for at in [Some(at), at.checked_sub(1)].into_iter().flatten() {
            let [one, other, ..] = self.parts.get_mut(at..).unwrap_or_default() else {
                continue;
            };
            if one.entries.len() + other.entries.len() <= PART_MAX / 2 {
                Arc::make_mut(&mut one.entries).extend(other.entries.iter().cloned());
                self.parts.remove(at + 1);
            }
        }
    }

    /// All of them, by id.
    pub fn iter(&self) -> Iter<'_> {
        Iter {
            parts: self.parts.iter(),
            entries: [].iter(),
            last: None,
        }
    }

    /// Those within a range of ids, by id.
    pub fn range(&self, ids: RangeInclusive<ObjectId>) -> Iter<'_> {
        let (first, last) = ids.into_inner();
        let at = self.part_of(&first).unwrap_or(0);
        let mut parts = self.parts.get(at..).unwrap_or_default().iter();
        let entries = parts.next().map_or(&[][..], |part| {
            let place = part.place(&first).unwrap_or_else(|place| place);
            part.entries.get(place..).unwrap_or_default()
        });
        Iter {
            parts,
            entries: entries.iter(),
            last: Some(last),
        }
    }

    /// All of one kind, which `of` makes ids of.
    fn kind(&self, of: impl Fn(u128) -> ObjectId) -> Iter<'_> {
        self.range(of(0)..=of(u128::MAX))
    }

    /// Its API tokens.
    pub fn tokens(&self) -> impl Iterator<Item = (TokenId, &StoredToken)> {
        let tokens = self.kind(|bits| ObjectId::Token(TokenId::from_bits(bits)));
        tokens.filter_map(|(id, object)| match (id, &object.body) {
            (ObjectId::Token(id), Body::Token(stored)) => Some((*id, stored)),
            _ => None,
        })
    }

    /// Its credentials.
    pub fn credentials(&self) -> impl Iterator<Item = (CredentialId, &StoredCredential)> {
        let credentials = self.kind(|bits| ObjectId::Credential(CredentialId::from_bits(bits)));
        credentials.filter_map(|(id, object)| match (id, &object.body) {
            (ObjectId::Credential(id), Body::Credential(stored)) => Some((*id, stored)),
            _ => None,
        })
    }

    /// Its proxies.
    pub fn proxies(&self) -> impl Iterator<Item = (ProxyId, &Proxy)> {
        let proxies = self.kind(|bits| ObjectId::Proxy(ProxyId::from_bits(bits)));
        proxies.filter_map(|(id, object)| match (id, &object.body) {
            (ObjectId::Proxy(id), Body::Proxy(proxy)) => Some((*id, proxy)),
            _ => None,
        })
    }

    /// What lists regions, credentials and proxies, with its list.
    pub fn regional(&self) -> impl Iterator<Item = (ObjectId, &[String])> {
        let credentials = self.kind(|bits| ObjectId::Credential(CredentialId::from_bits(bits)));
        let proxies = self.kind(|bits| ObjectId::Proxy(ProxyId::from_bits(bits)));
        let all = credentials.chain(proxies);
        all.filter_map(|(id, object)| Some((*id, object.body.regions()?)))
    }

    /// What has limits: proxies and meters.
    pub fn limited(&self) -> impl Iterator<Item = &Arc<Object>> {
        let proxies = self.kind(|bits| ObjectId::Proxy(ProxyId::from_bits(bits)));
        let meters = self.kind(|bits| ObjectId::Meter(MeterId::from_bits(bits)));
        proxies.chain(meters).map(|(_, object)| object)
    }

    /// What has a name of its own: organisations and proxies.
    pub fn named(&self) -> impl Iterator<Item = (&ObjectId, &Arc<Object>)> {
        let organisations = self.kind(|bits| ObjectId::Org(OrgId::from_bits(bits)));
        organisations.chain(self.kind(|bits| ObjectId::Proxy(ProxyId::from_bits(bits))))
    }

    /// Its rules, filters and meters: all that hangs on other objects.
    pub fn attached(&self) -> Iter<'_> {
        let first = ObjectId::Rule(RuleId::from_bits(0));
        self.range(first..=ObjectId::Meter(MeterId::from_bits(u128::MAX)))
    }

    /// Their ids.
    pub fn keys(&self) -> impl Iterator<Item = &ObjectId> + Clone {
        self.iter().map(|(id, _)| id)
    }

    /// They themselves, by id.
    pub fn values(&self) -> impl Iterator<Item = &Arc<Object>> + Clone {
        self.iter().map(|(_, object)| object)
    }

    /// What another version has not the same of, by id. What both share is not looked at.
    pub fn differing<'a>(&'a self, other: &'a Self) -> Vec<Differing<'a>> {
        let (mut ours, mut theirs) = (self.iter(), other.iter());
        let (mut one, mut two) = (ours.next(), theirs.next());
        let mut found = Vec::new();
        loop {
            let order = match (one, two) {
                (None, None) => return found,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((one, _)), Some((two, _))) => one.cmp(two),
            };
            let before = one.filter(|_| order.is_le());
            let after = two.filter(|_| order.is_ge());
            let is_same = |(_, one): (_, &Arc<Object>), (_, two): (_, &Arc<Object>)| {
                Arc::ptr_eq(one, two) || one == two
            };
            let same = before
                .zip(after)
                .is_some_and(|(one, two)| is_same(one, two));
            if let (false, Some((id, _))) = (same, before.or(after)) {
                let forms = [before, after].map(|form| form.map(|(_, object)| object));
                found.push((*id, forms));
            }
            if order.is_eq() {
                Iter::skip_shared(&mut ours, &mut theirs);
            }
            if before.is_some() {
                one = ours.next();
            }
            if after.is_some() {
                two = theirs.next();
            }
        }
    }
}

/// Objects by id.
#[derive(Clone, Debug)]
pub struct Iter<'a> {
    parts: std::slice::Iter<'a, Part>,
    entries: std::slice::Iter<'a, Entry>,
    /// Where it ends before the end.
    last: Option<ObjectId>,
}

impl Iter<'_> {
    /// Passes over parts that both have in front of them and share.
    fn skip_shared(one: &mut Self, other: &mut Self) {
        // In the midst of a part both have what is left of it, if it is the same part.
        if std::ptr::eq(one.entries.as_slice(), other.entries.as_slice()) {
            (one.entries, other.entries) = ([].iter(), [].iter());
        }
        while one.entries.len() == 0 && other.entries.len() == 0 {
            let next = (one.parts.as_slice().first(), other.parts.as_slice().first());
            let (Some(ours), Some(theirs)) = next else {
                return;
            };
            if !Arc::ptr_eq(&ours.entries, &theirs.entries) {
                return;
            }
            one.parts.next();
            other.parts.next();
        }
    }
}

impl<'a> Iterator for Iter<'a> {
    type Item = (&'a ObjectId, &'a Arc<Object>);

    fn next(&mut self) -> Option<Self::Item> {
        let (id, object) = loop {
            match self.entries.next() {
                Some(entry) => break entry,
                None => self.entries = self.parts.next()?.entries.iter(),
            }
        };
        if self.last.is_some_and(|last| *id > last) {
            (self.entries, self.parts) = ([].iter(), [].iter());
            return None;
        }
        Some((id, object))
    }
}

impl<'a> IntoIterator for &'a Objects {
    type Item = (&'a ObjectId, &'a Arc<Object>);
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

#[cfg(test)]
impl std::ops::Index<&ObjectId> for Objects {
    type Output = Arc<Object>;

    fn index(&self, id: &ObjectId) -> &Arc<Object> {
        self.get(id).expect("an object with this id")
    }
}

impl PartialEq for Objects {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.differing(other).is_empty()
    }
}

impl Extend<Entry> for Objects {
    fn extend<T: IntoIterator<Item = Entry>>(&mut self, entries: T) {
        for (id, object) in entries {
            self.insert(id, object);
        }
    }
}

impl FromIterator<Entry> for Objects {
    fn from_iter<T: IntoIterator<Item = Entry>>(entries: T) -> Self {
        let sorted: BTreeMap<ObjectId, Arc<Object>> = entries.into_iter().collect();
        let mut objects = Self::new();
        objects.extend(sorted);
        objects
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::id::{FilterId, TargetId};
    use crate::org::Org;

    type Model = BTreeMap<ObjectId, Arc<Object>>;

    fn id(n: u16) -> ObjectId {
        ObjectId::Target(TargetId::from_bits(n.into()))
    }

    fn object(n: u16, version: u64) -> Arc<Object> {
        let now = jiff::Timestamp::UNIX_EPOCH;
        Arc::new(Object {
            id: id(n),
            version,
            created_at: now,
            updated_at: now,
            body: Body::Org(Org {
                slug: "acme".into(),
                name: String::new(),
                default_limits: None,
            }),
        })
    }

    /// What both hold alike, and what lies where.
    fn check(objects: &Objects, model: &Model) {
        assert_eq!(objects.len(), model.len());
        assert!(objects.iter().eq(model.iter()));
        for part in &objects.parts {
            assert_eq!(part.entries.first().map(|(id, _)| *id), Some(part.first));
            assert!(part.entries.len() <= PART_MAX);
        }
        let small = |pair: &[Part]| pair[0].entries.len() + pair[1].entries.len() < PART_MAX / 8;
        assert!(
            !objects.parts.windows(2).any(small),
            "tiny parts are joined"
        );
    }

    fn differing(one: &Model, other: &Model) -> Vec<ObjectId> {
        let ids: std::collections::BTreeSet<_> = one.keys().chain(other.keys()).collect();
        let differs = |id: &&ObjectId| one.get(*id) != other.get(*id);
        ids.into_iter().filter(differs).copied().collect()
    }

    /// An object put in, or one taken out.
    fn steps() -> impl Strategy<Value = Vec<(u16, Option<u64>)>> {
        let version = prop_oneof![(0u64..3).prop_map(Some), Just(None)];
        proptest::collection::vec((0u16..1_500, version), 0..400)
    }

    fn take(steps: &[(u16, Option<u64>)], objects: &mut Objects, model: &mut Model) {
        for (n, version) in steps {
            match version {
                Some(version) => {
                    let new = object(*n, *version);
                    assert_eq!(
                        objects.insert(id(*n), new.clone()),
                        model.insert(id(*n), new)
                    );
                }
                None => assert_eq!(objects.remove(&id(*n)), model.remove(&id(*n))),
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn it_is_a_sorted_map_whose_copies_are_apart(
            many in 0u16..1_500, first in steps(), second in steps(), from: u16, to: u16,
        ) {
            let mut model: Model = (0..many).map(|n| (id(n), object(n, 9))).collect();
            let mut objects: Objects = model.clone().into_iter().collect();
            take(&first, &mut objects, &mut model);
            let (copy, old) = (objects.clone(), model.clone());
            take(&second, &mut objects, &mut model);
            check(&copy, &old);
            check(&objects, &model);
            for n in [from % 1_500, to % 1_500, 0, 1_499] {
                prop_assert_eq!(objects.get(&id(n)), model.get(&id(n)));
                prop_assert_eq!(objects.get_mut(&id(n)).is_some(), model.contains_key(&id(n)));
            }
            let (from, to) = (from.min(to) % 1_600, to.max(from) % 1_600);
            let expected = (from <= to).then(|| model.range(id(from)..=id(to)));
            prop_assert!(objects.range(id(from)..=id(to)).eq(expected.into_iter().flatten()));

            let found = copy.differing(&objects);
            let ids: Vec<ObjectId> = found.iter().map(|(id, _)| *id).collect();
            prop_assert_eq!(&ids, &differing(&old, &model));
            prop_assert_eq!(ids.is_empty(), copy == objects);
            for (id, forms) in found {
                prop_assert_eq!(forms, [old.get(&id), model.get(&id)]);
            }
        }
    }

    #[test]
    fn a_kind_is_a_range_of_ids() {
        let kinds = |bits| {
            [
                ObjectId::Org(OrgId::from_bits(bits)),
                ObjectId::Token(TokenId::from_bits(bits)),
                ObjectId::Target(TargetId::from_bits(bits)),
                ObjectId::Credential(CredentialId::from_bits(bits)),
                ObjectId::Proxy(ProxyId::from_bits(bits)),
                ObjectId::Rule(RuleId::from_bits(bits)),
                ObjectId::Filter(FilterId::from_bits(bits)),
                ObjectId::Meter(MeterId::from_bits(bits)),
            ]
        };
        let ids = [0, 1, u128::MAX].into_iter().flat_map(kinds);
        let objects: Objects = ids.map(|id| (id, object(0, 1))).collect();
        let of = |wanted: fn(&ObjectId) -> bool| objects.keys().filter(move |id| wanted(id));
        let ids = |found: Iter<'_>| found.map(|(id, _)| *id).collect::<Vec<_>>();
        let attached = of(|id| {
            matches!(
                id,
                ObjectId::Rule(_) | ObjectId::Filter(_) | ObjectId::Meter(_)
            )
        });
        assert!(attached.eq(&ids(objects.attached())));
        let credential = |bits| ObjectId::Credential(CredentialId::from_bits(bits));
        let credentials = of(|id| matches!(id, ObjectId::Credential(_)));
        assert!(credentials.eq(&ids(objects.kind(credential))));
        let named = of(|id| matches!(id, ObjectId::Org(_) | ObjectId::Proxy(_)));
        assert!(named.eq(objects.named().map(|(id, _)| id)));
        assert_eq!(
            objects.proxies().count(),
            0,
            "these have the bodies of others"
        );
    }

    #[test]
    fn what_a_copy_shares_is_not_looked_at() {
        let objects: Objects = (0..1_000).map(|n| (id(n), object(n, 1))).collect();
        let mut changed = objects.clone();
        changed.insert(id(500), object(500, 2));
        let shared = |one: &Objects, other: &Objects| {
            let pairs = one.parts.iter().zip(&other.parts);
            pairs
                .filter(|(one, other)| Arc::ptr_eq(&one.entries, &other.entries))
                .count()
        };
        assert_eq!(shared(&objects, &changed), objects.parts.len() - 1);
        // Every object of the shared parts would be found if their forms were compared.
        assert_eq!(objects.differing(&changed).len(), 1);
    }
}
