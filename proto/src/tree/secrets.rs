//! What operations do to the secrets of credentials: set, rotate, revoke, and the facts that
//! follow from it.

use std::sync::Arc;

use jiff::Timestamp;

use super::apply::Work;
use super::draft::Retirement;
use super::operation::SecretChange;
use super::reach;
use crate::credential::{CredentialKind, SecretState};
use crate::id::CredentialId;
use crate::object::{Body, Object, ObjectId, StoredCredential};
use crate::problem::Problem;
use crate::regions;
use crate::retired::NextRetired;
use crate::seal::NewSecret;

impl Work<'_> {
    /// What an update makes of a credential's secret; `stored` still has the one of `was`.
    pub(super) fn update_secret(
        &mut self,
        at: usize,
        id: CredentialId,
        was: &StoredCredential,
        stored: &mut StoredCredential,
        change: &SecretChange,
    ) {
        match change {
            SecretChange::Keep => {
                let (mut before, mut after) = (
                    was.credential.hosts.clone(),
                    stored.credential.hosts.clone(),
                );
                before.sort_unstable();
                after.sort_unstable();
                if before != after && was.credential.has_secret() {
                    let detail = "the secret is bound to its hosts: give `secret` again to \
                                  change them";
                    self.report(at, [Problem::new("/hosts", "secret-required", detail)]);
                }
                self.keep_in_regions(at, id, was, stored);
            }
            SecretChange::Set { secret, old_until } => {
                let states = was.secret.iter().chain(&was.previous);
                let mut sealed = states.filter_map(|state| state.seal_id.as_ref());
                if sealed.any(|known| Some(known) == secret.seal_id.as_ref()) {
                    // Its sealed values would go with those of the secret that it replaces.
                    let detail = "is what the credential has already, sealed by another region";
                    return self.report(at, [Problem::new("/secret", "sealed-otherwise", detail)]);
                }
                let overlap = old_until.filter(|until| {
                    *until > self.context.now && was.credential.kind == CredentialKind::Proxy
                });
                self.retire(id, was, overlap);
                let old = was.secret.clone().filter(|_| overlap.is_some());
                stored.previous = old.into_iter().collect();
                self.set_secret(at, id, stored, secret);
            }
            SecretChange::Revoke => {
                self.retire(id, was, None);
                self.draft.secrets.remove(&id);
                (stored.secret, stored.previous) = (None, Vec::new());
            }
        }
    }

    /// A secret that stays is destroyed for the regions that it leaves. To those that are added it
    /// comes when nodes that hold it seal it for them: nobody here can open it.
    fn keep_in_regions(
        &mut self,
        at: usize,
        id: CredentialId,
        was: &StoredCredential,
        stored: &StoredCredential,
    ) {
        let (before, after) = (&was.credential.regions, &stored.credential.regions);
        if regions::are_within(before, after) {
            return;
        }
        let Some(state) = was.secret.as_ref() else {
            return;
        };
        if !regions::overlap(before, after) {
            let detail = "no region is left that can open the secret: give `secret` again";
            return self.report(at, [Problem::new("/regions", "secret-required", detail)]);
        }
        let seal_id = state.seal_id.clone();
        let narrowed = seal_id.map(|seal_id| (id, seal_id));
        self.draft.narrowed.extend(narrowed);
    }

    pub(super) fn set_secret(
        &mut self,
        at: usize,
        id: CredentialId,
        stored: &mut StoredCredential,
        secret: &Arc<NewSecret>,
    ) {
        if !stored.credential.has_secret() {
            let detail = "type none holds no secret";
            return self.report(at, [Problem::new("/secret", "not-applicable", detail)]);
        }
        if !secret.is_of(stored.credential.kind) {
            let detail = "the secret was prepared for the other kind of credential";
            return self.report(at, [Problem::new("/secret", "kind", detail)]);
        }
        if let Some(other) = secret.sealed_for_other((self.parent.org, id), &stored.credential) {
            let detail = format!(
                "the region that was asked sealed the secret for {other} than it finds here: the \
                 configuration there is another one, or this list changes the credential twice; \
                 try again when it has arrived there, or give the secret in the home region"
            );
            return self.report(at, [Problem::new("/secret", "sealed-otherwise", detail)]);
        }
        stored.secret = Some(SecretState {
            generation: self.generation.clone(),
            digest: secret.digest.clone(),
            seal_id: secret.seal_id.clone(),
            issued: secret.issued,
            hint: secret.hint.clone(),
            set_at: self.context.now,
        });
        if stored.credential.kind == CredentialKind::Target {
            self.draft.secrets.insert(id, Arc::clone(secret));
        }
    }

    /// Ends the secrets that a credential had in the parent: now, or at the overlap's end.
    pub(super) fn retire(
        &mut self,
        id: CredentialId,
        was: &StoredCredential,
        overlap: Option<Timestamp>,
    ) {
        let states = was.secret.iter().chain(&was.previous);
        let named = states.filter_map(|state| state.seal_id.clone());
        self.draft
            .unsealed
            .extend(named.map(|seal_id| (id, seal_id)));
        let next = overlap.map(|from| NextRetired {
            lowest: self.generation.clone(),
            from,
        });
        let current = was.secret.as_ref().map(|state| state.generation.clone());
        let floor = current
            .filter(|_| next.is_some())
            .unwrap_or(self.generation.clone());
        self.draft
            .retirements
            .insert(id, Retirement { floor, next });
    }

    /// A secret is bound to its hosts: what is restored keeps them with it, for now, and its
    /// regions too where it would be left in none that has it.
    pub(super) fn with_hosts_of(&mut self, old: &Object, mut body: Body) -> Body {
        if let (ObjectId::Credential(id), Body::Credential(was), Body::Credential(stored)) =
            (old.id, &old.body, &mut body)
            && was.secret.is_some()
        {
            let (kept, then) = (&was.credential, &mut stored.credential);
            let nowhere = !regions::overlap(&then.regions, &kept.regions);
            if kept.hosts != then.hosts || nowhere {
                let of_then = (then.hosts.clone(), then.regions.clone());
                self.restored_hosts.insert(id, of_then);
                then.hosts.clone_from(&kept.hosts);
            }
            if nowhere {
                then.regions.clone_from(&kept.regions);
            }
        }
        body
    }

    /// A restored credential whose secret may not be sent where the restored proxies need it, or is
    /// not there, gets hosts and regions of then, and is without a secret until it is given again.
    pub(super) fn settle_restored_hosts(&mut self) {
        for (id, then) in std::mem::take(&mut self.restored_hosts) {
            let object = self.draft.objects.get(&ObjectId::Credential(id)).cloned();
            let Some(Body::Credential(was)) = object.as_deref().map(|object| &object.body) else {
                continue;
            };
            if reach::may_be_sent(&self.draft.objects, id, &was.credential) {
                continue;
            }
            self.retire(id, was, None);
            let mut stored = was.clone();
            (stored.credential.hosts, stored.credential.regions) = then;
            (stored.secret, stored.previous) = (None, Vec::new());
            if let Some(object) = &object {
                let object = Object {
                    body: Body::Credential(stored),
                    ..Object::clone(object)
                };
                self.draft.objects.insert(object.id, Arc::new(object));
            }
        }
    }
}
