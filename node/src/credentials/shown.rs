//! A text of a request or of an answer, as it may stand in what is kept or told of the request: its
//! record and the spans made from it, log lines, the document of an early end.

use std::borrow::Cow;

use super::live::{LiveSecrets, Whose};

/// The text without these secrets of those that this process holds, and without keys that we issue;
/// as long as before.
pub fn shown(text: &[u8], whose: Whose) -> Cow<'_, [u8]> {
    LiveSecrets::of_process().overwritten(whose, text)
}

/// The same of a text that stays one: stars stand in the place of whole characters.
pub fn shown_text(text: &str, whose: Whose) -> Cow<'_, str> {
    match shown(text.as_bytes(), whose) {
        Cow::Borrowed(_) => Cow::Borrowed(text),
        Cow::Owned(bytes) => Cow::Owned(String::from_utf8_lossy(&bytes).into_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::credentials::scrub::Scrub;

    fn nobodys(text: &str) -> Cow<'_, str> {
        shown_text(text, Whose::Nobodys)
    }

    #[test]
    fn keys_that_we_issue_are_told_by_their_look() {
        let word = "k".repeat(49);
        for key in [
            format!("rr_live_{word}"),
            format!("rr_api_{word}"),
            format!("rr%5Flive%5f{word}"),
            "rr_live_in_the_wrong_place".to_owned(),
        ] {
            for before in ["", "r", "/a", "/ab", "/rr", "x_rr_"] {
                let stars = "*".repeat(key.len());
                for after in ["", "/x", "?", ".b"] {
                    let text = format!("{before}{key}{after}");
                    assert_eq!(nobodys(&text), format!("{before}{stars}{after}"));
                }
            }
        }
        let twice = format!("rr_live_{word}/rr_live_{word}");
        assert_eq!(nobodys(&twice).matches('*').count(), twice.len() - 1);
        for text in [
            "",
            "rr",
            "rr_",
            "/rr_live_x",
            "/errors/rr_lively_x_and_more",
        ] {
            assert!(matches!(nobodys(text), Cow::Borrowed(_)), "{text}");
        }
    }

    #[test]
    fn live_secrets_go_too_and_what_is_left_is_a_text() {
        let scrub = Arc::new(Scrub::new(["shown-secret-\u{e9}t\u{e9}"], []));
        LiveSecrets::of_process().add(None, &scrub);
        let text = "/\u{e9}/shown-secret-\u{e9}t\u{e9}/\u{e9}";
        assert_eq!(
            shown_text(text, Whose::Everybodys),
            format!("/\u{e9}/{}/\u{e9}", "*".repeat(18))
        );
    }
}
