//! What goes with a version: secrets sealed to this region, and the facts of retired ones.

use std::time::Duration;

use proto::id::CredentialId;
use proto::keys;
use proto::retired::Retired;
use proto::store::{Compare, Op, Store, Txn, TxnOutcome};
use proto::tree::OrgConfig;
use proto::wire::replication::{Answer, Ask, SEALED_MAX, Versions};

use super::apply::{ApplyError, Local, Plan};
use super::connection::Connection;
use super::{SealName, sealed_names};
use crate::publish::writes::json;

/// Facts that go into the head's transaction; more of them go before it.
const FACTS_WITH_HEAD: usize = 30;

impl Local {
    /// The secrets that the version names beyond those of the one here, and the end of those that
    /// it does not name any more.
    pub(super) async fn add_sealed(
        &self,
        connection: &mut Connection,
        config: &OrgConfig,
        versions: &Versions,
        plan: &mut Plan,
    ) -> Result<(), ApplyError> {
        let before = self.config.as_deref().map(sealed_names).unwrap_or_default();
        let after = sealed_names(config);
        let mut lacking: Vec<SealName> = after.difference(&before).cloned().collect();
        for part in &versions.sealed {
            let name = (part.credential, part.seal_id.clone());
            if let Ok(at) = lacking.binary_search(&name) {
                lacking.remove(at);
                let put = self.sealed_put(&name, &part.value, connection);
                plan.writes.before.push(put);
            }
        }
        while !lacking.is_empty() {
            let names = lacking[..lacking.len().min(SEALED_MAX)].to_vec();
            let ask = Ask::Sealed {
                org: self.org,
                names: names.clone(),
            };
            let Answer::Sealed(values) = connection.ask(&ask, Duration::ZERO).await? else {
                return Err(self.refused("home answered what was not asked".into()));
            };
            if values.is_empty() {
                return Err(self.refused("home answered nothing".into()));
            }
            lacking.drain(..values.len().min(names.len()));
            for (name, value) in names.iter().zip(values) {
                // None for this region: nodes report it as missing.
                if !value.is_empty() {
                    let put = self.sealed_put(name, &value, connection);
                    plan.writes.before.push(put);
                }
            }
        }
        let over = before.difference(&after);
        let key = |(credential, seal): &SealName| {
            keys::secret(self.org, *credential, seal, connection.region())
        };
        plan.writes
            .after
            .extend(over.map(|name| Op::Delete(key(name))));
        Ok(())
    }

    fn sealed_put(
        &self,
        (credential, seal): &SealName,
        value: &[u8],
        connection: &Connection,
    ) -> Op {
        let key = keys::secret(self.org, *credential, seal, connection.region());
        Op::put(key, value.to_vec())
    }

    /// Raises the facts of retired secrets to those of home; nothing lowers them.
    pub(super) async fn add_facts(
        &self,
        store: &dyn Store,
        versions: &Versions,
        plan: &mut Plan,
    ) -> Result<(), ApplyError> {
        let early = versions.retired.len() > FACTS_WITH_HEAD;
        for facts in versions.retired.chunks(FACTS_WITH_HEAD) {
            let mut raising = Txn::default();
            for (credential, fact) in facts {
                self.raise(store, *credential, fact, &mut raising).await?;
            }
            if !early {
                plan.writes.compares.append(&mut raising.compares);
                plan.writes.with_head.append(&mut raising.ops);
            } else if !raising.ops.is_empty()
                && let TxnOutcome::Conflict(_) = store.txn(raising).await?
            {
                return Err(ApplyError::Moved(self.org));
            }
        }
        Ok(())
    }

    async fn raise(
        &self,
        store: &dyn Store,
        credential: CredentialId,
        fact: &[u8],
        raising: &mut Txn,
    ) -> Result<(), ApplyError> {
        let unreadable = |error: serde_json::Error| self.refused(format!("a fact: {error}"));
        let told: Retired = serde_json::from_slice(fact).map_err(unreadable)?;
        let key = keys::retired(self.org, credential);
        let known = store.get(&key).await?.value;
        let (compare, merged) = match known {
            None => (Compare::Absent(key.clone()), told),
            Some(pair) => {
                let here: Retired = serde_json::from_slice(&pair.value).map_err(unreadable)?;
                let merged = here.clone().merge(told);
                if merged == here {
                    return Ok(());
                }
                (Compare::ModRevision(key.clone(), pair.mod_revision), merged)
            }
        };
        raising.compares.push(compare);
        raising.ops.push(Op::put(key, json(&merged)));
        Ok(())
    }
}
