//! `POST …/explain`: what would become of a request, and of the last ones under a change that is
//! not published. The same pure functions as in the pipeline; nothing is sent, spent or stored.
//!
//! A record keeps neither body nor header fields nor, mostly, query values. What depends on them is
//! `unknown`, never a false `no`; a rule in shadow mode is the way to know.

mod base;
pub mod described;
mod elsewhere;
mod judge;
pub mod schemas;
mod scope;
mod sending;
mod summary;
mod validate;

use jiff::Timestamp;
use proto::id::{CredentialId, ProxyId, RequestId};
use proto::org::Role;
use proto::problem::Problem;
use proto::record::Record;
use proto::tree::Objects;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use self::base::Base;
use self::described::{Described, RequestInput};
use self::elsewhere::Here;
use self::judge::{Answer as Decision, Explained, Judged};
use self::summary::{Under, summary};
use super::answer::Answer;
use super::call::OrgCall;
use super::changes::{self, Changes};
use super::error::{Code, Refusal, broke_off};
use super::proxies::{self, Unnamed};
use super::records::{blocking, show as show_record};
use super::{batch, shape};
use crate::openapi::schemas as all_schemas;
use crate::records::RecordFilter;
use crate::route::{Gives, Need, Route, Takes, Verb};

/// Most records that one call looks at.
const LAST_MAX: u64 = 1_000;
/// When a caller who got no turn may ask again, in seconds.
const RETRY_S: u64 = 5;

/// Rows of the routing table.
pub fn routes() -> Vec<Route> {
    vec![
        Route::org(
            Verb::Post,
            "/orgs/{org}/explain",
            (
                "explain_request",
                "Say what would become of a request, or of the last ones, under a change if given",
            ),
            Need::Role(Role::Viewer),
            explain,
        )
        .takes(Takes::Body("ExplainInput"))
        .gives(Gives::One("Explanation"))
        .local()
        .changes_nothing(),
    ]
}

#[derive(Deserialize)]
struct Input {
    proxy: Option<String>,
    credential: Option<CredentialId>,
    request: Option<RequestInput>,
    record: Option<RequestId>,
    last: Option<u64>,
    change: Option<Changes>,
}

async fn explain(call: OrgCall) -> Result<Answer, Refusal> {
    changes::bounded(call.request.body.get("change"), "/change")?;
    let input: Input = shape::parse(all_schemas(), "ExplainInput", call.request.body.clone())
        .map_err(Refusal::invalid)?;
    // Taken first: who waits for the turns of all holds none that others of its own could have.
    let Some(_place) = call.control.explaining.take(call.org_id()) else {
        let detail = "this organisation has as many explanations worked on as it may; ask again \
                      when one has come";
        return Err(Refusal::new(Code::Overloaded, detail).retry_after_s(RETRY_S));
    };
    let config = call.config()?;
    let (under, version) = match &input.change {
        None => (Under::Published(config.objects.clone()), config.head.n),
        Some(changes) => {
            let (current, draft, _) = batch::drafted(&call, |config| {
                let plan = changes.plan(config, &call.control.digest_key);
                plan.below("/change")
            })
            .await?;
            let changed = draft.objects().clone();
            let now = current.objects.clone();
            (Under::Change { changed, now }, current.head.n)
        }
    };
    let asked = [
        input.request.is_some(),
        input.record.is_some(),
        input.last.is_some(),
    ];
    if asked.iter().filter(|given| **given).count() != 1 {
        let detail = "give exactly one of `request`, `record` and `last`";
        return Err(invalid("", "required", detail));
    }
    let question = question(&call, &input, under.asked()).await?;
    // Compiling and judging thousands of rules takes a while; nobody else waits for it.
    let turn = timeout(call.control.settings.write_deadline, TURNS.acquire()).await;
    let Ok(Ok(_turn)) = turn else {
        let detail = "other explanations are worked on already; ask again later";
        return Err(Refusal::new(Code::Overloaded, detail).retry_after_s(RETRY_S));
    };
    let owned = |(region, url): (&str, &str)| (region.to_owned(), url.to_owned());
    let world = call.control.world();
    let state = world.orgs.get(&call.org_id());
    let here = Here {
        region: call.control.settings.region.clone(),
        gateways: call.control.other_gateways().map(owned).collect(),
        org: call.org.slug.clone(),
        policy: call.control.policy.clone(),
        retired: state.map(|state| state.retired.clone()).unwrap_or_default(),
        dial_guard: call.control.dial_guard.clone(),
    };
    let answer = tokio::task::spawn_blocking(move || question.answer(&under, version, &here)).await;
    let answer = answer.map_err(|error| broke_off("explaining", &error))?;
    Ok(Answer::json(answer?))
}

/// Reads what is asked about.
async fn question(call: &OrgCall, input: &Input, objects: &Objects) -> Result<Question, Refusal> {
    Ok(match (input.record, &input.request) {
        (Some(id), _) => {
            let org = call.org_id();
            let record = blocking(call, move |records| records.get(org, id)).await?;
            let record = record.ok_or_else(|| {
                invalid(
                    "/record",
                    "not-found",
                    "no record of this organisation has this id",
                )
            })?;
            Question::Record(Box::new(record))
        }
        (None, Some(request)) => {
            let below = |problems: Vec<Problem>| {
                let problems = problems.into_iter().map(|p| p.below("/request"));
                Refusal::invalid(problems.collect())
            };
            let proxy = proxy(objects, input.proxy.as_deref())?;
            let described = request.described().map_err(below)?;
            Question::Request(proxy, input.credential, Box::new(described))
        }
        (None, None) => {
            let proxy = proxy(objects, input.proxy.as_deref())?;
            let last = input.last.unwrap_or(LAST_MAX);
            if !(1..=LAST_MAX).contains(&last) {
                return Err(invalid(
                    "/last",
                    "range",
                    &format!("must be 1 to {LAST_MAX}"),
                ));
            }
            let filter = RecordFilter {
                proxy: Some(proxy),
                credential: input.credential,
                ..RecordFilter::default()
            };
            let (org, limit) = (call.org_id(), usize::try_from(last).unwrap_or(usize::MAX));
            let found = blocking(call, move |records| records.list(org, &filter, limit)).await?;
            Question::Last(proxy, found.0)
        }
    })
}

/// Explanations that are made at one time.
static TURNS: Semaphore = Semaphore::const_new(EXPLAINING_MAX + 1);
/// Those of one organisation: others always find a turn.
pub const EXPLAINING_MAX: usize = 2;

/// What is asked, with all that is needed to answer.
enum Question {
    Record(Box<Record>),
    Request(ProxyId, Option<CredentialId>, Box<Described>),
    Last(ProxyId, Vec<Record>),
}

impl Question {
    fn answer(&self, under: &Under, version: u64, here: &Here) -> Result<Value, Refusal> {
        let objects = under.asked();
        match self {
            Self::Record(record) => {
                let base = base(objects, record.proxy_id, "/record", here)?;
                let judged = met_by(&base, record.proxy_credential_id)?;
                let explained = match record.auth_failure {
                    // Who was not recognised then holds no credential that could be assumed.
                    Some(failure) => Explained::unauthenticated(failure.as_str()),
                    None => {
                        let described = Described::of(record, judged.proxy());
                        judged.explain(&described, Timestamp::now())
                    }
                };
                let mut answer = shown(&explained, version);
                answer["record"] = show_record(record);
                Ok(answer)
            }
            Self::Request(proxy, credential, described) => {
                let base = base(objects, *proxy, "/proxy", here)?;
                let explained = met_by(&base, *credential)?.explain(described, Timestamp::now());
                Ok(shown(&explained, version))
            }
            Self::Last(proxy, records) => summary(under, *proxy, records, (version, here)),
        }
    }
}

fn shown(explained: &Explained, version: u64) -> Value {
    let mut shown = json!({
        "decision": word(explained.answer),
        "version": version,
        "stages": explained.stages,
    });
    if let Decision::Refused(code) = explained.answer {
        shown["code"] = json!(code.as_str());
    }
    shown
}

fn word(answer: Decision) -> &'static str {
    match answer {
        Decision::Allowed => "allowed",
        Decision::Refused(_) => "denied",
        Decision::Unknown => "unknown",
    }
}

fn base<'a>(
    objects: &'a Objects,
    proxy: ProxyId,
    pointer: &str,
    here: &'a Here,
) -> Result<Base<'a>, Refusal> {
    Base::new(objects, proxy, here).ok_or_else(|| {
        let detail = format!("{proxy} is not in this configuration, or cannot be served");
        invalid(pointer, "not-found", &detail)
    })
}

fn met_by<'a>(base: &Base<'a>, caller: Option<CredentialId>) -> Result<Judged<'a>, Refusal> {
    base.met_by(caller).ok_or_else(|| {
        let detail = "the rules of this credential cannot be compiled";
        invalid("/credential", "not-found", detail)
    })
}

/// The proxy that a text names: by id, by alias, or by a name that only one has.
fn proxy(objects: &Objects, named: Option<&str>) -> Result<ProxyId, Refusal> {
    let Some(named) = named else {
        return Err(invalid(
            "/proxy",
            "required",
            "is missing: id, alias or name of the proxy",
        ));
    };
    proxies::named(objects, named).map_err(|unnamed| {
        let code = match unnamed {
            Unnamed::Unknown => "not-found",
            Unnamed::Several(_) => "ambiguous",
        };
        invalid("/proxy", code, &unnamed.to_string())
    })
}

fn invalid(pointer: &str, code: &'static str, detail: &str) -> Refusal {
    Refusal::invalid(vec![Problem::new(pointer, code, detail)])
}
