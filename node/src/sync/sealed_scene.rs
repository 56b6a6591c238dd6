//! For tests of what seals secrets: a region with one that is in force.

use std::sync::Arc;

use proto::credential::SecretInput;
use proto::id::{CredentialId, OrgId};
use proto::keys;
use proto::object::{Body, ObjectId, StoredCredential};
use proto::org::Role;
use proto::policy::Policy;
use proto::retired::Retired;
use proto::seal::{self, Binding, Keyring, NewSecret, Sealed};
use proto::store::embedded::Embedded;
use proto::store::follow::{OrgState, World};
use proto::store::{Op, Revision, Store, Txn};
use proto::tree::{Context, Operation, OrgConfig, apply};
use proto::version::Epoch;
use serde_json::json;

/// Whose it is.
pub const ORG: OrgId = OrgId::from_bits(7);
/// Of which credential.
pub const CREDENTIAL: CredentialId = CredentialId::from_bits(3);

/// Region us, which holds the secret of a credential for us and eu. Its head is stored.
pub struct Scene {
    pub store: Arc<dyn Store>,
    pub us: Arc<Keyring>,
    pub config: Arc<OrgConfig>,
    pub seal_id: String,
    /// The secret as it is sealed for us; it is not stored.
    pub sealed: Sealed,
    _dir: tempfile::TempDir,
}

impl Scene {
    pub async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Embedded::open(&dir.path().join("store")).unwrap();
        let us = Arc::new(Keyring::generate("us"));
        let fields = json!({"credential": {"kind": "target", "auth_type": "bearer",
                                           "hosts": ["a.example"], "regions": ["us", "eu"]}});
        let stored: StoredCredential = serde_json::from_value(fields).unwrap();
        let secret = || {
            let mut input = SecretInput::default();
            input.token = Some("canary".into());
            input
        };
        let new = NewSecret::prepare(&us.digest_key, &stored.credential, secret());
        let seal_id = new.seal_id.clone().unwrap();
        let create = Operation::Create {
            id: ObjectId::Credential(CREDENTIAL),
            body: Body::Credential(stored.clone()),
            secret: Some(Arc::new(new)),
        };
        let policy = Policy {
            regions: vec!["us".into(), "eu".into(), "ap".into()],
            ..Policy::default()
        };
        let context = Context {
            now: jiff::Timestamp::now(),
            policy: &policy,
            role: Role::Owner,
        };
        let epoch = Epoch {
            counter: 1,
            region: "us".into(),
        };
        let genesis = OrgConfig::genesis(ORG, epoch);
        let draft = apply(&genesis, &[create], &context).unwrap();
        let packed = draft.commit(&genesis, 0, seal::random_name()).unwrap();
        let config = Arc::new(packed.config);
        let binding = Binding {
            org: ORG,
            credential: CREDENTIAL,
            hosts: &stored.credential.hosts,
            seal_id: &seal_id,
        };
        let sealed = seal::seal(&us.public().unwrap(), &binding, &secret()).unwrap();
        let scene = Self {
            store,
            us,
            config,
            seal_id,
            sealed,
            _dir: dir,
        };
        let head = Op::put(keys::head(ORG), scene.config.head.to_json());
        scene.write(vec![head]).await;
        scene
    }

    /// What a node serves that has read the secret, and this fact of it.
    pub fn world(&self, retired: Option<Retired>) -> Arc<World> {
        let here = (CREDENTIAL, self.seal_id.clone());
        let state = OrgState {
            config: self.config.clone(),
            sealed: Arc::new([(here, Arc::new(self.sealed.clone()))].into()),
            sealed_whole: true,
            retired: Arc::new(retired.map(|fact| (CREDENTIAL, fact)).into_iter().collect()),
        };
        Arc::new(World {
            revision: Revision(1),
            orgs: [(ORG, Arc::new(state))].into(),
            ..World::default()
        })
    }

    /// Stores a value of the secret for a region.
    pub fn put_of(&self, region: &str, sealed: &Sealed) -> Op {
        let key = keys::secret(ORG, CREDENTIAL, &self.seal_id, region);
        Op::put(key, serde_json::to_vec(sealed).unwrap())
    }

    /// What the store has of the secret for a region.
    pub async fn value(&self, region: &str) -> Option<Vec<u8>> {
        let key = keys::secret(ORG, CREDENTIAL, &self.seal_id, region);
        let found = self.store.get(&key).await.unwrap().value;
        found.map(|pair| pair.value.to_vec())
    }

    pub async fn write(&self, ops: Vec<Op>) {
        let txn = Txn {
            ops,
            ..Txn::default()
        };
        self.store.txn(txn).await.unwrap();
    }
}
