//! What a node says of itself in the store, under a lease: who is there, and what it serves.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::id::NodeId;

/// Most faults that a node lists.
pub const FAULTS_MAX: usize = 100;

/// One running node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Member {
    /// New at every start.
    #[schema(value_type = String)]
    pub id: NodeId,
    /// Its name (`node_name`).
    pub name: String,
    /// Its region.
    pub region: String,
    /// Where it listens for callers: on all addresses of its machine, the host that its peers dial.
    pub address: String,
    /// Where other nodes connect, `host:port`; absent from a node that takes no links of peers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peers: Option<String>,
    /// The version of its program.
    pub program: String,
    /// When it started.
    #[schema(value_type = String, format = DateTime)]
    pub started_at: Timestamp,
    /// The store revision whose configuration it serves.
    pub revision: i64,
    /// What it serves: equal on nodes that serve the same. Empty from a node of an earlier release.
    #[serde(default)]
    pub serves: String,
    /// Requests in flight when it last wrote this.
    pub in_flight: u64,
    /// By how many milliseconds its clock is ahead of that of a control plane, negative when it is
    /// behind, to a tenth of a second; absent while they are at most 2 s apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_ahead_ms: Option<i64>,
    /// Meters of which neither the node that keeps them nor the store gave it tokens when it last
    /// wrote this: they go by what their `on_store_loss` says.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub meters_degraded: u64,
    /// Background tasks of it that panicked and were run again, and how often.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub restarts: BTreeMap<String, u64>,
    /// Files of its copy of the configuration that cannot be written, and why: a start without the
    /// store would go back behind what it serves.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub not_kept: BTreeMap<String, String>,
    /// The keys of its key ring, and what is sealed to an older one of them. Absent from a node of
    /// an earlier release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealing: Option<Sealing>,
    /// Endpoints of targets that it passes over because they fail its health checks. At most
    /// [`FAULTS_MAX`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failing: Vec<FailingEndpoint>,
    /// What of the configuration it cannot serve; an earlier form is served instead. At most
    /// [`FAULTS_MAX`].
    pub faults: Vec<MemberFault>,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl Member {
    /// Where a person finds it. What it listens on may be the same for all (0.0.0.0), what its
    /// peers are told is not.
    pub fn place(&self) -> &str {
        self.peers.as_deref().unwrap_or(&self.address)
    }
}

/// What a node has to open sealed secrets with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Sealing {
    /// The names of its keys, the one that seals first.
    pub keys: Vec<String>,
    /// How many of the secrets that it serves are sealed to another key than the first, by key.
    /// While there are any, that key has to stay in the key ring.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub older: BTreeMap<String, u64>,
}

/// An endpoint that fails a node's health checks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FailingEndpoint {
    /// The organisation.
    pub org: String,
    /// The target.
    pub target: String,
    /// Host and port.
    pub endpoint: String,
    /// What the last check that failed found.
    pub detail: String,
}

/// Something that a node cannot serve.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MemberFault {
    /// The organisation, where it is known.
    pub org: Option<String>,
    /// The object, where it is one.
    pub object: Option<String>,
    /// Stable, kebab-case.
    pub code: String,
    /// What is wrong.
    pub detail: String,
    /// Of a whole organisation: the number of the version that is served; absent where none is,
    /// and from a node of an earlier release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applied: Option<u64>,
}
