//! The form of one proxy: everything that a request through it needs, decided beforehand.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use http::HeaderName;
use proto::credential::AuthType;
use proto::id::{CredentialId, ProxyId, TargetId};
use proto::object::ObjectId;
use proto::proxy::Proxy;
use proto::rule::{Patterns, Rule, RuleSet};
use proto::store::follow::OrgState;
use proto::store::load::Fault;
use proto::target::{Effect, PropagateTrace, Timeouts};
use proto::validation::{BodySchema, BodyValidator};
use tracing::warn;

use super::forms::Due;
use super::policies::Policies;
use super::{Compiler, credentials, targets};
use crate::hygiene::fields::RequestFields;
use crate::snapshot::{CompiledProxy, CompiledTarget, End, FormVersion, TargetCredential};

/// A target, and for each endpoint that it lists whether calls may go there.
pub(super) type TargetWithin = (TargetId, Box<[bool]>);

/// Makes forms, one after the other.
pub(super) struct OrgCompiler<'a> {
    pub(super) compiler: &'a Compiler,
    pub(super) slug: &'a str,
    pub(super) version: &'a Arc<AtomicU64>,
    pub(super) state: &'a Arc<OrgState>,
    pub(super) policies: &'a Policies,
    pub(super) faults: Vec<Fault>,
    /// By what their proxies' calls may go to, too.
    pub(super) targets: HashMap<TargetWithin, Arc<CompiledTarget>>,
    pub(super) target_credentials: HashMap<CredentialId, Arc<TargetCredential>>,
    /// The rules of all scopes that have none.
    no_rules: HashMap<Effect, Arc<RuleSet>>,
    /// Those of its rules.
    patterns: Patterns,
}

impl<'a> OrgCompiler<'a> {
    /// Nothing is made yet.
    pub(super) fn new(compiler: &'a Compiler, due: &'a Due<'_>) -> Self {
        Self {
            compiler,
            slug: &due.now.slug,
            version: &due.now.version,
            state: due.state,
            policies: &due.policies,
            faults: Vec::new(),
            targets: HashMap::new(),
            target_credentials: HashMap::new(),
            no_rules: HashMap::new(),
            patterns: Patterns::default(),
        }
    }

    /// Reports an object that is not applied as it stands.
    pub(super) fn fault(&mut self, object: ObjectId, detail: String) {
        warn!("object-unusable: {object} is not applied: {detail}");
        self.faults.push(Fault {
            org: Some(self.state.config.org),
            object: Some(object),
            code: "object-unusable",
            detail,
        });
    }

    /// The form of a proxy.
    ///
    /// # Errors
    /// What of it cannot be compiled, and why.
    pub(super) fn proxy(&mut self, id: ProxyId, proxy: &Proxy) -> Result<CompiledProxy, String> {
        if !proxy.is_served_in(&self.compiler.parts.keyring.region) {
            return self.elsewhere(id, proxy);
        }
        let state = self.state;
        let target = state
            .config
            .target(proxy.target_id)
            .ok_or("its target is missing")?;
        let compiled_target = self.target_of(id, proxy, target)?;
        let target_credential = match proxy.target_credential_id {
            Some(id) => Some(self.target_credential(id)?),
            None => None,
        };
        let mut credentials = Vec::with_capacity(proxy.proxy_credential_ids.len());
        for credential in &proxy.proxy_credential_ids {
            credentials.push(self.proxy_credential(*credential, id, proxy)?);
        }
        let injected = target_credential.as_ref();
        let injects = injected.is_some_and(|credential| credential.auth_type != AuthType::None);
        let cookies = proxy.cookies_pass(injects);
        let places = credentials::places(state, proxy, &credentials);
        let key_queries = credentials::key_queries(&places, &credentials);
        let fallback = Timeouts::defaults_for(&compiled_target.base.origin.host);
        let timeouts = proxy.timeouts.or(target.timeouts).or(fallback);
        Ok(CompiledProxy {
            id,
            id_text: id.to_string().into(),
            org: state.config.org,
            alias: proxy.alias.as_deref().map(Into::into),
            former_aliases: proxy.former_aliases.clone(),
            version: FormVersion::of(Arc::clone(self.version)),
            end: End::new(None),
            active: proxy.active,
            places,
            credentials,
            rules: self.rules(ObjectId::Proxy(id), proxy.default_rule_effect)?,
            destinations: self.destinations(target, &compiled_target, timeouts)?,
            target: compiled_target,
            target_credential,
            elsewhere: None,
            first_byte_text: targets::first_byte_text(proxy, target, timeouts).into(),
            request_fields: RequestFields {
                pass: targets::passed(target),
                underscores: target.allow_underscore_headers,
                cookies,
                untraced: target.propagate_trace == PropagateTrace::Off,
            },
            forward_caller_headers: header_names(&proxy.forward_caller_headers),
            cookies,
            rewrite_urls: proxy.rewrite_urls,
            scrub: proxy.scrub,
            foreign_urls: proxy.foreign_urls,
            error_bodies: proxy.error_bodies,
            request_validator: validator(proxy.validation.request.as_ref())?,
            response_validator: validator(proxy.validation.response.as_ref())?,
            on_client_abort: proxy.on_client_abort,
            body_buffer_bytes: usize::try_from(proxy.body_buffer_bytes).unwrap_or(usize::MAX),
            record: proxy.record.clone(),
            key_queries,
            counters: self.compiler.parts.metrics.proxy(&id.to_string()),
        })
    }

    /// The rules of a scope.
    pub(super) fn rules(
        &mut self,
        parent: ObjectId,
        default: Effect,
    ) -> Result<Arc<RuleSet>, String> {
        let rules = self.policies.rules.get(&parent);
        let Some(rules) = rules.filter(|rules| !rules.is_empty()) else {
            return self.no_rules(default);
        };
        rule_set(rules, default, &mut self.patterns)
    }

    /// The rules of a scope that has none: all such scopes have the same.
    pub(super) fn no_rules(&mut self, default: Effect) -> Result<Arc<RuleSet>, String> {
        if let Some(known) = self.no_rules.get(&default) {
            return Ok(Arc::clone(known));
        }
        let made = rule_set(&[], default, &mut self.patterns)?;
        self.no_rules.insert(default, Arc::clone(&made));
        Ok(made)
    }
}

fn rule_set(
    rules: &[Rule],
    default: Effect,
    patterns: &mut Patterns,
) -> Result<Arc<RuleSet>, String> {
    let compiled = RuleSet::sharing(rules, default, patterns).map(Arc::new);
    compiled.map_err(|problems| joined(&problems))
}

/// What bodies are held against.
fn validator(body: Option<&BodySchema>) -> Result<Option<Arc<BodyValidator>>, String> {
    let compiled = body.map(BodyValidator::new).transpose();
    compiled
        .map(|validator| validator.map(Arc::new))
        .map_err(|problems| joined(&problems))
}

/// All that is wrong, in one line.
pub(super) fn joined(problems: &[proto::problem::Problem]) -> String {
    problems
        .iter()
        .map(|problem| problem.detail.as_str())
        .collect::<Vec<_>>()
        .join("; ")
}

/// Those of these names that are names of fields.
pub(super) fn header_names(names: &[String]) -> Vec<HeaderName> {
    names
        .iter()
        .filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok())
        .collect()
}
