//! What is kept of one request through the gateway.
//!
//! A node writes it when the answer has ended, ships it to control in a
//! [`crate::wire::RecordBatch`], and the API shows it. It holds no secret by construction: query
//! values are replaced before a record is built, headers come from a fixed list, bodies are absent
//! unless a proxy asks for their beginning. Should a caller or a target put one into what is left,
//! such as a path, a node overwrites it before it is cut (`credentials/shown.rs` there).
//!
//! Plain structs without serde attributes that change the shape: the binary wire form depends on
//! the order of fields and variants. New fields go to the end, with a new schema number in `wire`.

mod ended;
mod event;
mod presented;
mod refused;

use std::borrow::Cow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use crate::attempt::{Attempt, AttemptFailure};
use crate::id::{CredentialId, FilterId, OrgId, ProxyId, RequestId, RuleId};
pub use crate::payload::{Captured, Payload, StoredPayload};
pub use crate::stage::{Stage, StageTime};
use crate::wire::StoredRecord;
pub use ended::{BREAKING, is_broken, is_error};
pub use event::{SPAN_EVENTS_MAX, SpanEvent, SpanEventKind, SpanEvents};
pub use presented::{KeyHint, PresentedKey};
pub use refused::{MeterRefusal, RefusalCause};

/// What stands in a record where a value was left out.
pub const REDACTED: &str = "REDACTED";

/// One request, from its first byte to the end of its answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Record {
    /// The id that the caller saw in `requestrocket-request-id`.
    pub request_id: RequestId,
    /// The organisation that owns the proxy.
    pub org_id: OrgId,
    /// The proxy that was called.
    pub proxy_id: ProxyId,
    /// The proxy credential that the caller proved, if any.
    pub proxy_credential_id: Option<CredentialId>,
    /// The generation of its secret, written `{counter}.{region}.{n}`.
    #[schema(value_type = Option<String>)]
    pub proxy_credential_generation: Option<Arc<str>>,
    /// The target credential that was injected, if the request got that far.
    pub target_credential_id: Option<CredentialId>,
    /// The generation of its secret, written `{counter}.{region}.{n}`.
    #[schema(value_type = Option<String>)]
    pub target_credential_generation: Option<Arc<str>>,
    /// Number of the configuration version that decided.
    pub config_version: u64,
    /// The node that served it.
    #[schema(value_type = String)]
    pub node: Arc<str>,
    /// The region of that node.
    #[schema(value_type = String)]
    pub region: Arc<str>,
    /// The request method.
    #[schema(value_type = String)]
    pub method: Cow<'static, str>,
    /// The path behind the proxy, already reduced as the proxy's `record.path` says.
    pub path: String,
    /// Names of the query parameters with their values, which are `REDACTED` unless the proxy's
    /// `record.query_allow` names them.
    pub query: Vec<QueryField>,
    /// The status that the caller got; absent when it left before one was sent.
    pub status: Option<u16>,
    /// The status that the target answered last, if it did.
    pub upstream_status: Option<u16>,
    /// The outcome: the value of `requestrocket-proxy-code`.
    #[schema(value_type = String)]
    pub code: Cow<'static, str>,
    /// Why the caller was refused with 401, which the caller is never told.
    pub auth_failure: Option<AuthFailure>,
    /// When the request's head had arrived: microseconds since the Unix epoch.
    pub started_at_us: i64,
    /// From then to the last byte of the answer, in microseconds.
    pub total_us: u64,
    /// How long each stage took.
    pub stages: Vec<StageTime>,
    /// Body bytes received from the caller.
    pub request_bytes: u64,
    /// Body bytes sent to the caller.
    pub response_bytes: u64,
    /// Body bytes sent to the target, over all attempts.
    pub upstream_request_bytes: u64,
    /// Body bytes received from the target, over all attempts.
    pub upstream_response_bytes: u64,
    /// How often the request was sent to the target; zero when it ended before.
    pub attempts: u32,
    /// The scopes whose rules refused it.
    pub denials: Vec<Denial>,
    /// Rules in shadow mode that would have refused it.
    pub shadow_rule_ids: Vec<RuleId>,
    /// Filters that changed the answer.
    pub filter_ids: Vec<FilterId>,
    /// The caller's address, already reduced as the proxy's `record.source` says.
    pub source_address: Option<String>,
    /// The caller's `User-Agent`, shortened.
    pub user_agent: Option<String>,
    /// Ids by which the target's support finds the call, from a fixed list of its headers.
    pub upstream_ids: Vec<UpstreamId>,
    /// The W3C trace id, 32 hex digits.
    pub trace_id: Option<String>,
    /// The host that an answer sent the caller to, outside the gateway.
    pub left_gateway: Option<String>,
    /// Whether the caller left before the answer's last byte.
    pub client_aborted: bool,
    /// How often an injected secret was found in an answer and overwritten.
    pub scrubbed: u32,
    /// Each time that the request was sent to the target, in order; as many as `attempts` says
    /// since this is recorded.
    #[serde(default)]
    pub sends: Vec<Attempt>,
    /// Windows of the limits that refused it, such as `minute`.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub limited_by: Vec<Cow<'static, str>>,
    /// Whether the answer was searched for the injected secret.
    #[serde(default)]
    pub scrub: ScrubState,
    /// The endpoint of each of `sends`, where the target has several: host and port.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub endpoints: Vec<Arc<str>>,
    /// The region that it was passed on to, because its proxy is not served in this one.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub forwarded_to: Option<Arc<str>>,
    /// The region that passed it on to this one.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub forwarded_from: Option<Arc<str>>,
    /// The beginning of its bodies, where the proxy's `record.payload` says so; only roles owner
    /// and admin see it, and only where one record is read.
    #[serde(default)]
    #[schema(value_type = Option<Payload>)]
    pub payload: Option<Box<Payload>>,
    /// What it has spent of each meter.
    #[serde(default)]
    pub meters: Vec<MeterSpend>,
    /// The key that the caller presented; absent where it presented none, or several.
    #[serde(default)]
    #[schema(value_type = Option<PresentedKey>)]
    pub presented: Option<PresentedKey>,
    /// The meter that refused it, with the window and the cause.
    #[serde(default)]
    pub refused_by: Vec<MeterRefusal>,
    /// Whether a header or the query said another method, as frameworks take it; null where that
    /// was for the body of a form to say, or before this was recorded.
    #[serde(default)]
    pub method_overridden: Option<bool>,
    /// What happened inside its stages, in the order of its times: at most 16.
    #[serde(default)]
    pub events: Vec<SpanEvent>,
    /// How much more happened than `events` has room for.
    #[serde(default)]
    pub events_dropped: u32,
    /// Meters that count values of answers and that this one told nothing, by their ids: what was
    /// set aside for it stays spent.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub value_missing: Vec<Arc<str>>,
}

/// What one request has spent of one meter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MeterSpend {
    /// The meter: the id of a meter object, or the name of a limit that a proxy carries itself.
    #[schema(value_type = String)]
    pub meter: Arc<str>,
    /// Tokens, over all attempts; of a meter that counts values what the answer said, or what was
    /// set aside where it said nothing.
    pub tokens: u64,
}

/// Whether an answer was searched for the secret that the request was sent with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScrubState {
    /// There was nothing to search: no secret was injected or it is shorter than 12 bytes, or no
    /// answer came.
    #[default]
    None,
    /// It was, head and body.
    Searched,
    /// The head was; the body passed unread, because it has a content coding or repeats the
    /// secret's beginning without end.
    Skipped,
}

impl ScrubState {
    /// Its text, the same as in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Searched => "searched",
            Self::Skipped => "skipped",
        }
    }
}

/// Fields of a [`Record`] before `sends`, as binary forms of earlier releases hold it.
pub const FIELDS_BEFORE_SENDS: usize = 35;
/// Fields of a [`Record`] before `scrub`, likewise.
pub const FIELDS_BEFORE_SCRUB: usize = 37;
/// Fields of a [`Record`] before `endpoints`, likewise.
pub const FIELDS_BEFORE_ENDPOINTS: usize = 38;
/// Fields of a [`Record`] before `payload`, likewise.
pub const FIELDS_BEFORE_PAYLOAD: usize = 41;
/// Fields of a [`Record`] before `presented`, likewise.
pub const FIELDS_BEFORE_PRESENTED: usize = 43;
/// Fields of a [`Record`] before `refused_by`, likewise.
pub const FIELDS_BEFORE_REFUSED_BY: usize = 44;
/// Fields of a [`Record`] before `events`, likewise.
pub const FIELDS_BEFORE_EVENTS: usize = 46;
/// Fields of a [`Record`] before `value_missing`, likewise.
pub const FIELDS_BEFORE_VALUE_MISSING: usize = 48;

impl Record {
    /// The same without bodies, as lists and followers get it.
    pub fn without_payload(&self) -> Self {
        StoredRecord::of(self).to_listed(self.org_id)
    }
}

/// One query parameter of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct QueryField {
    /// Its name, as sent.
    pub name: String,
    /// Its value, or `REDACTED`.
    pub value: String,
}

/// Why a caller was answered 401.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum AuthFailure {
    /// No proxy has the id or alias that was called.
    UnknownProxy,
    /// No credential was presented.
    NoCredential,
    /// What was presented is no secret of this proxy.
    WrongKey,
    /// The secret was right and its credential has expired.
    Expired,
    /// The secret was right once and is retired: rotated away, revoked or deleted.
    Retired,
    /// Several different secrets were presented.
    Ambiguous,
    /// A proxy without credentials was called under a host name that is not its own.
    ForeignHost,
    /// A proxy without credentials was called by a web page of another site.
    CrossSite,
}

impl AuthFailure {
    /// Every reason, in the order of their numbers.
    pub const ALL: [Self; 8] = [
        Self::UnknownProxy,
        Self::NoCredential,
        Self::WrongKey,
        Self::Expired,
        Self::Retired,
        Self::Ambiguous,
        Self::ForeignHost,
        Self::CrossSite,
    ];

    /// Its text, the same as in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::UnknownProxy => "unknown-proxy",
            Self::NoCredential => "no-credential",
            Self::WrongKey => "wrong-key",
            Self::Expired => "expired",
            Self::Retired => "retired",
            Self::Ambiguous => "ambiguous",
            Self::ForeignHost => "foreign-host",
            Self::CrossSite => "cross-site",
        }
    }
}

/// One scope that refused a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Denial {
    /// Which of the four scopes.
    pub scope: RecordScope,
    /// The id of the object whose rules refused.
    pub scope_id: String,
    /// Whether the scope's `default_rule_effect` refused, no rule having matched.
    pub default: bool,
    /// The denying rules.
    pub rule_ids: Vec<RuleId>,
}

/// The objects that rules and filters hang on, as records name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RecordScope {
    /// The caller's credential.
    ProxyCredential,
    /// The injected credential.
    TargetCredential,
    /// The proxy.
    Proxy,
    /// The target.
    Target,
}

impl RecordScope {
    /// Its text, the same as in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ProxyCredential => "proxy_credential",
            Self::TargetCredential => "target_credential",
            Self::Proxy => "proxy",
            Self::Target => "target",
        }
    }
}

/// An id that the target gave the call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UpstreamId {
    /// The header that held it, such as `x-request-id`.
    pub header: String,
    /// At most 128 printable bytes.
    pub value: String,
}

#[cfg(test)]
pub(crate) mod tests;
