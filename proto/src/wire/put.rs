//! A record in the form that blocks hold it in, written by hand.
//!
//! What is written is what bincode writes of a [`StoredRecord`](super::StoredRecord), and tests
//! compare the two. Serde passes each of some hundred numbers through several calls, which took
//! longer than to compress them, for every request of the gateway. What few records have goes
//! through serde.

use serde::Serialize;

use super::{WireError, block::append};
use crate::id::{CredentialId, Id, kind::Credential};
use crate::payload::StoredPayload;
use crate::record::{Attempt, KeyHint, Record};

/// Appends a record.
///
/// # Errors
/// A part of it has a shape that bincode cannot carry.
pub(super) fn record(out: &mut Vec<u8>, record: &Record) -> Result<(), WireError> {
    who(out, record);
    asked(out, record)?;
    number(
        out,
        record.started_at_us.cast_unsigned() << 1 ^ sign(record.started_at_us),
    );
    number(out, record.total_us);
    number(out, record.stages.len() as u64);
    for time in &record.stages {
        number(out, time.stage as u64);
        number(out, time.us.into());
    }
    number(out, record.request_bytes);
    number(out, record.response_bytes);
    number(out, record.upstream_request_bytes);
    number(out, record.upstream_response_bytes);
    number(out, record.attempts.into());
    decided(out, record)?;
    came_of_it(out, record)
}

fn who(out: &mut Vec<u8>, record: &Record) {
    wide(out, record.request_id.bits());
    wide(out, record.proxy_id.bits());
    credential(out, record.proxy_credential_id);
    text_of(out, record.proxy_credential_generation.as_deref());
    credential(out, record.target_credential_id);
    text_of(out, record.target_credential_generation.as_deref());
    number(out, record.config_version);
    text(out, &record.node);
    text(out, &record.region);
}

fn asked(out: &mut Vec<u8>, record: &Record) -> Result<(), WireError> {
    text(out, &record.method);
    text(out, &record.path);
    list(out, &record.query)?;
    number_of(out, record.status.map(u64::from));
    number_of(out, record.upstream_status.map(u64::from));
    text(out, &record.code);
    number_of(out, record.auth_failure.map(|why| why as u64));
    Ok(())
}

fn decided(out: &mut Vec<u8>, record: &Record) -> Result<(), WireError> {
    list(out, &record.denials)?;
    list(out, &record.shadow_rule_ids)?;
    list(out, &record.filter_ids)?;
    text_of(out, record.source_address.as_deref());
    text_of(out, record.user_agent.as_deref());
    list(out, &record.upstream_ids)?;
    text_of(out, record.trace_id.as_deref());
    text_of(out, record.left_gateway.as_deref());
    out.push(record.client_aborted.into());
    number(out, record.scrubbed.into());
    Ok(())
}

fn came_of_it(out: &mut Vec<u8>, record: &Record) -> Result<(), WireError> {
    number(out, record.sends.len() as u64);
    record.sends.iter().for_each(|sent| attempt(out, sent));
    list(out, &record.limited_by)?;
    number(out, record.scrub as u64);
    number(out, record.endpoints.len() as u64);
    record.endpoints.iter().for_each(|name| text(out, name));
    text_of(out, record.forwarded_to.as_deref());
    text_of(out, record.forwarded_from.as_deref());
    match &record.payload {
        None => out.push(0),
        Some(payload) => append(out, &Some(StoredPayload::of(payload)))?,
    }
    number(out, record.meters.len() as u64);
    for spend in &record.meters {
        text(out, &spend.meter);
        number(out, spend.tokens);
    }
    out.push(record.presented.is_some().into());
    if let Some(key) = &record.presented {
        text(out, &key.place);
        text_of(out, key.hint.as_ref().map(KeyHint::as_str));
    }
    list(out, &record.refused_by)?;
    number_of(out, record.method_overridden.map(u64::from));
    list(out, &record.events)?;
    number(out, record.events_dropped.into());
    number(out, record.value_missing.len() as u64);
    record.value_missing.iter().for_each(|id| text(out, id));
    Ok(())
}

fn attempt(out: &mut Vec<u8>, attempt: &Attempt) {
    number(out, attempt.started_us.into());
    number(out, attempt.connect_us.into());
    number(out, attempt.wait_us.into());
    out.push(attempt.reused.into());
    number_of(out, attempt.status.map(u64::from));
    number_of(out, attempt.failure.map(|why| why as u64));
}

/// All bits set for a negative number, none for others: bincode writes these in turn (zigzag).
fn sign(number: i64) -> u64 {
    (number >> 63).cast_unsigned()
}

/// A number of up to 64 bits: one byte below 251, else a mark and as many as it needs.
fn number(out: &mut Vec<u8>, number: u64) {
    if number < 251 {
        out.push(number as u8);
    } else if let Ok(short) = u16::try_from(number) {
        let [a, b] = short.to_le_bytes();
        out.extend_from_slice(&[251, a, b]);
    } else if let Ok(word) = u32::try_from(number) {
        let [a, b, c, d] = word.to_le_bytes();
        out.extend_from_slice(&[252, a, b, c, d]);
    } else {
        let mut long = [253; 9];
        long[1..].copy_from_slice(&number.to_le_bytes());
        out.extend_from_slice(&long);
    }
}

/// A number of up to 128 bits.
fn wide(out: &mut Vec<u8>, wide: u128) {
    match u64::try_from(wide) {
        Ok(narrow) => number(out, narrow),
        Err(_) => {
            let mut long = [254; 17];
            long[1..].copy_from_slice(&wide.to_le_bytes());
            out.extend_from_slice(&long);
        }
    }
}

fn number_of(out: &mut Vec<u8>, value: Option<u64>) {
    out.push(value.is_some().into());
    if let Some(value) = value {
        number(out, value);
    }
}

fn credential(out: &mut Vec<u8>, id: Option<CredentialId>) {
    out.push(id.is_some().into());
    if let Some(id) = id.map(Id::<Credential>::bits) {
        wide(out, id);
    }
}

fn text(out: &mut Vec<u8>, text: &str) {
    number(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

fn text_of(out: &mut Vec<u8>, value: Option<&str>) {
    out.push(value.is_some().into());
    if let Some(value) = value {
        text(out, value);
    }
}

/// A list that most records have nothing in.
fn list<T: Serialize>(out: &mut Vec<u8>, items: &[T]) -> Result<(), WireError> {
    if items.is_empty() {
        out.push(0);
        return Ok(());
    }
    append(out, &items)
}

#[cfg(test)]
mod tests {
    use super::super::StoredRecord;
    use super::*;
    use crate::record::{Stage, StageTime};

    fn check(given: &Record) {
        let mut by_serde = Vec::new();
        append(&mut by_serde, &StoredRecord::of(given)).unwrap();
        let mut by_hand = Vec::new();
        record(&mut by_hand, given).unwrap();
        assert_eq!(by_hand, by_serde, "{given:?}");
    }

    #[test]
    fn it_is_what_bincode_writes() {
        let full = crate::record::tests::full();
        check(&full);
        let mut bare = full.clone();
        bare.proxy_credential_id = None;
        bare.target_credential_generation = None;
        (bare.status, bare.auth_failure, bare.payload) = (None, None, None);
        (bare.trace_id, bare.user_agent) = (None, None);
        bare.client_aborted = !full.client_aborted;
        (bare.denials, bare.query, bare.sends) = Default::default();
        (bare.meters, bare.endpoints, bare.stages) = Default::default();
        bare.presented = None;
        (bare.refused_by, bare.method_overridden) = Default::default();
        (bare.events, bare.events_dropped) = Default::default();
        bare.value_missing.clear();
        check(&bare);
        let mut given = full.clone();
        given.presented.as_mut().unwrap().hint = None;
        given.method_overridden = Some(false);
        check(&given);
    }

    proptest::proptest! {
        #[test]
        fn numbers_are_what_bincode_writes(
            numbers in [proptest::num::u64::ANY; 4], shift in 0u32..64, at: i64, wide: u128,
        ) {
            let mut record = crate::record::tests::full();
            let [a, b, c, d] = numbers.map(|number| number >> shift);
            record.total_us = a;
            (record.request_bytes, record.config_version) = (b, c);
            record.attempts = a as u32;
            record.status = Some(b as u16);
            record.started_at_us = at >> shift;
            record.request_id = crate::id::RequestId::from_bits(wide >> (shift * 2));
            record.stages = Stage::ALL.map(|stage| StageTime { stage, us: d as u32 }).into();
            record.path = "x".repeat((c % 1_000) as usize);
            check(&record);
        }

        #[test]
        fn numbers_at_the_marks_are_what_bincode_writes(at in 0usize..5, by in -3i64..3) {
            let marks = [250u64, 0xffff, 0xffff_ffff, u64::MAX - 5, 3];
            let mut record = crate::record::tests::full();
            let near = marks[at].wrapping_add_signed(by);
            record.total_us = near;
            record.started_at_us = near.cast_signed();
            record.request_id = crate::id::RequestId::from_bits(near.into());
            record.scrubbed = near as u32;
            check(&record);
        }
    }
}
