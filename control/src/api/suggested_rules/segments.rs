//! A recorded path as segments: those that look like ids stand for any. Pure.

use proto::path::{PathOptions, PathReading};
use proto::rule::PATTERN_BYTES_MAX;

/// Most segments of a path that is looked at.
const SEGMENTS_MAX: usize = 32;
/// Records cut longer paths.
const PATH_CHARS_MAX: usize = 2_048;
/// Longest segment that is a word, whatever it looks like, in bytes.
const WORD_BYTES_MAX: usize = 40;
/// What a record has in the place of what may be a secret.
const MARK: char = '*';
/// Shortest part of a segment with letters and digits that is an id, in bytes.
const ID_BYTES_MIN: usize = 8;

/// One segment of a path, or what stands for many.
///
/// What stands for many ends at a colon, behind which an API may have a verb: who reads
/// `/projects/7` is not allowed to call `/projects/7:delete`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Segment {
    /// Exactly this.
    Fixed(String),
    /// One that is read in two ways: as it was sent, and canonical.
    Either(String, String),
    /// Any that is not empty and has no colon.
    Any,
    /// The same before a colon and this word.
    Verb(String),
    /// Any that is not empty: the record has a mark in the place of what was sent.
    Hidden,
}

impl Segment {
    /// Whether it stands for many.
    pub fn is_wild(&self) -> bool {
        !matches!(self, Self::Fixed(_) | Self::Either(..))
    }

    /// Bytes that stand in a pattern as they are.
    fn exact_bytes(&self) -> usize {
        match self {
            Self::Fixed(text) => text.len(),
            Self::Either(raw, canonical) => raw.len() + canonical.len(),
            Self::Any | Self::Verb(_) | Self::Hidden => 0,
        }
    }
}

/// Why no rule is made of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Left {
    /// Another region served it, or denied it there.
    OtherRegion,
    /// The target did not answer.
    NoAnswer,
    /// The target answered with 400 or above.
    RefusedByTarget,
    /// Its path was cut, or is longer than a pattern may be.
    TooLong,
    /// Its path is read in two ways that no one pattern fits, or has too many segments.
    Ambiguous,
    /// There are more different paths or rules than are told apart.
    TooMany,
}

impl Left {
    /// As it stands in answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OtherRegion => "other_region",
            Self::NoAnswer => "no_answer",
            Self::RefusedByTarget => "refused_by_target",
            Self::TooLong => "too_long",
            Self::Ambiguous => "ambiguous",
            Self::TooMany => "too_many",
        }
    }
}

/// The segments of a path, as an allow rule has to fit them in both of its readings.
///
/// # Errors
/// No rule can be made of it.
pub fn segments(path: &str, options: PathOptions) -> Result<Vec<Segment>, Left> {
    if path.chars().nth(PATH_CHARS_MAX - 1).is_some() {
        return Err(Left::TooLong);
    }
    let reading = PathReading::parse(path.as_bytes(), options).map_err(|_| Left::Ambiguous)?;
    let (raw, canonical) = reading.judged();
    let raw: Vec<&str> = raw.split('/').skip(1).collect();
    let canonical: Vec<&str> = match canonical {
        Some(canonical) => canonical.split('/').skip(1).collect(),
        None => raw.clone(),
    };
    if raw.len() != canonical.len() || raw.len() > SEGMENTS_MAX {
        return Err(Left::Ambiguous);
    }
    let both = raw.into_iter().zip(canonical);
    let segments = both.map(|(raw, canonical)| match raw == canonical {
        true => Ok(segment(raw)),
        // With a mark in it nobody knows what was sent.
        false if raw.is_empty() || canonical.is_empty() || raw.contains(MARK) => {
            Err(Left::Ambiguous)
        }
        false => Ok(Segment::Either(raw.to_owned(), canonical.to_owned())),
    });
    let segments: Vec<Segment> = segments.collect::<Result<_, _>>()?;
    let exact: usize = segments.iter().map(Segment::exact_bytes).sum();
    match exact > PATTERN_BYTES_MAX {
        true => Err(Left::TooLong),
        false => Ok(segments),
    }
}

fn segment(text: &str) -> Segment {
    let head = text.split(':').next().unwrap_or(text);
    match stands_for(text) {
        Some(wild) if text.contains(MARK) => match wild {
            Segment::Any => Segment::Hidden,
            wild => wild,
        },
        None if text.contains(MARK) => Segment::Hidden,
        Some(wild) if looks_like_an_id(head) => wild,
        _ => Segment::Fixed(text.to_owned()),
    }
}

/// What stands for this segment and others like it: nothing, where it is empty or has colons that
/// separate no verb.
pub fn stands_for(text: &str) -> Option<Segment> {
    let is_word = |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphabetic());
    match text.rsplit_once(':') {
        None => (!text.is_empty()).then_some(Segment::Any),
        Some((head, verb)) => {
            let is_verb = is_word(verb) && !head.is_empty() && !head.contains(':');
            is_verb.then(|| Segment::Verb(verb.to_owned()))
        }
    }
}

/// The pattern that fits exactly these segments; `None` where it is too long for a rule.
pub fn pattern(segments: &[Segment]) -> Option<String> {
    let mut pattern = String::from("^");
    for segment in segments {
        pattern.push('/');
        match segment {
            Segment::Fixed(text) => escape(text, &mut pattern),
            Segment::Either(raw, canonical) => {
                pattern.push_str("(?:");
                escape(raw, &mut pattern);
                pattern.push('|');
                escape(canonical, &mut pattern);
                pattern.push(')');
            }
            Segment::Any => pattern.push_str("[^/:]+"),
            Segment::Verb(verb) => {
                pattern.push_str("[^/:]+:");
                pattern.push_str(verb);
            }
            Segment::Hidden => pattern.push_str("[^/]+"),
        }
    }
    pattern.push('$');
    (pattern.len() <= PATTERN_BYTES_MAX).then_some(pattern)
}

/// Whether a segment, to its first colon, is more likely an id, a token, a number or a date than a
/// word of the API.
fn looks_like_an_id(segment: &str) -> bool {
    if segment.len() > WORD_BYTES_MAX || segment.contains('@') {
        return true;
    }
    let mut parts = segment.split(['-', '_', '.', ',', '~', '=']);
    let has_digit = segment.bytes().any(|byte| byte.is_ascii_digit());
    let numbers = |byte: u8| byte.is_ascii_digit() || matches!(byte, b'-' | b'.' | b',');
    if has_digit && segment.bytes().all(numbers) {
        return true;
    }
    is_uuid(segment) || parts.any(is_random)
}

fn is_uuid(segment: &str) -> bool {
    let lengths = segment.split('-').map(str::len);
    lengths.eq([8, 4, 4, 4, 12]) && segment.bytes().all(|b| b == b'-' || b.is_ascii_hexdigit())
}

/// Whether a part of a segment is drawn by chance: it has digits, or letters
/// whose case changes more often than words do.
fn is_random(part: &str) -> bool {
    if part.len() < ID_BYTES_MIN {
        return false;
    }
    let digits = part.bytes().filter(u8::is_ascii_digit).count();
    let pairs = part.bytes().zip(part.bytes().skip(1));
    let turns = pairs
        .filter(|(a, b)| a.is_ascii_lowercase() && b.is_ascii_uppercase())
        .count();
    digits >= 2 || (part.len() >= 16 && turns * 5 >= part.len())
}

/// A text as a pattern that matches exactly it.
fn escape(text: &str, pattern: &mut String) {
    for c in text.chars() {
        if r"\.+*?()|[]{}^$#&-~".contains(c) {
            pattern.push('\\');
        }
        pattern.push(c);
    }
}

#[cfg(test)]
mod tests {
    use proto::rule::compile_pattern;
    use proto::target::EncodedSlash;

    use super::*;

    #[test]
    fn ids_are_told_from_words() {
        for (segment, is_id) in [
            ("v1", false),
            ("v2beta1", false),
            ("charges", false),
            ("chat.postMessage", false),
            ("createOrUpdateMany", false),
            ("internationalisation", false),
            ("gpt-4o-mini", false),
            ("oauth2", false),
            ("", false),
            ("42", true),
            ("7", true),
            ("2026-11-28", true),
            ("1.2.3", true),
            ("0f8fad5b-d9cb-469f-a165-70867728950e", true),
            ("aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee", true),
            ("cus_9s6XKzkNRiz8i3", true),
            ("req_01m8qz3v5c", true),
            ("deadbeef00112233", true),
            ("AbCdEfGhIjKlMnOp", true),
            ("someone@example.com", true),
            ("a-segment-that-is-so-long-that-it-is-no-word", true),
        ] {
            assert_eq!(looks_like_an_id(segment), is_id, "{segment}");
        }
    }

    #[test]
    fn a_pattern_fits_both_readings_of_what_it_was_made_of() {
        let opaque = PathOptions {
            encoded_slash: EncodedSlash::Opaque,
            ..PathOptions::default()
        };
        for (path, options, expected) in [
            ("/", PathOptions::default(), Some("^/$")),
            // Judged as `/`.
            ("", PathOptions::default(), Some("^/$")),
            (
                "/v1/a.b/42",
                PathOptions::default(),
                Some(r"^/v1/a\.b/[^/:]+$"),
            ),
            ("/v1/a/", PathOptions::default(), Some("^/v1/a/$")),
            (
                "/v1/%63harges",
                PathOptions::default(),
                Some("^/v1/(?:%63harges|charges)$"),
            ),
            (
                "/v1/a;b=1/c",
                PathOptions::default(),
                Some("^/v1/(?:a;b=1|a)/c$"),
            ),
            (
                "/v1/7%3Adelete",
                PathOptions::default(),
                Some("^/v1/(?:7%3Adelete|7:delete)$"),
            ),
            ("/v1/a%2Fb", opaque, Some("^/v1/a%2Fb$")),
            // Verbs behind ids, and colons that separate none.
            (
                "/v1/projects/1234567890:getIamPolicy",
                PathOptions::default(),
                Some("^/v1/projects/[^/:]+:getIamPolicy$"),
            ),
            (
                "/v1/users:batchGet",
                PathOptions::default(),
                Some("^/v1/users:batchGet$"),
            ),
            (
                "/v1/2026-11-28T10:00:00",
                PathOptions::default(),
                Some(r"^/v1/2026\-11\-28T10:00:00$"),
            ),
            (
                "/model/m-20240229-v1:0",
                PathOptions::default(),
                Some(r"^/model/m\-20240229\-v1:0$"),
            ),
            // What stands behind a mark is not known.
            ("/v1/*/a", PathOptions::default(), Some("^/v1/[^/]+/a$")),
            (
                "/v1/****:send",
                PathOptions::default(),
                Some("^/v1/[^/:]+:send$"),
            ),
            ("/v1/a%20*", PathOptions::default(), None),
            // Readings with different segments.
            ("/v1/a%2Fb", PathOptions::default(), None),
            ("/v1//a", PathOptions::default(), None),
            ("/v1/;a/b", PathOptions::default(), None),
            ("/v1/../a", PathOptions::default(), None),
            ("no slash", PathOptions::default(), None),
        ] {
            let found = segments(path, options).ok().and_then(|s| pattern(&s));
            assert_eq!(found.as_deref(), expected, "{path}");
            let Some(found) = found else { continue };
            let (compiled, _) = compile_pattern(&found, "").unwrap();
            let reading = PathReading::parse(path.as_bytes(), options).unwrap();
            let (raw, canonical) = reading.judged();
            assert!(compiled.is_match(raw), "{path} {found}");
            assert!(
                canonical.is_none_or(|text| compiled.is_match(text)),
                "{path} {found}"
            );
        }
    }

    #[test]
    fn what_stands_for_ids_allows_no_verb_and_no_other_reading() {
        for (path, other) in [
            ("/v1/42", "/v1/42:delete"),
            ("/v1/42", "/v1/42%3Adelete"),
            ("/v1/42:get", "/v1/42:delete"),
            ("/v1/42:get", "/v1/4:2:get"),
            ("/v1/%63harges", "/v1/refunds"),
        ] {
            let found = segments(path, PathOptions::default()).unwrap();
            let (compiled, _) = compile_pattern(&pattern(&found).unwrap(), "").unwrap();
            let reading = PathReading::parse(other.as_bytes(), PathOptions::default()).unwrap();
            let (raw, canonical) = reading.judged();
            let fits =
                compiled.is_match(raw) && canonical.is_none_or(|text| compiled.is_match(text));
            assert!(!fits, "{path} {other}");
        }
    }

    #[test]
    fn what_is_cut_or_too_long_makes_no_rule() {
        let cut = "/a".repeat(PATH_CHARS_MAX / 2);
        assert_eq!(segments(&cut, PathOptions::default()), Err(Left::TooLong));
        let escaped = format!("/{}", "%41".repeat(PATTERN_BYTES_MAX / 3));
        assert_eq!(
            segments(&escaped, PathOptions::default()),
            Err(Left::TooLong)
        );
        let deep = "/a".repeat(SEGMENTS_MAX + 1);
        assert_eq!(
            segments(&deep, PathOptions::default()),
            Err(Left::Ambiguous)
        );
        let long = vec![Segment::Fixed("a".repeat(40)); 30];
        assert_eq!(pattern(&long), None);
    }
}
