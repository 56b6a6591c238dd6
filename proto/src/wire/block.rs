//! The binary form of a block of stored records: the organisation, a count, then the records.
//!
//! A frame like that of a message, with a schema number of its own; files of earlier releases hold
//! it, so a changed layout gets a new number and this one stays readable. Records are decoded one
//! at a time and borrow their texts from the block: a search that wants few of many neither
//! allocates for the others nor believes a claimed length. Ids are 16 bytes here and not texts as
//! in a [`super::RecordBatch`]: half the size, and nothing to parse.

use std::borrow::Cow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{PAYLOAD_BYTES_MAX, SCHEMA_RECORD_BLOCK as SCHEMA, WireError, begin, finish, payload};
use crate::id::{CredentialId, FilterId, OrgId, ProxyId, RequestId, RuleId};
use crate::record::{AuthFailure, Denial, QueryField, Record, StageTime, UpstreamId};

/// A record as blocks hold it, without its organisation, which is the block's.
#[derive(Debug, Serialize, Deserialize)]
pub struct StoredRecord<'a> {
    request_id: u128,
    proxy_id: u128,
    proxy_credential_id: Option<u128>,
    #[serde(borrow)]
    proxy_credential_generation: Option<&'a str>,
    target_credential_id: Option<u128>,
    target_credential_generation: Option<&'a str>,
    config_version: u64,
    node: &'a str,
    region: &'a str,
    method: &'a str,
    path: &'a str,
    query: Cow<'a, [QueryField]>,
    status: Option<u16>,
    upstream_status: Option<u16>,
    code: &'a str,
    auth_failure: Option<AuthFailure>,
    started_at_us: i64,
    total_us: u64,
    stages: Cow<'a, [StageTime]>,
    request_bytes: u64,
    response_bytes: u64,
    upstream_request_bytes: u64,
    upstream_response_bytes: u64,
    attempts: u32,
    denials: Cow<'a, [Denial]>,
    shadow_rule_ids: Cow<'a, [RuleId]>,
    filter_ids: Cow<'a, [FilterId]>,
    source_address: Option<&'a str>,
    user_agent: Option<&'a str>,
    upstream_ids: Cow<'a, [UpstreamId]>,
    trace_id: Option<&'a str>,
    left_gateway: Option<&'a str>,
    client_aborted: bool,
    scrubbed: u32,
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
        }
    }

    /// The whole record, which belongs to `org`.
    pub fn to_record(&self, org: OrgId) -> Record {
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

    /// The status that the caller got, if any.
    pub fn status(&self) -> Option<u16> {
        self.status
    }

    /// The outcome's code.
    pub fn code(&self) -> &str {
        self.code
    }

    /// When the request began, in microseconds since the Unix epoch.
    pub fn started_at_us(&self) -> i64 {
        self.started_at_us
    }
}

/// The frame that holds `records`, which all belong to `org`.
///
/// # Errors
/// The payload exceeds [`PAYLOAD_BYTES_MAX`]; fewer records may fit.
pub fn encode_block(org: OrgId, records: &[&Record]) -> Result<Vec<u8>, WireError> {
    let mut frame = begin(SCHEMA);
    let head = (org.bits(), records.len() as u64);
    append(&mut frame, &head)?;
    for record in records {
        append(&mut frame, &StoredRecord::of(record))?;
        // Stops early: what is too large would otherwise be encoded to its end first.
        if frame.len() > PAYLOAD_BYTES_MAX {
            break;
        }
    }
    finish(frame)
}

fn append(frame: &mut Vec<u8>, value: &impl Serialize) -> Result<(), WireError> {
    bincode::serde::encode_into_std_write(value, frame, bincode::config::standard())
        .map(|_| ())
        .map_err(|error| WireError::Payload(error.to_string()))
}

/// The records of a block, in the order in which they were encoded. Ends after the first error.
#[derive(Debug)]
pub struct Block<'a> {
    org: OrgId,
    left: u64,
    rest: &'a [u8],
}

impl<'a> Block<'a> {
    /// Reads the beginning of the block that `frame` holds exactly.
    ///
    /// # Errors
    /// See [`WireError`]. A damaged record shows when its turn comes.
    pub fn open(frame: &'a [u8]) -> Result<Self, WireError> {
        let mut rest = payload(frame, SCHEMA)?;
        let (org, left) = take(&mut rest)?;
        Ok(Self {
            org: OrgId::from_bits(org),
            left,
            rest,
        })
    }

    /// The organisation that the records belong to.
    pub fn org(&self) -> OrgId {
        self.org
    }
}

impl<'a> Iterator for Block<'a> {
    type Item = Result<StoredRecord<'a>, WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            let left_over = !std::mem::take(&mut self.rest).is_empty();
            return left_over.then(|| Err(WireError::Payload("bytes follow the records".into())));
        }
        self.left -= 1;
        let taken = take(&mut self.rest);
        if taken.is_err() {
            (self.left, self.rest) = (0, &[]);
        }
        Some(taken)
    }
}

/// Decodes the value at the start of `rest` and leaves what follows it.
fn take<'a, T: Deserialize<'a>>(rest: &mut &'a [u8]) -> Result<T, WireError> {
    let config = bincode::config::standard().with_limit::<PAYLOAD_BYTES_MAX>();
    let (value, used) = bincode::serde::borrow_decode_from_slice(rest, config)
        .map_err(|error| WireError::Payload(error.to_string()))?;
    *rest = rest.get(used..).unwrap_or_default();
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::super::{HEAD_BYTES, RecordBatch, encode};
    use super::*;

    const ORG: OrgId = OrgId::from_bits(2);

    /// One record with something in every field and one with as little as there can be.
    fn records() -> [Record; 2] {
        let full = crate::record::tests::full();
        let mut bare = full.clone();
        bare.request_id = RequestId::from_bits(9);
        bare.proxy_credential_id = None;
        bare.proxy_credential_generation = None;
        bare.status = None;
        bare.auth_failure = None;
        bare.stages.clear();
        bare.denials.clear();
        bare.trace_id = None;
        bare.node = "".into();
        [full, bare]
    }

    fn frame() -> Vec<u8> {
        let [full, bare] = records();
        encode_block(ORG, &[&full, &bare]).unwrap()
    }

    fn read(frame: &[u8]) -> Result<Vec<Record>, WireError> {
        let block = Block::open(frame)?;
        let org = block.org();
        block.map(|record| Ok(record?.to_record(org))).collect()
    }

    /// Schema 2 as it left the first release that stored blocks. When this fails, the layout
    /// changed: give it a new number and keep reading this one.
    const GOLDEN: &str = include_str!("record_block_2.hex");

    #[test]
    fn schema_2_has_these_bytes() {
        assert_eq!(hex::encode(frame()), GOLDEN.trim());
        let golden = hex::decode(GOLDEN.trim()).unwrap();
        assert_eq!(read(&golden).unwrap(), records());
        let empty = encode_block(ORG, &[]).unwrap();
        assert_eq!(read(&empty).unwrap(), []);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut large = crate::record::tests::full();
        large.path = "x".repeat(PAYLOAD_BYTES_MAX / 2);
        assert!(encode_block(ORG, &[&large]).is_ok());
        assert!(matches!(
            encode_block(ORG, &[&large, &large, &large]),
            Err(WireError::TooLarge(_))
        ));
    }

    #[test]
    fn damage_is_an_error_and_ends_the_block() {
        let good = frame();
        assert!(matches!(
            read(&good[..good.len() - 1]),
            Err(WireError::Cut { .. })
        ));
        let batch = encode(&RecordBatch::default()).unwrap();
        assert!(matches!(read(&batch), Err(WireError::Schema { .. })));
        // A count of 2^60 records, of which not one is there.
        let mut frame = begin(SCHEMA);
        append(&mut frame, &(1u128, 1u64 << 60)).unwrap();
        let frame = finish(frame).unwrap();
        assert_eq!(Block::open(&frame).unwrap().count(), 1);
        // A count of one where there are two.
        let mut fewer = good.clone();
        let at = HEAD_BYTES + 1;
        assert_eq!(fewer[at], 2);
        fewer[at] = 1;
        assert!(matches!(read(&fewer), Err(WireError::Payload(_))));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_decode_or_are_refused(bytes: Vec<u8>, count in 0u64..4) {
            let mut frame = begin(SCHEMA);
            append(&mut frame, &(1u128, count)).unwrap();
            frame.extend_from_slice(&bytes);
            let _ = read(&finish(frame).unwrap());
        }

        #[test]
        fn a_changed_byte_decodes_or_is_refused(at: proptest::sample::Index, byte: u8) {
            let mut changed = frame();
            let at = at.index(changed.len());
            changed[at] = byte;
            let _ = read(&changed);
        }
    }
}
