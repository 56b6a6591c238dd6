//! URLs in answers: a reference to the target becomes one to the proxy, so that clients that
//! follow redirects and `Link` pages stay inside the gateway and keep their key there.
//!
//! Rewritten references are path-absolute (`/api/{proxy}/…`), which needs no trust in the caller's
//! `Host`. A path-absolute reference outside the base path would reach another resource through
//! the proxy, so it becomes absolute on the target's own origin and counts as foreign.

use http::{HeaderMap, HeaderName, HeaderValue, header};
use proto::hosts::Origin;
use proto::target::BaseUrl;

use super::bytewise;
use crate::forgotten::decoded;

/// Header fields whose references are mapped.
const FIELDS: [HeaderName; 4] = [
    header::LOCATION,
    header::CONTENT_LOCATION,
    header::LINK,
    HeaderName::from_static("refresh"),
];

/// What stands where a reference is mapped.
pub struct Mapping<'a> {
    /// The target's address that answered.
    pub base: &'a BaseUrl,
    /// Whether this is another of its addresses, which have the same path: a reference there stays
    /// inside.
    pub is_other: &'a dyn Fn(&Origin) -> bool,
    /// What stands behind the base path in all that is sent: the path in which a secret stands. It
    /// is put there again, so that what lies outside of it is no less another resource.
    pub injected: Option<&'a str>,
    /// `/api/{proxy}` as the caller wrote it.
    pub prefix: &'a str,
}

/// Whether a field has references that are mapped.
pub fn is_mapped(name: &HeaderName) -> bool {
    FIELDS.contains(name)
}

/// Maps every reference in an answer's fields; gives the first foreign host.
pub fn map_answer(headers: &mut HeaderMap, mapping: &Mapping<'_>) -> Option<String> {
    let mut foreign = None;
    if !headers.keys().any(|name| FIELDS.contains(name)) {
        return foreign;
    }
    for field in &FIELDS {
        if !headers.contains_key(field) {
            continue;
        }
        let values: Vec<HeaderValue> = headers.get_all(field).iter().cloned().collect();
        headers.remove(field);
        for value in values {
            let mapped = mapping.value(field, &value, &mut foreign);
            headers.append(field.clone(), mapped.unwrap_or(value));
        }
    }
    foreign
}

/// The first foreign host that an answer's fields name; they stay as they are.
pub fn foreign(headers: &HeaderMap, mapping: &Mapping<'_>) -> Option<String> {
    let mut foreign = None;
    for (field, value) in headers.iter().filter(|(name, _)| FIELDS.contains(name)) {
        mapping.value(field, value, &mut foreign);
    }
    foreign
}

impl Mapping<'_> {
    /// A field's value mapped; `None` where that would be no field value. Clients follow what is
    /// not ASCII, though RFC 3986 knows nothing else: in path and query any bytes may stand.
    fn value(
        &self,
        field: &HeaderName,
        value: &HeaderValue,
        foreign: &mut Option<String>,
    ) -> Option<HeaderValue> {
        if let Ok(text) = std::str::from_utf8(value.as_bytes()) {
            let mapped = self.field(field, text, foreign);
            return HeaderValue::from_bytes(mapped.as_bytes()).ok();
        }
        let mapped = self.field(field, &bytewise::text(value.as_bytes()), foreign);
        HeaderValue::from_bytes(&bytewise::bytes(&mapped)?).ok()
    }

    fn field(&self, field: &HeaderName, text: &str, foreign: &mut Option<String>) -> String {
        if *field == header::LINK {
            return self.link(text, foreign);
        }
        if field.as_str() == "refresh" {
            return self.refresh(text, foreign);
        }
        self.reference(text, foreign)
    }

    /// `<ref>; rel="next", <ref>; …` (RFC 8288 §3).
    fn link(&self, text: &str, foreign: &mut Option<String>) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        let mut quoted = false;
        while let Some(at) = rest.find(['<', '"']) {
            let (before, from) = rest.split_at(at);
            out.push_str(before);
            if let Some(behind) = from.strip_prefix('"') {
                quoted = !quoted;
                out.push('"');
                rest = behind;
                continue;
            }
            match from.find('>') {
                Some(end) if !quoted => {
                    out.push('<');
                    out.push_str(&self.reference(&from[1..end], foreign));
                    out.push('>');
                    rest = &from[end + 1..];
                }
                _ => {
                    out.push('<');
                    rest = &from[1..];
                }
            }
        }
        out.push_str(rest);
        out
    }

    /// `5; url=ref` as browsers read it (HTML, "shared declarative refresh steps"): `url=` may be
    /// absent, and spaces may stand in it.
    fn refresh(&self, text: &str, foreign: &mut Option<String>) -> String {
        let time = |c: char| c.is_ascii_digit() || c == '.' || c.is_ascii_whitespace();
        let rest = text.trim_start_matches(time);
        let rest = rest.strip_prefix([';', ',']).unwrap_or(rest).trim_start();
        let named = rest
            .get(..3)
            .filter(|name| name.eq_ignore_ascii_case("url"));
        let value = named.and_then(|name| rest[name.len()..].trim_start().strip_prefix('='));
        let rest = value.unwrap_or(rest).trim_start();
        if rest.is_empty() {
            return text.to_owned();
        }
        let head = &text[..text.len() - rest.len()];
        let quote = rest
            .chars()
            .next()
            .filter(|first| matches!(first, '"' | '\''));
        let reference = match quote {
            // Up to the same quote; a client may read more where there is none.
            Some(quote) => rest[1..].split(quote).next().unwrap_or_default(),
            None => rest,
        };
        format!("{head}{}", self.reference(reference, foreign))
    }

    fn reference(&self, text: &str, foreign: &mut Option<String>) -> String {
        if text.contains('\t') {
            // Browsers leave it out wherever it stands (WHATWG URL).
            return self.reference(&text.replace('\t', ""), foreign);
        }
        let reference = text.trim();
        // Browsers read `\\` as `/` (WHATWG URL).
        let read = reference.replace('\\', "/");
        if read.starts_with("//") || has_scheme(reference) {
            return self.absolute(reference, foreign);
        }
        if !read.starts_with('/') {
            // Relative to the caller's own URL, which lies inside the proxy.
            return text.to_owned();
        }
        match self.below_base(reference) {
            Some(rest) => format!("{}{rest}", self.prefix),
            None => {
                foreign.get_or_insert_with(|| self.base.origin.host.clone());
                format!("{}{reference}", self.base.origin)
            }
        }
    }

    fn absolute(&self, reference: &str, foreign: &mut Option<String>) -> String {
        let scheme = self.base.origin.scheme.as_str();
        let begins = |text: &str| {
            text.bytes()
                .take(2)
                .all(|byte| matches!(byte, b'/' | b'\\'))
        };
        let full = match reference.get(2..).filter(|_| begins(reference)) {
            Some(rest) => format!("{scheme}://{rest}"),
            None => reference.to_owned(),
        };
        let parsed = url::Url::parse(&full).ok();
        let origin = parsed.as_ref().and_then(|url| Origin::of(url).ok());
        if origin
            .as_ref()
            .is_some_and(|origin| self.is_targets(origin))
            && let Some(rest) = self.below_base(after_authority(&full))
        {
            return format!("{}{rest}", self.prefix);
        }
        let host = origin.map_or_else(|| "(not http)".to_owned(), |origin| origin.host);
        foreign.get_or_insert(host);
        reference.to_owned()
    }

    fn is_targets(&self, origin: &Origin) -> bool {
        *origin == self.base.origin || (self.is_other)(origin)
    }

    /// What stands behind the base path, where `path` lies below it.
    fn below_base<'p>(&self, path: &'p str) -> Option<&'p str> {
        let rest = path.strip_prefix(self.base.path.as_str())?;
        let rest = match self.injected {
            Some(injected) => behind(rest, injected)?,
            None => rest,
        };
        // `..` behind the base could leave it again once the client resolves it.
        let path_only = rest.split(['?', '#']).next().unwrap_or_default();
        let climbs = path_only.split(['/', '\\']).any(|segment| {
            matches!(
                segment.to_ascii_lowercase().as_str(),
                ".." | "%2e%2e" | ".%2e" | "%2e."
            )
        });
        (!climbs && (rest.is_empty() || rest.starts_with(['/', '\\', '?', '#']))).then_some(rest)
    }
}

/// What stands behind another path that a path begins with, however both are escaped.
fn behind<'p>(path: &'p str, begin: &str) -> Option<&'p str> {
    let mut written = decoded(path.as_bytes(), b'+');
    let mut at = 0;
    for (wanted, _) in decoded(begin.as_bytes(), b'+') {
        let (_, width) = written.next().filter(|(byte, _)| *byte == wanted)?;
        at += width;
    }
    path.get(at..)
}

/// Whether a reference begins with a scheme (RFC 3986 §3.1).
fn has_scheme(reference: &str) -> bool {
    reference.split_once(':').is_some_and(|(scheme, _)| {
        scheme.starts_with(|first: char| first.is_ascii_alphabetic())
            && scheme
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
    })
}

/// Path, query and fragment of an absolute URL, as written.
fn after_authority(url: &str) -> &str {
    let behind = url.split_once("://").map_or("", |(_, rest)| rest);
    behind
        .find(['/', '\\', '?', '#'])
        .map_or("", |at| &behind[at..])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of a field, and which foreign host was found.
    fn mapped(base: &str, field: &str, value: &[u8]) -> (Vec<u8>, Option<String>) {
        let base = BaseUrl::parse(base).unwrap();
        let mapping = Mapping {
            base: &base,
            is_other: &|origin| origin.host == "eu.x.com",
            injected: None,
            prefix: "/api/demo",
        };
        let name = HeaderName::from_bytes(field.as_bytes()).unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(name.clone(), HeaderValue::from_bytes(value).unwrap());
        let found = map_answer(&mut headers, &mapping);
        (headers[&name].as_bytes().to_vec(), found)
    }

    fn check(base: &str, field: &str, value: &str, expected: &str, foreign: Option<&str>) {
        let (text, found) = mapped(base, field, value.as_bytes());
        assert_eq!(text, expected.as_bytes(), "{field}: {value}");
        assert_eq!(found.as_deref(), foreign, "{field}: {value}");
    }

    #[test]
    fn a_path_that_is_injected_is_part_of_the_base() {
        let base = BaseUrl::parse("https://x.com/v1").unwrap();
        let mapping = Mapping {
            base: &base,
            is_other: &|_| false,
            injected: Some("/bot1:AAH%2Ffoo"),
            prefix: "/api/demo",
        };
        for (reference, expected, is_foreign) in [
            ("/v1/bot1:AAH%2Ffoo/me?a", "/api/demo/me?a", false),
            ("/v1/bot1%3AAAH%2ffoo", "/api/demo", false),
            ("/v1/bot1:AAH/foo/me", "/api/demo/me", false),
            ("https://x.com/v1/bot1:AAH%2Ffoo/", "/api/demo/", false),
            ("me", "me", false),
            (
                "/v1/bot1:AAH%2Ffoo2/me",
                "https://x.com/v1/bot1:AAH%2Ffoo2/me",
                true,
            ),
            ("/v1/me", "https://x.com/v1/me", true),
        ] {
            let mut foreign = None;
            assert_eq!(mapping.reference(reference, &mut foreign), expected);
            assert_eq!(foreign.is_some(), is_foreign, "{reference}");
        }
    }

    #[test]
    fn bytes_of_no_text_are_mapped_too() {
        for (value, expected, foreign) in [
            (&b"/caf\xe9"[..], &b"/api/demo/caf\xe9"[..], None),
            (
                b"//evil.example/\xe9",
                b"//evil.example/\xe9",
                Some("evil.example"),
            ),
        ] {
            let (bytes, found) = mapped("https://api.x.com", "location", value);
            assert_eq!(bytes, expected);
            assert_eq!(found.as_deref(), foreign);
        }
    }

    #[test]
    fn references_to_the_target_become_the_proxys() {
        let root = "https://api.x.com";
        let v1 = "https://api.x.com/v1";
        for (base, value, expected, foreign) in [
            (
                root,
                "/relative-redirect/2",
                "/api/demo/relative-redirect/2",
                None,
            ),
            (root, "/", "/api/demo/", None),
            (root, "next?page=2", "next?page=2", None),
            (root, "?page=2", "?page=2", None),
            (root, "https://api.x.com/a?b#c", "/api/demo/a?b#c", None),
            (root, "HTTPS://API.x.com:443/a", "/api/demo/a", None),
            (root, "//api.x.com/a", "/api/demo/a", None),
            (root, "https://api.x.com", "/api/demo", None),
            (root, "https://eu.x.com/a", "/api/demo/a", None),
            (
                root,
                "http://api.x.com/a",
                "http://api.x.com/a",
                Some("api.x.com"),
            ),
            (
                root,
                "https://api.x.com.evil.example/a",
                "https://api.x.com.evil.example/a",
                Some("api.x.com.evil.example"),
            ),
            (
                root,
                "//files.x.com/a",
                "//files.x.com/a",
                Some("files.x.com"),
            ),
            (root, "https://user@api.x.com/a", "/api/demo/a", None),
            (
                root,
                "javascript:alert(1)",
                "javascript:alert(1)",
                Some("(not http)"),
            ),
            (v1, "/v1/users", "/api/demo/users", None),
            (v1, "/v1", "/api/demo", None),
            (v1, "/v1?x", "/api/demo?x", None),
            (v1, "/v1x", "https://api.x.com/v1x", Some("api.x.com")),
            (
                v1,
                "/oauth/authorize",
                "https://api.x.com/oauth/authorize",
                Some("api.x.com"),
            ),
            (
                v1,
                "https://api.x.com/v2/a",
                "https://api.x.com/v2/a",
                Some("api.x.com"),
            ),
            (
                v1,
                "/v1/../admin",
                "https://api.x.com/v1/../admin",
                Some("api.x.com"),
            ),
            (
                v1,
                "/v1/%2e%2E/admin",
                "https://api.x.com/v1/%2e%2E/admin",
                Some("api.x.com"),
            ),
        ] {
            check(base, "location", value, expected, foreign);
            check(base, "content-location", value, expected, foreign);
            check(
                base,
                "refresh",
                &format!("5; url={value}"),
                &format!("5; url={expected}"),
                foreign,
            );
            check(
                base,
                "link",
                &format!("<{value}>; rel=\"next\", <#x>; title=\"a<b>\""),
                &format!("<{expected}>; rel=\"next\", <#x>; title=\"a<b>\""),
                foreign,
            );
        }
        // As browsers read them, and not as RFC 3986 has it.
        for (field, value, expected, foreign) in [
            (
                "location",
                r"\\evil.example/x",
                r"\\evil.example/x",
                "evil.example",
            ),
            (
                "location",
                r"/\evil.example/x",
                r"/\evil.example/x",
                "evil.example",
            ),
            (
                "location",
                "/\t/evil.example/x",
                "//evil.example/x",
                "evil.example",
            ),
            (
                "location",
                r"/a\..\..\other",
                r"https://api.x.com/a\..\..\other",
                "api.x.com",
            ),
            (
                "location",
                "https://evil.example/é",
                "https://evil.example/é",
                "evil.example",
            ),
            (
                "refresh",
                "0; https://evil.example/",
                "0; https://evil.example/",
                "evil.example",
            ),
            (
                "refresh",
                "0,URL = '//evil.example'",
                "0,URL = //evil.example",
                "evil.example",
            ),
            (
                "refresh",
                "0 //evil.example",
                "0 //evil.example",
                "evil.example",
            ),
        ] {
            check(root, field, value, expected, Some(foreign));
        }
        for (field, value, expected) in [
            ("location", r"\a\b", r"/api/demo\a\b"),
            ("location", "/é", "/api/demo/é"),
            ("refresh", "5", "5"),
            ("refresh", "0; /a", "0; /api/demo/a"),
            ("refresh", "0;url", "0;url"),
            (
                "refresh",
                "0; url=\"/a?q=it's\"",
                "0; url=/api/demo/a?q=it's",
            ),
        ] {
            check(root, field, value, expected, None);
        }
        check(
            root,
            "link",
            "<https://api.x.com/a",
            "<https://api.x.com/a",
            None,
        );
    }
}
