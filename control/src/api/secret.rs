//! The secret of a write: given, generated and shown once, or none.

use std::sync::Arc;

use proto::credential::{AuthType, Credential, CredentialKind, SecretInput, secret_not_searched};
use proto::problem::Problem;
use proto::seal::{DigestKey, NewSecret, SealedAhead, issue_key};
use serde::Deserialize;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::answer::{Answer, Content};
use super::shape;
use super::warned::add;
use crate::openapi::schemas;

/// What the absence of a secret means.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Absent {
    /// One is generated, where the type allows it.
    Generates,
    /// There must be one.
    IsAFault,
}

/// The field of a submitted secret that holds it sealed.
pub const SEALED: &str = "sealed";
/// The code of what is said where an answer lacks a generated secret: an earlier one showed it.
pub const SHOWN_BEFORE: &str = "shown-before";

/// The secret of a write.
pub enum Secret {
    /// The type holds none.
    None,
    /// The caller gave it.
    Given(SecretInput),
    /// We made it, to be shown under this name.
    Generated(&'static str, Zeroizing<String>),
    /// The control plane of another region took it and sealed it.
    SealedAhead(Box<SealedAhead>),
}

impl Secret {
    /// A secret as submitted, or what its absence means.
    ///
    /// # Errors
    /// All its faults, at `/secret`.
    pub fn new(
        key: &DigestKey,
        credential: &Credential,
        given: Option<Value>,
        absent: Absent,
    ) -> Result<Self, Vec<Problem>> {
        if let Some(given) = given.filter(|given| !given.is_null()) {
            if let Some(ahead) = given.get(SEALED) {
                let ahead = genuine(key, credential, ahead);
                return ahead.map(|ahead| Self::SealedAhead(Box::new(ahead)));
            }
            let below = |problem: Problem| problem.below("/secret");
            let input: SecretInput = shape::parse(schemas(), "SecretInput", given)
                .map_err(|problems| problems.into_iter().map(below).collect::<Vec<_>>())?;
            let problems = credential.validate_secret(&input);
            if !problems.is_empty() {
                return Err(problems);
            }
            return Ok(match credential.has_secret() {
                true => Self::Given(input),
                false => Self::None,
            });
        }
        let proxy = credential.kind == CredentialKind::Proxy;
        let detail = match (absent, credential.auth_type) {
            (Absent::Generates, AuthType::None) => return Ok(Self::None),
            (Absent::Generates, AuthType::ApiKey) if proxy => {
                return Ok(Self::Generated("key", issue_key()));
            }
            (Absent::Generates, AuthType::Bearer) if proxy => {
                return Ok(Self::Generated("token", issue_key()));
            }
            (Absent::Generates, _) => {
                "is missing; only the key of a proxy credential of type \
                                       api_key or bearer can be generated"
            }
            (Absent::IsAFault, _) => "cannot be removed; rotate it, or delete the credential",
        };
        Err(vec![Problem::new("/secret", "required", detail)])
    }

    /// What the publisher is handed; nothing where the type holds no secret.
    pub fn prepare(&self, key: &DigestKey, credential: &Credential) -> Option<Arc<NewSecret>> {
        let input = match self {
            Self::None => return None,
            Self::SealedAhead(ahead) => {
                return Some(Arc::new(SealedAhead::clone(ahead).into_new_secret()));
            }
            Self::Given(input) => input.clone(),
            Self::Generated(name, key) => {
                let mut input = SecretInput::default();
                let field = match *name {
                    "key" => &mut input.key,
                    _ => &mut input.token,
                };
                *field = Some(key.as_str().to_owned());
                input
            }
        };
        let prepared = NewSecret::prepare(key, credential, input);
        Some(Arc::new(prepared))
    }

    /// Adds to the answer what only the answer to this write says: a generated key, which is never
    /// shown again, and what is to be said of a given secret. No key where the write was carried
    /// out before: another was generated then, and is in force.
    pub fn show_once(&self, credential: &Credential, answer: &mut Answer) {
        let Content::Json(shown) = &mut answer.content else {
            return;
        };
        let mut warnings = self.warnings(credential);
        match self.generated() {
            Some((name, _)) if answer.replayed => warnings.push(shown_before(name)),
            Some((name, key)) => shown["secret"][name] = json!(key),
            None => {}
        }
        add(shown, warnings);
    }

    /// What is valid in a given secret and makes it less safe.
    pub fn warnings(&self, credential: &Credential) -> Vec<Problem> {
        match self {
            Self::Given(input) => credential.secret_warnings(input),
            Self::SealedAhead(ahead) => {
                let places = ahead.not_searched.iter().cloned();
                places.map(secret_not_searched).collect()
            }
            Self::None | Self::Generated(..) => Vec::new(),
        }
    }

    /// The field and the text of a secret that was generated.
    pub fn generated(&self) -> Option<(&'static str, &str)> {
        match self {
            Self::Generated(name, key) => Some((name, key.as_str())),
            Self::None | Self::Given(_) | Self::SealedAhead(_) => None,
        }
    }
}

/// What is said where a generated key is not shown: the write was carried out before.
pub fn shown_before(name: &str) -> Problem {
    let detail = "was generated when this write was carried out, and shown in the first answer \
                  alone; for a new one rotate the credential (`POST …/credentials/{id}/rotate`)";
    Problem::new(format!("/secret/{name}"), SHOWN_BEFORE, detail)
}

/// What another control plane says that it sealed, once it is proved.
fn genuine(
    key: &DigestKey,
    credential: &Credential,
    given: &Value,
) -> Result<SealedAhead, Vec<Problem>> {
    let ahead = SealedAhead::deserialize(given).ok();
    let ahead = ahead.filter(|ahead| ahead.is_genuine(key, credential));
    ahead.ok_or_else(|| {
        let detail = "only a control plane of this installation says this, of a credential of \
                      this kind and type; give the secret itself";
        vec![Problem::new("/secret/sealed", "not-genuine", detail)]
    })
}
