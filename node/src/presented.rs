//! Where a caller's key stands in a request, as official SDKs put it (hardening item 4).
//!
//! Keys that we issued begin with `rr_` and are looked for in every place that an SDK may use.
//! Keys given by a user are looked for in one configured place only. Pure.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{self, HeaderName};
use memchr::memmem;
use proto::credential::SEARCHED_SECRET_BYTES_MIN;
use proto::query;
use proto::record::{KeyHint, PresentedKey};
use zeroize::Zeroizing;

use crate::forgotten;
use crate::request::Request;
use crate::snapshot::CompiledProxy;

/// What keys issued by us begin with.
pub const ISSUED: &[u8] = b"rr_";

/// The headers in which SDKs send keys.
static HEADERS: [HeaderName; 6] = [
    header::AUTHORIZATION,
    HeaderName::from_static("x-requestrocket-key"),
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("api-key"),
    HeaderName::from_static("x-goog-api-key"),
    HeaderName::from_static("private-token"),
];

/// A place in a request that holds a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A header field.
    Header(HeaderName),
    /// A query parameter, by its decoded name.
    Query(Box<str>),
}

impl Place {
    /// For records: the header's name, or `query`; the usual ones cost no allocation.
    pub fn recorded(&self) -> Cow<'static, str> {
        let name = match self {
            Self::Header(name) => name,
            Self::Query(_) => return Cow::Borrowed("query"),
        };
        match HEADERS.iter().find(|usual| *usual == name) {
            Some(usual) => Cow::Borrowed(usual.as_str()),
            None => Cow::Owned(name.as_str().to_owned()),
        }
    }
}

/// What was found of keys issued by us.
#[derive(Debug, PartialEq, Eq)]
pub enum Issued<'a> {
    /// None.
    Nowhere,
    /// One key, in these places.
    One(Cow<'a, [u8]>, Vec<Place>),
    /// Two different keys: nobody can tell which one is meant.
    Several,
}

/// Further places to look in, as the proxy's configuration says.
#[derive(Clone, Debug, Default)]
pub struct Extra {
    /// The header in which the target credential will be injected, and configured ones.
    pub headers: Vec<HeaderName>,
    /// Query parameters, likewise.
    pub queries: Vec<Box<str>>,
}

/// Looks for keys issued by us.
pub fn issued<'a>(request: &'a Request, extra: &Extra) -> Issued<'a> {
    let mut found = Issued::Nowhere;
    // One look at each name: requests have fewer fields than there are places for keys.
    for (name, value) in &request.headers {
        if *name == header::SEC_WEBSOCKET_PROTOCOL {
            for key in keys_of_protocols(value.as_bytes()) {
                found = found.and(Cow::Borrowed(key), || Place::Header(name.clone()));
            }
        } else if HEADERS.contains(name) || extra.headers.contains(name) {
            for key in keys_in(value.as_bytes()) {
                found = found.and(key, || Place::Header(name.clone()));
            }
        }
    }
    if let Some(text) = request
        .query
        .as_deref()
        .filter(|_| !extra.queries.is_empty())
    {
        for (name, value) in query::pairs(text) {
            let wanted = extra
                .queries
                .iter()
                .find(|query| query.as_bytes() == &*name);
            if let Some(name) = wanted.filter(|_| value.starts_with(ISSUED)) {
                found = found.and(value, || Place::Query(name.clone()));
            }
        }
    }
    found
}

impl<'a> Issued<'a> {
    fn and(self, key: Cow<'a, [u8]>, place: impl FnOnce() -> Place) -> Self {
        match self {
            Self::Nowhere => Self::One(key, vec![place()]),
            Self::One(known, mut places) if known == key => {
                let place = place();
                if !places.contains(&place) {
                    places.push(place);
                }
                Self::One(known, places)
            }
            _ => Self::Several,
        }
    }
}

/// The keys of ours in a field value: raw, behind a scheme, or in a Basic pair.
fn keys_in(value: &[u8]) -> impl Iterator<Item = Cow<'_, [u8]>> {
    let value = value.trim_ascii();
    let keys = match basic_pair(value) {
        Some(pair) => {
            let (user, password) = split_pair(&pair);
            [user, password].map(|part| Some(Cow::Owned(part.to_vec())))
        }
        None => {
            // Whatever scheme an SDK writes before it: `Bearer`, `Token`, `Bot`, `GenieKey`.
            let at = value.iter().position(|byte| *byte == b' ');
            let behind = at.map(|at| value[at..].trim_ascii());
            let key = behind
                .filter(|key| key.starts_with(ISSUED))
                .unwrap_or(value);
            [Some(Cow::Borrowed(key)), None]
        }
    };
    keys.into_iter()
        .flatten()
        .filter(|key| key.starts_with(ISSUED))
}

/// The keys of ours that browsers' SDKs put among the subprotocols of a WebSocket, where they can
/// set no other field: `realtime, openai-insecure-api-key.rr_live_…`.
fn keys_of_protocols(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    let protocols = value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    let keys = protocols.filter_map(|protocol| protocol.split(|byte| *byte == b'.').next_back());
    keys.filter(|key| key.starts_with(ISSUED))
}

/// The forms of a key that was accepted, where one of them stands elsewhere in the request too, in
/// the path or whatever the field or parameter is called: a client that tags its calls with it, or
/// sends it twice, must not hand it to the target. Of a pair (`user:password`) the password alone
/// and the form in which Basic sends it are looked for as well, and escapes are undone. What is
/// shorter than [`SEARCHED_SECRET_BYTES_MIN`] bytes may be a common word, and is not looked for.
pub fn copied(
    request: &Request,
    key: &[u8],
    is_pair: bool,
    places: &[Place],
) -> Option<Vec<Zeroizing<Vec<u8>>>> {
    let password = is_pair.then(|| split_pair(key).1);
    let encoded = places.iter().find_map(|place| match place {
        Place::Header(name) => behind_scheme(single(request, name)?, &["basic"]),
        Place::Query(_) => None,
    });
    let forms = [Some(key), password, encoded];
    let forms = forms.map(|form| form.filter(|form| form.len() >= SEARCHED_SECRET_BYTES_MIN));
    let forms = || forms.iter().flatten().copied();
    let shortest = forms().map(<[u8]>::len).min()?;
    let is_place = |name: &HeaderName| {
        let mut places = places.iter();
        places.any(|place| matches!(place, Place::Header(place) if place == name))
    };
    let is_parameter = |piece: &[u8]| {
        let (name, _) = query::pairs(piece).next().unwrap_or_default();
        let mut places = places.iter();
        places.any(|place| matches!(place, Place::Query(place) if place.as_bytes() == &*name))
    };
    let in_field = request.headers.iter().any(|(name, value)| {
        value.len() >= shortest && !is_place(name) && holds(forms(), value.as_bytes(), false)
    });
    let text = request.query.as_deref().unwrap_or_default();
    let mut pieces = text.split(|byte| *byte == b'&');
    let path = request.rest();
    let found = in_field
        || path.len() >= shortest && holds(forms(), &path, false)
        || text.len() >= shortest
            && pieces.any(|piece| !is_parameter(piece) && holds(forms(), piece, true));
    found.then(|| forms().map(|form| form.to_vec().into()).collect())
}

/// Whether the path holds one of the forms of a key: nothing can be taken out of it.
pub fn in_path(request: &Request, forms: &[Zeroizing<Vec<u8>>]) -> bool {
    let forms = forms.iter().map(|form| form.as_slice());
    holds(forms, &request.rest(), false)
}

/// Takes every field and every query parameter out of a request that holds one of the forms of a
/// key; gives what the caller is warned of.
pub fn take_copies_out(request: &mut Request, forms: &[Zeroizing<Vec<u8>>]) -> String {
    let forms = || forms.iter().map(|form| form.as_slice());
    let mut held: Vec<HeaderName> = Vec::new();
    for (name, value) in &request.headers {
        if !held.contains(name) && holds(forms(), value.as_bytes(), false) {
            held.push(name.clone());
        }
    }
    let mut named: Vec<String> = Vec::new();
    for name in held {
        request.headers.remove(&name);
        named.push(format!("the field {name}"));
    }
    let query = request.query.as_deref();
    let rest =
        query.and_then(|text| query::remove_where(text, |piece| holds(forms(), piece, true)));
    if let Some(rest) = rest {
        let rest = rest.into_owned();
        request.query = (!rest.is_empty()).then(|| rest.into());
        named.push("the query".to_owned());
    }
    let places = named.join(" and ");
    format!("the key of this request stood in {places} too and was not sent on from there")
}

/// Whether a text holds one of these, as it is or under escapes; in a query a `+` may be a space.
fn holds<'f>(forms: impl Iterator<Item = &'f [u8]> + Clone, text: &[u8], in_query: bool) -> bool {
    let found = |text: &[u8]| {
        let mut forms = forms.clone();
        forms.any(|form| text.len() >= form.len() && memmem::find(text, form).is_some())
    };
    found(text)
        || text.contains(&b'%') && found(&forgotten::plain(text, b'+'))
        || in_query && text.contains(&b'+') && found(&forgotten::plain(text, b' '))
}

/// The key in `Authorization: Bearer …`.
pub fn bearer(request: &Request) -> Option<&[u8]> {
    behind_scheme(single(request, &header::AUTHORIZATION)?, &["bearer"])
}

/// `user:password` in `Authorization: Basic …` (RFC 7617).
pub fn basic(request: &Request) -> Option<Vec<u8>> {
    basic_pair(single(request, &header::AUTHORIZATION)?)
}

/// The key in one configured header: raw, or behind `Bearer` or `Token`.
pub fn in_header<'a>(request: &'a Request, name: &HeaderName) -> Option<&'a [u8]> {
    let value = single(request, name)?;
    Some(behind_scheme(value, &["bearer", "token"]).unwrap_or(value))
}

/// The key in one configured query parameter.
pub fn in_query<'a>(request: &'a Request, name: &str) -> Option<Cow<'a, [u8]>> {
    let text = request.query.as_deref()?;
    let mut values = query::pairs(text).filter(|(found, _)| &**found == name.as_bytes());
    let (_, value) = values.next()?;
    values.next().is_none().then_some(value)
}

/// What the record says of the key of a caller who was refused: that of the place in which a key
/// of ours was found, else of the first in which one that a user gave may stand; none where there
/// are several.
pub fn recorded(request: &Request, proxy: Option<&CompiledProxy>) -> Option<PresentedKey> {
    let usual = Extra::default();
    let extra = proxy.map_or(&usual, |proxy| &proxy.places);
    let (place, hint) = match issued(request, extra) {
        Issued::Several => return None,
        Issued::One(key, places) => (places.into_iter().next()?, KeyHint::of(&key)),
        Issued::Nowhere => (given_place(request, proxy)?, None),
    };
    let place = place.recorded();
    Some(PresentedKey { place, hint })
}

/// Where a key that a user gave stands: where a credential of the proxy looks for it, or where it
/// would be usual.
fn given_place(request: &Request, proxy: Option<&CompiledProxy>) -> Option<Place> {
    let credentials = proxy.map(|proxy| proxy.credentials.iter());
    let found = credentials.and_then(|mut all| all.find_map(|one| one.presented(request)));
    let usual = || request.headers.contains_key(header::AUTHORIZATION);
    match found {
        Some((_, place)) => Some(place),
        None => usual().then_some(Place::Header(header::AUTHORIZATION)),
    }
}

/// The field's value, where it stands exactly once.
fn single<'a>(request: &'a Request, name: &HeaderName) -> Option<&'a [u8]> {
    let mut values = request.headers.get_all(name).iter();
    let value = values.next()?;
    values
        .next()
        .is_none()
        .then(|| value.as_bytes().trim_ascii())
}

fn behind_scheme<'a>(value: &'a [u8], schemes: &[&str]) -> Option<&'a [u8]> {
    let at = value.iter().position(|byte| *byte == b' ')?;
    let scheme = &value[..at];
    let known = schemes
        .iter()
        .any(|name| scheme.eq_ignore_ascii_case(name.as_bytes()));
    known.then(|| value[at..].trim_ascii())
}

fn basic_pair(value: &[u8]) -> Option<Vec<u8>> {
    let encoded = behind_scheme(value, &["basic"])?;
    let pair = STANDARD.decode(encoded).ok()?;
    pair.contains(&b':').then_some(pair)
}

fn split_pair(pair: &[u8]) -> (&[u8], &[u8]) {
    match pair.iter().position(|byte| *byte == b':') {
        Some(at) => (&pair[..at], &pair[at + 1..]),
        None => (pair, &[]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use http::{HeaderMap, HeaderValue, Method};

    fn request(fields: &[(&str, &str)], target: &str) -> Request {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::from_str(value).unwrap(),
            );
        }
        let peer = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
        Request::new(
            Method::GET,
            Bytes::copy_from_slice(target.as_bytes()),
            headers,
            peer,
        )
    }

    fn check(fields: &[(&str, &str)], target: &str, expected: &[&str]) {
        let extra = Extra {
            headers: vec![HeaderName::from_static("x-shopify-access-token")],
            queries: vec!["key".into()],
        };
        let request = request(fields, target);
        let places: Vec<String> = match issued(&request, &extra) {
            Issued::Nowhere => vec![],
            Issued::Several => vec!["several".into()],
            Issued::One(key, places) => {
                assert_eq!(&*key, b"rr_live_1", "{fields:?}");
                places
                    .iter()
                    .map(|place| place.recorded().into_owned())
                    .collect()
            }
        };
        assert_eq!(places, expected, "{fields:?} {target}");
    }

    #[test]
    fn keys_of_ours_are_found_where_sdks_put_them() {
        let key = "rr_live_1";
        let basic = |pair: &str| format!("Basic {}", STANDARD.encode(pair));
        for value in [
            key.to_owned(),
            format!("Bearer {key}"),
            format!("bearer  {key}"),
            format!("Token {key}"),
            format!("token {key}"),
            basic("rr_live_1:"),
            basic("user:rr_live_1"),
        ] {
            check(&[("authorization", &value)], "/", &["authorization"]);
        }
        for name in [
            "x-requestrocket-key",
            "x-api-key",
            "api-key",
            "x-goog-api-key",
            "private-token",
            "x-shopify-access-token",
        ] {
            check(&[(name, key)], "/", &[name]);
        }
        check(&[], "/?key=rr_live_1", &["query"]);
        check(&[], "/?k%65y=rr_live%5F1", &["query"]);
        check(
            &[("x-api-key", key), ("authorization", key)],
            "/",
            &["x-api-key", "authorization"],
        );
        check(
            &[("x-api-key", key), ("authorization", "Bearer mine")],
            "/",
            &["x-api-key"],
        );
        check(
            &[("x-api-key", key), ("authorization", "rr_live_2")],
            "/",
            &["several"],
        );
        check(
            &[("authorization", &basic("rr_live_1:rr_live_2"))],
            "/",
            &["several"],
        );
        check(&[("x-other", key)], "/?token=rr_live_1", &[]);
        check(&[("authorization", "Bearer")], "/?key", &[]);
        check(&[("authorization", "Basic %%%")], "/", &[]);
    }

    #[test]
    fn given_keys_stand_in_one_place() {
        let one = request(&[("authorization", "Bearer abc")], "/?t=q%20x&u=1&u=2");
        assert_eq!(bearer(&one), Some(&b"abc"[..]));
        assert_eq!(in_header(&one, &header::AUTHORIZATION), Some(&b"abc"[..]));
        assert_eq!(in_query(&one, "t").as_deref(), Some(&b"q x"[..]));
        assert_eq!(in_query(&one, "u"), None, "given twice");
        let two = request(
            &[("authorization", "Bearer a"), ("authorization", "Bearer b")],
            "/",
        );
        assert_eq!(bearer(&two), None, "given twice");
        let pair = request(&[("authorization", "Basic YTpi")], "/");
        assert_eq!(basic(&pair).as_deref(), Some(&b"a:b"[..]));
    }

    #[test]
    fn copies_of_a_key_are_found_and_taken_out_wherever_they_stand() {
        let key = b"rr_live_0123456789";
        let field = |name: &'static str| Place::Header(HeaderName::from_static(name));
        let fields = [
            ("authorization", "rr_live_0123456789"),
            ("x-a", "rr_live_0123"),
        ];
        let taken = vec![field("authorization"), Place::Query("key".into())];
        let mut one = request(&fields, "/?key=rr_live_0123456789&a");
        assert_eq!(copied(&one, key, false, &taken), None);
        assert!(
            copied(&one, key, false, &taken[..1]).is_some(),
            "in the query"
        );
        let forms = copied(&one, key, false, &taken[1..]).expect("in a field");
        assert_eq!(copied(&one, b"rr_live", false, &[]), None, "too short");
        let warning = take_copies_out(&mut one, &forms);
        assert!(warning.contains("the field authorization and the query"));
        assert_eq!(one.query.as_deref(), Some(&b"a"[..]));
        assert_eq!(one.headers.len(), 1, "what is not the whole key stays");
    }

    #[test]
    fn a_copy_in_the_path_is_found_and_nothing_is_taken_out_there() {
        let key = b"rr_live_0123456789";
        for (path, expected) in [
            ("/botrr_live_0123456789/getMe", true),
            ("/bot%72r_live_0123456789", true),
            ("/botrr_live_012345678/x", false),
        ] {
            let one = request(&[], path);
            let forms = copied(&one, key, false, &[]);
            assert_eq!(forms.is_some(), expected, "{path}");
            assert!(forms.is_none_or(|forms| in_path(&one, &forms)));
        }
        let one = request(&[], "/x?a=rr_live_0123456789");
        let forms = copied(&one, key, false, &[]).expect("in the query");
        assert!(!in_path(&one, &forms));
    }

    /// Whether a copy is found of a key that stands in `authorization`, where another field and
    /// the query are these.
    fn finds(key: &str, is_pair: bool, shown: &str, field: &str, target: &str) -> bool {
        let one = request(&[("authorization", shown), ("x-a", field)], target);
        let places = [Place::Header(header::AUTHORIZATION)];
        copied(&one, key.as_bytes(), is_pair, &places).is_some()
    }

    #[test]
    fn every_form_of_a_key_is_looked_for() {
        let pair = "anna:a-password-of-a-pair";
        let shown = format!("Basic {}", STANDARD.encode(pair));
        for field in [
            "<a-password-of-a-pair>",
            "anna:a-password-of-a-pair",
            &shown,
            &shown["Basic ".len()..],
            "c=a%2Dpassword-of-a-pair",
        ] {
            assert!(finds(pair, true, &shown, field, "/"), "{field}");
        }
        assert!(!finds(pair, true, &shown, "another-password", "/"));
        // A colon makes no pair of what is none.
        let key = "prod-team-7f3a9c1e55:payments-gateway";
        assert!(finds(key, false, key, key, "/"));
        assert!(!finds(key, false, key, "payments-gateway", "/"));
        // Keys of ours as Basic sends them.
        let issued = "rr_live_0123456789";
        let shown = format!("Basic {}", STANDARD.encode(format!("{issued}:")));
        assert!(finds(issued, false, &shown, &shown, "/"));
        // In a query: as a name, and whatever a plus stands for.
        let key = "abc+def/ghi=jkl mno";
        for target in [
            "/?abc+def/ghi=jkl%20mno",
            "/?t=abc%2Bdef/ghi=jkl+mno",
            "/?a&t=abc%2bdef%2Fghi%3Djkl%20mno&b",
        ] {
            assert!(finds(key, false, key, "", target), "{target}");
        }
    }
}
