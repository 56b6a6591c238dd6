//! Trace context of a request (W3C Trace Context): taken from the caller, passed on to the target.
//!
//! `traceparent` is passed on with the attempt's span as the parent. What else the target learns is
//! its `propagate_trace`: `tracestate` and `baggage` carry internal data and are not passed by
//! default. Nothing here allocates unless traces are exported.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, HeaderValue};
use proto::field_name::is_there;
use proto::record::Record;

use crate::credentials::live::{LiveSecrets, Whose};
use crate::splitmix;
use crate::traces::{Incoming, Sampling};

/// The field that carries a trace's identity.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// The field with what vendors say of that trace, and of no other.
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// The place of a request in its trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace.
    pub trace_id: u128,
    /// The request's span.
    pub span_id: u64,
    /// The span of the last attempt, which the target sees as its parent.
    pub attempt_id: u64,
    /// The caller's span, as the parent of ours or, where its trace is not joined, as a link.
    pub caller: Option<Parent>,
    /// What the target is told: whether this trace is kept.
    pub sampled: bool,
}

/// A caller's `traceparent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parent {
    /// Its trace.
    pub trace_id: u128,
    /// Its span.
    pub span_id: u64,
    /// Whether it is kept.
    pub sampled: bool,
}

impl TraceContext {
    /// The context of the request with this id, whose caller sent a `traceparent` or not.
    ///
    /// The id is a UUIDv7, so its last 62 bits are random; it is known to the caller already, who
    /// can so find the trace.
    pub fn new(request_id: u128, caller: Option<Parent>, sampling: &Sampling) -> Self {
        let joined = caller.filter(|_| sampling.incoming != Incoming::Ignore);
        let trace_id = joined.map_or(request_id, |parent| parent.trace_id);
        let span_id = spread(request_id as u64 ^ (request_id >> 64) as u64);
        Self {
            trace_id,
            span_id,
            attempt_id: spread(span_id),
            caller,
            sampled: sampling.begins(trace_id, joined.map(|parent| parent.sampled)),
        }
    }

    /// The context of a request that another region's gateway passed on: in that gateway's trace
    /// whatever is done with those of callers, and with spans of its own although the id is the
    /// same there.
    pub fn passed_on(request_id: u128, gateway: Option<Parent>, sampling: &Sampling) -> Self {
        let trusting = Sampling {
            incoming: Incoming::Trust,
            ..*sampling
        };
        let there = Self::new(request_id, gateway, &trusting);
        let span_id = spread(!there.span_id);
        Self {
            span_id,
            attempt_id: spread(span_id),
            ..there
        }
    }

    /// The context of a request that is known by its record. The spans have the ids that they had
    /// where they were exported, and no caller's span above them: records do not say which.
    pub fn recorded(record: &Record) -> Self {
        let id = record.request_id.bits();
        let traced = record.trace_id.as_deref();
        let traced = traced.filter(|text| text.len() == 32);
        let trace_id = traced.and_then(|text| hex(text.as_bytes())).unwrap_or(id);
        let own = spread(id as u64 ^ (id >> 64) as u64);
        let span_id = match record.forwarded_from {
            None => own,
            Some(_) => spread(!own),
        };
        Self {
            trace_id,
            span_id,
            attempt_id: spread(span_id),
            caller: None,
            sampled: true,
        }
    }

    /// The context of the request with this id, apart from its caller's trace.
    pub fn apart(self, request_id: u128) -> Self {
        Self {
            trace_id: request_id,
            caller: None,
            ..self
        }
    }

    /// The caller's span where the request joined its trace.
    pub fn parent(&self) -> Option<Parent> {
        self.caller
            .filter(|parent| parent.trace_id == self.trace_id)
    }

    /// The id of another span of the request: the same for the same number.
    pub fn further_span(&self, n: u64) -> u64 {
        spread(
            self.span_id
                .wrapping_add(n.wrapping_add(1).wrapping_mul(splitmix::GAMMA)),
        )
    }

    /// The id of the span of the attempt at a place, of so many: the target was told of the last.
    pub fn attempt_span(&self, at: usize, count: usize) -> u64 {
        match at + 1 == count {
            true => self.attempt_id,
            false => self.further_span(100 + at as u64),
        }
    }

    /// Makes the attempt the parent of what the target does. The caller's `tracestate` goes with
    /// the caller's trace alone (W3C Trace Context §3.3): beside another it would be taken for its.
    pub fn pass_on(&self, headers: &mut HeaderMap) {
        let is_continued = self.parent().is_some();
        // Finding the field by hash costs more than looking at the names.
        if !is_continued && headers.keys().any(|name| *name == TRACESTATE) {
            headers.remove(TRACESTATE);
        }
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
        write_hex(&self.trace_id.to_be_bytes(), &mut text[3..35]);
        write_hex(&self.attempt_id.to_be_bytes(), &mut text[36..52]);
        text[54] = b'0' + u8::from(self.sampled);
        if let Ok(value) = HeaderValue::from_bytes(&text) {
            headers.insert(TRACEPARENT, value);
        }
    }
}

/// Spreads a number over 64 bits, never to zero, which is no span.
fn spread(n: u64) -> u64 {
    splitmix::after(n).max(1)
}

/// The caller's trace, if it sent one valid `traceparent`. Versions above 00 may carry more behind
/// the four fields; `ff` is none.
pub fn callers(headers: &HeaderMap) -> Option<Parent> {
    if !is_there(headers, &TRACEPARENT) {
        return None;
    }
    let mut values = headers.get_all(TRACEPARENT).iter();
    let text = values.next()?.as_bytes();
    if values.next().is_some() || text.len() < 55 {
        return None;
    }
    let (head, rest) = text.split_at(55);
    let dashes = head[2] == b'-' && head[35] == b'-' && head[52] == b'-';
    let version = hex(&head[..2])?;
    let ends = match version {
        0 => rest.is_empty(),
        0xff => false,
        _ => rest.is_empty() || rest[0] == b'-',
    };
    let parent = Parent {
        trace_id: hex(&head[3..35])?,
        span_id: hex(&head[36..52])? as u64,
        sampled: hex(&head[53..55])? & 1 == 1,
    };
    let is_one = dashes && ends && parent.trace_id != 0 && parent.span_id != 0;
    is_one.then_some(parent)
}

/// Whether a caller's ids are a secret, which records and spans would show.
pub fn are_secret(headers: &HeaderMap, whose: Whose) -> bool {
    let live = LiveSecrets::of_process();
    let mut values = headers.get_all(TRACEPARENT).iter();
    values.any(|value| matches!(live.overwritten(whose, value.as_bytes()), Cow::Owned(_)))
}

/// Lower-case hex digits as a number.
fn hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0u128, |number, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u128::from(digit))
    })
}

/// A trace id as records hold it.
pub fn trace_id_text(trace_id: u128) -> String {
    let mut digits = [0; 32];
    write_hex(&trace_id.to_be_bytes(), &mut digits);
    // Digits are ASCII, so this never takes the default.
    str::from_utf8(&digits).unwrap_or_default().to_owned()
}

/// The two digits of each byte.
const DIGITS: [[u8; 2]; 256] = {
    let digits = b"0123456789abcdef";
    let (mut pairs, mut byte) = ([[0; 2]; 256], 0);
    while byte < pairs.len() {
        pairs[byte] = [digits[byte >> 4], digits[byte & 0xf]];
        byte += 1;
    }
    pairs
};

/// Writes bytes as lower-case hex digits; std's formatter takes ten times as long, on every request
/// of a trace.
fn write_hex(bytes: &[u8], place: &mut [u8]) {
    for (pair, byte) in place.as_chunks_mut().0.iter_mut().zip(bytes) {
        *pair = DIGITS[usize::from(*byte)];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credentials::scrub::Scrub;

    const SAMPLING: Sampling = Sampling {
        incoming: Incoming::Trust,
        ratio: 0.0,
        slow_us: u64::MAX,
        errors: false,
        refused: false,
    };

    fn headers(text: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(TRACEPARENT, HeaderValue::from_str(text).unwrap());
        headers
    }

    #[test]
    fn only_a_valid_traceparent_is_one() {
        let (trace, span) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
        for (text, valid) in [
            (format!("00-{trace}-{span}-01"), true),
            (format!("00-{trace}-{span}-00"), true),
            (format!("01-{trace}-{span}-01-more"), true),
            (format!("00-{trace}-{span}-01-more"), false),
            (format!("01-{trace}-{span}-01more"), false),
            (format!("ff-{trace}-{span}-01"), false),
            (format!("00-{}-{span}-01", trace.to_uppercase()), false),
            (format!("00-{}-{span}-01", "0".repeat(32)), false),
            (format!("00-{trace}-{}-01", "0".repeat(16)), false),
            (format!("00_{trace}-{span}-01"), false),
            ("00".into(), false),
            (String::new(), false),
        ] {
            assert_eq!(callers(&headers(&text)).is_some(), valid, "{text}");
        }
        let scrub = std::sync::Arc::new(Scrub::new(["5ec4e7916cd43dd8448eb211c80319c5"], []));
        let org = proto::id::OrgId::from_bits(1);
        LiveSecrets::of_process().add(Some(org), &scrub);
        let secret = headers(&format!("00-5ec4e7916cd43dd8448eb211c80319c5-{span}-01"));
        assert!(are_secret(&secret, Whose::Orgs(org)));
        assert!(!are_secret(&secret, Whose::Nobodys));
        let parent = callers(&secret);
        let apart = TraceContext::new(7, parent, &SAMPLING).apart(7);
        assert_eq!((apart.trace_id, apart.parent()), (7, None));
        let mut twice = headers(&format!("00-{trace}-{span}-01"));
        twice.append(TRACEPARENT, HeaderValue::from_static("x"));
        assert_eq!(callers(&twice), None);
    }

    #[test]
    fn a_request_joins_its_callers_trace_where_that_is_trusted() {
        let parent = Parent {
            trace_id: 7,
            span_id: 8,
            sampled: true,
        };
        let joined = TraceContext::new(1, Some(parent), &SAMPLING);
        assert_eq!(
            (joined.trace_id, joined.parent(), joined.sampled),
            (7, Some(parent), true)
        );
        let ignore = Sampling {
            incoming: Incoming::Ignore,
            ..SAMPLING
        };
        let own = TraceContext::new(1, Some(parent), &ignore);
        assert_eq!((own.trace_id, own.parent(), own.sampled), (1, None, false));
        assert_eq!(own.caller, Some(parent), "for a link");
        let gateways = Parent {
            trace_id: own.trace_id,
            span_id: own.attempt_id,
            sampled: own.sampled,
        };
        let beyond = TraceContext::passed_on(1, Some(gateways), &ignore);
        assert_eq!(
            (beyond.trace_id, beyond.parent()),
            (own.trace_id, Some(gateways)),
            "one trace, whatever is done with those of callers"
        );
        let spans = [own.span_id, own.attempt_id, beyond.span_id];
        assert!(
            spans[0] != spans[2] && spans[1] != spans[2] && !spans.contains(&beyond.attempt_id)
        );
    }

    #[test]
    fn ids_are_written_as_std_writes_them() {
        for number in [0, 1, 0xab, u128::MAX, 0x0123_4567_89ab_cdef << 60] {
            assert_eq!(trace_id_text(number), format!("{number:032x}"));
            for sampled in [false, true] {
                let context = TraceContext {
                    sampled,
                    ..TraceContext::new(number, None, &SAMPLING)
                };
                let (trace, span) = (context.trace_id, context.attempt_id);
                let mut out = HeaderMap::new();
                context.pass_on(&mut out);
                let flags = u8::from(sampled);
                let expected = format!("00-{trace:032x}-{span:016x}-{flags:02x}");
                assert_eq!(out[TRACEPARENT], expected);
            }
        }
    }

    #[test]
    fn a_tracestate_goes_with_the_trace_that_it_came_with() {
        let parent = Parent {
            trace_id: 7,
            span_id: 8,
            sampled: true,
        };
        let ignore = Sampling {
            incoming: Incoming::Ignore,
            ..SAMPLING
        };
        let join = Sampling {
            incoming: Incoming::Join,
            ..SAMPLING
        };
        for (context, stays) in [
            (TraceContext::new(1, Some(parent), &SAMPLING), true),
            (TraceContext::new(1, Some(parent), &join), true),
            (TraceContext::new(1, Some(parent), &ignore), false),
            (TraceContext::new(1, None, &SAMPLING), false),
            (TraceContext::passed_on(1, Some(parent), &ignore), true),
        ] {
            let mut out = headers("00-x");
            for value in ["a=b", "c=d"] {
                out.append(TRACESTATE, HeaderValue::from_static(value));
            }
            out.insert("baggage", HeaderValue::from_static("e=f"));
            context.pass_on(&mut out);
            let left = out.get_all(TRACESTATE).iter().count();
            assert_eq!(left, if stays { 2 } else { 0 }, "{context:?}");
            assert!(out.contains_key("baggage"), "it belongs to no trace");
        }
    }

    #[test]
    fn the_target_sees_the_attempt_as_its_parent() {
        let context = TraceContext::new(0x0123 << 64 | 5, None, &SAMPLING);
        let mut out = headers("00-x");
        context.pass_on(&mut out);
        let passed = callers(&out).unwrap();
        assert_eq!(
            (passed.trace_id, passed.span_id),
            (context.trace_id, context.attempt_id)
        );
        let ids = [context.span_id, context.attempt_id, context.further_span(0)];
        assert!(ids.iter().all(|id| *id != 0) && ids[0] != ids[1] && ids[1] != ids[2]);
    }
}
