//! What the copy of a configuration holds, in frames: a large one is never one message.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::KeptError;
use crate::store::Revision;
use crate::wire::{self, Message};

/// Values of one frame.
const PART_BYTES: usize = 2 * 1024 * 1024;

/// A part of the file's content.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Part {
    revision: i64,
    /// When it was last proven that nothing else was in the store, in seconds since 1970.
    proven_at_s: i64,
    /// Whether this is the last part.
    last: bool,
    pairs: Vec<(String, Bytes)>,
}

impl Message for Part {
    const SCHEMA: u16 = wire::SCHEMA_KEPT_PART;
}

pub(super) fn frames(
    revision: Revision,
    proven_at_s: i64,
    pairs: &BTreeMap<String, Bytes>,
) -> Result<Vec<u8>, KeptError> {
    let part = || Part {
        revision: revision.0,
        proven_at_s,
        ..Part::default()
    };
    let encoded =
        |part: &Part| wire::encode(part).map_err(|error| KeptError::Content(error.to_string()));
    let (mut content, mut current, mut bytes) = (Vec::new(), part(), 0);
    for (key, value) in pairs {
        if bytes > PART_BYTES {
            content.extend(encoded(&current)?);
            (current, bytes) = (part(), 0);
        }
        bytes += key.len() + value.len();
        current.pairs.push((key.clone(), value.clone()));
    }
    current.last = true;
    content.extend(encoded(&current)?);
    Ok(content)
}

/// What was read: the revision, when it was proven, and the pairs.
pub(super) type Content = (Revision, i64, BTreeMap<String, Bytes>);

pub(super) fn content(mut frames: &[u8]) -> Result<Content, KeptError> {
    let unreadable = |error: wire::WireError| KeptError::Content(error.to_string());
    let mut pairs = BTreeMap::new();
    loop {
        let length = wire::frame_len(frames).map_err(unreadable)?;
        let (frame, rest) = frames
            .split_at_checked(length)
            .ok_or_else(|| KeptError::Content("a part is cut".into()))?;
        let part: Part = wire::decode(frame).map_err(unreadable)?;
        pairs.extend(part.pairs);
        if part.last && rest.is_empty() {
            return Ok((Revision(part.revision), part.proven_at_s, pairs));
        }
        frames = rest;
    }
}
