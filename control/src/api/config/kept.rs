//! Whether a secret that a document gives need not be set again: the credential has it, for the
//! same hosts and regions, and in a form that this region's nodes can open. One that was revoked is
//! not set again by the same words: whoever revoked it meant it, and the document may be older.

use jiff::Timestamp;
use proto::credential::{Credential, SecretState};
use proto::id::CredentialId;
use proto::object::{ObjectId, StoredCredential};
use proto::problem::Problem;
use proto::regions::are_within;
use proto::tree::{OrgConfig, SecretChange};
use serde_json::Value;

use super::apply::Work;
use crate::api::call::OrgCall;

/// The code of what is said of a secret that is given once more after it was revoked.
const REVOKED: &str = "secret-revoked";

impl Work<'_> {
    /// What becomes of the secret of a credential that is to get another form, with the secret that
    /// the document gives.
    pub(super) fn changed_secret(
        &mut self,
        pointer: &str,
        id: ObjectId,
        (stored, form): (&StoredCredential, &StoredCredential),
        given: Option<Value>,
    ) -> Result<SecretChange, Vec<Problem>> {
        let change = self.plan.changed_secret(id, form, given, self.key)?;
        let (ObjectId::Credential(id), Some(secret)) = (id, &stored.secret) else {
            return Ok(change);
        };
        let is_same = matches!(&change, SecretChange::Set { secret: given, .. }
            if given.digest == secret.digest);
        if !is_same {
            return Ok(change);
        }
        let (before, after) = (&stored.credential, &form.credential);
        let place = (self.call, self.config);
        if is_revoked(place, id, secret) {
            let detail = "was revoked and stays so: give another one";
            if before.hosts != after.hosts {
                return Err(vec![Problem::new("/secret", REVOKED, detail)]);
            }
            let pointer = format!("{pointer}/secret");
            self.plan.remark(Problem::new(pointer, REVOKED, detail));
            return Ok(SecretChange::Keep);
        }
        let stays = before.hosts == after.hosts
            && are_within(&before.regions, &after.regions)
            && are_within(&after.regions, &before.regions)
            && is_usable(place, (id, after), secret);
        Ok(if stays { SecretChange::Keep } else { change })
    }
}

/// Whether a secret is over, by a fact that only rises.
fn is_revoked(
    (call, config): (&OrgCall, &OrgConfig),
    id: CredentialId,
    secret: &SecretState,
) -> bool {
    let world = call.control.world();
    let state = world.orgs.get(&config.org);
    let fact = state.and_then(|state| state.retired.get(&id));
    fact.is_some_and(|fact| fact.covers(&secret.generation, Timestamp::now()))
}

/// Whether a secret is sealed to the key that is in use here.
fn is_usable(
    (call, config): (&OrgCall, &OrgConfig),
    (id, credential): (CredentialId, &Credential),
    secret: &SecretState,
) -> bool {
    let world = call.control.world();
    let Some(state) = world.orgs.get(&config.org) else {
        return true;
    };
    let publisher = &call.control.publisher;
    let here = credential.is_for_region(publisher.region());
    let (Some(seal_id), true) = (&secret.seal_id, here) else {
        return true;
    };
    // The values of a version come with it.
    if state.config.head.n < config.head.n {
        return true;
    }
    let sealed = state.sealed.get(&(id, seal_id.clone()));
    let own = publisher.seals_to().next();
    sealed
        .zip(own)
        .is_some_and(|(sealed, own)| sealed.key_id == own.key_id)
}
