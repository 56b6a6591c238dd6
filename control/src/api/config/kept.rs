//! Whether a secret that a document gives need not be set again: the credential has it, in force,
//! for the same hosts and regions, and in a form that this region's nodes can open.

use jiff::Timestamp;
use proto::credential::{Credential, SecretState};
use proto::id::CredentialId;
use proto::object::{ObjectId, StoredCredential};
use proto::regions::are_within;
use proto::tree::OrgConfig;

use crate::api::call::OrgCall;

/// Whether the secret of `stored`, which the document gives once more, stays for the credential as
/// the document has it.
pub(super) fn stays(
    (call, config): (&OrgCall, &OrgConfig),
    id: ObjectId,
    stored: &StoredCredential,
    form: &Credential,
) -> bool {
    let (ObjectId::Credential(id), Some(secret)) = (id, &stored.secret) else {
        return false;
    };
    let (before, after) = (&stored.credential, form);
    before.hosts == after.hosts
        && are_within(&before.regions, &after.regions)
        && are_within(&after.regions, &before.regions)
        && is_usable((call, config), (id, after), secret)
}

/// Whether a secret is in force, and sealed to the key that is in use here.
fn is_usable(
    (call, config): (&OrgCall, &OrgConfig),
    (id, credential): (CredentialId, &Credential),
    secret: &SecretState,
) -> bool {
    let world = call.control.world();
    let Some(state) = world.orgs.get(&config.org) else {
        return true;
    };
    let fact = state.retired.get(&id);
    if fact.is_some_and(|fact| fact.covers(&secret.generation, Timestamp::now())) {
        return false;
    }
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
