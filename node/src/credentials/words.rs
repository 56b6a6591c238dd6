//! Words that log lines are made of. What an organisation has saved as a secret and is one of them,
//! or a part of one, is overwritten in no line: whoever saved it would blot out what the operator
//! is told of others. Pure.

use proto::object::ObjectId;
use proto::outcome::Code;

/// A target's answer held the secret that it was sent.
pub const SECRET_REFLECTED: &str = "secret-reflected";
/// A secret was to be sent to a host that it is not bound to.
pub const HOST_MISMATCH: &str = "credential-host-mismatch";

/// Whether a text is a part of our own words, or an object's id.
pub fn are_ours(text: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(text) else {
        return false;
    };
    let mut codes = Code::ALL.iter();
    let in_code = codes.any(|code| code.as_str().contains(text));
    let in_event = [SECRET_REFLECTED, HOST_MISMATCH].map(|event| event.contains(text));
    in_code || in_event.contains(&true) || text.parse::<ObjectId>().is_ok()
}
