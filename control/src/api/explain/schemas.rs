//! Schemas of what is explained, and of the explanation.

use serde_json::{Value, json};

use crate::openapi::reference;

/// What is submitted.
pub fn input() -> Value {
    let text = |description: &str| json!({"type": "string", "description": description});
    json!({
        "type": "object",
        "description": "Exactly one of `request`, `record` and `last`",
        "additionalProperties": false,
        "properties": {
            "proxy": text("Id, alias or name of the proxy; not with `record`"),
            "credential": text("Id of the proxy credential that the caller holds; by default the \
                                proxy's first. No secret is taken or compared"),
            "request": request(),
            "record": text("Id of a request whose record is kept"),
            "last": {"type": "integer", "minimum": 1,
                     "description": "The proxy's last requests, at most 1,000"},
            "change": reference("Changes")
        }
    })
}

/// A request that is described or tried.
pub fn request() -> Value {
    let text = |description: &str| json!({"type": "string", "description": description});
    json!({
        "type": "object",
        "description": "A request",
        "required": ["method", "path"],
        "additionalProperties": false,
        "properties": {
            "method": text("Its method"),
            "path": text("What follows the proxy's name, with the query"),
            "headers": {
                "type": "object",
                "additionalProperties": {"anyOf": [
                    {"type": "string"},
                    {"type": "array", "items": {"type": "string"}}
                ]},
                "description": "Header fields, each a text or a list of texts"
            },
            "body": text("The body, as text"),
            "source": text("The caller's IP address")
        }
    })
}

/// A request that is sent: it comes from whoever asks for it.
pub fn tried() -> Value {
    let mut request = request();
    if let Some(properties) = request["properties"].as_object_mut() {
        properties.shift_remove("source");
    }
    request
}

/// What is answered.
pub fn explanation() -> Value {
    let count = |description: &str| json!({"type": "integer", "description": description});
    let decision = json!({"type": "string", "enum": ["allowed", "denied", "unknown"]});
    let listed = |description: &str, before: &str| {
        json!({
            "type": "array",
            "description": description,
            "items": {"type": "object", "properties": {
                "request_id": {"type": "string"},
                "method": {"type": "string"},
                "path": {"type": "string"},
                before: {"type": "string"},
                "decision": decision,
                "rules": {"type": "array", "items": {"type": "string"}}
            }}
        })
    };
    json!({
        "type": "object",
        "description": "For one request `decision` and `stages`, for the last ones counts",
        "properties": {
            "decision": decision,
            "code": {"type": "string", "description": "The code that the caller would get"},
            "version": count("The version that was looked at, before the change"),
            "stages": {
                "type": "array",
                "description": "What each stage decides, up to the one that ends the request",
                "items": {"type": "object", "properties": {
                    "stage": {"type": "string"},
                    "outcome": {"type": "string", "enum": ["pass", "end", "deny", "unknown"]}
                }}
            },
            "record": reference("Record"),
            "proxy_id": {"type": "string"},
            "looked_at": count("Records"),
            "allowed": count("Of them would pass"),
            "denied": count("Of them would be refused"),
            "unknown": count("Of them depend on what records do not keep"),
            "denied_by_rule": {"type": "object", "additionalProperties": {"type": "integer"}},
            "decided_otherwise": listed("Up to 100 that were decided otherwise when they came",
                                        "was"),
            "changed_by_this": {
                "type": "object",
                "description": "With `change`: those that it decides otherwise than what is \
                                published",
                "required": ["allowed", "denied", "unknown", "requests"],
                "properties": {
                    "allowed": count("Would pass and are refused now"),
                    "denied": count("Would be refused and pass now"),
                    "unknown": count("Depend, now or with the change, on what records do not keep"),
                    "requests": listed("Up to 100 of them", "now")
                }
            }
        }
    })
}
