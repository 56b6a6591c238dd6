//! The audit while it is written: an event for each entry and each version, in the log and wherever
//! log lines are exported. Who keeps those elsewhere has what nobody can take out of the store.

use proto::audit::{Last, Said};
use proto::id::OrgId;
use proto::tree::Head;
use serde_json::Value;
use tracing::{info, warn};

use crate::publish::{Author, Published};

/// The target of these events, for `log.filter`.
pub const TARGET: &str = "audit";
/// Most objects that an event names.
const NAMED_MAX: usize = 20;

/// What stands in the place of an outcome that the store did not tell.
const UNKNOWN: &str = "unknown";

/// What an act is called, and the rest of it.
fn kind_and_rest(said: &Said) -> (String, Value) {
    // Texts, numbers and flags always serialise.
    let mut act = serde_json::to_value(&said.act).unwrap_or_default();
    let kind = act.as_object_mut().and_then(|act| act.shift_remove("kind"));
    let kind = kind.as_ref().and_then(Value::as_str).unwrap_or_default();
    (kind.to_owned(), act)
}

/// An entry is in the store.
pub(super) fn entry(org: OrgId, last: &Last, said: &Said) {
    let (kind, act) = kind_and_rest(said);
    let Last { seq, hash } = last;
    info!(
        target: TARGET,
        %org,
        kind,
        seq,
        %hash,
        actor = said.actor,
        source = said.source.map(tracing::field::display),
        act = %act,
        "{kind} by {}", said.actor
    );
}

/// An entry is in the store or is not: it did not say.
pub(super) fn unsure_entry(org: OrgId, last: &Last, said: &Said) {
    let (kind, act) = kind_and_rest(said);
    let Last { seq, hash } = last;
    warn!(
        target: TARGET,
        %org,
        kind,
        seq,
        %hash,
        outcome = UNKNOWN,
        actor = said.actor,
        source = said.source.map(tracing::field::display),
        act = %act,
        "{kind} by {}: whether it was stored is not known", said.actor
    );
}

/// A version is in the store.
pub fn version(org: OrgId, author: &Author, published: &Published) {
    let Published { n, hash, .. } = published;
    let count = published.changed.len();
    let named = published.changed.iter().take(NAMED_MAX);
    let named: Vec<String> = named.map(ToString::to_string).collect();
    info!(
        target: TARGET,
        %org,
        kind = "version",
        n,
        %hash,
        actor = author.name,
        source = author.source.map(tracing::field::display),
        changed = count,
        objects = named.join(" "),
        "version {n} by {}: {count} objects", author.name
    );
}

/// An organisation began with its first version, which is in the store.
pub fn first_version(org: OrgId, actor: &str, head: &Head) {
    let Head { n, hash, .. } = head;
    info!(
        target: TARGET,
        %org,
        kind = "version",
        n,
        %hash,
        actor,
        changed = 0,
        "version {n} by {actor}: the organisation is new"
    );
}

/// A version is in the store or is not: it could not be asked in time.
pub fn unsure_version(org: OrgId, author: &Author, head: &Head) {
    let Head { n, hash, .. } = head;
    warn!(
        target: TARGET,
        %org,
        kind = "version",
        n,
        %hash,
        outcome = UNKNOWN,
        actor = author.name,
        source = author.source.map(tracing::field::display),
        "version {n} by {}: whether it was stored is not known", author.name
    );
}
