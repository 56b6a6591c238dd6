//! What the control plane says is wrong (RFC 9457): as lines for people, as JSON for programs.

use serde_json::{Value, json};

/// A problem document of the control plane.
#[derive(Debug)]
pub struct Problem(pub Value);

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&lines(&self.0))
    }
}

impl std::error::Error for Problem {}

/// Why a command failed, as a problem document: the control plane's own, or one of the command.
pub fn document(error: &anyhow::Error) -> Value {
    match error.downcast_ref::<Problem>() {
        Some(problem) => problem.0.clone(),
        None => json!({
            "type": "about:blank",
            "title": "The command failed",
            "code": "command-failed",
            "detail": format!("{error:#}"),
        }),
    }
}

/// A problem document as lines for a person.
fn lines(document: &Value) -> String {
    let text = |key: &str| document[key].as_str().unwrap_or_default().to_owned();
    let errors = document["errors"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let line = |error: &Value| {
        let pointer = error["pointer"]
            .as_str()
            .filter(|pointer| !pointer.is_empty());
        let detail = error["detail"].as_str().unwrap_or_default();
        match pointer {
            Some(pointer) => format!("\n  {pointer} {detail}"),
            None => format!("\n  the document {detail}"),
        }
    };
    match errors {
        [] => format!("{}: {}", text("title"), text("detail")),
        errors => text("title") + &errors.iter().map(line).collect::<String>(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_failure_is_one_document_whoever_found_it() {
        let theirs = json!({"title": "Not found", "code": "not-found"});
        let error = anyhow::Error::from(Problem(theirs.clone())).context("reading");
        assert_eq!(document(&error), theirs);
        let ours = document(&anyhow::anyhow!("no file").context("cannot read x"));
        assert_eq!(ours["detail"], "cannot read x: no file");
        assert_eq!(ours["code"], "command-failed");
    }

    #[test]
    fn each_fault_of_a_problem_is_told_once_with_its_place() {
        let one = json!({"title": "The document breaks rules", "detail": "/a is missing",
                         "errors": [{"pointer": "/a", "detail": "is missing"}]});
        assert_eq!(lines(&one), "The document breaks rules\n  /a is missing");
        let whole = json!({"title": "T", "detail": "d",
                           "errors": [{"pointer": "", "detail": "must be object"}]});
        assert_eq!(lines(&whole), "T\n  the document must be object");
        let none = json!({"title": "Not found", "detail": "no such object"});
        assert_eq!(lines(&none), "Not found: no such object");
    }
}
