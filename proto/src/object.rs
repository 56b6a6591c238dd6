//! The objects of an organisation's configuration, as the tree stores them: canonical JSON with
//! an id, times, and the version of the last change.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::credential::{Credential, SecretState};
use crate::filter::Filter;
use crate::id::{
    CredentialId, FilterId, Id, Kind, MeterId, OrgId, ProxyId, RuleId, TargetId, TokenId,
};
use crate::meter::Meter;
use crate::org::{ApiToken, Org};
use crate::problem::Problem;
use crate::proxy::Proxy;
use crate::rule::Rule;
use crate::target::Target;

/// The id of any configuration object, whatever its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectId {
    /// An organisation (only in the tree of `system`).
    Org(OrgId),
    /// An API token.
    Token(TokenId),
    /// A target.
    Target(TargetId),
    /// A credential.
    Credential(CredentialId),
    /// A proxy.
    Proxy(ProxyId),
    /// A rule.
    Rule(RuleId),
    /// A filter.
    Filter(FilterId),
    /// A meter.
    Meter(MeterId),
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Org(id) => id.fmt(f),
            Self::Token(id) => id.fmt(f),
            Self::Target(id) => id.fmt(f),
            Self::Credential(id) => id.fmt(f),
            Self::Proxy(id) => id.fmt(f),
            Self::Rule(id) => id.fmt(f),
            Self::Filter(id) => id.fmt(f),
            Self::Meter(id) => id.fmt(f),
        }
    }
}

/// A text that is the id of no configuration object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the id of a configuration object")]
pub struct ObjectIdError(String);

impl FromStr for ObjectId {
    type Err = ObjectIdError;

    fn from_str(text: &str) -> Result<Self, ObjectIdError> {
        fn parse<K: Kind>(text: &str, wrap: fn(Id<K>) -> ObjectId) -> Option<ObjectId> {
            text.parse().ok().map(wrap)
        }
        match text.get(..3) {
            Some("org") => parse(text, Self::Org),
            Some("tok") => parse(text, Self::Token),
            Some("tgt") => parse(text, Self::Target),
            Some("crd") => parse(text, Self::Credential),
            Some("prx") => parse(text, Self::Proxy),
            Some("rul") => parse(text, Self::Rule),
            Some("flt") => parse(text, Self::Filter),
            Some("mtr") => parse(text, Self::Meter),
            _ => None,
        }
        .ok_or_else(|| ObjectIdError(crate::checks::printable(text)))
    }
}

impl Serialize for ObjectId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ObjectId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// One configuration object as stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Object {
    /// Its id.
    pub id: ObjectId,
    /// Number of the version that last changed it; the base of its `ETag`.
    pub version: u64,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
    /// What it is.
    pub body: Body,
}

/// What an object is, by kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Body {
    /// An organisation.
    Org(Org),
    /// An API token.
    Token(StoredToken),
    /// A target.
    Target(Target),
    /// A credential.
    Credential(StoredCredential),
    /// A proxy.
    Proxy(Proxy),
    /// A rule of one scope.
    Rule(Attached<Rule>),
    /// A filter of one scope.
    Filter(Attached<Filter>),
    /// A meter of one scope, or of the organisation.
    Meter(Attached<Meter>),
}

/// Policy that hangs on one object, its scope, and goes with it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attached<T> {
    /// The scope: a credential of either kind, a proxy or a target, for meters the organisation
    /// too; cannot change.
    pub parent: ObjectId,
    /// What hangs on it.
    pub spec: T,
}

/// An API token with the keyed digest of its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredToken {
    /// What the API shows.
    pub token: ApiToken,
    /// Keyed BLAKE3 of the token, hex.
    pub digest: String,
}

/// A credential with what is known of its secret.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredCredential {
    /// What the API shows.
    pub credential: Credential,
    /// The secret in force; absent for type `none` and after a rollback to a destroyed secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<SecretState>,
    /// Secrets of proxy credentials that stay valid until the end of a rotation's overlap.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub previous: Vec<SecretState>,
}

impl StoredCredential {
    /// Names the sealed values of the secret in force, where it has some.
    pub fn seal_id(&self) -> Option<&String> {
        self.secret.as_ref()?.seal_id.as_ref()
    }
}

impl Body {
    /// Every problem of the object itself, without its references.
    pub fn validate(&self) -> Vec<Problem> {
        match self {
            Self::Org(org) => org.validate(),
            Self::Token(token) => token.token.validate(),
            Self::Target(target) => target.validate(),
            Self::Credential(stored) => stored.credential.validate(),
            Self::Proxy(proxy) => proxy.validate(),
            Self::Rule(rule) => rule.spec.validate(),
            Self::Filter(filter) => filter.spec.validate(),
            Self::Meter(meter) => meter.spec.validate(),
        }
    }

    /// The scope that this object hangs on, if it is policy.
    pub fn parent(&self) -> Option<ObjectId> {
        match self {
            Self::Rule(rule) => Some(rule.parent),
            Self::Filter(filter) => Some(filter.parent),
            Self::Meter(meter) => Some(meter.parent),
            Self::Org(_)
            | Self::Token(_)
            | Self::Target(_)
            | Self::Credential(_)
            | Self::Proxy(_) => None,
        }
    }

    /// The regions that it lists, if it is of a kind that does.
    pub fn regions(&self) -> Option<&[String]> {
        match self {
            Self::Credential(stored) => Some(&stored.credential.regions),
            Self::Proxy(proxy) => Some(&proxy.regions),
            Self::Org(_)
            | Self::Token(_)
            | Self::Target(_)
            | Self::Rule(_)
            | Self::Filter(_)
            | Self::Meter(_) => None,
        }
    }

    /// Whether it is what its id says.
    pub fn is_named_by(&self, id: ObjectId) -> bool {
        matches!(
            (id, self),
            (ObjectId::Org(_), Self::Org(_))
                | (ObjectId::Token(_), Self::Token(_))
                | (ObjectId::Target(_), Self::Target(_))
                | (ObjectId::Credential(_), Self::Credential(_))
                | (ObjectId::Proxy(_), Self::Proxy(_))
                | (ObjectId::Rule(_), Self::Rule(_))
                | (ObjectId::Filter(_), Self::Filter(_))
                | (ObjectId::Meter(_), Self::Meter(_))
        )
    }
}
