//! Schemas of a test request and of what became of it.

use serde_json::{Value, json};

use super::explain;
use crate::openapi::reference;

/// What is submitted.
pub fn input() -> Value {
    json!({
        "type": "object",
        "description": "Without `request`, a GET of `/`",
        "additionalProperties": false,
        "properties": {
            "request": explain::schemas::tried(),
            "credential": {
                "type": "string",
                "description": "Id of the proxy credential that the caller is taken to hold; by \
                                default the proxy's first. No secret is taken"
            },
            "answer": {
                "type": "boolean",
                "description": "Show the target's answer, up to 64 KiB; needs role admin"
            }
        }
    })
}

/// What is answered.
pub fn outcome() -> Value {
    let count = |description: &str| json!({"type": "integer", "description": description});
    let text = |description: &str| json!({"type": "string", "description": description});
    let fields = json!({"type": "array", "items": {"type": "array", "items": {"type": "string"}}});
    json!({
        "type": "object",
        "description": "What a caller would have got. It spent tokens and has a record",
        "properties": {
            "request_id": text("Also the id of its record"),
            "node": text("The node that sent it"),
            "status": count("The status that a caller would have got"),
            "code": text("The value of `requestrocket-proxy-code`"),
            "auth_failure": {"type": ["string", "null"],
                             "description": "Why the caller would have been answered 401"},
            "upstream_status": {"type": ["integer", "null"],
                                "description": "The status that the target answered"},
            "attempts": count("How often it was sent to the target"),
            "total_us": count("How long it took, in microseconds"),
            "stages": {"type": "array", "items": reference("StageTime")},
            "problem": {"type": ["object", "null"],
                        "description": "The gateway's own problem document, if it ended early"},
            "answer": {
                "type": ["object", "null"],
                "description": "The target's answer, where it was asked for",
                "properties": {
                    "headers": fields,
                    "body": text("The first of it, as text"),
                    "whole": {"type": "boolean", "description": "Whether that is all of it"}
                }
            }
        }
    })
}
