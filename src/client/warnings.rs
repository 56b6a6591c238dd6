//! What the control plane says of a write that is valid and probably not meant.

use serde_json::Value;

use super::records::shown;

/// Says on standard error what is to be said of a write, a line each.
pub fn warn(answer: &Value) {
    for line in lines(answer) {
        eprintln!("requestrocket: {line}");
    }
}

/// What is to be said of the write itself, and of the objects that it made or changed.
fn lines(answer: &Value) -> Vec<String> {
    let changes = answer["changes"].as_array().into_iter().flatten();
    let objects = changes.map(|change| &change["after"]);
    let all = std::iter::once(answer).chain(objects);
    all.flat_map(|of| {
        let warnings = of["warnings"].as_array().into_iter().flatten();
        warnings.map(move |warning| line(&object(of), warning))
    })
    .collect()
}

/// What an object is called: its name with its id.
fn object(object: &Value) -> String {
    let text = |field: &str| object[field].as_str().map(shown).unwrap_or_default();
    match (text("name"), text("id")) {
        (name, id) if name.is_empty() => id,
        // Words in the place of an id: it is not made yet.
        (name, id) if id.starts_with('(') => format!("{name} {id}"),
        (name, id) => format!("{name} ({id})"),
    }
}

/// A warning with its place, after the words that say what it is about.
pub fn line(what: &str, warning: &Value) -> String {
    let text = |field: &str| warning[field].as_str().map(shown).unwrap_or_default();
    let words = [what.to_owned(), text("pointer"), text("detail")];
    let words = words.into_iter().filter(|word| !word.is_empty());
    format!("warning: {}", words.collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_warning_of_a_write_is_a_line_with_its_object() {
        let short = json!({"pointer": "/secret/key", "detail": "is short"});
        let open = json!({"pointer": "/path/pattern", "detail": "is not\nanchored"});
        let answer = json!({
            "warnings": [{"pointer": "/generated", "detail": "were shown"}],
            "changes": [
                {"after": {"id": "crd_1", "name": "acme", "warnings": [short]}},
                {"after": {"id": "rul_1", "warnings": [open]}},
                {"after": null, "before": {"id": "rul_2", "warnings": [short]}},
            ],
        });
        assert_eq!(
            lines(&answer),
            [
                "warning: /generated were shown",
                "warning: acme (crd_1) /secret/key is short",
                "warning: rul_1 /path/pattern is not\\nanchored",
            ]
        );
    }
}
