//! What a control plane says of itself in the store, under its lease: where it listens, so that no
//! node dials it for a target.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// The listeners of a control plane.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listening {
    /// As they are bound: an unspecified address stands for all of its machine.
    pub listens: Vec<SocketAddr>,
}

impl Listening {
    /// Reads an entry; none in that of an earlier release, which has the name alone.
    pub fn parse(value: &[u8]) -> Self {
        serde_json::from_slice(value).unwrap_or_default()
    }

    /// As it is stored.
    pub fn to_json(&self) -> Vec<u8> {
        // A list of texts always serialises.
        serde_json::to_vec(self).unwrap_or_default()
    }
}
