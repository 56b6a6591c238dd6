//! Shares of limits on their way between regions: a model of three with everything that can go
//! wrong between them, and real control planes.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use proto::id::{MeterId, NodeId, OrgId};
use proto::keys;
use proto::meter::share::{WHOLE, part};
use proto::meter::{Limit, Share, Window};
use proto::object::{Attached, Body, ObjectId};
use proto::shares::{self, Demand, Grant, Held, NodeDemand};
use proto::store::{Op, Store, Txn};
use proto::tree::Operation;
use proto::wire::replication::Need;
use serde_json::json;

use super::super::Follower;
use super::super::shares::Coming;
use super::super::wants::Wants;
use super::net::{Region as RealRegion, installation};

const LIMIT: u64 = 1_000;
const STEP_MS: u64 = 50;
const NAMES: [&str; 3] = ["ap", "eu", "us"];

/// A small generator of its own: a failure names the seed that replays it.
struct Chance(u64);

impl Chance {
    fn within(&mut self, from: u64, to: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        from + self.0 % (to - from).max(1)
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.within(0, n) == 0
    }
}

/// Tokens that may be sent until an end.
struct Block {
    left: u64,
    end_ms: u64,
}

/// One region: its store, its nodes as one, and its control plane.
struct Region {
    held: Held,
    open: BTreeMap<usize, Vec<Grant>>,
    /// What the nodes know, and since when that is proven.
    known: u64,
    proven_ms: u64,
    /// Until when the nodes do not hear of their store.
    deaf_until_ms: u64,
    blocks: Vec<Block>,
    /// What was sent, by time.
    sent: VecDeque<(u64, u64)>,
    coming: Vec<Coming>,
    demand: u64,
    /// Since when what is refused was told of.
    refused: u64,
    /// What nodes have told last, every half second.
    told: Demand,
    lately: Demand,
    wants: Wants,
    away_until_ms: u64,
}

struct Model {
    now_ms: u64,
    begun: Instant,
    shares: Vec<Share>,
    limits: Vec<Limit>,
    regions: Vec<Region>,
    /// Between whom nothing goes, until when.
    cuts: BTreeMap<(usize, usize), u64>,
    /// Answers on their way: when, to whom, from whom, the grants and what was taken.
    answers: Vec<(u64, usize, usize, Vec<Grant>, u64)>,
    chance: Chance,
    faults: bool,
    name: (OrgId, String),
}

impl Model {
    fn new(seed: u64, faults: bool) -> Self {
        let names: Vec<String> = NAMES.iter().map(|name| (*name).to_owned()).collect();
        let shares: Vec<Share> = NAMES
            .iter()
            .map(|name| Share::of(&names, 0, name).unwrap())
            .collect();
        let regions = shares.iter().map(|share| Region {
            held: Held::default(),
            open: BTreeMap::new(),
            known: share.initial,
            proven_ms: 0,
            deaf_until_ms: 0,
            blocks: Vec::new(),
            sent: VecDeque::new(),
            coming: NAMES.iter().map(|_| Coming::default()).collect(),
            demand: 0,
            refused: 0,
            told: Demand::default(),
            lately: Demand::default(),
            wants: Wants::default(),
            away_until_ms: 0,
        });
        Self {
            now_ms: 0,
            begun: Instant::now(),
            regions: regions.collect(),
            shares,
            limits: vec![Limit::new(LIMIT, Window::Second).unwrap()],
            cuts: BTreeMap::new(),
            answers: Vec::new(),
            chance: Chance(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            faults,
            name: (OrgId::from_bits(1), "mtr_1".into()),
        }
    }

    fn at(&self, ms: u64) -> Instant {
        self.begun + Duration::from_millis(ms)
    }

    fn step(&mut self) {
        self.now_ms += STEP_MS;
        if self.faults {
            self.fail();
        }
        for region in 0..NAMES.len() {
            self.serve(region);
        }
        for asker in 0..NAMES.len() {
            for giver in 0..NAMES.len() {
                // In a round of nine steps, one after the other; where things fail at any time.
                let turn = (self.now_ms / STEP_MS + (asker * 3 + giver) as u64).is_multiple_of(9);
                let turn = match self.faults {
                    true => self.chance.one_in(10),
                    false => turn,
                };
                if asker != giver && turn {
                    self.ask(asker, giver);
                }
            }
        }
        let now_ms = self.now_ms;
        let (due, later) = std::mem::take(&mut self.answers)
            .into_iter()
            .partition(|answer| answer.0 <= now_ms);
        self.answers = later;
        let due: Vec<_> = due;
        for (_, asker, giver, grants, taken) in due {
            self.answered(asker, giver, grants, taken);
        }
        self.check();
    }

    fn fail(&mut self) {
        let now_ms = self.now_ms;
        let (one, other) = (
            self.chance.within(0, 3) as usize,
            self.chance.within(0, 3) as usize,
        );
        let until_ms = now_ms + self.chance.within(100, 20_000);
        match self.chance.within(0, 400) {
            0 => drop(self.cuts.insert((one, other), until_ms)),
            1 => self.regions[one].deaf_until_ms = until_ms,
            // The control plane begins anew, and has forgotten what it heard of.
            2 => self.regions[one].coming = NAMES.iter().map(|_| Coming::default()).collect(),
            3 => self.regions[one].away_until_ms = until_ms,
            4..=7 => {
                self.regions[one].demand = self.chance.within(0, 2) * self.chance.within(0, 200)
            }
            _ => {}
        }
    }

    /// The nodes of a region: they hear of their share, open blocks, and send.
    fn serve(&mut self, at: usize) {
        let (now_ms, share) = (self.now_ms, self.shares[at]);
        let region = &mut self.regions[at];
        if now_ms >= region.deaf_until_ms && (!self.faults || !self.chance.one_in(3)) {
            region.known = region.held.fraction(&share);
            region.proven_ms = now_ms;
        }
        let known_ms = shares::known_for(&self.limits).as_millis() as u64;
        let fraction = match now_ms - region.proven_ms <= known_ms {
            true => region.known,
            false => region.known.min(shares::floor(&share, &self.limits)),
        };
        let limit = part(LIMIT, fraction);
        // One sub-window more than a second counts.
        let counted = |sent_ms: u64| sent_ms + 1_000 + STEP_MS > now_ms;
        while region
            .sent
            .front()
            .is_some_and(|(ms, _)| *ms + 1_200 < now_ms)
        {
            region.sent.pop_front();
        }
        let used: u64 = region
            .sent
            .iter()
            .filter(|(ms, _)| counted(*ms))
            .map(|(_, n)| n)
            .sum();
        region
            .blocks
            .retain(|block| block.left > 0 && block.end_ms > now_ms);
        let open: u64 = region.blocks.iter().map(|block| block.left).sum();
        let free = limit.saturating_sub(used + open);
        let life_ms = shares::block_life(&self.limits).as_millis() as u64;
        let life_ms = match self.faults {
            true => self.chance.within(100, life_ms),
            false => 200,
        };
        let wanted = region.demand.min(free).min(limit.div_ceil(20));
        if wanted > 0 {
            region.blocks.push(Block {
                left: wanted,
                end_ms: now_ms + life_ms,
            });
        }
        let mut wanted = region.demand;
        for block in &mut region.blocks {
            // Sometimes what is there is sent late.
            if self.faults && self.chance.one_in(4) {
                continue;
            }
            let n = wanted.min(block.left);
            block.left -= n;
            wanted -= n;
            region.sent.push_back((now_ms, n));
        }
        region.refused += wanted;
        if now_ms.is_multiple_of(500) {
            let used = (used + open) * WHOLE / LIMIT;
            region.lately.used = used.min(WHOLE).max(region.lately.used / 2);
            let refused = std::mem::take(&mut region.refused) * WHOLE / LIMIT;
            region.lately.refused = refused + region.lately.refused / 2;
            region.told = region.lately;
        }
    }

    fn ask(&mut self, asker: usize, giver: usize) {
        let now_ms = self.now_ms;
        let cut = |cuts: &BTreeMap<(usize, usize), u64>, way| {
            cuts.get(&way).is_some_and(|until_ms| *until_ms > now_ms)
        };
        let away = [asker, giver]
            .iter()
            .any(|at| self.regions[*at].away_until_ms > now_ms);
        if away || cut(&self.cuts, (asker, giver)) {
            return;
        }
        let share = self.shares[asker];
        let region = &self.regions[asker];
        let (more, heard) = region.coming[giver].of(&self.name, share.division);
        let taken = region.held.taken(NAMES[giver]);
        let need = Need {
            org: self.name.0,
            meter: self.name.1.clone(),
            division: share.division,
            fraction: region.held.fraction(&share) + more,
            wanted: region.told.wanted(),
            heard: heard.max(taken),
            taken,
        };
        let of = (&self.shares[giver], &*self.limits);
        let region = &mut self.regions[giver];
        let now = self.begun + Duration::from_millis(now_ms);
        let asking = shares::Region {
            fraction: need.fraction,
            wanted: need.wanted,
        };
        let others = region.wants.told(&self.name, NAMES[asker], asking, now);
        let wants = (region.told, others.into_iter());
        let open = region.open.entry(asker).or_default();
        shares::serve(&mut region.held, open, of, (NAMES[asker], &need), wants);
        let (open, taken) = (open.clone(), region.held.taken(NAMES[asker]));
        // The answer may be lost, and comes late.
        if cut(&self.cuts, (giver, asker)) || (self.faults && self.chance.one_in(5)) {
            return;
        }
        let late_ms = self.chance.within(20, 200);
        self.answers
            .push((now_ms + late_ms, asker, giver, open, taken));
    }

    fn answered(&mut self, asker: usize, giver: usize, grants: Vec<Grant>, taken: u64) {
        let (now, share) = (self.at(self.now_ms), self.shares[asker]);
        let region = &mut self.regions[asker];
        let coming = &mut region.coming[giver];
        coming.note(&self.name, grants, region.held.taken(NAMES[giver]), now);
        assert!(
            !region.held.lose(&share, NAMES[giver], taken),
            "nothing was restored"
        );
        for grant in coming.due(&self.name, now) {
            region.held.take(&share, NAMES[giver], &grant);
        }
    }

    /// In no second more than the limit is sent by all together, and no share comes from nowhere.
    fn check(&self) {
        let since_ms = self.now_ms.saturating_sub(1_000);
        let sent = self.regions.iter().flat_map(|region| &region.sent);
        let sum: u64 = sent.filter(|(ms, _)| *ms > since_ms).map(|(_, n)| n).sum();
        assert!(
            sum <= LIMIT,
            "{sum} in the second before {} ms",
            self.now_ms
        );
        let held = self.regions.iter().zip(&self.shares);
        let held: u64 = held
            .map(|(region, share)| region.held.fraction(share))
            .sum();
        let mut coming = 0;
        for (giver, region) in self.regions.iter().enumerate() {
            for (to, open) in &region.open {
                let taken = self.regions[*to].held.taken(NAMES[giver]);
                let open = open.iter().filter(|grant| grant.seq > taken);
                coming += open.map(|grant| grant.fraction).sum::<u64>();
            }
        }
        let all: u64 = self.shares.iter().map(|share| share.initial).sum();
        assert_eq!(held + coming, all, "at {} ms", self.now_ms);
    }

    fn run(&mut self, ms: u64) -> u64 {
        let until_ms = self.now_ms + ms;
        let mut sent = 0;
        while self.now_ms < until_ms {
            self.step();
            let now_ms = self.now_ms;
            let new = self.regions.iter().flat_map(|region| &region.sent);
            sent += new
                .filter(|(at, _)| *at == now_ms)
                .map(|(_, n)| n)
                .sum::<u64>();
        }
        sent
    }
}

/// schedules.md, part one, 14: a region has most of a limit and is cut off for a minute, while
/// callers move to another. What it has stays its own, unused or not; no version and no timeout
/// gives it to the other, and it goes once they hear of each other again. The model checks the sum
/// over every second of it.
#[test]
fn a_region_that_is_cut_off_keeps_its_share_and_no_other_makes_up_for_it() {
    for seed in 1..=10 {
        let mut model = Model::new(seed, false);
        let demand = |model: &mut Model, demands: [u64; 3]| {
            for (region, demand) in model.regions.iter_mut().zip(demands) {
                region.demand = demand;
            }
        };
        let fractions = |model: &Model| -> Vec<u64> {
            let held = model.regions.iter().zip(&model.shares);
            held.map(|(region, share)| region.held.fraction(share))
                .collect()
        };
        demand(&mut model, [0, 0, 80]);
        model.run(40_000);
        let before = fractions(&model);
        assert!(before[2] > 800_000, "seed {seed}: {before:?}");
        for other in [0, 1] {
            let until_ms = model.now_ms + 60_000;
            model.cuts.insert((2, other), until_ms);
            model.cuts.insert((other, 2), until_ms);
        }
        // Some callers stay in us: it may use all that it has, as eu does.
        demand(&mut model, [0, 80, 80]);
        let both = model.run(30_000);
        assert!(both <= 30 * LIMIT, "seed {seed}: {both} in 30 seconds");
        demand(&mut model, [0, 80, 0]);
        let alone = model.run(30_000 - STEP_MS);
        let rest = 1_000_000 - before[2];
        assert!(
            alone <= 31 * part(LIMIT, rest),
            "seed {seed}: {alone} in 30 seconds"
        );
        assert_eq!(fractions(&model)[2], before[2], "seed {seed}");
        model.run(20_000);
        let after = fractions(&model);
        assert!(after[1] > 800_000, "seed {seed}: {after:?}");
    }
}

/// schedules.md, part one, 14 and part two, 22, with everything that fails.
#[test]
fn whatever_fails_the_sum_stays_within_the_limit_and_no_share_is_made() {
    for seed in 1..=20 {
        let mut model = Model::new(seed, true);
        model.regions[0].demand = 120;
        model.run(180_000);
    }
}

#[test]
fn ten_windows_after_demand_stands_still_nine_tenths_are_used() {
    for seed in 1..=10 {
        let mut model = Model::new(seed, false);
        // 1,000 a second are 50 a step: more than that is refused.
        for demands in [
            [80, 0, 0],
            [0, 0, 80],
            [0, 80, 0],
            [40, 40, 0],
            [30, 30, 30],
            [2, 2, 80],
        ] {
            for (region, demand) in model.regions.iter_mut().zip(demands) {
                region.demand = demand;
            }
            model.run(10_000);
            let sent = model.run(10_000);
            assert!(
                sent >= 9 * LIMIT,
                "seed {seed}, {demands:?}: {sent} in ten seconds"
            );
        }
    }
}

#[test]
fn a_store_that_went_back_counts_as_nothing() {
    let model = Model::new(1, false);
    let (share, of) = (model.shares[1], (&model.shares[1], &*model.limits));
    let mut eu = Held::default();
    let earlier = eu.clone();
    let grant = eu.give(of, "us", 300_000).unwrap();
    let mut us = Held::default();
    assert!(us.take(&model.shares[2], "eu", &grant) && !us.take(&model.shares[2], "eu", &grant));
    assert_eq!(us.fraction(&model.shares[2]), 633_333);
    // Restored, it has what it gave away; it hears that it was taken.
    let mut eu = earlier;
    assert_eq!(eu.fraction(&share), 333_333);
    assert!(eu.lose(&share, "us", us.taken("eu")));
    assert_eq!(eu.fraction(&share), 0);
    assert!(!eu.lose(&share, "us", us.taken("eu")));
    // What others give it is its own again, and numbers go on where they were.
    assert!(
        us.give((&model.shares[2], of.1), "eu", 100_000)
            .is_some_and(|grant| { eu.take(&share, "us", &grant) })
    );
    assert_eq!(eu.give(of, "us", 50_000).unwrap().seq, 2);
}

async fn write(region: &RealRegion, key: String, value: Vec<u8>) {
    let txn = Txn {
        ops: vec![Op::put(key, value)],
        ..Txn::default()
    };
    region.store.txn(txn).await.unwrap();
}

async fn fraction(region: &RealRegion, org: OrgId, id: &str) -> u64 {
    let all = NAMES.map(String::from);
    let share = Share::of(&all, 0, region.name()).unwrap();
    let found = region.store.get(&keys::share(org, id)).await.unwrap().value;
    let held = found.map(|pair| serde_json::from_slice::<Held>(&pair.value).unwrap());
    held.unwrap_or_default().fraction(&share)
}

/// A meter of 1,000 a second that three regions share.
fn create_shared(org: OrgId, id: MeterId) -> Operation {
    let spec = json!({"limits": [{"limit": 1_000, "window": "second"}], "shared_by": NAMES});
    Operation::Create {
        id: ObjectId::Meter(id),
        body: Body::Meter(Attached {
            parent: ObjectId::Org(org),
            spec: serde_json::from_value(spec).unwrap(),
        }),
        secret: None,
    }
}

/// What nodes of a region tell.
async fn tell(region: &RealRegion, id: &str, demand: Demand) {
    let meters = BTreeMap::from([(id.to_owned(), demand)]);
    let told = serde_json::to_vec(&NodeDemand { meters }).unwrap();
    write(region, keys::demand(NodeId::from_bits(1)), told).await;
}

#[tokio::test]
async fn a_share_is_taken_over_links_that_break_before_its_wait_is_over() {
    let (_net, regions) = installation(&["us", "eu", "ap"]).await;
    let (us, eu) = (&regions[0], &regions[1]);
    let (org, id) = (us.org(), MeterId::from_bits(7));
    us.publish(org, vec![create_shared(org, id)]).await;
    us.seen(org).await;
    let id = id.to_string();
    let peer = &eu.replication.regions.peers[0];
    let way = eu.replication.connect(peer, 0).await.unwrap();
    eu.replication.round(&way, &None).await.unwrap();
    eu.seen(org).await;
    let refused = Demand {
        used: WHOLE / 3,
        refused: WHOLE,
    };
    tell(eu, &id, refused).await;
    let first = fraction(eu, org, &id).await;
    let taken = async {
        while fraction(eu, org, &id).await == first {
            // Each link lasts for one exchange.
            let way = eu.replication.connect(peer, 0).await.unwrap();
            eu.replication.move_shares(&way, &None).await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let taken = tokio::time::timeout(Duration::from_secs(60), taken).await;
    assert!(taken.is_ok(), "{first} for ever");
    let (had, has) = (fraction(us, org, &id).await, fraction(eu, org, &id).await);
    assert!(has > first && had + has <= 2 * first, "{had} {has}");
}

#[tokio::test]
async fn control_planes_give_what_is_not_used_to_who_refuses_callers() {
    let (_net, regions) = installation(&["us", "eu", "ap"]).await;
    let org = regions[0].org();
    let id = MeterId::from_bits(7);
    regions[0].publish(org, vec![create_shared(org, id)]).await;
    let followers = regions
        .iter()
        .map(|region| tokio::spawn(Follower::new(region.replication.clone()).run()));
    let followers: Vec<_> = followers.collect();
    let id = id.to_string();
    let busy = Demand {
        used: WHOLE / 3,
        refused: WHOLE,
    };
    let calm = Demand {
        used: WHOLE / 6,
        refused: 0,
    };
    tell(&regions[1], &id, busy).await;
    tell(&regions[2], &id, calm).await;
    let moved = async {
        loop {
            let shares = [
                fraction(&regions[0], org, &id).await,
                fraction(&regions[1], org, &id).await,
                fraction(&regions[2], org, &id).await,
            ];
            assert!(shares.iter().sum::<u64>() <= WHOLE, "{shares:?}");
            // us uses nothing and keeps the floor; ap keeps what it uses and an eighth of it.
            if shares[1] > 700_000 {
                break shares;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let shares = tokio::time::timeout(Duration::from_secs(60), moved)
        .await
        .unwrap();
    assert_eq!(shares[0], 16_666, "{shares:?}");
    assert_eq!(shares[2], 187_499, "{shares:?}");
    assert_eq!(shares.iter().sum::<u64>(), 999_999, "{shares:?}");
    // What was taken is forgotten where it was given.
    let forgotten = async {
        while !regions[0].dump(&[&keys::grants_of(org)]).await.is_empty() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), forgotten)
        .await
        .unwrap();
    followers.iter().for_each(tokio::task::JoinHandle::abort);
}
