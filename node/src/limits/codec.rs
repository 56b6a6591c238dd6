//! Bytes of a state in the store: the only place that knows their form.
//!
//! A version byte comes first, so that a later form can be read beside this one.

use super::state::{OPEN_MAX, State};
use super::window::COUNTED;

use super::state::Charges;

const FORMAT: u8 = 1;

/// Largest encoded state: five rings and [`OPEN_MAX`] blocks in decimal digits fit with room.
pub const BYTES_MAX: usize = 24 * 1_024;

/// Why bytes are not a state.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// Longer than any state that we write.
    #[error("a token state of {0} bytes is larger than {BYTES_MAX}")]
    TooLarge(usize),
    /// Written by a newer release, or not by us.
    #[error("a token state begins with format {0:?}, this release reads {FORMAT}")]
    Format(Option<u8>),
    /// The payload does not parse.
    #[error("a token state does not parse: {0}")]
    Payload(#[from] serde_json::Error),
    /// It parses but has more entries than any state that we write.
    #[error("a token state has too many {0}")]
    TooMany(&'static str),
}

/// The bytes of a state.
///
/// # Errors
/// [`CodecError::Payload`] when the serializer refuses, [`CodecError::TooLarge`].
pub fn encode(state: &State) -> Result<Vec<u8>, CodecError> {
    let mut bytes = vec![FORMAT];
    serde_json::to_writer(&mut bytes, state)?;
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
    let Some((&FORMAT, payload)) = bytes.split_first() else {
        return Err(CodecError::Format(bytes.first().copied()));
    };
    let state: State = serde_json::from_slice(payload)?;
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
