//! A record as a row: what it is searched and counted by, and the whole of it as JSON. Pure.
//!
//! What a record does not have is an empty text or 0, which no value of it is.

use ipnet::IpNet;
use proto::record::{KeyHint, Record};
use serde::Serialize;

use crate::records::condition::network;
use crate::records::sketch;

/// The columns are those of `schema`, where their types stand.
#[derive(Debug, ::clickhouse::Row, Serialize)]
#[cfg_attr(test, derive(Default))]
pub(super) struct Row {
    org_id: String,
    /// Microseconds since the Unix epoch.
    started_at: i64,
    request_id: String,
    proxy_id: String,
    proxy_credential_id: String,
    proxy_credential_generation: String,
    target_credential_id: String,
    target_credential_generation: String,
    config_version: u64,
    node: String,
    region: String,
    method: String,
    path: String,
    query_names: Vec<String>,
    status: u16,
    upstream_status: u16,
    code: String,
    auth_failure: String,
    total_us: u64,
    duration_bucket: u16,
    request_bytes: u64,
    response_bytes: u64,
    attempts: u32,
    failures: Vec<String>,
    limited_by: Vec<String>,
    /// Those that denied, in earnest or in shadow mode.
    rule_ids: Vec<String>,
    filter_ids: Vec<String>,
    source: String,
    /// 4 or 6; 0 where the source is no address.
    source_family: u8,
    /// The first and the last address of the source, which may be a network.
    source_first: u128,
    source_last: u128,
    user_agent: String,
    user_agent_lower: String,
    upstream_ids: Vec<String>,
    trace_id: String,
    left_gateway: String,
    client_aborted: bool,
    scrubbed: u32,
    scrub: String,
    ended_by: String,
    /// As JSON, without bodies.
    record: String,
    /// The bodies as JSON; empty where there are none.
    payload: String,
    meter_ids: Vec<String>,
    meter_tokens: Vec<u64>,
    key_place: String,
    key_hint: String,
    refusing_meters: Vec<String>,
    refusal_causes: Vec<String>,
    denying_scopes: Vec<String>,
    endpoints: Vec<String>,
    forwarded_to: String,
    forwarded_from: String,
    upstream_request_bytes: u64,
    upstream_response_bytes: u64,
    /// `true`, `false`, or empty where the record does not know.
    method_overridden: String,
    /// Their kinds.
    events: Vec<String>,
    value_missing: Vec<String>,
}

impl Row {
    /// What is kept of `record`.
    pub(super) fn of(record: &Record) -> Self {
        let id = |id: Option<proto::id::CredentialId>| id.map(|id| id.to_string());
        let denied = record.denials.iter().flat_map(|denial| &denial.rule_ids);
        let source = record.source_address.as_deref();
        let (source_family, source_first, source_last) = within(source);
        let user_agent = record.user_agent.as_deref();
        let (whole, payload) = documents(record);
        let presented = record.presented.as_ref();
        let hint = presented.and_then(|key| key.hint.as_ref());
        let refused_by = || record.refused_by.iter();
        Self {
            org_id: record.org_id.to_string(),
            started_at: record.started_at_us,
            request_id: record.request_id.to_string(),
            proxy_id: record.proxy_id.to_string(),
            proxy_credential_id: id(record.proxy_credential_id).unwrap_or_default(),
            proxy_credential_generation: text(record.proxy_credential_generation.as_deref()),
            target_credential_id: id(record.target_credential_id).unwrap_or_default(),
            target_credential_generation: text(record.target_credential_generation.as_deref()),
            config_version: record.config_version,
            node: record.node.to_string(),
            region: record.region.to_string(),
            method: record.method.to_string(),
            path: record.path.clone(),
            query_names: texts(record.query.iter().map(|field| &field.name)),
            status: record.status.unwrap_or_default(),
            upstream_status: record.upstream_status.unwrap_or_default(),
            code: record.code.to_string(),
            auth_failure: text(record.auth_failure.map(|why| why.as_str())),
            total_us: record.total_us,
            duration_bucket: sketch::bucket(record.total_us),
            request_bytes: record.request_bytes,
            response_bytes: record.response_bytes,
            attempts: record.attempts,
            failures: failures(record),
            limited_by: texts(&record.limited_by),
            rule_ids: texts(denied.chain(&record.shadow_rule_ids)),
            filter_ids: texts(&record.filter_ids),
            source: text(source),
            source_family,
            source_first,
            source_last,
            user_agent: text(user_agent),
            user_agent_lower: user_agent.unwrap_or_default().to_lowercase(),
            upstream_ids: texts(record.upstream_ids.iter().map(|id| &id.value)),
            trace_id: text(record.trace_id.as_deref()),
            left_gateway: text(record.left_gateway.as_deref()),
            client_aborted: record.client_aborted,
            scrubbed: record.scrubbed,
            scrub: record.scrub.as_str().to_owned(),
            ended_by: text(record.ended_by().map(|stage| stage.name())),
            record: whole,
            payload,
            meter_ids: texts(record.meters.iter().map(|spend| &spend.meter)),
            meter_tokens: record.meters.iter().map(|spend| spend.tokens).collect(),
            key_place: text(presented.map(|key| &*key.place)),
            key_hint: text(hint.map(KeyHint::as_str)),
            refusing_meters: texts(refused_by().map(|one| &one.meter)),
            refusal_causes: texts(refused_by().map(|one| one.cause.as_str())),
            denying_scopes: texts(record.denials.iter().map(|denial| denial.scope.as_str())),
            endpoints: texts(&record.endpoints),
            forwarded_to: text(record.forwarded_to.as_deref()),
            forwarded_from: text(record.forwarded_from.as_deref()),
            upstream_request_bytes: record.upstream_request_bytes,
            upstream_response_bytes: record.upstream_response_bytes,
            method_overridden: text(record.method_overridden.map(boolean)),
            events: texts(record.events.iter().map(|event| event.kind.as_str())),
            value_missing: texts(&record.value_missing),
        }
    }

    /// About how many bytes it takes.
    pub(super) fn bytes(&self) -> usize {
        size_of::<Self>() + 2 * self.record.len() + self.payload.len()
    }
}

fn text(text: Option<&str>) -> String {
    text.unwrap_or_default().to_owned()
}

fn texts<T: ToString>(items: impl IntoIterator<Item = T>) -> Vec<String> {
    items.into_iter().map(|item| item.to_string()).collect()
}

/// Family, first and last address of what the table has as a source.
fn within(source: Option<&str>) -> (u8, u128, u128) {
    let network = source.and_then(network);
    network.map_or((0, 0, 0), |network| addresses(&network))
}

/// Why attempts got no answer.
fn failures(record: &Record) -> Vec<String> {
    let failures = record.sends.iter().filter_map(|send| send.failure);
    texts(failures.map(|why| why.as_str()))
}

/// A boolean that may be absent, as the table has it.
pub(super) const fn boolean(value: bool) -> &'static str {
    if value { "true" } else { "false" }
}

/// The record without its bodies, and its bodies, as JSON.
fn documents(record: &Record) -> (String, String) {
    // What has plain fields always serialises.
    match &record.payload {
        None => (
            serde_json::to_string(record).unwrap_or_default(),
            String::new(),
        ),
        Some(payload) => (
            serde_json::to_string(&record.without_payload()).unwrap_or_default(),
            serde_json::to_string(payload).unwrap_or_default(),
        ),
    }
}

/// Family, first and last address of a network.
pub(super) fn addresses(network: &IpNet) -> (u8, u128, u128) {
    match network {
        IpNet::V4(net) => {
            let bits = |address: std::net::Ipv4Addr| u128::from(address.to_bits());
            (4, bits(net.network()), bits(net.broadcast()))
        }
        IpNet::V6(net) => (6, net.network().to_bits(), net.broadcast().to_bits()),
    }
}
