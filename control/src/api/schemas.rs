//! Schemas of the API that are not simply a type of the model: what the gateway adds to an object
//! in answers (`readOnly`), what only goes in, and the forms of secrets.

use serde_json::{Value, json};

use super::former::former_secrets;
use super::secret::SEALED;
use super::shape::Schemas;
use crate::openapi::{extend, reference};

/// Adds and completes the schemas. The model's own must be there.
pub fn add(schemas: &mut Schemas) {
    super::config::schemas::add(schemas);
    extend(schemas, "SecretInput", "SecretInput", &[(SEALED, sealed())]);
    let with = |further: &[(&'static str, Value)]| [&stored()[..], further].concat();
    extend(
        schemas,
        "Credential",
        "CredentialInput",
        &[("secret", reference("SecretInput"))],
    );
    if let Some(kept) = schemas.get("CredentialInput").cloned() {
        // What the gateway sets is refused by name in a submitted credential too.
        schemas.insert("CredentialInput".into(), kept);
        let set = with(&[("warnings", warnings())]);
        extend(schemas, "CredentialInput", "CredentialInput", &set);
    }
    let credential = with(&[
        ("secret", reference("SecretView")),
        ("unsealed_in", unsealed_in()),
        ("warnings", warnings()),
    ]);
    extend(schemas, "Credential", "Credential", &credential);
    extend(
        schemas,
        "Target",
        "Target",
        &with(&[("effective_timeouts", read_only(reference("Timeouts")))]),
    );
    let urls = json!({"type": "object", "additionalProperties": {"type": "string"},
                      "description": "The proxy's URL in each region"});
    let url = json!({"type": "string", "description": "The proxy's URL in this region"});
    let by_alias = "The same by its alias, where it has one";
    let alias_url = json!({"type": "string", "description": by_alias});
    let proxy = with(&[
        ("url", read_only(url)),
        ("alias_url", read_only(alias_url)),
        ("urls", read_only(urls)),
        (
            "former_aliases",
            read_only(property(schemas, "former_aliases")),
        ),
    ]);
    extend(schemas, "Proxy", "Proxy", &proxy);
    super::inline::add_schemas(schemas);
    extend(schemas, "Org", "Org", &stored());
    add_policies(schemas, &stored());
    extend(
        schemas,
        "ApiToken",
        "ApiToken",
        &with(&[
            ("secret", read_only(shown_once())),
            ("warnings", warnings()),
        ]),
    );
    let record = [
        (
            "id",
            json!({"type": "string", "description": "The same as `request_id`"}),
        ),
        (
            "started_at",
            json!({"type": "string", "format": "date-time"}),
        ),
    ];
    extend(schemas, "Record", "Record", &record);
    for (name, schema) in fixed().into_iter().chain(of_regions()) {
        schemas.insert(name.into(), schema);
    }
}

fn of_regions() -> Vec<(&'static str, Value)> {
    [
        super::moves::schemas(),
        super::revocations::schemas(),
        super::invitation_schemas::schemas(),
        super::audit::schemas(version(), version_diff()["properties"]["changes"].clone()),
        vec![("AuditVerification", super::audit_verification::schema())],
    ]
    .concat()
}

/// An API token.
fn shown_once() -> Value {
    json!({
        "type": "object",
        "description": "Only in the answer that creates the token",
        "properties": {"token": {"type": "string"}}
    })
}

/// A property of a proxy, as the model describes it.
fn property(schemas: &Schemas, name: &str) -> Value {
    let proxy = schemas.get("Proxy").cloned().unwrap_or_default();
    proxy["properties"][name].clone()
}

/// Rules, filters and meters.
fn add_policies(schemas: &mut Schemas, stored: &[(&'static str, Value)]) {
    let parent = json!({"type": "string", "description": "Id of the object that it hangs on"});
    let attached = [stored, &[("parent_id", read_only(parent))]].concat();
    let warned = [&attached[..], &[("warnings", warnings())]].concat();
    extend(schemas, "Rule", "Rule", &warned);
    extend(schemas, "Filter", "Filter", &attached);
    extend(schemas, "Meter", "Meter", &warned);
}

fn warnings() -> Value {
    read_only(json!({
        "type": "array",
        "items": reference("Problem"),
        "description": "What is valid and probably not meant"
    }))
}

/// What every stored object has besides its own fields.
fn stored() -> Vec<(&'static str, Value)> {
    let time = json!({"type": "string", "format": "date-time"});
    vec![
        ("id", read_only(json!({"type": "string"}))),
        (
            "version",
            read_only(json!({
                "type": "integer",
                "description": "The version that last changed it; its `ETag`"
            })),
        ),
        ("created_at", read_only(time.clone())),
        ("updated_at", read_only(time)),
    ]
}

fn unsealed_in() -> Value {
    read_only(json!({
        "type": "array",
        "items": {"type": "string"},
        "description": "Regions of it that have no sealed secret yet, when it is read: they were \
                        added after the secret was set. Proxies that use it answer \
                        `credential-unavailable` there until nodes of a region that has it seal it \
                        for them, or the secret is given again"
    }))
}

fn read_only(mut schema: Value) -> Value {
    schema["readOnly"] = json!(true);
    schema
}

fn fixed() -> Vec<(&'static str, Value)> {
    vec![
        ("ProblemDocument", problem_document()),
        ("SecretView", secret_view()),
        ("Rotation", rotation()),
        ("RecordTrace", super::records::trace::schema()),
        ("TraceFile", super::records::trace::file_schema()),
        ("Telemetry", super::telemetry::schema()),
        ("CredentialUse", super::credential_use::schema()),
        ("SuggestedRules", super::suggested_rules::schema()),
        ("Me", me()),
        ("Node", super::node_schemas::node()),
        ("Regression", super::recovery_schemas::regression()),
        ("Recovery", super::recovery_schemas::recovery()),
        ("Recovered", super::recovery_schemas::recovered()),
        ("TestInput", super::test_schemas::input()),
        ("TestOutcome", super::test_schemas::outcome()),
        ("UnmatchedAttempt", super::unmatched::schema()),
        ("RaiseInput", super::raise::input_schema()),
        ("Raised", super::raise::schema()),
        ("MeterUsage", meter_usage()),
        ("Region", super::regions::schema()),
        ("Replication", super::replication::schema()),
        ("Version", version()),
        ("VersionDiff", version_diff()),
        ("Changes", changes()),
        ("Changed", changed()),
        ("ExplainInput", super::explain::schemas::input()),
        ("Explanation", super::explain::schemas::explanation()),
        (
            "Health",
            json!({
                "type": "object",
                "required": ["status"],
                "properties": {"status": {"type": "string", "enum": ["ok", "degraded", "draining"]}}
            }),
        ),
    ]
}

fn version() -> Value {
    json!({
        "type": "object",
        "description": "One version of an organisation's configuration",
        "properties": {
            "n": {"type": "integer", "description": "Its number"},
            "hash": {"type": "string", "description": "Of content and history, SHA-256"},
            "parent": {"type": ["string", "null"], "description": "Hash of the version before"},
            "published_at": {"type": "string", "format": "date-time"},
            "author": {"type": "string", "description": "Id of the API token, or a word"},
            "source": {"type": ["string", "null"],
                       "description": "The address that the request came from; left out below role \
                                       admin"},
            "changes": {"type": "integer", "description": "Objects created, changed, deleted"},
            "changed": {
                "type": "array",
                "items": {"type": "string"},
                "description": "Ids of the first 100 of them"
            },
            "kept_in": {
                "type": "string",
                "enum": ["store", "archive"],
                "description": "`archive`: only this control plane and others that have archived \
                                it can compare with it or return to it"
            }
        }
    })
}

fn meter_usage() -> Value {
    let mut key = reference("KeyUsage");
    key["description"] = json!(
        "Also `parent_id`, what the meter hangs on; and of limits that regions share `share`: \
         their `regions`, by the list that this region has; the `millionths` of the limits that \
         this region has, which `limits` are; the `whole` of each limit; `leaving`, what this \
         region has given away and is not known to be taken yet (`to` which region, how many \
         `millionths`), which neither region gives meanwhile; `moves_in_s`, how long a part takes \
         to another region; or `stays_for`, the kind of its limits (`fixed_window`, \
         `concurrency`) for which shares do not move"
    );
    json!({
        "type": "object",
        "properties": {
            "items": {"type": "array", "items": key},
            "at": {"type": ["string", "null"], "format": "date-time",
                   "description": "When the newest of it was told; nodes tell every few seconds"},
            "keys_left_out": {"type": "integer",
                              "description": "Keys of own meters that nodes left out"}
        }
    })
}

fn changed() -> Value {
    let mut diff = version_diff();
    diff["description"] = json!("What changed; with `dry_run` what would, `from` and `to` alike");
    diff["properties"]["generated"] = json!({
        "type": "array",
        "description": "Generated secrets, in this answer only",
        "items": {"type": "object", "properties": {
            "id": {"type": "string"},
            "secret": reference("SecretInput")
        }}
    });
    diff["properties"]["warnings"] = warnings();
    diff["properties"]["reissued"] = super::config::schemas::reissued();
    diff
}

fn sealed() -> Value {
    let what = "Between control planes only: the secret, sealed by the one that took it";
    json!({"type": "object", "description": what})
}

fn changes() -> Value {
    let text = |description: &str| json!({"type": "string", "description": description});
    json!({
        "type": "object",
        "required": ["operations"],
        "additionalProperties": false,
        "properties": {"operations": {
            "type": "array",
            "description": "1 to 1,000; their order does not matter",
            "items": {
                "type": "object",
                "description": "Exactly one of `create`, `update`, `replace` and `delete`",
                "additionalProperties": false,
                "properties": {
                    "create": {
                        "type": "string",
                        "enum": ["targets", "credentials", "proxies", "rules", "filters", "meters"],
                        "description": "The kind of object to create from `object`"
                    },
                    "as": text("A name for what is created: `@name` stands for its id"),
                    "parent": text("Of a rule, filter or meter: id or `@name` of what it hangs on"),
                    "object": {"type": "object", "description": "The whole object"},
                    "update": text("Id of an object to change by `patch`"),
                    "patch": {"type": "object", "description": "A merge patch (RFC 7396)"},
                    "replace": text("Id of an object to replace by `object`"),
                    "delete": text("Id of an object to delete"),
                    "if_match": {"type": "integer", "minimum": 0,
                                 "description": "`version` that the object must have, else 412"}
                }
            }
        }}
    })
}

fn version_diff() -> Value {
    let form = json!({
        "type": ["object", "null"],
        "description": "As the API shows the object; of an API token null below role admin"
    });
    json!({
        "type": "object",
        "properties": {
            "from": {"type": "integer"},
            "to": {"type": "integer"},
            "changes": {"type": "array", "items": {
                "type": "object",
                "properties": {
                    "id": {"type": "string"},
                    "change": {"type": "string", "enum": ["created", "updated", "deleted"]},
                    "before": form,
                    "after": form
                }
            }}
        }
    })
}

fn problem_document() -> Value {
    json!({
        "type": "object",
        "description": "Problem details (RFC 9457)",
        "required": ["type", "title", "status", "detail", "code"],
        "properties": {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string", "description": "What is wrong and what to do"},
            "code": {"type": "string", "description": "Stable, kebab-case"},
            "request_id": {"type": "string"},
            "errors": {"type": "array", "items": reference("Problem")},
            "used_by": {
                "type": "array",
                "items": {"type": "string"},
                "description": "Ids of the objects that use this one"
            }
        }
    })
}

fn secret_view() -> Value {
    json!({
        "type": "object",
        "readOnly": true,
        "description": "What is known of the secret; never the secret, but for one just generated",
        "required": ["state"],
        "properties": {
            "state": {"type": "string", "enum": ["active", "missing", "revoked"]},
            "set_at": {"type": "string", "format": "date-time"},
            "generation": {"type": "string", "description": "The version that set it"},
            "hint": {"type": "string", "description": "The last four characters of an issued key"},
            "former": former_secrets(),
            "key": {"type": "string", "description": "The generated key, in this answer only"},
            "token": {"type": "string", "description": "The generated token, in this answer only"}
        }
    })
}

fn rotation() -> Value {
    json!({
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "secret": reference("SecretInput"),
            "overlap_ms": {
                "type": "integer",
                "minimum": 0,
                "description": "How long the old secret of a proxy credential stays valid; \
                                default 0, at most 30 days"
            }
        }
    })
}

fn me() -> Value {
    json!({
        "type": "object",
        "required": ["token_id", "name", "role", "org_id", "org", "operator"],
        "properties": {
            "token_id": {"type": "string"},
            "name": {"type": "string"},
            "role": reference("Role"),
            "org_id": {"type": "string"},
            "org": {"type": "string", "description": "Slug of the token's organisation"},
            "operator": {"type": "boolean", "description": "Whether it may act everywhere"},
            "expires_at": {"type": ["string", "null"], "format": "date-time"}
        }
    })
}
