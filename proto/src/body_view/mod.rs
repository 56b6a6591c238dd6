//! What body parts of rules (and of meters) see of a request body.
//!
//! An upstream that ignores `Content-Type` obeys JSON sent as `text/plain`; one of two equal keys
//! wins here and the other one there; gzip hides everything. So a body is read by what it is, not
//! by what it says, and a body that cannot be read exactly one way is *unreadable*, which a deny
//! rule treats as a match. Reading never changes what is sent.
//!
//! One case has two honest readings and is not refused: JSON under the type of a form, which is
//! what `curl -d` sends. Both readings are kept; policy asks both.

mod decode;
mod form;
mod json;
mod json_path;
mod media_type;
mod multipart;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::HashMap;

use serde::Serialize;
use serde_json::Value;

pub use decode::{Coding, ZSTD_WINDOW_LOG_MAX, codings, decode};
pub use json_path::{JsonPath, JsonPathProblem};
use media_type::MediaKind;

/// Results of one JSONPath on one body, at most.
const RESULTS_MAX: usize = 10_000;

/// What may be spent on reading one body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodyLimits {
    /// Bytes of the body, as sent and decoded: the proxy's `body_buffer_bytes`.
    pub bytes_max: usize,
    /// Decoded bytes per byte sent.
    pub ratio_max: usize,
    /// Content codings on top of each other.
    pub codings_max: usize,
    /// Nested arrays and objects.
    pub depth_max: usize,
    /// JSON values, or form fields. Bounds memory (some 100 bytes each) and the time of a query.
    pub nodes_max: usize,
}

impl BodyLimits {
    /// The limits of the product with a proxy's `body_buffer_bytes`.
    pub const fn new(body_buffer_bytes: usize) -> Self {
        Self {
            bytes_max: body_buffer_bytes,
            ratio_max: 100,
            codings_max: 2,
            depth_max: 64,
            nodes_max: 100_000,
        }
    }
}

/// Why a body cannot be read exactly one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Unreadable {
    /// More than `body_buffer_bytes`, as sent or decoded.
    #[error("the body is larger than body_buffer_bytes")]
    TooLarge,
    /// A `Content-Encoding` other than gzip, br, zstd, deflate.
    #[error("the body has an unknown content coding")]
    UnknownCoding,
    /// More codings on top of each other than allowed.
    #[error("the body has too many content codings")]
    TooManyCodings,
    /// The coded bytes are invalid, cut short, or followed by others.
    #[error("the body does not decode as its content coding says")]
    BrokenCoding,
    /// It decodes to more than the allowed ratio.
    #[error("the body decodes to far more bytes than were sent")]
    RatioExceeded,
    /// Text that is not UTF-8.
    #[error("the body is not UTF-8")]
    NotUtf8,
    /// It begins with a byte order mark.
    #[error("the body begins with a byte order mark")]
    ByteOrderMark,
    /// A `charset` other than UTF-8 and US-ASCII, or a `Content-Type` that cannot be parsed.
    #[error("the body's content type names an unknown charset or cannot be parsed")]
    UnknownCharset,
    /// Looks or claims to be JSON (RFC 8259) and is not.
    #[error("the body is not valid JSON")]
    NotJson,
    /// Two equal keys in one object.
    #[error("the body has an object with two equal keys")]
    DuplicateKey,
    /// Nested too deeply.
    #[error("the body is nested too deeply")]
    TooDeep,
    /// Too many values or fields.
    #[error("the body has too many values")]
    TooManyNodes,
    /// `multipart/form-data` that parsers disagree about.
    #[error("the body is not strictly valid multipart/form-data")]
    BrokenMultipart,
    /// Neither JSON nor a form.
    #[error("the body is neither JSON nor a form")]
    UnsupportedType,
    /// A JSONPath finds too much in it.
    #[error("a JSONPath finds too many values in the body")]
    TooManyResults,
}

/// A body that can be read, in its one reading (or two, see the module's text).
///
/// An absent or empty body has none: nothing is found in it.
#[derive(Clone, Debug, Default)]
pub struct BodyView {
    documents: Vec<Document>,
}

impl BodyView {
    /// Reads the buffered body of a request.
    ///
    /// `content_type` and `content_encoding` are the values of those headers; several lines of
    /// `Content-Encoding` are joined by commas, several of `Content-Type` likewise (which makes an
    /// unknown type).
    ///
    /// # Errors
    /// [`Unreadable`] with the first reason found.
    pub fn read(
        content_type: Option<&[u8]>,
        content_encoding: Option<&[u8]>,
        bytes: &[u8],
        limits: &BodyLimits,
    ) -> Result<Self, Unreadable> {
        if bytes.len() > limits.bytes_max {
            return Err(Unreadable::TooLarge);
        }
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        let plain = decode::decode_within(bytes, content_encoding.unwrap_or_default(), limits)?;
        if plain.is_empty() {
            return Ok(Self::default());
        }
        if begins_with_mark(&plain) {
            return Err(Unreadable::ByteOrderMark);
        }
        let media = MediaKind::parse(content_type.unwrap_or_default())?;
        if matches!(media, MediaKind::Form | MediaKind::Json) && is_another_encoding(&plain) {
            return Err(Unreadable::NotUtf8);
        }
        let documents = read_documents(&media, &plain, limits)?;
        Ok(Self { documents })
    }

    /// The readings of the body: none if it is empty.
    pub fn documents(&self) -> &[Document] {
        &self.documents
    }

    /// The `_method` fields of a form, by which some frameworks override the method.
    pub fn form_methods(&self) -> impl Iterator<Item = &str> {
        let forms = self.documents.iter().filter(|document| document.is_form);
        forms
            .filter_map(|form| form.tree.get("_method"))
            .flat_map(|field| {
                let one = field.as_str().into_iter();
                one.chain(
                    field
                        .as_array()
                        .into_iter()
                        .flatten()
                        .filter_map(Value::as_str),
                )
            })
    }
}

/// One reading of a body.
#[derive(Clone, Debug)]
pub struct Document {
    tree: Value,
    is_form: bool,
    /// Numbers whose text is not what [`serde_json::Number`] prints, by their place among the
    /// document's numbers: `1e2`, `1.50`, integers beyond 64 bits.
    spellings: Vec<(usize, String)>,
}

impl Document {
    /// The values, numbers as numbers; a form is one flat object.
    pub fn tree(&self) -> &Value {
        &self.tree
    }

    /// What a JSONPath finds: the text of each scalar, `None` for each array or object.
    ///
    /// A number's text is as it was written. A found array stands for its elements, as a repeated
    /// form field does; one that holds nothing stands for itself.
    ///
    /// # Errors
    /// [`Unreadable::TooManyResults`].
    pub fn find(&self, path: &JsonPath) -> Result<Vec<Option<Cow<'_, str>>>, Unreadable> {
        let found = path.query(&self.tree);
        let spellings = if found.is_empty() {
            HashMap::new()
        } else {
            self.spellings_by_node()
        };
        let mut texts = Vec::new();
        for node in found {
            match node {
                Value::Array(elements) if !elements.is_empty() => {
                    texts.extend(elements.iter().map(|element| text(element, &spellings)));
                }
                node => texts.push(text(node, &spellings)),
            }
            if texts.len() > RESULTS_MAX {
                return Err(Unreadable::TooManyResults);
            }
        }
        Ok(texts)
    }

    /// The odd spellings by the address of their node, which is stable while `self` is borrowed.
    ///
    /// The alternative, JSONPath with locations, keeps a path of up to 64 parts for every
    /// intermediate result.
    fn spellings_by_node(&self) -> HashMap<*const Value, &str> {
        let mut by_node = HashMap::new();
        if !self.spellings.is_empty() {
            let mut numbers = Vec::new();
            json::collect_numbers(&self.tree, &mut numbers);
            for (place, spelling) in &self.spellings {
                if let Some(node) = numbers.get(*place) {
                    by_node.insert(std::ptr::from_ref(*node), spelling.as_str());
                }
            }
        }
        by_node
    }
}

fn text<'d>(node: &'d Value, spellings: &HashMap<*const Value, &'d str>) -> Option<Cow<'d, str>> {
    match node {
        Value::Null => Some(Cow::Borrowed("null")),
        Value::Bool(true) => Some(Cow::Borrowed("true")),
        Value::Bool(false) => Some(Cow::Borrowed("false")),
        Value::String(text) => Some(Cow::Borrowed(text)),
        Value::Number(number) => Some(match spellings.get(&std::ptr::from_ref(node)) {
            Some(spelling) => Cow::Borrowed(spelling),
            None => Cow::Owned(number.to_string()),
        }),
        Value::Array(_) | Value::Object(_) => None,
    }
}

fn begins_with_mark(plain: &[u8]) -> bool {
    const MARKS: [&[u8]; 3] = [b"\xef\xbb\xbf", b"\xfe\xff", b"\xff\xfe"];
    MARKS.iter().any(|mark| plain.starts_with(mark))
}

/// Whether text holds NUL, or begins with another control character: as UTF-16 and UTF-32 do, which
/// some parsers tell by that (RFC 4627 §3), whatever type is claimed.
fn is_another_encoding(plain: &[u8]) -> bool {
    let first = plain.trim_ascii_start().first();
    first.is_some_and(u8::is_ascii_control) || plain.contains(&0)
}

fn read_documents(
    media: &MediaKind,
    plain: &[u8],
    limits: &BodyLimits,
) -> Result<Vec<Document>, Unreadable> {
    match json::read(plain, limits) {
        Ok(json) if *media == MediaKind::Form => Ok(vec![json, form::read(plain, limits)?]),
        Ok(json) => Ok(vec![json]),
        Err(json::Refused::Unreadable(reason)) => Err(reason),
        Err(json::Refused::NotJson) => Ok(vec![match media {
            MediaKind::Form => form::read(plain, limits)?,
            MediaKind::Multipart { boundary } => multipart::read(plain, boundary, limits)?,
            MediaKind::Json => return Err(Unreadable::NotJson),
            MediaKind::Other => return Err(Unreadable::UnsupportedType),
        }]),
    }
}
