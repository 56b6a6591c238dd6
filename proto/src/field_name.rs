//! Names of header fields as servers read them.

use std::borrow::Cow;

/// A field's name as a server would read it that takes `_` for `-`, as CGI does.
pub fn plain(name: &str) -> Cow<'_, str> {
    match name.contains('_') {
        true => Cow::Owned(name.replace('_', "-")),
        false => Cow::Borrowed(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn underscores_are_hyphens() {
        assert_eq!(plain("x_original_url"), "x-original-url");
        assert!(matches!(plain("x-api-key"), Cow::Borrowed(_)));
    }
}
