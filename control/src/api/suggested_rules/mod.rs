//! `GET …/proxies/{id}/suggested-rules`: an allow-list made of what a proxy was used for.
//!
//! Only requests that were sent to the target count: what was refused does not become allowed by
//! having been asked for. The answer holds a body for `POST …/changes`; nothing is changed here.

mod grouping;
mod segments;

use jiff::{SignedDuration, Timestamp};
use proto::id::ProxyId;
use proto::object::{Body, ObjectId};
use proto::org::Role;
use proto::path::PathOptions;
use proto::proxy::{Proxy, RecordPath};
use proto::record::Record;
use proto::rule::{Effect, Mode, OnUnreadable, PathPart, Presence, Rule};
use proto::tree::{Objects, OrgConfig};
use serde_json::{Value, json};

use self::grouping::{Suggested, Uses};
use super::answer::Answer;
use super::call::OrgCall;
use super::error::{Code, Refusal};
use super::records::{blocking, filter};
use crate::openapi::reference;
use crate::records::condition::{Condition, FIELDS};
use crate::records::{RecordCursor, RecordFilter, Records, RecordsError};
use crate::route::{Gives, Need, Parameter, Route, Verb};

/// Most records that one call reads.
const RECORDS_MAX: usize = 100_000;
/// Records that are read at a time.
const PAGE: usize = 5_000;
/// Most times that the store is asked: a search in vain may end early.
const PAGES_MAX: usize = 100;
/// What is looked at when `from` is not given: seven days.
const SPAN_DEFAULT: SignedDuration = SignedDuration::from_hours(7 * 24);

const PARAMETERS: &[Parameter] = &[
    (
        "from",
        "Started at or after this instant (RFC 3339), or so long ago, as in `24h`; `7d` when \
         absent",
    ),
    (
        "to",
        "Started before this instant (RFC 3339), or so long ago; now when absent",
    ),
    (
        "mode",
        "`shadow` (default): rules that are recorded and deny nothing; `enforce`: rules in force, \
         and the proxy's `default_rule_effect: deny`",
    ),
];

/// Rows of the routing table.
pub fn routes() -> Vec<Route> {
    vec![
        Route::org(
            Verb::Get,
            "/orgs/{org}/proxies/{id}/suggested-rules",
            (
                "suggest_proxy_rules",
                "Make an allow-list of what a proxy (by id, alias or name) was used for",
            ),
            Need::Role(Role::Viewer),
            suggest,
        )
        .gives(Gives::One("SuggestedRules"))
        .parameters(PARAMETERS),
    ]
}

async fn suggest(call: OrgCall) -> Result<Answer, Refusal> {
    let mode = match call.request.query.get("mode") {
        None | Some("shadow") => Mode::Shadow,
        Some("enforce") => Mode::Enforce,
        Some(_) => return Err(Refusal::parameter("mode", "must be `shadow` or `enforce`")),
    };
    let config = call.config()?;
    let (id, proxy) = named(&config.objects, call.request.part("id"))?;
    if proxy.record.path == RecordPath::None {
        let detail = "records of this proxy have no path: set its `record.path` to `template` or \
                      `full`, and ask again when requests have come";
        return Err(Refusal::new(Code::Conflict, detail));
    }
    let now = Timestamp::now();
    let to = filter::instant(&call, "to")?.unwrap_or(now);
    let from = match filter::instant(&call, "from")? {
        Some(from) => from,
        None => now.checked_sub(SPAN_DEFAULT).unwrap_or(Timestamp::MIN),
    };
    let filter = RecordFilter {
        proxy: Some(id),
        conditions: sent().into_iter().collect(),
        from_us: Some(from.as_microsecond()),
        to_us: Some(to.as_microsecond()),
        ..RecordFilter::default()
    };
    let (org, options) = (call.org_id(), options(&config, proxy));
    let read =
        move |records: &Records| read(options, filter, |filter| records.list(org, filter, PAGE));
    let read = blocking(&call, read).await?;
    let there = there(&config.objects, ObjectId::Proxy(id));
    let asked = Asked {
        proxy: id,
        mode,
        denies: proxy.default_rule_effect == Effect::Deny,
        from,
        to,
    };
    Ok(Answer::json(show(&asked, &there, read)))
}

/// The proxy with this id, alias or name.
fn named<'a>(objects: &'a Objects, name: &str) -> Result<(ProxyId, &'a Proxy), Refusal> {
    let id: Option<ProxyId> = name.parse().ok();
    let is_named = |(own, proxy): &(ProxyId, &Proxy)| match id {
        Some(id) => *own == id,
        None => proxy.alias.as_deref() == Some(name) || proxy.name == name,
    };
    objects
        .proxies()
        .find(is_named)
        .ok_or_else(Refusal::not_found)
}

/// What holds of records that were sent to the target.
fn sent() -> Option<Condition> {
    let attempts = FIELDS.iter().find(|field| field.name == "attempts_min");
    attempts.and_then(|field| field.condition("1"))
}

/// How the target reads doubtful paths.
fn options(config: &OrgConfig, proxy: &Proxy) -> PathOptions {
    let target = config.object(ObjectId::Target(proxy.target_id));
    match target.map(|target| &target.body) {
        Some(Body::Target(target)) => target.path_options(),
        _ => PathOptions::default(),
    }
}

/// Records, and where the next ones begin.
type Page = (Vec<Record>, Option<RecordCursor>);

/// What was read.
struct Read {
    uses: Uses,
    records: usize,
    /// Where reading ended before all was read: nothing that began earlier counts.
    cut_at_us: Option<i64>,
}

/// Reads records page by page, newest first, to a bound.
fn read(
    options: PathOptions,
    mut filter: RecordFilter,
    list: impl Fn(&RecordFilter) -> Result<Page, RecordsError>,
) -> Result<Read, RecordsError> {
    let mut read = Read {
        uses: Uses::default(),
        records: 0,
        cut_at_us: None,
    };
    for _ in 0..PAGES_MAX {
        let (records, next) = list(&filter)?;
        for record in &records {
            read.uses.add(&record.method, &record.path, options);
        }
        read.records += records.len();
        let Some(next) = next else {
            read.cut_at_us = None;
            return Ok(read);
        };
        read.cut_at_us = Some(next.started_at_us());
        if read.records >= RECORDS_MAX {
            break;
        }
        filter.after = Some(next);
    }
    Ok(read)
}

/// What was asked for.
struct Asked {
    proxy: ProxyId,
    mode: Mode,
    /// Whether the proxy denies already what no rule allows.
    denies: bool,
    from: Timestamp,
    to: Timestamp,
}

impl Asked {
    /// A rule as it is submitted.
    fn rule(&self, suggested: &Suggested) -> Rule {
        let (count, from, to) = (suggested.records, self.from, self.to);
        Rule {
            id: String::new(),
            effect: Effect::Allow,
            priority: 0,
            mode: self.mode,
            methods: suggested.methods.clone(),
            path: Some(PathPart {
                pattern: suggested.pattern.clone(),
                flags: String::new(),
                presence: Presence::Present,
            }),
            headers: Vec::new(),
            query: Vec::new(),
            body: Vec::new(),
            source: Vec::new(),
            on_unreadable: OnUnreadable::default(),
            message: None,
            notes: Some(format!(
                "suggested: {count} requests from {from:.0} to {to:.0}"
            )),
        }
    }

    /// What is to be done for a rule to be there, if anything.
    fn operation(&self, rule: &Rule, there: Option<&Rule>) -> Option<Value> {
        match there {
            None => {
                let parent = self.proxy;
                Some(json!({"create": "rules", "parent": parent, "object": rule}))
            }
            Some(there) if self.mode == Mode::Enforce && there.mode == Mode::Shadow => {
                Some(json!({"update": there.id, "patch": {"mode": Mode::Enforce}}))
            }
            Some(_) => None,
        }
    }
}

/// The rules of the proxy itself.
fn there(objects: &Objects, on: ObjectId) -> Vec<Rule> {
    let rules = objects.values().filter_map(|object| match &object.body {
        Body::Rule(rule) if rule.parent == on => Some((object.id, &rule.spec)),
        _ => None,
    });
    rules
        .map(|(id, rule)| Rule {
            id: id.to_string(),
            ..rule.clone()
        })
        .collect()
}

/// Whether one rule allows all that the other would: the same path, and its methods.
fn is_as_wide(there: &Rule, wanted: &Rule) -> bool {
    let plain = there.headers.is_empty()
        && there.query.is_empty()
        && there.body.is_empty()
        && there.source.is_empty();
    let methods = &there.methods;
    let named = |method: &String| methods.iter().any(|name| name.eq_ignore_ascii_case(method));
    plain
        && there.effect == Effect::Allow
        && there.path == wanted.path
        && (methods.is_empty() || wanted.methods.iter().all(named))
}

/// The answer.
fn show(asked: &Asked, there: &[Rule], read: Read) -> Value {
    let (suggested, left) = read.uses.suggest();
    let mut operations = Vec::new();
    let mut rules = Vec::with_capacity(suggested.len());
    for suggested in &suggested {
        let rule = asked.rule(suggested);
        // One in force comes before one that is only recorded.
        let mut same = there.iter().filter(|one| is_as_wide(one, &rule));
        let enforced = same.clone().find(|one| one.mode == Mode::Enforce);
        let same = enforced.or_else(|| same.next());
        operations.extend(asked.operation(&rule, same));
        rules.push(json!({
            "rule": rule, "rule_id": same.map(|rule| &rule.id),
            "records": suggested.records, "example": suggested.example,
        }));
    }
    if asked.mode == Mode::Enforce && !asked.denies && !rules.is_empty() {
        let patch = json!({"default_rule_effect": Effect::Deny});
        operations.push(json!({"update": asked.proxy, "patch": patch}));
    }
    let left_over: u64 = left.values().sum();
    let reasons = left
        .iter()
        .map(|(why, count)| (why.as_str().to_owned(), json!(count)));
    let cut = read.cut_at_us;
    let complete_from = cut.and_then(|us| Timestamp::from_microsecond(us).ok());
    let changes = (!operations.is_empty()).then(|| json!({"operations": operations}));
    json!({
        "proxy_id": asked.proxy,
        "mode": asked.mode,
        "from": asked.from,
        "to": asked.to,
        "complete_from": complete_from.unwrap_or(asked.from),
        "cut": cut.is_some(),
        "records": read.records,
        "rules": rules,
        "left_over": {"records": left_over, "reasons": Value::Object(reasons.collect())},
        "changes": changes,
    })
}

/// The schema of the answer.
pub fn schema() -> Value {
    let number = |description: &str| json!({"type": "integer", "description": description});
    let time = json!({"type": "string", "format": "date-time"});
    json!({
        "type": "object",
        "properties": {
            "proxy_id": {"type": "string"},
            "mode": {"type": "string", "enum": ["shadow", "enforce"]},
            "from": time, "to": time,
            "complete_from": {"type": "string", "format": "date-time",
                "description": "From here on all was read"},
            "cut": {"type": "boolean",
                "description": "Whether there was more than one call reads: about 100,000 records"},
            "records": number("Requests that were sent to the target, and read"),
            "rules": {"type": "array", "description": "At most 200, those that cover most first",
                "items": {"type": "object", "properties": {
                    "rule": reference("Rule"),
                    "rule_id": {"type": ["string", "null"],
                        "description": "The proxy has this rule already, in either mode"},
                    "records": number("Requests that it covers; each counts for one rule"),
                    "example": {"type": "string", "description": "The path of one of them"}
                }}},
            "left_over": {"type": "object", "properties": {
                "records": number("Requests that no rule covers"),
                "reasons": {"type": "object", "additionalProperties": {"type": "integer"},
                    "description": "Of them by why: `no_path` (not recorded, or cut), `ambiguous` \
                        (targets may read the path in two ways), `too_many` (more different paths \
                        or rules than are told apart)"}
            }},
            "changes": {"oneOf": [reference("Changes"), {"type": "null"}],
                "description": "The body of `POST …/changes` by which they come to be; null where \
                    nothing is missing"}
        }
    })
}

#[cfg(test)]
mod tests {
    use proto::id::RequestId;

    use super::*;

    #[test]
    fn reading_has_a_bound_and_says_where_it_ended() {
        let cursor = |us| Some(RecordCursor::new(us, RequestId::from_bits(1)));
        let asked = std::cell::Cell::new(0);
        let endless = |_: &RecordFilter| {
            asked.set(asked.get() + 1);
            Ok((Vec::new(), cursor(7)))
        };
        let found = read(PathOptions::default(), RecordFilter::default(), endless).unwrap();
        assert_eq!((asked.get(), found.cut_at_us), (PAGES_MAX, Some(7)));
        // Each page begins behind the one before; the last says that all was read.
        let two = |filter: &RecordFilter| match filter.after {
            None => Ok((Vec::new(), cursor(7))),
            Some(after) => {
                assert_eq!(Some(after), cursor(7));
                Ok((Vec::new(), None))
            }
        };
        let found = read(PathOptions::default(), RecordFilter::default(), two).unwrap();
        assert_eq!((found.records, found.cut_at_us), (0, None));
    }

    #[test]
    fn only_what_was_sent_to_a_target_is_read() {
        assert!(sent().is_some());
    }

    #[test]
    fn a_rule_that_is_there_is_known_again() {
        let rule = |fields: Value| -> Rule { serde_json::from_value(fields).unwrap() };
        let path = json!({"pattern": "^/a$"});
        let wanted = json!({"effect": "allow", "methods": ["GET"], "path": path});
        let wanted = rule(wanted);
        for (there, expected) in [
            (
                json!({"effect": "allow", "methods": ["GET"], "path": path}),
                true,
            ),
            (
                json!({"effect": "allow", "methods": ["get", "PUT"], "path": path}),
                true,
            ),
            (json!({"effect": "allow", "path": path}), true),
            (
                json!({"effect": "allow", "methods": ["PUT"], "path": path}),
                false,
            ),
            (
                json!({"effect": "deny", "methods": ["GET"], "path": path}),
                false,
            ),
            (
                json!({"effect": "allow", "path": {"pattern": "^/b$"}}),
                false,
            ),
            (
                json!({"effect": "allow", "path": path, "source": ["192.0.2.1"]}),
                false,
            ),
        ] {
            assert_eq!(
                is_as_wide(&rule(there.clone()), &wanted),
                expected,
                "{there}"
            );
        }
    }
}
