//! `FIELD=VALUE` on the command line as a document of the API.
//!
//! Whether `60` is a number or a text depends on the field: the schemas of the API tell. A field
//! that they do not know, of a later release, is taken for JSON where its value is that.

use anyhow::{Context, bail, ensure};
use control::openapi::schemas;
use serde_json::{Map, Value, json};

use super::kinds::Kind;

/// The document that these fields make.
///
/// # Errors
/// One is written otherwise, stands twice, or would show a secret.
pub fn document(kind: Kind, fields: &[String]) -> anyhow::Result<Value> {
    let mut document = json!({});
    for field in fields {
        let Some((name, text)) = field.split_once('=').filter(|(name, _)| !name.is_empty()) else {
            bail!("`{field}` is no field with a value: write FIELD=VALUE, as in name=billing");
        };
        let path: Vec<&str> = name.split('.').collect();
        let value = value(form(&json!({"$ref": kind.schema()}), &path), text);
        ensure!(
            !path.contains(&"secret") && !holds_secret(&value),
            "arguments are seen by others on this machine, so no secret stands in them: leave \
             {name} out, and give it with --secret-stdin or --secret-file"
        );
        put(&mut document, &path, value).with_context(|| format!("{name} stands twice"))?;
    }
    Ok(document)
}

/// Puts a value where nothing is yet.
fn put(document: &mut Value, path: &[&str], value: Value) -> Option<()> {
    let (last, before) = path.split_last()?;
    let mut at = document;
    for name in before {
        let fields = at.as_object_mut()?;
        at = fields.entry(*name).or_insert_with(|| json!({}));
    }
    match at.as_object_mut()?.insert((*last).to_owned(), value) {
        None => Some(()),
        Some(_) => None,
    }
}

fn holds_secret(value: &Value) -> bool {
    match value {
        Value::Object(fields) => fields.contains_key("secret") || fields.values().any(holds_secret),
        Value::Array(items) => items.iter().any(holds_secret),
        _ => false,
    }
}

/// What the values of a field are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// Texts.
    Text,
    /// Lists of texts.
    Texts,
    /// Something else, or not known.
    Json,
}

fn value(form: Form, text: &str) -> Value {
    let json = || serde_json::from_str(text).ok();
    match form {
        _ if text == "null" => Value::Null,
        // In quotes, so that a text may be `null`.
        Form::Text if text.starts_with('"') => json().unwrap_or_else(|| text.into()),
        Form::Text => text.into(),
        Form::Texts if !text.starts_with('[') => {
            let items = text
                .split(',')
                .map(str::trim)
                .filter(|item| !item.is_empty());
            items.collect()
        }
        Form::Texts | Form::Json => json().unwrap_or_else(|| text.into()),
    }
}

/// What the values of the field at a path are, by the schema of the object.
fn form(schema: &Value, path: &[&str]) -> Form {
    if let Some(name) = schema["$ref"].as_str() {
        let name = name.rsplit('/').next().unwrap_or(name);
        return schemas()
            .get(name)
            .map_or(Form::Json, |schema| form(schema, path));
    }
    for several in ["oneOf", "anyOf", "allOf"] {
        let options = schema[several].as_array().into_iter().flatten();
        let known = options
            .map(|option| form(option, path))
            .find(|form| *form != Form::Json);
        if let Some(known) = known {
            return known;
        }
    }
    if let Some((first, rest)) = path.split_first() {
        let field = schema["properties"].get(first);
        let field = field.or_else(|| schema.get("additionalProperties"));
        return field.map_or(Form::Json, |field| form(field, rest));
    }
    let is = |word: &str| match &schema["type"] {
        Value::String(one) => one == word,
        Value::Array(several) => several.iter().any(|one| one == word),
        _ => false,
    };
    match (is("string"), is("array")) {
        (true, _) => Form::Text,
        (_, true) if form(&schema["items"], &[]) == Form::Text => Form::Texts,
        _ => Form::Json,
    }
}

/// The fields of a document, those of a file under those of arguments.
///
/// # Errors
/// The file holds no object, or says what an argument says too.
pub fn joined(file: Value, arguments: Value) -> anyhow::Result<Value> {
    let Value::Object(mut fields) = file else {
        bail!("the file holds no object, but a list or a single value");
    };
    let given: Map<String, Value> = match arguments {
        Value::Object(given) => given,
        _ => Map::new(),
    };
    for (name, value) in given {
        ensure!(
            fields.insert(name.clone(), value).is_none(),
            "{name} stands in the file and in an argument: leave one of them out"
        );
    }
    Ok(Value::Object(fields))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(kind: Kind, fields: &[&str]) -> anyhow::Result<Value> {
        let fields: Vec<String> = fields.iter().map(|field| (*field).to_owned()).collect();
        document(kind, &fields)
    }

    #[test]
    fn a_value_is_what_its_field_takes() {
        for (kind, fields, expected) in [
            (
                Kind::Proxies,
                &[
                    "name=60",
                    "alias=true",
                    "active=false",
                    "limits.per_minute=60",
                ][..],
                json!({"name": "60", "alias": "true", "active": false,
                       "limits": {"per_minute": 60}}),
            ),
            (
                Kind::Proxies,
                &[
                    "alias=null",
                    "labels.team=7",
                    "regions=eu, us",
                    "target.base_url=https://a",
                ],
                json!({"alias": null, "labels": {"team": "7"}, "regions": ["eu", "us"],
                       "target": {"base_url": "https://a"}}),
            ),
            (
                Kind::Rules,
                &["effect=deny", "methods=DELETE", "path.pattern=^/v1=x"],
                json!({"effect": "deny", "methods": ["DELETE"], "path": {"pattern": "^/v1=x"}}),
            ),
            (
                Kind::Rules,
                &["methods=[\"GET\"]", "message=\"null\""],
                json!({"methods": ["GET"], "message": "null"}),
            ),
            (
                Kind::Tokens,
                &["role=member", "expires_at=2030-01-01T00:00:00Z"],
                json!({"role": "member", "expires_at": "2030-01-01T00:00:00Z"}),
            ),
            (
                Kind::Credentials,
                &["hosts=a.example,b.example", "max_fact_age_s=60", "name="],
                json!({"hosts": ["a.example", "b.example"], "max_fact_age_s": 60, "name": ""}),
            ),
            // Of a later release.
            (
                Kind::Targets,
                &["later=5", "later_too=x", "deeper.yet={\"a\":1}"],
                json!({"later": 5, "later_too": "x", "deeper": {"yet": {"a": 1}}}),
            ),
        ] {
            assert_eq!(of(kind, fields).unwrap(), expected, "{fields:?}");
        }
    }

    #[test]
    fn no_secret_stands_in_an_argument_and_nothing_stands_twice() {
        for (kind, fields, words) in [
            (
                Kind::Credentials,
                &["secret.key=hush"][..],
                "--secret-stdin",
            ),
            (
                Kind::Proxies,
                &["credentials=[{\"kind\":\"target\",\"secret\":{\"key\":\"hush\"}}]"],
                "--secret-file",
            ),
            (Kind::Proxies, &["name=a", "name=b"], "name stands twice"),
            (
                Kind::Proxies,
                &["limits=1", "limits.per_minute=2"],
                "stands twice",
            ),
            (Kind::Proxies, &["name"], "FIELD=VALUE"),
            (Kind::Proxies, &["=a"], "FIELD=VALUE"),
        ] {
            let said = format!("{:#}", of(kind, fields).unwrap_err());
            assert!(said.contains(words), "{said}");
            assert!(!said.contains("hush"), "{said}");
        }
    }

    #[test]
    fn arguments_come_to_a_file_and_do_not_replace_what_it_says() {
        let file = json!({"name": "a"});
        let both = joined(file.clone(), json!({"active": false})).unwrap();
        assert_eq!(both, json!({"name": "a", "active": false}));
        assert!(joined(file, json!({"name": "b"})).is_err());
        assert!(joined(json!([]), json!({})).is_err());
    }
}
