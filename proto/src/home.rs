//! Which region is home to an organisation: the fact that each region's store keeps of it.
//!
//! `home/{org}` is compared by every transaction that moves a head, so that within one store nobody
//! commits under a fact that is over. Facts of different regions are ordered by epoch: whoever
//! learns of a higher one adopts it. A fact names the openings of its history: on which version
//! each epoch began. By them a region tells whether what it holds lies on the line that is in
//! force, or on a branch that is to be set aside. Nothing here does IO.

use serde::{Deserialize, Serialize};

use crate::version::Epoch;
use crate::wire::replication::Position;

/// Openings that a fact remembers; what is older is not told apart any more.
pub const OPENINGS_MAX: usize = 32;

/// The fact of one organisation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Home {
    /// The history that versions are made in.
    pub epoch: Epoch,
    /// The region in which they are made.
    pub region: String,
    /// Set while another region is to take over; then no version is made anywhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed: Option<Seal>,
    /// The openings of the history, the oldest first; the first epoch of all has none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub openings: Vec<Opening>,
}

/// The end of a home that hands over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seal {
    /// The region that is to be home.
    pub to: String,
    /// The last version. The new home opens on exactly this one.
    pub last: Position,
}

/// The beginning of an epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Opening {
    /// The epoch.
    pub epoch: Epoch,
    /// The version that its first one was made from.
    pub base: Position,
}

/// How a version lies to a line of history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lies {
    /// On it.
    On,
    /// On a branch of its own.
    Aside,
    /// In an epoch that is older than what the line remembers.
    Unknown,
}

impl Home {
    /// The fact of an organisation that never had another home.
    pub fn first(epoch: Epoch, region: &str) -> Self {
        Self {
            epoch,
            region: region.to_owned(),
            sealed: None,
            openings: Vec::new(),
        }
    }

    /// Whether this region may make versions.
    pub fn is_open_in(&self, region: &str) -> bool {
        self.sealed.is_none() && self.region == region
    }

    /// The same, sealed at its last version for another region.
    pub fn seal(&self, to: &str, last: Position) -> Self {
        let to = to.to_owned();
        Self {
            sealed: Some(Seal { to, last }),
            ..self.clone()
        }
    }

    /// What follows when a region opens a new epoch on a version. Its counter is above all that
    /// are given.
    pub fn reopen(&self, region: &str, base: Position, known: impl Iterator<Item = u64>) -> Self {
        let highest = known.fold(self.epoch.counter.max(base.epoch.counter), u64::max);
        let epoch = Epoch {
            counter: highest.saturating_add(1),
            region: region.to_owned(),
        };
        let mut openings = self.openings.clone();
        // What was opened beyond the version that counts is not of this line.
        openings.retain(|opening| opening.epoch <= base.epoch);
        openings.push(Opening {
            epoch: epoch.clone(),
            base,
        });
        let excess = openings.len().saturating_sub(OPENINGS_MAX);
        openings.drain(..excess);
        Self {
            epoch,
            region: region.to_owned(),
            sealed: None,
            openings,
        }
    }

    /// How a version lies to this line. An epoch's versions are made in one store, so they are one
    /// line; it belongs to this one up to the version that the next epoch was opened on.
    pub fn lies(&self, version: &Position) -> Lies {
        if version.epoch == self.epoch {
            return Lies::On;
        }
        let mut openings = self.openings.iter();
        if let Some(next) = openings.find(|next| next.base.epoch == version.epoch) {
            let before = version.n < next.base.n;
            return match before || *version == next.base {
                true => Lies::On,
                false => Lies::Aside,
            };
        }
        let oldest = self.openings.first().map(|first| &first.base.epoch);
        match version.epoch < *oldest.unwrap_or(&self.epoch) {
            true => Lies::Unknown,
            false => Lies::Aside,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Hash;

    fn epoch(counter: u64, region: &str) -> Epoch {
        Epoch {
            counter,
            region: region.into(),
        }
    }

    fn at(counter: u64, region: &str, n: u64) -> Position {
        Position {
            epoch: epoch(counter, region),
            n,
            hash: Hash::of(format!("{counter}.{region}.{n}").as_bytes()),
        }
    }

    /// us made 1 to 10 and went on alone; eu opened on 10, ap on eu's 12.
    fn line() -> Home {
        let none = std::iter::empty;
        Home::first(epoch(1, "us"), "us")
            .reopen("eu", at(1, "us", 10), none())
            .reopen("ap", at(2, "eu", 12), none())
    }

    #[test]
    fn a_version_lies_on_a_line_or_aside() {
        let other_ten = Position {
            hash: Hash::of(b"other"),
            ..at(1, "us", 10)
        };
        for (version, expected) in [
            (at(1, "us", 3), Lies::On),
            (at(1, "us", 10), Lies::On),
            (at(1, "us", 11), Lies::Aside),
            (other_ten, Lies::Aside),
            (at(2, "eu", 12), Lies::On),
            (at(2, "eu", 13), Lies::Aside),
            (at(2, "us", 11), Lies::Aside),
            (at(3, "ap", 99), Lies::On),
            (at(0, "us", 1), Lies::Unknown),
        ] {
            assert_eq!(line().lies(&version), expected, "{version:?}");
        }
        let first = Home::first(epoch(2, "us"), "us");
        assert_eq!(first.lies(&at(1, "us", 1)), Lies::Unknown);
        assert_eq!(first.lies(&at(3, "eu", 1)), Lies::Aside);
    }

    #[test]
    fn an_opening_takes_the_place_of_those_beyond_its_base() {
        // us never heard of 2.eu's versions and is promoted with its own 11.
        let again = line().reopen("us", at(1, "us", 11), std::iter::once(7));
        assert_eq!(again.epoch, epoch(8, "us"));
        assert_eq!(again.openings.len(), 1);
        assert_eq!(again.lies(&at(1, "us", 11)), Lies::On);
        assert_eq!(again.lies(&at(2, "eu", 11)), Lies::Aside);
        // From the first version that eu made it keeps the way there.
        let further = line().reopen("us", at(2, "eu", 11), std::iter::empty());
        assert_eq!(further.openings.len(), 2);
        assert_eq!(further.lies(&at(2, "eu", 12)), Lies::Aside);
        assert_eq!(further.lies(&at(1, "us", 10)), Lies::On);
    }

    #[test]
    fn what_it_remembers_has_a_bound() {
        let mut home = Home::first(epoch(1, "us"), "us");
        for n in 0..100 {
            let base = Position {
                n: n + 1,
                epoch: home.epoch.clone(),
                ..at(1, "us", 1)
            };
            home = home.reopen("us", base, std::iter::empty());
        }
        assert_eq!(home.openings.len(), OPENINGS_MAX);
        assert_eq!(home.lies(&at(2, "us", 2)), Lies::Unknown);
        assert!(serde_json::to_vec(&home).unwrap().len() < 16 * 1024);
    }

    #[test]
    fn it_is_kept_as_json() {
        let home = line();
        let sealed = home.seal("us", at(3, "ap", 20));
        assert!(home.is_open_in("ap") && !home.is_open_in("us"));
        assert!(!sealed.is_open_in("ap") && !sealed.is_open_in("us"));
        for home in [home, sealed, Home::first(epoch(1, "us"), "us")] {
            let json = serde_json::to_vec(&home).unwrap();
            assert_eq!(serde_json::from_slice::<Home>(&json).unwrap(), home);
        }
        assert!(serde_json::from_str::<Home>("{\"epoch\": 1}").is_err());
    }
}
