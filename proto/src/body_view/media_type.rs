//! `Content-Type` and `Content-Disposition` values, as far as a body view needs them.

use super::Unreadable;

/// What a body says it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum MediaKind {
    Json,
    Form,
    Multipart { boundary: String },
    Other,
}

impl MediaKind {
    /// Parses a `Content-Type` value; an empty one is [`Self::Other`].
    pub(super) fn parse(value: &[u8]) -> Result<Self, Unreadable> {
        let header = Parameterised::parse(value).ok_or(Unreadable::UnknownCharset)?;
        if let Some(charset) = header.parameter("charset") {
            let known = ["utf-8", "utf8", "us-ascii"];
            if !known.iter().any(|name| charset.eq_ignore_ascii_case(name)) {
                return Err(Unreadable::UnknownCharset);
            }
        }
        Ok(match header.value.as_str() {
            "application/x-www-form-urlencoded" => Self::Form,
            "multipart/form-data" => Self::Multipart {
                boundary: boundary(&header)?,
            },
            value if value == "application/json" || value.ends_with("+json") => Self::Json,
            _ => Self::Other,
        })
    }
}

/// The boundary, within the length and (nearly) the characters of RFC 2046.
fn boundary(header: &Parameterised) -> Result<String, Unreadable> {
    let boundary = header
        .parameter("boundary")
        .ok_or(Unreadable::BrokenMultipart)?;
    let printable = boundary.bytes().all(|byte| matches!(byte, 0x20..=0x7e));
    if !(1..=70).contains(&boundary.len()) || !printable || boundary.ends_with(' ') {
        return Err(Unreadable::BrokenMultipart);
    }
    Ok(boundary.to_owned())
}

/// A header value with parameters: `value; name=token; name="quoted"`.
pub(super) struct Parameterised {
    /// The part before the first `;`, in lower case.
    pub(super) value: String,
    parameters: Vec<(String, String)>,
}

impl Parameterised {
    /// `None` if it is not UTF-8, has a parameter twice, or quotes in a way that parsers read
    /// differently (a backslash within quotes, text around them).
    pub(super) fn parse(header: &[u8]) -> Option<Self> {
        let header = std::str::from_utf8(header).ok()?;
        let (value, mut rest) = header.split_once(';').unwrap_or((header, ""));
        let mut parameters: Vec<(String, String)> = Vec::new();
        loop {
            rest = rest.trim_start_matches([' ', '\t', ';']);
            if rest.is_empty() {
                break;
            }
            let (name, after) = rest.split_once('=')?;
            let name = name.trim().to_ascii_lowercase();
            let twice = parameters.iter().any(|(known, _)| *known == name);
            if twice || name.is_empty() || name.contains(['"', ';', '\\']) {
                return None;
            }
            let (value, after) = parameter_value(after.trim_start())?;
            parameters.push((name, value.to_owned()));
            rest = after;
        }
        Some(Self {
            value: value.trim().to_ascii_lowercase(),
            parameters,
        })
    }

    /// The value of a parameter, by its name in lower case.
    pub(super) fn parameter(&self, name: &str) -> Option<&str> {
        let mut parameters = self.parameters.iter();
        parameters
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }
}

/// A token or quoted string, and what follows it.
fn parameter_value(text: &str) -> Option<(&str, &str)> {
    if let Some(quoted) = text.strip_prefix('"') {
        let (value, after) = quoted.split_once('"')?;
        let clean = !value.contains('\\') && after.trim_start().chars().next().is_none_or(is_end);
        return clean.then_some((value, after));
    }
    let end = text.find(is_end).unwrap_or(text.len());
    let (value, after) = text.split_at(end);
    let value = value.trim_end();
    (!value.contains(['"', '\\'])).then_some((value, after))
}

fn is_end(character: char) -> bool {
    character == ';'
}
