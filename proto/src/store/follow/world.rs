//! The configuration of all organisations at one time.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Fault;
use crate::id::{CredentialId, OrgId, RequestId};
use crate::object::{Body, ObjectId};
use crate::regions::Gateways;
use crate::retired::Retired;
use crate::seal::Sealed;
use crate::store::{KeyValue, Revision};
use crate::test_request::Posted;
use crate::tree::{OrgConfig, SYSTEM_ORG};

/// Sealed values by credential and seal id.
pub type SealedValues = BTreeMap<(CredentialId, String), Arc<Sealed>>;

/// The configuration of all organisations as of one store revision.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// The store revision; 0 before the first list was applied.
    pub revision: Revision,
    /// Every organisation. What did not change is the same `Arc` as in the world before.
    pub orgs: BTreeMap<OrgId, Arc<OrgState>>,
    /// Organisations by slug.
    pub slugs: BTreeMap<String, OrgId>,
    /// Test requests that wait for a node.
    pub tests: BTreeMap<RequestId, Arc<Posted>>,
    /// The gateways of all regions.
    pub gateways: Arc<Gateways>,
    /// A person's request to write back what the store has lost: the value is an
    /// [`Ask`](crate::store::recovery::Ask).
    pub asked: Option<Arc<KeyValue>>,
    /// What could not be applied.
    pub faults: Vec<Fault>,
}

impl World {
    /// An organisation by slug.
    pub fn org(&self, slug: &str) -> Option<&Arc<OrgState>> {
        self.orgs.get(self.slugs.get(slug)?)
    }

    /// What it serves, as one short text: two processes with the same one serve the same. Revisions
    /// do not tell that: who listed again has a later one than who did not, with the same content.
    ///
    /// 16 hexadecimal digits over every organisation's version and every retired secret. What
    /// could not be applied makes a difference, since the version is then an earlier one.
    pub fn fingerprint(&self) -> String {
        let mut hash = blake3::Hasher::new();
        for (org, state) in &self.orgs {
            hash.update(&org.bits().to_be_bytes());
            hash.update(state.config.head.hash.to_string().as_bytes());
            for (credential, retired) in &*state.retired {
                hash.update(&credential.bits().to_be_bytes());
                // A struct of texts and numbers always serialises.
                hash.update(&serde_json::to_vec(retired).unwrap_or_default());
            }
        }
        hash.finalize().to_hex().chars().take(16).collect()
    }
}

/// One organisation in a [`World`].
#[derive(Clone, Debug)]
pub struct OrgState {
    /// Its configuration.
    pub config: Arc<OrgConfig>,
    /// The sealed values, of this region, that its target credentials name.
    pub sealed: Arc<SealedValues>,
    /// Whether all that they name are there; what is missing is looked for with all news.
    pub sealed_whole: bool,
    /// Which secrets are over.
    pub retired: Arc<BTreeMap<CredentialId, Retired>>,
}

/// Organisations by slug, as the applied version of `system` names them.
pub(super) fn slugs(
    world: &World,
    orgs: &BTreeMap<OrgId, Arc<OrgState>>,
) -> BTreeMap<String, OrgId> {
    let (before, now) = (world.orgs.get(&SYSTEM_ORG), orgs.get(&SYSTEM_ORG));
    let Some(system) = now else {
        return world.slugs.clone();
    };
    if before.is_some_and(|before| Arc::ptr_eq(&before.config, &system.config)) {
        return world.slugs.clone();
    }
    let objects = system.config.objects.iter();
    let named = objects.filter_map(|(id, object)| match (id, &object.body) {
        (ObjectId::Org(id), Body::Org(org)) => Some((org.slug.clone(), *id)),
        _ => None,
    });
    named.collect()
}
