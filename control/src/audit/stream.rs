//! The audit while it is written: an event for each entry and each version, in the log and wherever
//! log lines are exported. Who keeps those elsewhere has what nobody can take out of the store.

use proto::audit::{Last, Said};
use proto::id::OrgId;
use serde_json::Value;
use tracing::info;

use crate::publish::{Author, Published};

/// The target of these events, for `log.filter`.
pub const TARGET: &str = "audit";
/// Most objects that an event names.
const NAMED_MAX: usize = 20;

/// An entry is in the store.
pub(super) fn entry(org: OrgId, last: &Last, said: &Said) {
    // Texts, numbers and flags always serialise.
    let mut act = serde_json::to_value(&said.act).unwrap_or_default();
    let kind = act.as_object_mut().and_then(|act| act.shift_remove("kind"));
    let kind = kind.as_ref().and_then(Value::as_str).unwrap_or_default();
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
