//! Cookies of a target, handed to a caller of the proxy (RFC 6265).
//!
//! A `Domain` of the target would be dropped by clients and a `Path` of the target would never
//! come back to `/api/{proxy}/…`, so both are mapped. Names stay as they are.

use http::{HeaderMap, HeaderValue, header};

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

/// A cookie's value may hold any byte; each byte of it is a character here, and comes back.
fn mapped(value: HeaderValue, base_path: &str, prefix: &str) -> HeaderValue {
    let text: String = value.as_bytes().iter().copied().map(char::from).collect();
    let mapped = map(&text, base_path, prefix);
    let bytes: Option<Vec<u8>> = mapped.chars().map(|c| u8::try_from(c).ok()).collect();
    let mapped = bytes.and_then(|bytes| HeaderValue::from_bytes(&bytes).ok());
    mapped.unwrap_or(value)
}

fn map(cookie: &str, base_path: &str, prefix: &str) -> String {
    let mut out = String::with_capacity(cookie.len() + prefix.len());
    for (at, part) in cookie.split(';').enumerate() {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        let name = name.trim();
        if at > 0 && name.eq_ignore_ascii_case("domain") {
            continue;
        }
        if at > 0 {
            out.push(';');
        }
        if at > 0 && name.eq_ignore_ascii_case("path") && value.trim().starts_with('/') {
            out.push_str(" Path=");
            out.push_str(&map_path(value.trim(), base_path, prefix));
        } else {
            out.push_str(part);
        }
    }
    out
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
        ] {
            assert_eq!(map(cookie, base, "/api/demo"), expected, "{cookie}");
        }
    }
}
