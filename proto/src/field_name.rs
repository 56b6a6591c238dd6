//! Names of header fields as servers read them.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, header};

/// A field's name as a server would read it that takes `_` for `-`, as CGI does.
pub fn plain(name: &str) -> Cow<'_, str> {
    match name.contains('_') {
        true => Cow::Owned(name.replace('_', "-")),
        false => Cow::Borrowed(name),
    }
}

/// Whether there is such a field. Looks at the names: where they are as few as usual that costs
/// less than finding one by its hash.
pub fn is_there(headers: &HeaderMap, name: &HeaderName) -> bool {
    headers.keys().any(|there| there == name)
}

/// The names that `Connection` fields list, which are about that connection alone (RFC 9110
/// §7.6.1), without those that it may not take out of a message: what frames it, what every hop
/// reads for itself, and `Cache-Control`.
pub struct Nominated {
    names: Vec<String>,
}

impl Nominated {
    /// Those of a message.
    pub fn of(headers: &HeaderMap) -> Self {
        if !is_there(headers, &header::CONNECTION) {
            return Self { names: Vec::new() };
        }
        let names = headers
            .get_all(header::CONNECTION)
            .iter()
            .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
            .filter_map(|token| std::str::from_utf8(token).ok())
            .map(|token| token.trim().to_ascii_lowercase())
            .filter(|token| !stays(token))
            .collect();
        Self { names }
    }

    /// Whether a name, in lower case, is one of them.
    pub fn contains(&self, name: &str) -> bool {
        self.names.iter().any(|nominated| nominated == name)
    }
}

/// Takes the nominated fields out of a request before anything judges it: what a rule or a meter
/// sees is then what the target gets.
pub fn drop_nominated(headers: &mut HeaderMap) {
    for name in Nominated::of(headers).names {
        if let Ok(name) = HeaderName::from_bytes(name.as_bytes()) {
            headers.remove(name);
        }
    }
}

fn stays(token: &str) -> bool {
    matches!(
        token,
        "" | "close"
            | "keep-alive"
            | "host"
            | "content-length"
            | "transfer-encoding"
            | "cache-control"
            | "connection"
            | "upgrade"
            | "http2-settings"
            | "te"
            | "trailer"
    )
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn underscores_are_hyphens() {
        assert_eq!(plain("x_original_url"), "x-original-url");
        assert!(matches!(plain("x-api-key"), Cow::Borrowed(_)));
    }

    #[test]
    fn what_is_nominated_goes_but_for_what_frames_the_message() {
        for (connection, expected) in [
            (&["keep-alive"][..], "host x-a x-b upgrade cache-control"),
            (&["close, X-A"], "host x-b upgrade cache-control"),
            (&["x-b", " ,x-A\t"], "host upgrade cache-control"),
            (
                &["upgrade, host, cache-control, connection, \u{e9}"],
                "host x-a x-b upgrade cache-control",
            ),
        ] {
            let mut headers = HeaderMap::new();
            for name in ["host", "x-a", "x-b", "upgrade", "cache-control"] {
                headers.append(name, HeaderValue::from_static("1"));
            }
            for line in connection {
                let line = HeaderValue::from_bytes(line.as_bytes()).unwrap();
                headers.append(header::CONNECTION, line);
            }
            drop_nominated(&mut headers);
            assert!(headers.contains_key(header::CONNECTION));
            headers.remove(header::CONNECTION);
            let mut left: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
            left.sort_unstable();
            let mut expected: Vec<&str> = expected.split(' ').collect();
            expected.sort_unstable();
            assert_eq!(left, expected, "{connection:?}");
        }
    }
}
