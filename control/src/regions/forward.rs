//! Calls that are sent on to home, with the caller's own token, which home judges again: writes
//! that are asked for where versions are not made, and reads of a version that has not come here in
//! time.
//!
//! The answer of a write is home's, once the version that it tells of has arrived here: whoever
//! writes through this control plane and then reads from it finds what was written. A forwarded
//! request is not forwarded again.

use std::net::IpAddr;
use std::time::Duration;

use actix_web::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use actix_web::{HttpRequest, HttpResponse};
use awc::error::{ConnectError, SendRequestError};
use awc::{ClientRequest, ClientResponse};
use bytes::Bytes;
use proto::forwarded::ForwardedHeader;
use proto::id::{OrgId, RequestId};
use serde_json::Value;
use tokio::time::Instant;

use super::replicated::REPLICATED_TO;
use super::{Directory, Peer};
use crate::api::answer::VERSION_HEADER;
use crate::api::call;
use crate::api::error::{Code, Refusal};
use crate::state::Control;

/// Names the region that a request was forwarded by.
pub const FORWARDED_BY: HeaderName = HeaderName::from_static("requestrocket-forwarded-by");
/// Lets a request be sent again without being done twice.
const KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Longest wait for a connection to home.
const CONNECT_MAX: Duration = Duration::from_secs(3);
/// How much longer home may take than a write itself.
const BEYOND_WRITE: Duration = Duration::from_secs(5);
/// How long home is left at a write that it is at still, where it does not say.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// Longest pause between two such questions, whatever home says.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Largest answer that is taken from another region, in bytes.
pub(super) const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Fields of a request that go on.
const REQUEST_FIELDS: [HeaderName; 6] = [
    header::AUTHORIZATION,
    header::CONTENT_TYPE,
    header::ACCEPT,
    header::IF_MATCH,
    header::IF_NONE_MATCH,
    VERSION_HEADER,
];
/// Fields of an answer that come back.
const ANSWER_FIELDS: [HeaderName; 7] = [
    header::CONTENT_TYPE,
    header::ETAG,
    header::LOCATION,
    header::RETRY_AFTER,
    header::WWW_AUTHENTICATE,
    VERSION_HEADER,
    REPLICATED_TO,
];

/// Whether a request was forwarded already.
///
/// # Errors
/// It was, and this region is not home either: home has moved, and not all regions know.
pub fn refuse_loop(directory: &Directory, org: OrgId, headers: &HeaderMap) -> Result<(), Refusal> {
    let Some(by) = headers.get(FORWARDED_BY) else {
        return Ok(());
    };
    let by = proto::checks::printable(by.to_str().unwrap_or_default());
    let (own, home) = (&directory.regions.own, directory.homes.region_of(org));
    let detail = format!(
        "region {by} forwarded this to {own}, which takes {home} for home: home has moved and not \
         all regions have heard of it; nothing was changed; try again"
    );
    Err(Refusal::new(Code::HomeMoved, detail).retry_after_s(1))
}

/// Why home gave no answer.
enum Unanswered {
    /// It cannot be reached.
    Unreached(String),
    /// The request was sent, and what became of it is not known.
    BrokenOff(String),
}

impl Unanswered {
    fn broken_off(error: impl std::fmt::Display) -> Self {
        Self::BrokenOff(error.to_string())
    }

    /// What a write is answered.
    fn of_write(self, home: &Peer) -> Refusal {
        let home = &home.name;
        match self {
            Self::Unreached(error) => {
                let detail = format!(
                    "versions are made in region {home}, whose control plane cannot be reached \
                     ({error}); traffic and reads go on here. Nothing was done; try again"
                );
                Refusal::new(Code::HomeUnavailable, detail).retry_after_s(5)
            }
            Self::BrokenOff(error) => {
                let detail = format!(
                    "region {home} took the request and broke off ({error}); read before trying \
                     again, or send an `Idempotency-Key`"
                );
                Refusal::new(Code::OutcomeUnknown, detail)
            }
        }
    }
}

/// Sends a write on to home and gives its answer.
///
/// # Errors
/// Home cannot be reached, or broke off.
pub async fn write(
    control: &Control,
    directory: &Directory,
    (home, org): (&Peer, OrgId),
    request: &HttpRequest,
    body: Vec<u8>,
) -> Result<HttpResponse, Refusal> {
    let key = match request.headers().get(KEY) {
        Some(given) => given.clone(),
        None => header_value(RequestId::new().text().as_str())?,
    };
    let ask = async |home| again(control, directory, home, (request, Some(&key)), &body).await;
    let (home, sent) = wherever_home_is(home, || directory.home_peer(org), ask).await;
    let (answer, bytes) = sent.map_err(|why| why.of_write(home))?;
    let version = answer.headers().get(VERSION_HEADER).and_then(version);
    if let Some((org, n)) = version {
        // Committed all the same when it is late: a read that presents it waits, or is told so.
        control.see_version(org, n).await;
    }
    Ok(answered(&answer, bytes, &directory.regions.own))
}

/// Why a read is answered by home.
pub enum Lacking {
    /// The version that is presented has not come here.
    Version(OrgId, u64),
    /// What these regions keep of the organisation is not here.
    Parts(OrgId, Vec<String>),
}

impl Lacking {
    /// The organisation that is read.
    fn org(&self) -> OrgId {
        match self {
            Self::Version(org, _) | Self::Parts(org, _) => *org,
        }
    }

    /// What the read is answered where home gives no answer.
    fn refusal(&self, home: &str, why: Unanswered) -> Refusal {
        let (Unanswered::Unreached(error) | Unanswered::BrokenOff(error)) = why;
        match self {
            Self::Version(org, n) => {
                let detail = format!(
                    "version {n} of {org} has not arrived here yet, and region {home}, where it \
                     was made, cannot be asked ({error}); ask again"
                );
                Refusal::new(Code::VersionNotHere, detail).retry_after_s(1)
            }
            Self::Parts(_, regions) => {
                let detail = format!(
                    "what is pinned to {} is kept there and in region {home}, which is home and \
                     cannot be asked ({error}): the configuration is not read in part; traffic \
                     goes on here",
                    regions.join(", ")
                );
                Refusal::new(Code::HomeUnavailable, detail).retry_after_s(5)
            }
        }
    }
}

/// Sends a read on to home and gives its answer.
///
/// # Errors
/// Home cannot be reached, or broke off.
pub async fn read(
    control: &Control,
    directory: &Directory,
    (home, lacking): (&Peer, &Lacking),
    request: &HttpRequest,
) -> Result<HttpResponse, Refusal> {
    let ask = async |home| again(control, directory, home, (request, None), &[]).await;
    let home_now = || directory.home_peer(lacking.org());
    let (home, sent) = wherever_home_is(home, home_now, ask).await;
    let (answer, bytes) = sent.map_err(|why| lacking.refusal(&home.name, why))?;
    Ok(answered(&answer, bytes, &directory.regions.own))
}

/// Home's answer, as that of this region.
fn answered(answer: &ClientResponse, bytes: Bytes, own: &str) -> HttpResponse {
    let mut response = HttpResponse::build(answer.status());
    for name in ANSWER_FIELDS {
        if let Some(value) = answer.headers().get(&name) {
            response.insert_header((name, value.clone()));
        }
    }
    match serde_json::from_slice::<Value>(&bytes) {
        Ok(mut document) if answer.status().is_success() => {
            localise(&mut document, own);
            response.body(document.to_string())
        }
        _ => response.body(bytes),
    }
}

/// What home answers. Where it was not reached, which takes a while, and another region is home by
/// then, that one's answer; nothing was done at the first. Gives whom it is of.
async fn wherever_home_is<'d, H: PartialEq, T>(
    home: &'d H,
    home_now: impl Fn() -> Option<&'d H>,
    ask: impl AsyncFn(&'d H) -> Result<T, Unanswered>,
) -> (&'d H, Result<T, Unanswered>) {
    let answer = ask(home).await;
    match (&answer, home_now()) {
        (Err(Unanswered::Unreached(_)), Some(now)) if now != home => (now, ask(now).await),
        _ => (home, answer),
    }
}

/// Sends a request, and again when it broke off, which tells nothing of it: it reads, or its key
/// makes a second one safe.
async fn again(
    control: &Control,
    directory: &Directory,
    home: &Peer,
    (request, key): (&HttpRequest, Option<&HeaderValue>),
    body: &[u8],
) -> Result<(ClientResponse, Bytes), Unanswered> {
    let until = Instant::now() + control.settings.write_deadline + BEYOND_WRITE;
    let send = async || send(control, directory, home, (request, key), body.to_vec()).await;
    until_told(send, |(answer, bytes)| runs_still(answer, bytes), until).await
}

/// The answer to a request that is sent again when it broke off, and then until home tells what
/// became of the first. `runs_still` says of an answer after how long to ask again.
async fn until_told<T>(
    send: impl AsyncFn() -> Result<T, Unanswered>,
    runs_still: impl Fn(&T) -> Option<Duration>,
    until: Instant,
) -> Result<T, Unanswered> {
    let first = match send().await {
        Err(first @ Unanswered::BrokenOff(_)) => first,
        sent => return sent,
    };
    loop {
        let Ok(answer) = send().await else {
            return Err(first);
        };
        let Some(pause) = runs_still(&answer) else {
            return Ok(answer);
        };
        let next = Instant::now() + pause.min(PAUSE_MAX);
        if next >= until {
            return Err(first);
        }
        tokio::time::sleep_until(next).await;
    }
}

/// Whether home is at a request with this key still, and after how long it wants to be asked again.
fn runs_still(answer: &ClientResponse, bytes: &[u8]) -> Option<Duration> {
    if answer.status() != Code::IdempotencyKeyInUse.status() {
        return None;
    }
    let document: Value = serde_json::from_slice(bytes).ok()?;
    if document["code"] != Code::IdempotencyKeyInUse.as_str() {
        return None;
    }
    let after = answer.headers().get(header::RETRY_AFTER);
    let seconds = after.and_then(|value| value.to_str().ok()?.parse().ok());
    Some(seconds.map_or(ASK_AGAIN, Duration::from_secs))
}

async fn send(
    control: &Control,
    directory: &Directory,
    home: &Peer,
    (request, key): (&HttpRequest, Option<&HeaderValue>),
    body: Vec<u8>,
) -> Result<(ClientResponse, Bytes), Unanswered> {
    let client = client(directory, control.settings.write_deadline + BEYOND_WRITE);
    let path = request.uri().path_and_query();
    let url = format!("{}{}", home.control, path.map_or("/", |path| path.as_str()));
    let mut sending = client.request(request.method().clone(), url);
    for name in REQUEST_FIELDS {
        if let Some(value) = request.headers().get(&name) {
            sending = sending.insert_header((name, value.clone()));
        }
    }
    if let Some(source) = call::source(request, &control.settings.proxies) {
        sending = name_source(sending, source);
    }
    if let Some(key) = key {
        sending = sending.insert_header((KEY, key.clone()));
    }
    let by = (FORWARDED_BY, directory.regions.own.as_str());
    let sent = sending.insert_header(by).send_body(body).await;
    let mut answer = sent.map_err(|error| match error {
        // What closes instead of answering may have done it.
        SendRequestError::Connect(ConnectError::Disconnected) => Unanswered::broken_off(error),
        SendRequestError::Connect(error) => Unanswered::Unreached(error.to_string()),
        error => Unanswered::broken_off(error),
    })?;
    let bytes = answer.body().limit(ANSWER_BYTES_MAX).await;
    let bytes = bytes.map_err(Unanswered::broken_off)?;
    match is_whole(answer.headers(), &bytes) {
        true => Ok((answer, bytes)),
        false => Err(Unanswered::broken_off("its answer is cut")),
    }
}

/// What calls another region, whose answers begin within this time. One for each call: they are
/// few, and a pool would be one of every thread.
pub(super) fn client(directory: &Directory, within: Duration) -> awc::Client {
    let mut connector = awc::Connector::new().timeout(CONNECT_MAX);
    if let Some(trust) = &directory.trust {
        connector = connector.rustls_0_23(trust.clone());
    }
    awc::Client::builder()
        .connector(connector)
        .disable_redirects()
        .timeout(within)
        .finish()
}

/// Tells the other region where the call comes from, in either field: it reads the one of its
/// settings, and believes it where this control plane is among the proxies that it trusts.
pub(super) fn name_source(request: ClientRequest, source: IpAddr) -> ClientRequest {
    let source = source.to_canonical();
    let element = match source {
        IpAddr::V4(_) => format!("for={source}"),
        IpAddr::V6(_) => format!("for=\"[{source}]\""),
    };
    request
        .insert_header((ForwardedHeader::Forwarded.name(), element))
        .insert_header((ForwardedHeader::XForwardedFor.name(), source.to_string()))
}

/// Whether a body is all of what its head announces: the client takes the end of the connection
/// for the end of any body.
pub(super) fn is_whole(headers: &HeaderMap, bytes: &[u8]) -> bool {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    match text(header::CONTENT_LENGTH).map(str::parse::<usize>) {
        Some(length) => length == Ok(bytes.len()),
        // In chunks: a document that is cut is none.
        None => {
            let json = text(header::CONTENT_TYPE).is_some_and(|of| of.contains("json"));
            !json || serde_json::from_slice::<serde::de::IgnoredAny>(bytes).is_ok()
        }
    }
}

fn header_value(text: &str) -> Result<HeaderValue, Refusal> {
    let made = HeaderValue::from_str(text);
    made.map_err(|_| Refusal::new(Code::Internal, "a text that fits no header"))
}

/// The version that an answer tells of: `{org id}={number}`.
pub fn version(value: &HeaderValue) -> Option<(OrgId, u64)> {
    let (org, n) = value.to_str().ok()?.split_once('=')?;
    Some((org.parse().ok()?, n.parse().ok()?))
}

/// Makes the `url` of every proxy in an answer that of this region.
fn localise(document: &mut Value, own: &str) {
    match document {
        Value::Object(object) => {
            let here = object.get("urls").and_then(|urls| urls.get(own)).cloned();
            if let (Some(here), true) = (here, object.contains_key("url")) {
                object.insert("url".into(), here);
            }
            object.values_mut().for_each(|value| localise(value, own));
        }
        Value::Array(values) => values.iter_mut().for_each(|value| localise(value, own)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use serde_json::json;

    #[test]
    fn a_proxys_url_is_that_of_this_region() {
        let proxy = |url: &str| json!({"url": url, "urls": {"us": "U", "eu": "E"}, "name": "x"});
        let mut document = json!({"items": [proxy("U")], "url": "other", "urls": 3});
        localise(&mut document, "eu");
        assert_eq!(
            document,
            json!({"items": [proxy("E")], "url": "other", "urls": 3})
        );
        let mut elsewhere = proxy("U");
        localise(&mut elsewhere, "ap");
        assert_eq!(elsewhere, proxy("U"));
    }

    #[test]
    fn a_body_that_is_cut_is_told_from_a_whole_one() {
        let headers = |fields: &[(HeaderName, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.insert(name.clone(), HeaderValue::from_str(value).unwrap());
            }
            headers
        };
        let length = |value| headers(&[(header::CONTENT_LENGTH, value)]);
        let json = headers(&[(header::CONTENT_TYPE, "application/problem+json")]);
        for (headers, body, whole) in [
            (&length("2"), "{}", true),
            (&length("3"), "{}", false),
            (&length("x"), "{}", false),
            (&length("0"), "", true),
            (&json, "{}", true),
            (&json, "{\"a\": 1", false),
            (&json, "", false),
            (&HeaderMap::new(), "", true),
        ] {
            assert_eq!(
                is_whole(headers, body.as_bytes()),
                whole,
                "{headers:?} {body}"
            );
        }
    }

    /// What `until_told` makes of these answers, and how many were asked for.
    async fn told(
        answers: &[Option<&'static str>],
        within: Duration,
    ) -> (Result<&'static str, String>, usize) {
        let asked = Cell::new(0);
        let send = async || {
            let at = asked.replace(asked.get() + 1);
            let answer = answers.get(at).copied().flatten();
            answer.ok_or_else(|| Unanswered::BrokenOff(format!("connection {at}")))
        };
        let runs_still = |answer: &&str| (*answer == "in use").then_some(Duration::from_millis(1));
        let told = until_told(send, runs_still, Instant::now() + within).await;
        let told = told.map_err(|why| match why {
            Unanswered::Unreached(error) | Unanswered::BrokenOff(error) => error,
        });
        (told, asked.get())
    }

    #[actix_web::test]
    async fn a_write_that_broke_off_is_asked_for_until_home_is_done_with_it() {
        let long = Duration::from_secs(3_600);
        let broken = Err("connection 0".to_owned());
        for (answers, expected, asked) in [
            (&[Some("done")][..], Ok("done"), 1),
            (&[None, Some("done")], Ok("done"), 2),
            (
                &[None, Some("in use"), Some("in use"), Some("done")],
                Ok("done"),
                4,
            ),
            (&[None, Some("in use"), None], broken.clone(), 3),
            (&[None, None], broken.clone(), 2),
            // The caller's own key, with another request of its own.
            (&[Some("in use")], Ok("in use"), 1),
        ] {
            let told = told(answers, long).await;
            assert_eq!(told, (expected, asked), "{answers:?}");
        }
        let over = told(&[None, Some("in use"), Some("done")], Duration::ZERO).await;
        assert_eq!(over, (broken, 2), "its time is over");
    }

    /// Whose answer is taken of these, where `eu` is home when `us` has been asked.
    async fn asked(us: Result<(), Unanswered>) -> (&'static str, bool) {
        let us = Cell::new(Some(us));
        let ask = async |home: &&'static str| match *home {
            "us" => us.take().unwrap(),
            _ => Ok(()),
        };
        let homes = ["us", "eu"];
        let (home, answer) = wherever_home_is(&homes[0], || Some(&homes[1]), ask).await;
        (*home, answer.is_ok())
    }

    #[actix_web::test]
    async fn who_has_become_home_while_another_was_not_reached_is_asked() {
        assert_eq!(
            asked(Err(Unanswered::Unreached("gone".into()))).await,
            ("eu", true)
        );
        // It may have done it.
        assert_eq!(
            asked(Err(Unanswered::broken_off("cut"))).await,
            ("us", false)
        );
        assert_eq!(asked(Ok(())).await, ("us", true));
    }

    #[test]
    fn a_version_is_read_from_its_header() {
        let org = OrgId::from_bits(7);
        let value = HeaderValue::from_str(&format!("{org}=12")).unwrap();
        assert_eq!(version(&value), Some((org, 12)));
        assert_eq!(version(&HeaderValue::from_static("x")), None);
    }
}
