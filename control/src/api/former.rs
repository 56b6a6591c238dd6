//! Secrets that a rotation with an overlap has replaced: accepted until the overlap ends, which
//! stands in a fact beside the configuration.

use jiff::Timestamp;
use proto::credential::SecretState;
use proto::object::{ObjectId, StoredCredential};
use proto::retired::Retired;
use proto::store::follow::World;
use serde_json::{Value, json};

use super::answer::{Answer, Content};

/// Which secrets of a credential are over: a fact beside the configuration.
pub fn fact<'w>(world: &'w World, slug: &str, id: ObjectId) -> Option<&'w Retired> {
    let ObjectId::Credential(id) = id else {
        return None;
    };
    world.org(slug)?.retired.get(&id)
}

/// Secrets that a rotation has replaced and that are still accepted, each until when; `null` where
/// there are none. Of one whose end is not known here yet nothing is said.
pub fn former(previous: &[SecretState], fact: Option<&Retired>, now: Timestamp) -> Value {
    let shown = previous.iter().filter_map(|secret| {
        let end = fact?.end(&secret.generation)?;
        (end > now).then(|| {
            json!({"valid_until": end, "set_at": secret.set_at,
                   "generation": secret.generation, "hint": secret.hint})
        })
    });
    let shown: Vec<Value> = shown.collect();
    match shown.is_empty() {
        true => Value::Null,
        false => json!(shown),
    }
}

/// Tells the end of the overlap where the fact that says it has not come back from the store yet.
pub fn tell_former(answer: &mut Answer, before: &StoredCredential, until: Option<Timestamp>) {
    let (Content::Json(shown), Some(until), Some(secret)) =
        (&mut answer.content, until, &before.secret)
    else {
        return;
    };
    if shown["secret"]["former"].is_null() && !answer.replayed {
        shown["secret"]["former"] = json!([{
            "valid_until": until, "set_at": secret.set_at,
            "generation": secret.generation, "hint": secret.hint,
        }]);
    }
}

/// The schema of what is shown of them.
pub fn former_secrets() -> Value {
    json!({
        "type": ["array", "null"],
        "description": "Secrets that a rotation replaced and that are still accepted",
        "items": {"type": "object", "required": ["valid_until"], "properties": {
            "valid_until": {"type": "string", "format": "date-time",
                            "description": "Until when; from then on it is refused"},
            "set_at": {"type": "string", "format": "date-time"},
            "generation": {"type": "string"},
            "hint": {"type": ["string", "null"]}
        }}
    })
}
