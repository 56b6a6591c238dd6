//! Random schedules of writes, cuts, hand-overs and promotions over three regions: healed, one line
//! is in force everywhere, and every version that was ever answered is on it or set aside.

use std::collections::BTreeSet;

use proto::home::Lies;
use proto::keys;
use proto::tree::VersionRecord;
use proto::wire::replication::Position;

use super::by_region::{Swept, pinned, relabelled};
use super::moves::{comes, equal, following, home};
use super::net::{Region, create_target, installation, installation_by_region, rename};

/// A number sequence that is the same in every run (xorshift64*, Marsaglia and Vigna).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        number as usize % bound
    }
}

const NAMES: [&str; 3] = ["us", "eu", "ap"];

#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens_nothing_that_was_answered_is_lost() {
    all_schedules(false).await;
}

/// The same where eu and home alone keep some of it. Who lacks that is not made home.
#[tokio::test(flavor = "multi_thread")]
async fn nor_of_what_some_regions_keep_alone() {
    all_schedules(true).await;
}

async fn all_schedules(by_region: bool) {
    let (mut moves, mut branches) = (0, 0);
    for seed in 1..=8 {
        let (moved, aside) = schedule(seed, by_region).await;
        moves += moved;
        branches += aside;
    }
    // Or the schedules would try nothing.
    assert!(
        moves > 8 && branches > 8,
        "{moves} moves, {branches} versions aside"
    );
}

/// Gives how often home moved, and how many versions were set aside.
async fn schedule(seed: u64, by_region: bool) -> (usize, usize) {
    let (net, regions) = match by_region {
        true => installation_by_region(&NAMES).await,
        false => installation(&NAMES).await,
    };
    let all: Vec<&Region> = regions.iter().collect();
    let _following: Vec<_> = all.iter().map(|region| following(region)).collect();
    let org = regions[0].org();
    // What regions do not keep is swept meanwhile, and all versions are kept.
    let swept = by_region.then(|| all.iter().map(|region| Swept::of(region, 1_000)));
    let _swept: Vec<_> = swept.into_iter().flatten().collect();
    let first = match by_region {
        true => pinned(&regions[0], &["eu"].into()),
        false => vec![create_target(1, "first")],
    };
    regions[0].publish(org, first).await;
    equal(&all).await;
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut made: BTreeSet<(u64, String)> = BTreeSet::new();
    for step in 0..40 {
        let at = random.below(3);
        match random.below(10) {
            0..=5 => {
                let name = format!("{seed}-{step}");
                let change = match by_region && random.below(2) == 0 {
                    true => relabelled(name),
                    false => rename(1, &name),
                };
                if let Ok(published) = regions[at].try_publish(org, vec![change]).await {
                    made.insert((published.n, published.hash.to_string()));
                }
            }
            6 => net.cut(NAMES[at], NAMES[(at + 1) % 3]),
            7 if random.below(3) == 0 => net.heal(),
            7 => {
                // Home alone, writing; the others go on without it.
                let home = home(&regions[at], org).await.region;
                let others = NAMES.iter().filter(|name| **name != home);
                others.for_each(|other| net.cut(&home, other));
            }
            8 => drop(regions[at].replication.promote(true).await),
            _ => {
                // Where it is not opened in time it stays sealed: that is one of the schedules.
                let to = NAMES[(at + 1) % 3];
                let _ = regions[at].publisher.seal_home(org, to).await;
            }
        }
    }
    net.heal();
    // A home that is sealed opens elsewhere, or had lost already to a higher epoch.
    comes("a home that is open, for all", || async {
        let fact = home(all[0], org).await;
        for region in &all[1..] {
            if home(region, org).await != fact {
                return false;
            }
        }
        fact.is_open_in(&fact.region)
    })
    .await;
    equal(&all).await;
    let fact = home(all[0], org).await;
    let head = all[0].head(org).await.unwrap();
    assert_eq!(fact.lies(&Position::from(&head)), Lies::On);
    let mut kept: BTreeSet<(u64, String)> = BTreeSet::new();
    let mut branches = 0;
    for region in &all {
        let records = region.dump(&[&keys::versions(org)]).await;
        for record in records.values() {
            let record: VersionRecord = serde_json::from_slice(record).unwrap();
            assert_eq!(
                fact.lies(&Position::from(&record.head)),
                Lies::On,
                "seed {seed}"
            );
            kept.insert((record.head.n, record.head.hash.to_string()));
        }
        for (of, record) in region.publisher.aside().await.unwrap() {
            branches += 1;
            // Each organisation has a line of its own.
            let fact = home(region, of).await;
            assert_eq!(
                fact.lies(&Position::from(&record.head)),
                Lies::Aside,
                "seed {seed}"
            );
            kept.insert((record.head.n, record.head.hash.to_string()));
        }
    }
    let lost: Vec<_> = made.difference(&kept).collect();
    assert!(lost.is_empty(), "seed {seed}: {lost:?}");
    (fact.openings.len(), branches)
}
