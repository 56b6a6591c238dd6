//! Many organisations at one time: how many round trips they take one after the other, and that
//! none waits for a slow one.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use proto::id::OrgId;
use proto::keys;
use proto::store::{Op, Store, Txn};
use proto::tree::{Hash, SYSTEM_ORG};
use proto::wire::link::{GREETING_BYTES_MAX, Welcome, read_frame, write_frame};
use proto::wire::replication::{
    AnswerPart, Ask, NumberedAsk, PART_BYTES, PROTOCOL, PROTOCOL_NUMBERED, RegionHello,
};
use proto::wire::{self, HEAD_BYTES, PAYLOAD_BYTES_MAX};
use tokio::io::{AsyncWriteExt, DuplexStream};
use tokio::sync::{mpsc, watch};

use super::super::connection::Connection;
use super::super::source::Source;
use super::super::taking::Taking;
use super::super::turns::ORGS_AT_ONCE;
use super::departed::{create_org, many};
use super::moves::comes;
use super::net::{Region, create_target, installation, rename};

const FRAME_BYTES: usize = HEAD_BYTES + PAYLOAD_BYTES_MAX;
/// Longest wait for what is to come; nothing is told by the time that it takes.
const COMES: Duration = Duration::from_secs(60);
const ORGS: usize = 50;

/// Which answers to asks for versions are kept back.
#[derive(Clone, Default)]
pub struct Held {
    /// The organisations; empty: all.
    of: BTreeSet<OrgId>,
    /// The asks whose answers are kept back.
    asks: BTreeSet<u64>,
    is_open: bool,
}

/// A way on which answers to asks for versions are kept back.
pub struct Gate(watch::Sender<Held>);

impl Gate {
    pub fn new(of: impl IntoIterator<Item = OrgId>) -> Arc<Self> {
        let of = of.into_iter().collect();
        Arc::new(Self(watch::Sender::new(Held {
            of,
            ..Held::default()
        })))
    }

    /// Waits until so many answers are kept back.
    pub async fn holds(&self, count: usize) {
        let mut held = self.0.subscribe();
        let holding = held.wait_for(|held| held.asks.len() >= count);
        let came = tokio::time::timeout(COMES, holding).await;
        let held = self.0.borrow().asks.len();
        assert!(
            came.is_ok(),
            "{held} are asked for at one time, not {count}"
        );
        assert_eq!(held, count);
    }

    /// Lets go what is kept back now.
    fn let_go(&self) {
        self.0.send_modify(|held| held.asks.clear());
    }

    /// Keeps nothing back any more.
    pub fn open(&self) {
        self.0.send_modify(|held| {
            held.is_open = true;
            held.asks.clear();
        });
    }

    fn asked(&self, ask: &NumberedAsk) {
        if let Ask::RememberedVersions { org, .. } = &ask.ask {
            self.0.send_if_modified(|held| {
                let is_held = !held.is_open && (held.of.is_empty() || held.of.contains(org));
                is_held && held.asks.insert(ask.number)
            });
        }
    }

    /// Connects `eu` to a source through the gate.
    pub async fn connect(self: &Arc<Self>, source: Arc<Source>) -> Connection {
        let (near, asking) = tokio::io::duplex(64 * 1024);
        let (answering, mut far) = tokio::io::duplex(64 * 1024);
        tokio::spawn(async move {
            let greeting = read_frame(&mut far, GREETING_BYTES_MAX).await;
            let peer = "127.0.0.1:1".parse().unwrap();
            let _ = source
                .attend(far, peer, &greeting.unwrap().unwrap(), |_| true)
                .await;
        });
        tokio::spawn(self.clone().pass(asking, answering));
        let between = ("eu", "us");
        Connection::over(Box::new(near), between).await.unwrap()
    }

    async fn pass(self: Arc<Self>, mut near: DuplexStream, mut far: DuplexStream) {
        let hello = read_frame(&mut near, FRAME_BYTES).await.unwrap().unwrap();
        far.write_all(&hello).await.unwrap();
        let welcome = read_frame(&mut far, FRAME_BYTES).await.unwrap().unwrap();
        near.write_all(&welcome).await.unwrap();
        let (mut asks, mut to_asker) = tokio::io::split(near);
        let (mut answers, mut to_source) = tokio::io::split(far);
        let (came, mut parts) = mpsc::channel(1);
        let asking = async {
            while let Ok(Some(frame)) = read_frame(&mut asks, FRAME_BYTES).await {
                self.asked(&wire::decode(&frame).unwrap());
                to_source.write_all(&frame).await.unwrap();
            }
        };
        let answering = async {
            while let Ok(Some(frame)) = read_frame(&mut answers, FRAME_BYTES).await {
                let part: AnswerPart = wire::decode(&frame).unwrap();
                came.send(part).await.unwrap();
            }
        };
        let passing = async {
            let (mut held, mut back) = (self.0.subscribe(), Vec::<AnswerPart>::new());
            loop {
                tokio::select! {
                    Some(part) = parts.recv() => back.push(part),
                    Ok(()) = held.changed() => {}
                }
                let is_held = held.borrow_and_update().asks.clone();
                let (stay, go) = back
                    .into_iter()
                    .partition(|part| is_held.contains(&part.number));
                back = stay;
                let go: Vec<AnswerPart> = go;
                for part in go {
                    if write_frame(&mut to_asker, &part).await.is_err() {
                        return;
                    }
                }
            }
        };
        tokio::select! { () = asking => {}, () = answering => {}, () = passing => {} }
    }
}

pub async fn same_head(us: &Region, eu: &Region, org: OrgId) -> bool {
    let here = eu.head(org).await;
    here.is_some() && here == us.head(org).await
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_many_organisations_take_a_few_round_trips() {
    let (us, eu, orgs) = many(ORGS).await;
    for org in &orgs {
        us.publish(*org, vec![rename(1, "second")]).await;
        us.seen(*org).await;
    }
    let gate = Gate::new([]);
    let way = gate.connect(us.source.clone()).await;
    let taking = eu.replication.round(&way, &None);
    let counting = async {
        let (mut left, mut trips) = (ORGS, 0);
        while left > 0 {
            let now = left.min(ORGS_AT_ONCE);
            gate.holds(now).await;
            gate.let_go();
            left -= now;
            trips += 1;
        }
        trips
    };
    let (taken, trips) = tokio::join!(taking, counting);
    assert_eq!(trips, ORGS.div_ceil(ORGS_AT_ONCE));
    let taken = taken.unwrap();
    for org in orgs {
        assert!(same_head(&us, &eu, org).await, "{org}");
        assert!(taken.iter().any(|(of, _)| *of == org), "{org}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_organisation_holds_up_system_alone() {
    let (us, eu, orgs) = many(ORGS).await;
    let (slow, others) = orgs.split_first().unwrap();
    us.publish(*slow, vec![rename(1, "second")]).await;
    us.seen(*slow).await;
    let gate = Gate::new([*slow]);
    let way = gate.connect(us.source.clone()).await;
    let mut taking = Taking::new(&eu.replication, &way, &None);
    let taking = async {
        loop {
            taking.go_on().await.unwrap();
        }
    };
    let system = eu.head(SYSTEM_ORG).await;
    let test = async {
        gate.holds(1).await;
        // Told later than the slow one: every other organisation, twice; and a new one.
        for name in ["second", "third"] {
            for org in others {
                us.publish(*org, vec![rename(1, name)]).await;
            }
            for org in others {
                comes("the others", || same_head(&us, &eu, *org)).await;
            }
        }
        let new = OrgId::new();
        us.publish(SYSTEM_ORG, vec![create_org(new, "new")]).await;
        us.publish(new, vec![create_target(1, "first")]).await;
        us.seen(SYSTEM_ORG).await;
        comes("the new one", || same_head(&us, &eu, new)).await;
        us.publish(new, vec![rename(1, "second")]).await;
        comes("the new one again", || same_head(&us, &eu, new)).await;
        assert_eq!(eu.head(SYSTEM_ORG).await, system, "it names the slow one");
        assert!(!same_head(&us, &eu, *slow).await);
        // What was stored is told to home while the slow one is under way.
        let told = || async {
            let told = us.dump(&[&keys::replicated("eu", new)]).await;
            let newest = us.head(new).await.unwrap().hash.to_string();
            let value = told.into_values().next().unwrap_or_default();
            String::from_utf8_lossy(&value).contains(&newest)
        };
        comes("what home is told", told).await;
        gate.open();
        comes("the slow one", || same_head(&us, &eu, *slow)).await;
        comes("system", || same_head(&us, &eu, SYSTEM_ORG)).await;
    };
    tokio::select! {
        () = taking => unreachable!("it goes on for ever"),
        () = test => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_earlier_program_is_asked_one_after_the_other() {
    let (us, eu, orgs) = many(ORGS).await;
    for org in &orgs {
        us.publish(*org, vec![rename(1, "second")]).await;
        us.seen(*org).await;
    }
    let (near, mut far) = tokio::io::duplex(64 * 1024);
    let source = us.source.clone();
    tokio::spawn(async move {
        let greeting = read_frame(&mut far, GREETING_BYTES_MAX).await;
        let peer = "127.0.0.1:1".parse().unwrap();
        let greeting = greeting.unwrap().unwrap();
        let _ = source.attend(far, peer, &greeting, |_| true).await;
    });
    let earlier = PROTOCOL_NUMBERED - 1;
    let way = Connection::over_earlier(Box::new(near), ("eu", "us"), earlier);
    let way = way.await.unwrap();
    assert_eq!(way.protocol(), earlier);
    let taken = eu.replication.round(&way, &None).await.unwrap();
    for org in orgs {
        assert!(same_head(&us, &eu, org).await, "{org}");
        assert!(taken.iter().any(|(of, _)| *of == org), "{org}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_answer_does_not_wait_for_a_long_one() {
    let (_, regions) = installation(&["us", "eu"]).await;
    let us = &regions[0];
    let (org, hash) = (us.org(), Hash::of(b"large"));
    let large = vec![7; 20 * PART_BYTES];
    let put = Txn {
        ops: vec![Op::put(keys::leaf(org, &hash), large)],
        ..Txn::default()
    };
    us.store.txn(put).await.unwrap();
    let (mut near, mut far) = tokio::io::duplex(2 * PART_BYTES);
    let source = us.source.clone();
    let hello = RegionHello {
        protocol: PROTOCOL,
        region: "eu".into(),
    };
    let greeting = wire::encode(&hello).unwrap();
    tokio::spawn(async move {
        let peer = "127.0.0.1:1".parse().unwrap();
        let _ = source.attend(&mut far, peer, &greeting, |_| true).await;
    });
    let welcome = read_frame(&mut near, FRAME_BYTES).await.unwrap().unwrap();
    let welcome: Welcome = wire::decode(&welcome).unwrap();
    assert_eq!(welcome.refused, None);
    let long = Ask::Leaves {
        org,
        hashes: vec![hash],
    };
    let mut ends = Vec::new();
    for (number, ask) in [(1, long), (2, Ask::Clock)] {
        let ask = NumberedAsk { number, ask };
        write_frame(&mut near, &ask).await.unwrap();
        if number == 1 {
            // The long one is on its way.
            let first = read_frame(&mut near, FRAME_BYTES).await.unwrap().unwrap();
            let first: AnswerPart = wire::decode(&first).unwrap();
            assert!(first.number == 1 && !first.last);
        }
    }
    while ends.len() < 2 {
        let frame = read_frame(&mut near, FRAME_BYTES).await.unwrap().unwrap();
        let part: AnswerPart = wire::decode(&frame).unwrap();
        assert!(part.bytes.len() <= PART_BYTES);
        ends.extend(part.last.then_some(part.number));
    }
    assert_eq!(ends, [2, 1]);
}
