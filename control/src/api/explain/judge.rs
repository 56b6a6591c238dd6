//! What the pipeline would decide on a request, stage by stage, by the same pure functions, as far
//! as they can be known without sending anything.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use http::header;
use jiff::Timestamp;
use proto::body_view::{BodyLimits, BodyView};
use proto::filter::Filter;
use proto::id::{CredentialId, ProxyId};
use proto::meter::{Meter, When};
use proto::object::{ObjectId, StoredCredential};
use proto::outcome::Code;
use proto::path::PathReading;
use proto::proxy::Proxy;
use proto::rule::{BodyFacts, Facts, Scope, path_overrides};
use proto::target::Target;
use serde_json::{Value, json};

use super::described::Described;
use super::elsewhere::{Course, Here};
use super::scope::{Known, Scoped};

/// What is known of a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The request would pass.
    Allowed,
    /// It would end with this code.
    Refused(Code),
    /// It depends on what is not known.
    Unknown,
}

/// The decision, and that of every stage up to it.
#[derive(Debug)]
pub struct Explained {
    /// The decision.
    pub answer: Answer,
    /// One element per stage, in order.
    pub stages: Vec<Value>,
    /// Rules that deny, by id.
    pub denying: Vec<String>,
}

/// A proxy as one caller meets it.
pub struct Judged<'a> {
    pub(super) here: &'a Here,
    pub(super) id: ProxyId,
    pub(super) proxy: &'a Proxy,
    pub(super) target: &'a Target,
    pub(super) caller: Option<(CredentialId, &'a StoredCredential)>,
    pub(super) injected: Option<(CredentialId, &'a StoredCredential)>,
    pub(super) scopes: Vec<Arc<Scoped<'a>>>,
    pub(super) filters: Vec<(Scope, &'a Filter)>,
    pub(super) meters: Vec<(ObjectId, &'a Meter)>,
}

impl<'a> Judged<'a> {
    /// The proxy.
    pub fn proxy(&self) -> &'a Proxy {
        self.proxy
    }

    /// What would become of a request at `now`.
    pub fn explain(&self, request: &Described, now: Timestamp) -> Explained {
        let mut explained = Explained {
            answer: Answer::Allowed,
            stages: Vec::new(),
            denying: Vec::new(),
        };
        let steps: [fn(&Self, &mut Explained, &Described, Timestamp); 8] = [
            Self::receive,
            Self::authenticate,
            Self::authorize,
            Self::limit,
            Self::prepare,
            Self::inject,
            Self::forward,
            Self::filter,
        ];
        for step in steps {
            step(self, &mut explained, request, now);
            if matches!(explained.answer, Answer::Refused(_)) {
                break;
            }
        }
        explained
    }

    fn receive(&self, explained: &mut Explained, request: &Described, _: Timestamp) {
        match PathReading::parse(&request.path, self.target.path_options()) {
            Ok(path) => {
                let (raw, canonical) = path.judged();
                explained.pass("receive", json!({"path": raw, "canonical_path": canonical}));
            }
            Err(refused) => {
                explained.end("receive", Code::MalformedRequest, &refused.to_string());
            }
        }
    }

    fn authenticate(&self, explained: &mut Explained, _: &Described, now: Timestamp) {
        let Some((id, stored)) = self.caller else {
            let detail = "no such proxy credential is bound to this proxy";
            return explained.end("authenticate", Code::AccessDenied, detail);
        };
        let credential = &stored.credential;
        let expired = credential.expires_at.is_some_and(|at| at <= now);
        let missing = credential.has_secret() && stored.secret.is_none();
        if !self.proxy.proxy_credential_ids.contains(&id) {
            let detail = format!("{id} is not bound to {}", self.id);
            explained.end("authenticate", Code::AccessDenied, &detail);
        } else if expired {
            explained.end(
                "authenticate",
                Code::AccessDenied,
                &format!("{id} has expired"),
            );
        } else if missing {
            let detail = format!("{id} has no secret");
            explained.end("authenticate", Code::AccessDenied, &detail);
        } else if !self.proxy.active {
            let detail = "the proxy is switched off (`active`)";
            explained.end("authenticate", Code::ProxyInactive, detail);
        } else {
            // No secret is compared: this would be a place to try keys at.
            let mut facts = json!({"credential_id": id, "name": credential.name,
                                   "assumed": "the caller presents this credential's secret"});
            match self.course() {
                Course::Served(_) => {}
                // What follows is decided there, by the same configuration.
                Course::PassedOn(_, to) => facts["passed_on_to"] = to,
                Course::Ends(code, detail) => {
                    return explained.end("authenticate", code, &detail);
                }
            }
            explained.pass("authenticate", facts);
        }
    }

    pub(super) fn course(&self) -> Course<'a> {
        self.here.course(&self.id.to_string(), self.proxy)
    }

    /// Hands the facts of the request to `judge`; says why there are none.
    fn with_facts<T>(
        &self,
        request: &Described,
        judge: impl FnOnce(&Facts<'_>) -> T,
    ) -> Result<T, String> {
        let options = self.target.path_options();
        let path =
            PathReading::parse(&request.path, options).map_err(|refused| refused.to_string())?;
        let header = |name| {
            let values = request.headers.get_all(name).iter();
            let values: Vec<&[u8]> = values.map(http::HeaderValue::as_bytes).collect();
            (!values.is_empty()).then(|| values.join(&b","[..]))
        };
        let limits =
            BodyLimits::new(usize::try_from(self.proxy.body_buffer_bytes).unwrap_or(usize::MAX));
        let view = request.body.as_ref().map(|body| {
            let (kind, coding) = (
                header(header::CONTENT_TYPE),
                header(header::CONTENT_ENCODING),
            );
            BodyView::read(kind.as_deref(), coding.as_deref(), body, &limits)
        });
        let query = request.query.clone().unwrap_or_default();
        let source = request.source.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let method = request.method.as_bytes();
        let pass = &self.target.pass_headers;
        let passes =
            |name: &http::HeaderName| pass.iter().any(|p| p.eq_ignore_ascii_case(name.as_str()));
        let overrides = path_overrides(&request.headers, passes, options)
            .map_err(|(name, refused)| format!("{name}: {refused}"))?;
        let facts = Facts::new(method, &path, &query, &request.headers, source);
        let facts = facts
            .with_path_overrides(&overrides)
            .with_body(BodyFacts::of(view.as_ref()));
        Ok(judge(&facts))
    }

    fn authorize(&self, explained: &mut Explained, request: &Described, _: Timestamp) {
        let (mut denied, mut unknown, mut scopes) = (false, false, Vec::new());
        let denying = &mut explained.denying;
        let judged = self.with_facts(request, |facts| {
            for scoped in &self.scopes {
                let (answer, shown) = scoped.judge(facts, request, denying);
                denied |= answer == Known::No;
                unknown |= answer == Known::Unknown;
                scopes.push(shown);
            }
        });
        if let Err(detail) = judged {
            return explained.end("authorize", Code::MalformedRequest, &detail);
        }
        let outcome = match (denied, unknown) {
            (true, _) => "deny",
            (false, true) => "unknown",
            (false, false) => "pass",
        };
        explained
            .stages
            .push(json!({"stage": "authorize", "outcome": outcome, "scopes": scopes}));
        if denied {
            explained.answer = Answer::Refused(Code::AccessDenied);
        } else if unknown {
            explained.answer = Answer::Unknown;
        }
    }

    fn limit(&self, explained: &mut Explained, request: &Described, _: Timestamp) {
        let limits = &self.proxy.limits;
        let limits: Vec<Value> = [("minute", limits.per_minute), ("day", limits.per_day)]
            .into_iter()
            .filter_map(|(window, limit)| Some(json!({"window": window, "limit": limit?})))
            .collect();
        let meters: Vec<Value> = self
            .meters
            .iter()
            .map(|(on, meter)| {
                json!({"id": meter.id, "name": meter.name, "on": on, "limits": meter.limits,
                       "key": meter.key, "counts": self.counts(meter, request)})
            })
            .collect();
        let assumed = match limits.is_empty() && meters.is_empty() {
            true => Value::Null,
            false => json!("a token of each limit is there; none is asked for"),
        };
        let facts = json!({"limits": limits, "meters": meters, "assumed": assumed});
        explained.pass("limit", facts);
    }

    /// Whether a meter counts the request, by the function that nodes use.
    fn counts(&self, meter: &Meter, request: &Described) -> &'static str {
        let Some(rule) = meter.when.as_ref().map(When::rule) else {
            return "yes";
        };
        let Some(condition) = Scoped::condition(&rule) else {
            return "unknown";
        };
        let judged = self.with_facts(request, |facts| {
            condition.judge(facts, request, &mut Vec::new()).0
        });
        match judged {
            Ok(Known::No) => "yes",
            Ok(Known::Yes) => "no",
            Ok(Known::Unknown) | Err(_) => "unknown",
        }
    }

    fn prepare(&self, explained: &mut Explained, request: &Described, _: Timestamp) {
        let disguised = request
            .headers
            .keys()
            .find(|name| name.as_str().contains('_'));
        match disguised.filter(|_| !self.target.allow_underscore_headers) {
            Some(name) => {
                let detail = format!("{name} has an underscore (`allow_underscore_headers`)");
                explained.end("prepare", Code::MalformedRequest, &detail);
            }
            None => self.validate(explained, request),
        }
    }

    fn filter(&self, explained: &mut Explained, _: &Described, _: Timestamp) {
        let shown = |(scope, filter): &(Scope, &Filter)| {
            json!({"id": filter.id, "scope": scope, "direction": filter.direction,
                   "op": filter.op, "paths": filter.paths, "mask": filter.mask,
                   "detect": filter.detect,
                   "patterns": filter.patterns.iter().map(|own| &own.name).collect::<Vec<_>>()})
        };
        let filters: Vec<Value> = self.filters.iter().map(shown).collect();
        let validation = self.proxy.validation.response.as_ref();
        let validation = validation.map(|schema| json!({"mode": schema.mode}));
        explained.pass(
            "filter",
            json!({ "filters": filters, "validation": validation }),
        );
    }
}

impl Explained {
    /// Of a request whose caller was not recognised.
    pub fn unauthenticated(why: &str) -> Self {
        let mut explained = Self {
            answer: Answer::Allowed,
            stages: Vec::new(),
            denying: Vec::new(),
        };
        explained.end("authenticate", Code::AccessDenied, why);
        explained
    }

    pub(super) fn pass(&mut self, stage: &str, facts: Value) {
        self.push(stage, "pass", facts);
    }

    pub(super) fn end(&mut self, stage: &str, code: Code, detail: &str) {
        self.push(
            stage,
            "end",
            json!({"code": code.as_str(), "detail": detail}),
        );
        self.answer = Answer::Refused(code);
    }

    pub(super) fn push(&mut self, stage: &str, outcome: &str, facts: Value) {
        let mut shown = json!({"stage": stage, "outcome": outcome});
        if let (Value::Object(shown), Value::Object(facts)) = (&mut shown, facts) {
            shown.extend(facts.into_iter().filter(|(_, value)| !value.is_null()));
        }
        self.stages.push(shown);
    }
}
