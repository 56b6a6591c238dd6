//! What every call shares: the configuration as last seen, the publisher, the records, and the
//! little that this process remembers between calls.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use actix_web::http::header::HeaderMap;
use jiff::Timestamp;
use proto::exposition::{Families, MetricsSource};
use proto::health::{Health, Readiness};
use proto::id::OrgId;
use proto::object::{Body, ObjectId};
use proto::policy::Policy;
use proto::seal::{DigestKey, Purpose};
use proto::store::follow::World;
use proto::tree::{OrgConfig, SYSTEM_ORG};
use subtle::ConstantTimeEq;
use tokio::sync::{Semaphore, watch};

use crate::api::answer::VERSION_HEADER;
use crate::api::call::single;
use crate::api::error::{Code, Refusal};
use crate::api::explain::EXPLAINING_MAX;
use crate::api::idempotency::Memory;
use crate::api::proxy_test::AT_ONE_TIME_MAX;
use crate::audit::logins::Logins;
use crate::config::ApiSettings;
use crate::dial_guard::DialGuard;
use crate::linked::Linked;
use crate::metrics::Metrics;
use crate::operator::{Caller, TokenIndex};
use crate::publish::Publisher;
use crate::records::Records;
use crate::regions::Directory;
use crate::regions::ask::QUESTIONS_MAX;
use crate::share::Shares;
use crate::throttle::{Throttle, Verdict};
use crate::trace_file::TraceFile;

/// What the API needs of the process it runs in.
#[derive(Clone)]
pub struct ControlDeps {
    /// Boot settings.
    pub settings: ApiSettings,
    /// Writes configuration.
    pub publisher: Arc<Publisher>,
    /// The configuration of all organisations as last seen.
    pub world: watch::Receiver<Arc<World>>,
    /// The key of token digests.
    pub digest_key: DigestKey,
    /// The operator's limits on targets.
    pub policy: Policy,
    /// Records of requests.
    pub records: Arc<Records>,
    /// Tells `/metrics`.
    pub metrics: MetricsSource,
    /// What this API itself counts.
    pub counters: Metrics,
    /// Nodes that are connected.
    pub linked: Linked,
    /// Whether this process serves.
    pub health: Health,
    /// Writes one request as a file for trace viewers.
    pub trace_file: TraceFile,
    /// Says which addresses nodes may dial.
    pub dial_guard: DialGuard,
}

/// An organisation by its names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrgName {
    /// Its id.
    pub id: OrgId,
    /// Its slug.
    pub slug: String,
}

/// The control plane's API, shared by all of its threads.
pub struct Control {
    /// Boot settings.
    pub settings: ApiSettings,
    /// Writes configuration.
    pub publisher: Arc<Publisher>,
    /// The key of token digests.
    pub digest_key: DigestKey,
    /// The operator's limits on targets.
    pub policy: Policy,
    /// Records of requests.
    pub records: Arc<Records>,
    world: watch::Receiver<Arc<World>>,
    /// What this API itself counts.
    pub counters: Metrics,
    /// Nodes that are connected.
    pub linked: Linked,
    metrics: MetricsSource,
    /// Writes one request as a file for trace viewers.
    pub trace_file: TraceFile,
    /// Says which addresses nodes may dial.
    pub dial_guard: DialGuard,
    health: Health,
    tokens: Mutex<Indexed>,
    throttle: Mutex<Throttle>,
    /// Wrong tokens that wait for their audit entry.
    pub logins: Logins,
    idempotency: Mutex<Memory>,
    directory: Option<Directory>,
    /// Places of questions to several regions.
    pub questions: Arc<Semaphore>,
    /// Places of test requests.
    pub tests: Shares,
    /// Places of explanations.
    pub explaining: Shares,
}

/// The tokens of one state of the configuration.
#[derive(Default)]
struct Indexed {
    of: Arc<World>,
    index: Arc<TokenIndex>,
}

impl Control {
    /// The configuration that this process has seen, as one short text.
    pub fn fingerprint(&self) -> String {
        self.world.borrow().clone().fingerprint()
    }

    /// A control that nobody has called yet.
    pub fn new(deps: ControlDeps) -> Self {
        Self {
            settings: deps.settings,
            publisher: deps.publisher,
            digest_key: deps.digest_key,
            policy: deps.policy,
            records: deps.records,
            world: deps.world,
            metrics: deps.metrics,
            counters: deps.counters,
            linked: deps.linked,
            health: deps.health,
            trace_file: deps.trace_file,
            dial_guard: deps.dial_guard,
            tokens: Mutex::default(),
            throttle: Mutex::default(),
            logins: Logins::default(),
            idempotency: Mutex::default(),
            directory: None,
            questions: Arc::new(Semaphore::new(QUESTIONS_MAX)),
            tests: Shares::new(AT_ONE_TIME_MAX),
            explaining: Shares::new(EXPLAINING_MAX),
        }
    }

    /// The same, as one of several regions, where there are.
    pub fn with_regions(self, directory: Option<Directory>) -> Self {
        Self { directory, ..self }
    }

    /// The regions, where there are several.
    pub fn directory(&self) -> Option<&Directory> {
        self.directory.as_ref()
    }

    /// The gateways of other regions: name and base URL.
    pub fn other_gateways(&self) -> impl Iterator<Item = (&str, &str)> {
        let peers = self.directory.iter().flat_map(|d| &d.regions.peers);
        peers.filter_map(|peer| Some((peer.name.as_str(), peer.gateway.as_deref()?)))
    }

    /// The configuration of all organisations as last seen.
    pub fn world(&self) -> Arc<World> {
        self.world.borrow().clone()
    }

    /// Tells when that changes.
    #[cfg(test)]
    pub fn watched(&self) -> watch::Receiver<Arc<World>> {
        self.world.clone()
    }

    /// The configuration of one organisation as last seen.
    pub fn config(&self, org: OrgId) -> Option<Arc<OrgConfig>> {
        self.world()
            .orgs
            .get(&org)
            .map(|state| state.config.clone())
    }

    /// An organisation by id or slug.
    pub fn find_org(&self, name: &str) -> Option<OrgName> {
        let world = self.world();
        let id = match world.slugs.get(name) {
            Some(id) => *id,
            None => name.parse().ok().filter(|id| world.orgs.contains_key(id))?,
        };
        let system = world.orgs.get(&SYSTEM_ORG)?;
        match &system.config.object(ObjectId::Org(id))?.body {
            Body::Org(org) => Some(OrgName {
                id,
                slug: org.slug.clone(),
            }),
            _ => None,
        }
    }

    /// The slug of an organisation.
    pub fn slug_of(&self, org: OrgId) -> Option<String> {
        self.find_org(org.text().as_str()).map(|org| org.slug)
    }

    /// The token's holder, if the token is in force.
    pub fn caller(&self, token: &str, now: Timestamp) -> Option<Caller> {
        let digest = self.digest_key.digest(Purpose::ApiToken, token.as_bytes());
        if let Some(local) = &self.settings.operator_digest
            && bool::from(local.ct_eq(&digest))
        {
            return Some(Caller::local());
        }
        self.token_index().find(&hex::encode(digest), now).cloned()
    }

    /// The token's holder, if its time is over.
    pub fn expired(&self, token: &str) -> Option<Caller> {
        let digest = self.digest_key.digest(Purpose::ApiToken, token.as_bytes());
        let index = self.token_index();
        index.find(&hex::encode(digest), Timestamp::MIN).cloned()
    }

    /// A caller as the token that was presented before makes it now; `None` where it is no longer
    /// in force.
    pub fn anew(&self, caller: &Caller, now: Timestamp) -> Option<Caller> {
        if caller.is_local() {
            return Some(caller.clone());
        }
        let config = self.config(caller.org)?;
        let object = config.object(ObjectId::Token(caller.token_id))?;
        let Body::Token(stored) = &object.body else {
            return None;
        };
        let in_force = stored.token.expires_at.is_none_or(|end| now < end);
        in_force.then(|| Caller {
            token: stored.token.clone(),
            ..caller.clone()
        })
    }

    /// The index of the newest configuration; built anew when an organisation changed.
    fn token_index(&self) -> Arc<TokenIndex> {
        let world = self.world();
        let mut indexed = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if Arc::ptr_eq(&indexed.of, &world) {
            return indexed.index.clone();
        }
        let orgs = || indexed.of.orgs.iter().zip(&world.orgs);
        let same = indexed.of.orgs.len() == world.orgs.len()
            && orgs().all(|(old, new)| old.0 == new.0 && Arc::ptr_eq(old.1, new.1));
        if !same {
            indexed.index = Arc::new(index(&world));
        }
        indexed.of = world;
        indexed.index.clone()
    }

    /// Counts a wrong token.
    pub fn wrong_token(&self, address: IpAddr, now: Instant) -> Verdict {
        let mut throttle = self.throttle.lock().unwrap_or_else(PoisonError::into_inner);
        throttle.wrong(address, now)
    }

    /// For how long no further token of an address is looked at that takes more than a look into
    /// memory.
    pub fn too_many_wrong(&self, address: IpAddr, now: Instant) -> Option<Duration> {
        let throttle = self.throttle.lock().unwrap_or_else(PoisonError::into_inner);
        throttle.too_many(address, now)
    }

    /// The writes of the last day that had a key.
    pub fn idempotency(&self) -> MutexGuard<'_, Memory> {
        self.idempotency
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The metrics of this process.
    pub fn metrics(&self) -> Families {
        (self.metrics)()
    }

    /// Whether this process serves.
    pub fn readiness(&self) -> Readiness {
        self.health.readiness()
    }

    /// Waits until this process ends.
    pub async fn ending(&self) {
        self.health.draining().await;
    }

    /// Waits for the version that a request presents in `requestrocket-version`. Of an organisation
    /// that the caller has no role in none arrives: the answer, and the time until it, are those of
    /// one that does not exist.
    ///
    /// # Errors
    /// The header is malformed, or the version is not here in time.
    pub async fn wait_for_version(
        &self,
        caller: &Caller,
        headers: &HeaderMap,
    ) -> Result<(), Refusal> {
        let Some((org, n)) = presented_version(headers)? else {
            return Ok(());
        };
        if caller.role_in(org).is_some() && self.see_version(org, n).await {
            return Ok(());
        }
        let detail = format!("version {n} of {org} has not arrived here yet; ask again");
        Err(Refusal::new(Code::VersionNotHere, detail).retry_after_s(1))
    }

    /// Waits until a version of an organisation is seen here; false when it is not in time.
    pub async fn see_version(&self, org: OrgId, n: u64) -> bool {
        let mut world = self.world.clone();
        let seen = world.wait_for(|world| {
            world
                .orgs
                .get(&org)
                .is_some_and(|state| state.config.head.n >= n)
        });
        matches!(
            tokio::time::timeout(self.settings.version_wait, seen).await,
            Ok(Ok(_))
        )
    }
}

/// The version that a request presents in `requestrocket-version`.
///
/// # Errors
/// The header is given twice, or is malformed.
pub fn presented_version(headers: &HeaderMap) -> Result<Option<(OrgId, u64)>, Refusal> {
    let name = VERSION_HEADER;
    let word = name.as_str();
    single(headers, &name, word)?
        .map(|value| {
            let (org, n) = value.split_once('=')?;
            Some((org.parse().ok()?, n.parse().ok()?))
        })
        .map(|read| {
            read.ok_or_else(|| Refusal::parameter(word, "must be `{org id}={number}`, as answered"))
        })
        .transpose()
}

/// Every token of every organisation.
fn index(world: &World) -> TokenIndex {
    let mut index = TokenIndex::default();
    for (org, state) in &world.orgs {
        index.add(*org, *org == SYSTEM_ORG, state.config.objects.tokens());
    }
    index
}
