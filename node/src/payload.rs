//! The beginning of a body, kept for its record while the body passes: where a proxy asks for it.
//!
//! Nothing is held up and nothing is read that would not pass anyway. What is kept is what filters
//! and the search for the injected secret have let through, and before it becomes part of a record
//! known secrets are overwritten once more, with keys and tokens that can be told by their look:
//! those of callers among them. A secret that is cut by the bound is found all the same, since
//! somewhat more than the bound is looked at.
//!
//! All that a process holds at one time is bounded; beyond that bodies pass unseen.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::StreamExt;
use http::{HeaderMap, header};
use proto::filter::Detector;
use proto::payload::PayloadPolicy;
use proto::record::{Captured, Payload};

use crate::body::ByteStream;
use crate::credentials::live::{LiveSecrets, Whose};
use crate::credentials::scrub::Scrub;
use crate::flow::{Exchange, Inbound};
use crate::reflected;

/// Most bytes that are held for bodies in flight, in the whole process.
const HELD_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Bytes behind the bound in which a key or token may end that began before it.
const TOKEN_BYTES_MAX: usize = 4_096;

static HELD_BYTES: AtomicUsize = AtomicUsize::new(0);

/// The beginning of one body.
#[derive(Debug)]
pub struct Capture {
    /// Bytes that the record gets at most.
    bytes_max: usize,
    /// Bytes that are looked at for it.
    room: usize,
    taken: Vec<u8>,
    /// More came than is looked at.
    cut: bool,
    /// Of the bound of the process.
    held: usize,
    no_memory: bool,
    content_type: Option<String>,
    codings: String,
}

impl Capture {
    /// Of a body with these fields, of which a record gets at most so many bytes.
    pub fn new(bytes_max: u32, headers: &HeaderMap, scrub: Option<&Scrub>) -> Self {
        let bytes_max = usize::try_from(bytes_max).unwrap_or(usize::MAX);
        let behind = scrub.map_or(0, Scrub::longest).max(TOKEN_BYTES_MAX);
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let codings = headers.get_all(header::CONTENT_ENCODING).iter();
        let codings: Vec<_> = codings.map(|value| value.to_str().unwrap_or("?")).collect();
        Self {
            bytes_max,
            room: bytes_max.saturating_add(behind),
            taken: Vec::new(),
            cut: false,
            held: 0,
            no_memory: false,
            content_type: text(header::CONTENT_TYPE).map(str::to_owned),
            codings: codings.join(","),
        }
    }

    /// The body's next bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.held == 0 && !bytes.is_empty() && !self.hold() {
            self.no_memory = true;
        }
        if self.no_memory {
            return;
        }
        let left = self.room - self.taken.len();
        let part = bytes.get(..left).unwrap_or(bytes);
        self.cut |= part.len() < bytes.len();
        self.taken.extend_from_slice(part);
    }

    fn hold(&mut self) -> bool {
        let more = |held: usize| Some(held + self.room).filter(|held| *held <= HELD_BYTES_MAX);
        let is_room = HELD_BYTES.fetch_update(Relaxed, Relaxed, more).is_ok();
        self.held = if is_room { self.room } else { 0 };
        is_room
    }

    /// What its record says of it; nothing of a body that was empty.
    pub fn captured(&mut self, scrub: Option<&Scrub>, whose: Whose) -> Option<Captured> {
        let withheld = |why: &str| Captured {
            withheld: Some(why.to_owned()),
            ..Captured::default()
        };
        let mut captured = match self.plain() {
            _ if self.no_memory => withheld("memory"),
            None => withheld("content-coding"),
            Some(plain) if plain.is_empty() => return None,
            Some(plain) => {
                let length = plain.len();
                self.shown(clean(plain, scrub, whose), length)
            }
        };
        let content_type = self.content_type.take();
        let clean = |text: String| clean(text.into_bytes(), scrub, whose).text();
        captured.content_type = content_type.map(clean);
        Some(captured)
    }

    /// The bytes without content coding; none where that needs more of them.
    fn plain(&mut self) -> Option<Vec<u8>> {
        let taken = std::mem::take(&mut self.taken);
        let is_coding = |coding: &str| !coding.is_empty() && coding != "identity";
        if !self.codings.split(',').map(str::trim).any(is_coding) {
            return Some(taken);
        }
        if self.cut {
            return None;
        }
        let decoded = proto::body_view::decode(&taken, &self.codings, self.room);
        decoded.ok().map(|plain| plain.into_owned())
    }

    fn shown(&self, clean: Clean, length: usize) -> Captured {
        let truncated = self.cut || length > self.bytes_max;
        let (content, base64) = match clean {
            Clean::Text(mut text) => {
                text.truncate(text.floor_char_boundary(self.bytes_max));
                (text, false)
            }
            Clean::Binary(bytes) => {
                let first = bytes.get(..self.bytes_max).unwrap_or(&bytes);
                (STANDARD.encode(first), true)
            }
        };
        Captured {
            content,
            base64,
            truncated,
            ..Captured::default()
        }
    }
}

/// Bytes in which nothing is left that is known to be a secret.
enum Clean {
    Text(String),
    Binary(Vec<u8>),
}

impl Clean {
    fn text(self) -> String {
        match self {
            Self::Text(text) => text,
            Self::Binary(bytes) => STANDARD.encode(bytes),
        }
    }
}

fn clean(plain: Vec<u8>, scrub: Option<&Scrub>, whose: Whose) -> Clean {
    let plain = match scrub.and_then(|scrub| scrub.overwrite(&plain)) {
        Some(overwritten) => overwritten.text,
        None => plain,
    };
    let mut plain = LiveSecrets::of_process()
        .overwritten(whose, &plain)
        .into_owned();
    overwrite_tokens(&mut plain);
    match String::from_utf8(plain) {
        Ok(text) => Clean::Text(text),
        Err(error) if error.utf8_error().error_len().is_some() => Clean::Binary(error.into_bytes()),
        Err(error) => {
            // The bound has cut a character.
            let end = error.utf8_error().valid_up_to();
            let mut plain = error.into_bytes();
            plain.truncate(end);
            Clean::Text(String::from_utf8(plain).unwrap_or_default())
        }
    }
}

/// Overwrites what looks like a key or a token in every part of the bytes that is a text. Stars in
/// the place of whole characters leave it one.
fn overwrite_tokens(bytes: &mut [u8]) {
    let (mut places, mut from) = (Vec::new(), 0);
    for part in bytes.utf8_chunks() {
        let text = part.valid();
        Detector::Token.find(text, &mut |place| {
            places.push(from + place.start..from + place.end);
        });
        from += text.len() + part.invalid().len();
    }
    for place in places {
        if let Some(token) = bytes.get_mut(place) {
            token.fill(b'*');
        }
    }
}

/// Keeps the beginning of the body that is about to be sent to the target with these fields.
pub fn watch_request(exchange: &mut Exchange, headers: &HeaderMap) {
    let Some(proxy) = &exchange.proxy else {
        return;
    };
    let Some(policy) = wanted(proxy.record.payload, |policy| policy.requests) else {
        return;
    };
    let scrub = reflected::scrub_of(exchange);
    let mut capture = Capture::new(policy.bytes_max, headers, scrub.as_deref());
    let shared = |capture| Rc::new(RefCell::new(capture));
    exchange.notes.payload = match std::mem::take(&mut exchange.body) {
        Inbound::None => None,
        Inbound::Buffered(bytes) => {
            capture.push(&bytes);
            exchange.body = Inbound::Buffered(bytes);
            Some(shared(capture))
        }
        Inbound::Oversize {
            read,
            stream,
            length,
        } => {
            capture.push(&read);
            let capture = shared(capture);
            let stream = watched(stream, capture.clone());
            exchange.body = Inbound::Oversize {
                read,
                stream,
                length,
            };
            Some(capture)
        }
        Inbound::Stream { stream, length } => {
            let capture = shared(capture);
            let stream = watched(stream, capture.clone());
            exchange.body = Inbound::Stream { stream, length };
            Some(capture)
        }
    };
}

fn watched(stream: ByteStream, capture: Rc<RefCell<Capture>>) -> ByteStream {
    Box::pin(stream.inspect(move |piece| {
        if let Ok(bytes) = piece {
            capture.borrow_mut().push(bytes);
        }
    }))
}

/// What keeps the beginning of the answer's body, where there is one and it is wanted.
fn of_answer(exchange: &Exchange) -> Option<Box<Capture>> {
    let proxy = exchange.proxy.as_ref()?;
    let policy = wanted(proxy.record.payload, |policy| policy.responses)?;
    // The gateway's own documents say nothing that the record does not.
    let answer = exchange
        .answer
        .as_ref()
        .filter(|_| exchange.end.is_none())?;
    let scrub = reflected::scrub_of(exchange);
    let capture = Capture::new(policy.bytes_max, &answer.headers, scrub.as_deref());
    Some(Box::new(capture))
}

fn wanted(
    policy: Option<PayloadPolicy>,
    which: impl Fn(&PayloadPolicy) -> bool,
) -> Option<PayloadPolicy> {
    policy.filter(which)
}

/// The beginnings of bodies, where the record is to have them.
pub struct Bodies {
    request: Option<Rc<RefCell<Capture>>>,
    response: Option<Box<Capture>>,
    scrub: Option<Arc<Scrub>>,
    whose: Whose,
}

impl Bodies {
    /// Those of a request whose answer is about to go to the caller; none where none is wanted.
    pub fn of(exchange: &mut Exchange) -> Option<Box<Self>> {
        let request = exchange.notes.payload.take();
        let response = of_answer(exchange);
        let whose = Whose::of(exchange.proxy.as_ref().map(|proxy| proxy.org));
        (request.is_some() || response.is_some()).then(|| {
            Box::new(Self {
                request,
                response,
                scrub: reflected::scrub_of(exchange),
                whose,
            })
        })
    }

    /// These bytes of the answer have been given to the caller's connection.
    pub fn sent(&mut self, bytes: &[u8]) {
        if let Some(response) = &mut self.response {
            response.push(bytes);
        }
    }

    /// What the record says of them.
    pub fn payload(self) -> Box<Payload> {
        let (scrub, whose) = (self.scrub.as_deref(), self.whose);
        let request = self.request;
        Box::new(Payload {
            request: request.and_then(|capture| capture.borrow_mut().captured(scrub, whose)),
            response: self
                .response
                .and_then(|mut capture| capture.captured(scrub, whose)),
        })
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        HELD_BYTES.fetch_sub(self.held, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(fields: &[(header::HeaderName, &'static str)]) -> HeaderMap {
        let fields = fields.iter().cloned();
        fields
            .map(|(name, value)| (name, HeaderValue::from_static(value)))
            .collect()
    }

    fn captured(bytes_max: u32, pieces: &[&[u8]], scrub: Option<&Scrub>) -> Option<Captured> {
        let mut capture = Capture::new(bytes_max, &HeaderMap::new(), scrub);
        pieces.iter().for_each(|piece| capture.push(piece));
        capture.captured(scrub, Whose::Nobodys)
    }

    #[test]
    fn the_first_bytes_are_kept_as_text_or_base64() {
        let text = |content: &str, truncated: bool| {
            Some(Captured {
                content: content.into(),
                truncated,
                ..Captured::default()
            })
        };
        assert_eq!(captured(8, &[], None), None);
        assert_eq!(captured(8, &[b"ab", b"cd"], None), text("abcd", false));
        assert_eq!(captured(3, &[b"ab", b"cd"], None), text("abc", true));
        let long = vec![b'x'; 100_000];
        assert_eq!(captured(2, &[&long, &long], None), text("xx", true));
        assert_eq!(
            captured(4, &["h\u{e4}\u{e4}\u{e4}".as_bytes()], None),
            text("h\u{e4}", true)
        );
        let binary = captured(2, &[&[0xff, 0, 1]], None).unwrap();
        assert_eq!((binary.content.as_str(), binary.base64), ("/wA=", true));
        assert!(binary.truncated);
    }

    #[test]
    fn secrets_are_overwritten_wherever_the_bound_cuts_them() {
        let secret = "sk-target-5f8a1c77d2-and-some-more";
        let key = format!("rr_live_{}", "k".repeat(43));
        let scrub = Scrub::new([secret], []);
        let body = format!("{{\"a\": \"{secret}\", \"b\": \"{key}\", \"c\": 1}}");
        for bytes_max in 1..=body.len() as u32 {
            for at in [0, 3, 20, body.len() / 2] {
                let (one, other) = body.as_bytes().split_at(at);
                let found = captured(bytes_max, &[one, other], Some(&scrub)).unwrap();
                let shown = found.content;
                assert!(
                    !shown.contains("sk-t") && !shown.contains("rr_l"),
                    "{shown}"
                );
                assert_eq!(shown.len(), bytes_max as usize);
            }
        }
    }

    #[test]
    fn what_others_have_is_not_told_by_stars() {
        let [one, other] = [1, 2].map(proto::id::OrgId::from_bits);
        let secret = "Sommer-2024-payload!";
        let scrub = Arc::new(Scrub::new([secret], []));
        LiveSecrets::of_process().add(Some(one), &scrub);
        let shown = |org| {
            let mut capture = Capture::new(100, &HeaderMap::new(), None);
            capture.push(format!("said {secret}").as_bytes());
            capture.captured(None, Whose::Orgs(org)).unwrap().content
        };
        assert_eq!(shown(other), format!("said {secret}"));
        assert_eq!(shown(one), format!("said {}", "*".repeat(secret.len())));
    }

    #[test]
    fn keys_and_tokens_are_overwritten_beside_bytes_that_are_no_text() {
        let key = format!("rr_live_{}", "k".repeat(43));
        let other = format!("rr_live_{}", "m".repeat(43));
        let body = [b"\xff{", key.as_bytes(), b"}\xfe\x00", other.as_bytes()].concat();
        for bytes_max in [body.len(), body.len() - 20] {
            let found = captured(bytes_max as u32, &[&body], None).unwrap();
            assert!(found.base64);
            let shown = STANDARD.decode(found.content).unwrap();
            assert_eq!(shown.len(), bytes_max);
            let text = String::from_utf8_lossy(&shown);
            assert!(!text.contains("rr_live") && !text.contains("kkk"), "{text}");
            assert!(!text.contains("mmm"), "{text}");
        }
    }

    #[test]
    fn a_coded_body_is_decoded_when_it_is_whole() {
        let fields = [
            (header::CONTENT_ENCODING, "gzip"),
            (header::CONTENT_TYPE, "text/plain"),
        ];
        // `printf 'plain words' | gzip -n`
        let coded = base64::engine::general_purpose::STANDARD
            .decode("H4sIAAAAAAAAAyvISczMUyjPL0opBgCJ8rixCwAAAA==")
            .unwrap();
        let mut capture = Capture::new(5, &headers(&fields), None);
        capture.push(&coded);
        let found = capture.captured(None, Whose::Nobodys).unwrap();
        assert_eq!((found.content.as_str(), found.truncated), ("plain", true));
        assert_eq!(found.content_type.as_deref(), Some("text/plain"));
        let mut capture = Capture::new(5, &headers(&fields), None);
        capture.push(&vec![1; 100_000]);
        let found = capture.captured(None, Whose::Nobodys).unwrap();
        assert_eq!(found.withheld.as_deref(), Some("content-coding"));
        assert_eq!(found.content, "");
    }

    #[test]
    fn what_is_held_is_bounded_and_given_back() {
        let many = || {
            let captures = (0..2_000).map(|_| {
                let mut capture = Capture::new(65_536, &HeaderMap::new(), None);
                capture.push(b"x");
                capture
            });
            captures.collect::<Vec<_>>()
        };
        for _ in 0..2 {
            let mut all = many();
            let held = all.iter().filter(|capture| !capture.no_memory).count();
            assert!(held >= 900, "others give back what they held: {held}");
            assert!(held * (65_536 + TOKEN_BYTES_MAX) <= HELD_BYTES_MAX);
            let last = all
                .last_mut()
                .unwrap()
                .captured(None, Whose::Nobodys)
                .unwrap();
            assert_eq!(last.withheld.as_deref(), Some("memory"));
        }
    }
}
