//! Stage 8: the answer on its way back: header hygiene, URLs, cookies, and the response filters
//! of the four scopes in their order.
//!
//! While filters apply nothing passes that they have not seen: what is not JSON becomes 422, an
//! error body is filtered or blanked, what describes the old bytes is dropped.

use std::future::poll_fn;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderValue};
use http::{HeaderMap, Method, StatusCode};
use proto::filter::{ErrorBody, FilterSet, Kind};
use proto::outcome::{Code, EarlyEnd};
use proto::proxy::{ErrorBodies, ForeignUrls, RewriteUrls};
use tracing::Span;

use crate::actor::{Next, Stage, StageKind};
use crate::flow::{Answer, Exchange, Outbound};
use crate::hygiene::fields::{self, ResponseFields};
use crate::hygiene::{cookies, urls};
use crate::inbound;
use crate::snapshot::CompiledProxy;
use crate::stages::prepare::response_filters;
use crate::upstream::{AnswerBody, AnswerError};

/// The stage.
pub struct Filter;

impl Stage for Filter {
    const KIND: StageKind = StageKind::Filter;

    fn span(parent: &Span) -> Span {
        tracing::info_span!(parent: parent, "filter")
    }

    fn decide(&mut self, exchange: &mut Exchange) -> Next {
        let (Some(proxy), Some(mut answer)) = (exchange.proxy.clone(), exchange.answer.take())
        else {
            return EarlyEnd::new(Code::InternalError, "filter met no answer").into();
        };
        let filters = response_filters(exchange, &proxy);
        let codings = codings(&answer.headers);
        if let Err(end) = clean_head(exchange, &proxy, &mut answer, filters.is_some()) {
            return end.into();
        }
        let bodyless = exchange.request.method == Method::HEAD
            || matches!(
                answer.status,
                StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
            );
        let Some(filters) = filters.filter(|_| !bodyless) else {
            exchange.answer = Some(answer);
            return Next::Continue;
        };
        let treatment = match treatment(&answer, &proxy) {
            Ok(treatment) => treatment,
            Err(end) => return end.into(),
        };
        match treatment {
            Treatment::Pass => {
                exchange.answer = Some(answer);
                Next::Continue
            }
            Treatment::Blank => {
                exchange.answer = Some(blanked(answer, exchange));
                Next::Continue
            }
            Treatment::Filter { error } => {
                let job = Job {
                    filters,
                    error,
                    codings,
                    bytes_max: proxy.body_buffer_bytes,
                };
                filter_body(answer, job)
            }
        }
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
    if proxy.rewrite_urls == RewriteUrls::On {
        let mapping = urls::Mapping {
            base: &proxy.target.base,
            prefix,
        };
        let foreign = urls::map_answer(&mut answer.headers, &mapping);
        if foreign.is_some() && proxy.foreign_urls == ForeignUrls::Refuse {
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
    /// Replaced by a problem document.
    Blank,
    /// Read whole and filtered.
    Filter {
        /// Whether it is an error body.
        error: bool,
    },
}

fn treatment(answer: &Answer, proxy: &CompiledProxy) -> Result<Treatment, EarlyEnd> {
    if !answer.status.is_success() {
        return Ok(match proxy.error_bodies {
            ErrorBodies::Pass => Treatment::Pass,
            ErrorBodies::Blank => Treatment::Blank,
            ErrorBodies::Filter => Treatment::Filter { error: true },
        });
    }
    match proto::filter::applies_to(content_type(&answer.headers)) {
        Kind::Json => Ok(Treatment::Filter { error: false }),
        _ => Err(EarlyEnd::new(
            Code::FilterNotJson,
            "filters apply to this proxy and the target's answer is not JSON \
             (`application/json` or `+json`); it is withheld so that nothing leaks",
        )
        .with(proto::outcome::Extra::UpstreamStatus(
            answer.status.as_u16(),
        ))),
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

struct Job {
    filters: Arc<FilterSet>,
    error: bool,
    codings: String,
    bytes_max: usize,
}

/// Waits for the whole body, then filters it.
fn filter_body(mut answer: Answer, job: Job) -> Next {
    Next::Wait(Box::new(move |mut exchange| {
        Box::pin(async move {
            let body = std::mem::replace(&mut answer.body, Outbound::Empty);
            let read = match (body, exchange.reply.as_mut()) {
                (Outbound::Stream(body), Some(reply)) => tokio::select! {
                    biased;
                    () = reply.closed() => Err(inbound::gone()),
                    read = read(*body, job.bytes_max) => read,
                },
                (Outbound::Full(bytes), _) => Ok(bytes),
                (_, _) => Ok(Bytes::new()),
            };
            let filtered = read.and_then(|bytes| apply(answer, &bytes, &job, &mut exchange));
            let end = match filtered {
                Ok(answer) => {
                    exchange.answer = Some(answer);
                    None
                }
                Err(end) => Some(Box::new(end)),
            };
            (exchange, end)
        })
    }))
}

async fn read(mut body: AnswerBody, bytes_max: usize) -> Result<Bytes, EarlyEnd> {
    let too_large = || {
        EarlyEnd::new(
            Code::ResponseTooLarge,
            format!(
                "the answer is larger than {bytes_max} bytes (`body_buffer_bytes` of the proxy) \
                 and filters need it whole; raise the limit or ask for less"
            ),
        )
    };
    if body
        .remaining()
        .is_some_and(|length| length > bytes_max as u64)
    {
        return Err(too_large());
    }
    let mut whole = BytesMut::new();
    while let Some(piece) = poll_fn(|cx| body.poll_piece(cx)).await {
        whole.extend_from_slice(&piece.map_err(|error| broke(&error))?);
        if whole.len() > bytes_max {
            return Err(too_large());
        }
    }
    Ok(whole.freeze())
}

fn broke(error: &AnswerError) -> EarlyEnd {
    match error {
        AnswerError::IdleTimeout | AnswerError::TotalTimeout => EarlyEnd::new(
            Code::UpstreamTimeout,
            "the target's answer stalled before its end (`timeouts.idle_ms`)",
        ),
        AnswerError::BodyFromCaller(error) => inbound::broken(*error),
        AnswerError::Broken(_) => EarlyEnd::new(
            Code::UpstreamUnreachable,
            "the target's answer broke off before its end; the request may have been carried out",
        ),
    }
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
        .with(proto::outcome::Extra::UpstreamStatus(
            answer.status.as_u16(),
        ))
    };
    let decoded = proto::body_view::decode(coded, &job.codings, job.bytes_max);
    if job.error {
        let outcome = match &decoded {
            Ok(body) => job.filters.apply_error(body, content_type(&answer.headers)),
            Err(_) => ErrorBody::Blank,
        };
        return Ok(match outcome {
            ErrorBody::Filtered(body) => {
                answer.body = Outbound::Full(body.into());
                answer
            }
            ErrorBody::Pass => {
                answer.body = Outbound::Full(coded.clone());
                answer
            }
            ErrorBody::Blank => blanked(answer, exchange),
        });
    }
    let body = decoded.map_err(|error| not_json(error.to_string()))?;
    let applied = job
        .filters
        .apply(&body)
        .map_err(|error| not_json(error.to_string()))?;
    exchange.notes.filters_changed.extend(ids(&applied.changed));
    answer.body = Outbound::Full(applied.body.into());
    Ok(answer)
}

/// The ids of filters, for the record.
fn ids(changed: &[Arc<str>]) -> impl Iterator<Item = proto::id::FilterId> {
    changed.iter().filter_map(|id| id.parse().ok())
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
