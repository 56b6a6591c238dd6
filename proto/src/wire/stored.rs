//! A record as blocks hold it: texts borrowed from the block, ids as numbers.

use std::borrow::Cow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::id::{CredentialId, FilterId, OrgId, ProxyId, RequestId, RuleId};
use crate::record::{
    Attempt, AuthFailure, Denial, KeyHint, MeterRefusal, MeterSpend, PresentedKey, QueryField,
    Record, ScrubState, SpanEvent, StageTime, StoredPayload, UpstreamId,
};

/// A record as blocks hold it, without its organisation, which is the block's.
#[derive(Debug, Serialize, Deserialize)]
#[allow(
    missing_docs,
    reason = "each field is that of a record, documented there"
)]
pub struct StoredRecord<'a> {
    pub request_id: u128,
    pub proxy_id: u128,
    pub proxy_credential_id: Option<u128>,
    #[serde(borrow)]
    pub proxy_credential_generation: Option<&'a str>,
    pub target_credential_id: Option<u128>,
    pub target_credential_generation: Option<&'a str>,
    pub config_version: u64,
    pub node: &'a str,
    pub region: &'a str,
    pub method: &'a str,
    pub path: &'a str,
    pub query: Cow<'a, [QueryField]>,
    pub status: Option<u16>,
    pub upstream_status: Option<u16>,
    pub code: &'a str,
    pub auth_failure: Option<AuthFailure>,
    pub started_at_us: i64,
    pub total_us: u64,
    pub stages: Cow<'a, [StageTime]>,
    pub request_bytes: u64,
    pub response_bytes: u64,
    pub upstream_request_bytes: u64,
    pub upstream_response_bytes: u64,
    pub attempts: u32,
    pub denials: Cow<'a, [Denial]>,
    pub shadow_rule_ids: Cow<'a, [RuleId]>,
    pub filter_ids: Cow<'a, [FilterId]>,
    pub source_address: Option<&'a str>,
    pub user_agent: Option<&'a str>,
    pub upstream_ids: Cow<'a, [UpstreamId]>,
    pub trace_id: Option<&'a str>,
    pub left_gateway: Option<&'a str>,
    pub client_aborted: bool,
    pub scrubbed: u32,
    #[serde(default)]
    pub sends: Cow<'a, [Attempt]>,
    #[serde(default)]
    pub limited_by: Cow<'a, [Cow<'static, str>]>,
    #[serde(default)]
    pub scrub: ScrubState,
    #[serde(default)]
    pub endpoints: Cow<'a, [Arc<str>]>,
    #[serde(default)]
    pub forwarded_to: Option<&'a str>,
    #[serde(default)]
    pub forwarded_from: Option<&'a str>,
    #[serde(default)]
    pub payload: Option<StoredPayload<'a>>,
    #[serde(default)]
    pub meters: Cow<'a, [MeterSpend]>,
    /// Place and hint.
    #[serde(default)]
    pub presented: Option<(&'a str, Option<KeyHint>)>,
    #[serde(default)]
    pub refused_by: Cow<'a, [MeterRefusal]>,
    #[serde(default)]
    pub method_overridden: Option<bool>,
    #[serde(default)]
    pub events: Cow<'a, [SpanEvent]>,
    #[serde(default)]
    pub events_dropped: u32,
    #[serde(default)]
    pub value_missing: Cow<'a, [Arc<str>]>,
}

impl<'a> StoredRecord<'a> {
    /// What a block holds of `record`.
    pub fn of(record: &'a Record) -> Self {
        Self {
            request_id: record.request_id.bits(),
            proxy_id: record.proxy_id.bits(),
            proxy_credential_id: record.proxy_credential_id.map(CredentialId::bits),
            proxy_credential_generation: record.proxy_credential_generation.as_deref(),
            target_credential_id: record.target_credential_id.map(CredentialId::bits),
            target_credential_generation: record.target_credential_generation.as_deref(),
            config_version: record.config_version,
            node: &record.node,
            region: &record.region,
            method: &record.method,
            path: &record.path,
            query: Cow::Borrowed(&record.query),
            status: record.status,
            upstream_status: record.upstream_status,
            code: &record.code,
            auth_failure: record.auth_failure,
            started_at_us: record.started_at_us,
            total_us: record.total_us,
            stages: Cow::Borrowed(&record.stages),
            request_bytes: record.request_bytes,
            response_bytes: record.response_bytes,
            upstream_request_bytes: record.upstream_request_bytes,
            upstream_response_bytes: record.upstream_response_bytes,
            attempts: record.attempts,
            denials: Cow::Borrowed(&record.denials),
            shadow_rule_ids: Cow::Borrowed(&record.shadow_rule_ids),
            filter_ids: Cow::Borrowed(&record.filter_ids),
            source_address: record.source_address.as_deref(),
            user_agent: record.user_agent.as_deref(),
            upstream_ids: Cow::Borrowed(&record.upstream_ids),
            trace_id: record.trace_id.as_deref(),
            left_gateway: record.left_gateway.as_deref(),
            client_aborted: record.client_aborted,
            scrubbed: record.scrubbed,
            sends: Cow::Borrowed(&record.sends),
            limited_by: Cow::Borrowed(&record.limited_by),
            scrub: record.scrub,
            endpoints: Cow::Borrowed(&record.endpoints),
            forwarded_to: record.forwarded_to.as_deref(),
            forwarded_from: record.forwarded_from.as_deref(),
            payload: record.payload.as_deref().map(StoredPayload::of),
            meters: Cow::Borrowed(&record.meters),
            presented: record.presented.as_ref().map(|key| (&*key.place, key.hint)),
            refused_by: Cow::Borrowed(&record.refused_by),
            method_overridden: record.method_overridden,
            events: Cow::Borrowed(&record.events),
            events_dropped: record.events_dropped,
            value_missing: Cow::Borrowed(&record.value_missing),
        }
    }

    /// The record without bodies, which belongs to `org`: as lists have it.
    pub fn to_listed(&self, org: OrgId) -> Record {
        self.to_record_with(org, None)
    }

    /// The whole record, which belongs to `org`.
    pub fn to_record(&self, org: OrgId) -> Record {
        self.to_record_with(org, self.payload)
    }

    fn to_record_with(&self, org: OrgId, payload: Option<StoredPayload<'_>>) -> Record {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        let shared = |text: Option<&str>| text.map(Arc::from);
        Record {
            request_id: self.request_id(),
            org_id: org,
            proxy_id: self.proxy_id(),
            proxy_credential_id: self.proxy_credential_id(),
            proxy_credential_generation: shared(self.proxy_credential_generation),
            target_credential_id: self.target_credential_id(),
            target_credential_generation: shared(self.target_credential_generation),
            config_version: self.config_version,
            node: self.node.into(),
            region: self.region.into(),
            method: Cow::Owned(self.method.to_owned()),
            path: self.path.to_owned(),
            query: self.query.to_vec(),
            status: self.status,
            upstream_status: self.upstream_status,
            code: Cow::Owned(self.code.to_owned()),
            auth_failure: self.auth_failure,
            started_at_us: self.started_at_us,
            total_us: self.total_us,
            stages: self.stages.to_vec(),
            request_bytes: self.request_bytes,
            response_bytes: self.response_bytes,
            upstream_request_bytes: self.upstream_request_bytes,
            upstream_response_bytes: self.upstream_response_bytes,
            attempts: self.attempts,
            denials: self.denials.to_vec(),
            shadow_rule_ids: self.shadow_rule_ids.to_vec(),
            filter_ids: self.filter_ids.to_vec(),
            source_address: owned(self.source_address),
            user_agent: owned(self.user_agent),
            upstream_ids: self.upstream_ids.to_vec(),
            trace_id: owned(self.trace_id),
            left_gateway: owned(self.left_gateway),
            client_aborted: self.client_aborted,
            scrubbed: self.scrubbed,
            sends: self.sends.to_vec(),
            limited_by: self.limited_by.to_vec(),
            scrub: self.scrub,
            endpoints: self.endpoints.to_vec(),
            forwarded_to: shared(self.forwarded_to),
            forwarded_from: shared(self.forwarded_from),
            payload: payload.map(|payload| Box::new(payload.to_payload())),
            meters: self.meters.to_vec(),
            presented: self.presented.map(|(place, hint)| PresentedKey {
                place: Cow::Owned(place.to_owned()),
                hint,
            }),
            refused_by: self.refused_by.to_vec(),
            method_overridden: self.method_overridden,
            events: self.events.to_vec(),
            events_dropped: self.events_dropped,
            value_missing: self.value_missing.to_vec(),
        }
    }

    /// The request's id.
    pub fn request_id(&self) -> RequestId {
        RequestId::from_bits(self.request_id)
    }

    /// The proxy that was called.
    pub fn proxy_id(&self) -> ProxyId {
        ProxyId::from_bits(self.proxy_id)
    }

    /// The proxy credential that the caller proved, if any.
    pub fn proxy_credential_id(&self) -> Option<CredentialId> {
        self.proxy_credential_id.map(CredentialId::from_bits)
    }

    /// The target credential that was injected, if any.
    pub fn target_credential_id(&self) -> Option<CredentialId> {
        self.target_credential_id.map(CredentialId::from_bits)
    }
}
