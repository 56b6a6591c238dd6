//! The numbers of one answer, read while it passes.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName};

use super::decimal::{self, MILLIONTHS, VALUE_MAX};
use super::events::{Events, Fate};
use super::{RequestUsage, ReservePart, ResponseValue, Take, ValuePart, ValueTemplate};
use crate::filter::{self, Kind};
use crate::json_path::{JsonPath, PathError, Work};
use crate::json_text::{self, JsonText};

/// A compiled [`ResponseValue`].
#[derive(Debug)]
pub struct ValueSet {
    parts: Vec<Part>,
    take: Take,
    reserve: Vec<(JsonPath, u64)>,
    injects: bool,
}

#[derive(Debug)]
struct Part {
    place: Place,
    weight: u64,
}

#[derive(Debug)]
enum Place {
    /// The first of these that finds something in a document.
    Paths(Vec<JsonPath>),
    Header(HeaderName),
}

/// How an answer's documents are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// One JSON document.
    Json,
    /// `text/event-stream`, one per event.
    Events,
    /// Nothing that holds numbers.
    None,
}

/// The numbers of one answer so far.
#[derive(Debug)]
pub struct Reading {
    set: Arc<ValueSet>,
    /// In millionths, one element per part.
    found: Vec<Option<u128>>,
    framing: Framing,
    events: Events,
    /// Pieces of a document that is not complete yet.
    pieces: Vec<Bytes>,
    bytes: usize,
    bytes_max: usize,
    codings: String,
    /// The usage event of a stream was asked for by us, and is taken out.
    takes_out: bool,
}

impl ResponseValue {
    /// The form that answers are read by.
    ///
    /// # Errors
    /// A path or a header name that is none; [`ResponseValue::validate`] tells all.
    pub fn compile(&self) -> Result<ValueSet, PathError> {
        let reserve = |path: &str, weight: u64| JsonPath::parse(path).map(|path| (path, weight));
        let (parts, asked) = match self.template {
            Some(template) => template.parts(),
            None => {
                let parts: Result<_, PathError> = self.values.iter().map(part).collect();
                (parts?, &[][..])
            }
        };
        let own = |part: &ReservePart| reserve(&part.path, part.weight_millionths);
        let asked = asked.iter().map(|path| reserve(path, super::one()));
        Ok(ValueSet {
            parts,
            take: self.take,
            reserve: self
                .reserve
                .iter()
                .map(own)
                .chain(asked)
                .collect::<Result<_, _>>()?,
            injects: self.request_usage == RequestUsage::Inject,
        })
    }
}

fn part(part: &ValuePart) -> Result<Part, PathError> {
    let weight = part.weight_millionths;
    let header = part.header.as_ref();
    let place = match header.and_then(|name| HeaderName::from_bytes(name.as_bytes()).ok()) {
        Some(name) => Place::Header(name),
        None => {
            let path = part.path.as_deref().unwrap_or_default();
            Place::Paths(vec![JsonPath::parse(path)?])
        }
    };
    Ok(Part { place, weight })
}

impl ValueTemplate {
    /// What is counted, each with the paths under which it stands in answers and in events; and the
    /// numbers of the request that bound it.
    fn parts(self) -> (Vec<Part>, &'static [&'static str]) {
        let (values, request): (&[&[&str]], &[&str]) = match self {
            Self::OpenaiChat => (
                &[&["$.usage.total_tokens"]],
                &["$.max_completion_tokens", "$.max_tokens"],
            ),
            Self::OpenaiResponses => (
                &[&["$.usage.total_tokens", "$.response.usage.total_tokens"]],
                &["$.max_output_tokens"],
            ),
            Self::Anthropic => (
                &[
                    &["$.usage.input_tokens", "$.message.usage.input_tokens"],
                    &[
                        "$.usage.cache_creation_input_tokens",
                        "$.message.usage.cache_creation_input_tokens",
                    ],
                    &[
                        "$.usage.cache_read_input_tokens",
                        "$.message.usage.cache_read_input_tokens",
                    ],
                    &["$.usage.output_tokens", "$.message.usage.output_tokens"],
                ],
                &["$.max_tokens"],
            ),
            Self::Gemini => (
                &[&["$.usageMetadata.totalTokenCount"]],
                &["$.generationConfig.maxOutputTokens"],
            ),
        };
        let part = |paths: &&[&str]| Part {
            // Constants, each of which a test parses.
            place: Place::Paths(
                paths
                    .iter()
                    .filter_map(|p| JsonPath::parse(p).ok())
                    .collect(),
            ),
            weight: super::one(),
        };
        (values.iter().map(part).collect(), request)
    }
}

impl ValueSet {
    /// Whether numbers of the request's body count, or it is changed.
    pub fn reads_request(&self) -> bool {
        self.injects || !self.reserve.is_empty()
    }

    /// Whether a target is asked for its usage.
    pub fn injects(&self) -> bool {
        self.injects
    }

    /// Whether numbers of the answer's body count.
    pub fn reads_body(&self) -> bool {
        let by_path = |part: &Part| matches!(part.place, Place::Paths(_));
        self.parts.iter().any(by_path)
    }

    /// The least that is to be set aside for a request with this body.
    pub fn reserve(&self, body: &[u8]) -> u64 {
        if self.reserve.is_empty() {
            return 0;
        }
        let Ok(document) = JsonText::parse(body) else {
            return 0;
        };
        let mut work = Work::for_one_body();
        let numbers = self.reserve.iter().filter_map(|(path, weight)| {
            let number = number_at(path, &document, &mut work)?;
            Some(decimal::weighed([(number, *weight)].into_iter()))
        });
        numbers.max().unwrap_or(0)
    }
}

impl Framing {
    /// By the answer's media type.
    pub fn of(content_type: &str) -> Self {
        match filter::applies_to(content_type) {
            Kind::Json => Self::Json,
            Kind::EventStream => Self::Events,
            Kind::Ndjson | Kind::Other => Self::None,
        }
    }
}

impl Reading {
    /// Of an answer with these headers, whose documents have at most `bytes_max` bytes. `injected`:
    /// its stream has a usage event that its caller did not ask for.
    pub fn new(
        set: Arc<ValueSet>,
        headers: &HeaderMap,
        codings: &str,
        bytes_max: usize,
        injected: bool,
    ) -> Self {
        let content_type = headers.get(http::header::CONTENT_TYPE);
        let content_type = content_type.and_then(|value| value.to_str().ok());
        let coded = !codings.is_empty() && !codings.eq_ignore_ascii_case("identity");
        let framing = match Framing::of(content_type.unwrap_or_default()) {
            _ if !set.reads_body() => Framing::None,
            // Its events are not to be told apart.
            Framing::Events if coded => Framing::None,
            framing => framing,
        };
        let takes_out = injected && framing == Framing::Events;
        let mut reading = Self {
            found: vec![None; set.parts.len()],
            set,
            framing,
            events: Events::new(bytes_max, takes_out),
            pieces: Vec::new(),
            bytes: 0,
            bytes_max,
            codings: codings.to_owned(),
            takes_out,
        };
        reading.read_headers(headers);
        reading
    }

    /// Whether pieces may go on changed.
    pub fn takes_out(&self) -> bool {
        self.takes_out
    }

    /// Takes a piece of the body; what goes on of it.
    pub fn piece(&mut self, piece: Bytes) -> Bytes {
        match self.framing {
            Framing::None => piece,
            Framing::Json => {
                self.bytes = self.bytes.saturating_add(piece.len());
                match self.bytes > self.bytes_max {
                    true => self.pieces.clear(),
                    false => self.pieces.push(piece.clone()),
                }
                piece
            }
            Framing::Events => {
                let mut out = Vec::new();
                let takes_out = self.takes_out;
                let mut events = std::mem::take(&mut self.events);
                let mut each = |data: &[u8]| self.event(data);
                events.push(&piece, &mut each, &mut out);
                self.events = events;
                if takes_out { out.into() } else { piece }
            }
        }
    }

    /// The body is complete; what is left of it to go on.
    pub fn finish(&mut self) -> Bytes {
        let mut out = Vec::new();
        match self.framing {
            Framing::None => {}
            Framing::Json => self.whole(),
            Framing::Events => {
                let mut events = std::mem::take(&mut self.events);
                events.finish(&mut |data| self.event(data), &mut out);
            }
        }
        out.into()
    }

    /// What the answer has said so far, in whole units; none where it has said nothing.
    pub fn total(&self) -> Option<u64> {
        let mut some = false;
        let parts = self.found.iter().zip(&self.set.parts);
        let parts = parts.filter_map(|(found, part)| Some(((*found)?, part.weight)));
        let total = decimal::weighed(parts.inspect(|_| some = true));
        some.then_some(total)
    }

    fn read_headers(&mut self, headers: &HeaderMap) {
        for at in 0..self.found.len() {
            let Some(Place::Header(name)) = self.set.parts.get(at).map(|part| &part.place) else {
                continue;
            };
            let value = headers.get(name).and_then(|value| value.to_str().ok());
            let number = value.and_then(|text| decimal::millionths(text.trim_ascii()));
            self.note(at, number);
        }
    }

    fn whole(&mut self) {
        if self.bytes > self.bytes_max {
            return;
        }
        let pieces = std::mem::take(&mut self.pieces);
        let coded = match &pieces[..] {
            [piece] => piece.clone(),
            pieces => pieces.concat().into(),
        };
        if let Ok(body) = crate::body_view::decode(&coded, &self.codings, self.bytes_max) {
            self.document(&body);
        }
    }

    /// Reads an event's data; whether it goes on.
    fn event(&mut self, data: &[u8]) -> Fate {
        let Some(document) = data.contains(&b'{').then(|| JsonText::parse(data)) else {
            return Fate::Passes;
        };
        let Ok(document) = document else {
            return Fate::Passes;
        };
        self.numbers(&document);
        match self.takes_out && super::usage_option::is_usage_event(&document) {
            true => Fate::TakenOut,
            false => Fate::Passes,
        }
    }

    fn document(&mut self, body: &[u8]) {
        if let Ok(document) = JsonText::parse(body) {
            self.numbers(&document);
        }
    }

    fn numbers(&mut self, document: &JsonText<'_>) {
        let mut work = Work::for_one_body();
        let set = Arc::clone(&self.set);
        for (at, part) in set.parts.iter().enumerate() {
            if let Place::Paths(paths) = &part.place {
                let mut numbers = paths
                    .iter()
                    .filter_map(|p| number_at(p, document, &mut work));
                let first = numbers.next();
                self.note(at, first);
            }
        }
    }

    fn note(&mut self, at: usize, number: Option<u128>) {
        let (Some(found), Some(number)) = (self.found.get_mut(at), number) else {
            return;
        };
        let most = u128::from(VALUE_MAX) * MILLIONTHS;
        *found = Some(match (self.set.take, *found) {
            (Take::Last, _) | (_, None) => number,
            (Take::Max, Some(before)) => before.max(number),
            (Take::Sum, Some(before)) => before.saturating_add(number).min(most),
        });
    }
}

/// The sum of the numbers that a path finds; none where it finds no number, or more than may be.
fn number_at(path: &JsonPath, document: &JsonText<'_>, work: &mut Work) -> Option<u128> {
    let most = u128::from(VALUE_MAX) * MILLIONTHS;
    let found = path.select(document, work).ok()?;
    let numbers = found.into_iter().filter_map(|id| {
        let is_number = document.kind(id) == json_text::Kind::Number;
        is_number.then(|| decimal::millionths(document.raw(id)))?
    });
    numbers.reduce(|sum, number| sum.saturating_add(number).min(most))
}
