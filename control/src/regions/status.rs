//! How far the regions have come: what a follower has of home, and what home knows of followers.
//!
//! Kept in memory: what is shown, and what the follower is to take up again (`named_still`), which
//! home tells anew after a start. Lag in seconds is counted by one clock,
//! from the last moment at which everything that home had told was stored here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use proto::exposition::Families;
use proto::id::OrgId;
use proto::tree::Hash;
use proto::wire::replication::Position;

use super::asked_in_vain::AskedInVain;

/// The label of another region. Not `region`: that is the one of the process, which whoever scrapes
/// it sets.
const PEER: &str = "peer";

/// See the module. One per control process.
#[derive(Debug)]
pub struct Status {
    started: Instant,
    leads: AtomicBool,
    following: Mutex<BTreeMap<String, Following>>,
    followers: Mutex<BTreeMap<String, Follower>>,
}

/// What this region has of another one, of what that is home to.
#[derive(Clone, Debug, Default)]
pub struct Following {
    /// Since when the region answers, while it does.
    pub connected: Option<Instant>,
    /// Versions that home has told of and that are not stored here, by organisation.
    pub behind: BTreeMap<OrgId, u64>,
    /// When everything that home had was last stored here.
    pub current_at: Option<Instant>,
    /// When it was last written down what is current here.
    pub noted_at: Option<Instant>,
    /// Organisations whose history here is not that of home; they wait for a person.
    pub diverged: BTreeMap<OrgId, Position>,
    /// Organisations with a version that is not taken, because it is not shown that the region that
    /// should have made it did.
    pub unverified: BTreeMap<OrgId, Unverified>,
    /// Organisations that are not taken for another fault of their own, there or here, with why.
    /// They are tried again.
    pub untaken: BTreeMap<OrgId, String>,
    /// Organisations that the region has no more and that `system` names here still. They go when
    /// it does not.
    pub named_still: BTreeSet<OrgId>,
    /// What it was asked for in vain, by an organisation that is stuck.
    pub asked_in_vain: AskedInVain,
    /// Why the last attempt ended.
    pub error: Option<String>,
    /// Versions stored since the start.
    pub applied: u64,
    /// By how many milliseconds the clock there is ahead of the one here, as last compared;
    /// negative where it is behind. Known while this control plane is connected there.
    pub clock_ahead_ms: Option<i64>,
    /// Whether it was logged that the clock there is off, and not yet that it agrees again. It
    /// outlives connections, so that each of them does not tell of the same skew.
    pub clock_skewed: bool,
    /// How many secrets of that region have a copy here that is sealed to another of its keys than
    /// the one that is known here; none before they were looked through on this connection.
    pub sealed_to_other_keys: Option<u64>,
}

impl Following {
    /// Versions that are to come.
    pub fn lag_versions(&self) -> u64 {
        self.behind.values().sum()
    }

    /// Whether something of an organisation could not be taken.
    pub fn is_stuck(&self, org: OrgId) -> bool {
        self.unverified.contains_key(&org) || self.untaken.contains_key(&org)
    }
}

/// A version that is not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unverified {
    /// The version.
    pub at: Position,
    /// Why, and what to do.
    pub why: String,
}

/// What home knows of a region that follows.
#[derive(Clone, Debug)]
pub struct Follower {
    /// Its connections.
    pub connections: usize,
    /// When it last asked.
    pub asked_at: Instant,
    /// Organisations of which it has another history than this region, for whose decision it waits.
    pub diverged: BTreeSet<OrgId>,
}

impl Default for Status {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            leads: AtomicBool::new(false),
            following: Mutex::default(),
            followers: Mutex::default(),
        }
    }
}

impl Status {
    /// What this region has of another one.
    pub fn following(&self, region: &str) -> Following {
        self.lock().get(region).cloned().unwrap_or_default()
    }

    /// Changes it.
    pub fn follow(&self, region: &str, change: impl FnOnce(&mut Following)) {
        change(self.lock().entry(region.to_owned()).or_default());
    }

    /// What is not taken because nobody can show who made it, of every region.
    pub fn unverified(&self) -> BTreeMap<OrgId, Unverified> {
        let following = self.lock();
        let all = following.values().flat_map(|of| &of.unverified);
        all.map(|(org, unverified)| (*org, unverified.clone()))
            .collect()
    }

    /// What is not taken for another fault, of every region, with why.
    pub fn untaken(&self) -> BTreeMap<OrgId, String> {
        let following = self.lock();
        let all = following.values().flat_map(|of| &of.untaken);
        all.map(|(org, why)| (*org, why.clone())).collect()
    }

    /// Another control plane replicates: what it is refused, and how far clocks are off, is told
    /// by that one.
    pub fn leave_to_others(&self) {
        for of in self.lock().values_mut() {
            of.unverified.clear();
            of.untaken.clear();
            of.diverged.clear();
            of.behind.clear();
            of.connected = None;
            of.clock_ahead_ms = None;
            of.sealed_to_other_keys = None;
        }
    }

    /// The history of an organisation here is that of its home, whichever that is now.
    pub fn agrees(&self, org: OrgId) {
        for of in self.lock().values_mut() {
            of.diverged.remove(&org);
        }
    }

    /// A region has told of everything that it has: what it has no more keeps nothing stuck.
    pub fn keep_only(&self, region: &str, known: &BTreeSet<OrgId>) {
        self.follow(region, |of| {
            of.unverified.retain(|org, _| known.contains(org));
            of.untaken.retain(|org, _| known.contains(org));
            of.diverged.retain(|org, _| known.contains(org));
        });
    }

    /// Whether there is no point in asking a region for content of an organisation.
    pub fn is_pointless(&self, region: &str, org: OrgId, hash: Hash) -> bool {
        let following = self.lock();
        following.get(region).is_some_and(|of| {
            let now = Instant::now();
            of.asked_in_vain
                .is_pointless((org, hash), of.connected, now)
        })
    }

    /// A person asks: every region is asked again.
    pub fn ask_again(&self) {
        for of in self.lock().values_mut() {
            of.asked_in_vain = AskedInVain::default();
        }
    }

    /// The link to a region broke off.
    pub fn broke_off(&self, region: &str, error: String) {
        self.follow(region, |of| {
            of.connected = None;
            of.error = Some(error);
            of.clock_ahead_ms = None;
            of.sealed_to_other_keys = None;
        });
    }

    /// Whether any region answers.
    pub fn is_connected(&self) -> bool {
        self.lock().values().any(|of| of.connected.is_some())
    }

    /// This control plane is the one of its region that replicates, or is not.
    pub fn leads(&self, leads: bool) {
        self.leads.store(leads, Ordering::Relaxed);
    }

    /// Whether it is.
    pub fn is_leading(&self) -> bool {
        self.leads.load(Ordering::Relaxed)
    }

    // A poisoned value is whole: every change to it is one closure of plain assignments.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Following>> {
        self.following
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Seconds since everything that home had was last stored here; since the start when it never
    /// was.
    pub fn lag_s(&self, following: &Following) -> f64 {
        let since = following.current_at.unwrap_or(self.started);
        since.elapsed().as_secs_f64()
    }

    /// The regions that are connected to this control plane, or were.
    pub fn followers(&self) -> BTreeMap<String, Follower> {
        self.others().clone()
    }

    fn others(&self) -> MutexGuard<'_, BTreeMap<String, Follower>> {
        self.followers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// A region asks.
    pub fn asked(&self, region: &str) {
        if let Some(follower) = self.others().get_mut(region) {
            follower.asked_at = Instant::now();
        }
    }

    /// A region asks for what follows its version of an organisation, and the history here leads
    /// through that or not.
    pub fn forks(&self, region: &str, org: OrgId, forks: bool) {
        if let Some(follower) = self.others().get_mut(region) {
            match forks {
                true => follower.diverged.insert(org),
                false => follower.diverged.remove(&org),
            };
        }
    }

    /// A region's connection is up until what is returned is dropped.
    pub fn connected<'s>(&'s self, region: &str) -> Connected<'s> {
        let mut followers = self.others();
        let follower = followers.entry(region.to_owned()).or_insert(Follower {
            connections: 0,
            asked_at: Instant::now(),
            diverged: BTreeSet::new(),
        });
        follower.connections += 1;
        drop(followers);
        Connected {
            status: self,
            region: region.to_owned(),
        }
    }

    /// As metrics; `homes` are the other regions that are home to something.
    pub fn families(&self, homes: &[String]) -> Families {
        let mut out = Families::default();
        let help =
            "Organisations with a version that is not taken: its signature is missing or wrong.";
        let unverified = self.unverified().len() as f64;
        out.gauge("requestrocket_replication_unverified", help)
            .is(unverified);
        let help = "Organisations that are not taken for another fault of their own, and are tried \
                    again.";
        let untaken = self.untaken().len() as f64;
        out.gauge("requestrocket_replication_untaken", help)
            .is(untaken);
        let help = "How far the clock of another region is ahead of that of this machine, as last \
                    compared; negative: behind. Of the control plane that replicates.";
        let clocks = out.gauge("requestrocket_region_clock_offset_seconds", help);
        for (region, following) in &*self.lock() {
            if let Some(ahead_ms) = following.clock_ahead_ms {
                clocks.with([(PEER, region.clone().into())], ahead_ms as f64 / 1e3);
            }
        }
        let help = "Connections of a region that follows this one.";
        let family = out.gauge("requestrocket_replication_followers", help);
        for (region, follower) in self.followers() {
            family.with([(PEER, region.into())], follower.connections as f64);
        }
        self.of_homes(homes, &mut out);
        out
    }

    /// What this region has of each of these.
    fn of_homes(&self, homes: &[String], out: &mut Families) {
        let following = homes.iter().map(|home| (home, self.following(home)));
        let following: Vec<(&String, Following)> = following.collect();
        type Value = fn(&Status, &Following) -> f64;
        let families: [(&str, &str, Value); 5] = [
            (
                "requestrocket_replication_connected",
                "Whether this control plane is the one that replicates, and that home answers it.",
                |_, of| f64::from(u8::from(of.connected.is_some())),
            ),
            (
                "requestrocket_replication_lag_versions",
                "Versions that a home has told of and that are not stored here.",
                |_, of| of.lag_versions() as f64,
            ),
            (
                "requestrocket_replication_lag_seconds",
                "Seconds since everything that a home had was stored here.",
                |status, of| status.lag_s(of),
            ),
            (
                "requestrocket_replication_diverged",
                "Organisations whose history here is not that of their home.",
                |_, of| of.diverged.len() as f64,
            ),
            (
                "requestrocket_replication_applied",
                "Versions of a home stored here since the start.",
                |_, of| of.applied as f64,
            ),
        ];
        for (name, help, value) in families {
            let family = out.gauge(name, help);
            for (home, of) in &following {
                family.with([(PEER, (*home).clone().into())], value(self, of));
            }
        }
    }
}

/// A connection of a region that follows.
pub struct Connected<'s> {
    status: &'s Status,
    region: String,
}

impl Drop for Connected<'_> {
    fn drop(&mut self) {
        if let Some(follower) = self.status.others().get_mut(&self.region) {
            follower.connections = follower.connections.saturating_sub(1);
            if follower.connections == 0 {
                follower.diverged.clear();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proto::exposition::text::Form;

    use super::*;

    #[test]
    fn home_counts_connections() {
        let status = Status::default();
        status.asked("eu");
        assert!(status.followers().is_empty(), "it is not connected");
        let first = status.connected("eu");
        let second = status.connected("eu");
        drop(first);
        assert_eq!(status.followers()["eu"].connections, 1);
        let org = OrgId::from_bits(1);
        for forks in [true, false, true] {
            status.forks("eu", org, forks);
            assert_eq!(status.followers()["eu"].diverged.contains(&org), forks);
        }
        let text = status.families(&[]).text(Form::Prometheus);
        assert!(text.contains("requestrocket_replication_followers{peer=\"eu\"} 1"));
        drop(second);
        assert_eq!(status.followers()["eu"].connections, 0);
        assert!(
            status.followers()["eu"].diverged.is_empty(),
            "it tells anew"
        );
    }

    #[test]
    fn what_is_refused_is_told_until_another_replicates() {
        let status = Status::default();
        let (org, hash) = (OrgId::from_bits(1), proto::tree::Hash::of(b"x"));
        let epoch = proto::version::Epoch {
            counter: 1,
            region: "us".into(),
        };
        let at = Position { epoch, n: 7, hash };
        let why = "it was altered".to_owned();
        let refused = Unverified { at, why };
        let why = "a leaf is missing".to_owned();
        status.follow("us", |of| {
            of.unverified.insert(org, refused);
            of.untaken.insert(OrgId::from_bits(2), why);
            of.untaken.insert(OrgId::from_bits(3), "another".to_owned());
        });
        assert_eq!(status.unverified().len(), 1);
        let told = |unverified: u64, untaken: u64| {
            let text = status.families(&["us".to_owned()]).text(Form::Prometheus);
            [("unverified", unverified), ("untaken", untaken)]
                .iter()
                .all(|(of, count)| {
                    let line = format!("requestrocket_replication_{of} {count}");
                    text.lines().any(|found| found == line)
                })
        };
        assert!(told(1, 2));
        status.leave_to_others();
        assert!(told(0, 0));
    }

    #[test]
    fn a_clock_is_told_while_this_control_plane_is_connected_there() {
        let status = Status::default();
        let compared = || {
            for region in ["us", "ap"] {
                status.follow(region, |of| {
                    of.clock_ahead_ms = Some(3_500);
                    of.clock_skewed = true;
                });
            }
        };
        let told = || {
            let text = status.families(&[]).text(Form::Prometheus);
            let lines = text.lines();
            let of_clocks =
                lines.filter(|line| line.starts_with("requestrocket_region_clock_offset_seconds{"));
            of_clocks.map(str::to_owned).collect::<Vec<_>>()
        };
        let line =
            |peer| format!("requestrocket_region_clock_offset_seconds{{peer=\"{peer}\"}} 3.5");
        compared();
        assert_eq!(told(), [line("ap"), line("us")]);
        status.broke_off("us", "reset".to_owned());
        assert_eq!(told(), [line("ap")]);
        assert_eq!(status.following("us").error.as_deref(), Some("reset"));
        compared();
        status.leave_to_others();
        assert_eq!(told(), [""; 0]);
        let is_logged = |region| status.following(region).clock_skewed;
        assert!(is_logged("us") && is_logged("ap"), "and not logged anew");
    }

    #[test]
    fn a_follower_shows_what_it_lacks_of_each_home() {
        let status = Status::default();
        status.follow("us", |following| {
            following.behind.insert(OrgId::from_bits(1), 3);
            following.behind.insert(OrgId::from_bits(2), 4);
            following.connected = Some(Instant::now());
        });
        status.follow("ap", |following| {
            following.behind.insert(OrgId::from_bits(3), 5);
        });
        let _follows = status.connected("us");
        let text = status.families(&["us".to_owned(), "ap".to_owned()]);
        let text = text.text(Form::Prometheus);
        for line in [
            "requestrocket_replication_connected{peer=\"us\"} 1",
            "requestrocket_replication_connected{peer=\"ap\"} 0",
            "requestrocket_replication_lag_versions{peer=\"us\"} 7",
            "requestrocket_replication_lag_versions{peer=\"ap\"} 5",
            "requestrocket_replication_diverged{peer=\"us\"} 0",
            // It may be home to something itself.
            "requestrocket_replication_followers{peer=\"us\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }
}
