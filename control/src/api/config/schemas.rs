//! The schema of the document, made of those of the models before the API adds to them.

use serde_json::{Value, json};

use super::FORMAT;
use crate::api::objects::Resource;
use crate::api::proxies::Proxies;
use crate::api::shape::Schemas;
use crate::openapi::{extend, reference};

/// Adds the schemas. The model's own must be there, and nothing else yet.
pub fn add(schemas: &mut Schemas) {
    let list = |of: &str, description: &str| {
        let mut list = json!({"type": "array", "items": reference(of)});
        list["description"] = json!(description);
        list
    };
    let id = json!({
        "type": "string",
        "description": "Only where the name alone does not tell which object is meant"
    });
    let common = [
        ("id", id),
        (
            "rules",
            list("Rule", "All rules of it; left out, they stay as they are"),
        ),
        (
            "filters",
            list(
                "Filter",
                "All filters of it; left out, they stay as they are",
            ),
        ),
        (
            "meters",
            list("Meter", "All meters of it; left out, they stay as they are"),
        ),
    ];
    let with = |further: &[(&'static str, Value)]| [&common[..], further].concat();
    extend(schemas, "Target", "ConfigTarget", &common);
    let secret = [("secret", reference("SecretInput"))];
    extend(schemas, "Credential", "ConfigCredential", &with(&secret));
    let name = |of: &str| json!({"type": "string", "description": format!("Name or id of {of}")});
    let proxy = with(&[
        ("target", name("the target")),
        ("target_credential", name("the target credential")),
        (
            "proxy_credentials",
            json!({"type": "array", "items": name("a proxy credential")}),
        ),
    ]);
    extend(schemas, "Proxy", "ConfigProxy", &proxy);
    if let Some(proxy) = schemas.get_mut("ConfigProxy") {
        if let Some(Value::Object(properties)) = proxy.get_mut("properties") {
            let by_id = ["target_id", "target_credential_id", "proxy_credential_ids"];
            for field in by_id.iter().chain(Proxies::OWN) {
                properties.shift_remove(*field);
            }
        }
        proxy["required"] = json!(["target", "proxy_credentials"]);
    }
    let document = json!({
        "type": "object",
        "description": "An organisation's configuration, by names",
        "required": ["format"],
        "additionalProperties": false,
        "properties": {
            "format": {"type": "string", "description": format!("`{FORMAT}`")},
            "meters": list(
                "Meter",
                "All meters of the organisation itself; left out, they stay as they are"
            ),
            "targets": list("ConfigTarget", "Targets"),
            "credentials": list("ConfigCredential", "Credentials of both kinds"),
            "proxies": list("ConfigProxy", "Proxies")
        }
    });
    schemas.insert("Config".into(), document);
}

/// Ids of the document that stand for others.
pub fn reissued() -> Value {
    json!({
        "type": "object",
        "description": "Of `apply`: ids of the document that nothing had here, and those that were \
                        issued in their place",
        "additionalProperties": {"type": "string"}
    })
}
