//! What the control plane says is wrong (RFC 9457): as lines for people, as JSON for programs.

use awc::http::StatusCode;
use serde_json::{Value, json};

use super::Api;
use super::kinds::Kind;
use super::named;
use super::records::shown;

/// Most users of an object that are looked up.
const USERS_MAX: usize = 10;

/// A problem document of the control plane.
#[derive(Debug)]
pub struct Problem(pub Value);

impl Problem {
    /// Whether something is not there.
    pub fn is_not_found(&self) -> bool {
        self.0["status"] == StatusCode::NOT_FOUND.as_u16()
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&lines(&self.0))
    }
}

impl std::error::Error for Problem {}

/// A refusal because others use an object, with what they are called and how to see them.
pub async fn with_users(error: anyhow::Error, api: &Api, org: &str) -> anyhow::Error {
    let mut problem = match error.downcast::<Problem>() {
        Ok(problem) => problem,
        Err(error) => return error,
    };
    let ids = problem.0["used_by"].as_array().cloned().unwrap_or_default();
    let mut users = Vec::new();
    for id in ids.iter().filter_map(Value::as_str).take(USERS_MAX) {
        let Some(kind) = Kind::of_id(id) else {
            continue;
        };
        // One that cannot be read is told by its id, and so is what hangs on others, of which all
        // would have to be looked through.
        let found = match kind.hangs() {
            true => None,
            false => named::find(api, (kind, org), None, id).await.ok(),
        };
        let name = found.map_or_else(|| id.to_owned(), |found| found.label());
        let command = format!("requestrocket get {} {id}", kind.word());
        users.push(json!({"name": name, "see": command}));
    }
    if !users.is_empty() {
        problem.0["users"] = users.into();
    }
    problem.into()
}

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
    let users = document["users"].as_array().into_iter().flatten();
    let user = |user: &Value| {
        let text = |key: &str| user[key].as_str().map(shown).unwrap_or_default();
        format!("\n  {}: `{}`", text("name"), text("see"))
    };
    match errors {
        [] => {
            let told = format!("{}: {}", text("title"), text("detail"));
            told + &users.map(user).collect::<String>()
        }
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
        let used = json!({"title": "Conflict", "detail": "tgt_1 is used by prx_1",
                          "users": [{"name": "prx_1 (pay)", "see": "get it"}]});
        let expected = "Conflict: tgt_1 is used by prx_1\n  prx_1 (pay): `get it`";
        assert_eq!(lines(&used), expected);
    }
}
