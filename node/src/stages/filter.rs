//! Stage 8: the answer on its way back: header hygiene, URLs, cookies, and the response filters
//! of the four scopes in their order.
//!
//! While filters apply nothing passes that they have not seen: what is not JSON becomes 422, an
//! error body is filtered or blanked, what describes the old bytes is dropped.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{HeaderMap, Method, StatusCode};
use proto::event_stream::{EventFilter, Framing};
use proto::filter::{ErrorBody, FilterSet, Kind};
use proto::outcome::{Code, EarlyEnd, Extra};
use proto::proxy::{ErrorBodies, ForeignUrls, OnClientAbort, RewriteUrls};

use crate::actor::{Next, Stage, StageKind};
use crate::flow::{Answer, Exchange, Outbound};
use crate::hygiene::fields::{self, ResponseFields};
use crate::hygiene::{cookies, urls};
use crate::metrics::Metrics;
use crate::outbound::{self, EventBody};
use crate::reflected;
use crate::snapshot::CompiledProxy;
use crate::stages::prepare::response_filters;

/// The stage.
pub struct Filter {
    /// Counts answers that held the injected secret.
    pub metrics: Metrics,
}

impl Stage for Filter {
    const KIND: StageKind = StageKind::Filter;

    fn decide(&mut self, exchange: &mut Exchange) -> Next {
        let (Some(proxy), Some(mut answer)) = (exchange.proxy.clone(), exchange.answer.take())
        else {
            return EarlyEnd::new(Code::InternalError, "filter met no answer").into();
        };
        let filters = response_filters(exchange, &proxy);
        let codings = codings(&answer.headers);
        let bodyless = exchange.request.method == Method::HEAD
            || matches!(
                answer.status,
                StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
            );
        let treated = filters
            .as_ref()
            .filter(|_| !bodyless)
            .map(|_| treatment(&answer, &proxy, is_coded(&codings)));
        // What passes as it came keeps what describes its bytes, its content coding above all.
        let filtered = filters.is_some() && !matches!(treated, Some(Ok(Treatment::Pass)));
        if let Err(end) = clean_head(exchange, &proxy, &mut answer, filtered) {
            return end.into();
        }
        let (filters, treatment) = match (filters, treated) {
            (Some(filters), Some(Ok(treatment))) => (filters, treatment),
            (_, Some(Err(end))) => return end.into(),
            _ => return self.pass(exchange, &proxy, answer),
        };
        match treatment {
            Treatment::Empty | Treatment::Pass => self.pass(exchange, &proxy, answer),
            Treatment::Blank => {
                exchange.answer = Some(blanked(answer, exchange));
                Next::Continue
            }
            Treatment::Events(framing) => {
                let events = EventFilter::new(filters, framing, proxy.body_buffer_bytes);
                let body = std::mem::replace(&mut answer.body, Outbound::Empty);
                answer.body = Outbound::Events(Box::new(EventBody::new(body, events)));
                self.pass(exchange, &proxy, answer)
            }
            Treatment::Filter { error } => {
                let job = Job {
                    filters,
                    error,
                    codings,
                    bytes_max: proxy.body_buffer_bytes,
                    cancels: proxy.on_client_abort == OnClientAbort::Cancel,
                    metrics: self.metrics.clone(),
                    proxy,
                };
                filter_body(answer, job)
            }
        }
    }
}

impl Filter {
    /// The answer as it is, but for a secret that it quotes.
    fn pass(&self, exchange: &mut Exchange, proxy: &CompiledProxy, mut answer: Answer) -> Next {
        reflected::scrub_body(exchange, &self.metrics, proxy, &mut answer);
        exchange.answer = Some(answer);
        Next::Continue
    }
}

/// Removes what must not travel, and maps URLs and cookies.
fn clean_head(
    exchange: &mut Exchange,
    proxy: &CompiledProxy,
    answer: &mut Answer,
    filtered: bool,
) -> Result<(), EarlyEnd> {
    let headers = std::mem::take(&mut answer.headers);
    answer.announced_length = headers
        .get(header::CONTENT_LENGTH)
        .filter(|_| !filtered)
        .cloned();
    let policy = ResponseFields {
        cookies: proxy.cookies,
        filtered,
    };
    answer.headers = fields::for_caller(headers, policy);
    let prefix = exchange.request.proxy_prefix();
    if proxy.cookies {
        cookies::map_answer(&mut answer.headers, &proxy.target.base.path, prefix);
    }
    let endpoints = &proxy.target.endpoints;
    let answered = endpoints.get(exchange.notes.endpoint);
    let mapping = urls::Mapping {
        base: answered.map_or(&proxy.target.base, |endpoint| &endpoint.base),
        is_other: &|origin| endpoints.iter().any(|other| other.base.origin == *origin),
        prefix,
    };
    // Where they are not rewritten they are still looked at.
    let foreign = match proxy.rewrite_urls {
        RewriteUrls::On => urls::map_answer(&mut answer.headers, &mapping),
        RewriteUrls::Off => urls::foreign(&answer.headers, &mapping),
    };
    if foreign.is_some() {
        if proxy.foreign_urls == ForeignUrls::Refuse {
            exchange.notes.left_gateway = foreign;
            let detail = "the target's answer leads to another host, which this proxy refuses \
                          (`foreign_urls: refuse`); make a proxy for that host, or allow it";
            return Err(EarlyEnd::new(Code::RedirectBlocked, detail));
        }
        exchange.notes.left_gateway = foreign;
    }
    Ok(())
}

/// What happens to the body of an answer while filters apply.
enum Treatment {
    /// Untouched, as the proxy says for error bodies.
    Pass,
    /// There is none, so nothing can leak, and what the request did is not hidden by a 422.
    Empty,
    /// Replaced by a problem document.
    Blank,
    /// Read whole and filtered.
    Filter {
        /// Whether it is an error body.
        error: bool,
    },
    /// Filtered one document after another while it streams.
    Events(Framing),
}

fn treatment(answer: &Answer, proxy: &CompiledProxy, coded: bool) -> Result<Treatment, EarlyEnd> {
    if !answer.status.is_success() {
        return Ok(match proxy.error_bodies {
            ErrorBodies::Pass => Treatment::Pass,
            ErrorBodies::Blank => Treatment::Blank,
            ErrorBodies::Filter => Treatment::Filter { error: true },
        });
    }
    if is_empty(answer) {
        return Ok(Treatment::Empty);
    }
    let withheld = |why: &str| {
        let detail = format!(
            "filters apply to this proxy and the target's answer is {why}; it is withheld so that \
             nothing leaks"
        );
        let status = Extra::UpstreamStatus(answer.status.as_u16());
        EarlyEnd::new(Code::FilterNotJson, detail).with(status)
    };
    // Paths are from the root of the whole; a part may even be JSON with a root of its own.
    if answer.status == StatusCode::PARTIAL_CONTENT {
        return Err(withheld("a part, although none was asked for"));
    }
    match proto::filter::applies_to(content_type(&answer.headers)) {
        Kind::Json => Ok(Treatment::Filter { error: false }),
        Kind::EventStream | Kind::Ndjson if coded => {
            Err(withheld("a stream of events in a content coding"))
        }
        Kind::EventStream => Ok(Treatment::Events(Framing::EventStream)),
        Kind::Ndjson => Ok(Treatment::Events(Framing::Ndjson)),
        Kind::Other => Err(withheld(
            "not JSON (`application/json`, `+json`, NDJSON or a stream of JSON events)",
        )),
    }
}

/// Whether the answer is known to have no body.
fn is_empty(answer: &Answer) -> bool {
    match &answer.body {
        Outbound::Empty => true,
        Outbound::Full(bytes) => bytes.is_empty(),
        Outbound::Stream(body) => body.remaining() == Some(0),
        Outbound::Events(_) | Outbound::Scrubbed(_) => false,
    }
}

fn content_type(headers: &HeaderMap) -> &str {
    headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
}

/// The content codings of an answer, as listed.
fn codings(headers: &HeaderMap) -> String {
    let values: Vec<&str> = headers
        .get_all(header::CONTENT_ENCODING)
        .iter()
        .map(|value| value.to_str().unwrap_or("unreadable"))
        .collect();
    values.join(",")
}

/// Whether a body must be decoded before it can be read.
fn is_coded(codings: &str) -> bool {
    let mut codings = codings.split(',').map(str::trim);
    codings.any(|coding| !coding.is_empty() && !coding.eq_ignore_ascii_case("identity"))
}

struct Job {
    filters: Arc<FilterSet>,
    error: bool,
    codings: String,
    bytes_max: usize,
    /// Whether a caller that leaves ends it.
    cancels: bool,
    metrics: Metrics,
    proxy: Arc<CompiledProxy>,
}

/// Waits for the whole body, then filters it.
fn filter_body(mut answer: Answer, job: Job) -> Next {
    Next::Wait(Box::new(move |mut exchange| {
        Box::pin(async move {
            let body = std::mem::replace(&mut answer.body, Outbound::Empty);
            let reply = exchange.reply.as_mut().filter(|_| job.cancels);
            let read = match (body, reply) {
                (Outbound::Stream(body), Some(reply)) => tokio::select! {
                    biased;
                    () = reply.closed() => Err(crate::inbound::gone()),
                    read = outbound::read(*body, job.bytes_max) => read,
                },
                (Outbound::Stream(body), None) => outbound::read(*body, job.bytes_max).await,
                (Outbound::Full(bytes), _) if bytes.len() > job.bytes_max => {
                    Err(outbound::too_large(job.bytes_max))
                }
                (Outbound::Full(bytes), _) => Ok(bytes),
                (_, _) => Ok(Bytes::new()),
            };
            let filtered = read.and_then(|bytes| {
                exchange.notes.upstream_bytes = bytes.len() as u64;
                apply(answer, &bytes, &job, &mut exchange)
            });
            let end = match filtered {
                Ok(mut answer) => {
                    let Job { metrics, proxy, .. } = &job;
                    reflected::scrub_body(&mut exchange, metrics, proxy, &mut answer);
                    exchange.answer = Some(answer);
                    None
                }
                Err(end) => Some(Box::new(end)),
            };
            (exchange, end)
        })
    }))
}

fn apply(
    mut answer: Answer,
    coded: &Bytes,
    job: &Job,
    exchange: &mut Exchange,
) -> Result<Answer, EarlyEnd> {
    let not_json = |reason: String| {
        EarlyEnd::new(
            Code::FilterNotJson,
            format!("filters apply to this proxy and the target's answer cannot be read: {reason}"),
        )
        .with(Extra::UpstreamStatus(answer.status.as_u16()))
    };
    let decoded = proto::body_view::decode(coded, &job.codings, job.bytes_max);
    if job.error {
        let outcome = match &decoded {
            Ok(body) => job.filters.apply_error(body, content_type(&answer.headers)),
            Err(_) => ErrorBody::Blank,
        };
        return Ok(match outcome {
            ErrorBody::Filtered(applied) => {
                answer.body = Outbound::Full(exchange.notes.filtered(applied));
                answer
            }
            // As it was decoded: the field that named its coding is gone.
            ErrorBody::Pass => {
                answer.body = Outbound::Full(
                    decoded
                        .map(|body| body.into_owned().into())
                        .unwrap_or_default(),
                );
                answer
            }
            ErrorBody::Blank => blanked(answer, exchange),
        });
    }
    let body = decoded.map_err(|error| not_json(error.to_string()))?;
    if body.is_empty() {
        return Ok(answer);
    }
    let applied = job
        .filters
        .apply(&body)
        .map_err(|error| not_json(error.to_string()))?;
    answer.body = Outbound::Full(exchange.notes.filtered(applied));
    Ok(answer)
}

/// The answer with its body replaced by a problem document that keeps the target's status.
fn blanked(mut answer: Answer, exchange: &Exchange) -> Answer {
    let end = EarlyEnd::new(
        Code::AccessGranted,
        "the target answered with an error; its body is withheld because filters apply to this \
         proxy (`error_bodies`)",
    )
    .with_status(answer.status.as_u16());
    let mut document = end.document(exchange.id.text().as_str());
    document["title"] = "Error body withheld".into();
    document["code"] = "error-body-withheld".into();
    document["type"] = format!("{}error-body-withheld", proto::outcome::ERROR_PAGES).into();
    answer.headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/problem+json"),
    );
    answer.body = Outbound::Full(document.to_string().into());
    answer
}
