//! Whether the records of versions are as the regions signed them that made them: with author,
//! address and time, which no hash of a version holds.

use crate::id::OrgId;
use crate::signature::{Signature, SignatureError, VerifyingKey};
use crate::tree::VersionRecord;

use super::verify::{Break, Problem};

/// A version's record as the store holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedRecord {
    /// The number in its key.
    pub n: u64,
    /// The record.
    pub record: Vec<u8>,
    /// Its signature; empty where there is none.
    pub signature: Vec<u8>,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Signed {
    /// Versions that are as they were signed.
    pub holding: u64,
    /// Those that are not.
    pub breaks: Vec<Break>,
}

/// Holds records, in the order of their numbers, against the keys of the regions that they say to
/// be signed by. One that is signed with a key that is not known here, and one of before the `own`
/// region had a key, is not judged.
pub fn check<'k>(
    org: OrgId,
    own: &str,
    records: &[SignedRecord],
    keys: impl Fn(&str) -> &'k [VerifyingKey],
) -> Signed {
    let judged: Vec<Judged> = records
        .iter()
        .map(|record| Judged::of(org, own, record, &keys))
        .collect();
    let holds = |judged: &Judged| judged.is_own && judged.verified.is_ok();
    let (first, last) = (
        judged.iter().position(holds),
        judged.iter().rposition(holds),
    );
    let mut found = Signed::default();
    for (at, (record, judged)) in records.iter().zip(&judged).enumerate() {
        // Between versions that this region's keys hold it has made none without them.
        let is_later = first.is_some_and(|first| first < at);
        let is_earlier = last.is_some_and(|last| at < last);
        let (problem, detail) = match &judged.verified {
            Ok(()) => {
                found.holding += 1;
                continue;
            }
            Err(SignatureError::UnknownKey(..)) if judged.is_own && is_earlier && is_later => (
                Problem::Changed,
                "it is signed with a key that is not among those of this region, between versions \
                 that are",
            ),
            Err(SignatureError::Absent) if judged.is_own && is_earlier => (
                Problem::Missing,
                "its signature is not there, and later versions have one: it was taken away, or a \
                 control plane without `keys.signing_file` made the version",
            ),
            Err(SignatureError::UnknownKey(..) | SignatureError::Absent) => continue,
            Err(SignatureError::Malformed | SignatureError::Wrong(_)) => (
                Problem::Changed,
                "its record, which says who made it, when and from where, is not what was signed",
            ),
        };
        found.breaks.push(Break {
            entry: None,
            version: Some(record.n),
            problem,
            detail: detail.into(),
        });
    }
    found
}

/// A record and its signature.
struct Judged {
    /// Whether this region made the version.
    is_own: bool,
    verified: Result<(), SignatureError>,
}

impl Judged {
    fn of<'k>(
        org: OrgId,
        own: &str,
        record: &SignedRecord,
        keys: impl Fn(&str) -> &'k [VerifyingKey],
    ) -> Self {
        let parsed = serde_json::from_slice::<VersionRecord>(&record.record);
        let is_own = parsed.is_ok_and(|parsed| parsed.head.epoch.region == own);
        let verified = Signature::parse(&record.signature).and_then(|signature| {
            // Another region's key says nothing of what this one made.
            let keys = match is_own && signature.region != own {
                true => &[],
                false => keys(&signature.region),
            };
            signature.verify(org, &record.record, keys)
        });
        Self { is_own, verified }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signature::{Signer, SigningRing};
    use crate::tree::OrgConfig;
    use crate::version::Epoch;

    const ORG: OrgId = OrgId::from_bits(1);

    fn signer(region: &str) -> Signer {
        let mut ring = SigningRing::empty(region);
        ring.rotate();
        ring.signer().unwrap()
    }

    fn record(n: u64, region: &str, signer: Option<&Signer>) -> SignedRecord {
        let epoch = Epoch {
            counter: 1,
            region: region.into(),
        };
        let mut head = OrgConfig::genesis(ORG, epoch).head;
        head.n = n;
        let record = serde_json::json!({
            "head": head, "at": "2026-01-01T00:00:00Z", "author": "me", "source": "192.0.2.9",
            "changes": 0, "changed": [],
        });
        let record = serde_json::to_vec(&record).unwrap();
        assert!(serde_json::from_slice::<VersionRecord>(&record).is_ok());
        let signature = signer.map(|signer| signer.sign(ORG, &record));
        let signature = signature.map(|signature| serde_json::to_vec(&signature).unwrap());
        SignedRecord {
            n,
            record,
            signature: signature.unwrap_or_default(),
        }
    }

    #[test]
    fn who_made_a_version_is_held_against_what_was_signed() {
        let (us, eu, gone) = (signer("us"), signer("eu"), signer("us"));
        let (of_us, of_eu) = ([us.public().clone()], [eu.public().clone()]);
        let keys = |region: &str| match region {
            "us" => &of_us[..],
            "eu" => &of_eu[..],
            _ => &[],
        };
        let mut records = vec![
            record(1, "us", Some(&gone)),
            record(2, "us", Some(&us)),
            record(3, "us", Some(&us)),
            record(4, "eu", Some(&eu)),
            record(5, "eu", None),
            record(6, "us", Some(&us)),
            record(7, "us", None),
        ];
        let check = |records: &[SignedRecord]| {
            let found = check(ORG, "us", records, keys);
            let breaks = found.breaks.iter();
            let breaks: Vec<_> = breaks.map(|b| (b.version.unwrap(), b.problem)).collect();
            (found.holding, breaks)
        };
        assert_eq!(check(&records), (4, vec![]));
        // Whoever names a key that is not known, or signs as another region, hides nothing.
        let signed = records[2].signature.clone();
        for by in [&gone, &eu] {
            let signature = by.sign(ORG, &records[2].record);
            records[2].signature = serde_json::to_vec(&signature).unwrap();
            assert_eq!(check(&records), (3, vec![(3, Problem::Changed)]));
        }
        records[2].signature = signed;
        let text = String::from_utf8(records[2].record.clone()).unwrap();
        records[2].record = text.replace("192.0.2.9", "192.0.2.8").into_bytes();
        records[3].signature = records[1].signature.clone();
        let broken = [(3, Problem::Changed), (4, Problem::Changed)];
        assert_eq!(check(&records), (2, broken.to_vec()));
        records[1].signature.clear();
        records[3].signature = b"{}".to_vec();
        let broken = [
            (2, Problem::Missing),
            (3, Problem::Changed),
            (4, Problem::Changed),
        ];
        assert_eq!(check(&records), (1, broken.to_vec()));
    }
}
