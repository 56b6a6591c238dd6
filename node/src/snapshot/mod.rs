//! The configuration as requests use it: compiled once per change, immutable, shared by `Arc`.
//!
//! Everything that can be decided when a version is applied is decided here: patterns compiled,
//! destinations parsed, timeouts resolved, retired secrets left out. A request pins one snapshot
//! for its whole life.

mod names;
mod revoked;

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::HeaderName;
use jiff::Timestamp;
use proto::credential::AuthType;
use proto::filter::FilterSet;
use proto::hosts::{HostPattern, Origin};
use proto::id::{CredentialId, OrgId, ProxyId, TargetId};
use proto::path::PathOptions;
use proto::proxy::{
    ErrorBodies, ForeignUrls, FormerAlias, OnClientAbort, RecordPolicy, RewriteUrls, ScrubBodies,
};
use proto::rule::RuleSet;
use proto::seal::DigestKey;
use proto::target::BaseUrl;
use proto::validation::BodyValidator;

use crate::credentials::vault::Sealing;
use crate::elsewhere::Elsewhere;
use crate::endpoints::Endpoints;
use crate::hygiene::fields::RequestFields;
use crate::metering::Metering;
use crate::metrics::ProxyCounters;
use crate::presented::{self, Place};
use crate::request::Request;
use crate::upstream::Destination;

pub use self::names::Names;
pub use self::revoked::{End, Successor, validity};

/// One configuration of the whole node.
pub struct Snapshot {
    /// By id, by `{slug}.{alias}`, and by bare alias for the default organisation.
    proxies: Names<Arc<CompiledProxy>>,
    former: Arc<FormerNames>,
    digest_key: DigestKey,
}

/// Names that proxies had before, and until when they answer to them.
pub type FormerNames = HashMap<Box<str>, (Arc<CompiledProxy>, Timestamp)>;

impl Snapshot {
    /// A snapshot of these proxies, under every name that each answers to.
    pub fn new(
        proxies: Names<Arc<CompiledProxy>>,
        former: Arc<FormerNames>,
        digest_key: DigestKey,
    ) -> Self {
        Self {
            proxies,
            former,
            digest_key,
        }
    }

    /// The proxy behind `/api/{key}`.
    pub fn find(&self, key: &str, now: Timestamp) -> Option<Arc<CompiledProxy>> {
        let of_old = || {
            let (proxy, until) = self.former.get(key)?;
            (now < *until).then_some(proxy)
        };
        self.proxies.get(key).or_else(of_old).cloned()
    }

    /// The key under which secrets are digested.
    pub fn digest_key(&self) -> &DigestKey {
        &self.digest_key
    }

    /// Number of names that proxies answer to.
    pub fn names(&self) -> usize {
        self.proxies.len()
    }
}

/// A proxy with everything that a request through it needs.
pub struct CompiledProxy {
    /// Its id.
    pub id: ProxyId,
    /// The same as text.
    pub id_text: Box<str>,
    /// Its organisation.
    pub org: OrgId,
    /// Its short name.
    pub alias: Option<Box<str>>,
    /// Short names that it had before.
    pub former_aliases: Vec<FormerAlias>,
    /// Which version of the organisation's configuration this is the form of.
    pub version: FormVersion,
    /// When nothing may be sent by it any more, whoever calls: its organisation was deleted.
    pub end: End,
    /// Whether it is switched on.
    pub active: bool,
    /// Who may call.
    pub credentials: Vec<ProxyCredential>,
    /// Further places in which callers may put a key of ours.
    pub places: presented::Extra,
    /// Rules of the proxy's own scope.
    pub rules: Arc<RuleSet>,
    /// Where calls go.
    pub target: Arc<CompiledTarget>,
    /// What is injected.
    pub target_credential: Option<Arc<TargetCredential>>,
    /// How it is reached where other regions serve it and this one does not.
    pub elsewhere: Option<Elsewhere>,
    /// Where calls are dialled, with this proxy's timeouts: one for each of the target's addresses.
    pub destinations: Box<[Arc<Destination>]>,
    /// Timeouts in words, for messages: `first_byte_ms` and who set it.
    pub first_byte_text: Box<str>,
    /// Which fields of callers pass.
    pub request_fields: RequestFields,
    /// Authentication fields of callers that pass.
    pub forward_caller_headers: Vec<HeaderName>,
    /// Whether cookies pass both ways.
    pub cookies: bool,
    /// Whether URLs in answers are mapped.
    pub rewrite_urls: RewriteUrls,
    /// Whether coded answers are decoded to be searched for the injected secret.
    pub scrub: ScrubBodies,
    /// What becomes of answers that name a third host.
    pub foreign_urls: ForeignUrls,
    /// What becomes of error bodies where filters apply.
    pub error_bodies: ErrorBodies,
    /// What bodies of requests are held against.
    pub request_validator: Option<Arc<BodyValidator>>,
    /// What bodies of answers are held against.
    pub response_validator: Option<Arc<BodyValidator>>,
    /// What a caller's hang-up does.
    pub on_client_abort: OnClientAbort,
    /// Largest body that is buffered, in bytes.
    pub body_buffer_bytes: usize,
    /// What records keep.
    pub record: RecordPolicy,
    /// Query parameters that may hold a key, whose values no record keeps.
    pub key_queries: Vec<Box<str>>,
    /// Counts its requests.
    pub counters: ProxyCounters,
}

/// The newest version of an organisation's configuration that something is the form of: it counts
/// on while the organisation changes and nothing that the form is made of does.
#[derive(Debug)]
pub struct FormVersion {
    /// That of the organisation, one for all of its forms.
    org: Arc<AtomicU64>,
    /// The last one of a form that was replaced; 0 for one that stands.
    last: AtomicU64,
}

impl FormVersion {
    /// Of a form that stands in what an organisation is now.
    pub fn of(org: Arc<AtomicU64>) -> Self {
        let last = AtomicU64::new(0);
        Self { org, last }
    }

    /// The number of the version.
    pub fn newest(&self) -> u64 {
        // In this order: who reads a later number of the organisation reads the end as well.
        let org = self.org.load(Ordering::Acquire);
        match self.last.load(Ordering::Acquire) {
            0 => org,
            last => last,
        }
    }

    /// The form is replaced, before the organisation counts on.
    pub fn ends(&self) {
        let last = self.org.load(Ordering::Acquire);
        // One that stays because what replaces it is faulty has ended before.
        let _ = self
            .last
            .compare_exchange(0, last, Ordering::AcqRel, Ordering::Acquire);
    }
}

/// A proxy credential of a proxy.
pub struct ProxyCredential {
    /// Its id.
    pub id: CredentialId,
    /// The same as text.
    pub id_text: Box<str>,
    /// Its form.
    pub auth_type: AuthType,
    /// The secrets in force: while one takes the place of another, keys of ours and given ones.
    pub secrets: Vec<ProxySecret>,
    /// The one header that holds a given key.
    pub header: HeaderName,
    /// The query parameter that holds a given key instead.
    pub query: Option<Box<str>>,
    /// Whether its callers are told in a header what was decided.
    pub explain: bool,
    /// From when on it is refused.
    pub expires_at: Option<Timestamp>,
    /// How old the facts may be for it.
    pub max_fact_age: Option<Duration>,
    /// Rules of its scope.
    pub rules: Arc<RuleSet>,
    /// Response filters of the four scopes for callers with this credential; none if there are
    /// none.
    pub response_filters: Option<Arc<FilterSet>>,
    /// Request filters, likewise.
    pub request_filters: Option<Arc<FilterSet>>,
    /// Meters of its callers' requests.
    pub metering: Metering,
}

/// One secret of a proxy credential.
pub struct ProxySecret {
    /// Its keyed digest.
    pub digest: [u8; 32],
    /// End of a rotation's overlap; in the past for one that is retired.
    pub end: End,
    /// The version that set it.
    pub generation: Arc<str>,
    /// Whether it was issued by us, so that it is looked for in every place.
    pub issued: bool,
}

impl ProxySecret {
    /// Whether this is the secret of a digest; in constant time.
    pub fn is(&self, digest: &[u8; 32]) -> bool {
        // blake3's equality takes the same time for every digest.
        blake3::Hash::from_bytes(self.digest) == *digest
    }
}

impl ProxyCredential {
    /// Whether the digest is that of one of this credential's secrets, of those that we issued or
    /// of those that were given; in constant time.
    pub fn knows(&self, digest: &[u8; 32], issued: bool) -> bool {
        let secrets = self.secrets.iter().filter(|secret| secret.issued == issued);
        secrets.fold(false, |known, secret| known | secret.is(digest))
    }

    /// Whether one of its secrets was issued by us.
    pub fn has_issued(&self) -> bool {
        self.secrets.iter().any(|secret| secret.issued)
    }

    /// Whether what stands where given keys are looked for must be one: not where keys of ours have
    /// taken their place, and none is in force any more.
    pub fn takes_given(&self, now: Timestamp) -> bool {
        let mut given = self.secrets.iter().filter(|secret| !secret.issued);
        !self.has_issued() || given.any(|secret| !secret.end.is_over(now))
    }

    /// The given key where this credential looks for it.
    pub fn presented<'r>(&self, request: &'r Request) -> Option<(Cow<'r, [u8]>, Place)> {
        if self.secrets.iter().all(|secret| secret.issued) {
            return None;
        }
        let authorization = || Place::Header(http::header::AUTHORIZATION);
        match self.auth_type {
            AuthType::ApiKey => match &self.query {
                Some(name) => Some((
                    presented::in_query(request, name)?,
                    Place::Query(name.clone()),
                )),
                None => {
                    let key = presented::in_header(request, &self.header)?;
                    Some((Cow::Borrowed(key), Place::Header(self.header.clone())))
                }
            },
            AuthType::Bearer | AuthType::Jwt => {
                Some((Cow::Borrowed(presented::bearer(request)?), authorization()))
            }
            AuthType::Basic => Some((Cow::Owned(presented::basic(request)?), authorization())),
            AuthType::Custom | AuthType::None => None,
        }
    }
}

/// A target with its scope's policy.
pub struct CompiledTarget {
    /// Its id.
    pub id: TargetId,
    /// The same as text.
    pub id_text: Box<str>,
    /// Where it is by name; the path is that of all its addresses.
    pub base: BaseUrl,
    /// Those of its addresses that the calls of its proxies may go to.
    pub endpoints: Endpoints,
    /// Where all of its addresses are: what they answer may lead to each other.
    pub origins: Box<[Origin]>,
    /// How paths are read.
    pub path: PathOptions,
    /// Whether the operator's settings do not let it be called.
    pub forbidden: bool,
    /// Rules of its scope.
    pub rules: Arc<RuleSet>,
    /// The header by which it recognises a repeated request.
    pub idempotency_header: Option<HeaderName>,
}

/// A target credential with its scope's policy.
pub struct TargetCredential {
    /// Its id.
    pub id: CredentialId,
    /// The same as text.
    pub id_text: Box<str>,
    /// The version that set its secret.
    pub generation: Option<Arc<str>>,
    /// When its secret ends; in the past for one that is retired.
    pub end: End,
    /// What has taken its place, for requests that still have this one.
    pub successor: Successor,
    /// Its form.
    pub auth_type: AuthType,
    /// Where its secret may be sent.
    pub hosts: Vec<HostPattern>,
    /// The secret, opened at first use.
    pub secret: Sealing,
    /// How old the facts may be for it.
    pub max_fact_age: Option<Duration>,
    /// Rules of its scope.
    pub rules: Arc<RuleSet>,
}

impl TargetCredential {
    /// Whether anything is injected at all.
    pub fn injects(&self) -> bool {
        self.auth_type != AuthType::None
    }
}
