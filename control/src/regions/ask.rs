//! Questions that several regions answer: the control plane that is asked asks those of the others,
//! all at once and each for a few seconds at most, with the caller's own token, which each judges
//! for itself. What they answer is shown and not kept. A question that was passed on is not passed
//! on again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::http::header;
use awc::error::SendRequestError;
use jiff::Timestamp;
use proto::visible::is_unseen;
use serde_json::Value;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::forward::{ANSWER_BYTES_MAX, FORWARDED_BY, client, is_whole, name_source};
use super::missing::{Missing, Reason};
use super::{Directory, Peer};
use crate::api::call::OrgCall;
use crate::api::error::{Code, Refusal};
use crate::records::RecordFilter;
use crate::route::Parameter;
use crate::router::BASE;

/// The query parameter by which several regions are asked.
pub const REGIONS: Parameter = (
    "regions",
    "Regions that are asked, as in `eu,us`, or `all`; when absent the one of this control plane",
);
/// Stands for every region.
const ALL: &str = "all";
/// How long a region may take for its whole answer.
const ANSWER_MAX: Duration = Duration::from_secs(4);
/// Most questions to several regions that a control plane works on at once. Others wait as long as
/// a region may take: each holds the answers of all regions until it has put them together.
pub const QUESTIONS_MAX: usize = 4;
/// When one that found no place may come again, in seconds.
const RETRY_S: u64 = 5;
/// What a question says for itself: no page of a list, and no instant that hangs on who is asked.
const NOT_PASSED_ON: [&str; 5] = [REGIONS.0, "limit", "cursor", "from", "to"];

/// The regions that are asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// This one, where it is among them.
    pub own: Option<String>,
    /// The others.
    pub peers: Vec<String>,
}

impl Wanted {
    /// All of them.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let all = self.own.iter().chain(&self.peers);
        all.map(String::as_str)
    }

    /// Those of them that `keeps` names.
    pub fn only(self, keeps: &[String]) -> Self {
        let kept = |name: &String| keeps.contains(name);
        Self {
            own: self.own.filter(kept),
            peers: self.peers.into_iter().filter(kept).collect(),
        }
    }

    fn parse(text: &str, own: &str, peers: &[&str]) -> Result<Self, String> {
        let mut named: BTreeSet<&str> = text.split(',').map(str::trim).collect();
        let known = || peers.iter().copied().chain([own]);
        if named.remove(ALL) {
            named.extend(known());
        }
        if let Some(unknown) = named
            .iter()
            .find(|name| !known().any(|known| known == **name))
        {
            let unknown = proto::checks::printable(unknown);
            let known: BTreeSet<&str> = known().collect();
            let known: Vec<&str> = known.into_iter().collect();
            let known = known.join(", ");
            return Err(format!(
                "names `{unknown}`; regions are {known}, or `{ALL}`"
            ));
        }
        Ok(Self {
            own: named.remove(own).then(|| own.to_owned()),
            peers: named.into_iter().map(str::to_owned).collect(),
        })
    }
}

/// The regions that a call asks; `None` where it asks this one alone, as it always does.
///
/// # Errors
/// 400: it names one that is not there, or another region passed it on.
pub fn wanted(call: &OrgCall) -> Result<Option<Wanted>, Refusal> {
    let Some(text) = call.request.query.get(REGIONS.0) else {
        return Ok(None);
    };
    if call.request.asking.is_passed_on {
        let detail = "is not for a question that another region passes on";
        return Err(Refusal::parameter(REGIONS.0, detail));
    }
    let (own, peers) = match call.control.directory() {
        Some(directory) => (&directory.regions.own, &*directory.regions.peers),
        None => (&call.control.settings.region, &[][..]),
    };
    let peers: Vec<&str> = peers.iter().map(|peer| peer.name.as_str()).collect();
    let wanted = Wanted::parse(text, own, &peers);
    wanted
        .map(Some)
        .map_err(|detail| Refusal::parameter(REGIONS.0, detail))
}

/// A question's place among the few that are worked on at once, for as long as anything works on
/// it.
pub type Turn = Arc<OwnedSemaphorePermit>;

/// A place for a question; none is needed where no other region is asked.
///
/// # Errors
/// 503: none became free.
pub async fn turn(call: &OrgCall, wanted: &Wanted) -> Result<Option<Turn>, Refusal> {
    if let Ok(turn) = timeout(ANSWER_MAX, next_turn(call, wanted)).await {
        return Ok(turn);
    }
    let detail = format!(
        "{QUESTIONS_MAX} questions to several regions are worked on already; ask again later, or \
         one region"
    );
    Err(Refusal::new(Code::RecordsUnavailable, detail).retry_after_s(RETRY_S))
}

/// The same for an answer that has begun: it waits for as long as its caller does.
pub async fn next_turn(call: &OrgCall, wanted: &Wanted) -> Option<Turn> {
    if wanted.peers.is_empty() {
        return None;
    }
    let questions = Arc::clone(&call.control.questions);
    // It is never closed.
    questions.acquire_owned().await.ok().map(Arc::new)
}

/// What this region itself answers: as quickly as another has to, where others are asked too.
///
/// # Errors
/// Its store failed or is late.
pub async fn own<T>(
    wanted: &Wanted,
    answer: impl Future<Output = Result<T, Refusal>>,
) -> Result<T, Refusal> {
    if wanted.peers.is_empty() {
        return answer.await;
    }
    timeout(ANSWER_MAX, answer).await.unwrap_or_else(|_| {
        let detail = format!(
            "its records did not answer within {} s",
            ANSWER_MAX.as_secs()
        );
        Err(Refusal::new(Code::RecordsUnavailable, detail).retry_after_s(RETRY_S))
    })
}

/// What regions answered, and what is said of it.
pub struct Gathered<T> {
    /// What each that answered told.
    pub parts: Vec<T>,
    /// The regions that have answered, or had nothing more to tell.
    pub answered: Vec<String>,
    /// Those that have not.
    pub missing: Vec<Missing>,
}

/// The answers of the regions that are asked: that of this one, where it is asked, and those of
/// others.
///
/// # Errors
/// Nobody answered; where this region alone is asked, why.
pub fn gathered<T>(
    wanted: &Wanted,
    own: Option<Result<T, Refusal>>,
    others: Vec<Result<T, Missing>>,
) -> Result<Gathered<T>, Refusal> {
    let own_name = wanted.own.as_deref().unwrap_or_default();
    let own = match own {
        Some(Err(refusal)) if wanted.peers.is_empty() => return Err(refusal),
        own => own.map(|own| own.map_err(|refusal| Missing::own(own_name, &refusal))),
    };
    let (mut parts, mut missing) = (Vec::new(), Vec::new());
    for answer in own.into_iter().chain(others) {
        match answer {
            Ok(part) => parts.push(part),
            Err(away) => missing.push(away),
        }
    }
    if parts.is_empty() && !missing.is_empty() {
        return Err(nobody(&missing));
    }
    let is_missing = |name: &&str| missing.iter().any(|missing| missing.region == **name);
    let answered = wanted.names().filter(|name| !is_missing(name));
    let answered = answered.map(str::to_owned).collect();
    Ok(Gathered {
        parts,
        answered,
        missing,
    })
}

/// An answer of nobody would look like one that has nothing.
fn nobody(missing: &[Missing]) -> Refusal {
    let each = |missing: &Missing| format!("{}: {}", missing.region, missing.detail);
    let each: Vec<String> = missing.iter().map(each).collect();
    let detail = format!("no region answered; {}", each.join("; "));
    Refusal::new(Code::RecordsUnavailable, detail).retry_after_s(RETRY_S)
}

/// The conditions of a question as other regions are asked them: as they were given, with the
/// instants of this region, so that `1h` ago is the same everywhere.
pub fn conditions(call: &OrgCall, filter: &RecordFilter) -> Vec<(String, String)> {
    let given = call.request.query.iter();
    let given = given.filter(|(name, _)| !NOT_PASSED_ON.contains(name));
    // A name may mean another proxy there, or none.
    let proxy = filter.proxy.map(|id| id.to_string());
    let instants = [("from", filter.from_us), ("to", filter.to_us)];
    let instants = instants.into_iter().filter_map(|(name, us)| {
        let at = Timestamp::from_microsecond(us?).ok()?;
        Some((name.to_owned(), at.to_string()))
    });
    given
        .map(|(name, value)| match (name, &proxy) {
            ("proxy", Some(id)) => (name.to_owned(), id.clone()),
            _ => (name.to_owned(), value.to_owned()),
        })
        .chain(instants)
        .collect()
}

/// Asks another region for `path` below the call's organisation, with this query.
///
/// # Errors
/// Why it is missing in the answer.
pub async fn ask(
    call: &OrgCall,
    region: &str,
    (path, query): (&str, &[(String, String)]),
    accept: &'static str,
) -> Result<Value, Missing> {
    let known = call.control.directory();
    let known = known.and_then(|directory| Some((directory, directory.regions.peer(region)?)));
    let Some((directory, peer)) = known else {
        return Err(Missing::new(
            region,
            Reason::Unreachable,
            "it is not known any more",
        ));
    };
    let query = url::form_urlencoded::Serializer::new(String::new())
        .extend_pairs(query)
        .finish();
    let path = format!("{BASE}/orgs/{}{path}?{query}", call.org_id());
    let asked = read(call, directory, peer, &path, accept);
    let answered = match timeout(ANSWER_MAX, asked).await {
        Ok(answered) => answered,
        Err(_) => {
            let detail = format!("it did not answer within {} s", ANSWER_MAX.as_secs());
            Err((Reason::Late, detail))
        }
    };
    answered.map_err(|(reason, detail)| Missing::new(region, reason, detail))
}

async fn read(
    call: &OrgCall,
    directory: &Directory,
    peer: &Peer,
    path: &str,
    accept: &'static str,
) -> Result<Value, (Reason, String)> {
    let client = client(directory, ANSWER_MAX);
    let by = (FORWARDED_BY, directory.regions.own.as_str());
    let url = format!("{}{path}", peer.control);
    let mut asking = client.get(url).insert_header(by);
    asking = asking.insert_header((header::ACCEPT, accept));
    if let Some(token) = &call.request.asking.authorization {
        asking = asking.insert_header((header::AUTHORIZATION, token.clone()));
    }
    if let Some(source) = call.request.source {
        asking = name_source(asking, source);
    }
    // Errors name addresses, which are for who reads the log.
    let told = |error: &dyn std::fmt::Display| {
        let region = peer.name.as_str();
        tracing::warn!(region, "region {region} did not answer a question: {error}");
    };
    let mut answer = asking.send().await.map_err(|error| {
        told(&error);
        match error {
            SendRequestError::Connect(_) => (
                Reason::Unreachable,
                "its control plane cannot be reached".to_owned(),
            ),
            SendRequestError::Timeout => (Reason::Late, "it did not answer in time".into()),
            _ => (Reason::Failed, "it broke off".into()),
        }
    })?;
    let bytes = answer.body().limit(ANSWER_BYTES_MAX).await;
    let bytes = bytes.map_err(|error| {
        told(&error);
        (Reason::Failed, "it broke off".into())
    })?;
    if !is_whole(answer.headers(), &bytes) {
        return Err((Reason::Failed, "its answer is cut".into()));
    }
    // Megabytes are not read on a worker of the API.
    let reading = tokio::task::spawn_blocking(move || serde_json::from_slice::<Value>(&bytes));
    let document = reading.await.map_err(|error| {
        (
            Reason::Failed,
            format!("reading its answer broke off: {error}"),
        )
    })?;
    match (answer.status().is_success(), document) {
        (true, Ok(document)) => Ok(document),
        (true, Err(_)) => Err((Reason::Failed, "its answer is no JSON".into())),
        (false, document) => Err(refused(answer.status(), &document.unwrap_or_default())),
    }
}

/// Most that is repeated of a region's own words, in characters.
const WORDS_CHARS_MAX: usize = 500;

/// Why a region refused, in its own words.
fn refused(status: StatusCode, problem: &Value) -> (Reason, String) {
    let reason = match status.is_client_error() {
        true => Reason::Refused(status.as_u16()),
        false => Reason::Failed,
    };
    let text = |key: &str| problem.get(key).and_then(Value::as_str);
    let words = text("detail").or_else(|| text("title"));
    let code = text("code").map_or_else(|| status.as_u16().to_string(), str::to_owned);
    let plain = |c: char| if is_unseen(c) { '\u{fffd}' } else { c };
    let words: String = words
        .unwrap_or("no reason is given")
        .chars()
        .take(WORDS_CHARS_MAX)
        .map(plain)
        .collect();
    (reason, format!("{code}: {words}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn regions_are_named_once_and_known() {
        let parse = |text| Wanted::parse(text, "eu", &["ap", "us"]);
        let wanted = |own: bool, peers: &[&str]| Wanted {
            own: own.then(|| "eu".to_owned()),
            peers: peers.iter().map(|name| (*name).to_owned()).collect(),
        };
        for (text, expected) in [
            ("all", wanted(true, &["ap", "us"])),
            ("us, eu,us", wanted(true, &["us"])),
            ("us", wanted(false, &["us"])),
            ("eu", wanted(true, &[])),
            ("us,all", wanted(true, &["ap", "us"])),
        ] {
            assert_eq!(parse(text), Ok(expected), "{text}");
        }
        for (text, named) in [("", ""), ("us,", ""), ("mars,us", "mars"), ("ALL", "ALL")] {
            let expected = format!("names `{named}`; regions are ap, eu, us, or `all`");
            assert_eq!(parse(text), Err(expected), "{text}");
        }
    }

    #[test]
    fn nobody_is_not_taken_for_nothing() {
        let wanted = |own: Option<&str>, peers: &[&str]| Wanted {
            own: own.map(str::to_owned),
            peers: peers.iter().map(|name| (*name).to_owned()).collect(),
        };
        let away = || Missing::new("us", Reason::Late, "it is late");
        let failed = || Some(Err(Refusal::new(Code::Internal, "a full disk")));
        let both = wanted(Some("eu"), &["us"]);
        let some = gathered(&both, Some(Ok(1)), vec![Err(away())]).unwrap();
        assert_eq!(
            (some.parts, some.answered),
            (vec![1], vec!["eu".to_owned()])
        );
        let none = gathered::<()>(&both, failed(), vec![Err(away())])
            .err()
            .unwrap();
        assert_eq!(none.code, Code::RecordsUnavailable);
        assert_eq!(
            none.detail,
            "no region answered; eu: a full disk; us: it is late"
        );
        // This one alone says itself why.
        let alone = gathered::<()>(&wanted(Some("eu"), &[]), failed(), Vec::new());
        assert_eq!(alone.err().unwrap().code, Code::Internal);
        // Nobody was left to be asked.
        let end = gathered::<()>(&both, None, Vec::new()).unwrap();
        assert!(end.parts.is_empty() && end.missing.is_empty());
    }

    #[test]
    fn a_refusal_keeps_its_words() {
        let problem = json!({"code": "forbidden", "title": "No", "detail": "a\nb"});
        assert_eq!(
            refused(StatusCode::FORBIDDEN, &problem),
            (Reason::Refused(403), "forbidden: a\u{fffd}b".into())
        );
        assert_eq!(
            refused(StatusCode::BAD_GATEWAY, &Value::Null),
            (Reason::Failed, "502: no reason is given".into())
        );
    }
}
