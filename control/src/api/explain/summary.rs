//! The last requests of a proxy under what is published or under a change, counted; and what the
//! change alone decides otherwise.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use jiff::Timestamp;
use proto::id::{CredentialId, ProxyId};
use proto::outcome::Code;
use proto::record::Record;
use proto::tree::Objects;
use serde_json::{Value, json};

use super::base::Base;
use super::described::Described;
use super::elsewhere::Here;
use super::judge::{Answer, Explained, Judged};
use super::{Refusal, base, met_by, word};

/// Records that are listed because they are decided otherwise.
const LISTED_MAX: usize = 100;

/// Ends that an explanation can tell.
const REFUSALS: [Code; 5] = [
    Code::AccessDenied,
    Code::MalformedRequest,
    Code::ProxyInactive,
    Code::CredentialUnavailable,
    Code::UpstreamBlocked,
];

/// The configuration under which requests are judged.
pub enum Under {
    /// The one in force.
    Published(Objects),
    /// One that is not published.
    Change {
        /// With the change.
        changed: Objects,
        /// In force meanwhile.
        now: Objects,
    },
}

impl Under {
    /// The configuration that is asked about.
    pub fn asked(&self) -> &Objects {
        match self {
            Self::Published(objects) => objects,
            Self::Change { changed, .. } => changed,
        }
    }

    fn now(&self) -> Option<&Objects> {
        match self {
            Self::Published(_) => None,
            Self::Change { now, .. } => Some(now),
        }
    }
}

/// Judges records of a proxy under one configuration; the rules of each caller are compiled once.
struct Judge<'a> {
    base: Base<'a>,
    by_caller: BTreeMap<CredentialId, Judged<'a>>,
}

impl<'a> Judge<'a> {
    fn new(base: Base<'a>) -> Self {
        Self {
            base,
            by_caller: BTreeMap::new(),
        }
    }

    /// What would become of a record's request, whose caller is known.
    fn explain(&mut self, record: &Record, caller: CredentialId) -> Result<Explained, Refusal> {
        let judged = match self.by_caller.entry(caller) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => place.insert(met_by(&self.base, Some(caller))?),
        };
        let described = Described::of(record, judged.proxy());
        let started = Timestamp::from_microsecond(record.started_at_us).unwrap_or_default();
        Ok(judged.explain(&described, started))
    }
}

/// How many requests are decided in which way.
#[derive(Default)]
struct Counts {
    allowed: u64,
    denied: u64,
    unknown: u64,
}

impl Counts {
    fn add(&mut self, answer: Answer) {
        match answer {
            Answer::Allowed => self.allowed += 1,
            Answer::Refused(_) => self.denied += 1,
            Answer::Unknown => self.unknown += 1,
        }
    }
}

/// Requests that a change decides otherwise than what is in force.
#[derive(Default)]
struct Changed {
    counts: Counts,
    requests: Vec<Value>,
}

impl Changed {
    fn compare(&mut self, record: &Record, now: &Explained, changed: &Explained) {
        let Some(answer) = difference(now, changed) else {
            return;
        };
        self.counts.add(answer);
        if self.requests.len() < LISTED_MAX {
            self.requests.push(json!({
                "request_id": record.request_id, "method": record.method, "path": record.path,
                "now": word(now.answer), "decision": word(changed.answer),
                "rules": changed.denying,
            }));
        }
    }
}

/// What a change makes of a request that is decided otherwise now: unknown where one of the two
/// decisions is. `None` where it changes nothing.
fn difference(now: &Explained, changed: &Explained) -> Option<Answer> {
    let is_refused = |explained: &Explained| matches!(explained.answer, Answer::Refused(_));
    match (now.answer, changed.answer) {
        // Either may turn out either way, for a reason that both have or that only one has.
        (Answer::Unknown, Answer::Unknown) => {
            (open(now) != open(changed)).then_some(Answer::Unknown)
        }
        (Answer::Unknown, _) | (_, Answer::Unknown) => Some(Answer::Unknown),
        _ => (is_refused(now) != is_refused(changed)).then_some(changed.answer),
    }
}

/// The stages whose outcome is not known, as they tell it.
fn open(explained: &Explained) -> Vec<&Value> {
    let stages = explained.stages.iter();
    stages
        .filter(|stage| stage["outcome"] == "unknown")
        .collect()
}

/// What would become of the requests of these records.
pub fn summary(
    under: &Under,
    proxy: ProxyId,
    records: &[Record],
    (version, here): (u64, &Here),
) -> Result<Value, Refusal> {
    let mut judge = Judge::new(base(under.asked(), proxy, "/proxy", here)?);
    // A proxy that is not served now has nothing to compare with.
    let now = under.now().and_then(|now| Base::new(now, proxy, here));
    let mut now = now.map(Judge::new);
    let (mut counts, mut changed) = (Counts::default(), Changed::default());
    let mut otherwise = Vec::new();
    let mut by_rule: BTreeMap<String, u64> = BTreeMap::new();
    for record in records {
        // Who was not recognised, or whose key was revoked under way, is refused whatever the rules
        // say; what ended before that was decided by nothing that is looked at here.
        if record.auth_failure.is_some() {
            counts.denied += 1;
            continue;
        }
        let Some(caller) = record.proxy_credential_id else {
            counts.unknown += 1;
            continue;
        };
        let explained = judge.explain(record, caller)?;
        counts.add(explained.answer);
        for rule in &explained.denying {
            *by_rule.entry(rule.clone()).or_default() += 1;
        }
        if let Some(now) = &mut now {
            changed.compare(record, &now.explain(record, caller)?, &explained);
        }
        if differs(record, &explained) && otherwise.len() < LISTED_MAX {
            otherwise.push(json!({
                "request_id": record.request_id, "method": record.method, "path": record.path,
                "was": record.code, "decision": word(explained.answer),
                "rules": explained.denying,
            }));
        }
    }
    let mut answer = json!({
        "version": version,
        "proxy_id": proxy,
        "looked_at": records.len(),
        "allowed": counts.allowed,
        "denied": counts.denied,
        "unknown": counts.unknown,
        "denied_by_rule": by_rule,
        "decided_otherwise": otherwise,
    });
    if now.is_some() {
        let Changed { counts, requests } = changed;
        answer["changed_by_this"] = json!({
            "allowed": counts.allowed,
            "denied": counts.denied,
            "unknown": counts.unknown,
            "requests": requests,
        });
    }
    Ok(answer)
}

/// Whether a request was decided otherwise when it came.
fn differs(record: &Record, explained: &Explained) -> bool {
    let was_denied = REFUSALS.iter().any(|code| code.as_str() == record.code);
    let is_denied = matches!(explained.answer, Answer::Refused(_));
    // What ended for another reason, such as a limit, was decided by neither.
    let comparable = was_denied || record.attempts > 0;
    let known = explained.answer != Answer::Unknown;
    comparable && known && was_denied != is_denied
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explained(answer: Answer, open: &[&str]) -> Explained {
        let stages = open.iter();
        let stage = |rule: &&str| json!({"outcome": "unknown", "rules": [rule]});
        let mut stages: Vec<Value> = stages.map(stage).collect();
        stages.push(json!({"outcome": "pass"}));
        Explained {
            answer,
            stages,
            denying: Vec::new(),
        }
    }

    #[test]
    fn only_what_the_change_decides_is_its_own() {
        use Answer::{Allowed, Refused, Unknown};
        let (denied, other) = (Refused(Code::AccessDenied), Refused(Code::ProxyInactive));
        for (now, then, expected) in [
            ((Allowed, &[][..]), (Allowed, &[][..]), None),
            ((denied, &[]), (denied, &[]), None),
            ((denied, &[]), (other, &[]), None),
            ((Allowed, &[]), (denied, &[]), Some(denied)),
            ((denied, &[]), (Allowed, &[]), Some(Allowed)),
            ((Allowed, &[]), (Unknown, &["a"]), Some(Unknown)),
            ((Unknown, &["a"]), (denied, &[]), Some(Unknown)),
            ((Unknown, &["a"]), (Unknown, &["a"]), None),
            ((Unknown, &["a"]), (Unknown, &["a", "b"]), Some(Unknown)),
        ] {
            let found = difference(&explained(now.0, now.1), &explained(then.0, then.1));
            assert_eq!(found, expected, "{now:?} {then:?}");
        }
    }
}
