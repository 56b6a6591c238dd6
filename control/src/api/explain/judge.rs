//! What the pipeline would decide on a request, stage by stage, by the same pure functions, as far
//! as they can be known without sending anything.

use std::net::{IpAddr, Ipv4Addr};

use http::header;
use jiff::Timestamp;
use proto::body_view::{BodyLimits, BodyView};
use proto::filter::Filter;
use proto::id::{CredentialId, ProxyId};
use proto::object::{Body, ObjectId, StoredCredential};
use proto::outcome::Code;
use proto::path::PathReading;
use proto::proxy::Proxy;
use proto::rule::{BodyFacts, Facts, Rule, RuleSet, Scope};
use proto::target::{BaseUrl, Target};
use proto::tree::Objects;
use serde_json::{Value, json};

use super::described::Described;
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

/// A proxy with the policy of its scopes, compiled once for many requests.
pub struct Judged<'a> {
    id: ProxyId,
    proxy: &'a Proxy,
    target: &'a Target,
    caller: Option<(CredentialId, &'a StoredCredential)>,
    injected: Option<(CredentialId, &'a StoredCredential)>,
    scopes: Vec<Scoped<'a>>,
    filters: Vec<(Scope, &'a Filter)>,
}

impl<'a> Judged<'a> {
    /// The proxy as `caller` meets it; `None` when the configuration lacks it or what it names.
    pub fn new(objects: &'a Objects, id: ProxyId, caller: Option<CredentialId>) -> Option<Self> {
        let Body::Proxy(proxy) = &objects.get(&ObjectId::Proxy(id))?.body else {
            return None;
        };
        let Body::Target(target) = &objects.get(&ObjectId::Target(proxy.target_id))?.body else {
            return None;
        };
        let credential = |id: CredentialId| match &objects.get(&ObjectId::Credential(id))?.body {
            Body::Credential(stored) => Some((id, stored)),
            _ => None,
        };
        let caller = caller.or(proxy.proxy_credential_ids.first().copied());
        let caller = caller.and_then(credential);
        let injected = proxy.target_credential_id.and_then(credential);
        let default = |stored: &StoredCredential| stored.credential.default_rule_effect;
        // The order in which the pipeline judges and explains.
        let places = [
            caller.map(|(id, c)| (Scope::ProxyCredential, ObjectId::Credential(id), default(c))),
            injected.map(|(id, c)| {
                (
                    Scope::TargetCredential,
                    ObjectId::Credential(id),
                    default(c),
                )
            }),
            Some((Scope::Proxy, ObjectId::Proxy(id), proxy.default_rule_effect)),
            Some((
                Scope::Target,
                ObjectId::Target(proxy.target_id),
                target.default_rule_effect,
            )),
        ];
        let mut scopes = Vec::new();
        for (scope, on, default) in places.into_iter().flatten() {
            let rules = objects.values().filter_map(|object| match &object.body {
                Body::Rule(rule) if rule.parent == on => Some(&rule.spec),
                _ => None,
            });
            let rules: Vec<&Rule> = rules.collect();
            let owned: Vec<Rule> = rules.iter().map(|rule| (*rule).clone()).collect();
            scopes.push(Scoped {
                scope,
                id: on.to_string(),
                default,
                rules,
                set: RuleSet::compile(&owned, default).ok()?,
            });
        }
        // The order in which the answer is filtered.
        let [caller_place, injected_place, proxy_place, target_place] = places;
        let filtering = [injected_place, target_place, caller_place, proxy_place];
        let mut filters: Vec<(Scope, &Filter)> = Vec::new();
        for (scope, on, _) in filtering.into_iter().flatten() {
            filters.extend(objects.values().filter_map(|object| match &object.body {
                Body::Filter(filter) if filter.parent == on => Some((scope, &filter.spec)),
                _ => None,
            }));
        }
        Some(Self {
            id,
            proxy,
            target,
            caller,
            injected,
            scopes,
            filters,
        })
    }

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
        let steps: [fn(&Self, &mut Explained, &Described, Timestamp); 7] = [
            Self::receive,
            Self::authenticate,
            Self::authorize,
            Self::limit,
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
            let facts = json!({"credential_id": id, "name": credential.name,
                               "assumed": "the caller presents this credential's secret"});
            explained.pass("authenticate", facts);
        }
    }

    fn authorize(&self, explained: &mut Explained, request: &Described, _: Timestamp) {
        let Ok(path) = PathReading::parse(&request.path, self.target.path_options()) else {
            return;
        };
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
        let facts = Facts::new(method, &path, &query, &request.headers, source);
        let facts = facts.with_body(match &view {
            None => BodyFacts::NotRead,
            Some(Ok(view)) => BodyFacts::View(view),
            Some(Err(reason)) => BodyFacts::Unreadable(*reason),
        });
        let (mut denied, mut unknown, mut scopes) = (false, false, Vec::new());
        for scoped in &self.scopes {
            let (answer, shown) = scoped.judge(&facts, request, &mut explained.denying);
            denied |= answer == Known::No;
            unknown |= answer == Known::Unknown;
            scopes.push(shown);
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

    fn limit(&self, explained: &mut Explained, _: &Described, _: Timestamp) {
        let limits = &self.proxy.limits;
        let limits: Vec<Value> = [("minute", limits.per_minute), ("day", limits.per_day)]
            .into_iter()
            .filter_map(|(window, limit)| Some(json!({"window": window, "limit": limit?})))
            .collect();
        let assumed = match limits.is_empty() {
            true => Value::Null,
            false => json!("a token of each limit is there; none is asked for"),
        };
        explained.pass("limit", json!({"limits": limits, "assumed": assumed}));
    }

    fn inject(&self, explained: &mut Explained, _: &Described, _: Timestamp) {
        let Some((id, stored)) = self.injected else {
            return explained.pass("inject", json!({"credential_id": null}));
        };
        let credential = &stored.credential;
        if credential.has_secret() && stored.secret.is_none() {
            let detail = format!("{id} has no secret; give it one");
            return explained.end("inject", Code::CredentialUnavailable, &detail);
        }
        let origin = BaseUrl::parse(&self.target.base_url).map(|base| base.origin);
        let bound = origin.is_ok_and(|origin| credential.hosts.iter().any(|h| h.matches(&origin)));
        if credential.has_secret() && !bound {
            let detail = format!("{id} may not be sent to {}", self.target.base_url);
            return explained.end("inject", Code::CredentialUnavailable, &detail);
        }
        let kind = credential.auth_type.as_str();
        explained.pass("inject", json!({"credential_id": id, "auth_type": kind}));
    }

    fn forward(&self, explained: &mut Explained, request: &Described, _: Timestamp) {
        let path = PathReading::parse(&request.path, self.target.path_options());
        let (Ok(base), Ok(path)) = (BaseUrl::parse(&self.target.base_url), path) else {
            return;
        };
        let path = path.join(&base.path);
        let (scheme, authority) = (base.origin.scheme.as_str(), base.origin.authority());
        let path = String::from_utf8_lossy(&path);
        let mut url = format!("{scheme}://{authority}{path}");
        if let Some(query) = &request.query {
            url.push('?');
            url.push_str(&String::from_utf8_lossy(query));
        }
        let facts = json!({"method": request.method, "url": url, "assumed": "nothing is sent"});
        explained.pass("forward", facts);
    }

    fn filter(&self, explained: &mut Explained, _: &Described, _: Timestamp) {
        let shown = |(scope, filter): &(Scope, &Filter)| {
            json!({"id": filter.id, "scope": scope, "direction": filter.direction,
                   "op": filter.op, "paths": filter.paths})
        };
        let filters: Vec<Value> = self.filters.iter().map(shown).collect();
        explained.pass("filter", json!({ "filters": filters }));
    }
}

impl Explained {
    fn pass(&mut self, stage: &str, facts: Value) {
        self.push(stage, "pass", facts);
    }

    fn end(&mut self, stage: &str, code: Code, detail: &str) {
        self.push(
            stage,
            "end",
            json!({"code": code.as_str(), "detail": detail}),
        );
        self.answer = Answer::Refused(code);
    }

    fn push(&mut self, stage: &str, outcome: &str, facts: Value) {
        let mut shown = json!({"stage": stage, "outcome": outcome});
        if let (Value::Object(shown), Value::Object(facts)) = (&mut shown, facts) {
            shown.extend(facts.into_iter().filter(|(_, value)| !value.is_null()));
        }
        self.stages.push(shown);
    }
}
