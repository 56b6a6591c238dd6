//! What is judged: borrowed facts of one request.

use std::borrow::Cow;
use std::net::IpAddr;

use http::{HeaderMap, HeaderName};

use super::parts::MethodName;
use crate::body_view::{BodyView, Unreadable};
use crate::field_name::plain;
use crate::path::{PathOptions, PathReading, PathRefused};
use crate::query;

/// Headers by which some servers route instead of the path.
const PATH_OVERRIDES: [&str; 4] = [
    "x-original-url",
    "x-rewrite-url",
    "x-original-uri",
    "x-http-destination-url",
];

/// The paths that a target could route by which gets such headers: those that `passes` lets
/// through.
///
/// # Errors
/// The header whose path has no two readings, and why.
pub fn path_overrides<'h>(
    headers: &'h HeaderMap,
    passes: impl Fn(&HeaderName) -> bool,
    options: PathOptions,
) -> Result<Vec<PathReading<'h>>, (HeaderName, PathRefused)> {
    let overrides = |name: &HeaderName| PATH_OVERRIDES.contains(&&*plain(name.as_str()));
    let mut paths = Vec::new();
    for (name, value) in headers.iter().filter(|(name, _)| passes(name)) {
        if !overrides(name) {
            continue;
        }
        let bytes = value.as_bytes();
        let end = bytes.iter().position(|byte| matches!(byte, b'?' | b'#'));
        let path = &bytes[..end.unwrap_or(bytes.len())];
        let reading = PathReading::parse(path, options);
        paths.push(reading.map_err(|refused| (name.clone(), refused))?);
    }
    Ok(paths)
}

/// What is known of the body when rules are evaluated.
#[derive(Clone, Copy, Debug)]
pub enum BodyFacts<'a> {
    /// Nothing yet; evaluation asks for it when it could change the outcome.
    NotRead,
    /// It was read, in every reading that it has. An absent or empty body is an empty view.
    View(&'a BodyView),
    /// It cannot be read exactly one way.
    Unreadable(Unreadable),
}

impl<'a> BodyFacts<'a> {
    /// What is known of a body: nothing yet, or what came of reading it.
    pub fn of(read: Option<&'a Result<BodyView, Unreadable>>) -> Self {
        match read {
            None => Self::NotRead,
            Some(Ok(view)) => Self::View(view),
            Some(Err(reason)) => Self::Unreadable(*reason),
        }
    }
}

/// What a form body may say about the method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FormOverride {
    /// Nothing beyond [`Facts::methods`].
    Known,
    /// It was not read.
    NotRead,
    /// It cannot be read.
    Unreadable(Unreadable),
}

/// The facts of one request.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    pub(super) method: MethodName<'a>,
    /// What overrides say; empty for nearly every request.
    pub(super) overrides: Vec<MethodName<'a>>,
    pub(super) form_override: FormOverride,
    pub(super) path: &'a PathReading<'a>,
    pub(super) path_overrides: &'a [PathReading<'a>],
    pub(super) query: &'a [u8],
    pub(super) headers: &'a HeaderMap,
    pub(super) source: IpAddr,
    pub(super) body: BodyFacts<'a>,
}

impl<'a> Facts<'a> {
    /// The facts of a request whose body was not read.
    ///
    /// `query` is what follows the `?`, without it; `headers` are the caller's, before any is
    /// dropped; `source` is the caller's address, an IPv4-mapped one is taken as IPv4. Overrides of
    /// the method are collected here, from `X-HTTP-Method-Override`, `X-HTTP-Method`,
    /// `X-Method-Override` and the query's `_method`.
    pub fn new(
        method: &'a [u8],
        path: &'a PathReading<'a>,
        query: &'a [u8],
        headers: &'a HeaderMap,
        source: IpAddr,
    ) -> Self {
        let method = MethodName::new(Cow::Borrowed(method));
        let mut overrides = Vec::new();
        for (name, value) in headers {
            if overrides_method(name.as_str()) {
                // Some take the first of a list, some the last.
                let names = value.as_bytes().split(|byte| *byte == b',');
                overrides.extend(names.map(|name| MethodName::new(Cow::Borrowed(name))));
            }
        }
        for (name, value) in query::pairs(query) {
            if *name == *b"_method" {
                overrides.push(MethodName::new(value));
            }
        }
        let mut facts = Self {
            method,
            overrides,
            form_override: FormOverride::Known,
            path,
            path_overrides: &[],
            query,
            headers,
            source: source.to_canonical(),
            body: BodyFacts::NotRead,
        };
        if facts.is_form_post() {
            facts.form_override = FormOverride::NotRead;
        }
        facts
    }

    /// Whether a header or the query says another method than the request line; `None` where that
    /// is for the body of a form to say. The same as facts would hold, without making them.
    pub fn method_overridden(method: &str, query: &[u8], headers: &HeaderMap) -> Option<bool> {
        let by_header = headers.keys().any(|name| overrides_method(name.as_str()));
        if by_header || query::contains(query, b"_method") {
            return Some(true);
        }
        let method = MethodName::new(Cow::Borrowed(method.as_bytes()));
        (!is_form_post(&method, headers)).then_some(false)
    }

    /// The same facts with what reading the body gave.
    pub fn with_body(mut self, body: BodyFacts<'a>) -> Self {
        self.body = body;
        match body {
            BodyFacts::NotRead => {}
            BodyFacts::View(view) => {
                self.form_override = FormOverride::Known;
                let fields = view.form_methods().map(str::as_bytes);
                self.overrides
                    .extend(fields.map(|field| MethodName::new(Cow::Borrowed(field))));
            }
            BodyFacts::Unreadable(reason) => {
                if self.is_form_post() {
                    self.form_override = FormOverride::Unreadable(reason);
                }
            }
        }
        self
    }

    /// The same facts with further paths by which the upstream may route.
    ///
    /// These are the values of `X-Original-URL` and kin, and only where the target's
    /// `pass_headers` lets them through: elsewhere they are dropped, and proxies in front of us set
    /// them on harmless requests.
    pub fn with_path_overrides(mut self, paths: &'a [PathReading<'a>]) -> Self {
        self.path_overrides = paths;
        self
    }

    /// The method and what overrides it.
    pub(super) fn methods(&self) -> impl Iterator<Item = &MethodName<'a>> {
        std::iter::once(&self.method).chain(&self.overrides)
    }

    /// The one of [`Facts::path_texts`] where there is no other.
    pub(super) fn only_path_text(&self) -> Option<&str> {
        match self.path_overrides {
            [] => self.path.only(),
            _ => None,
        }
    }

    /// Every reading of every path.
    pub(super) fn path_texts(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.path)
            .chain(self.path_overrides)
            .flat_map(PathReading::readings)
    }

    fn is_form_post(&self) -> bool {
        is_form_post(&self.method, self.headers)
    }
}

/// Whether the body is a form by which frameworks let `_method` override a POST.
///
/// Only `application/x-www-form-urlencoded` makes rules wait for the body: a rule on methods must
/// not buffer every multipart upload. A multipart body that is read for another reason is looked at
/// as well.
fn is_form_post(method: &MethodName<'_>, headers: &HeaderMap) -> bool {
    const FORM: &[u8] = b"application/x-www-form-urlencoded";
    let is_form = |value: &http::HeaderValue| {
        let essence = value
            .as_bytes()
            .split(|byte| matches!(byte, b';' | b','))
            .next();
        essence.is_some_and(|essence| essence.trim_ascii().eq_ignore_ascii_case(FORM))
    };
    method.is(b"POST") && {
        headers
            .get_all(http::header::CONTENT_TYPE)
            .iter()
            .any(is_form)
    }
}

/// Whether frameworks take the method from this header (names of [`HeaderMap`] are lower case).
fn overrides_method(name: &str) -> bool {
    if !name.starts_with('x') {
        return false;
    }
    let plain = plain(name);
    matches!(
        &*plain,
        "x-http-method-override" | "x-http-method" | "x-method-override" | "x-original-method"
    )
}
