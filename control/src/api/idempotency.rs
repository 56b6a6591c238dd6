//! `Idempotency-Key`: a write that is repeated is carried out once and answered as the first time.
//!
//! Answers are kept in this process for a day, a bounded number of them. Answers of failed writes
//! are not kept: nothing happened, so trying again is right. Where something may have happened, the
//! publisher knows whether a version was made; what makes none ([`Refusal::may_be_done`]) is not
//! carried out again, and its failure is the answer.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use actix_web::HttpRequest;
use actix_web::http::header::HeaderName;
use proto::id::{OrgId, TokenId};
use proto::seal::Purpose;
use proto::tree::Hash;
use serde_json::Value;

use super::answer::Answer;
use super::error::{Code, Refusal};
use super::{ahead, call, write};
use crate::operator::Caller;
use crate::publish::Idempotency;
use crate::route::{Answering, Verb};
use crate::state::Control;

/// How long an answer is remembered.
const KEEP: Duration = Duration::from_secs(24 * 3600);
/// Answers that are remembered; the oldest goes first.
const ANSWERS_MAX: usize = 10_000;
/// Largest answers that are remembered, each and together, in bytes. A larger one is carried out
/// once all the same: the publisher knows the key.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;
const BYTES_MAX: usize = 64 * 1024 * 1024;
/// Longest key, in bytes.
const KEY_BYTES_MAX: usize = 255;

/// A key as one token used it in one organisation: the same word of another token is another key,
/// and so is it where a path's slug has become that of another organisation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct IdempotencyKey {
    token: TokenId,
    /// The organisation of the token.
    holder: OrgId,
    /// The organisation that the request is about.
    org: OrgId,
    text: String,
}

impl IdempotencyKey {
    /// Checks the header's value.
    ///
    /// # Errors
    /// It is empty, too long, or holds something else than visible ASCII.
    pub fn new(caller: &Caller, org: OrgId, text: &str) -> Result<Self, Refusal> {
        let printable = text.bytes().all(|b| b.is_ascii_graphic() || b == b' ');
        if text.is_empty() || text.len() > KEY_BYTES_MAX || !printable {
            let detail = "must have 1 to 255 visible ASCII characters";
            return Err(Refusal::parameter("Idempotency-Key", detail));
        }
        Ok(Self {
            token: caller.token_id,
            holder: caller.org,
            org,
            text: text.to_owned(),
        })
    }
}

impl std::fmt::Display for IdempotencyKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.token, self.text)
    }
}

/// What to do with a write that has a key.
#[derive(Debug)]
pub enum Claim {
    /// It is the first: carry it out, then [`Memory::settle`].
    First,
    /// It was carried out, or may have been: this was the answer.
    Again(Box<Result<Answer, Refusal>>),
}

/// The writes of the last day that had a key.
#[derive(Debug, Default)]
pub struct Memory {
    entries: HashMap<IdempotencyKey, Entry>,
    /// The keys of each organisation's tokens in the order in which they were taken.
    lines: HashMap<OrgId, Line>,
    taken: usize,
    bytes: usize,
}

/// What the tokens of one organisation have here.
#[derive(Debug, Default)]
struct Line {
    order: VecDeque<(Instant, IdempotencyKey)>,
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    /// Digest of method, path and body.
    request: [u8; 32],
    began: Instant,
    answer: Option<Result<Answer, Refusal>>,
    bytes: usize,
}

impl Memory {
    /// Looks a key up, and takes it if it is free.
    ///
    /// # Errors
    /// It belongs to another request, or the first one with it has not ended.
    pub fn claim(
        &mut self,
        key: &IdempotencyKey,
        request: [u8; 32],
        now: Instant,
    ) -> Result<Claim, Refusal> {
        self.forget(now);
        if let Some(entry) = self.entries.get(key) {
            if entry.request != request {
                let detail = "this key was used for another request within a day; take a new one";
                return Err(Refusal::new(Code::IdempotencyKeyReused, detail));
            }
            return match &entry.answer {
                Some(answer) => Ok(Claim::Again(Box::new(answer.clone()))),
                None => {
                    let detail = "wait for the first request with this key, then ask again";
                    Err(Refusal::new(Code::IdempotencyKeyInUse, detail).retry_after_s(1))
                }
            };
        }
        let entry = Entry {
            request,
            began: now,
            answer: None,
            bytes: 0,
        };
        self.entries.insert(key.clone(), entry);
        let line = self.lines.entry(key.holder).or_default();
        line.order.push_back((now, key.clone()));
        self.taken += 1;
        Ok(Claim::First)
    }

    /// Keeps the answer of a first request; frees the key when there is none.
    pub fn settle(&mut self, key: &IdempotencyKey, answer: Option<&Result<Answer, Refusal>>) {
        let bytes = |answer: &Result<Answer, Refusal>| match answer {
            Ok(answer) => answer.content.bytes(),
            Err(refusal) => refusal.detail.len(),
        };
        let kept = answer
            .map(|answer| (answer, bytes(answer)))
            .filter(|(_, bytes)| *bytes <= ANSWER_BYTES_MAX);
        match (kept, self.entries.get_mut(key)) {
            (Some((answer, bytes)), Some(entry)) => {
                (entry.answer, entry.bytes) = (Some(answer.clone()), bytes);
                self.bytes += bytes;
                self.lines.entry(key.holder).or_default().bytes += bytes;
            }
            (None, _) => self.free(key),
            (Some(_), None) => {}
        }
    }

    /// Frees a key, and its place in the line: what fails takes nothing from anybody.
    fn free(&mut self, key: &IdempotencyKey) {
        let Some(entry) = self.entries.remove(key) else {
            return;
        };
        let Some(line) = self.lines.get_mut(&key.holder) else {
            return;
        };
        let is_it = |(began, of): &(Instant, IdempotencyKey)| *began == entry.began && of == key;
        if let Some(at) = line.order.iter().rposition(is_it) {
            line.order.remove(at);
            self.taken = self.taken.saturating_sub(1);
        }
        if line.order.is_empty() {
            self.lines.remove(&key.holder);
        }
    }

    /// Forgets everything, as a restart does.
    #[cfg(test)]
    pub fn forget_all(&mut self) {
        *self = Self::default();
    }

    /// Forgets what is old; and where there is too much, the oldest of the organisation that has
    /// most, so that none makes another's repeated write a second one.
    fn forget(&mut self, now: Instant) {
        let is_old = |line: &Line| {
            let oldest = line.order.front();
            oldest.is_some_and(|(began, _)| now.saturating_duration_since(*began) >= KEEP)
        };
        while let Some(holder) = self.holder_where(is_old) {
            self.forget_oldest_of(holder);
        }
        while self.taken >= ANSWERS_MAX {
            let Some(holder) = self.holder_of_most(|line| line.order.len()) else {
                break;
            };
            self.forget_oldest_of(holder);
        }
        while self.bytes > BYTES_MAX {
            let Some(holder) = self.holder_of_most(|line| line.bytes) else {
                break;
            };
            self.forget_oldest_of(holder);
        }
    }

    fn holder_where(&self, is_meant: impl Fn(&Line) -> bool) -> Option<OrgId> {
        let mut lines = self.lines.iter();
        lines.find(|(_, line)| is_meant(line)).map(|(org, _)| *org)
    }

    fn holder_of_most(&self, size: impl Fn(&Line) -> usize) -> Option<OrgId> {
        let most = self.lines.iter().max_by_key(|(_, line)| size(line));
        most.map(|(org, _)| *org)
    }

    fn forget_oldest_of(&mut self, holder: OrgId) {
        let Some(line) = self.lines.get_mut(&holder) else {
            return;
        };
        if let Some((began, key)) = line.order.pop_front() {
            self.taken = self.taken.saturating_sub(1);
            // A freed key may have been taken anew since; that one has its own place in the line.
            let is_same = |entry: &Entry| entry.began == began;
            if self.entries.get(&key).is_some_and(is_same)
                && let Some(entry) = self.entries.remove(&key)
            {
                self.bytes = self.bytes.saturating_sub(entry.bytes);
                line.bytes = line.bytes.saturating_sub(entry.bytes);
            }
        }
        if line.order.is_empty() {
            self.lines.remove(&holder);
        }
    }
}

/// The key of a write, where it has one.
///
/// # Errors
/// It is malformed, or given twice.
pub fn key(
    request: &HttpRequest,
    caller: &Caller,
    org: OrgId,
) -> Result<Option<IdempotencyKey>, Refusal> {
    let name = HeaderName::from_static("idempotency-key");
    call::single(request.headers(), &name, "Idempotency-Key")?
        .map(|text| IdempotencyKey::new(caller, org, text))
        .transpose()
}

/// What makes two requests with one key the same request. Keyed, since it is stored and bodies
/// hold what is nobody's business.
pub fn digest(
    control: &Control,
    (verb, request): (Verb, &HttpRequest),
    document: &Value,
) -> [u8; 32] {
    let parts = [
        "idempotency",
        verb.as_str(),
        request.uri().path(),
        request.query_string(),
        &ahead::identified(&control.digest_key, document).to_string(),
    ];
    control
        .digest_key
        .digest(Purpose::TargetFingerprint, parts.join("\0").as_bytes())
}

/// A request with a key.
pub struct Keyed {
    /// The key.
    pub key: IdempotencyKey,
    /// What tells this request from others ([`digest`]).
    pub digest: [u8; 32],
    /// The organisation of which it deletes something.
    pub deletes_in: Option<OrgId>,
}

/// Carries a write out once. This process knows the first answer, a generated key included; after
/// a restart, or at another control, the publisher still knows that a version was made.
///
/// # Errors
/// Those of the write; or the key is taken by another request.
pub async fn once(
    control: &Control,
    keyed: Keyed,
    run: impl FnOnce(Idempotency) -> Answering,
) -> Result<Answer, Refusal> {
    let Keyed { key, digest, .. } = keyed;
    if let Claim::Again(answer) = control.idempotency().claim(&key, digest, Instant::now())? {
        return *answer;
    }
    let held = Held {
        control,
        key: &key,
        answer: None,
    };
    let kept = Idempotency {
        key: key.to_string(),
        fingerprint: Hash::of(&digest),
    };
    let result = match (run(kept.clone()).await, keyed.deletes_in) {
        (Err(refusal), Some(org)) if refusal.code == Code::NotFound => {
            write::deleted_before(control, org, &kept)
                .await
                .and_then(|answer| answer.ok_or(refusal))
        }
        (result, _) => result,
    };
    let is_kept = match &result {
        Ok(_) => true,
        Err(refusal) => refusal.may_be_done,
    };
    held.settle(Some(&result).filter(|_| is_kept));
    result
}

/// A key that a write has taken: settled when the write ends, freed where it breaks off.
struct Held<'a> {
    control: &'a Control,
    key: &'a IdempotencyKey,
    answer: Option<&'a Result<Answer, Refusal>>,
}

impl<'a> Held<'a> {
    /// Keeps this answer; frees the key when there is none.
    fn settle(mut self, answer: Option<&'a Result<Answer, Refusal>>) {
        self.answer = answer;
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.control.idempotency().settle(self.key, self.answer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A token of an organisation of its own.
    fn caller(bits: u128) -> Caller {
        Caller {
            token_id: TokenId::from_bits(bits),
            org: OrgId::from_bits(bits),
            ..Caller::local()
        }
    }

    fn key(text: &str) -> IdempotencyKey {
        IdempotencyKey::new(&caller(1), OrgId::from_bits(1), text).unwrap()
    }

    #[test]
    fn a_key_belongs_to_one_request_for_a_day() {
        let mut memory = Memory::default();
        let start = Instant::now();
        assert!(matches!(
            memory.claim(&key("a"), [1; 32], start),
            Ok(Claim::First)
        ));
        let code = |result: Result<Claim, Refusal>| result.unwrap_err().code;
        assert_eq!(
            code(memory.claim(&key("a"), [1; 32], start)),
            Code::IdempotencyKeyInUse
        );
        assert_eq!(
            code(memory.claim(&key("a"), [2; 32], start)),
            Code::IdempotencyKeyReused
        );
        memory.settle(
            &key("a"),
            Some(&Ok(Answer::nothing().version(OrgId::from_bits(1), 7))),
        );
        assert!(matches!(
            memory.claim(&key("a"), [1; 32], start),
            Ok(Claim::Again(_))
        ));
        assert_eq!(
            code(memory.claim(&key("a"), [2; 32], start)),
            Code::IdempotencyKeyReused
        );
        let other = IdempotencyKey::new(&caller(2), OrgId::from_bits(1), "a").unwrap();
        assert!(matches!(
            memory.claim(&other, [2; 32], start),
            Ok(Claim::First)
        ));
        let later = start + KEEP;
        assert!(matches!(
            memory.claim(&key("a"), [2; 32], later),
            Ok(Claim::First)
        ));
    }

    #[test]
    fn a_failed_write_frees_its_key() {
        let mut memory = Memory::default();
        let now = Instant::now();
        assert!(matches!(
            memory.claim(&key("a"), [1; 32], now),
            Ok(Claim::First)
        ));
        memory.settle(&key("a"), None);
        assert!(matches!(
            memory.claim(&key("a"), [2; 32], now),
            Ok(Claim::First)
        ));
    }

    #[actix_web::test]
    async fn a_write_that_panics_frees_its_key() {
        let api = crate::api::tests::api().await;
        let control = api.control.clone();
        let keyed = || Keyed {
            key: key("a"),
            digest: [1; 32],
            deletes_in: None,
        };
        let breaks = actix_web::rt::spawn(async move {
            let run = |_| -> Answering { Box::pin(async { panic!("a defect") }) };
            once(&control, keyed(), run).await
        });
        assert!(breaks.await.is_err(), "it panicked");
        let run = |_| -> Answering { Box::pin(async { Ok(Answer::nothing()) }) };
        let again = once(&api.control, keyed(), run).await;
        assert!(again.is_ok(), "{again:?}");
    }

    #[test]
    fn memory_is_bounded() {
        let mut memory = Memory::default();
        let now = Instant::now();
        for n in 0..ANSWERS_MAX + 10 {
            let claim = memory.claim(&key(&n.to_string()), [1; 32], now);
            assert!(matches!(claim, Ok(Claim::First)));
        }
        assert!(memory.entries.len() <= ANSWERS_MAX);
        assert!(memory.taken <= ANSWERS_MAX);
    }

    #[test]
    fn whoever_has_most_is_forgotten_first() {
        let mut memory = Memory::default();
        let now = Instant::now();
        let org = OrgId::from_bits(9);
        let few = IdempotencyKey::new(&caller(2), org, "a").unwrap();
        let done = Ok(Answer::nothing());
        memory.claim(&few, [1; 32], now).unwrap();
        memory.settle(&few, Some(&done));
        for n in 0..ANSWERS_MAX + 10 {
            let flood = key(&n.to_string());
            memory.claim(&flood, [1; 32], now).unwrap();
            memory.settle(&flood, Some(&done));
        }
        let again = memory.claim(&few, [1; 32], now);
        assert!(matches!(again, Ok(Claim::Again(_))), "{again:?}");
        // What fails leaves nothing.
        let mut memory = Memory::default();
        for n in 0..10 {
            memory.claim(&key(&n.to_string()), [1; 32], now).unwrap();
            memory.settle(&key(&n.to_string()), None);
        }
        assert_eq!((memory.taken, memory.lines.len()), (0, 0));
    }

    #[test]
    fn a_key_is_for_one_organisation_whatever_its_slug_means_later() {
        let mut memory = Memory::default();
        let now = Instant::now();
        for org in [1, 2] {
            let key = IdempotencyKey::new(&caller(1), OrgId::from_bits(org), "a").unwrap();
            let claim = memory.claim(&key, [1; 32], now);
            assert!(matches!(claim, Ok(Claim::First)), "{claim:?}");
            memory.settle(&key, Some(&Ok(Answer::nothing())));
        }
    }

    #[test]
    fn keys_are_checked() {
        for (text, good) in [
            ("a b-1", true),
            ("", false),
            ("ä", false),
            ("a\u{7f}", false),
        ] {
            assert_eq!(
                IdempotencyKey::new(&caller(1), OrgId::from_bits(1), text).is_ok(),
                good,
                "{text}"
            );
        }
        let long = "a".repeat(256);
        assert!(IdempotencyKey::new(&caller(1), OrgId::from_bits(1), &long).is_err());
    }
}
