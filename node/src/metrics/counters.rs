//! The counters of the rate limits and of the links between nodes, as they are rendered, of stages
//! that panicked, as the node list shows them, and of calls of which no record is kept.

use std::sync::atomic::Ordering::Relaxed;

use super::{Metrics, Plain, Shared};
use crate::actor::StageKind;
use crate::limits::Stats;
use crate::peers::PeerStats;

impl Metrics {
    /// An attempt that matches no proxy was not kept: there were too many.
    pub fn unmatched_dropped(&self) {
        self.shared.unmatched_dropped.fetch_add(1, Relaxed);
    }

    /// The record of a call that was refused for its key was not kept: its proxy had too many.
    pub fn refused_dropped(&self) {
        self.shared.refused_dropped.fetch_add(1, Relaxed);
    }

    /// Stages whose decisions panicked, and how often.
    pub fn stages_panicked(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = StageKind::ALL.iter().zip(&self.shared.stage_panics);
        let counts = counts.map(|(stage, count)| (stage.name(), count.load(Relaxed)));
        counts.filter(|(_, count)| *count > 0)
    }
}

impl Shared {
    /// Those of the node itself.
    pub(super) fn plain(&self) -> [Plain<'_>; 9] {
        [
            (
                "requestrocket_upstream_replays_total",
                "Requests sent again on a new connection.",
                &self.replays,
            ),
            (
                "requestrocket_records_dropped_total",
                "Records that could not be kept.",
                &self.records_dropped,
            ),
            (
                "requestrocket_traces_exported_total",
                "Requests whose trace was sent to the collector.",
                &self.traces_exported,
            ),
            (
                "requestrocket_traces_dropped_total",
                "Requests whose trace could not be kept.",
                &self.traces_dropped,
            ),
            (
                "requestrocket_trace_export_failures_total",
                "Batches of traces that the collector did not take.",
                &self.trace_export_failures,
            ),
            (
                "requestrocket_secrets_refused_total",
                "Secrets not sent because the destination is outside the credential's hosts.",
                &self.secrets_refused,
            ),
            (
                "requestrocket_secrets_reflected_total",
                "Answers in which the injected secret was found and overwritten.",
                &self.secrets_reflected,
            ),
            (
                "requestrocket_unmatched_dropped_total",
                "Attempts that match no proxy and were not kept: there were too many.",
                &self.unmatched_dropped,
            ),
            (
                "requestrocket_refused_dropped_total",
                "Calls refused for their key whose record was not kept: there were too many.",
                &self.refused_dropped,
            ),
        ]
    }
}

pub(super) fn of_limits(limits: &Stats) -> [Plain<'_>; 13] {
    [
        (
            "requestrocket_limit_held_total",
            "Requests that waited for their turn at a rate limit.",
            &limits.held,
        ),
        (
            "requestrocket_limit_refusals_total",
            "Requests that a rate limit or a limit of calls in flight refused.",
            &limits.refused,
        ),
        (
            "requestrocket_limit_store_calls_total",
            "Store transactions of the rate limits.",
            &limits.store_calls,
        ),
        (
            "requestrocket_limit_key_writes_total",
            "Keys written in these transactions.",
            &limits.key_writes,
        ),
        (
            "requestrocket_limit_conflicts_total",
            "Transactions that found a value of another writer.",
            &limits.conflicts,
        ),
        (
            "requestrocket_limit_failures_total",
            "Transactions that failed or whose outcome is unknown.",
            &limits.failures,
        ),
        (
            "requestrocket_limit_unreadable_total",
            "States in the store that could not be read.",
            &limits.unreadable,
        ),
        (
            "requestrocket_limit_peer_asks_total",
            "Asks for tokens to the nodes that own the keys.",
            &limits.peer_asks,
        ),
        (
            "requestrocket_limit_peer_grants_total",
            "Parts of blocks lent to other nodes.",
            &limits.peer_grants,
        ),
        (
            "requestrocket_limit_peer_silences_total",
            "Asks that an owner did not answer in time.",
            &limits.peer_silences,
        ),
        (
            "requestrocket_limit_values_total",
            "Answers whose value a meter has counted.",
            &limits.values,
        ),
        (
            "requestrocket_limit_values_missed_total",
            "Answers without their value: what was set aside stays charged.",
            &limits.values_missed,
        ),
        (
            "requestrocket_limit_overflows_total",
            "Times that a key was put on the key shared by all beyond the most.",
            &limits.overflowed,
        ),
    ]
}

/// What became of the tokens of this node, and who gave them; and of keys of limits.
pub(super) fn of_tokens(limits: &Stats) -> [Plain<'_>; 8] {
    [
        (
            "requestrocket_limit_tokens_granted_total",
            "Tokens that the workers of this node could draw.",
            &limits.granted,
        ),
        (
            "requestrocket_limit_tokens_spent_total",
            "Tokens that were sent.",
            &limits.spent,
        ),
        (
            "requestrocket_limit_tokens_returned_total",
            "Tokens that nobody drew, and that went back.",
            &limits.returned,
        ),
        (
            "requestrocket_limit_tokens_expired_total",
            "Tokens that were drawn and not sent before their block ended.",
            &limits.expired,
        ),
        (
            "requestrocket_limit_owner_changes_total",
            "Times that a key got another owner, as this node sees it.",
            &limits.owner_changes,
        ),
        (
            "requestrocket_limit_clock_wrong_total",
            "Times that the wall clock was found too far from those of the other nodes.",
            &limits.clock_wrong,
        ),
        (
            "requestrocket_limit_store_returns_total",
            "Times that etcd was found to have gone back to an earlier state of itself.",
            &limits.store_returns,
        ),
        (
            "requestrocket_limit_keys_swept_total",
            "Keys of limits in the store that nobody used any more, and that this node deleted.",
            &limits.swept,
        ),
    ]
}

pub(super) fn of_peers(peers: &PeerStats) -> [Plain<'_>; 6] {
    [
        (
            "requestrocket_peer_messages_sent_total",
            "Messages to other nodes.",
            &peers.sent,
        ),
        (
            "requestrocket_peer_messages_received_total",
            "Messages from other nodes.",
            &peers.received,
        ),
        (
            "requestrocket_peer_messages_dropped_total",
            "Messages that found a node's queue full.",
            &peers.dropped,
        ),
        (
            "requestrocket_peer_leaves_total",
            "Leaves of configurations that other nodes gave.",
            &peers.leaves_from_peers,
        ),
        (
            "requestrocket_peer_leaves_missed_total",
            "Leaves that were asked of other nodes and came from the store.",
            &peers.leaves_from_store,
        ),
        (
            "requestrocket_peer_connections_refused_total",
            "Connections of peers that were refused, or failed before the peer was known.",
            &peers.refused,
        ),
    ]
}
