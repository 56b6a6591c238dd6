//! What a submitted secret must be like, by type and side of its credential.

use super::{
    AuthType, CUSTOM_SECRET_BYTES_MAX, Credential, CredentialKind, GIVEN_SECRET_CHARS_MIN,
    NamedSecret, SEARCHED_SECRET_BYTES_MIN, SECRET_BYTES_MAX, SecretInput, URL_SECRET_BYTES_MAX,
};
use crate::checks;
use crate::problem::Problem;

impl Credential {
    /// Every problem of a secret submitted for this credential.
    pub fn validate_secret(&self, secret: &SecretInput) -> Vec<Problem> {
        let mut problems = Vec::new();
        let given = secret.fields();
        let wanted: &[&str] = match self.auth_type {
            AuthType::ApiKey => &["key"],
            AuthType::Bearer | AuthType::Jwt => &["token"],
            AuthType::Basic => &["username", "password"],
            AuthType::Custom => &["headers", "queries"],
            AuthType::None => &[],
        };
        for (field, _) in given.iter().filter(|(field, _)| !wanted.contains(field)) {
            let detail = format!("does not apply to type {}", self.auth_type.as_str());
            problems.push(Problem::new(
                format!("/secret/{field}"),
                "not-applicable",
                detail,
            ));
        }
        if self.auth_type == AuthType::Custom {
            self.validate_custom(secret, &mut problems);
            return problems;
        }
        for field in wanted {
            match given.iter().find(|(name, _)| name == field) {
                None => {
                    let detail = format!("type {} needs it", self.auth_type.as_str());
                    problems.push(Problem::new(format!("/secret/{field}"), "required", detail));
                }
                Some((field, value)) => self.validate_part(field, value, &mut problems),
            }
        }
        problems
    }

    /// What is valid in a secret submitted for this credential and makes it less safe.
    pub fn secret_warnings(&self, secret: &SecretInput) -> Vec<Problem> {
        let schemed = self.schemed(secret);
        if self.kind != CredentialKind::Target {
            return schemed.into_iter().collect();
        }
        let lists = [("headers", &secret.headers), ("queries", &secret.queries)];
        let listed = lists.into_iter().flat_map(|(list, parts)| {
            let place = move |at: usize| format!("/secret/{list}/{at}/value");
            let parts = parts.iter().enumerate().filter(|(_, part)| !part.public);
            parts.map(move |(at, part)| (place(at), part.value.as_str()))
        });
        let single = secret.fields().into_iter();
        let single = single.filter(|(field, _)| matches!(*field, "key" | "token" | "password"));
        let single = single.map(|(field, value)| (format!("/secret/{field}"), value));
        single
            .chain(listed)
            .filter(|(_, value)| value.len() < SEARCHED_SECRET_BYTES_MIN)
            .map(|(pointer, _)| secret_not_searched(pointer))
            .chain(schemed)
            .collect()
    }

    /// A secret that was given with the scheme before it.
    fn schemed(&self, secret: &SecretInput) -> Option<Problem> {
        let has = |part: &Option<String>, schemes: &[&str]| {
            let part = part.as_deref();
            part.is_some_and(|part| schemes.iter().any(|scheme| has_scheme(part, scheme)))
        };
        let (pointer, detail) = match (self.auth_type, self.kind) {
            (AuthType::Bearer | AuthType::Jwt, kind) if has(&secret.token, &["bearer "]) => {
                let detail = match kind {
                    CredentialKind::Target => {
                        "begins with `Bearer `, which is put before it once more: give what \
                         follows alone"
                    }
                    CredentialKind::Proxy => {
                        "begins with `Bearer `, which callers put before it: give what follows \
                         alone"
                    }
                };
                ("/secret/token", detail)
            }
            // In a query the whole value is the key.
            (AuthType::ApiKey, CredentialKind::Proxy)
                if self.settings.query.is_none() && has(&secret.key, &["bearer ", "token "]) =>
            {
                let detail = "begins with a scheme (`Bearer `, `Token `), which is left out of \
                              what callers send: give what follows alone";
                ("/secret/key", detail)
            }
            _ => return None,
        };
        Some(Problem::new(pointer, "secret-has-scheme", detail))
    }

    fn validate_part(&self, field: &str, value: &str, problems: &mut Vec<Problem>) {
        let pointer = format!("/secret/{field}");
        let empty_allowed = field == "password" && self.kind == CredentialKind::Target;
        let most = match self.settings.query.is_some() || self.settings.path.is_some() {
            true => URL_SECRET_BYTES_MAX,
            false => SECRET_BYTES_MAX,
        };
        if (value.is_empty() && !empty_allowed) || value.len() > most {
            let detail = format!("must have 1 to {most} bytes here");
            problems.push(Problem::new(&pointer, "length", detail));
        }
        if !checks::is_field_value(value.as_bytes()) || value.trim() != value {
            let detail = "holds a control character or a space at its ends (a line break from a \
                          file?)";
            problems.push(Problem::new(&pointer, "header-value", detail));
        }
        if field == "username" && value.contains(':') {
            let detail = "a user name of Basic cannot hold a colon (RFC 7617 §2)";
            problems.push(Problem::new(&pointer, "colon", detail));
        }
        let is_callers = self.kind == CredentialKind::Proxy;
        let guarded = is_callers && field != "username";
        if guarded && is_weak(value) {
            let detail = format!(
                "is easy to guess: use at least {GIVEN_SECRET_CHARS_MIN} characters of more than \
                 one class, or leave `secret` out and have a key generated"
            );
            problems.push(Problem::new(&pointer, "secret-too-weak", detail));
        }
        if is_callers && value.starts_with("rr_") {
            let detail = "keys that begin with `rr_` are issued by the gateway";
            problems.push(Problem::new(&pointer, "reserved", detail));
        }
    }

    fn validate_custom(&self, secret: &SecretInput, problems: &mut Vec<Problem>) {
        let count = secret.headers.len() + secret.queries.len();
        if count == 0 || count > 32 {
            let detail = "type custom needs 1 to 32 headers and queries";
            problems.push(Problem::new("/secret", "count", detail));
        }
        let in_url = bytes(&secret.queries);
        if bytes(&secret.headers) + in_url > CUSTOM_SECRET_BYTES_MAX {
            let detail =
                format!("names and values have at most {CUSTOM_SECRET_BYTES_MAX} bytes together");
            problems.push(Problem::new("/secret", "too-large", detail));
        }
        if in_url > URL_SECRET_BYTES_MAX {
            let detail = format!(
                "names and values of queries have at most {URL_SECRET_BYTES_MAX} bytes together"
            );
            problems.push(Problem::new("/secret/queries", "too-large", detail));
        }
        for (at, header) in secret.headers.iter().enumerate() {
            checks::settable_header(
                &header.name,
                &format!("/secret/headers/{at}/name"),
                problems,
            );
        }
        let parts = secret
            .headers
            .iter()
            .enumerate()
            .map(|(at, part)| ("headers", at, part));
        let queries = secret
            .queries
            .iter()
            .enumerate()
            .map(|(at, part)| ("queries", at, part));
        for (list, at, part) in parts.chain(queries) {
            if part.name.is_empty() || part.name.len() > 256 {
                let pointer = format!("/secret/{list}/{at}/name");
                problems.push(Problem::new(pointer, "length", "1 to 256 bytes"));
            }
            if part.value.len() > SECRET_BYTES_MAX || !checks::is_field_value(part.value.as_bytes())
            {
                let pointer = format!("/secret/{list}/{at}/value");
                let detail = "at most 16 KiB without control characters";
                problems.push(Problem::new(pointer, "header-value", detail));
            }
        }
    }
}

impl SecretInput {
    /// The single-valued fields that were given, and marks for the lists.
    fn fields(&self) -> Vec<(&'static str, &str)> {
        let mut fields = Vec::new();
        for (name, value) in [
            ("key", &self.key),
            ("token", &self.token),
            ("username", &self.username),
            ("password", &self.password),
        ] {
            if let Some(value) = value {
                fields.push((name, value.as_str()));
            }
        }
        if !self.headers.is_empty() {
            fields.push(("headers", ""));
        }
        if !self.queries.is_empty() {
            fields.push(("queries", ""));
        }
        fields
    }
}

/// The code of what is said of a part of a secret that is too short to be searched for.
pub const SECRET_NOT_SEARCHED: &str = "secret-not-searched";

/// What is said of a part of a secret that is too short to be searched for.
pub fn secret_not_searched(pointer: String) -> Problem {
    let detail = format!(
        "is shorter than {SEARCHED_SECRET_BYTES_MIN} bytes: it is not overwritten where a \
         target's answer quotes it, since innocent text may hold it too"
    );
    Problem::new(pointer, SECRET_NOT_SEARCHED, detail)
}

/// Whether a secret has a scheme, with a space behind it, before it.
fn has_scheme(secret: &str, scheme: &str) -> bool {
    let begin = secret.as_bytes().get(..scheme.len());
    begin.is_some_and(|begin| begin.eq_ignore_ascii_case(scheme.as_bytes()))
}

/// Bytes of names and values.
fn bytes(parts: &[NamedSecret]) -> usize {
    let lengths = parts.iter().map(|part| part.name.len() + part.value.len());
    lengths.sum()
}

/// Whether a given secret is short or of one character class.
fn is_weak(secret: &str) -> bool {
    let classes: [fn(char) -> bool; 4] = [
        |c| c.is_ascii_lowercase(),
        |c| c.is_ascii_uppercase(),
        |c| c.is_ascii_digit(),
        |c| !c.is_ascii_alphanumeric(),
    ];
    let used = classes
        .iter()
        .filter(|class| secret.chars().any(class))
        .count();
    secret.chars().count() < GIVEN_SECRET_CHARS_MIN || used < 2
}
