//! What tallies want to know of a record, whether it comes from a node or out of a block. Pure.

use proto::record::{MeterSpend, Record};
use proto::wire::StoredRecord;

/// A record as it is counted; each field is that of a record.
#[derive(Clone, Copy, Debug)]
#[allow(
    missing_docs,
    reason = "each field is that of a record, documented there"
)]
pub struct Counted<'a> {
    pub proxy_id: u128,
    pub proxy_credential_id: Option<u128>,
    pub target_credential_id: Option<u128>,
    pub config_version: u64,
    pub node: &'a str,
    pub status: Option<u16>,
    pub code: &'a str,
    pub started_at_us: i64,
    pub total_us: u64,
    pub request_bytes: u64,
    pub response_bytes: u64,
    pub attempts: u32,
    pub client_aborted: bool,
    pub meters: &'a [MeterSpend],
}

impl<'a> From<&'a Record> for Counted<'a> {
    fn from(record: &'a Record) -> Self {
        Self {
            proxy_id: record.proxy_id.bits(),
            proxy_credential_id: record.proxy_credential_id.map(|id| id.bits()),
            target_credential_id: record.target_credential_id.map(|id| id.bits()),
            config_version: record.config_version,
            node: &record.node,
            status: record.status,
            code: &record.code,
            started_at_us: record.started_at_us,
            total_us: record.total_us,
            request_bytes: record.request_bytes,
            response_bytes: record.response_bytes,
            attempts: record.attempts,
            client_aborted: record.client_aborted,
            meters: &record.meters,
        }
    }
}

impl<'a> From<&'a StoredRecord<'_>> for Counted<'a> {
    fn from(record: &'a StoredRecord<'_>) -> Self {
        Self {
            proxy_id: record.proxy_id,
            proxy_credential_id: record.proxy_credential_id,
            target_credential_id: record.target_credential_id,
            config_version: record.config_version,
            node: record.node,
            status: record.status,
            code: record.code,
            started_at_us: record.started_at_us,
            total_us: record.total_us,
            request_bytes: record.request_bytes,
            response_bytes: record.response_bytes,
            attempts: record.attempts,
            client_aborted: record.client_aborted,
            meters: &record.meters,
        }
    }
}
