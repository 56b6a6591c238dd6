//! Field values whose bytes are no text: each byte is a character, and comes back as it was.

/// A text with one character for each byte.
pub fn text(bytes: &[u8]) -> String {
    bytes.iter().copied().map(char::from).collect()
}

/// The bytes of such a text; `None` where it holds what is none.
pub fn bytes(text: &str) -> Option<Vec<u8>> {
    text.chars().map(|c| u8::try_from(c).ok()).collect()
}
