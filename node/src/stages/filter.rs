//! Stage 8: the answer on its way back: header hygiene, URLs, cookies, and the response filters
//! of the four scopes in their order.
//!
//! While filters apply nothing passes that they have not seen: what is not JSON becomes 422, an
//! error body is filtered or blanked, what describes the old bytes is dropped. Where the proxy has
//! a schema for answers, what is left is held against it.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Method, StatusCode};
use proto::event_stream::EventFilter;
use proto::filter::{ErrorBody, FilterSet};
use proto::outcome::{Code, EarlyEnd, Extra};
use proto::proxy::{ForeignUrls, OnClientAbort, RewriteUrls};
use proto::validation::BodyValidator;

use crate::actor::{Next, Stage, StageKind};
use crate::credentials::live::Whose;
use crate::credentials::shown::shown_text;
use crate::flow::{Answer, Exchange, Outbound};
use crate::hygiene::fields::{self, ResponseFields, codings};
use crate::hygiene::{cookies, urls};
use crate::limits::SlotToken;
use crate::metrics::Metrics;
use crate::outbound::{self, EventBody};
use crate::reflected;
use crate::refused;
use crate::reply::ReplySender;
use crate::snapshot::CompiledProxy;
use crate::spending;
use crate::stages::prepare::response_filters;
use crate::treatment::{self, Treatment, content_type, is_coded};
use crate::validating::{self, Side};

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
        let validator = proxy.response_validator.as_ref();
        let validator = validator.filter(|_| answer.status.is_success());
        let coded = is_coded(&codings);
        let treated = match (&filters, validator) {
            _ if bodyless => None,
            (Some(_), _) => Some(treatment::filtering(&answer, &proxy, coded)),
            (None, Some(validator)) => {
                let notes = &mut exchange.notes;
                Some(treatment::validation(
                    &answer, validator, &proxy, coded, notes,
                ))
            }
            (None, None) => None,
        };
        // What passes as it came keeps what describes its bytes, its content coding above all.
        let filtered = matches!(treated, Some(Ok(Treatment::Events(_))))
            || (filters.is_some()
                && !matches!(treated, Some(Ok(Treatment::Pass | Treatment::Validate))));
        if let Err(end) = clean_head(exchange, &self.metrics, &proxy, &mut answer, filtered) {
            return end.into();
        }
        let treatment = match treated {
            Some(Ok(treatment)) => treatment,
            Some(Err(end)) => return end.into(),
            None => return self.pass(exchange, &proxy, answer),
        };
        let validator = validator.cloned();
        match treatment {
            Treatment::Empty | Treatment::Pass => self.pass(exchange, &proxy, answer),
            Treatment::Blank => {
                exchange.answer = Some(blanked(answer, exchange));
                Next::Continue
            }
            Treatment::Events(framing) => {
                let filters = filters.unwrap_or_default();
                let events = EventFilter::new(filters, framing, proxy.body_buffer_bytes)
                    .validated(validator);
                let body = std::mem::replace(&mut answer.body, Outbound::Empty);
                answer.body = Outbound::Events(Box::new(EventBody::new(body, events)));
                self.pass(exchange, &proxy, answer)
            }
            Treatment::Filter { .. } | Treatment::Validate => {
                let job = Job {
                    filters,
                    validator,
                    error: matches!(treatment, Treatment::Filter { error: true }),
                    codings,
                    bytes_max: proxy.body_buffer_bytes,
                    cancels: proxy.on_client_abort == OnClientAbort::Cancel,
                    metrics: self.metrics.clone(),
                    proxy,
                };
                treat_body(answer, job)
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
    metrics: &Metrics,
    proxy: &CompiledProxy,
    answer: &mut Answer,
    filtered: bool,
) -> Result<(), EarlyEnd> {
    let mut headers = std::mem::take(&mut answer.headers);
    let announced = headers.remove(header::CONTENT_LENGTH);
    answer.announced_length = announced.filter(|_| !filtered);
    let policy = ResponseFields {
        cookies: proxy.cookies,
        filtered,
    };
    answer.headers = fields::for_caller(headers, policy);
    let prefix = exchange.request.proxy_prefix();
    let credential = exchange.target_credential().cloned();
    // The gateway of another region adds it itself.
    let injected = credential.as_ref().filter(|_| proxy.elsewhere.is_none());
    let injected = injected.and_then(|one| one.secret.path());
    if proxy.cookies {
        // Another region's gateway has mapped them to the proxy's path there.
        let passed_on = proxy.elsewhere.as_ref();
        let base_path = passed_on
            .and_then(|there| there.gateways.get(exchange.notes.endpoint))
            .map_or(&*proxy.target.base.path, |gateway| &gateway.path);
        let base_path = match injected {
            Some(injected) => Cow::Owned(format!("{base_path}{injected}")),
            None => Cow::Borrowed(base_path),
        };
        cookies::map_answer(&mut answer.headers, &base_path, prefix);
    }
    let endpoints = &proxy.target.endpoints;
    let answered = endpoints.get(exchange.notes.endpoint);
    let mapping = urls::Mapping {
        base: answered.map_or(&proxy.target.base, |endpoint| &endpoint.base),
        is_other: &|origin| proxy.target.origins.contains(origin),
        injected,
        prefix,
    };
    // Where they are not rewritten they are still looked at.
    let foreign = match proxy.rewrite_urls {
        RewriteUrls::On => urls::map_answer(&mut answer.headers, &mapping),
        RewriteUrls::Off => urls::foreign(&answer.headers, &mapping),
    };
    if let Some(foreign) = foreign {
        let host = shown_text(&foreign, Whose::Orgs(proxy.org)).into_owned();
        exchange.notes.left_gateway = Some(host);
        if proxy.foreign_urls == ForeignUrls::Refuse {
            let detail = "the target's answer leads to another host, which this proxy refuses \
                          (`foreign_urls: refuse`); make a proxy for that host, or allow it";
            return Err(EarlyEnd::new(Code::RedirectBlocked, detail));
        }
    }
    reflected::scrub_mapped(exchange, metrics, proxy, &mut answer.headers);
    Ok(())
}

struct Job {
    filters: Option<Arc<FilterSet>>,
    validator: Option<Arc<BodyValidator>>,
    error: bool,
    codings: String,
    bytes_max: usize,
    /// Whether a caller that leaves ends it.
    cancels: bool,
    metrics: Metrics,
    proxy: Arc<CompiledProxy>,
}

/// The whole body, unless the caller leaves, where that ends the call, or its place among those in
/// flight is lost.
async fn whole(
    body: Outbound,
    bytes_max: usize,
    reply: Option<&mut ReplySender>,
    slots: &[SlotToken],
) -> Result<Bytes, EarlyEnd> {
    let left = async move {
        match reply {
            Some(reply) => reply.closed().await,
            None => std::future::pending().await,
        }
    };
    match body {
        Outbound::Stream(body) => tokio::select! {
            biased;
            () = left => Err(crate::inbound::gone()),
            read = outbound::read(*body, bytes_max) => read,
            () = spending::any_lost(slots) => Err(refused::place_lost()),
        },
        Outbound::Full(bytes) if bytes.len() > bytes_max => Err(outbound::too_large(bytes_max)),
        Outbound::Full(bytes) => Ok(bytes),
        _ => Ok(Bytes::new()),
    }
}

/// Waits for the whole body, then filters and validates it.
fn treat_body(mut answer: Answer, job: Job) -> Next {
    Next::Wait(Box::new(move |mut exchange| {
        Box::pin(async move {
            let body = std::mem::replace(&mut answer.body, Outbound::Empty);
            let reply = exchange.reply.as_mut().filter(|_| job.cancels);
            let read = whole(body, job.bytes_max, reply, &exchange.slots).await;
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
    let Some(filters) = &job.filters else {
        answer.body = Outbound::Full(coded.clone());
        let Some(validator) = job.validator.as_deref().filter(|_| !coded.is_empty()) else {
            return Ok(answer);
        };
        let notes = &mut exchange.notes;
        return match decoded {
            Ok(body) => validating::hold(validator, Side::Response, &body, notes),
            Err(error) => {
                let why = format!("and this one cannot be decoded: {error}");
                validating::without(validator, Side::Response, &why, notes)
            }
        }
        .map(|()| answer);
    };
    if job.error {
        let outcome = match &decoded {
            Ok(body) => filters.apply_error(body, content_type(&answer.headers)),
            Err(_) => ErrorBody::Blank,
        };
        return Ok(match outcome {
            ErrorBody::Filtered(applied) => {
                answer.body = Outbound::Full(exchange.filtered(applied, StageKind::Filter));
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
    let applied = filters
        .apply(&body)
        .map_err(|error| not_json(error.to_string()))?;
    let body = exchange.filtered(applied, StageKind::Filter);
    if let Some(validator) = &job.validator {
        validating::hold(validator, Side::Response, &body, &mut exchange.notes)?;
    }
    answer.body = Outbound::Full(body);
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
