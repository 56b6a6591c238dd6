//! Home as other regions tell of it: a higher fact is adopted, and what was handed over to this
//! region is opened on exactly the version that it was sealed at.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use proto::home::{Home, Lies};
use proto::id::OrgId;
use proto::keys;
use proto::org::Role;
use proto::seal;
use proto::store::{Compare, Txn};
use proto::tree::regions_of;
use proto::wire::replication::{Answer, Ask, Moved, Position};
use tracing::{info, warn};

use super::apply::{ApplyError, Guard, Local, commit};
use super::completing::Whole;
use super::connection::Connection;
use super::{Broken, Replication};
use crate::publish::{Author, homes, recovery};

/// What an organisation's home means for a connection to one region.
pub(super) enum Step {
    /// Nothing: another region is home.
    Pass,
    /// Its versions are taken.
    Follow(Home),
    /// It has handed the organisation over to this region.
    TakeOver(Home),
}

impl Replication {
    /// What is to be done about an organisation of which another region tells.
    pub(super) async fn judge(
        &self,
        connection: &Connection,
        guard: &Guard,
        moved: &Moved,
    ) -> Result<Step, Broken> {
        let (org, own) = (moved.org, &self.regions.own);
        let Some(told) = &moved.home else {
            // It says so in a moment: its first start gives every organisation a fact.
            return Ok(Step::Pass);
        };
        let known = self.homes.of(org);
        let home = match known {
            Some(known) if known.epoch >= told.epoch => known,
            _ => match self.hear(connection, guard, org).await? {
                Some(home) => home,
                None => return Ok(Step::Pass),
            },
        };
        if home.region != connection.peer() {
            return Ok(Step::Pass);
        }
        if home.epoch == told.epoch && told.sealed_to.as_ref() == Some(own) {
            return Ok(Step::TakeOver(home));
        }
        Ok(Step::Follow(home))
    }

    /// Learns what a region tells of by itself. Where an organisation is not here, only its home is
    /// believed: no other region says later that it is no more, and the fact would stay.
    async fn hear(
        &self,
        connection: &Connection,
        guard: &Guard,
        org: OrgId,
    ) -> Result<Option<Home>, Broken> {
        let Some(told) = ask_home(connection, org).await? else {
            return Ok(None);
        };
        let mut holds: Vec<Compare> = guard.iter().cloned().collect();
        let is_elsewhere = told.region != connection.peer();
        if is_elsewhere && self.regions.peer(&told.region).is_some() {
            let head = keys::head(org);
            if self.store.get(&head).await?.value.is_none() {
                return Ok(None);
            }
            holds.push(Compare::Present(head));
        }
        self.adopt(connection.peer(), holds, (org, told)).await
    }

    /// Adopts what a region told, where it is higher than the fact here and while all of `holds`
    /// does. Gives the fact that then stands here; `None` where the region names this one, whose
    /// store went back.
    pub(super) async fn adopt(
        &self,
        peer: &str,
        mut holds: Vec<Compare>,
        (org, told): (OrgId, Home),
    ) -> Result<Option<Home>, Broken> {
        let stored = homes::stored(&*self.store, org).await;
        let stored = stored.map_err(ApplyError::from)?;
        if let Some((known, _)) = &stored
            && known.epoch >= told.epoch
        {
            return Ok(Some(known.clone()));
        }
        let (own, region) = (&self.regions.own, &told.region);
        if region == own {
            // What was made here under it is not here any more: nothing may be built on the rest.
            warn!(
                %org,
                "region {} knows {own} as home of {org} since epoch {}, and the store here does \
                 not: it was restored or wiped. Let the history of a region count that has the \
                 newest versions: `requestrocket regions promote REGION --diverged`",
                peer, told.epoch.counter
            );
            return Ok(None);
        }
        if self.regions.peer(region).is_none() {
            let why = format!("its home is region `{region}`, which is not in `regions.peers`");
            return Err(ApplyError::Refused { org, why }.into());
        }
        holds.push(homes::unchanged(org, stored.map(|(_, at)| at)));
        let txn = Txn {
            compares: holds,
            ops: vec![homes::put(org, &told)],
            or_read: Vec::new(),
        };
        commit(&*self.store, org, txn).await?;
        info!(%org, region, "home of {org} is region {region}");
        Ok(Some(told))
    }

    /// Makes this region home: a new epoch begins with a version that has the content of `base`,
    /// which must be the newest here. Its counter is above those of `line` and all `known`.
    /// `whole` is what was fetched for it, and what not.
    pub(super) async fn open(
        &self,
        guard: &Guard,
        org: OrgId,
        line: &Home,
        (base, known, whole): (&Position, &[u64], &Whole),
        author: &str,
    ) -> Result<Position, Broken> {
        if self.publisher.is_regressed(org) {
            let why = "its store went back: `requestrocket recover` first".to_owned();
            return Err(ApplyError::Refused { org, why }.into());
        }
        let local = Local::read(&*self.store, org, None).await?;
        let Some(config) = local
            .config()
            .filter(|_| local.position().as_ref() == Some(base))
        else {
            return Err(ApplyError::Moved(org).into());
        };
        let mut withheld = config.withheld();
        if let Some(set) = withheld.find(|set| !whole.frozen.contains(*set)) {
            let region = regions_of(set);
            let why = format!("what region {region} alone keeps is not here");
            return Err(ApplyError::Refused { org, why }.into());
        }
        if line.lies(base) == Lies::Aside {
            let why = "its newest version here is not of the line that would be gone on with";
            let why = why.to_owned();
            return Err(ApplyError::Refused { org, why }.into());
        }
        let own = &self.regions.own;
        let home = line.reopen(own, base.clone(), known.iter().copied());
        let n = base.n.saturating_add(1);
        let head = config
            .head
            .reopened(home.epoch.clone(), n, seal::random_name());
        let author = Author {
            name: author.to_owned(),
            role: Role::Owner,
            source: None,
        };
        let made = (&author, Timestamp::now());
        let mut ops = recovery::reopening(org, &head, 0, made, self.publisher.signer());
        ops.push(homes::put(org, &home));
        let txn = Txn {
            compares: local
                .compares(guard)
                .into_iter()
                .chain(whole.unswept.clone())
                .collect(),
            ops,
            or_read: Vec::new(),
        };
        commit(&*self.store, org, txn).await?;
        warn!(
            %org, n, counter = home.epoch.counter,
            "region {own} is home of {org} from version {n} on, epoch {}",
            home.epoch.counter
        );
        Ok(Position::from(&head))
    }
}

/// The fact of an organisation as the other region's store has it now.
pub(super) async fn ask_home(connection: &Connection, org: OrgId) -> Result<Option<Home>, Broken> {
    let Answer::Home(json) = connection.ask(&Ask::Home { org }, Duration::ZERO).await? else {
        return Err(Broken::Protocol);
    };
    let parse = |json: Vec<u8>| {
        let parsed = serde_json::from_slice::<Home>(&json);
        parsed.map_err(|error| ApplyError::Refused {
            org,
            why: format!("its home cannot be read: {error}"),
        })
    };
    Ok(json.map(parse).transpose()?)
}

/// Where a region stands: every organisation that it has.
pub(super) type Standing = BTreeMap<OrgId, Moved>;

/// Asks a region for everything that it has.
pub(super) async fn standing(connection: &Connection) -> Result<Standing, Broken> {
    let ask = Ask::News {
        wait_ms: 0,
        applied: Vec::new(),
    };
    match connection.ask(&ask, Duration::ZERO).await? {
        Answer::News { moved, .. } => {
            Ok(moved.into_iter().map(|moved| (moved.org, moved)).collect())
        }
        _ => Err(Broken::Protocol),
    }
}
