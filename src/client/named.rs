//! The object that a person names: by its id, by its alias or slug, or by its name.

use anyhow::Context;
use control::api::shape::nearest;
use serde_json::{Value, json};

use super::Api;
use super::kinds::Kind;
use super::problem::Problem;
use super::records::shown;

/// Most names that are listed where none is near.
const LISTED_MAX: usize = 10;

/// An object, and where the API has it.
pub struct Found {
    /// Its place.
    pub path: String,
    /// As it was read.
    pub object: Value,
}

impl Found {
    /// What it is called: its id, with its name.
    pub fn label(&self) -> String {
        label(&self.object)
    }

    /// The version that changed it last.
    pub fn version(&self) -> Option<u64> {
        self.object["version"].as_u64()
    }
}

/// An object's id, with its name where it has one.
pub fn label(object: &Value) -> String {
    let id = object["id"].as_str().map(shown).unwrap_or_default();
    match names(object).next().map(shown) {
        Some(name) if name != id => format!("{id} ({name})"),
        _ => id,
    }
}

/// What a person may call an object besides its id, the most telling first.
fn names(object: &Value) -> impl Iterator<Item = &str> {
    let fields = ["alias", "slug", "name"];
    let names = fields
        .into_iter()
        .filter_map(|field| object[field].as_str());
    names.filter(|name| !name.is_empty())
}

/// The object that a text names, of those of a kind, or of those that hang on something.
///
/// # Errors
/// None or several are called so, such objects hang on nothing, or what the control plane said.
pub async fn find(
    api: &Api,
    (kind, org): (Kind, &str),
    on: Option<&str>,
    name: &str,
) -> anyhow::Result<Found> {
    kind.takes(on)?;
    let mut missing = None;
    if kind.is_direct(name) {
        let path = kind.place(org, &json!({ "id": name }))?;
        match api.get_absolute(&path).await {
            Ok(object) => return Ok(Found { path, object }),
            // It is told with what there is instead.
            Err(error) if is_not_found(&error) => missing = Some(error),
            Err(error) => return Err(error),
        }
    }
    let objects = match (kind.objects(api, org, on).await, missing) {
        (Ok(objects), _) => objects,
        // Who may not list organisations may still name one.
        (Err(_), Some(missing)) => return Err(missing),
        (Err(error), None) => return Err(error),
    };
    let at = chosen(&objects, name).map_err(|which| {
        let place = match kind {
            Kind::Orgs => String::new(),
            _ => format!(" of organisation {}", shown(org)),
        };
        which.problem(kind, &place, &objects, name)
    })?;
    let object = objects.into_iter().nth(at).context("the answer is empty")?;
    let path = kind.place(org, &object)?;
    Ok(Found { path, object })
}

/// Whether the control plane said that something is not there.
fn is_not_found(error: &anyhow::Error) -> bool {
    let problem = error.downcast_ref::<Problem>();
    problem.is_some_and(Problem::is_not_found)
}

/// Why a text names no object.
#[derive(Debug, PartialEq, Eq)]
enum Unclear {
    /// Nothing is called so.
    None,
    /// These are.
    Several(Vec<String>),
}

/// Which object a text names: an id or an alias is one object's alone, a name may be that of
/// several.
fn chosen(objects: &[Value], name: &str) -> Result<usize, Unclear> {
    let has = |object: &Value, field: &str| object[field].as_str() == Some(name);
    let own = ["id", "alias", "slug"];
    let is_its_own = |object: &Value| own.iter().any(|field| has(object, field));
    if let Some(at) = objects.iter().position(is_its_own) {
        return Ok(at);
    }
    let named = objects.iter().enumerate();
    let named: Vec<(usize, &Value)> = named.filter(|(_, object)| has(object, "name")).collect();
    match named.as_slice() {
        [(at, _)] => Ok(*at),
        [] => Err(Unclear::None),
        several => {
            let ids = several
                .iter()
                .filter_map(|(_, object)| object["id"].as_str());
            Err(Unclear::Several(ids.map(str::to_owned).collect()))
        }
    }
}

impl Unclear {
    fn problem(self, kind: Kind, place: &str, objects: &[Value], name: &str) -> Problem {
        let (one, word, called) = (kind.one(), kind.word(), shown(name));
        let (code, title, status, detail) = match self {
            Self::Several(ids) => {
                let detail = format!("`{called}` is the name of {}: say which", ids.join(", "));
                ("conflict", "Several have this name", 409, detail)
            }
            Self::None => {
                let detail = format!(
                    "no {one}{place} has the id or name `{called}`; {}",
                    instead(word, objects, name)
                );
                ("not-found", "Not found", 404, detail)
            }
        };
        Problem(json!({
            "type": "about:blank", "title": title, "status": status, "code": code,
            "detail": detail,
        }))
    }
}

/// What there is in the place of a name that nothing has.
fn instead(word: &str, objects: &[Value], name: &str) -> String {
    let ids = objects.iter().filter_map(|object| object["id"].as_str());
    let known = objects.iter().flat_map(names).chain(ids);
    if let Some(near) = nearest(name, known) {
        return format!("did you mean `{}`?", shown(near));
    }
    let called = objects.iter().filter_map(|object| names(object).next());
    let called: Vec<String> = called.take(LISTED_MAX).map(shown).collect();
    match (objects.len(), called.is_empty()) {
        (0, _) => format!("there are no {word}"),
        (_, true) => format!("`requestrocket list {word}` shows ids"),
        (count, _) if count > called.len() => format!(
            "there are {} and others: `requestrocket list {word}`",
            called.join(", ")
        ),
        _ => format!("there are {}", called.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn objects() -> Vec<Value> {
        vec![
            json!({"id": "prx_1", "name": "billing", "alias": "pay"}),
            json!({"id": "prx_2", "name": "pay", "alias": null}),
            json!({"id": "prx_3", "name": "twice", "alias": "one"}),
            json!({"id": "prx_4", "name": "twice", "alias": "two"}),
        ]
    }

    #[test]
    fn an_id_or_an_alias_counts_before_a_name() {
        for (name, expected) in [
            ("prx_2", Ok(1)),
            ("pay", Ok(0)),
            ("billing", Ok(0)),
            (
                "twice",
                Err(Unclear::Several(vec!["prx_3".into(), "prx_4".into()])),
            ),
            ("none", Err(Unclear::None)),
        ] {
            assert_eq!(chosen(&objects(), name), expected, "{name}");
        }
    }

    #[test]
    fn who_is_not_there_is_told_with_who_is() {
        let said = |objects: &[Value], name: &str| {
            let problem = Unclear::None.problem(Kind::Proxies, " of organisation a", objects, name);
            problem.0["detail"].as_str().unwrap().to_owned()
        };
        assert_eq!(
            said(&objects(), "biling"),
            "no proxy of organisation a has the id or name `biling`; did you mean `billing`?"
        );
        assert!(said(&objects(), "zzzzzzzz").ends_with("there are pay, pay, one, two"));
        assert!(said(&[], "x").ends_with("there are no proxies"));
        let rules = [json!({"id": "rul_0000000001"})];
        assert!(said(&rules, "x").ends_with("`requestrocket list proxies` shows ids"));
        let one = Unclear::Several(vec!["prx_3".into(), "prx_4".into()]);
        let told = one
            .problem(Kind::Proxies, "", &objects(), "twice")
            .to_string();
        assert_eq!(
            told,
            "Several have this name: `twice` is the name of prx_3, prx_4: say which"
        );
    }
}
