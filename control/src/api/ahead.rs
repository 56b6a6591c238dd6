//! A write that goes on to home in another region: the secrets in it are sealed here, so that no
//! other control plane has them in plain text.
//!
//! A secret is sealed for its credential as that will be: with an id that is chosen here where it
//! is new, and with its hosts. So the write is read here as home will read it, with the
//! configuration as it is here; home judges it again, and refuses a secret that is sealed for
//! another credential or for other hosts than it finds.

use std::sync::Arc;

use actix_web::HttpRequest;
use proto::credential::Credential;
use proto::object::ObjectId;
use proto::problem::Problem;
use proto::seal::{DigestKey, SealedAhead, submitted_identity};
use proto::tree::OrgConfig;
use serde_json::{Value, json};

use super::call::OrgCall;
use super::error::{Code, Refusal};
use super::secret::{Absent, SEALED, Secret};
use super::shape::{self, Document};
use super::{body, idempotency};
use crate::openapi::schemas;
use crate::operator::Caller;
use crate::route::{Access, GivenSecrets, Route, Takes};
use crate::router;
use crate::state::Control;

/// The schema of a list of changes.
const CHANGES: &str = "Changes";

/// A credential for which a body gives a secret.
pub struct Given {
    /// Where the object with the secret stands in the body.
    pointer: String,
    id: ObjectId,
    /// As it will be.
    credential: Credential,
}

impl Given {
    /// The one whose `secret` stands in the object at `pointer`.
    pub fn new(pointer: impl Into<String>, id: ObjectId, credential: Credential) -> Self {
        Self {
            pointer: pointer.into(),
            id,
            credential,
        }
    }
}

/// The body of a write that goes on to home, with the secrets in it sealed. Where they cannot be:
/// what home answers only if it remembers this request by its `Idempotency-Key`, and what is to be
/// answered otherwise.
///
/// # Errors
/// As of a call that is carried out here.
pub async fn sealed(
    control: &Arc<Control>,
    route: &Route,
    (request, caller): (&HttpRequest, Caller),
    bytes: Vec<u8>,
) -> Result<(Vec<u8>, Option<Refusal>), Refusal> {
    let (Some(given), Access::Org(need, _)) = (route.given_secrets, &route.access) else {
        return Ok((bytes, None));
    };
    if bytes.is_empty() {
        return Ok((bytes, None));
    }
    let document = body::document(request.headers(), &bytes, route.takes)?;
    refuse_unknown(route.takes, &document)?;
    // As it was read: of a field that is there twice the first is gone.
    let text = |document: &Value| document.to_string().into_bytes();
    let mentions = mentions_secret(&document);
    // What objects in a list may have hangs on what they are, and so on the configuration.
    if !mentions && route.takes != Takes::Large(CHANGES) {
        return Ok((text(&document), None));
    }
    control.wait_for_version(&caller, request.headers()).await?;
    let parts = router::read_request(route, request, &control.settings.proxies)?;
    let mut call = match router::org_call(control.clone(), route, *need, (caller, parts)) {
        Ok(call) => call,
        // Home may know better who may do what.
        Err(_) if !mentions => return Ok((text(&document), None)),
        Err(refusal) => return Err(refusal),
    };
    call.request.body = document;
    if !mentions {
        let judged = call.config().and_then(|config| given(&call, &config));
        return match judged {
            Err(refusal) if names_unknown(&refusal.errors) => Err(refusal),
            _ => Ok((text(&call.request.body), None)),
        };
    }
    match seal(&call, given) {
        Ok(sealed) => body::fits(text(&sealed), route.takes).map(|sealed| (sealed, None)),
        Err(refusal) => match idempotency::key(request, &call.caller, call.org_id())? {
            None => Err(refusal),
            Some(_) => {
                let asked = to_remember(&control.digest_key, &call.request.body);
                Ok((text(&asked), Some(refusal)))
            }
        },
    }
}

/// The body of a call with every secret sealed.
///
/// # Errors
/// What home would answer to such a body: it is judged here as well. What is not here cannot be.
pub fn seal(call: &OrgCall, find: GivenSecrets) -> Result<Value, Refusal> {
    let config = call.config()?;
    let found = find(call, &config).map_err(|refusal| unless_in_part(&config, refusal))?;
    let mut sealed = call.request.body.clone();
    let mut problems = Vec::new();
    for given in found {
        let place = sealed.pointer_mut(&given.pointer);
        let secret = place.and_then(|object| object.get_mut("secret"));
        let Some(secret) = secret.filter(|secret| !secret.is_null()) else {
            continue;
        };
        match seal_one(call, &given, secret) {
            Ok(()) => {}
            Err(Unsealed::Faulty(faults)) => {
                let faults = faults.into_iter();
                problems.extend(faults.map(|problem| problem.below(&given.pointer)));
            }
            Err(Unsealed::Refused(refusal)) => return Err(refusal),
        }
    }
    if problems.is_empty() {
        problems = unsealed(&sealed);
    }
    match problems.is_empty() {
        true => Ok(sealed),
        false => Err(unless_in_part(&config, Refusal::invalid(problems))),
    }
}

/// What is told where the configuration is here in part only.
fn unless_in_part(config: &OrgConfig, refusal: Refusal) -> Refusal {
    let regions = config.withheld_regions();
    if regions.is_empty() {
        return refusal;
    }
    let detail = format!(
        "what is pinned to {} is not kept here, so a secret in this write may be for something \
         that is not known here ({}): give it in one of these regions, or in the home region",
        regions.join(", "),
        refusal.detail
    );
    Refusal::new(Code::SetUnavailable, detail)
}

/// Secrets that are left where a credential's may stand: those of nothing that is known.
fn unsealed(document: &Value) -> Vec<Problem> {
    let mut holders = vec![(String::new(), document)];
    let items = |field: &str| document.get(field).and_then(Value::as_array);
    for (at, item) in items("credentials").into_iter().flatten().enumerate() {
        holders.push((format!("/credentials/{at}"), item));
    }
    for (at, item) in items("operations").into_iter().flatten().enumerate() {
        let place = |name| {
            item.get(name)
                .map(|it| (format!("/operations/{at}/{name}"), it))
        };
        holders.extend(["object", "patch"].into_iter().filter_map(place));
    }
    let is_left = |secret: &Value| match secret {
        Value::Null => false,
        Value::Object(fields) => !fields.is_empty() && !fields.contains_key(SEALED),
        _ => true,
    };
    let left = holders.into_iter();
    let left = left.filter(|(_, holder)| holder.get("secret").is_some_and(is_left));
    left.map(|(place, _)| {
        let detail = "is for no credential that is known here";
        Problem::new(format!("{place}/secret"), "not-applicable", detail)
    })
    .collect()
}

/// Fields that a body may not have, where a secret may stand by mistake: they go nowhere.
///
/// # Errors
/// There are some.
pub fn refuse_unknown(takes: Takes, document: &Value) -> Result<(), Refusal> {
    let (name, kind) = match takes {
        Takes::Nothing => return Ok(()),
        Takes::Body(name) | Takes::Large(name) | Takes::Optional(name) => (name, Document::Whole),
        Takes::MergePatch(name) => (name, Document::MergePatch),
    };
    let faults = shape::faults(schemas(), name, document, kind);
    match names_unknown(&faults) || !document.is_object() {
        true => Err(Refusal::invalid(faults)),
        false => Ok(()),
    }
}

fn names_unknown(faults: &[Problem]) -> bool {
    faults.iter().any(|fault| fault.code == "unknown-field")
}

/// The body with what only identifies them in the place of secrets: home answers it as it answered
/// the same request before, if it did, and can do nothing else with it.
pub fn to_remember(key: &DigestKey, document: &Value) -> Value {
    with_secrets(
        document,
        &|secret| json!({SEALED: {"identity": identity(key, secret)}}),
    )
}

/// The document with something else in the place of each secret.
fn with_secrets(document: &Value, instead: &impl Fn(&Value) -> Value) -> Value {
    match document {
        Value::Object(fields) => {
            let fields = fields.iter().map(|(name, value)| {
                let value = match name == "secret" && !value.is_null() {
                    true => instead(value),
                    false => with_secrets(value, instead),
                };
                (name.clone(), value)
            });
            Value::Object(fields.collect())
        }
        Value::Array(items) => items
            .iter()
            .map(|item| with_secrets(item, instead))
            .collect(),
        other => other.clone(),
    }
}

/// Why a secret is not sealed.
enum Unsealed {
    Faulty(Vec<Problem>),
    Refused(Refusal),
}

fn seal_one(call: &OrgCall, given: &Given, secret: &mut Value) -> Result<(), Unsealed> {
    let (control, credential) = (&call.control, &given.credential);
    let key = &control.digest_key;
    let read = Secret::new(key, credential, Some(secret.clone()), Absent::IsAFault);
    let (Secret::Given(input), ObjectId::Credential(id)) =
        (read.map_err(Unsealed::Faulty)?, given.id)
    else {
        return Ok(());
    };
    let (of, identity) = ((call.org_id(), id, credential), identity(key, secret));
    let to = control.publisher.seals_to();
    let ahead = SealedAhead::new(key, of, (input, identity), to);
    let ahead = ahead.map_err(|error| {
        let refusal = Refusal::new(Code::Internal, format!("a secret is not sealed: {error}"));
        Unsealed::Refused(refusal)
    })?;
    if ahead.is_for_nobody() {
        let detail = format!(
            "the settings of region {} list none of the regions {}: give the secret in one of \
             these, or in the home region",
            control.publisher.region(),
            credential.regions.join(", ")
        );
        let problem = Problem::new("/regions", "region-unknown", detail);
        return Err(Unsealed::Faulty(vec![problem]));
    }
    *secret = json!({ SEALED: ahead });
    Ok(())
}

/// Whether something in a document is called `secret`: it may be one.
pub fn mentions_secret(document: &Value) -> bool {
    match document {
        Value::Object(fields) => fields
            .iter()
            .any(|(name, value)| (name == "secret" && !value.is_null()) || mentions_secret(value)),
        Value::Array(items) => items.iter().any(mentions_secret),
        _ => false,
    }
}

/// The document with what only identifies them in the place of secrets: the same whether they came
/// as they are or sealed, which is another text each time.
pub fn identified(key: &DigestKey, document: &Value) -> Value {
    with_secrets(document, &|secret| identity(key, secret).into())
}

fn identity(key: &DigestKey, secret: &Value) -> String {
    match secret.get(SEALED).and_then(|sealed| sealed.get("identity")) {
        Some(Value::String(identity)) => identity.clone(),
        _ => submitted_identity(key, &secret.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::{Route, Served};
    use crate::router::routes;

    #[test]
    fn a_body_is_the_same_request_whether_its_secrets_are_sealed_or_not() {
        let key = DigestKey::generate();
        let body = |secret: Value| json!({"items": [{"name": "a", "secret": secret}]});
        let (one, other) = (json!({"key": "one"}), json!({"key": "other"}));
        let sealed = json!({SEALED: {"identity": identity(&key, &one), "values": ["random"]}});
        let same = identified(&key, &body(one.clone()));
        assert_eq!(same, identified(&key, &body(sealed)));
        assert_ne!(same, identified(&key, &body(other)));
        assert!(!same.to_string().contains("one"));
        let none = json!({"labels": {"a": "text"}, "secret": null});
        assert_eq!(identified(&key, &none), none);
        assert!(mentions_secret(&body(one)) && !mentions_secret(&none));
    }

    #[test]
    fn what_is_left_unsealed_where_a_secret_may_stand_goes_nowhere() {
        let sealed = json!({SEALED: {}});
        for (document, expected) in [
            (json!({"secret": sealed, "labels": {"secret": "x"}}), vec![]),
            (
                json!({"secret": {}, "credentials": [{"secret": null}]}),
                vec![],
            ),
            (json!({"secret": "x"}), vec!["/secret"]),
            (
                json!({"credentials": [{"secret": sealed}, {"secret": {"token": "x"}}]}),
                vec!["/credentials/1/secret"],
            ),
            (
                json!({"operations": [{"patch": {"secret": []}}, {"object": {"secret": 1}}]}),
                vec!["/operations/0/patch/secret", "/operations/1/object/secret"],
            ),
        ] {
            let left = unsealed(&document)
                .into_iter()
                .map(|problem| problem.pointer);
            assert_eq!(left.collect::<Vec<_>>(), expected, "{document}");
        }
        let misplaced = json!({"kind": "target", "auth_type": "bearer", "token": "x"});
        let (whole, patch) = (
            Takes::Body("CredentialInput"),
            Takes::MergePatch("CredentialInput"),
        );
        let rotation = Takes::Optional("Rotation");
        for (takes, document) in [
            (whole, misplaced),
            (patch, json!({"x": 1})),
            (rotation, json!({"new": {}})),
            (rotation, json!([{"secret": {"token": "x"}}])),
        ] {
            assert!(refuse_unknown(takes, &document).is_err(), "{document}");
        }
        for (takes, document) in [(rotation, json!({})), (patch, json!({"name": "x"}))] {
            assert!(refuse_unknown(takes, &document).is_ok(), "{document}");
        }
    }

    /// Whether a schema, or one that it names, is that of a secret.
    fn holds_secret(schema: &Value) -> bool {
        match schema {
            Value::Object(fields) => fields.iter().any(|(name, value)| match value.as_str() {
                Some(named) if name == "$ref" => {
                    let named = named.rsplit('/').next().unwrap_or_default();
                    named == "SecretInput" || schemas().get(named).is_some_and(holds_secret)
                }
                _ => holds_secret(value),
            }),
            Value::Array(items) => items.iter().any(holds_secret),
            _ => false,
        }
    }

    #[test]
    fn every_write_that_may_hold_a_secret_and_goes_on_to_home_tells_which() {
        let holds = |route: &Route| match route.takes {
            Takes::Nothing => false,
            Takes::Body(name)
            | Takes::Large(name)
            | Takes::Optional(name)
            | Takes::MergePatch(name) => {
                // Whole objects of any kind stand in a list of changes.
                name == CHANGES || schemas().get(name).is_some_and(holds_secret)
            }
        };
        let mut count = 0;
        for route in routes() {
            let goes_on = route.served == Served::AtHome;
            assert_eq!(
                route.given_secrets.is_some(),
                goes_on && holds(&route),
                "{route:?}"
            );
            count += usize::from(route.given_secrets.is_some());
        }
        assert_eq!(count, 7);
    }
}
