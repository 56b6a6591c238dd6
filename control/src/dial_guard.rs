//! What the dial guard of nodes will say of a target's address: `explain` asks it. The guard is the
//! node's, which this crate knows nothing of: whoever runs both brings the two together.

use std::sync::Arc;

use ipnet::IpNet;
use proto::hosts::Origin;

/// Says what is known of an address before it is dialled. Nothing is sent for it, and no name is
/// asked of DNS.
pub type DialGuard = Arc<dyn Fn(&Asked<'_>) -> Foreseen + Send + Sync>;

/// A target's address.
pub struct Asked<'a> {
    /// Slug of its organisation.
    pub org: &'a str,
    /// The target's `allow_networks`.
    pub allow_networks: &'a [IpNet],
    /// Where it is dialled.
    pub origin: &'a Origin,
    /// Whether the nodes of this region dial it.
    pub is_here: bool,
}

/// What is known of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Foreseen {
    /// It may be dialled.
    Passes,
    /// It may not, as the caller is told it. Why exactly would map the operator's network.
    Refused(&'static str),
    /// That is judged when it is dialled, for this reason.
    AtDialling(&'static str),
}
