//! `GET …/proxies/{id}/suggested-rules`: an allow-list made of what a proxy was used for.
//!
//! Only requests that the target took count: what was refused, here or there, does not become
//! allowed by having been asked for. The answer holds a body for `POST …/changes`; nothing is
//! changed here.

mod grouping;
mod proposal;
mod segments;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use proto::id::ProxyId;
use proto::object::{Body, ObjectId};
use proto::org::Role;
use proto::path::PathOptions;
use proto::proxy::{Proxy, RecordPath};
use proto::record::Record;
use proto::rule::{Effect, Mode};
use proto::tree::{Objects, OrgConfig};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use self::grouping::{Suggested, Uses};
use self::proposal::{Asked, show, there};
use self::segments::Left;
use super::answer::Answer;
use super::call::OrgCall;
use super::error::{Code, Refusal};
use super::proxies::{self, Unnamed};
use super::records::{blocking, filter};
use crate::records::condition::Condition;
use crate::records::field::FIELDS;
use crate::records::{RecordCursor, RecordFilter, Records, RecordsError};
use crate::route::{Gives, Need, Parameter, Route, Verb};

pub use self::proposal::schema;

/// Most records that one call reads.
const RECORDS_MAX: usize = 100_000;
/// Records that are read at a time.
const PAGE: usize = 5_000;
/// Most times that the store is asked: a search in vain may end early.
const PAGES_MAX: usize = 100;
/// No further page is read after so long.
const READ_MAX: Duration = Duration::from_secs(15);
/// Such questions that are answered at one time, those that nobody waits for any more among them:
/// each reads and groups very much.
static TURNS: Semaphore = Semaphore::const_new(2);
/// How long a question waits for its turn.
const WAIT_MAX: Duration = Duration::from_secs(15);
/// When to ask again if none came, in seconds.
const RETRY_S: u64 = 5;
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
    if from >= to {
        return Err(Refusal::parameter("from", "must be before `to`"));
    }
    let filter = RecordFilter {
        proxy: Some(id),
        conditions: sent().into_iter().collect(),
        from_us: Some(from.as_microsecond()),
        to_us: Some(to.as_microsecond()),
        ..RecordFilter::default()
    };
    let (org, options) = (call.org_id(), options(&config, proxy));
    let turn = turn(&TURNS, WAIT_MAX).await?;
    let look = move |records: &Records| {
        let _turn = turn;
        let began = Instant::now();
        let list = |filter: &RecordFilter| records.list(org, filter, PAGE);
        read(options, filter, list, || began.elapsed() >= READ_MAX).map(Found::of)
    };
    let found = blocking(&call, look).await?;
    let there = there(&config.objects, ObjectId::Proxy(id));
    let asked = Asked {
        proxy: id,
        mode,
        denies: proxy.default_rule_effect == Effect::Deny,
        from,
        to,
    };
    Ok(Answer::json(show(&asked, &there, &found)))
}

/// A place among the few that are worked on at once.
///
/// # Errors
/// 503: none became free.
async fn turn(
    turns: &'static Semaphore,
    wait_max: Duration,
) -> Result<SemaphorePermit<'static>, Refusal> {
    if let Ok(Ok(turn)) = timeout(wait_max, turns.acquire()).await {
        return Ok(turn);
    }
    let detail = "other suggestions are worked on already; ask again later";
    Err(Refusal::new(Code::RecordsUnavailable, detail).retry_after_s(RETRY_S))
}

/// The proxy with this id, alias or name.
fn named<'a>(objects: &'a Objects, name: &str) -> Result<(ProxyId, &'a Proxy), Refusal> {
    let id = proxies::named(objects, name).map_err(|unnamed| match unnamed {
        Unnamed::Unknown => Refusal::not_found(),
        several => Refusal::new(Code::Conflict, format!("`{name}` {several}")),
    })?;
    let proxy = objects.proxies().find(|(own, _)| *own == id);
    proxy.ok_or_else(Refusal::not_found)
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

/// What became of it.
struct Found {
    rules: Vec<Suggested>,
    /// Requests of which no rule is made, by why.
    left: BTreeMap<Left, u64>,
    records: usize,
    cut_at_us: Option<i64>,
}

impl Found {
    fn of(read: Read) -> Self {
        let (rules, left) = read.uses.suggest();
        Self {
            rules,
            left,
            records: read.records,
            cut_at_us: read.cut_at_us,
        }
    }
}

/// Reads records page by page, newest first, to a bound or until it is late.
fn read(
    options: PathOptions,
    mut filter: RecordFilter,
    list: impl Fn(&RecordFilter) -> Result<Page, RecordsError>,
    is_late: impl Fn() -> bool,
) -> Result<Read, RecordsError> {
    let mut read = Read {
        uses: Uses::default(),
        records: 0,
        cut_at_us: None,
    };
    for _ in 0..PAGES_MAX {
        let (records, next) = list(&filter)?;
        for record in &records {
            read.uses.add(record, options);
        }
        read.records += records.len();
        let Some(next) = next else {
            read.cut_at_us = None;
            return Ok(read);
        };
        read.cut_at_us = Some(next.started_at_us());
        if read.records >= RECORDS_MAX || is_late() {
            break;
        }
        filter.after = Some(next);
    }
    Ok(read)
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
        let pages = |is_late: &dyn Fn() -> bool| {
            asked.set(0);
            let found = read(
                PathOptions::default(),
                RecordFilter::default(),
                endless,
                is_late,
            );
            (asked.get(), found.unwrap().cut_at_us)
        };
        assert_eq!(pages(&|| false), (PAGES_MAX, Some(7)));
        assert_eq!(pages(&|| asked.get() == 3), (3, Some(7)));
        // Each page begins behind the one before; the last says that all was read.
        let two = |filter: &RecordFilter| match filter.after {
            None => Ok((Vec::new(), cursor(7))),
            Some(after) => {
                assert_eq!(Some(after), cursor(7));
                Ok((Vec::new(), None))
            }
        };
        let in_time = || false;
        let found = read(
            PathOptions::default(),
            RecordFilter::default(),
            two,
            in_time,
        )
        .unwrap();
        assert_eq!((found.records, found.cut_at_us), (0, None));
    }

    #[test]
    fn only_what_was_sent_to_a_target_is_read() {
        assert!(sent().is_some());
    }

    #[actix_web::test]
    async fn who_gets_no_turn_is_told_to_come_again() {
        static ONE: Semaphore = Semaphore::const_new(1);
        let first = turn(&ONE, WAIT_MAX).await.unwrap();
        let refused = turn(&ONE, Duration::ZERO).await.unwrap_err();
        assert_eq!(refused.code, Code::RecordsUnavailable);
        assert_eq!(refused.retry_after_s, Some(RETRY_S));
        drop(first);
        assert!(turn(&ONE, Duration::ZERO).await.is_ok());
    }
}
