//! Facts of retired secrets that were made away from home: an operator revoked in a region that
//! follows. Home asks for them, and every other region has them from home.
//!
//! Only home asks. A follower that took facts from other followers could hear of the end of
//! a secret before it has the version that sets the next one.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use proto::id::{CredentialId, OrgId};
use proto::retired::Retired;
use proto::store::facts::{self, RaiseError};
use proto::store::follow::OrgState;
use proto::version::Generation;
use proto::wire::replication::{Answer, Ask, Moved, PROTOCOL_FACTS, Position};
use tracing::{error, warn};

use super::apply::ApplyError;
use super::connection::Connection;
use super::{Broken, Replication, facts_hash};

type Facts = BTreeMap<CredentialId, Retired>;

/// What was told on a connection.
#[derive(Default)]
pub(super) struct Telling {
    told: BTreeMap<OrgId, Arc<Facts>>,
    /// What is told in several answers.
    under_way: BTreeMap<OrgId, Arc<Facts>>,
}

impl Telling {
    /// The facts after a credential that were not told, as many as fit the bytes.
    pub(super) fn page(
        &mut self,
        (org, after): (OrgId, Option<CredentialId>),
        now: &Arc<Facts>,
        bytes_max: usize,
    ) -> Answer {
        let begun = self.under_way.remove(&org).filter(|_| after.is_some());
        let facts = begun.unwrap_or_else(|| Arc::clone(now));
        let told = self.told.get(&org);
        let is_new = |(id, fact): &(&CredentialId, &Retired)| {
            told.and_then(|told| told.get(*id)) != Some(*fact)
        };
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let (mut page, mut bytes, mut more) = (Vec::new(), 0, false);
        for (id, fact) in facts.range((from, Bound::Unbounded)).filter(is_new) {
            // A struct of texts and numbers always serialises.
            let fact = serde_json::to_vec(fact).unwrap_or_default();
            bytes += fact.len();
            more = bytes > bytes_max && !page.is_empty();
            if more {
                break;
            }
            page.push((*id, fact));
        }
        match more {
            true => drop(self.under_way.insert(org, facts)),
            false => drop(self.told.insert(org, facts)),
        }
        Answer::Facts { facts: page, more }
    }
}

impl Replication {
    /// Raises the facts here to those of a region that follows, where this one is home. No version
    /// of it is stored: what it gives is none.
    pub(super) async fn take_facts(
        &self,
        connection: &Connection,
        moved: &Moved,
    ) -> Result<Option<Position>, Broken> {
        let org = moved.org;
        let known = self.worlds.borrow().orgs.get(&org).cloned();
        let differs = |state: &Arc<OrgState>| facts_hash(&state.retired) != moved.facts;
        let Some(known) = known.filter(differs) else {
            return Ok(None);
        };
        let is_home = self.homes.region_of(org) == self.regions.own;
        if !is_home || connection.protocol() < PROTOCOL_FACTS {
            return Ok(None);
        }
        let mut after = None;
        loop {
            let ask = Ask::Facts { org, after };
            let (facts, more) = match connection.ask(&ask, Duration::ZERO).await? {
                Answer::Facts { facts, more } => (facts, more),
                // Deleted since.
                Answer::Unknown => return Ok(None),
                _ => return Err(Broken::Protocol),
            };
            after = facts.last().map(|(id, _)| *id);
            self.raise_facts(connection.peer(), org, &known, facts)
                .await?;
            if !more || after.is_none() {
                return Ok(None);
            }
        }
    }

    async fn raise_facts(
        &self,
        peer: &str,
        org: OrgId,
        known: &OrgState,
        told: Vec<(CredentialId, Vec<u8>)>,
    ) -> Result<(), Broken> {
        let mut raised = Vec::new();
        for (id, fact) in told {
            let fact: Retired =
                serde_json::from_slice(&fact).map_err(|error| ApplyError::Refused {
                    org,
                    why: format!("a fact of {id} cannot be read: {error}"),
                })?;
            let before = known.retired.get(&id);
            if before.is_none() && known.config.credential(id).is_none() {
                // Of a branch that is not in force.
                continue;
            }
            if *reaches(&fact) > known.config.head.generation().next() {
                error!(
                    %org, region = peer, credential = %id,
                    "region {peer} ends secrets of {id} that were not set yet: it is not believed"
                );
                continue;
            }
            if Some(&fact.clone().joined(before.cloned())) != before {
                warn!(
                    %org, region = peer, credential = %id,
                    "secrets of {id} were revoked in region {peer}, and are so from here on"
                );
                raised.push((id, fact));
            }
        }
        let raised = facts::raise(&*self.store, org, raised).await;
        raised.map_err(|error| match error {
            RaiseError::Store(error) => error.into(),
            RaiseError::Unreadable(error) => ApplyError::Local(error.to_string()).into(),
        })
    }
}

/// The generation up to which a fact ends secrets, now or later.
fn reaches(fact: &Retired) -> &Generation {
    let next = fact.next.as_ref().map(|next| &next.lowest);
    next.map_or(&fact.lowest, |next| next.max(&fact.lowest))
}

#[cfg(test)]
mod tests {
    use proto::version::Epoch;

    use super::*;

    const ORG: OrgId = OrgId::from_bits(7);

    fn fact(n: u64) -> Retired {
        let epoch = Epoch {
            counter: 1,
            region: "eu".into(),
        };
        Retired {
            lowest: Generation { epoch, n },
            next: None,
        }
    }

    fn facts(of: &[(u128, u64)]) -> Arc<Facts> {
        let facts = of.iter();
        let facts = facts.map(|(id, n)| (CredentialId::from_bits(*id), fact(*n)));
        Arc::new(facts.collect())
    }

    /// Asks until there is no more; gives credentials with the number of their fact.
    fn asked(telling: &mut Telling, now: &[&Arc<Facts>], bytes_max: usize) -> Vec<(u128, u64)> {
        let (mut all, mut after) = (Vec::new(), None);
        for now in now.iter().chain(std::iter::repeat(&now[now.len() - 1])) {
            let Answer::Facts { facts, more } = telling.page((ORG, after), now, bytes_max) else {
                panic!("another answer");
            };
            after = facts.last().map(|(id, _)| *id);
            all.extend(facts.into_iter().map(|(id, fact)| {
                let fact: Retired = serde_json::from_slice(&fact).unwrap();
                (id.bits(), fact.lowest.n)
            }));
            if !more {
                break;
            }
        }
        all
    }

    #[test]
    fn each_fact_is_told_once_in_pages_of_any_size() {
        let all = [(1, 1), (2, 1), (3, 1)];
        for bytes_max in [1, 100, 10_000] {
            let mut telling = Telling::default();
            assert_eq!(asked(&mut telling, &[&facts(&all)], bytes_max), all);
            assert_eq!(asked(&mut telling, &[&facts(&all)], bytes_max), []);
            let later = facts(&[(1, 1), (2, 5), (3, 1), (4, 1)]);
            assert_eq!(asked(&mut telling, &[&later], bytes_max), [(2, 5), (4, 1)]);
        }
    }

    #[test]
    fn a_fact_that_rises_between_two_pages_is_told_by_the_next_ask() {
        let mut telling = Telling::default();
        let (before, after) = (facts(&[(1, 1), (2, 1)]), facts(&[(1, 9), (2, 1)]));
        let told = asked(&mut telling, &[&before, &after], 1);
        assert_eq!(told, [(1, 1), (2, 1)]);
        assert_eq!(asked(&mut telling, &[&after], 1), [(1, 9)]);
    }
}
