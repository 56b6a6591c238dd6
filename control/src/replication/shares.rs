//! Shares of limits move between regions: what is given, and what is taken.
//!
//! A region tells each other one twice a second what its callers want, on the connection that it
//! follows by. Who is told gives what it has beyond its part of what all want, in one transaction
//! of its store: its share falls, and the grant is there until the region that asked says that it
//! has taken it. That one waits as long as the grant says, from when it first heard of it, and
//! raises its share. The links are authenticated both ways and a region gives of its own only, so
//! grants need no signature: what a region could forge it could as well send to the target.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use proto::id::OrgId;
use proto::keys;
use proto::shares::{self, Demand, Grant, Held, NodeDemand};
use proto::store::{Compare, Op, Revision, Store, StoreError, Txn, TxnOutcome, load};
use proto::wire::replication::{Answer, Ask, Given, Need, PROTOCOL_SHARES, SHARES_MAX};
use tracing::{info, warn};

use super::apply::Guard;
use super::connection::Connection;
use super::shared_index::SharedMeter;
use super::source::{Session, SourceError};
use super::{Broken, Replication};
use crate::publish::writes::json;

/// Names a meter: its organisation and its id.
pub(super) type Name = (OrgId, String);

/// What was heard of grants that are not taken yet, by the region that gave them. It outlives
/// connections: a wait that began anew with each would not end where links break more often.
#[derive(Debug, Default)]
pub(super) struct ComingFrom(Mutex<BTreeMap<String, Coming>>);

impl ComingFrom {
    /// Works with those of one region.
    fn with<T>(&self, region: &str, work: impl FnOnce(&mut Coming) -> T) -> T {
        // A poisoned value is whole: at worst a wait begins anew.
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        work(all.entry(region.to_owned()).or_default())
    }
}

/// The same of one region.
#[derive(Debug, Default)]
pub(super) struct Coming {
    grants: BTreeMap<Name, BTreeMap<u64, (Grant, Instant)>>,
    /// Where the next ask begins, of more meters than fit one.
    from: usize,
}

impl Coming {
    /// Notes grants; one that was heard of keeps its time.
    pub(super) fn note(&mut self, name: &Name, grants: Vec<Grant>, taken: u64, now: Instant) {
        let known = self.grants.entry(name.clone()).or_default();
        known.retain(|seq, _| *seq > taken && grants.iter().any(|grant| grant.seq == *seq));
        for grant in grants.into_iter().filter(|grant| grant.seq > taken) {
            let same = known.get(&grant.seq).is_some_and(|(of, _)| *of == grant);
            if !same {
                // Of a store that went back, where another one had the number.
                known.insert(grant.seq, (grant, now));
            }
        }
        if known.is_empty() {
            self.grants.remove(name);
        }
    }

    /// Forgets those of meters that are shared no more.
    fn keep(&mut self, shared: &[(Name, &SharedMeter)]) {
        if !self.grants.is_empty() {
            let names: BTreeSet<&Name> = shared.iter().map(|(name, _)| name).collect();
            self.grants.retain(|name, _| names.contains(name));
        }
    }

    /// Those whose wait is over, in their order.
    pub(super) fn due(&self, name: &Name, now: Instant) -> Vec<Grant> {
        let known = self.grants.get(name).into_iter().flatten();
        let due = known.map(|(_, (grant, since))| {
            let wait = Duration::from_millis(grant.wait_ms);
            (now.saturating_duration_since(*since) >= wait).then(|| grant.clone())
        });
        due.map_while(|grant| grant).collect()
    }

    /// How much is coming, and the highest number that was heard of.
    pub(super) fn of(&self, name: &Name, division: u64) -> (u64, u64) {
        let known = self.grants.get(name);
        let known = || known.into_iter().flat_map(BTreeMap::values);
        let among = known().filter(|(grant, _)| grant.division == division);
        let sum = among.map(|(grant, _)| grant.fraction).sum();
        (sum, known().map(|(grant, _)| grant.seq).max().unwrap_or(0))
    }
}

/// The shares of a region as its store has them, each with the revision of its record.
type Records = HashMap<Name, (Held, Option<Revision>)>;

/// Reads the shares of organisations.
pub(super) async fn records(
    store: &dyn Store,
    orgs: impl Iterator<Item = OrgId>,
) -> Result<Records, StoreError> {
    let mut found = Records::new();
    for org in orgs {
        load::list(store, &keys::shares_of(org), None, |pair| {
            let Some((org, id)) = keys::parse_share(&pair.key) else {
                return;
            };
            match serde_json::from_slice::<Held>(&pair.value) {
                Ok(held) => {
                    let name = (org, id.to_owned());
                    found.insert(name, (held, Some(pair.mod_revision)));
                }
                Err(error) => warn!(key = pair.key, "a share that cannot be read: {error}"),
            }
        })
        .await?;
    }
    Ok(found)
}

/// How the nodes of this region use what it has, by the ids of meters.
pub(super) async fn demand(store: &dyn Store) -> Result<BTreeMap<String, Demand>, StoreError> {
    let mut all: BTreeMap<String, Demand> = BTreeMap::new();
    load::list(store, keys::DEMAND, None, |pair| {
        let told = serde_json::from_slice::<NodeDemand>(&pair.value);
        // One of another release that cannot be read is not worth failing for.
        for (id, demand) in told.map(|told| told.meters).unwrap_or_default() {
            let known = all.entry(id).or_default();
            *known = known.with(demand);
        }
    })
    .await?;
    Ok(all)
}

/// Writes a record that was read at a revision, with what else changes; false where it has changed.
async fn write(
    store: &dyn Store,
    name: &Name,
    (held, revision): (&Held, Option<Revision>),
    (guard, ops): (&Guard, Vec<Op>),
) -> Result<bool, StoreError> {
    let key = keys::share(name.0, &name.1);
    let compare = match revision {
        Some(revision) => Compare::ModRevision(key.clone(), revision),
        None => Compare::Absent(key.clone()),
    };
    let mut all = vec![
        Op::put(key, json(held)),
        // What nodes prove their knowledge by.
        Op::put(keys::SHARES_MOVED, name.1.clone()),
    ];
    all.extend(ops);
    let txn = Txn {
        // The organisation is there: nothing is left behind of one that is gone.
        compares: [compare, Compare::Present(keys::head(name.0))]
            .into_iter()
            .chain(guard.clone())
            .collect(),
        ops: all,
        or_read: Vec::new(),
    };
    Ok(matches!(store.txn(txn).await?, TxnOutcome::Committed(_)))
}

impl Replication {
    /// Whether there are limits that this region shares with another.
    pub(super) fn shares_with(&self, peer: &str) -> bool {
        let world = self.worlds.borrow().clone();
        !self
            .shared
            .between(&world, (&self.regions.own, peer))
            .is_empty()
    }

    /// Asks a region for what this one lacks, and takes what it has given.
    pub(super) async fn move_shares(
        &self,
        connection: &Connection,
        guard: &Guard,
    ) -> Result<(), Broken> {
        if connection.protocol() < PROTOCOL_SHARES {
            return Ok(());
        }
        let peer = connection.peer().to_owned();
        let world = self.worlds.borrow().clone();
        let orgs = self.shared.between(&world, (&self.regions.own, &peer));
        if orgs.is_empty() {
            return Ok(());
        }
        let store = &*self.store;
        let mut records = records(store, orgs.iter().map(|(org, _)| *org)).await?;
        let demand = demand(store).await?;
        let all = orgs.iter().flat_map(|(org, meters)| {
            let meters = meters.iter().filter(|meter| meter.is_shared_with(&peer));
            meters.map(|meter| ((*org, meter.id.clone()), meter))
        });
        let all: Vec<(Name, &SharedMeter)> = all.collect();
        let coming = &self.shared.coming;
        let turn: Vec<&(Name, &SharedMeter)> = coming.with(&peer, |coming| {
            coming.keep(&all);
            let from = coming.from.min(all.len());
            let turn = all.iter().skip(from).chain(all.iter().take(from));
            let turn: Vec<_> = turn.take(SHARES_MAX).collect();
            coming.from = (from + turn.len()).checked_rem(all.len()).unwrap_or(0);
            turn
        });
        let need = |(name, meter): &&(Name, &SharedMeter)| {
            let held = records.get(name).map(|(held, _)| held.clone());
            let held = held.unwrap_or_default();
            let of = |coming: &mut Coming| coming.of(name, meter.share.division);
            let (more, heard) = coming.with(&peer, of);
            let more = self.shared.wants.coming(name, &peer, more);
            Need {
                org: name.0,
                meter: name.1.clone(),
                division: meter.share.division,
                fraction: held.fraction(&meter.share).saturating_add(more),
                wanted: demand.get(&name.1).map_or(0, Demand::wanted),
                heard: heard.max(held.taken(&peer)),
                taken: held.taken(&peer),
            }
        };
        let needs = turn.iter().map(need).collect();
        let Answer::Shares(told) = connection.ask(&Ask::Shares(needs), Duration::ZERO).await?
        else {
            return Err(Broken::Protocol);
        };
        for (of, told) in turn.into_iter().zip(told) {
            let record = records.remove(&of.0).unwrap_or_default();
            self.take_given((&peer, guard), of, record, told).await?;
        }
        Ok(())
    }

    /// Takes what was given of one meter, as far as its wait is over.
    async fn take_given(
        &self,
        (peer, guard): (&str, &Guard),
        (name, meter): &(Name, &SharedMeter),
        (held, revision): (Held, Option<Revision>),
        told: Given,
    ) -> Result<(), Broken> {
        let now = Instant::now();
        let due = self.shared.coming.with(peer, |coming| {
            coming.note(name, told.grants, held.taken(peer), now);
            coming.due(name, now)
        });
        let mut next = held.clone();
        if next.lose(&meter.share, peer, told.taken) {
            lost(name, peer);
        }
        for grant in due {
            if next.take(&meter.share, peer, &grant) {
                info!(
                    org = %name.0, meter = name.1, region = peer, seq = grant.seq,
                    "{} millionths of {} are taken over from region {peer}",
                    grant.fraction, name.1
                );
            }
        }
        if next != held {
            let record = (&next, revision);
            write(&*self.store, name, record, (guard, Vec::new())).await?;
        }
        Ok(())
    }
}

fn lost(name: &Name, peer: &str) {
    warn!(
        org = %name.0, meter = name.1, region = peer,
        "region {peer} has taken more of {} than this store knows of: it is an earlier one, and \
         what this region had counts as nothing until the meter's `resets` are raised", name.1
    );
}

impl Session<'_> {
    /// Gives what a region lacks and this one has too much of, and tells what was given and not
    /// taken.
    pub(super) async fn give(&self, needs: Vec<Need>) -> Result<Answer, SourceError> {
        if needs.len() > SHARES_MAX {
            return Err(SourceError::TooMuch);
        }
        let source = self.source;
        let store = &*source.store;
        let world = source.worlds.borrow().clone();
        let own = source.regions.own.as_str();
        let orgs = source.shared.between(&world, (own, &self.region));
        let orgs: HashMap<OrgId, _> = orgs.into_iter().collect();
        let asked = needs.iter().map(|need| need.org);
        let asked: BTreeSet<OrgId> = asked.filter(|org| orgs.contains_key(org)).collect();
        let records = records(store, asked.iter().copied()).await?;
        let mut open = self.open_grants(asked.iter().copied()).await?;
        // Read where somebody lacks something, once.
        let mut known_demand = None;
        let mut told = Vec::with_capacity(needs.len());
        let now = Instant::now();
        for need in needs {
            let name = (need.org, need.meter.clone());
            let meters = orgs
                .get(&need.org)
                .into_iter()
                .flat_map(|meters| meters.iter());
            let meter = meters
                .filter(|meter| meter.is_shared_with(&self.region))
                .find(|meter| meter.id == need.meter);
            let known = records.get(&name).cloned().unwrap_or_default();
            let grants = open.remove(&name).unwrap_or_default();
            told.push(match meter {
                None => Given::default(),
                Some(meter) => {
                    let asking = shares::Region {
                        fraction: need.fraction,
                        wanted: need.wanted,
                    };
                    if known_demand.is_none() && shares::lacks(asking, &meter.limits) {
                        known_demand = Some(demand(store).await?);
                    }
                    let all = known_demand.as_ref();
                    let demand = all.and_then(|all| all.get(&meter.id));
                    let demand = demand.copied().unwrap_or_default();
                    let wants = &source.shared.wants;
                    let others = wants.told(&name, &self.region, asking, now);
                    let among = (&need, demand, others);
                    self.give_one((&name, meter), known, grants, among).await?
                }
            });
        }
        Ok(Answer::Shares(told))
    }

    async fn give_one(
        &self,
        (name, meter): (&Name, &SharedMeter),
        (held, revision): (Held, Option<Revision>),
        mut grants: Vec<Grant>,
        (need, demand, others): (&Need, Demand, Vec<shares::Region>),
    ) -> Result<Given, SourceError> {
        let (store, to) = (&*self.source.store, self.region.as_str());
        let key = |seq: u64| keys::grant((name.0, to), &name.1, seq);
        let mut next = held.clone();
        let of = (&meter.share, &*meter.limits);
        let wants = (demand, others.into_iter());
        let served = shares::serve(&mut next, &mut grants, of, (to, need), wants);
        let over = served.over.iter().map(|seq| Op::Delete(key(*seq)));
        let mut ops: Vec<Op> = over.collect();
        if served.lost {
            lost(name, to);
        }
        if let Some(grant) = &served.given {
            info!(
                org = %name.0, meter = name.1, region = to, seq = grant.seq,
                "{} millionths of {} are given to region {to}", grant.fraction, name.1
            );
            ops.push(Op::put(key(grant.seq), json(grant)));
        }
        let taken = held.taken(to);
        if next == held && ops.is_empty() {
            return Ok(Given { grants, taken });
        }
        if !write(store, name, (&next, revision), (&None, ops)).await? {
            // Somebody else was faster: what there is now is told next time.
            grants.retain(|grant| grant.seq <= held.given(to));
        }
        Ok(Given { grants, taken })
    }

    /// What was given to the region that asks and is not known to be taken.
    async fn open_grants(
        &self,
        orgs: impl Iterator<Item = OrgId>,
    ) -> Result<HashMap<Name, Vec<Grant>>, SourceError> {
        let mut found: HashMap<Name, Vec<Grant>> = HashMap::new();
        for org in orgs {
            let prefix = keys::grants_to(org, &self.region);
            load::list(&*self.source.store, &prefix, None, |pair| {
                let rest = pair.key.strip_prefix(&prefix).unwrap_or_default();
                let id = rest.split('/').next().unwrap_or_default().to_owned();
                match serde_json::from_slice::<Grant>(&pair.value) {
                    Ok(grant) => found.entry((org, id)).or_default().push(grant),
                    Err(error) => warn!(key = pair.key, "a grant that cannot be read: {error}"),
                }
            })
            .await?;
        }
        Ok(found)
    }
}
