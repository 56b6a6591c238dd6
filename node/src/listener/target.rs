//! The forms of a request target that are served (RFC 9112 3.2): a path with its query, alone or
//! behind a scheme and an authority.
//!
//! The second form is what a client sends to a forward proxy, and what every server has to accept
//! (3.2.2). It is judged and sent on by its path alone, so its authority may name nothing else than
//! `Host` does: two names for one request are two readings of it. [`super::head`] compares them.

use crate::listener::class::{PATH, QUERY, span};
use crate::listener::host::is_host;
use crate::listener::refusal::Refusal;

/// The longest target that actix-web's URI type can hold.
pub const TARGET_BYTES_MAX: usize = 65_534;

/// Checks a target; gives its authority where it has one.
///
/// # Errors
/// The form is not served, or a byte must be percent-encoded.
pub fn read_target(target: &[u8]) -> Result<Option<&[u8]>, Refusal> {
    if target.len() > TARGET_BYTES_MAX {
        return Err(Refusal::TargetTooLong);
    }
    if target.first() == Some(&b'/') {
        return check_path(target).map(|()| None);
    }
    if target.is_empty() {
        return Err(Refusal::RequestLine);
    }
    let Some(colon) = target.windows(3).position(|bytes| bytes == b"://") else {
        return Err(Refusal::TargetForm);
    };
    let (scheme, rest) = (&target[..colon], &target[colon + 3..]);
    let http = [&b"http"[..], b"https"]
        .iter()
        .any(|known| scheme.eq_ignore_ascii_case(known));
    let end = rest
        .iter()
        .position(|byte| matches!(byte, b'/' | b'?' | b'#'))
        .unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    // No user before an `@` either: a host is a name or an address, and a port.
    if !http || !is_host(authority) {
        return Err(Refusal::AbsoluteForm);
    }
    if !path.is_empty() {
        check_path(path)?;
    }
    Ok(Some(authority))
}

/// A path that begins with `/`, and its query.
fn check_path(target: &[u8]) -> Result<(), Refusal> {
    if target.first() != Some(&b'/') {
        return Err(Refusal::TargetForm);
    }
    let path_end = span(target, PATH);
    match target.get(path_end) {
        None => Ok(()),
        Some(b'?') if span(&target[path_end + 1..], QUERY) == target.len() - path_end - 1 => Ok(()),
        Some(_) => Err(Refusal::TargetByte),
    }
}
