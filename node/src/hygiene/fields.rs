//! Which header fields travel, in both directions (design §3; RFC 9110 §7.6.1).

use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, Method};
use proto::field_name::{Nominated, is_there, plain};

/// Why a field of a request does not travel by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    /// It does.
    Passes,
    /// About this connection, this message's framing, or written anew by us.
    Hop,
    /// Overrides method or path, or claims an address: an upstream may believe it.
    Override,
    /// Says which trace the request belongs to.
    Trace,
    /// Ours.
    Reserved,
}

fn classify(name: &str) -> Class {
    // Many servers take `_` for `-` (CGI), so a name in disguise is what it stands for.
    let plain = plain(name);
    match &*plain {
        "connection"
        | "keep-alive"
        | "proxy-connection"
        | "transfer-encoding"
        | "te"
        | "trailer"
        | "upgrade"
        | "http2-settings"
        | "proxy-authenticate"
        | "proxy-authorization"
        | "host"
        | "content-length"
        | "expect" => Class::Hop,
        "x-http-method-override"
        | "x-http-method"
        | "x-method-override"
        | "x-original-url"
        | "x-rewrite-url"
        | "x-original-uri"
        | "x-original-method"
        | "x-http-destination-url"
        | "x-client-ip"
        | "x-originating-ip"
        | "x-remote-ip"
        | "x-remote-addr"
        | "true-client-ip"
        | "cf-connecting-ip"
        | "x-cluster-client-ip"
        | "forwarded"
        | "x-real-ip"
        | "via"
        // Internal data of the caller's systems, nothing for a third party (W3C Trace Context);
        // passed where the target is none (`propagate_trace: full`).
        | "tracestate"
        | "baggage" => Class::Override,
        "traceparent" => Class::Trace,
        name if name.starts_with("x-forwarded-") => Class::Override,
        name if name.starts_with("requestrocket-") || name == "x-requestrocket-key" => {
            Class::Reserved
        }
        _ => Class::Passes,
    }
}

/// Whether callers authenticate by this field.
pub fn authenticates(name: &HeaderName) -> bool {
    let plain = plain(name.as_str());
    CALLER_AUTHENTICATION
        .iter()
        .any(|known| known.as_str() == plain)
}

/// What a configuration says about request fields.
#[derive(Clone, Debug, Default)]
pub struct RequestFields {
    /// Fields that pass although they override something: the target's `pass_headers`.
    pub pass: Vec<HeaderName>,
    /// Whether names with `_` pass; otherwise they are refused.
    pub underscores: bool,
    /// Whether `Cookie` passes.
    pub cookies: bool,
    /// Whether `traceparent` is kept from the target.
    pub untraced: bool,
}

/// A request field that cannot be sent on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnderscoreName(pub String);

/// The caller's fields that go on to the target, without those that were nominated
/// ([`proto::field_name::drop_nominated`], before anything judges them); the values of one field
/// keep their order.
///
/// # Errors
/// A name with `_`, which many servers read as `-`, unless the target allows them.
pub fn for_target(
    mut headers: HeaderMap,
    policy: &RequestFields,
) -> Result<HeaderMap, UnderscoreName> {
    // Each request has one, and it never passes.
    headers.remove(header::HOST);
    let mut dropped = Vec::new();
    for name in headers.keys() {
        if !passes(name, policy)? {
            dropped.push(name.clone());
        }
    }
    remove_all(&mut headers, dropped);
    Ok(headers)
}

/// The caller's fields that go on to the gateway of another region, which judges them itself: all
/// but those about this connection, and ours.
pub fn for_gateway(mut headers: HeaderMap) -> HeaderMap {
    let drops = |name: &&HeaderName| {
        let text = name.as_str();
        let ours = text.starts_with("requestrocket-");
        matches!(classify(text), Class::Hop) || ours
    };
    let dropped = headers.keys().filter(drops).cloned().collect();
    remove_all(&mut headers, dropped);
    headers
}

/// In place: a map built anew would cost a hash and a copy for every field that stays.
fn remove_all(headers: &mut HeaderMap, names: Vec<HeaderName>) {
    for name in names {
        headers.remove(name);
    }
}

fn passes(name: &HeaderName, policy: &RequestFields) -> Result<bool, UnderscoreName> {
    let text = name.as_str();
    if !policy.underscores && text.contains('_') {
        return Err(UnderscoreName(text.to_owned()));
    }
    Ok(match classify(text) {
        Class::Hop | Class::Reserved => false,
        Class::Override => policy.pass.contains(name),
        Class::Trace => !policy.untraced,
        Class::Passes => policy.cookies || *name != header::COOKIE,
    })
}

/// Whether two header names mean the same to a server that reads `_` as `-`.
pub fn equivalent(one: &str, other: &str) -> bool {
    let fold = |byte: u8| {
        if byte == b'_' {
            b'-'
        } else {
            byte.to_ascii_lowercase()
        }
    };
    one.len() == other.len() && one.bytes().map(fold).eq(other.bytes().map(fold))
}

/// Removes every field that is equivalent to `name`.
pub fn remove_equivalent(headers: &mut HeaderMap, name: &HeaderName) {
    if is_there(headers, name) {
        headers.remove(name);
    }
    // Names with `_` are rare: a second look is only taken where one is there at all.
    let others: Vec<HeaderName> = headers
        .keys()
        .filter(|key| key.as_str().contains('_') || name.as_str().contains('_'))
        .filter(|key| equivalent(key.as_str(), name.as_str()))
        .cloned()
        .collect();
    for other in others {
        headers.remove(other);
    }
}

/// Fields by which callers authenticate, dropped even when they did not hold our key.
const CALLER_AUTHENTICATION: [HeaderName; 4] = [
    header::AUTHORIZATION,
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("api-key"),
    HeaderName::from_static("x-goog-api-key"),
];

/// What a configuration says about response fields.
#[derive(Clone, Copy, Debug)]
pub struct ResponseFields {
    /// Whether `Set-Cookie` passes.
    pub cookies: bool,
    /// Whether filters apply to the body, so that what describes its bytes must go.
    pub filtered: bool,
}

/// The target's fields that go on to the caller, without `Content-Length`; the values of one
/// field keep their order.
pub fn for_caller(mut headers: HeaderMap, policy: ResponseFields) -> HeaderMap {
    let nominated = Nominated::of(&headers);
    let drops = |name: &&HeaderName| {
        let text = name.as_str();
        matches!(classify(text), Class::Hop | Class::Reserved)
            || is_not_for_caller(text)
            || nominated.contains(text)
            || (!policy.cookies && **name == header::SET_COOKIE)
            || (policy.filtered && (describes_bytes(text) || is_for_shared_caches(text)))
    };
    let dropped = headers.keys().filter(drops).cloned().collect();
    remove_all(&mut headers, dropped);
    if policy.filtered {
        make_private(&mut headers);
    }
    headers
}

/// Fields of an answer by which a target would rule over more than its own caller: what stands in
/// front of the gateway, which serves files or other places at their word, and all that is reached
/// under the gateway's name, other organisations' proxies included.
fn is_not_for_caller(name: &str) -> bool {
    match name {
        // Of this one answer alone, and what streams of events are sent with.
        "x-accel-buffering" => false,
        "x-sendfile"
        | "x-lighttpd-send-file"
        | "x-lighttpd-send-tempfile"
        | "x-litespeed-location"
        | "alt-svc"
        | "clear-site-data"
        | "strict-transport-security"
        | "public-key-pins"
        | "nel" => true,
        name => name.starts_with("x-accel-") || name.starts_with("x-reproxy-"),
    }
}

/// Fields that tell shared caches more than `Cache-Control` does (RFC 9213).
fn is_for_shared_caches(name: &str) -> bool {
    name == "surrogate-control" || name.ends_with("cdn-cache-control")
}

/// Fields that describe the exact bytes of a body, which filters change.
fn describes_bytes(name: &str) -> bool {
    matches!(
        name,
        "etag" | "last-modified" | "accept-ranges" | "content-range" | "content-encoding"
    ) || is_digest(name)
}

/// Fields that are made of the exact bytes of a body, so that they prove whether it is whole.
pub fn is_digest(name: &str) -> bool {
    matches!(
        name,
        "content-md5" | "content-digest" | "repr-digest" | "digest" | "x-goog-hash"
    ) || name.starts_with("x-amz-checksum-")
}

/// The content codings of a body, as listed.
pub fn codings(headers: &HeaderMap) -> String {
    if !is_there(headers, &header::CONTENT_ENCODING) {
        return String::new();
    }
    let values: Vec<&str> = headers
        .get_all(header::CONTENT_ENCODING)
        .iter()
        .map(|value| value.to_str().unwrap_or("unreadable"))
        .collect();
    values.join(",")
}

/// A filtered answer is one caller's: shared caches must not keep it. What forbids more than that
/// stays.
fn make_private(headers: &mut HeaderMap) {
    let values = headers.get_all(header::CACHE_CONTROL).iter();
    let texts = values.map(|value| value.to_str().unwrap_or_default().to_ascii_lowercase());
    let text = texts.collect::<Vec<_>>().join(",");
    if !(text.contains("public") || text.contains("s-maxage")) {
        return;
    }
    let private = match (text.contains("no-store"), text.contains("no-cache")) {
        (true, _) => "private, no-store",
        (false, true) => "private, no-cache",
        (false, false) => "private",
    };
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(private));
}

/// Takes from a request what asks for a part of a body, or whether the caller's copy of it is
/// fresh: neither is known of a body that filters change. The conditions of a method that changes
/// something stay (RFC 9110 §13.1.1): without them it would overwrite what another has written.
pub fn ask_for_whole_body(method: &Method, headers: &mut HeaderMap) {
    for name in [header::RANGE, header::IF_RANGE, header::ACCEPT_ENCODING] {
        headers.remove(name);
    }
    if method.is_safe() || method.as_str() == "QUERY" {
        for name in [
            header::IF_MATCH,
            header::IF_NONE_MATCH,
            header::IF_MODIFIED_SINCE,
            header::IF_UNMODIFIED_SINCE,
        ] {
            headers.remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            map.append(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::from_str(value).unwrap(),
            );
        }
        map
    }

    /// Sorted by name, stably: only the order within a field means something (RFC 9110 §5.3).
    fn names(map: &HeaderMap) -> Vec<String> {
        let mut fields: Vec<_> = map.iter().collect();
        fields.sort_by_key(|(name, _)| name.as_str());
        let text = |(n, v): (&HeaderName, &HeaderValue)| format!("{n}={}", v.to_str().unwrap());
        fields.into_iter().map(text).collect()
    }

    #[test]
    fn conditions_stay_where_something_is_changed() {
        let all = [
            ("range", "bytes=0-4"),
            ("if-range", "\"v1\""),
            ("if-match", "\"v1\""),
            ("if-none-match", "*"),
            ("if-modified-since", "Fri, 27 Nov 2026 10:00:00 GMT"),
            ("if-unmodified-since", "Fri, 27 Nov 2026 10:00:00 GMT"),
            ("accept-encoding", "br"),
            ("x-other", "1"),
        ];
        for (method, left) in [
            ("GET", 1),
            ("HEAD", 1),
            ("QUERY", 1),
            ("PUT", 5),
            ("PATCH", 5),
        ] {
            let mut headers = map(&all);
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            ask_for_whole_body(&method, &mut headers);
            assert_eq!(headers.len(), left, "{method}");
            assert_eq!(headers.contains_key("if-match"), left > 1, "{method}");
        }
    }

    #[test]
    fn what_a_target_gets_of_the_callers_fields() {
        let policy = RequestFields::default();
        let check = |fields: &[(&str, &str)], policy: &RequestFields, expected: &[&str]| {
            let passed = for_target(map(fields), policy).unwrap();
            assert_eq!(names(&passed), expected, "{fields:?}");
        };
        check(
            &[
                ("accept", "a"),
                ("x-a", "1"),
                ("x-a", "2"),
                ("host", "h"),
                ("expect", "x"),
            ],
            &policy,
            &["accept=a", "x-a=1", "x-a=2"],
        );
        for hop in [
            "connection",
            "keep-alive",
            "te",
            "trailer",
            "upgrade",
            "proxy-authorization",
        ] {
            check(&[(hop, "x"), ("a", "b")], &policy, &["a=b"]);
        }
        for name in [
            "x-original-url",
            "x-rewrite-url",
            "x-forwarded-for",
            "x-http-method-override",
            "via",
            "forwarded",
            "x-real-ip",
            "true-client-ip",
            "x-forwarded-prefix",
        ] {
            check(&[(name, "x")], &policy, &[]);
            let pass = RequestFields {
                pass: vec![HeaderName::from_static(name)],
                ..RequestFields::default()
            };
            check(&[(name, "x")], &pass, &[&format!("{name}=x")]);
        }
        check(&[("cookie", "a=b")], &policy, &[]);
        let cookies = RequestFields {
            cookies: true,
            ..RequestFields::default()
        };
        check(&[("cookie", "a=b")], &cookies, &["cookie=a=b"]);
        check(
            &[
                ("requestrocket-proxy-code", "x"),
                ("x-requestrocket-key", "k"),
            ],
            &policy,
            &[],
        );
        assert_eq!(
            for_target(map(&[("x_api_key", "evil")]), &policy),
            Err(UnderscoreName("x_api_key".into()))
        );
    }

    #[test]
    fn equivalent_names_are_removed_together() {
        let mut fields = map(&[("x-api-key", "1"), ("x_api_key", "2"), ("x-api_key", "3")]);
        remove_equivalent(&mut fields, &HeaderName::from_static("x-api-key"));
        assert!(fields.is_empty());
    }

    #[test]
    fn a_target_rules_over_nothing_but_its_own_answer() {
        let policy = ResponseFields {
            cookies: true,
            filtered: false,
        };
        for name in [
            "x-accel-redirect",
            "x-accel-expires",
            "x-sendfile",
            "x-lighttpd-send-file",
            "x-reproxy-url",
            "alt-svc",
            "clear-site-data",
            "strict-transport-security",
            "nel",
        ] {
            let passed = for_caller(map(&[(name, "x"), ("a", "b")]), policy);
            assert_eq!(names(&passed), ["a=b"], "{name}");
        }
        let streamed = for_caller(map(&[("x-accel-buffering", "no")]), policy);
        assert_eq!(names(&streamed), ["x-accel-buffering=no"]);
    }

    #[test]
    fn shared_caches_keep_no_filtered_answer() {
        let policy = ResponseFields {
            cookies: true,
            filtered: true,
        };
        for (given, left) in [
            ("public, max-age=3", "private"),
            ("no-store, s-maxage=0", "private, no-store"),
            ("s-maxage=60, No-Cache", "private, no-cache"),
            ("no-store", "no-store"),
            ("private, max-age=3", "private, max-age=3"),
        ] {
            let passed = for_caller(map(&[("cache-control", given)]), policy);
            assert_eq!(names(&passed), [format!("cache-control={left}")], "{given}");
        }
        for name in [
            "surrogate-control",
            "cdn-cache-control",
            "x-cdn-cache-control",
        ] {
            assert!(
                for_caller(map(&[(name, "max-age=60")]), policy).is_empty(),
                "{name}"
            );
        }
    }

    #[test]
    fn what_a_caller_gets_of_the_targets_fields() {
        let from = [
            ("content-type", "application/json"),
            ("content-length", "3"),
            ("transfer-encoding", "chunked"),
            ("connection", "x-hop"),
            ("x-hop", "1"),
            ("set-cookie", "a=b"),
            ("etag", "\"1\""),
            ("cache-control", "public, max-age=3"),
            ("requestrocket-proxy-code", "forged"),
            ("x-request-id", "r1"),
        ];
        let plain = for_caller(
            map(&from),
            ResponseFields {
                cookies: true,
                filtered: false,
            },
        );
        assert_eq!(
            names(&plain),
            [
                "cache-control=public, max-age=3",
                "content-type=application/json",
                "etag=\"1\"",
                "set-cookie=a=b",
                "x-request-id=r1"
            ]
        );
        let filtered = for_caller(
            map(&from),
            ResponseFields {
                cookies: false,
                filtered: true,
            },
        );
        assert_eq!(
            names(&filtered),
            [
                "cache-control=private",
                "content-type=application/json",
                "x-request-id=r1"
            ]
        );
    }
}
