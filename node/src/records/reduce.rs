//! What a record keeps of a request's and an answer's texts: never a secret that is known. All of a
//! text is searched before it is cut, or half a secret might stay.

use std::borrow::Cow;
use std::net::IpAddr;

use http::{HeaderValue, Method};
use proto::proxy::{RecordPath, RecordSource};
use proto::query;
use proto::record::{QueryField, REDACTED};

use crate::credentials::live::Whose;
use crate::credentials::shown::{shown, shown_text};
use crate::flow::Notes;
use crate::forgotten::under_escapes;
use crate::presented::ISSUED;
use crate::snapshot::CompiledProxy;

/// Longest recorded path, in characters.
const PATH_CHARS_MAX: usize = 2_048;
/// Most recorded query parameters.
const QUERY_FIELDS_MAX: usize = 64;
/// Longest sum of the kept names and values, in bytes.
const QUERY_BYTES_MAX: usize = 4_096;
/// Longest recorded parameter name or value, in characters.
const QUERY_CHARS_MAX: usize = 256;
/// Longest recorded `User-Agent`, in characters.
const AGENT_CHARS_MAX: usize = 256;
/// Longest path of a call that was refused for its key, in characters.
const REFUSED_PATH_CHARS_MAX: usize = 256;
/// Longest sum of its kept names and values, in bytes.
const REFUSED_QUERY_BYTES_MAX: usize = 256;
/// A path segment longer than this may be a token.
const SEGMENT_BYTES_MAX: usize = 20;

/// What was asked for, path and query, as the proxy lets it be kept.
pub fn asked(notes: &Notes, proxy: &CompiledProxy) -> (String, Vec<QueryField>) {
    let whose = Whose::Orgs(proxy.org);
    let mut path = path(&notes.path, proxy.record.path, whose);
    let (allow, keys) = (&proxy.record.query_allow, &proxy.key_queries);
    let mut query = query(notes.query.as_deref(), allow, keys, whose);
    if notes.refusal.is_some() {
        cut_refused(&mut path, &mut query);
    }
    (path, query)
}

/// The path as the proxy's `record.path` says.
fn path(path: &[u8], policy: RecordPath, whose: Whose) -> String {
    let path = without_secrets(path, whose);
    let text = String::from_utf8_lossy(&path);
    match policy {
        RecordPath::None => String::new(),
        RecordPath::Template if text.split('/').any(looks_random) => {
            let template = |segment| if looks_random(segment) { "*" } else { segment };
            let kept = text.split('/').map(template).collect::<Vec<_>>().join("/");
            clipped(&kept, PATH_CHARS_MAX)
        }
        RecordPath::Full | RecordPath::Template => clipped(&text, PATH_CHARS_MAX),
    }
}

/// A text of a request or of an answer without secrets, cut to so many characters.
pub fn shortened(text: &str, chars_max: usize, whose: Whose) -> String {
    clipped(&shown_text(text, whose), chars_max)
}

/// A caller's `User-Agent`, where it is a text.
pub fn user_agent(agent: &HeaderValue, whose: Whose) -> Option<String> {
    let text = without_secrets(agent.to_str().ok()?.as_bytes(), whose);
    Some(clipped(&String::from_utf8_lossy(&text), AGENT_CHARS_MAX))
}

/// A text without secrets, whether they stand there as they are or under escapes.
pub(super) fn without_secrets(text: &[u8], whose: Whose) -> Cow<'_, [u8]> {
    let clean = shown(text, whose);
    match under_escapes(&clean, b'+', found(whose)) {
        Some(clean) => Cow::Owned(clean),
        None => clean,
    }
}

/// The text without the secrets in it, where there are any.
fn found(whose: Whose) -> impl Fn(&[u8]) -> Option<Vec<u8>> {
    move |text| match shown(text, whose) {
        Cow::Borrowed(_) => None,
        Cow::Owned(clean) => Some(clean),
    }
}

/// A text cut to so many characters.
fn clipped(text: &str, chars_max: usize) -> String {
    // There are at least as many bytes as characters, so a short text needs no counting.
    let end = match text.len() > chars_max {
        true => text.char_indices().nth(chars_max).map(|(at, _)| at),
        false => None,
    };
    text[..end.unwrap_or(text.len())].to_owned()
}

/// Whether a segment may be an id or a token: long, or many changes between letters and digits.
fn looks_random(segment: &str) -> bool {
    let kind = |byte: u8| (byte.is_ascii_digit(), byte.is_ascii_uppercase());
    let bytes = segment.as_bytes();
    let changes = bytes
        .windows(2)
        .filter(|pair| kind(pair[0]) != kind(pair[1]))
        .count();
    segment.len() > SEGMENT_BYTES_MAX || (segment.len() >= 8 && changes >= 4)
}

/// The first of the query's names, with values only where the proxy allows it.
///
/// What may be a caller's key is never shown: parameters that hold one, values as we issue them.
fn query(
    text: Option<&[u8]>,
    allow: &[String],
    keys: &[Box<str>],
    whose: Whose,
) -> Vec<QueryField> {
    let clip = |part: &[u8]| clipped(&String::from_utf8_lossy(part), QUERY_CHARS_MAX);
    let Some(text) = text else {
        return Vec::new();
    };
    // As a whole, since a secret may hold an `=`; and its `+` may be one, or a space.
    let text = without_secrets(text, whose);
    let text = match text.contains(&b'+') {
        true => under_escapes(&text, b' ', found(whose)).map_or(text, Cow::Owned),
        false => text,
    };
    let mut chars = 0;
    let fits = |field: &QueryField| {
        chars += field.name.len() + field.value.len();
        chars <= QUERY_BYTES_MAX
    };
    query::pairs(&text)
        .take(QUERY_FIELDS_MAX)
        .map(|(name, value)| {
            let is_key = keys.iter().any(|key| key.as_bytes() == &*name);
            let shown = allow.iter().any(|allowed| allowed.as_bytes() == &*name)
                && !is_key
                && !value.starts_with(ISSUED);
            let value = if shown {
                clip(&value)
            } else {
                REDACTED.to_owned()
            };
            QueryField {
                name: clip(&name),
                value,
            }
        })
        .take_while(fits)
        .collect()
}

/// Cuts what the record of a call keeps that was refused for its key: anybody can make such calls.
fn cut_refused(path: &mut String, query: &mut Vec<QueryField>) {
    if let Some((end, _)) = path.char_indices().nth(REFUSED_PATH_CHARS_MAX) {
        path.truncate(end);
    }
    let mut bytes = 0;
    let fitting = query.iter().take_while(|field| {
        bytes += field.name.len() + field.value.len();
        bytes <= REFUSED_QUERY_BYTES_MAX
    });
    query.truncate(fitting.count());
}

/// The caller's address as the proxy's `record.source` says.
pub fn source(address: IpAddr, policy: RecordSource) -> Option<String> {
    match (policy, address.to_canonical()) {
        (RecordSource::None, _) => None,
        (RecordSource::Full, IpAddr::V4(address)) => Some(dotted(address.octets())),
        (RecordSource::Full, IpAddr::V6(address)) => Some(address.to_string()),
        (RecordSource::Prefix, IpAddr::V4(address)) => {
            let [a, b, c, _] = address.octets();
            Some(format!("{a}.{b}.{c}.0/24"))
        }
        (RecordSource::Prefix, IpAddr::V6(address)) => {
            let [a, b, c, ..] = address.segments();
            Some(format!("{a:x}:{b:x}:{c:x}::/48"))
        }
    }
}

/// An IPv4 address; std's formatter takes ten times as long, on every request.
fn dotted(octets: [u8; 4]) -> String {
    let mut text = String::with_capacity("255.255.255.255".len());
    for (at, octet) in octets.into_iter().enumerate() {
        if at > 0 {
            text.push('.');
        }
        let digits = [octet / 100, octet / 10 % 10, octet % 10];
        let leading = digits
            .iter()
            .take(2)
            .take_while(|digit| **digit == 0)
            .count();
        text.extend(
            digits
                .iter()
                .skip(leading)
                .map(|digit| char::from(b'0' + digit)),
        );
    }
    text
}

/// A method's name; the usual ones cost no allocation.
pub fn method(method: &Method, whose: Whose) -> Cow<'static, str> {
    const USUAL: [&str; 7] = ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"];
    let text = method.as_str();
    match USUAL.into_iter().find(|usual| *usual == text) {
        Some(usual) => usual.into(),
        None => shortened(text, usize::MAX, whose).into(),
    }
}

#[cfg(test)]
mod tests {
    use proto::id::OrgId;

    use super::*;
    use crate::credentials::live::LiveSecrets;
    use crate::credentials::scrub::Scrub;

    const OWN: OrgId = OrgId::from_bits(1);
    const WHOSE: Whose = Whose::Orgs(OWN);

    #[test]
    fn paths_lose_what_may_be_a_token() {
        for (from, policy, expected) in [
            ("/v1/users/42", RecordPath::Full, "/v1/users/42"),
            ("/v1/users/42", RecordPath::None, ""),
            ("/v1/users/42", RecordPath::Template, "/v1/users/42"),
            ("/bot1234:AAbbCCdd/send", RecordPath::Template, "/*/send"),
            (
                "/services/T0A1B2C3D/B9/xYz",
                RecordPath::Template,
                "/services/*/B9/xYz",
            ),
            ("/x/aaaaaaaaaaaaaaaaaaaaa", RecordPath::Template, "/x/*"),
        ] {
            assert_eq!(path(from.as_bytes(), policy, WHOSE), expected, "{from}");
        }
    }

    #[test]
    fn texts_are_cut_between_characters() {
        for (text, chars_max, expected) in [
            ("abc", 3, "abc"),
            ("abc", 2, "ab"),
            ("äöü", 3, "äöü"),
            ("äöü", 2, "äö"),
            ("", 0, ""),
        ] {
            assert_eq!(clipped(text, chars_max), expected);
        }
    }

    #[test]
    fn query_values_are_redacted_unless_allowed() {
        let fields = query(
            Some(b"page=2&key=secret&k%65y=x"),
            &["page".into()],
            &[],
            WHOSE,
        );
        let shown: Vec<_> = fields
            .iter()
            .map(|field| format!("{}={}", field.name, field.value))
            .collect();
        assert_eq!(shown, ["page=2", "key=REDACTED", "key=REDACTED"]);
        let allow = ["page".into(), "key".into()];
        let text = b"key=secret&page=rr_live_x&page=3";
        let fields = query(Some(text), &allow, &["key".into()], WHOSE);
        let values: Vec<_> = fields.iter().map(|field| field.value.as_str()).collect();
        assert_eq!(values, ["REDACTED", "REDACTED", "3"]);
    }

    #[test]
    fn no_text_keeps_a_secret_whole_or_in_part() {
        let secret = "reduce-live-secret/+of=32&bytes";
        let scrub = std::sync::Arc::new(Scrub::new([secret], []));
        LiveSecrets::of_process().add(Some(OWN), &scrub);
        let escaped = "reduce-live-secret%2F%2Bof%3D32%26bytes";
        let odd = "reduce%2dlive-secret/%2Bof%3D32%26bytes";
        let key = format!("rr_live_{}", "k".repeat(49));
        let gone = |text: &str| {
            let parts = ["reduce-live", "live-secret", "of=32", "of%3D32", "rr_live"];
            assert!(!parts.iter().any(|part| text.contains(part)), "{text}");
        };
        // Where it is cut there is half of one.
        for before in [0, 100, 247, 1_020, 2_040] {
            let before = "x".repeat(before);
            for secret in [secret, escaped, odd, "%72r_live_abcdefghijk", key.as_str()] {
                let path_text = format!("/{before}/{secret}/x");
                gone(&path(path_text.as_bytes(), RecordPath::Full, WHOSE));
                gone(&path(path_text.as_bytes(), RecordPath::Template, WHOSE));
                let agent = HeaderValue::from_str(&format!("{before} {secret} x")).unwrap();
                gone(&user_agent(&agent, WHOSE).unwrap());
            }
            for secret in [secret, escaped, odd, key.as_str()] {
                let text = format!("page={before}{secret}&{before}{secret}=1&{secret}");
                let fields = query(Some(text.as_bytes()), &["page".into()], &[], WHOSE);
                gone(&format!("{fields:?}"));
            }
        }
    }

    #[test]
    fn what_others_have_is_not_told_by_stars() {
        let secret = "others-secret-2024!";
        let scrub = std::sync::Arc::new(Scrub::new([secret], []));
        LiveSecrets::of_process().add(Some(OrgId::from_bits(2)), &scrub);
        let text = format!("/guess/{secret}/x");
        assert_eq!(path(text.as_bytes(), RecordPath::Full, WHOSE), text);
        let agent = HeaderValue::from_str(&text).unwrap();
        assert_eq!(user_agent(&agent, WHOSE).unwrap(), text);
        let method = Method::from_bytes(secret.as_bytes()).unwrap();
        assert_eq!(super::method(&method, WHOSE), secret);
        let allow = ["page".to_owned()];
        let query_text = format!("page={secret}");
        let fields = query(Some(query_text.as_bytes()), &allow, &[], WHOSE);
        assert_eq!(fields[0].value, secret);
    }

    #[test]
    fn what_is_not_a_secret_stays_and_a_plus_is_what_it_may_be() {
        let plus = std::sync::Arc::new(Scrub::new(["reduce+plus/ghi=jkl"], []));
        let space = std::sync::Arc::new(Scrub::new(["reduce space/ghi=jkl"], []));
        LiveSecrets::of_process().add(Some(OWN), &plus);
        LiveSecrets::of_process().add(Some(OWN), &space);
        let stars = "*".repeat("reduce+plus%2Fghi=jkl".len());
        for (text, expected) in [
            (
                "/a+b/%2F/reduce+plus%2Fghi=jkl/x",
                format!("/a+b/%2F/{stars}/x"),
            ),
            (
                "/a+b/reduce%2bplus/ghi=jkl/%zz",
                format!("/a+b/{stars}/%zz"),
            ),
        ] {
            assert_eq!(path(text.as_bytes(), RecordPath::Full, WHOSE), expected);
            let agent = HeaderValue::from_str(text).unwrap();
            assert_eq!(user_agent(&agent, WHOSE).unwrap(), expected);
        }
        for secret in ["reduce+plus%2Fghi=jkl", "reduce+space%2Fghi=jkl"] {
            let text = format!("q=Tom%26Jerry&page=1+1&{secret}&page={secret}&page=2");
            let fields = query(Some(text.as_bytes()), &["page".into()], &[], WHOSE);
            let fields: Vec<_> = fields
                .iter()
                .map(|field| (field.name.as_str(), field.value.as_str()))
                .collect();
            let stars = "*".repeat(secret.len());
            let expected = [
                ("q", REDACTED),
                ("page", "1 1"),
                (stars.as_str(), REDACTED),
                ("page", stars.as_str()),
                ("page", "2"),
            ];
            assert_eq!(fields, expected);
        }
    }

    #[test]
    fn of_what_was_refused_little_is_kept() {
        let field = |name: &str| QueryField {
            name: name.into(),
            value: REDACTED.into(),
        };
        let (mut path, mut query) = ("/\u{e4}".repeat(1_000), vec![field("a"); 64]);
        cut_refused(&mut path, &mut query);
        assert_eq!(path, "/\u{e4}".repeat(128));
        assert_eq!(query, vec![field("a"); 256 / 9]);
        let (mut path, mut query) = ("/a".to_owned(), vec![field("b")]);
        cut_refused(&mut path, &mut query);
        assert_eq!((path.as_str(), query), ("/a", vec![field("b")]));
        let mut query = vec![field(&"c".repeat(250))];
        cut_refused(&mut path, &mut query);
        assert!(query.is_empty());
    }

    #[test]
    fn addresses_are_reduced() {
        let v4: IpAddr = "192.0.2.7".parse().unwrap();
        let mapped: IpAddr = "::ffff:192.0.2.7".parse().unwrap();
        let v6: IpAddr = "2001:db8:1:2::3".parse().unwrap();
        assert_eq!(source(v4, RecordSource::Full).unwrap(), "192.0.2.7");
        assert_eq!(
            source(mapped, RecordSource::Prefix).unwrap(),
            "192.0.2.0/24"
        );
        assert_eq!(source(v6, RecordSource::Prefix).unwrap(), "2001:db8:1::/48");
        assert_eq!(source(v6, RecordSource::None), None);
    }

    #[test]
    fn addresses_are_written_as_std_writes_them() {
        for octet in 0..=255 {
            let octets = [octet, 255 - octet, octet / 10, 100];
            let expected = std::net::Ipv4Addr::from(octets).to_string();
            assert_eq!(dotted(octets), expected);
        }
    }
}
