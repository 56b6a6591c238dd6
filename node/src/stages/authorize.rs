//! Stage 3: the rules of the four scopes. Every scope must allow.
//!
//! The body is read only when a rule with a body part could still change the outcome.

use proto::outcome::{Code, EarlyEnd, Extra};
use proto::record::{Denial as RecordDenial, RecordScope};
use proto::rule::{self, Scope, ScopedRules, ShadowMatch, Verdict};

use crate::actor::{Next, Stage, StageKind};
use crate::facts::{Read, with_facts};
use crate::flow::Exchange;
use crate::inbound;
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
            Outcome::NeedsBody => {
                let bytes_max = proxy.body_buffer_bytes;
                inbound::look_at_whole(exchange, bytes_max, move |exchange, read| {
                    after_reading(exchange, &proxy, read)
                })
            }
        }
    }
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
    let Some(caller) = &exchange.caller else {
        return ended(EarlyEnd::new(
            Code::InternalError,
            "authorize met no caller",
        ));
    };
    let scopes = scopes(proxy, caller.index);
    let judged = with_facts(&exchange.request, proxy, read, |facts| {
        rule::judge(&scopes, facts)
    });
    let verdict = match judged {
        Ok(verdict) => verdict,
        Err(end) => return ended(end),
    };
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
    let mut unreadable = denials
        .iter()
        .flat_map(|denial| &denial.rules)
        .filter_map(|rule| rule.unreadable);
    // What a rule says of bodies that it can read may be nothing to this one.
    let unreadable = unreadable.next().map_or_else(String::new, |why| {
        format!(": {why}, and what rules on bodies cannot read they deny")
    });
    let detail = format!("{scopes}{unreadable}{message}; {why}");
    EarlyEnd::new(Code::AccessDenied, detail).with(Extra::Denials(denials))
}
