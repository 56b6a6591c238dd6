//! Cookies of a target, handed to a caller of the proxy (RFC 6265).
//!
//! A `Domain` of the target would be dropped by clients and a `Path` of the target would never
//! come back to `/api/{proxy}/…`, so both are mapped. Names stay as they are.

use http::{HeaderMap, HeaderValue, header};

use super::bytewise;

/// Maps `Domain` and `Path` of every `Set-Cookie`.
pub fn map_answer(headers: &mut HeaderMap, base_path: &str, prefix: &str) {
    if !headers.keys().any(|name| *name == header::SET_COOKIE) {
        return;
    }
    let values: Vec<HeaderValue> = headers
        .get_all(header::SET_COOKIE)
        .iter()
        .cloned()
        .collect();
    headers.remove(header::SET_COOKIE);
    for value in values {
        headers.append(header::SET_COOKIE, mapped(value, base_path, prefix));
    }
}

/// A cookie's value may hold any byte.
fn mapped(value: HeaderValue, base_path: &str, prefix: &str) -> HeaderValue {
    let mapped = map(&bytewise::text(value.as_bytes()), base_path, prefix);
    let mapped = bytewise::bytes(&mapped).and_then(|bytes| HeaderValue::from_bytes(&bytes).ok());
    mapped.unwrap_or(value)
}

fn map(cookie: &str, base_path: &str, prefix: &str) -> String {
    let mut out = String::with_capacity(cookie.len() + prefix.len());
    for (at, part) in cookie.split(';').enumerate() {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        let name = trim(name);
        if at > 0 && name.eq_ignore_ascii_case("domain") {
            continue;
        }
        if at > 0 {
            out.push(';');
        }
        if at > 0 && name.eq_ignore_ascii_case("path") && trim(value).starts_with('/') {
            out.push_str(" Path=");
            out.push_str(&map_path(trim(value), base_path, prefix));
        } else {
            out.push_str(part);
        }
    }
    out
}

/// Without the white space of RFC 6265 around it: other characters stand for bytes of a value.
fn trim(text: &str) -> &str {
    text.trim_matches([' ', '\t'])
}

/// The proxy's path for a path of the target: what lies below the base path stays below the
/// proxy, everything else (such as `/`) becomes the whole proxy.
fn map_path(path: &str, base_path: &str, prefix: &str) -> String {
    match path.strip_prefix(base_path) {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => format!("{prefix}{rest}"),
        _ => format!("{prefix}/"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domain_goes_and_path_is_mapped() {
        for (cookie, base, expected) in [
            ("a=b", "", "a=b"),
            ("a=b; Path=/", "", "a=b; Path=/api/demo/"),
            (
                "a=b; path=/app; Secure",
                "",
                "a=b; Path=/api/demo/app; Secure",
            ),
            ("a=b; Domain=.vendor.com; HttpOnly", "", "a=b; HttpOnly"),
            ("a=b; Path=/v1/x", "/v1", "a=b; Path=/api/demo/x"),
            ("a=b; Path=/v1x", "/v1", "a=b; Path=/api/demo/"),
            ("a=b; Path=/", "/v1", "a=b; Path=/api/demo/"),
            ("domain=x; Path=app", "", "domain=x; Path=app"),
            (
                "a=\u{e9}; Path=/voil\u{c3}\u{a0}",
                "",
                "a=\u{e9}; Path=/api/demo/voil\u{c3}\u{a0}",
            ),
        ] {
            assert_eq!(map(cookie, base, "/api/demo"), expected, "{cookie}");
        }
    }
}
