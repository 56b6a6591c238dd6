//! The form of a node, as the API describes it.

use serde_json::{Value, json};

/// One running node.
pub fn node() -> Value {
    let text = |description: &str| json!({"type": "string", "description": description});
    json!({
        "type": "object",
        "description": "One running node",
        "properties": {
            "id": text("New at every start"),
            "name": text("Its `node_name`"),
            "region": text("Its region"),
            "address": text("Where it listens for callers; where that is all addresses of its \
                             machine, by the host that its peers dial, if it has peers"),
            "peers": text("Where other nodes dial it; absent where it has no links"),
            "program": text("The version of its program"),
            "started_at": {"type": "string", "format": "date-time"},
            "revision": {"type": "integer", "description": "The store revision that it serves"},
            "serves": text("Equal on nodes that serve the same configuration"),
            "current": {"type": "boolean",
                        "description": "Whether it serves what this control plane sees; absent \
                                        where that is not known (`store-unavailable`)"},
            "connected_since": {
                "type": "string", "format": "date-time",
                "description": "Where it is `cut-off` or the store is away (`store-unavailable`): \
                                since when it is connected to this control plane. What it says in \
                                etcd (`id`, `address`, `program`, `revision` and others) is absent \
                                then"
            },
            "heard_at": {
                "type": "string", "format": "date-time",
                "description": "When it last said something here; where `connected_since` is"
            },
            "behind": {
                "type": "array",
                "description": "Where it is not current: organisations with a version that it has \
                                not seen, at most 100",
                "items": {"type": "object", "properties": {
                    "org": {"type": "string"},
                    "slug": slug(),
                    "newest": {"type": "integer", "description": "The number of that version"}
                }}
            },
            "applied": applied(),
            "problems": problems(),
            "in_flight": {"type": "integer", "description": "Requests in flight"},
            "clock_ahead_ms": {
                "type": "integer",
                "description": "How far its clock is ahead of a control plane's, where over 2 s"
            },
            "meters_degraded": meters_degraded(),
            "restarts": {
                "type": "object",
                "description": "Tasks and stages that panicked and run again, by name",
                "additionalProperties": {"type": "integer"}
            },
            "not_kept": not_kept(),
            "sealing": sealing(),
            "failing": failing(),
            "faults": faults()
        }
    })
}

fn meters_degraded() -> Value {
    json!({
        "type": "integer",
        "description": "Meters that go by their `on_store_loss`, since neither the node that keeps \
                        them nor the store gives it tokens; where there are any"
    })
}

fn not_kept() -> Value {
    json!({
        "type": "object",
        "description": "Files of its copy of the configuration that it cannot write, and why: a \
                        start without etcd would go back behind what it serves",
        "additionalProperties": {"type": "string"}
    })
}

fn failing() -> Value {
    json!({
        "type": "array",
        "description": "Endpoints of targets that it passes over because they fail its health \
                        checks, at most 100",
        "items": {"type": "object", "properties": {
            "org": {"type": "string"},
            "target": {"type": "string"},
            "endpoint": {"type": "string", "description": "Host and port"},
            "detail": {"type": "string", "description": "What the last check that failed found"}
        }}
    })
}

fn sealing() -> Value {
    json!({
        "type": "object",
        "description": "The keys that it opens sealed secrets with. Absent from a node of an \
                        earlier release",
        "properties": {
            "keys": {"type": "array", "items": {"type": "string"},
                     "description": "Their names, the one that seals first"},
            "older": {
                "type": "object",
                "description": "How many of the secrets that it serves are sealed to another key \
                                than the first, by key: that key has to stay in the key ring",
                "additionalProperties": {"type": "integer"}
            }
        }
    })
}

fn slug() -> Value {
    json!({
        "type": ["string", "null"],
        "description": "Its slug; `null` where this control plane does not know the organisation"
    })
}

fn applied() -> Value {
    json!({
        "type": "object",
        "description": "With `org`: what it serves of that organisation. Absent where \
                        `connected_since` is",
        "properties": {
            "org": {"type": "string", "description": "The organisation's id"},
            "slug": slug(),
            "version": {
                "type": ["integer", "null"],
                "description": "The version that it serves; `null` where that is not known: none, \
                                one of before those that the store keeps, or the node has more \
                                faults than it may name"
            },
            "newest": {
                "type": ["integer", "null"],
                "description": "The newest version; `null` where its head cannot be read"
            },
            "lag_versions": {
                "type": "integer",
                "description": "How many versions that is behind; absent where one is not known, \
                                and where it is `apart`"
            },
            "lag_s": {
                "type": "integer",
                "description": "Seconds since the first version was published that it does not \
                                serve; 0 where it serves the newest. At least that, where some of \
                                these have left the store. Absent like `lag_versions`"
            },
            "apart": {
                "type": "boolean",
                "description": "True where the store went back (`store-regressed`), and so neither \
                                this version nor one that follows it is the newest there; else \
                                absent"
            }
        }
    })
}

fn problems() -> Value {
    json!({
        "type": "array",
        "description": "What is wrong with its place among the others. `cut-off`: it is \
                        connected to this control plane, and is not in etcd. `store-unavailable`: \
                        it is connected to this control plane, and etcd cannot be asked for more",
        "items": {"type": "object", "properties": {
            "code": {"type": "string",
                     "enum": ["cut-off", "name-taken", "region-foreign", "store-unavailable"]},
            "detail": {"type": "string"}
        }}
    })
}

fn faults() -> Value {
    json!({
        "type": "array",
        "description": "What it cannot serve; an earlier form is served instead",
        "items": {"type": "object", "properties": {
            "org": {"type": ["string", "null"]},
            "object": {"type": ["string", "null"]},
            "code": {"type": "string"},
            "detail": {"type": "string"},
            "applied": {"type": "integer",
                        "description": "Where there is no `object`: the version of the \
                                        organisation that it serves"}
        }}
    })
}
