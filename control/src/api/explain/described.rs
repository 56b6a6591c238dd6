//! The request that is explained: described by the caller, or as far as its record tells.

use std::net::IpAddr;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use proto::problem::Problem;
use proto::proxy::{Proxy, RecordPath};
use proto::record::{REDACTED, Record};
use serde::Deserialize;
use serde_json::Value;

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
    /// The request.
    ///
    /// # Errors
    /// Everything in it that no request could hold.
    pub fn described(&self) -> Result<Described, Vec<Problem>> {
        let mut problems = Vec::new();
        if http::Method::from_bytes(self.method.as_bytes()).is_err() {
            problems.push(Problem::new("/method", "method", "is no method of HTTP"));
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

impl Described {
    /// What a record tells of a request. It has neither body nor header fields, and query values
    /// and the path only as far as the proxy records them.
    pub fn of(record: &Record, proxy: &Proxy) -> Self {
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
            body: None,
            source: record
                .source_address
                .as_deref()
                .and_then(|text| text.parse().ok()),
            unknown: Unknown {
                headers: true,
                path: proxy.record.path != RecordPath::Full,
                query: record.query.iter().any(|field| field.value == REDACTED),
            },
        }
    }
}
