//! Bytes of a state in the store: the only place that knows their form, a frame of [`proto::wire`].

use proto::wire::{self, Message, WireError};

use super::state::{Charges, OPEN_MAX, State};
use super::window::COUNTED;

/// Largest encoded state: five rings and [`OPEN_MAX`] blocks fit with room.
pub const BYTES_MAX: usize = 24 * 1_024;

impl Message for State {
    const SCHEMA: u16 = wire::SCHEMA_TOKEN_STATE;
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
    let bytes = wire::encode(state)?;
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
    let state: State = wire::decode(bytes)?;
    if state.open.len() > OPEN_MAX {
        return Err(CodecError::TooMany("open blocks"));
    }
    if state.limits.len() > proto::meter::LIMITS_PER_METER_MAX {
        return Err(CodecError::TooMany("limits"));
    }
    let long = |charges: &Charges| match charges {
        Charges::Sliding(ring) => ring.counts.len() > COUNTED,
        Charges::Fixed(_) => false,
    };
    if state.limits.iter().any(|usage| long(&usage.charges)) {
        return Err(CodecError::TooMany("sub-windows"));
    }
    Ok(state)
}
