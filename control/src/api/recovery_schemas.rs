//! The documents of a recovery, as the OpenAPI description tells them.

use serde_json::{Value, json};

/// What a store lacks of an organisation.
pub fn regression() -> Value {
    json!({
        "type": "object",
        "description": "An organisation of which the store holds less than was seen before",
        "properties": {
            "org": {"type": "string", "description": "Its id"},
            "slug": {"type": ["string", "null"], "description": "Its slug"},
            "seen": {"type": ["integer", "null"],
                     "description": "The version that this control plane has seen"},
            "stored": {"type": ["integer", "null"], "description": "The version in the store"},
            "leaves_lost": {"type": "integer",
                            "description": "Leaves of the stored version that are not there, or \
                                            not as they are named"},
            "witness": {"type": "string", "description": "Who has seen more than is stored"}
        }
    })
}

/// What the list has beside its items.
pub fn unchecked() -> [(&'static str, Value); 2] {
    let one = json!({
        "type": "object",
        "properties": {
            "org": {"type": ["string", "null"],
                    "description": "Its id; null: which organisations there are is not known"},
            "slug": {"type": ["string", "null"], "description": "Its slug"},
            "why": {"type": "string", "description": "Why not"}
        }
    });
    let unchecked = json!({
        "type": "array",
        "description": "Organisations of which it is not known whether the store has lost leaves, \
                        at most 100 of them",
        "items": one
    });
    let count = json!({"type": "integer", "description": "How many there are of them"});
    [("unchecked", unchecked), ("unchecked_count", count)]
}

/// A decision on a store that was restored or wiped.
pub fn recovery() -> Value {
    json!({
        "type": "object",
        "additionalProperties": false,
        "description": "What is to be done: one of these",
        "properties": {
            "from_node": {"type": "string",
                          "description": "Name of the node that writes back what it serves"},
            "accept_store": {"type": "boolean",
                             "description": "The store's state counts; what came later is gone"},
            "reclaim_space": {"type": "boolean",
                              "description": "A full store gives back what old changes take"}
        }
    })
}

/// What a recovery did.
pub fn recovered() -> Value {
    json!({
        "type": "object",
        "description": "The versions that now count",
        "properties": {
            "leaves_written": {"type": "integer",
                               "description": "Leaves that the store had lost, written again"},
            "recovered": {"type": "array", "items": {
            "type": "object",
            "properties": {
                "org": {"type": "string", "description": "The organisation's id"},
                "slug": {"type": ["string", "null"], "description": "Its slug"},
                "from": {"type": "integer", "description": "The version whose content counts"},
                "n": {"type": "integer", "description": "The new version"},
                "epoch": {"type": "integer", "description": "The history that it opens"}
            }
        }}}
    })
}
