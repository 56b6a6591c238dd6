//! What invitations of regions, and what is told to regions that join, look like.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::regions::invitations::Invitation;

/// An invitation as it is shown: without its token, which nobody has but whoever was given it.
pub fn show(id: &str, invitation: &Invitation, now: Timestamp) -> Value {
    let state = match &invitation.joined {
        Some(_) => "joined",
        None if now < invitation.expires_at => "open",
        None => "expired",
    };
    let joined = invitation.joined.as_ref().map(|joined| {
        json!({
            "at": joined.at, "source": joined.source,
            "fingerprint": joined.region.public.fingerprint(),
            "digest": joined.region.digest(),
            "public": joined.region.public, "signers": joined.region.signers,
            "addresses": joined.region.addresses,
        })
    });
    json!({
        "id": id, "region": invitation.region, "state": state,
        "created_at": invitation.created_at, "created_by": invitation.created_by,
        "expires_at": invitation.expires_at, "joined": joined,
    })
}

/// Schemas by name.
pub fn schemas() -> Vec<(&'static str, Value)> {
    let introduction = json!({
        "type": "object",
        "description": "What a region tells of itself",
        "additionalProperties": false,
        "required": ["public", "addresses"],
        "properties": introduced()
    });
    let mut joined = introduced();
    joined["at"] = time("When");
    joined["source"] = json!({"type": ["string", "null"], "description": "From which address"});
    joined["digest"] = text("SHA-256 of its keys and addresses together, for people to compare");
    joined["fingerprint"] = text("Its key, as `keyring show` says it");
    let joined = json!({"type": ["object", "null"], "description": "Who used it",
                        "properties": joined});
    let request = json!({
        "type": "object",
        "description": "A region that is to join",
        "additionalProperties": false,
        "required": ["region", "control", "replication"],
        "properties": {
            "region": text("Its name: 1 to 40 characters of a-z, 0-9 and `-`"),
            "control": text("Base URL under which it will reach this region's REST API"),
            "replication": endpoints(),
            "insecure": {"type": "boolean", "default": false,
                         "description": "Whether `control` and the gateway may be without TLS"},
            "valid_s": {"type": "integer", "minimum": 60, "maximum": 604_800, "default": 3_600,
                        "description": "How long the token is worth something, in seconds"},
        }
    });
    let invitation = json!({
        "type": "object",
        "properties": {
            "id": text("Its id, which is no secret"),
            "region": text("The region that it is for"),
            "state": {"type": "string", "enum": ["open", "joined", "expired"]},
            "created_at": time("When it was made"),
            "created_by": text("The token that made it, by name"),
            "expires_at": time("From when on it is worth nothing"),
            "token": text("What the region joins with; only in the answer that makes it"),
            "joined": joined,
        }
    });
    let admission = json!({
        "type": "object",
        "description": "What a region that joins is given",
        "properties": {
            "home": text("The region that is home"),
            "digest_key": {"type": "object",
                "description": "The installation's digest key, sealed to the region's key"},
            "invitation": text("The invitation's id, for which it is sealed"),
            "content_by_region": {"type": "boolean",
                "description": "Whether regions keep only what is for them"},
            "regions": {"type": "array", "items": introduction.clone()},
        }
    });
    vec![
        ("InvitationRequest", request),
        ("Invitation", invitation),
        ("Admission", admission),
        ("Introduction", introduction),
    ]
}

/// The properties of an introduction.
fn introduced() -> Value {
    json!({
        "public": {
            "type": "object",
            "required": ["region", "key_id", "key"],
            "properties": {
                "region": text("The region's name"),
                "key_id": text("Names the key"),
                "key": text("X25519 public key, base64"),
            }
        },
        "signers": {"type": "array", "items": {"type": "object"}, "maxItems": 16,
                    "description": "Ed25519 keys that its versions are signed with"},
        "addresses": {
            "type": "object",
            "additionalProperties": false,
            "required": ["control", "replication"],
            "properties": {
                "control": text("Base URL of its REST API"),
                "insecure": {"type": "boolean", "default": false,
                             "description": "Whether `control` and the gateway may be without TLS"},
                "gateway": {"type": ["string", "null"], "description": "Base URL of its gateway"},
                "replication": endpoints(),
            }
        },
    })
}

fn text(description: &str) -> Value {
    json!({"type": "string", "description": description})
}

fn time(description: &str) -> Value {
    json!({"type": "string", "format": "date-time", "description": description})
}

fn endpoints() -> Value {
    json!({"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 16,
           "description": "Link listeners of its control planes, `host:port` each"})
}

/// Orders invitations from the newest to the oldest.
pub fn key(id: &str, invitation: &Invitation) -> String {
    let age = i64::MAX.saturating_sub(invitation.created_at.as_microsecond());
    format!("{:020} {id}", age.max(0))
}
