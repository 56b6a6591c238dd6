//! Pure: the fields that belong to one connection, not to the message.
//!
//! Outgoing, the length of a body is ours to say, from what the body knows about itself, and
//! nothing that a stage left in the head can contradict it. Incoming, the fields are read once for
//! what they mean here and then dropped, so that no later stage can copy a framing field that
//! belonged to another connection.

use std::time::Duration;

use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, HeaderName, PROXY_AUTHENTICATE, TRANSFER_ENCODING,
    WWW_AUTHENTICATE,
};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version};
use proto::field_name::is_there;

use crate::body::RequestBody;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

/// Names that no list in `Connection` can remove: they frame or address the message.
const KEPT: [HeaderName; 2] = [CONTENT_LENGTH, http::header::HOST];

/// Drops what must not leave: framing that is ours to write, `Expect` (answered by us), and all
/// hop-by-hop fields (RFC 9110 §7.6.1).
pub(super) fn clean_request(headers: &mut HeaderMap) {
    drop_named_by_connection(headers);
    remove_where(headers, |name| {
        is_hop_by_hop(name) || matches!(name, "content-length" | "expect")
    });
}

/// Whether a request proves who sends it by a scheme that many servers hold a connection to be
/// authenticated by: whatever came on it next would be taken for the same client's.
pub(super) fn authenticates_connection(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    values.any(names_connection_scheme)
}

/// Whether a list of credentials or challenges has one of NTLM or Negotiate (RFC 4559 §5).
fn names_connection_scheme(value: &HeaderValue) -> bool {
    value.as_bytes().split(|byte| *byte == b',').any(|part| {
        let scheme = part.trim_ascii().split(u8::is_ascii_whitespace).next();
        scheme.is_some_and(|scheme| {
            scheme.eq_ignore_ascii_case(b"ntlm") || scheme.eq_ignore_ascii_case(b"negotiate")
        })
    })
}

/// Fields about one connection (RFC 9110 §7.6.1).
fn is_hop_by_hop(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "keep-alive"
            | "proxy-connection"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
    )
}

/// Writes the length fields that hyper does not write as we want them, for HTTP/1.1.
///
/// hyper writes the length of a known body, and `chunked` for an unknown one, except that it
/// silently drops the body of a GET or HEAD whose length is unknown, and says nothing of an empty
/// POST, which some servers answer with 411 (RFC 9110 §8.6 asks for a length there).
pub(super) fn frame_request(headers: &mut HeaderMap, method: &Method, body: &RequestBody) {
    match body.length() {
        None => {
            headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        Some(0) if matches!(*method, Method::POST | Method::PUT | Method::PATCH) => {
            headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        Some(_) => {}
    }
}

/// What an answer's head says about its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Framing {
    /// Whether the connection may be used again when the body has ended.
    pub(super) reuse: bool,
    /// How long the target says that it keeps an idle connection.
    pub(super) keep_alive: Option<Duration>,
}

/// Checks an answer's head and drops what belongs to the connection.
///
/// # Errors
///
/// Why the answer cannot be passed on: nobody could tell where its body ends.
pub(super) fn receive_head(
    method: &Method,
    status: StatusCode,
    version: Version,
    headers: &mut HeaderMap,
) -> Result<Framing, &'static str> {
    if status == StatusCode::SWITCHING_PROTOCOLS {
        return Err("101 without being asked to switch protocols");
    }
    let mut framing = Framing {
        reuse: true,
        keep_alive: None,
    };
    let has = Present::of(headers);
    let bodiless = *method == Method::HEAD
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    if has.transfer_encoding {
        let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
        let first = codings
            .next()
            .map(HeaderValue::as_bytes)
            .unwrap_or_default();
        let chunked = codings.next().is_none() && first.eq_ignore_ascii_case(b"chunked");
        // hyper reads other codings to the end of the connection; we could not name them to the
        // caller, who would take the coded bytes for the content.
        if !chunked && !bodiless {
            return Err("a transfer coding other than chunked");
        }
        if headers.remove(CONTENT_LENGTH).is_some() {
            // RFC 9112 §6.3: the coding wins; whoever sends both may have been fooled.
            framing.reuse = false;
        }
    }
    if status == StatusCode::NO_CONTENT {
        headers.remove(CONTENT_LENGTH);
    }
    if has.challenge
        && headers
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .any(names_connection_scheme)
    {
        framing.reuse = false;
    }
    if has.odd_length && headers.contains_key(CONTENT_LENGTH) {
        let (length, plain) = one_length(headers).ok_or("differing or malformed content-length")?;
        if !plain {
            headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
    }
    if version != Version::HTTP_2 {
        if has.keep_alive {
            framing.keep_alive = headers.get(KEEP_ALIVE).and_then(keep_alive_timeout);
        }
        if has.nominations {
            drop_named_by_connection(headers);
        }
    }
    if has.connection {
        headers.remove(CONNECTION);
    }
    if has.hop_by_hop {
        remove_where(headers, |name| {
            is_hop_by_hop(name) || name == PROXY_AUTHENTICATE.as_str()
        });
    }
    Ok(framing)
}

/// Which kinds of fields an answer's head has, from one look at each: nearly all answers have few
/// of those that matter here, and what nearly all have says the same.
#[derive(Default)]
struct Present {
    transfer_encoding: bool,
    content_length: bool,
    /// Not one `Content-Length` that stands there as it should.
    odd_length: bool,
    challenge: bool,
    keep_alive: bool,
    connection: bool,
    /// Some `Connection` names fields.
    nominations: bool,
    /// Others than `Connection`.
    hop_by_hop: bool,
}

impl Present {
    fn of(headers: &HeaderMap) -> Self {
        let mut has = Self::default();
        for (name, value) in headers {
            match name.as_str() {
                "connection" => {
                    has.connection = true;
                    has.nominations |= !names_nothing(value);
                }
                "content-length" => {
                    has.odd_length |= has.content_length || !is_plain_length(value);
                    has.content_length = true;
                }
                "www-authenticate" => has.challenge = true,
                name => {
                    has.transfer_encoding |= name == "transfer-encoding";
                    has.keep_alive |= name == "keep-alive";
                    has.hop_by_hop |= is_hop_by_hop(name) || name == PROXY_AUTHENTICATE.as_str();
                }
            }
        }
        has
    }
}

/// Whether a `Content-Length` is as short as a length is, and in digits.
fn is_plain_length(value: &HeaderValue) -> bool {
    match value.as_bytes() {
        b"0" => true,
        [b'1'..=b'9', rest @ ..] => rest.len() < 18 && rest.iter().all(u8::is_ascii_digit),
        _ => false,
    }
}

/// What nearly all `Connection` fields say.
fn names_nothing(value: &HeaderValue) -> bool {
    let value = value.as_bytes();
    value.eq_ignore_ascii_case(b"keep-alive") || value.eq_ignore_ascii_case(b"close")
}

/// Removes the fields with such names; costs a look at each name when there are none.
fn remove_where(headers: &mut HeaderMap, is_wanted: impl Fn(&str) -> bool) {
    while let Some(name) = headers
        .keys()
        .find(|name| is_wanted(name.as_str()))
        .cloned()
    {
        headers.remove(name);
    }
}

/// The one value of all `Content-Length` fields (RFC 9110 §8.6), digits only, and whether it
/// stands there once and as it should.
fn one_length(headers: &HeaderMap) -> Option<(u64, bool)> {
    let mut length = None;
    let (mut parts, mut plain) = (0, true);
    for value in headers.get_all(CONTENT_LENGTH) {
        for part in value.to_str().ok()?.split(',') {
            let part = part.trim_matches([' ', '\t']);
            if part.is_empty() || !part.bytes().all(|byte| byte.is_ascii_digit()) {
                return None;
            }
            let number: u64 = part.parse().ok()?;
            if length.is_some_and(|length| length != number) {
                return None;
            }
            length = Some(number);
            parts += 1;
            plain = part.len() == value.len() && (part == "0" || !part.starts_with('0'));
        }
    }
    length.map(|length| (length, plain && parts == 1))
}

/// The `timeout` parameter of a `Keep-Alive` field, in seconds.
fn keep_alive_timeout(value: &HeaderValue) -> Option<Duration> {
    value.to_str().ok()?.split(',').find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        let seconds = value.trim().trim_matches('"').parse().ok()?;
        name.trim()
            .eq_ignore_ascii_case("timeout")
            .then(|| Duration::from_secs(seconds))
    })
}

fn drop_named_by_connection(headers: &mut HeaderMap) {
    if !is_there(headers, &CONNECTION) || headers.get_all(CONNECTION).iter().all(names_nothing) {
        return;
    }
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .filter(|name| !KEPT.contains(name))
        .collect();
    for name in named {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&str, &str)]) -> HeaderMap {
        let field = |(name, value): &(&str, &str)| {
            (
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                value.parse().unwrap(),
            )
        };
        // `append`: repeated fields are the point of some rows.
        let mut headers = HeaderMap::new();
        for (name, value) in fields.iter().map(field) {
            headers.append(name, value);
        }
        headers
    }

    #[test]
    fn only_end_to_end_fields_leave_and_the_length_is_ours() {
        let check = |method, fields, body, expect: &[(&str, &str)]| {
            let mut headers = map(fields);
            clean_request(&mut headers);
            frame_request(&mut headers, &method, &body);
            assert_eq!(headers, map(expect), "{method} {fields:?} {body:?}");
        };
        let full = || RequestBody::Full("abc".into());
        let unknown = || RequestBody::Stream {
            stream: Box::pin(futures_util::stream::empty()),
            length: None,
        };
        let lies = &[
            ("content-length", "9"),
            ("transfer-encoding", "gzip"),
            ("a", "b"),
        ][..];
        check(Method::GET, lies, RequestBody::Empty, &[("a", "b")]);
        check(Method::DELETE, lies, RequestBody::Empty, &[("a", "b")]);
        check(
            Method::POST,
            lies,
            RequestBody::Empty,
            &[("a", "b"), ("content-length", "0")],
        );
        check(Method::POST, lies, full(), &[("a", "b")]);
        check(
            Method::GET,
            lies,
            unknown(),
            &[("a", "b"), ("transfer-encoding", "chunked")],
        );
        let hops = &[
            ("connection", "close, x-hop"),
            ("connection", "content-length"),
            ("x-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("expect", "100-continue"),
            ("te", "trailers"),
            ("upgrade", "websocket"),
            ("trailer", "x"),
            ("x-end", "1"),
        ][..];
        check(Method::GET, hops, RequestBody::Empty, &[("x-end", "1")]);
    }

    #[test]
    fn a_head_that_leaves_the_length_of_its_body_open_is_refused() {
        let check = |method, status: u16, fields, expect: Result<&[(&str, &str)], &str>| {
            let mut headers = map(fields);
            let status = StatusCode::from_u16(status).unwrap();
            let outcome = receive_head(&method, status, Version::HTTP_11, &mut headers);
            match expect {
                Ok(kept) => assert_eq!((outcome.is_ok(), headers), (true, map(kept)), "{fields:?}"),
                Err(why) => assert!(outcome.unwrap_err().contains(why), "{fields:?}"),
            }
        };
        let length = &[("content-length", "5")][..];
        check(Method::GET, 200, length, Ok(length));
        check(
            Method::GET,
            200,
            &[("content-length", "5"), ("content-length", "5")],
            Ok(length),
        );
        check(Method::GET, 200, &[("content-length", "5, 5")], Ok(length));
        check(Method::HEAD, 200, length, Ok(length));
        check(Method::GET, 304, length, Ok(length));
        check(Method::GET, 204, length, Ok(&[]));
        check(
            Method::HEAD,
            200,
            &[("content-length", "5, 6")],
            Err("content-length"),
        );
        check(
            Method::GET,
            200,
            &[("content-length", "+5")],
            Err("content-length"),
        );
        check(
            Method::GET,
            200,
            &[("content-length", "")],
            Err("content-length"),
        );
        let both = &[("content-length", "5"), ("transfer-encoding", "chunked")][..];
        check(Method::GET, 200, both, Ok(&[]));
        check(
            Method::GET,
            200,
            &[("transfer-encoding", "Chunked")],
            Ok(&[]),
        );
        check(
            Method::GET,
            200,
            &[("transfer-encoding", "gzip, chunked")],
            Err("coding"),
        );
        check(
            Method::GET,
            200,
            &[("transfer-encoding", "identity")],
            Err("coding"),
        );
        check(
            Method::HEAD,
            200,
            &[("transfer-encoding", "gzip, chunked")],
            Ok(&[]),
        );
        check(Method::GET, 101, &[("upgrade", "websocket")], Err("101"));
        let hops = &[
            ("connection", "x-hop"),
            ("x-hop", "1"),
            ("upgrade", "h2c"),
            ("a", "b"),
        ][..];
        check(Method::GET, 200, hops, Ok(&[("a", "b")]));
    }

    #[test]
    fn the_target_says_how_long_it_keeps_a_connection() {
        let check = |fields, reuse, seconds: Option<u64>| {
            let mut headers = map(fields);
            let framing =
                receive_head(&Method::GET, StatusCode::OK, Version::HTTP_11, &mut headers);
            let keep_alive = seconds.map(Duration::from_secs);
            assert_eq!(framing, Ok(Framing { reuse, keep_alive }), "{fields:?}");
        };
        check(&[], true, None);
        check(&[("keep-alive", "timeout=5, max=100")], true, Some(5));
        check(&[("keep-alive", "max=100, Timeout = 7")], true, Some(7));
        check(&[("keep-alive", "timeout=soon")], true, None);
        check(
            &[("content-length", "1"), ("transfer-encoding", "chunked")],
            false,
            None,
        );
        for (challenge, reuse) in [
            ("NTLM", false),
            ("negotiate oYG2", false),
            ("Basic realm=\"a\", Negotiate", false),
            ("Basic realm=\"a\"", true),
            ("Bearer", true),
        ] {
            let mut headers = map(&[("www-authenticate", challenge)]);
            let framing =
                receive_head(&Method::GET, StatusCode::OK, Version::HTTP_11, &mut headers);
            let expected = Framing {
                reuse,
                keep_alive: None,
            };
            assert_eq!(framing, Ok(expected), "{challenge}");
            let given = map(&[("authorization", challenge)]);
            assert_eq!(authenticates_connection(&given), !reuse, "{challenge}");
        }
    }
}
