//! What the operator of a region revokes there at once, whether home can be asked or not.

use proto::audit::Act;
use proto::id::{CredentialId, OrgId};
use proto::problem::Problem;
use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::Answer;
use super::call::Call;
use super::credential_use;
use super::error::{Code, Refusal};
use super::write;
use crate::publish::RevokeError;
use crate::route::{Gives, Route, Takes, Verb};

/// Rows of the routing table.
pub fn routes() -> Vec<Route> {
    vec![
        Route::operator(
            Verb::Post,
            "/revocations",
            (
                "revoke_credential",
                "End every secret of a credential in this region at once, and then in all others",
            ),
            revoke,
        )
        .takes(Takes::Body("Revocation"))
        .gives(Gives::One("Revoked"))
        .local()
        .by_local_operator(),
    ]
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Revocation {
    credential: CredentialId,
    org: Option<String>,
}

async fn revoke(call: Call) -> Result<Answer, Refusal> {
    let wanted: Revocation =
        serde_json::from_value(call.request.body.clone()).map_err(|error| {
            Refusal::invalid(vec![Problem::new("", "revocation", error.to_string())])
        })?;
    let control = &call.control;
    let (org, credential) = (holder(&call, &wanted)?, wanted.credential);
    let act = Act::RevocationDecided {
        credential_id: credential,
    };
    call.audited(org, act).await?;
    let lowest = control.publisher.revoke_here(org, credential).await;
    let lowest = lowest.map_err(not_revoked)?;
    let (region, by) = (&control.settings.region, &call.caller.token.name);
    tracing::warn!(
        %org, %credential, by,
        "every secret of {credential} before {lowest} was revoked in region {region} by {by}"
    );
    let mut shown = json!({
        "org": org, "slug": control.slug_of(org), "credential": credential,
        "region": region, "lowest_generation": lowest,
    });
    // It is over by now; only the answer waits, and not for long.
    credential_use::tell(&mut shown, &control.records, (org, credential)).await;
    Ok(Answer::json(shown))
}

/// The organisation whose credential it is.
fn holder(call: &Call, wanted: &Revocation) -> Result<OrgId, Refusal> {
    let named = match &wanted.org {
        Some(name) => Some(
            call.control
                .find_org(name)
                .ok_or_else(Refusal::not_found)?
                .id,
        ),
        None => None,
    };
    let world = call.control.world();
    let orgs = world.orgs.iter().filter(|(id, state)| {
        let has = state.config.credential(wanted.credential).is_some();
        has && named.is_none_or(|named| named == **id)
    });
    let mut holders = orgs.map(|(id, _)| *id);
    let holder = holders.next().ok_or_else(Refusal::not_found)?;
    match holders.next() {
        None => Ok(holder),
        Some(_) => {
            let detail = "several organisations have a credential of this id: name one (`org`)";
            Err(Refusal::new(Code::Conflict, detail))
        }
    }
}

fn not_revoked(error: RevokeError) -> Refusal {
    let words = error.to_string();
    match error {
        RevokeError::Unknown(_) => Refusal::not_found(),
        RevokeError::Empty(_) => Refusal::new(Code::Conflict, words),
        RevokeError::Publish(error) => write::refusal(error),
    }
}

fn text(description: &str) -> Value {
    json!({"type": "string", "description": description})
}

/// Schemas by name.
pub fn schemas() -> Vec<(&'static str, Value)> {
    let revocation = json!({
        "type": "object",
        "description": "What is to be revoked",
        "additionalProperties": false,
        "required": ["credential"],
        "properties": {
            "credential": text("Id of a credential"),
            "org": text("Its organisation, by id or slug; needed where several have such an id"),
        }
    });
    let mut revoked = json!({
        "type": "object",
        "description": "What was revoked in this region; home takes it over, and every region from \
                        there",
        "properties": {
            "org": text("The organisation"),
            "slug": {"type": ["string", "null"], "description": "Its slug, where it has one"},
            "credential": text("The credential"),
            "region": text("The region in which it is in effect now"),
            "lowest_generation": text("Secrets of lower generations are over"),
        }
    });
    for (name, property) in credential_use::properties()
        .as_object()
        .into_iter()
        .flatten()
    {
        revoked["properties"][name] = property.clone();
    }
    vec![("Revocation", revocation), ("Revoked", revoked)]
}
