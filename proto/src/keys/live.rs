//! What a node watches, told by its key.

use super::{BEAT, DELTAS, HEADS, RECOVERY_ASK, REGIONS, RESEALED, RETIRED, TESTS};
use crate::id::{CredentialId, OrgId, RequestId};

/// A key below [`LIVE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Live {
    /// The newest version of an organisation.
    Head(OrgId),
    /// What changed in it.
    Delta(OrgId),
    /// Which secrets of a credential are over.
    Retired(OrgId, CredentialId),
    /// A test request.
    Test(RequestId),
    /// The gateways of all regions.
    Regions,
    /// A person's request to write back what the store has lost.
    RecoveryAsk,
    /// The beat of control.
    Beat,
    /// To which key sealed values were sealed anew.
    Resealed,
}

impl Live {
    /// What a key names; `None` for keys of a newer release and for foreign ones.
    pub fn parse(key: &str) -> Option<Self> {
        match key {
            BEAT => return Some(Self::Beat),
            RESEALED => return Some(Self::Resealed),
            REGIONS => return Some(Self::Regions),
            RECOVERY_ASK => return Some(Self::RecoveryAsk),
            _ => {}
        }
        if let Some(org) = key.strip_prefix(HEADS) {
            return org.parse().ok().map(Self::Head);
        }
        if let Some(org) = key.strip_prefix(DELTAS) {
            return org.parse().ok().map(Self::Delta);
        }
        if let Some(id) = key.strip_prefix(TESTS) {
            return id.parse().ok().map(Self::Test);
        }
        let (org, credential) = key.strip_prefix(RETIRED)?.split_once('/')?;
        Some(Self::Retired(org.parse().ok()?, credential.parse().ok()?))
    }
}
