//! The committed document is the generated one, and it holds together.

use std::collections::HashSet;
use std::path::Path;

use super::*;

/// Set this to write the committed copy anew: `UPDATE_OPENAPI=1 cargo test -p control openapi`.
const UPDATE: &str = "UPDATE_OPENAPI";

#[test]
fn the_committed_copy_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi.json");
    let generated = openapi_json();
    if std::env::var_os(UPDATE).is_some() {
        std::fs::write(&path, generated).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == generated,
        "control/openapi.json is stale; run the tests once with {UPDATE}=1 and commit it"
    );
}

#[test]
fn every_reference_leads_to_a_schema() {
    fn walk(value: &Value, seen: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                if let Some(Value::String(location)) = fields.get("$ref") {
                    seen.push(location.clone());
                }
                fields.values().for_each(|field| walk(field, seen));
            }
            Value::Array(items) => items.iter().for_each(|item| walk(item, seen)),
            _ => {}
        }
    }
    let document = document();
    let mut references = Vec::new();
    walk(&document, &mut references);
    assert!(!references.is_empty());
    for location in references {
        let pointer = location.trim_start_matches('#');
        assert!(
            document.pointer(pointer).is_some(),
            "{location} leads nowhere"
        );
    }
}

#[test]
fn operations_are_unique_and_named_verb_resource() {
    let mut seen = HashSet::new();
    for route in routes() {
        assert!(seen.insert(route.operation), "{route:?} twice");
        let words = route.operation.split_once('_');
        assert!(
            words.is_some_and(|(verb, noun)| !verb.is_empty() && !noun.is_empty()),
            "{route:?}"
        );
        assert!(!route.summary.is_empty(), "{route:?}");
    }
}

#[test]
fn descriptions_hold_no_links_of_another_documentation() {
    assert_eq!(without_links("see [`Proxy::cookies`]."), "see `cookies`.");
    assert_eq!(
        without_links("at most [`MAX`](crate::x::MAX) bytes"),
        "at most `MAX` bytes"
    );
    assert_eq!(without_links("an [`open"), "an [`open");
    let text = openapi_json();
    assert!(!text.contains("[`") && !text.contains("crate::"));
}

/// A client that is made from the document reads a trace in either form, and no form as the other.
#[test]
fn a_trace_is_of_one_form_or_the_other() {
    let document = document();
    let operation = &document["paths"]["/api/v1/orgs/{org}/records/{id}/trace"]["get"];
    let schema = &operation["responses"]["200"]["content"]["application/json"]["schema"];
    let forms = [reference("RecordTrace"), reference("TraceFile")];
    assert_eq!(*schema, json!({"oneOf": forms}));
    let schemas = &document["components"]["schemas"];
    assert_eq!(
        schemas["RecordTrace"]["required"],
        json!(["request_id", "spans"])
    );
    assert_eq!(schemas["TraceFile"]["required"], json!(["resourceSpans"]));
}
