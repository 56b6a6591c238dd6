//! The request that is explained: described by the caller, or as far as its record tells.

use std::net::IpAddr;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use proto::problem::Problem;
use proto::proxy::{Proxy, RecordPath};
use proto::record::{REDACTED, Record};
use serde::Deserialize;
use serde_json::Value;

/// What stands for bytes that are no text.
const LOST: char = '\u{FFFD}';
/// Where records cut paths, query values and queries; see the node's `records::reduce`.
const PATH_CHARS: usize = 2_048;
const TEXT_CHARS: usize = 256;
const QUERY_FIELDS: usize = 64;
const QUERY_BYTES: usize = 3_000;

/// Most header fields of a request that is described, each value of a list for itself, and most
/// bytes of them together. A map of header fields panics at some tens of thousands.
const FIELDS_MAX: usize = 256;
const FIELDS_BYTES_MAX: usize = 64 * 1024;

/// A request without a connection.
#[derive(Clone, Debug, Default)]
pub struct Described {
    /// The method.
    pub method: String,
    /// The path behind the proxy.
    pub path: Vec<u8>,
    /// What follows the `?`.
    pub query: Option<Vec<u8>>,
    /// The caller's header fields.
    pub headers: HeaderMap,
    /// The body; `None` where it is not known.
    pub body: Option<Bytes>,
    /// The caller's address.
    pub source: Option<IpAddr>,
    /// What is not known of it.
    pub unknown: Unknown,
}

/// What a record does not keep.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unknown {
    /// Header fields.
    pub headers: bool,
    /// What overrides the method, if anything does.
    pub method: bool,
    /// The whole path.
    pub path: bool,
    /// Values of query parameters.
    pub query: bool,
}

/// As the API takes it.
#[derive(Clone, Debug, Deserialize)]
pub struct RequestInput {
    method: String,
    path: String,
    #[serde(default)]
    headers: serde_json::Map<String, Value>,
    body: Option<String>,
    source: Option<String>,
}

impl RequestInput {
    /// A GET of a path.
    pub fn get(path: &str) -> Self {
        Self {
            method: "GET".into(),
            path: path.into(),
            headers: serde_json::Map::new(),
            body: None,
            source: None,
        }
    }

    /// The request.
    ///
    /// # Errors
    /// Everything in it that no request could hold.
    pub fn described(&self) -> Result<Described, Vec<Problem>> {
        let mut problems = Vec::new();
        if http::Method::from_bytes(self.method.as_bytes()).is_err() {
            problems.push(Problem::new("/method", "method", "is no method of HTTP"));
        }
        if let Err(problem) = self.check_fields() {
            return Err(vec![problem]);
        }
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            let values = match value {
                Value::Array(values) => values.iter().collect(),
                value => vec![value],
            };
            for value in values {
                let name_read = HeaderName::from_bytes(name.as_bytes());
                let value_read = value.as_str().map(HeaderValue::from_str);
                match (name_read, value_read) {
                    (Ok(name), Some(Ok(value))) => drop(headers.append(name, value)),
                    _ => {
                        let pointer = format!("/headers/{}", proto::checks::pointer_token(name));
                        let detail = "is no header field: a name, and a text or a list of texts";
                        problems.push(Problem::new(pointer, "header", detail));
                    }
                }
            }
        }
        let source = self.source.as_deref().map(str::parse);
        if matches!(source, Some(Err(_))) {
            problems.push(Problem::new("/source", "address", "is no IP address"));
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let (path, query) = match self.path.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (self.path.as_str(), None),
        };
        proto::field_name::drop_nominated(&mut headers);
        take_keys_out(&mut headers);
        Ok(Described {
            method: self.method.clone(),
            path: path.as_bytes().to_vec(),
            query: query.map(|query| query.as_bytes().to_vec()),
            headers,
            body: Some(self.body.clone().unwrap_or_default().into()),
            source: source.and_then(Result::ok),
            unknown: Unknown::default(),
        })
    }
}

impl RequestInput {
    fn check_fields(&self) -> Result<(), Problem> {
        let (mut count, mut bytes) = (0usize, 0usize);
        for (name, value) in &self.headers {
            let values = match value {
                Value::Array(values) => values.as_slice(),
                value => std::slice::from_ref(value),
            };
            count = count.saturating_add(values.len());
            let of_each = |value: &Value| name.len() + value.as_str().map_or(0, str::len);
            bytes = bytes.saturating_add(values.iter().map(of_each).sum());
        }
        if count <= FIELDS_MAX && bytes <= FIELDS_BYTES_MAX {
            return Ok(());
        }
        let detail = format!(
            "has {count} fields of {bytes} bytes; at most {FIELDS_MAX} and {FIELDS_BYTES_MAX}"
        );
        Err(Problem::new("/headers", "too-large", detail))
    }
}

impl Described {
    /// What a record tells of a request. It has neither body nor header fields, and query values
    /// and the path only as far as the proxy records them.
    pub fn of(record: &Record, proxy: &Proxy) -> Self {
        // A record keeps the beginning of long texts, and a template of the path.
        let cut = |text: &str| text.chars().count() >= TEXT_CHARS || text.contains(LOST);
        let path = &record.path;
        let lost_path = path.contains(['*', LOST]) || path.chars().count() >= PATH_CHARS;
        let values = record.query.iter().map(|field| field.value.as_str());
        let lost_query = record.query.len() >= QUERY_FIELDS
            || values.clone().map(str::len).sum::<usize>() >= QUERY_BYTES
            || values.clone().any(|value| value == REDACTED || cut(value));
        // What was sent to the target was read whole.
        let no_body = record.attempts > 0 && record.request_bytes == 0;
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        for field in &record.query {
            query.append_pair(&field.name, &field.value);
        }
        let query = query.finish();
        Self {
            method: record.method.to_string(),
            path: record.path.clone().into_bytes(),
            query: (!query.is_empty()).then(|| query.into_bytes()),
            headers: HeaderMap::new(),
            body: no_body.then(Bytes::new),
            source: record
                .source_address
                .as_deref()
                .and_then(|text| text.parse().ok()),
            unknown: Unknown {
                headers: true,
                // Before it was recorded: frameworks take an override of POST alone.
                method: record.method_overridden.unwrap_or(record.method == "POST"),
                path: lost_path || proxy.record.path != RecordPath::Full,
                query: lost_query,
            },
        }
    }
}

/// As the gateway does before it judges: rules never see a field that held our key.
fn take_keys_out(headers: &mut HeaderMap) {
    let holds_key = |value: &HeaderValue| {
        let text = value.to_str().unwrap_or_default();
        text.split([' ', '.', ','])
            .any(|word| word.starts_with("rr_"))
    };
    let names: Vec<HeaderName> = headers
        .iter()
        .filter(|(_, value)| holds_key(value))
        .map(|(name, _)| name.clone())
        .collect();
    for name in names {
        headers.remove(name);
    }
}
