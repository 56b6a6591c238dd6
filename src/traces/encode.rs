//! Spans straight in protobuf, as OTLP has them, into one buffer.
//!
//! A request has a dozen spans of a few fields each. Made as values first (a text of its own for
//! each name, attribute and id, then the same once more in the types of the wire), they cost almost
//! as much as all else that the gateway does for the request. What is written here is what the
//! generated types of `opentelemetry-proto` write; a test reads it back with them.

use opentelemetry_proto::tonic::trace::v1::{SpanFlags, span::SpanKind, status::StatusCode};

/// How a field is written (protobuf, "Message Structure").
const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const LENGTH: u8 = 2;
const FIXED32: u8 = 5;
/// Most bytes of a number.
const DIGITS_MAX: usize = 10;
/// Lengths below this are one byte.
const SHORT: usize = 0x80;

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

/// A span of which nothing changes but its ids and times, which are of fixed lengths.
pub struct Template {
    span: Vec<u8>,
    /// Where it begins behind its key and its length.
    head: usize,
    /// Where its times begin behind that.
    times: usize,
}

impl Template {
    /// That of a span with a parent, as [`Message::span`] writes it.
    pub fn of(head: &Head<'_>, write: impl FnOnce(&mut Message)) -> Self {
        let mut message = Message::default();
        message.span(head, write);
        let span = message.0;
        // Lengths below 128 have one byte, those below 16,384 two.
        let digits = 1 + usize::from(span.get(1).is_some_and(|digit| digit & 0x80 != 0));
        // Ids, the name, the kind.
        let times = 38 + 2 + head.name.len() + 2;
        Self {
            span,
            head: 1 + digits,
            times,
        }
    }
}

/// The key of a field; those above 15 need a second byte.
const fn key(field: u8, kind: u8) -> u8 {
    field << 3 | kind
}

/// A number's bytes, and how many they are.
fn varint(mut number: u64) -> ([u8; DIGITS_MAX], usize) {
    let (mut digits, mut count) = ([0; DIGITS_MAX], 0);
    while number >= 0x80 {
        digits[count] = number as u8 | 0x80;
        number >>= 7;
        count += 1;
    }
    digits[count] = number as u8;
    (digits, count + 1)
}

impl Message {
    /// An empty one that is written over what `room` holds.
    pub fn within(mut room: Vec<u8>) -> Self {
        room.clear();
        Self(room)
    }

    /// What was written.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    fn add(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn varint(&mut self, number: u64) {
        if number < SHORT as u64 {
            return self.0.push(number as u8);
        }
        let (digits, count) = varint(number);
        self.add(&digits[..count]);
    }

    fn number(&mut self, field: u8, number: u64) {
        self.0.push(key(field, VARINT));
        self.varint(number);
    }

    /// A field of bytes, of text, or of a message that is encoded already.
    pub fn bytes(&mut self, field: u8, bytes: &[u8]) {
        self.0.push(key(field, LENGTH));
        self.varint(bytes.len() as u64);
        self.add(bytes);
    }

    /// A field that is a message, most often shorter than 128 bytes.
    pub fn message(&mut self, field: u8, write: impl FnOnce(&mut Self)) {
        self.nested::<1>(field, write);
    }

    /// A field that is a message. Its length stands before it and is known behind it: room is left
    /// for so many bytes of it, and what does not fit is moved.
    fn nested<const GUESS: usize>(&mut self, field: u8, write: impl FnOnce(&mut Self)) {
        self.0.push(key(field, LENGTH));
        let at = self.0.len();
        self.add(&[0; GUESS]);
        write(self);
        let length = self.0.len() - at - GUESS;
        if GUESS == 1 && length < SHORT {
            self.0[at] = length as u8;
            return;
        }
        let (digits, count) = varint(length as u64);
        if count == GUESS {
            self.0[at..at + GUESS].copy_from_slice(&digits[..GUESS]);
        } else {
            let digits = digits[..count].iter().copied();
            self.0.splice(at..at + GUESS, digits);
        }
    }

    /// A span of a `ScopeSpans`: its head, and what `write` adds.
    pub fn span(&mut self, head: &Head<'_>, write: impl FnOnce(&mut Self)) {
        self.nested::<2>(2, |span| {
            span.identity(head.identity);
            if head.parent != 0 {
                let mut parent = [0; 10];
                parent[..2].copy_from_slice(&[key(4, LENGTH), 8]);
                parent[2..].copy_from_slice(&head.parent.to_be_bytes());
                span.add(&parent);
            }
            span.bytes(5, head.name.as_bytes());
            span.number(6, head.kind as u64);
            let mut times = [0; 18];
            times[0] = key(7, FIXED64);
            times[1..9].copy_from_slice(&head.times_ns.0.to_le_bytes());
            times[9] = key(8, FIXED64);
            times[10..].copy_from_slice(&head.times_ns.1.to_le_bytes());
            span.add(&times);
            write(span);
            // The key of field 16.
            let mut of_flags = [0x80 | FIXED32, 1, 0, 0, 0, 0];
            of_flags[2..].copy_from_slice(&flags(head.parent_is_remote).to_le_bytes());
            span.add(&of_flags);
        });
    }

    /// The same as a span that was written before, but for ids and times: see [`Template`].
    pub fn again(&mut self, template: &Template, head: &Head<'_>) {
        let at = self.0.len();
        self.add(&template.span);
        let span = &mut self.0[at + template.head..];
        span[2..18].copy_from_slice(&head.identity.trace_id.to_be_bytes());
        span[20..28].copy_from_slice(&head.identity.span_id.to_be_bytes());
        span[30..38].copy_from_slice(&head.parent.to_be_bytes());
        let times = &mut span[template.times..];
        times[1..9].copy_from_slice(&head.times_ns.0.to_le_bytes());
        times[10..18].copy_from_slice(&head.times_ns.1.to_le_bytes());
    }

    fn identity(&mut self, identity: Identity) {
        let mut both = [0; 28];
        both[..2].copy_from_slice(&[key(1, LENGTH), 16]);
        both[2..18].copy_from_slice(&identity.trace_id.to_be_bytes());
        both[18..20].copy_from_slice(&[key(2, LENGTH), 8]);
        both[20..].copy_from_slice(&identity.span_id.to_be_bytes());
        self.add(&both);
    }

    /// An attribute of a span that is a text, given as its UTF-8.
    pub fn text(&mut self, name: &str, value: impl AsRef<[u8]>) {
        let value = value.as_ref();
        if name.len() + value.len() + 6 >= SHORT {
            return self.joined(name, &[value]);
        }
        self.short(name, value.len() + 2);
        self.add(&[key(1, LENGTH), value.len() as u8]);
        self.add(value);
    }

    /// An attribute of a span that is these texts in one.
    pub fn joined(&mut self, name: &str, pieces: &[&[u8]]) {
        let length = pieces.iter().map(|piece| piece.len()).sum::<usize>();
        self.attribute(name, |any| {
            any.0.push(key(1, LENGTH));
            any.varint(length as u64);
            pieces.iter().for_each(|piece| any.add(piece));
        });
    }

    /// The same where there is one.
    pub fn text_of(&mut self, name: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.text(name, value);
        }
    }

    /// An attribute of a span that is a number.
    pub fn int(&mut self, name: &str, value: i64) {
        self.plain(name, 3, value.cast_unsigned());
    }

    /// An attribute of a span that is yes or no.
    pub fn flag(&mut self, name: &str, value: bool) {
        self.plain(name, 2, value.into());
    }

    fn plain(&mut self, name: &str, field: u8, number: u64) {
        let (digits, count) = varint(number);
        if name.len() + count + 5 >= SHORT {
            return self.attribute(name, |any| any.number(field, number));
        }
        self.short(name, count + 1);
        self.0.push(key(field, VARINT));
        self.add(&digits[..count]);
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

    /// An attribute of a span that is a list of numbers; none where it is empty.
    pub fn ints(&mut self, name: &str, values: impl Iterator<Item = i64>) {
        let mut values = values.peekable();
        if values.peek().is_none() {
            return;
        }
        self.attribute(name, |any| {
            any.message(5, |array| {
                for value in values {
                    array.message(1, |any| any.number(3, value.cast_unsigned()));
                }
            });
        });
    }

    fn attribute(&mut self, name: &str, value: impl FnOnce(&mut Self)) {
        self.pair(9, name, value);
    }

    fn pair(&mut self, field: u8, name: &str, value: impl FnOnce(&mut Self)) {
        self.message(field, |pair| {
            pair.bytes(1, name.as_bytes());
            pair.message(2, value);
        });
    }

    /// An event of a span: what happened at that time, and attributes of it.
    pub fn event(
        &mut self,
        (name, at_ns): (&str, u64),
        text: Option<(&str, &str)>,
        int: Option<(&str, i64)>,
    ) {
        self.message(11, |event| {
            event.0.push(key(1, FIXED64));
            event.add(&at_ns.to_le_bytes());
            event.bytes(2, name.as_bytes());
            if let Some((name, value)) = text {
                event.pair(3, name, |any| any.bytes(1, value.as_bytes()));
            }
            if let Some((name, value)) = int {
                event.pair(3, name, |any| any.number(3, value.cast_unsigned()));
            }
        });
    }

    /// How many events of a span were dropped.
    pub fn dropped_events(&mut self, count: u32) {
        if count > 0 {
            self.number(12, count.into());
        }
    }

    /// The beginning of an attribute whose value has so many bytes, all of which are fewer than
    /// 128 together.
    fn short(&mut self, name: &str, value: usize) {
        let pair = name.len() + value + 4;
        self.0.reserve(pair + 2);
        self.add(&[key(9, LENGTH), pair as u8, key(1, LENGTH), name.len() as u8]);
        self.add(name.as_bytes());
        self.add(&[key(2, LENGTH), value as u8]);
    }

    /// A link of a span to one of another process.
    pub fn link(&mut self, to: Identity) {
        self.message(13, |link| {
            link.identity(to);
            link.0.push(key(6, FIXED32));
            link.add(&flags(true).to_le_bytes());
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
    fn a_template_writes_the_same_span() {
        for attributes in [0, 1, 9] {
            let head = |n: u64| Head {
                identity: Identity {
                    trace_id: u128::from(n) << 70 | 7,
                    span_id: n + 1,
                },
                parent: n + 2,
                parent_is_remote: false,
                kind: SpanKind::Internal,
                name: "authenticate",
                times_ns: (n + 3, n << 40),
            };
            let write = |span: &mut Message| {
                for _ in 0..attributes {
                    span.text("requestrocket.stage.outcome", "pass");
                }
            };
            let template = Template::of(&head(u64::MAX >> 1), write);
            let (mut first, mut second) = (Message::default(), Message::default());
            for n in [5, 1 << 50] {
                first.span(&head(n), write);
                second.again(&template, &head(n));
            }
            assert_eq!(second.into_bytes(), first.into_bytes());
        }
    }

    #[test]
    fn what_is_written_reads_as_what_was_meant() {
        let identity = |n: u64| Identity {
            trace_id: u128::from(n) << 64 | 7,
            span_id: n,
        };
        // Lengths of one, two and three digits.
        for long in (1..=128).chain([300, 16_383, 16_384, 70_000]) {
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
                    span.joined(&long, &[b"a", long.as_bytes()]);
                    span.text_of("none", None);
                    span.int("int", -3);
                    span.int(&long, 300);
                    span.flag("flag", false);
                    span.list("list", ["a", &long].iter());
                    span.list("empty", [""; 0].iter());
                    span.link(identity(6));
                    span.event((&long, 7), Some(("of", &long)), Some(("count", -2)));
                    span.event(("bare", u64::MAX), None, None);
                    span.dropped_events(0);
                    span.dropped_events(300);
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
            let [event, bare] = &span.events[..] else {
                panic!("{:?}", span.events);
            };
            assert_eq!((&*event.name, event.time_unix_nano), (&*long, 7));
            let said = event.attributes.iter().map(|pair| {
                let value = pair.value.as_ref().and_then(|value| value.value.clone());
                (pair.key.as_str(), value)
            });
            let of = Some(Any::StringValue(long.clone()));
            let expected = [("of", of), ("count", Some(Any::IntValue(-2)))];
            assert_eq!(said.collect::<Vec<_>>(), expected);
            assert_eq!((&*bare.name, bare.time_unix_nano), ("bare", u64::MAX));
            assert!(bare.attributes.is_empty());
            assert_eq!(span.dropped_events_count, 300);
            assert_eq!(span.status.as_ref().map(|status| status.code), Some(2));
            let found = span.attributes.iter().map(|pair| {
                let value = pair.value.as_ref().and_then(|value| value.value.clone());
                (pair.key.as_str(), value)
            });
            let found: Vec<_> = found.collect();
            let text = |text: &str| Some(Any::StringValue(text.to_owned()));
            assert_eq!(found[0], ("long", text(&long)));
            assert_eq!(found[1], (&*long, text(&format!("a{long}"))));
            assert_eq!(found[2], ("int", Some(Any::IntValue(-3))));
            assert_eq!(found[3], (&*long, Some(Any::IntValue(300))));
            assert_eq!(found[4], ("flag", Some(Any::BoolValue(false))));
            let ("list", Some(Any::ArrayValue(list))) = &found[5] else {
                panic!("{found:?}");
            };
            let list: Vec<_> = list
                .values
                .iter()
                .map(|value| value.value.clone())
                .collect();
            assert_eq!(list, [text("a"), text(&long)]);
            assert_eq!(found.len(), 6);
        }
    }
}
