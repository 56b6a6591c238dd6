//! Bytes of a state in the store: the only place that knows their form, a frame of [`proto::wire`].

use proto::wire::{self, Message, WireError};
use serde::{Deserialize, Serialize};

use super::corrections::{FOLDED_MAX, Folded};
use super::state::{Charges, OPEN_MAX, State, Usage};
use super::window::COUNTED;

/// Largest encoded state: five rings and [`OPEN_MAX`] blocks fit with room.
pub const BYTES_MAX: usize = 24 * 1_024;

impl Message for State {
    const SCHEMA: u16 = wire::SCHEMA_TOKEN_STATE;
}

/// A state with a token bucket: a number of its own, so that a program which knows no buckets says
/// that a newer one wrote it.
#[derive(Serialize, Deserialize)]
struct WithBucket(State);

/// A state with corrections in it, likewise.
#[derive(Serialize, Deserialize)]
struct WithFolded(State, Vec<Folded>);

impl Message for WithFolded {
    const SCHEMA: u16 = wire::SCHEMA_CORRECTED_STATE;
}

impl Message for WithBucket {
    const SCHEMA: u16 = wire::SCHEMA_BUCKET_STATE;
}

/// Why bytes are not a state.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// Longer than any state that we write.
    #[error("a token state of {0} bytes is larger than {BYTES_MAX}")]
    TooLarge(usize),
    /// Written by a newer release, or not by us, or damaged.
    #[error("a token state does not decode: {0}")]
    Frame(#[from] WireError),
    /// It parses but has more entries than any state that we write.
    #[error("a token state has too many {0}")]
    TooMany(&'static str),
}

/// The bytes of a state.
///
/// # Errors
/// [`CodecError::Frame`] when the serializer refuses, [`CodecError::TooLarge`].
pub fn encode(state: &State) -> Result<Vec<u8>, CodecError> {
    let bucket = |usage: &Usage| matches!(usage.charges, Charges::Bucket(_));
    let bytes = match state.limits.iter().any(bucket) {
        _ if !state.folded.is_empty() => {
            wire::encode(&WithFolded(state.clone(), state.folded.clone()))?
        }
        true => wire::encode(&WithBucket(state.clone()))?,
        false => wire::encode(state)?,
    };
    if bytes.len() > BYTES_MAX {
        return Err(CodecError::TooLarge(bytes.len()));
    }
    Ok(bytes)
}

/// The state in some bytes.
///
/// # Errors
/// Every case of [`CodecError`].
pub fn decode(bytes: &[u8]) -> Result<State, CodecError> {
    if bytes.len() > BYTES_MAX {
        return Err(CodecError::TooLarge(bytes.len()));
    }
    let state = match wire::decode::<State>(bytes) {
        Err(WireError::Schema {
            found: WithBucket::SCHEMA,
            ..
        }) => wire::decode::<WithBucket>(bytes)?.0,
        Err(WireError::Schema {
            found: WithFolded::SCHEMA,
            ..
        }) => {
            let WithFolded(state, folded) = wire::decode(bytes)?;
            State { folded, ..state }
        }
        decoded => decoded?,
    };
    if state.open.len() > OPEN_MAX {
        return Err(CodecError::TooMany("open blocks"));
    }
    if state.folded.len() > FOLDED_MAX {
        return Err(CodecError::TooMany("corrections"));
    }
    if state.limits.len() > proto::meter::LIMITS_PER_METER_MAX {
        return Err(CodecError::TooMany("limits"));
    }
    let long = |charges: &Charges| match charges {
        Charges::Sliding(ring) => ring.counts.len() > COUNTED,
        Charges::Fixed(_) | Charges::Bucket(_) => false,
    };
    if state.limits.iter().any(|usage| long(&usage.charges)) {
        return Err(CodecError::TooMany("sub-windows"));
    }
    Ok(state)
}
