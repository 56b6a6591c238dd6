//! The value of `retiring/{org}`: facts, each with the credentials that it is about.
//!
//! A line of JSON. As JSON 42,000 ids are all that fits a transaction, and an organisation has up
//! to 100,000 credentials: so from some number on ids stand behind that line, in order, as what the
//! time in each is after that of the one before (1 to 7 bytes) and its other 80 bits. Ids are
//! UUIDv7, so that 100,000 of them take 1.1 to 1.3 MB.

use proto::id::CredentialId;
use proto::retired::Retired;
use proto::tree::ApplyError;
use serde::{Deserialize, Serialize};

use super::writes::json;

/// Ids that stand in the JSON: an earlier release reads them. Fewer in tests, so that what
/// publishes meets both forms.
const LISTED_MAX: usize = if cfg!(test) { 200 } else { 30_000 };
/// Largest value: with head, delta, record and a remembered answer it fits one transaction.
const BYTES_MAX: usize = 1_340_000;
/// Bits of an id below its time, and their bytes.
const REST_BITS: u32 = 80;
const REST_BYTES: usize = 10;

/// Credentials whose secrets are over by the same fact.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Group {
    pub fact: Retired,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub credentials: Vec<CredentialId>,
    /// How many more stand behind the JSON.
    #[serde(default, skip_serializing_if = "is_zero")]
    packed: usize,
}

#[derive(Serialize, Deserialize)]
struct Line {
    groups: Vec<Group>,
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

impl Group {
    pub fn of(fact: Retired, credential: CredentialId) -> Self {
        Self {
            fact,
            credentials: vec![credential],
            packed: 0,
        }
    }
}

/// Writes the value.
///
/// # Errors
/// [`ApplyError::TooLarge`]: one transaction does not hold it.
pub(super) fn encode(mut groups: Vec<Group>) -> Result<Vec<u8>, ApplyError> {
    let count: usize = groups.iter().map(|group| group.credentials.len()).sum();
    let mut packed = Vec::new();
    if count > LISTED_MAX {
        for group in &mut groups {
            let ids = std::mem::take(&mut group.credentials);
            group.packed = ids.len();
            pack(ids, &mut packed);
        }
    }
    let mut value = json(&Line { groups }).to_vec();
    value.push(b'\n');
    value.append(&mut packed);
    if value.len() > BYTES_MAX {
        let detail = format!(
            "{count} secrets would be over at once, and the list of their credentials would take \
             {} bytes: at most {BYTES_MAX} fit; end them in several versions",
            value.len()
        );
        return Err(ApplyError::TooLarge(detail));
    }
    Ok(value)
}

/// Reads the value; one of an earlier release is JSON alone.
///
/// # Errors
/// What is wrong with it, in words.
pub(super) fn decode(value: &[u8]) -> Result<Vec<Group>, String> {
    let end = value.iter().position(|byte| *byte == b'\n');
    let (line, mut packed) = value.split_at(end.unwrap_or(value.len()));
    packed = packed.get(1..).unwrap_or_default();
    let line: Line = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    let mut groups = line.groups;
    for group in &mut groups {
        let mut time = 0;
        for _ in 0..std::mem::take(&mut group.packed) {
            let id = unpack(&mut time, &mut packed).ok_or("it ends too early")?;
            group.credentials.push(id);
        }
    }
    match packed {
        [] => Ok(groups),
        rest => Err(format!("{} bytes too many", rest.len())),
    }
}

fn pack(mut ids: Vec<CredentialId>, into: &mut Vec<u8>) {
    ids.sort_unstable_by_key(|id| id.bits());
    let mut before = 0;
    for bits in ids.into_iter().map(CredentialId::bits) {
        let time = bits >> REST_BITS;
        let mut more = time - before;
        before = time;
        while more >= 0x80 {
            // Its low seven bits, and that more follow.
            into.push((more & 0x7f) as u8 | 0x80);
            more >>= 7;
        }
        into.push(more as u8);
        into.extend(&bits.to_be_bytes()[16 - REST_BYTES..]);
    }
}

fn unpack(time: &mut u128, packed: &mut &[u8]) -> Option<CredentialId> {
    let (mut more, mut shift) = (0_u128, 0);
    loop {
        let (byte, rest) = packed.split_first()?;
        *packed = rest;
        more |= u128::from(byte & 0x7f) << shift;
        shift += 7;
        match byte & 0x80 {
            0 => break,
            _ if shift > u128::BITS - REST_BITS => return None,
            _ => {}
        }
    }
    *time = time
        .checked_add(more)
        .filter(|time| *time >> (u128::BITS - REST_BITS) == 0)?;
    let (low, rest) = packed.split_first_chunk::<REST_BYTES>()?;
    *packed = rest;
    let mut bytes = [0; 16];
    bytes[16 - REST_BYTES..].copy_from_slice(low);
    Some(CredentialId::from_bits(
        *time << REST_BITS | u128::from_be_bytes(bytes),
    ))
}

#[cfg(test)]
mod tests {
    use proto::tree::OBJECTS_MAX;
    use proto::version::{Epoch, Generation};

    use super::*;

    fn group(n: u64, credentials: Vec<CredentialId>) -> Group {
        let epoch = Epoch {
            counter: 1,
            region: "eu".into(),
        };
        let lowest = Generation { epoch, n };
        Group {
            fact: Retired { lowest, next: None },
            credentials,
            packed: 0,
        }
    }

    /// Ids as they are issued: made at times this far apart, with random bits behind.
    fn issued(count: usize, apart_ms: u128) -> Vec<CredentialId> {
        let ids = (1_700_000_000_000_u128..)
            .step_by(1)
            .take(count)
            .enumerate();
        ids.map(|(at, start)| {
            let time = start + at as u128 * apart_ms;
            let random = CredentialId::new().bits() & ((1 << REST_BITS) - 1);
            CredentialId::from_bits(time << REST_BITS | random)
        })
        .collect()
    }

    fn sorted(mut groups: Vec<Group>) -> Vec<Group> {
        for group in &mut groups {
            group.credentials.sort_unstable_by_key(|id| id.bits());
        }
        groups
    }

    #[test]
    fn all_credentials_that_an_organisation_can_have_fit() {
        // Half an hour apart: made evenly in more than five years.
        for (count, apart_ms) in [
            (1, 0),
            (LISTED_MAX, 5),
            (LISTED_MAX + 1, 5),
            (OBJECTS_MAX, 0),
        ]
        .into_iter()
        .chain([(OBJECTS_MAX, 1_800_000)])
        {
            let groups = vec![group(7, issued(count, apart_ms)), group(8, issued(1, 0))];
            let value = encode(groups.clone()).unwrap();
            assert_eq!(
                decode(&value).unwrap(),
                sorted(groups),
                "{count} {apart_ms}"
            );
        }
        let odd = [0, 1, u128::MAX, 1 << 127]
            .map(CredentialId::from_bits)
            .to_vec();
        let mut packed = Vec::new();
        pack(odd, &mut packed);
        assert!(packed.len() < 4 * 17 + 4);
    }

    #[test]
    fn what_does_not_fit_and_what_makes_no_sense_is_refused() {
        let far = issued(2 * OBJECTS_MAX, 0);
        let ApplyError::TooLarge(words) = encode(vec![group(7, far)]).unwrap_err() else {
            panic!("another error");
        };
        assert!(
            words.starts_with("200000 secrets would be over at once"),
            "{words}"
        );
        let value = encode(vec![group(7, issued(LISTED_MAX + 1, 5))]).unwrap();
        for cut in 1..40 {
            assert!(decode(&value[..value.len() - cut]).is_err(), "{cut}");
        }
        assert!(decode(&[&value[..], b"x"].concat()).is_err());
        // One of an earlier release.
        let listed = vec![group(7, issued(2, 5))];
        let line = encode(listed.clone()).unwrap();
        assert_eq!(decode(line.strip_suffix(b"\n").unwrap()).unwrap(), listed);
    }
}
