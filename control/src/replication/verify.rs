//! Who made a version: its record is signed by the region that was home in its epoch, and is taken
//! with that signature only, once keys of that region are known here.
//!
//! What a region passes on that another one made is so held against the keys of the maker, and not
//! of the one that is asked. The signature is stored beside the version, for those that ask here.

use proto::home::Home;
use proto::id::OrgId;
use proto::keys;
use proto::signature::{Signature, SignatureError, VerifyingKey};
use proto::store::Op;
use proto::tree::{Head, VersionRecord};
use proto::wire::replication::{Ask, PROTOCOL_REMEMBERED, PROTOCOL_SIGNED, Position, Versions};

use super::apply::{ApplyError, Local};
use crate::regions::Regions;

/// Most bytes of a signature as it is stored.
const SIGNATURE_BYTES_MAX: usize = 1024;

/// What was answered.
pub(super) struct Given {
    pub versions: Versions,
    /// Of each version, in their order; empty where there is none.
    pub signatures: Vec<Vec<u8>>,
    /// What is remembered of the request that made each, in their order; empty where nothing is.
    pub remembered: Vec<Vec<u8>>,
}

impl Given {
    /// The answer of a control plane that knows of no signatures.
    pub fn unsigned(versions: Versions) -> Self {
        Self {
            versions,
            signatures: Vec::new(),
            remembered: Vec::new(),
        }
    }
}

/// Asks for the versions after one, with signatures, and with what is remembered of requests, where
/// the other side knows of them.
pub(super) fn ask(protocol: u16, org: OrgId, after: Option<Position>) -> Ask {
    match protocol {
        PROTOCOL_REMEMBERED.. => Ask::RememberedVersions { org, after },
        PROTOCOL_SIGNED.. => Ask::SignedVersions { org, after },
        _ => Ask::Versions { org, after },
    }
}

impl Local {
    /// Verifies every version of an answer; gives what stores their signatures.
    pub(super) fn verify(
        &self,
        (regions, protocol): (&Regions, u16),
        line: &Home,
        (versions, records): (&Versions, &[VersionRecord]),
        signatures: Vec<Vec<u8>>,
    ) -> Result<Vec<Op>, ApplyError> {
        let mut ops = Vec::new();
        let mut signatures = signatures.into_iter();
        for (parts, record) in versions.versions.iter().zip(records) {
            let signature = signatures.next().unwrap_or_default();
            let key = keys::signature(self.org, record.head.n);
            let makers = makers(regions, line, &record.head);
            let must = makers.iter().any(|maker| !maker.keys.is_empty());
            if must {
                let verified = verified(&makers, self.org, &parts.record, &signature);
                verified.map_err(|error| {
                    let asked = makers.first().map_or("", |maker| maker.region);
                    self.unverified(&record.head, &advice(&error, asked, protocol))
                })?;
            }
            // One that nobody here can judge is kept for those who can.
            let is_kept = (1..=SIGNATURE_BYTES_MAX).contains(&signature.len());
            match is_kept {
                true => ops.push(Op::put(key, signature)),
                // That of a version which had this number on another branch.
                false if self.branch.is_left() => ops.push(Op::Delete(key)),
                false => {}
            }
        }
        Ok(ops)
    }

    fn unverified(&self, head: &Head, why: &str) -> ApplyError {
        ApplyError::Unverified {
            org: self.org,
            at: Position::from(head),
            why: why.to_owned(),
        }
    }
}

/// A region that may have made a version.
struct Maker<'r> {
    region: &'r str,
    keys: &'r [VerifyingKey],
}

/// The regions that may have made a version: the one that its epoch is named after. The first
/// epoch of all may be older than the names of regions, or than the setting which is home first.
fn makers<'r>(regions: &'r Regions, line: &'r Home, head: &'r Head) -> Vec<Maker<'r>> {
    let maker = |region: &'r str| {
        let keys = regions.signers(region)?;
        Some(Maker { region, keys })
    };
    let Some(named) = maker(&head.epoch.region) else {
        return regions.names().filter_map(maker).collect();
    };
    let is_first = line.openings.is_empty() && line.epoch == head.epoch;
    let first = (is_first && line.region != named.region).then(|| maker(&line.region));
    std::iter::once(named).chain(first.flatten()).collect()
}

fn verified(
    makers: &[Maker<'_>],
    org: OrgId,
    record: &[u8],
    signature: &[u8],
) -> Result<(), SignatureError> {
    let signature = Signature::parse(signature)?;
    let mut makers = makers.iter();
    match makers.find(|maker| maker.region == signature.region) {
        Some(maker) => signature.verify(org, record, maker.keys),
        None => signature.verify(org, record, &[]),
    }
}

/// What is wrong, and what a person can do about it.
fn advice(error: &SignatureError, region: &str, protocol: u16) -> String {
    match error {
        SignatureError::Absent if protocol < PROTOCOL_SIGNED => format!(
            "the control plane that was asked is of a release without signatures, and \
             `public_file` of region {region} lists keys: update it, or list no keys until then"
        ),
        SignatureError::Absent => format!(
            "{error}, and `public_file` of region {region} lists keys: give `keys.signing_file` \
             to all control planes of that region; they sign what was made without when they start"
        ),
        SignatureError::UnknownKey(..) => format!(
            "{error}: copy the `keys.public_file` of that region here and restart, if it has a new \
             key; if not, somebody else made this version"
        ),
        SignatureError::Malformed | SignatureError::Wrong(_) => format!(
            "{error}. It is asked for again; where this stays, the store or the control plane \
             that was asked is not to be trusted"
        ),
    }
}

#[cfg(test)]
mod tests {
    use proto::tree::Hash;
    use proto::version::Epoch;

    use super::*;

    #[test]
    fn the_maker_is_the_region_of_the_epoch() {
        let key = |id: &str| VerifyingKey {
            id: id.into(),
            key: vec![0; 32],
        };
        let ring = proto::seal::Keyring::generate("eu");
        let regions = Regions {
            own: "us".into(),
            home: "us".into(),
            signers: vec![key("us")],
            peers: vec![crate::regions::Peer {
                name: "eu".into(),
                control: String::new(),
                gateway: None,
                replication: Vec::new(),
                public: ring.public().unwrap(),
                signers: vec![key("eu")],
            }],
        };
        let epoch = |counter, region: &str| Epoch {
            counter,
            region: region.into(),
        };
        let head = |epoch: &Epoch| Head {
            epoch: epoch.clone(),
            n: 1,
            hash: Hash::of(b"x"),
            parent: None,
            gc: 0,
            salt: String::new(),
            roots: Default::default(),
        };
        let base = Position::from(&head(&epoch(1, "us")));
        let moved = Home::first(epoch(1, "us"), "us").reopen("eu", base, std::iter::empty());
        let renamed = Home::first(epoch(1, "local"), "us");
        let set = Home::first(epoch(1, "us"), "eu");
        for (line, made_in, expected) in [
            (&moved, epoch(1, "us"), vec!["us"]),
            (&moved, epoch(2, "eu"), vec!["eu"]),
            (&renamed, epoch(1, "local"), vec!["us", "eu"]),
            (&set, epoch(1, "us"), vec!["us", "eu"]),
        ] {
            let head = head(&made_in);
            let found = makers(&regions, line, &head);
            let found: Vec<&str> = found.iter().map(|maker| maker.region).collect();
            assert_eq!(found, expected, "{made_in:?}");
        }
    }
}
