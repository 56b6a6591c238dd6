//! Spans straight in protobuf, as OTLP has them, into one buffer.
//!
//! A request has a dozen spans of a few fields each. Made as values first (a text of its own for
//! each name, attribute and id, then the same once more in the types of the wire), they cost almost
//! as much as all else that the gateway does for the request. What is written here is what the
//! generated types of `opentelemetry-proto` write; a test reads it back with them.

use opentelemetry_proto::tonic::trace::v1::{SpanFlags, span::SpanKind, status::StatusCode};

/// How a field is written (protobuf, "Message Structure").
const VARINT: u32 = 0;
const FIXED64: u32 = 1;
const LENGTH: u32 = 2;
const FIXED32: u32 = 5;

/// The flag of a trace that is kept.
const SAMPLED: u32 = 1;

/// A message in the making.
#[derive(Default)]
pub struct Message(Vec<u8>);

/// Which span of which trace.
#[derive(Clone, Copy)]
pub struct Identity {
    /// The trace.
    pub trace_id: u128,
    /// The span.
    pub span_id: u64,
}

/// What every span has.
pub struct Head<'t> {
    /// Which it is.
    pub identity: Identity,
    /// The span above it, zero without one.
    pub parent: u64,
    /// Whether that is another process's.
    pub parent_is_remote: bool,
    /// Its kind.
    pub kind: SpanKind,
    /// Its name.
    pub name: &'t str,
    /// When it began and ended, in nanoseconds since the Unix epoch.
    pub times_ns: (u64, u64),
}

impl Message {
    /// What was written.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }

    fn key(&mut self, field: u32, kind: u32) {
        self.varint(u64::from(field << 3 | kind));
    }

    fn number(&mut self, field: u32, number: u64) {
        self.key(field, VARINT);
        self.varint(number);
    }

    fn fixed64(&mut self, field: u32, number: u64) {
        self.key(field, FIXED64);
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    fn fixed32(&mut self, field: u32, number: u32) {
        self.key(field, FIXED32);
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    /// A field of bytes, of text, or of a message that is encoded already.
    pub fn bytes(&mut self, field: u32, bytes: &[u8]) {
        self.key(field, LENGTH);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    /// A field that is a message. Its length stands before it and is known behind it: room for most
    /// lengths is left, and what does not fit is moved.
    pub fn message(&mut self, field: u32, write: impl FnOnce(&mut Self)) {
        self.key(field, LENGTH);
        let at = self.0.len();
        self.0.push(0);
        write(self);
        let mut length = self.0.len() - at - 1;
        if length < 0x80 {
            self.0[at] = length as u8;
            return;
        }
        let mut digits = [0; 10];
        let mut count = 0;
        loop {
            digits[count] = (length & 0x7f) as u8;
            count += 1;
            length >>= 7;
            if length == 0 {
                break;
            }
            digits[count - 1] |= 0x80;
        }
        self.0.splice(at..=at, digits[..count].iter().copied());
    }

    /// A span of a `ScopeSpans`: its head, and what `write` adds.
    pub fn span(&mut self, head: &Head<'_>, write: impl FnOnce(&mut Self)) {
        self.message(2, |span| {
            span.identity(head.identity);
            if head.parent != 0 {
                span.bytes(4, &head.parent.to_be_bytes());
            }
            span.bytes(5, head.name.as_bytes());
            span.number(6, head.kind as u64);
            span.fixed64(7, head.times_ns.0);
            span.fixed64(8, head.times_ns.1);
            write(span);
            span.fixed32(16, flags(head.parent_is_remote));
        });
    }

    fn identity(&mut self, identity: Identity) {
        self.bytes(1, &identity.trace_id.to_be_bytes());
        self.bytes(2, &identity.span_id.to_be_bytes());
    }

    /// An attribute of a span that is a text.
    pub fn text(&mut self, name: &str, value: &str) {
        self.attribute(name, |any| any.bytes(1, value.as_bytes()));
    }

    /// The same where there is one.
    pub fn text_of(&mut self, name: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.text(name, value);
        }
    }

    /// An attribute of a span that is a number.
    pub fn int(&mut self, name: &str, value: i64) {
        self.attribute(name, |any| any.number(3, value.cast_unsigned()));
    }

    /// An attribute of a span that is yes or no.
    pub fn flag(&mut self, name: &str, value: bool) {
        self.attribute(name, |any| any.number(2, value.into()));
    }

    /// An attribute of a span that is a list of texts; none where it is empty.
    pub fn list(&mut self, name: &str, values: impl Iterator<Item = impl AsRef<str>>) {
        let mut values = values.peekable();
        if values.peek().is_none() {
            return;
        }
        self.attribute(name, |any| {
            any.message(5, |array| {
                for value in values {
                    array.message(1, |any| any.bytes(1, value.as_ref().as_bytes()));
                }
            });
        });
    }

    fn attribute(&mut self, name: &str, value: impl FnOnce(&mut Self)) {
        self.message(9, |pair| {
            pair.bytes(1, name.as_bytes());
            pair.message(2, value);
        });
    }

    /// A link of a span to one of another process.
    pub fn link(&mut self, to: Identity) {
        self.message(13, |link| {
            link.identity(to);
            link.fixed32(6, flags(true));
        });
    }

    /// The status of a span that failed. No description: the status code says it.
    pub fn error(&mut self) {
        self.message(15, |status| status.number(3, StatusCode::Error as u64));
    }
}

/// Whether a span is kept, and where the one above it is.
fn flags(is_remote: bool) -> u32 {
    let remote = match is_remote {
        true => SpanFlags::ContextIsRemoteMask as u32,
        false => 0,
    };
    SAMPLED | SpanFlags::ContextHasIsRemoteMask as u32 | remote
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
    use opentelemetry_proto::tonic::trace::v1::ScopeSpans;
    use prost::Message as _;

    use super::*;

    #[test]
    fn what_is_written_reads_as_what_was_meant() {
        let identity = |n: u64| Identity {
            trace_id: u128::from(n) << 64 | 7,
            span_id: n,
        };
        // Lengths of one, two and three digits.
        for long in [1, 100, 127, 128, 300, 16_383, 16_384, 70_000] {
            let long = "x".repeat(long);
            let mut message = Message::default();
            for parent in [0, 9] {
                let head = Head {
                    identity: identity(5),
                    parent,
                    parent_is_remote: parent != 0,
                    kind: SpanKind::Client,
                    name: "GET",
                    times_ns: (1, u64::MAX),
                };
                message.span(&head, |span| {
                    span.text("long", &long);
                    span.text_of("none", None);
                    span.int("int", -3);
                    span.flag("flag", false);
                    span.list("list", ["a", &long].iter());
                    span.list("empty", [""; 0].iter());
                    span.link(identity(6));
                    span.error();
                });
            }
            let read = ScopeSpans::decode(&message.into_bytes()[..]).unwrap();
            assert_eq!(read.spans.len(), 2);
            assert!(read.spans[0].parent_span_id.is_empty());
            let span = &read.spans[1];
            assert_eq!(span.trace_id, (5_u128 << 64 | 7).to_be_bytes());
            assert_eq!(
                (&*span.span_id, &*span.parent_span_id),
                (&5_u64.to_be_bytes()[..], &9_u64.to_be_bytes()[..])
            );
            assert_eq!((span.name.as_str(), span.kind), ("GET", 3));
            assert_eq!(
                (span.start_time_unix_nano, span.end_time_unix_nano),
                (1, u64::MAX)
            );
            assert_eq!((read.spans[0].flags, span.flags), (0x101, 0x301));
            assert_eq!((span.links[0].span_id[7], span.links[0].flags), (6, 0x301));
            assert_eq!(span.status.as_ref().map(|status| status.code), Some(2));
            let found = span.attributes.iter().map(|pair| {
                let value = pair.value.as_ref().and_then(|value| value.value.clone());
                (pair.key.as_str(), value)
            });
            let found: Vec<_> = found.collect();
            let text = |text: &str| Some(Any::StringValue(text.to_owned()));
            assert_eq!(found[0], ("long", text(&long)));
            assert_eq!(found[1], ("int", Some(Any::IntValue(-3))));
            assert_eq!(found[2], ("flag", Some(Any::BoolValue(false))));
            let ("list", Some(Any::ArrayValue(list))) = &found[3] else {
                panic!("{found:?}");
            };
            let list: Vec<_> = list
                .values
                .iter()
                .map(|value| value.value.clone())
                .collect();
            assert_eq!(list, [text("a"), text(&long)]);
            assert_eq!(found.len(), 4);
        }
    }
}
