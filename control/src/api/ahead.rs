//! A write that goes on to home in another region: the secrets in it are sealed here, so that no
//! other control plane has them in plain text.
//!
//! A secret is sealed for its credential as that will be: with an id that is chosen here where it
//! is new, and with its hosts. So the write is read here as home will read it, with the
//! configuration as it is here; home judges it again, and refuses a secret that is sealed for
//! another credential or for other hosts than it finds.

use proto::credential::Credential;
use proto::object::ObjectId;
use proto::seal::{DigestKey, SealedAhead, submitted_identity};
use serde_json::{Value, json};

use super::call::OrgCall;
use super::error::{Code, Refusal};
use super::secret::{Absent, SEALED, Secret};
use crate::route::GivenSecrets;

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

/// The body of a call with every secret sealed; nothing where it gives none.
///
/// # Errors
/// What home would answer to such a body: it is judged here as well.
pub fn seal(call: &OrgCall, given: GivenSecrets) -> Result<Option<Value>, Refusal> {
    if !mentions_secret(&call.request.body) {
        return Ok(None);
    }
    let mut sealed = call.request.body.clone();
    let (mut problems, mut count) = (Vec::new(), 0);
    for given in given(call, &*call.config()?)? {
        let place = sealed.pointer_mut(&given.pointer);
        let secret = place.and_then(|object| object.get_mut("secret"));
        let Some(secret) = secret.filter(|secret| !secret.is_null()) else {
            continue;
        };
        match seal_one(call, &given, secret) {
            Ok(()) => count += 1,
            Err(Unsealed::Faulty(faults)) => {
                let faults = faults.into_iter();
                problems.extend(faults.map(|problem| problem.below(&given.pointer)));
            }
            Err(Unsealed::Refused(refusal)) => return Err(refusal),
        }
    }
    match problems.is_empty() {
        true => Ok((count > 0).then_some(sealed)),
        false => Err(Refusal::invalid(problems)),
    }
}

/// Why a secret is not sealed.
enum Unsealed {
    Faulty(Vec<proto::problem::Problem>),
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
    *secret = json!({ SEALED: ahead });
    Ok(())
}

/// Whether something in a document is called `secret`: it may be one.
fn mentions_secret(document: &Value) -> bool {
    match document {
        Value::Object(fields) => fields
            .iter()
            .any(|(name, value)| (name == "secret" && value.is_object()) || mentions_secret(value)),
        Value::Array(items) => items.iter().any(mentions_secret),
        _ => false,
    }
}

/// The document with what only identifies them in the place of secrets: the same whether they came
/// as they are or sealed, which is another text each time.
pub fn identified(key: &DigestKey, document: &Value) -> Value {
    match document {
        Value::Object(fields) => {
            let fields = fields.iter().map(|(name, value)| {
                let value = match name == "secret" && value.is_object() {
                    true => identity(key, value).into(),
                    false => identified(key, value),
                };
                (name.clone(), value)
            });
            Value::Object(fields.collect())
        }
        Value::Array(items) => items.iter().map(|item| identified(key, item)).collect(),
        other => other.clone(),
    }
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
    use crate::openapi::schemas;
    use crate::route::{Route, Served, Takes};
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
        let text = json!({"labels": {"secret": "text"}});
        assert_eq!(identified(&key, &text), text);
        assert!(mentions_secret(&body(one)) && !mentions_secret(&text));
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
                name == "Changes" || schemas().get(name).is_some_and(holds_secret)
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
