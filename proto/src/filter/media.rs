//! Which media types filters can read.

/// How a body of some media type is read by filters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One JSON document.
    Json,
    /// `text/event-stream`: one document per event.
    EventStream,
    /// One document per line.
    Ndjson,
    /// Nothing that a filter can read: while filters apply, it does not pass.
    Other,
}

/// The names under which newline-delimited JSON goes about; none is registered.
const NDJSON: [&str; 8] = [
    "application/x-ndjson",
    "application/ndjson",
    "application/jsonl",
    "application/x-jsonl",
    "application/jsonlines",
    "application/x-jsonlines",
    "application/json-lines",
    "application/stream+json",
];

/// Reads a `Content-Type` value (RFC 9110 §8.3).
///
/// A `charset` other than UTF-8 or ASCII gives [`Kind::Other`]: the client would read other text
/// than the filter. So does a value that is not one media type (two joined by a comma).
pub fn applies_to(content_type: &str) -> Kind {
    let mut parts = content_type.split(';');
    let essence = parts
        .next()
        .unwrap_or("")
        .trim_matches([' ', '\t'])
        .to_ascii_lowercase();
    let Some((kind, subtype)) = essence.split_once('/') else {
        return Kind::Other;
    };
    if !is_token(kind) || !is_token(subtype) || !parts.all(is_readable_parameter) {
        return Kind::Other;
    }
    match essence.as_str() {
        "text/event-stream" => Kind::EventStream,
        ndjson if NDJSON.contains(&ndjson) => Kind::Ndjson,
        "application/json" | "text/json" => Kind::Json,
        _ if subtype.ends_with("+json") => Kind::Json,
        _ => Kind::Other,
    }
}

fn is_readable_parameter(parameter: &str) -> bool {
    let Some((name, value)) = parameter.split_once('=') else {
        return true;
    };
    if !name
        .trim_matches([' ', '\t'])
        .eq_ignore_ascii_case("charset")
    {
        return true;
    }
    let value = value.trim_matches([' ', '\t', '"']);
    ["utf-8", "utf8", "us-ascii", "ascii"]
        .iter()
        .any(|known| value.eq_ignore_ascii_case(known))
}

/// RFC 9110 §5.6.2.
fn is_token(text: &str) -> bool {
    let is_tchar = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(is_tchar)
}
