//! Stage 3: the rules of the four scopes. Every scope must allow.
//!
//! The body is read only when a rule with a body part could still change the outcome.

use bytes::Bytes;
use http::{HeaderMap, header};
use proto::body_view::{BodyLimits, BodyView, Unreadable};
use proto::outcome::{Code, EarlyEnd, Extra};
use proto::path::PathReading;
use proto::record::{Denial as RecordDenial, RecordScope};
use proto::rule::{self, BodyFacts, Facts, Scope, ScopedRules, ShadowMatch, Verdict};

use crate::actor::{Next, Stage, StageKind};
use crate::flow::{Exchange, Inbound};
use crate::inbound::{self, Buffered};
use crate::snapshot::CompiledProxy;

/// Rules that a record names of one scope, and in shadow mode.
const RULES_RECORDED_MAX: usize = 100;

/// The stage.
pub struct Authorize;

impl Stage for Authorize {
    const KIND: StageKind = StageKind::Authorize;

    fn decide(&mut self, exchange: &mut Exchange) -> Next {
        let Some(proxy) = exchange.proxy.clone() else {
            return EarlyEnd::new(Code::InternalError, "authorize met no proxy").into();
        };
        match judged(exchange, &proxy, &Read::Nothing) {
            Outcome::Allowed => Next::Continue,
            Outcome::Ended(end) => Next::End(end),
            Outcome::NeedsBody => match &exchange.body {
                Inbound::Stream { .. } => {
                    inbound::buffer(proxy.body_buffer_bytes, move |exchange, buffered| {
                        let read = match buffered {
                            Buffered::Whole(bytes) => Read::Whole(bytes),
                            Buffered::TooLarge => Read::TooLarge,
                        };
                        after_reading(exchange, &proxy, &read)
                    })
                }
                _ => match after_reading(exchange, &proxy, &Read::Whole(Bytes::new())) {
                    None => Next::Continue,
                    Some(end) => end.into(),
                },
            },
        }
    }
}

enum Read {
    Nothing,
    Whole(Bytes),
    TooLarge,
}

enum Outcome {
    Allowed,
    Ended(Box<EarlyEnd>),
    NeedsBody,
}

fn after_reading(exchange: &mut Exchange, proxy: &CompiledProxy, read: &Read) -> Option<EarlyEnd> {
    match judged(exchange, proxy, read) {
        Outcome::Allowed => None,
        Outcome::Ended(end) => Some(*end),
        Outcome::NeedsBody => Some(EarlyEnd::new(
            Code::InternalError,
            "rules asked for a body that was given",
        )),
    }
}

/// Judges the exchange with what is known of its body, and notes what matched.
fn judged(exchange: &mut Exchange, proxy: &CompiledProxy, read: &Read) -> Outcome {
    let ended = |end: EarlyEnd| Outcome::Ended(Box::new(end));
    let request = &exchange.request;
    let rest = request.rest();
    let path = match PathReading::parse(&rest, proxy.target.path) {
        Ok(path) => path,
        Err(refused) => return ended(malformed(refused.to_string())),
    };
    let overrides = match path_overrides(&request.headers, proxy) {
        Ok(overrides) => overrides,
        Err(end) => return ended(end),
    };
    let query = request.query.clone().unwrap_or_default();
    let view = match read {
        Read::Nothing => None,
        Read::TooLarge => Some(Err(Unreadable::TooLarge)),
        Read::Whole(bytes) => Some(view(&request.headers, bytes, proxy.body_buffer_bytes)),
    };
    let method = request.method.as_str().as_bytes();
    let facts = Facts::new(method, &path, &query, &request.headers, request.peer.ip())
        .with_path_overrides(&overrides)
        .with_body(match &view {
            None => BodyFacts::NotRead,
            Some(Ok(view)) => BodyFacts::View(view),
            Some(Err(reason)) => BodyFacts::Unreadable(*reason),
        });
    let Some(caller) = &exchange.caller else {
        return ended(EarlyEnd::new(
            Code::InternalError,
            "authorize met no caller",
        ));
    };
    let verdict = rule::judge(&scopes(proxy, caller.index), &facts);
    let (denials, shadow) = match verdict {
        Verdict::NeedsBody => return Outcome::NeedsBody,
        Verdict::Allowed { shadow } => (Vec::new(), shadow),
        Verdict::Denied { denials, shadow } => (denials, shadow),
    };
    let shadow = shadow_ids(&shadow);
    exchange.notes.shadow_rules = shadow;
    if denials.is_empty() {
        return Outcome::Allowed;
    }
    exchange.notes.denials = denials.iter().map(for_record).collect();
    ended(denied(denials))
}

fn scopes(proxy: &CompiledProxy, caller: usize) -> Vec<ScopedRules<'_>> {
    let mut scopes = Vec::with_capacity(4);
    if let Some(credential) = proxy.credentials.get(caller) {
        scopes.push(ScopedRules {
            scope: Scope::ProxyCredential,
            scope_id: &credential.id_text,
            rules: &credential.rules,
        });
    }
    if let Some(credential) = &proxy.target_credential {
        scopes.push(ScopedRules {
            scope: Scope::TargetCredential,
            scope_id: &credential.id_text,
            rules: &credential.rules,
        });
    }
    scopes.push(ScopedRules {
        scope: Scope::Proxy,
        scope_id: &proxy.id_text,
        rules: &proxy.rules,
    });
    scopes.push(ScopedRules {
        scope: Scope::Target,
        scope_id: &proxy.target.id_text,
        rules: &proxy.target.rules,
    });
    scopes
}

/// The paths that a target which gets such headers could route by.
fn path_overrides<'h>(
    headers: &'h HeaderMap,
    proxy: &CompiledProxy,
) -> Result<Vec<PathReading<'h>>, EarlyEnd> {
    let pass = &proxy.request_fields.pass;
    rule::path_overrides(headers, |name| pass.contains(name), proxy.target.path)
        .map_err(|(name, refused)| malformed(format!("{name}: {refused}")))
}

fn malformed(detail: String) -> EarlyEnd {
    EarlyEnd::new(Code::MalformedRequest, detail)
}

fn view(headers: &HeaderMap, bytes: &Bytes, bytes_max: usize) -> Result<BodyView, Unreadable> {
    let joined = |name| {
        let values: Vec<&[u8]> = headers
            .get_all(name)
            .iter()
            .map(http::HeaderValue::as_bytes)
            .collect();
        (!values.is_empty()).then(|| values.join(&b","[..]))
    };
    BodyView::read(
        joined(header::CONTENT_TYPE).as_deref(),
        joined(header::CONTENT_ENCODING).as_deref(),
        bytes,
        &BodyLimits::new(bytes_max),
    )
}

fn shadow_ids(shadow: &[ShadowMatch<'_>]) -> Vec<proto::id::RuleId> {
    let ids = shadow.iter().filter_map(|rule| rule.rule_id.parse().ok());
    ids.take(RULES_RECORDED_MAX).collect()
}

fn for_record(denial: &rule::Denial) -> RecordDenial {
    RecordDenial {
        scope: match denial.scope {
            Scope::ProxyCredential => RecordScope::ProxyCredential,
            Scope::TargetCredential => RecordScope::TargetCredential,
            Scope::Proxy => RecordScope::Proxy,
            Scope::Target => RecordScope::Target,
        },
        scope_id: denial.scope_id.clone(),
        default: denial.default,
        rule_ids: denial
            .rules
            .iter()
            .filter_map(|rule| rule.id.parse().ok())
            .take(RULES_RECORDED_MAX)
            .collect(),
    }
}

fn denied(denials: Vec<rule::Denial>) -> EarlyEnd {
    let message = denials
        .iter()
        .flat_map(|denial| &denial.rules)
        .find_map(|rule| rule.message.as_deref())
        .map(|message| format!(": {message}"))
        .unwrap_or_default();
    let scopes = match denials.len() {
        1 => "one scope denies this request".to_owned(),
        n => format!("{n} scopes deny this request"),
    };
    let by_default = denials
        .iter()
        .all(|denial| denial.default && denial.rules.is_empty());
    let why = match by_default {
        true => "no allow rule matches, and what is not allowed is denied there",
        false => "`denials` lists the rules that decided",
    };
    let detail = format!("{scopes}{message}; {why}");
    EarlyEnd::new(Code::AccessDenied, detail).with(Extra::Denials(denials))
}
