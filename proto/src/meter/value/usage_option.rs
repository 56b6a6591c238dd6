//! `stream_options.include_usage` of chat completions: a stream tells of its usage only when asked.
//!
//! What is asked for on behalf of a meter its caller does not expect: clients are known to fail on
//! a chunk without choices, so the event that it brings is taken out again.

use crate::json_text::{JsonText, Kind, NodeId};

/// A request's body that asks for usage.
pub type Injected = Vec<u8>;

/// The body with the option set; none where it is no request for a stream, or says itself whether
/// it wants usage.
pub fn inject(body: &[u8]) -> Option<Injected> {
    let document = JsonText::parse(body).ok()?;
    let member = |of: NodeId, name: &str| {
        let mut children = document.children(of);
        children.find(|id| document.is_named(*id, name))
    };
    if document.kind(NodeId::ROOT) != Kind::Object {
        return None;
    }
    let stream = member(NodeId::ROOT, "stream")?;
    if document.raw(stream) != "true" {
        return None;
    }
    let text = std::str::from_utf8(body).ok()?;
    match member(NodeId::ROOT, "stream_options") {
        // An object with at least one member: there is a `stream`.
        None => into_object(text, 0, r#""stream_options":{"include_usage":true},"#),
        Some(options) if document.kind(options) == Kind::Object => {
            if member(options, "include_usage").is_some() {
                return None;
            }
            let at = document.span(options).start;
            let alone = document.children(options).next().is_none();
            let option = match alone {
                true => r#""include_usage":true"#,
                false => r#""include_usage":true,"#,
            };
            into_object(text, at, option)
        }
        Some(options) if document.kind(options) == Kind::Null => {
            let at = document.span(options);
            let (before, after) = (text.get(..at.start)?, text.get(at.end..)?);
            Some(
                [before, r#"{"include_usage":true}"#, after]
                    .concat()
                    .into_bytes(),
            )
        }
        Some(_) => None,
    }
}

/// Puts members first into the object that begins at or behind `from`.
fn into_object(text: &str, from: usize, members: &str) -> Option<Injected> {
    let brace = text.get(from..)?.find('{')? + from + 1;
    let (before, after) = (text.get(..brace)?, text.get(brace..)?);
    Some([before, members, after].concat().into_bytes())
}

/// Whether an event's data is the one that tells of usage and nothing else.
pub(super) fn is_usage_event(document: &JsonText<'_>) -> bool {
    let member = |name: &str| {
        let mut children = document.children(NodeId::ROOT);
        children.find(|id| document.is_named(*id, name))
    };
    let empty =
        |id: NodeId| document.kind(id) == Kind::Array && document.children(id).next().is_none();
    let usage = member("usage").map(|id| document.kind(id));
    member("choices").is_some_and(empty) && usage == Some(Kind::Object)
}
