//! What the limits of a process are told when it starts.

use std::time::Duration;

use super::block::Opener;

/// What the limits of a process need to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This incarnation; `boot` must be new at every start.
    pub incarnation: Opener,
    /// At least so many nodes, this one included, are taken to be there; see
    /// [`Limits::set_nodes`].
    pub nodes: u32,
    /// From when no token is at hand until a meter does without the store.
    pub store_grace: Duration,
    /// How far a node's wall clock may be from that of the others for it to take tokens of calendar
    /// windows; zero when no other node uses the store.
    pub max_skew: Duration,
    /// Whether the nodes tell each other what their wall clocks show.
    pub clocks_compared: bool,
    /// After this time a store call counts as unknown.
    pub store_timeout: Duration,
    /// Keys of one process; a key beyond shares the overflow key of its meter.
    pub keys_max: usize,
    /// Requests that may wait for one meter; one beyond is refused.
    pub waiting_max: u32,
    /// Keys written in a second, by all nodes together.
    pub key_writes_max: u64,
}

impl Settings {
    /// Settings of the only node on its store.
    pub fn single_node(incarnation: Opener) -> Self {
        Self {
            incarnation,
            nodes: 1,
            store_grace: Duration::from_millis(300),
            max_skew: Duration::ZERO,
            clocks_compared: false,
            store_timeout: Duration::from_secs(2),
            keys_max: 10_000,
            waiting_max: 4_096,
            key_writes_max: 1_000,
        }
    }
}
