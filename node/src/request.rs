//! The head of a request as the pipeline reads it: bytes as they came, parsed once.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, Method};

/// What the paths of proxies begin with.
const PREFIX: &[u8] = b"/api/";

/// A request's head. Path and query are kept byte for byte.
#[derive(Debug)]
pub struct Request {
    /// Its method.
    pub method: Method,
    /// Its fields; `receive` has refused what cannot be one.
    pub headers: HeaderMap,
    /// Who is connected to us.
    pub peer: SocketAddr,
    /// The query without `?`; the parameter that held the caller's key is taken out.
    pub query: Option<Bytes>,
    /// The whole path, still encoded.
    path: Bytes,
    /// Where the part behind the proxy begins in `path`.
    rest_start: usize,
}

impl Request {
    /// A head from the target's path and query (origin form, RFC 9112 §3.2.1).
    pub fn new(method: Method, target: Bytes, headers: HeaderMap, peer: SocketAddr) -> Self {
        let (path, query) = match target.iter().position(|byte| *byte == b'?') {
            Some(at) => (target.slice(..at), Some(target.slice(at + 1..))),
            None => (target, None),
        };
        Self {
            method,
            headers,
            peer,
            query,
            path,
            rest_start: 0,
        }
    }

    /// Splits `/api/{key}/rest` and gives the key; `None` when the path has another form.
    ///
    /// The one place that finds the proxy of a request: host routing and a forward listener will
    /// come here.
    pub fn split_proxy_key(&mut self) -> Option<&str> {
        let behind = self.path.strip_prefix(PREFIX)?;
        let length = behind
            .iter()
            .position(|byte| *byte == b'/')
            .unwrap_or(behind.len());
        self.rest_start = PREFIX.len() + length;
        let key = &self.path[PREFIX.len()..self.rest_start];
        let plain =
            |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-._".contains(byte);
        if key.is_empty() || key.len() > 96 || !key.iter().all(plain) {
            return None;
        }
        std::str::from_utf8(key).ok()
    }

    /// What stands in the place of a proxy's name, be it one or not.
    pub fn called_name(&self) -> &[u8] {
        let behind = self.path.strip_prefix(PREFIX).unwrap_or_default();
        behind
            .split(|byte| *byte == b'/')
            .next()
            .unwrap_or_default()
    }

    /// Whether the path begins like one of a proxy, known or not.
    pub fn is_proxy_form(&self) -> bool {
        self.path.starts_with(PREFIX)
    }

    /// The path in front of what is sent on: `/api/{key}`, in the form that the caller used.
    pub fn proxy_prefix(&self) -> &str {
        // Only set behind characters that `split_proxy_key` has checked, or zero.
        std::str::from_utf8(&self.path[..self.rest_start]).unwrap_or_default()
    }

    /// The caller's path behind the proxy: empty, or beginning with `/`.
    pub fn rest(&self) -> Bytes {
        self.path.slice(self.rest_start..)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(target: &str) -> (Option<String>, String, Option<Bytes>) {
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        let target = Bytes::copy_from_slice(target.as_bytes());
        let mut request = Request::new(Method::GET, target, HeaderMap::new(), peer);
        let key = request.split_proxy_key().map(str::to_owned);
        let rest = String::from_utf8_lossy(&request.rest()).into_owned();
        (key, rest, request.query)
    }

    #[test]
    fn the_forms_of_a_proxy_path() {
        for (target, key, rest, query) in [
            ("/api/demo", Some("demo"), "", None),
            ("/api/demo/", Some("demo"), "/", None),
            (
                "/api/acme.demo/v1/%2F..?a=b&a=b",
                Some("acme.demo"),
                "/v1/%2F..",
                Some("a=b&a=b"),
            ),
            ("/api/demo//x", Some("demo"), "//x", None),
            ("/api/demo?x", Some("demo"), "", Some("x")),
            ("/api/de%6Do/x", None, "/x", None),
            ("/api//x", None, "/x", None),
            ("/api/DEMO/x", None, "/x", None),
            ("/apix/demo", None, "/apix/demo", None),
            ("/async/demo", None, "/async/demo", None),
            ("/", None, "/", None),
        ] {
            let (found, found_rest, found_query) = split(target);
            assert_eq!(found.as_deref(), key, "{target}");
            assert_eq!(found_rest, rest, "{target}");
            assert_eq!(found_query.as_deref(), query.map(str::as_bytes), "{target}");
        }
    }
}
