//! Revoking in one region, without a version: the operator of a region ends the secrets of
//! a credential there while home is away, or faster than home would.
//!
//! Only the fact rises. It covers the secrets that the region knows, and none that is set later. It
//! is in effect in the region as soon as it is stored; home takes it over when it next hears from
//! the region, and all others have it from there.

use proto::id::{CredentialId, OrgId};
use proto::retired::Retired;
use proto::store::facts::{self, RaiseError};
use proto::version::Generation;

use super::{PublishError, Publisher};

/// Why nothing was revoked.
#[derive(Debug, thiserror::Error)]
pub enum RevokeError {
    /// It is not in the configuration of this region.
    #[error("credential {0} is not known in this region")]
    Unknown(CredentialId),
    /// There is nothing to end.
    #[error("credential {0} has no secret")]
    Empty(CredentialId),
    /// The store failed, or holds what cannot be read.
    #[error(transparent)]
    Publish(#[from] PublishError),
}

impl From<RaiseError> for RevokeError {
    fn from(error: RaiseError) -> Self {
        Self::Publish(error.into())
    }
}

impl Publisher {
    /// Ends every secret that a credential has in this region. Gives the lowest generation that
    /// still counts.
    ///
    /// # Errors
    /// [`RevokeError`]; nothing was changed.
    pub async fn revoke_here(
        &self,
        org: OrgId,
        credential: CredentialId,
    ) -> Result<Generation, RevokeError> {
        let config = match self.load(org).await {
            // What nodes serve is what was seen before.
            Err(error @ PublishError::Regressed { .. }) => match self.regressions.seen(org) {
                Some(state) => state.config.clone(),
                None => return Err(error.into()),
            },
            loaded => loaded?,
        };
        let stored = config.credential(credential);
        let stored = stored.ok_or(RevokeError::Unknown(credential))?;
        let states = stored.secret.iter().chain(&stored.previous);
        let last = states.map(|state| &state.generation).max();
        let lowest = last.ok_or(RevokeError::Empty(credential))?.next();
        let fact = Retired {
            lowest: lowest.clone(),
            next: None,
        };
        facts::raise(self.store(), org, vec![(credential, fact)]).await?;
        Ok(lowest)
    }
}
