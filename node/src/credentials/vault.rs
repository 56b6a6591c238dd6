//! Opens sealed secrets and holds them in memory that is zeroised when the last user drops it.
//!
//! A secret is opened at its first use and kept, in the form in which it will be sent, as long as
//! a configuration that names it is in use. It never has a `Debug`, `Serialize` or `Display` form.

use std::sync::{Arc, OnceLock};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use percent_encoding::utf8_percent_encode;
use proto::checks;
use proto::credential::{AuthType, CredentialSettings, PATH_SECRET, SecretInput};
use proto::hosts::HostPattern;
use proto::id::{CredentialId, OrgId};
use proto::seal::{self, Binding, Keyring, Sealed};
use zeroize::Zeroizing;

use super::forms::{PATH, SECRET_BYTES_MIN, UNRESERVED};
use super::live::LiveSecrets;
use super::scrub::Scrub;

/// Where a key stands when neither header, query nor path is configured.
pub const KEY_HEADER_DEFAULT: &str = "x-api-key";

/// A sealed secret and, after its first use, its opened form.
pub struct Sealing {
    sealed: Option<Arc<Sealed>>,
    bound: Bound,
    keyring: Arc<Keyring>,
    auth_type: AuthType,
    settings: CredentialSettings,
    opened: OnceLock<Result<Injection, VaultError>>,
}

/// What a sealed secret must have been sealed for.
pub struct Bound {
    /// The organisation.
    pub org: OrgId,
    /// The credential.
    pub credential: CredentialId,
    /// Where the secret may be sent.
    pub hosts: Vec<HostPattern>,
    /// The seal's own name.
    pub seal_id: String,
}

/// A secret in the form in which it is sent.
#[derive(Default)]
pub struct Injection {
    /// Header fields.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Query parameters: decoded name, and `name=value` encoded.
    pub queries: Vec<(Box<str>, Zeroizing<String>)>,
    /// A path put between the base path and the caller's.
    pub path: Option<Zeroizing<String>>,
    /// Finds the secret where a target echoes it.
    pub scrub: Arc<Scrub>,
}

/// Why a secret cannot be used. Says nothing of its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VaultError {
    /// There is no sealed value: it was revoked or never reached this region.
    #[error("the credential has no secret; give it a new one")]
    Missing,
    /// The sealed value does not open: another key, or hosts that were changed behind our back.
    #[error("the credential's secret cannot be opened for its hosts; give it again")]
    Unopenable,
    /// The secret holds what cannot be sent.
    #[error("the credential's secret cannot be sent in a header; give it again")]
    Unsendable,
}

impl Sealing {
    /// A sealed secret, unopened.
    pub fn new(
        sealed: Option<Arc<Sealed>>,
        bound: Bound,
        keyring: Arc<Keyring>,
        auth_type: AuthType,
        settings: CredentialSettings,
    ) -> Self {
        Self {
            sealed,
            bound,
            keyring,
            auth_type,
            settings,
            opened: OnceLock::new(),
        }
    }

    /// The secret in the form in which it is sent.
    ///
    /// # Errors
    /// It is missing, does not open, or cannot be sent.
    pub fn injection(&self) -> Result<&Injection, VaultError> {
        self.opened
            .get_or_init(|| self.open())
            .as_ref()
            .map_err(|error| *error)
    }

    fn open(&self) -> Result<Injection, VaultError> {
        if self.auth_type == AuthType::None {
            return Ok(Injection::default());
        }
        let sealed = self.sealed.as_ref().ok_or(VaultError::Missing)?;
        let Bound {
            org,
            credential,
            hosts,
            seal_id,
        } = &self.bound;
        let binding = Binding {
            org: *org,
            credential: *credential,
            hosts,
            seal_id,
        };
        let secret =
            seal::open(&self.keyring, &binding, sealed).map_err(|_| VaultError::Unopenable)?;
        let mut injection =
            arrange(self.auth_type, &self.settings, &secret).ok_or(VaultError::Unsendable)?;
        injection.scrub = Arc::new(scrub(&secret, &injection));
        LiveSecrets::of_process().add(Some(*org), &injection.scrub);
        Ok(injection)
    }

    /// The path in which the secret stands; none where it stands elsewhere, or was never used.
    pub fn path(&self) -> Option<&str> {
        let injection = self.opened.get()?.as_ref().ok()?;
        injection.path.as_deref().map(String::as_str)
    }

    /// The search for the secret; none while it was never used.
    pub fn scrub(&self) -> Option<&Arc<Scrub>> {
        let injection = self.opened.get()?.as_ref().ok()?;
        Some(&injection.scrub).filter(|scrub| !scrub.is_empty())
    }
}

/// The search for what a target may echo.
fn scrub(secret: &SecretInput, injection: &Injection) -> Scrub {
    // A key, or a token, has the one field.
    let field = injection.headers.first().map(|(name, _)| name.as_str());
    let whole = [secret.key.as_ref(), secret.token.as_ref()];
    let whole = whole.into_iter().flatten();
    let whole = whole.map(|value| key_in(field, value));
    let headers = secret.headers.iter();
    let headers = headers.filter(|part| !part.public && !is_public(&part.name));
    let headers = headers.map(|part| key_in(Some(&part.name), &part.value));
    let queries = secret.queries.iter().filter(|part| !part.public);
    let queries = queries.map(|part| key_in(None, &part.value));
    // A short password is searched with its name.
    let sent = injection.headers.first();
    let sent = sent.filter(|_| secret.username.is_some());
    let sent = sent.and_then(|(name, value)| Some((name.as_str(), value.to_str().ok()?)));
    let sent = sent.map(|(name, value)| key_in(Some(name), value));
    let keys = whole.chain(headers).chain(queries).chain(sent);
    let keys: Vec<Zeroizing<String>> = keys.collect();
    let keys = keys.iter().map(|key| key.as_str());
    let name_is_key = secret.password.as_deref().is_none_or(is_placeholder);
    let name = secret.username.as_deref().filter(|_| name_is_key);
    let pair = [secret.password.as_deref(), name].into_iter().flatten();
    // What a custom secret sends in fields is among its parts.
    let fields = injection.headers.iter();
    let fields = fields.filter(|(name, _)| secret.headers.is_empty() && !is_public(name.as_str()));
    let values = fields.filter_map(|(_, value)| value.to_str().ok());
    Scrub::new(keys.chain(pair), values)
}

/// What of a value is secret: what stands behind a scheme, which targets quote alone, and of a pair
/// of Basic the password, or the name where that is the key. All of it where that is too short to
/// be searched.
fn key_in(field: Option<&str>, value: &str) -> Zeroizing<String> {
    let behind = behind_scheme(field, value);
    let pair = behind.and_then(|(scheme, rest)| pair(scheme, rest));
    let pair = pair.as_ref().map(|pair| pair.as_str());
    let parts = pair.and_then(|pair| pair.split_once(':'));
    let key = parts.map(|(name, password)| match is_placeholder(password) {
        true => name,
        false => password,
    });
    let narrowest = [key, pair, behind.map(|(_, rest)| rest)];
    let mut narrowest = narrowest.into_iter().flatten();
    let found = narrowest.find(|text| text.len() >= SECRET_BYTES_MIN);
    Zeroizing::new(found.unwrap_or(value).to_owned())
}

/// Most letters of a word of a text.
const WORD_CHARS_MAX: usize = 20;

/// A value of two words, of which the first is a scheme. `Authorization` has one in any case; of
/// other fields, and of queries, those are known that APIs use, and words of a text are none.
fn behind_scheme<'v>(field: Option<&str>, value: &'v str) -> Option<(&'v str, &'v str)> {
    const FIELDS: [&str; 2] = ["authorization", "proxy-authorization"];
    const SCHEMES: [&str; 10] = [
        "apikey", "api-key", "basic", "bearer", "bot", "geniekey", "jwt", "key", "oauth", "token",
    ];
    let (scheme, rest) = value.split_once(' ')?;
    let rest = rest.trim();
    let is_one = !rest.is_empty() && !rest.contains(char::is_whitespace);
    let is = |known: &&str, text: &str| known.eq_ignore_ascii_case(text);
    let in_authorization = || field.is_some_and(|name| FIELDS.iter().any(|known| is(known, name)));
    let is_known = || {
        // A key may be of letters alone: those are of both cases, or more than a word has.
        let letters = rest.len() <= WORD_CHARS_MAX && rest.bytes().all(|b| b.is_ascii_alphabetic());
        let is_word = letters && rest.bytes().skip(1).all(|byte| byte.is_ascii_lowercase());
        !is_word && SCHEMES.iter().any(|known| is(known, scheme))
    };
    (is_one && checks::is_token(scheme) && (in_authorization() || is_known()))
        .then_some((scheme, rest))
}

/// The pair of Basic (RFC 7617) as it is encoded.
fn pair(scheme: &str, encoded: &str) -> Option<Zeroizing<String>> {
    let is_basic = scheme.eq_ignore_ascii_case("basic");
    let pair = is_basic.then(|| STANDARD.decode(encoded).ok())??;
    String::from_utf8(pair).ok().map(Zeroizing::new)
}

/// Whether a password says nothing: then the name is the key itself, as some APIs take it.
fn is_placeholder(password: &str) -> bool {
    const WORDS: [&str; 6] = [
        "api_token",
        "api-token",
        "token",
        "none",
        "null",
        "x-oauth-basic",
    ];
    password.len() <= 2 || WORDS.iter().any(|word| word.eq_ignore_ascii_case(password))
}

/// Whether a header's value is no secret although it stands in one: `custom` is also used for
/// constants, and their words are those of innocent answers.
fn is_public(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name == "accept"
        || name.starts_with("accept-")
        || name.starts_with("content-")
        || name == "user-agent"
        || name.ends_with("version")
}

/// The header names and query parameters that a credential will set.
pub fn places(
    auth_type: AuthType,
    settings: &CredentialSettings,
) -> (Option<HeaderName>, Option<Box<str>>) {
    match auth_type {
        AuthType::ApiKey => match (&settings.query, &settings.path, &settings.header) {
            (Some(query), _, _) => (None, Some(query.as_str().into())),
            (None, Some(_), _) => (None, None),
            (None, None, header) => {
                let name = header.as_deref().unwrap_or(KEY_HEADER_DEFAULT);
                (HeaderName::from_bytes(name.as_bytes()).ok(), None)
            }
        },
        AuthType::Bearer | AuthType::Jwt | AuthType::Basic => {
            (Some(http::header::AUTHORIZATION), None)
        }
        AuthType::Custom | AuthType::None => (None, None),
    }
}

/// Puts a secret where its credential says; `None` when it cannot be sent there.
fn arrange(
    auth_type: AuthType,
    settings: &CredentialSettings,
    secret: &SecretInput,
) -> Option<Injection> {
    let mut injection = Injection::default();
    match auth_type {
        AuthType::None => {}
        AuthType::ApiKey => arrange_key(settings, secret.key.as_ref()?, &mut injection)?,
        AuthType::Bearer | AuthType::Jwt => {
            let value = Zeroizing::new(format!("Bearer {}", secret.token.as_ref()?));
            injection
                .headers
                .push((http::header::AUTHORIZATION, sensitive(value)?));
        }
        AuthType::Basic => {
            let (user, password) = (secret.username.as_ref()?, secret.password.as_ref()?);
            let pair = Zeroizing::new(format!("{user}:{password}"));
            let value = Zeroizing::new(format!("Basic {}", STANDARD.encode(pair.as_bytes())));
            injection
                .headers
                .push((http::header::AUTHORIZATION, sensitive(value)?));
        }
        AuthType::Custom => {
            for part in &secret.headers {
                let name = HeaderName::from_bytes(part.name.as_bytes()).ok()?;
                let value = sensitive(Zeroizing::new(part.value.clone()))?;
                injection.headers.push((name, value));
            }
            for part in &secret.queries {
                injection.queries.push(query(&part.name, &part.value));
            }
        }
    }
    Some(injection)
}

fn arrange_key(settings: &CredentialSettings, key: &str, injection: &mut Injection) -> Option<()> {
    if let Some(name) = &settings.query {
        injection.queries.push(query(name, key));
    } else if let Some(template) = &settings.path {
        let encoded = Zeroizing::new(utf8_percent_encode(key, PATH).to_string());
        injection.path = Some(Zeroizing::new(template.replace(PATH_SECRET, &encoded)));
    } else {
        let name = settings.header.as_deref().unwrap_or(KEY_HEADER_DEFAULT);
        let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
        let prefix = settings.prefix.as_deref().unwrap_or_default();
        injection
            .headers
            .push((name, sensitive(Zeroizing::new(format!("{prefix}{key}")))?));
    }
    Some(())
}

fn query(name: &str, value: &str) -> (Box<str>, Zeroizing<String>) {
    let pair = format!(
        "{}={}",
        utf8_percent_encode(name, UNRESERVED),
        utf8_percent_encode(value, UNRESERVED)
    );
    (name.into(), Zeroizing::new(pair))
}

/// A field value that shares zeroising memory with every request that sends it.
fn sensitive(value: Zeroizing<String>) -> Option<HeaderValue> {
    struct Owner(Zeroizing<String>);
    impl AsRef<[u8]> for Owner {
        fn as_ref(&self) -> &[u8] {
            self.0.as_bytes()
        }
    }
    if !checks::is_field_value(value.as_bytes()) {
        return None;
    }
    let bytes = Bytes::from_owner(Owner(value));
    let mut value = HeaderValue::from_maybe_shared(bytes).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(auth_type: AuthType, settings: &str, secret: &str, expected: &[&str]) {
        let settings: CredentialSettings = serde_json::from_str(settings).unwrap();
        let secret: SecretInput = serde_json::from_str(secret).unwrap();
        let Some(injection) = arrange(auth_type, &settings, &secret) else {
            assert_eq!(expected, ["unsendable"]);
            return;
        };
        let headers = injection
            .headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()));
        let queries = injection
            .queries
            .iter()
            .map(|(_, pair)| format!("?{}", **pair));
        let path = injection.path.iter().map(|path| path.to_string());
        let found: Vec<String> = headers.chain(queries).chain(path).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_secret_stands_where_its_credential_says() {
        let key = r#"{"key":"s3cr/et:1"}"#;
        check(AuthType::ApiKey, "{}", key, &["x-api-key: s3cr/et:1"]);
        check(
            AuthType::ApiKey,
            r#"{"header":"Authorization","prefix":"Token "}"#,
            key,
            &["authorization: Token s3cr/et:1"],
        );
        check(
            AuthType::ApiKey,
            r#"{"query":"k y"}"#,
            key,
            &["?k%20y=s3cr%2Fet%3A1"],
        );
        check(
            AuthType::ApiKey,
            r#"{"path":"/bot{secret}"}"#,
            key,
            &["/bots3cr%2Fet:1"],
        );
        check(
            AuthType::Bearer,
            "{}",
            r#"{"token":"t"}"#,
            &["authorization: Bearer t"],
        );
        check(
            AuthType::Jwt,
            "{}",
            r#"{"token":"a.b.c"}"#,
            &["authorization: Bearer a.b.c"],
        );
        check(
            AuthType::Basic,
            "{}",
            r#"{"username":"a","password":"b"}"#,
            &["authorization: Basic YTpi"],
        );
        check(
            AuthType::Custom,
            "{}",
            r#"{"headers":[{"name":"X-A","value":"1"}],"queries":[{"name":"q","value":"a&b"}]}"#,
            &["x-a: 1", "?q=a%26b"],
        );
        check(
            AuthType::Bearer,
            "{}",
            r#"{"token":"a\r\nHost: x"}"#,
            &["unsendable"],
        );
        check(AuthType::Bearer, "{}", "{}", &["unsendable"]);
        check(AuthType::None, "{}", "{}", &[]);
    }

    #[test]
    fn what_a_target_may_quote_alone_is_searched() {
        let check = |auth_type, settings: &str, secret: &str, echo: &str, expected: &str| {
            let settings: CredentialSettings = serde_json::from_str(settings).unwrap();
            let secret: SecretInput = serde_json::from_str(secret).unwrap();
            let injection = arrange(auth_type, &settings, &secret).unwrap();
            let found = scrub(&secret, &injection).overwrite(echo.as_bytes());
            let found = found.map_or(echo.into(), |found| found.text);
            assert_eq!(String::from_utf8(found).unwrap(), expected);
        };
        let custom = |value: &str| {
            let part = serde_json::json!({ "name": "Authorization", "value": value });
            serde_json::json!({ "headers": [part] }).to_string()
        };
        let stars = |count: usize| "*".repeat(count);
        let bearer = custom("Bearer sk-live-0123456789");
        for (secret, echo, expected) in [
            (
                &bearer,
                "key sk-live-0123456789",
                format!("key {}", stars(18)),
            ),
            (
                &bearer,
                "Bearer sk-live-0123456789",
                format!("Bearer {}", stars(18)),
            ),
            (
                &custom("Basic YWNtZTp0aGlyZC1wYXJ0eS1wd2Q="),
                "third-party-pwd of acme:third-party-pwd",
                format!("{} of acme:{}", stars(15), stars(15)),
            ),
            (
                &custom("Basic YTpzaG9ydC1wdy0x"),
                "YTpzaG9ydC1wdy0x is a:short-pw-1",
                format!("{} is {}", stars(16), stars(12)),
            ),
            (
                // `sk_live_0123456789:x`
                &custom("Basic c2tfbGl2ZV8wMTIzNDU2Nzg5Ong="),
                "sk_live_0123456789 and x",
                format!("{} and x", stars(18)),
            ),
            (&custom("Own of-some-length"), "of-some-length", stars(14)),
            (
                &custom("words of a text"),
                "of a text",
                "of a text".to_owned(),
            ),
        ] {
            check(AuthType::Custom, "{}", secret, echo, &expected);
        }
        let constants = r#"{
            "headers": [{"name":"X-Region","value":"eu-central-1","public":true},
                        {"name":"X-Key","value":"a-secret-0123"}],
            "queries": [{"name":"account","value":"123456789012","public":true}]
        }"#;
        let echo = "eu-central-1, 123456789012, a-secret-0123";
        let expected = format!("eu-central-1, 123456789012, {}", stars(13));
        check(AuthType::Custom, "{}", constants, echo, &expected);
        let one_of_two = r#"{"headers": [
            {"name":"Cookie","value":"session=a-secret-0123"},
            {"name":"Cookie","value":"region=eu-central-1","public":true}
        ]}"#;
        let echo = "session=a-secret-0123; region=eu-central-1";
        let expected = format!("{}; region=eu-central-1", stars(21));
        check(AuthType::Custom, "{}", one_of_two, echo, &expected);
        let basic = r#"{"username":"AC0123456789","password":"short-pw-1"}"#;
        let echo = "AC0123456789:short-pw-1";
        check(AuthType::Basic, "{}", basic, echo, &stars(23));
        let path = r#"{"path":"/bot{secret}"}"#;
        let key = r#"{"key":"123456:AAH/foo+bar"}"#;
        let echo = "/bot123456:AAH%2Ffoo%2Bbar/x";
        let expected = format!("/bot{}/x", stars(22));
        check(AuthType::ApiKey, path, key, echo, &expected);
    }

    #[test]
    fn the_second_word_of_a_text_is_no_secret() {
        let key = |field, value| key_in(field, value).to_string();
        for (field, value, expected) in [
            (
                Some("x-title"),
                "Acme Communications",
                "Acme Communications",
            ),
            (Some("x-title"), "Key Communications", "Key Communications"),
            (
                Some("x-api-key"),
                "Bearer QwertyUiopAsdfGhjkLzxc",
                "QwertyUiopAsdfGhjkLzxc",
            ),
            (
                Some("x-api-key"),
                "Bearer qwertyuiopasdfghjklzx",
                "qwertyuiopasdfghjklzx",
            ),
            (None, "Acme account-0123456", "Acme account-0123456"),
            (None, "Bearer sk-live-0123456789", "sk-live-0123456789"),
            (Some("x-auth"), "GenieKey 0123-4567-89ab", "0123-4567-89ab"),
            (Some("Authorization"), "Own abcdefghijkl", "abcdefghijkl"),
            (
                Some("authorization"),
                "Bearer short-one",
                "Bearer short-one",
            ),
        ] {
            assert_eq!(key(field, value), expected);
        }
        let mut secret = SecretInput::default();
        secret.password = Some("Acme account-0123456".into());
        let echo = b"of account-0123456";
        assert!(
            scrub(&secret, &Injection::default())
                .overwrite(echo)
                .is_none()
        );
    }

    #[test]
    fn a_name_is_searched_where_it_is_the_key() {
        let none = || Scrub::new(std::iter::empty(), std::iter::empty());
        for (password, is_searched) in [
            (None, true),
            (Some(""), true),
            (Some("x"), true),
            (Some("X-OAuth-Basic"), true),
            (Some("Sommer2024"), false),
            (Some("a-password-of-some-length"), false),
        ] {
            let mut secret = SecretInput::default();
            secret.username = Some("sk_live_0123456789".into());
            secret.password = password.map(str::to_owned);
            let injection = Injection {
                headers: Vec::new(),
                queries: Vec::new(),
                path: None,
                scrub: Arc::new(none()),
            };
            let found = scrub(&secret, &injection).overwrite(b"key sk_live_0123456789");
            assert_eq!(found.is_some(), is_searched, "{password:?}");
        }
    }
}
