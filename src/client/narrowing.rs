//! What `--allow`, `--read-only` and `--limit` of `add` stand for: rules and limits.

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

/// The allow rules that `--allow` and `--read-only` stand for.
///
/// # Errors
/// A call that is not written as one.
pub fn rules(allow: &[String], read_only: bool) -> anyhow::Result<Vec<Value>> {
    if read_only {
        return Ok(vec![
            json!({ "effect": "allow", "methods": ["GET", "HEAD"] }),
        ]);
    }
    allow.iter().map(|text| rule(text)).collect()
}

fn rule(text: &str) -> anyhow::Result<Value> {
    let (method, path) = text
        .split_once(' ')
        .filter(|(_, path)| path.starts_with('/'))
        .with_context(|| format!("--allow '{text}': write it like 'POST /v1/charges'"))?;
    ensure!(
        proto::checks::is_token(method),
        "--allow '{text}': `{method}` is not a method; write it like 'POST /v1/charges'"
    );
    ensure!(
        method != "*",
        "--allow '{text}': `*` is no method; name each, as in --allow 'GET {path}' --allow 'POST \
         {path}'"
    );
    ensure!(
        !path.contains(['?', '#']),
        "--allow '{text}': rules compare the path without its query; for one on a query parameter \
         make a rule with `query` (`requestrocket changes`)"
    );
    ensure!(
        !path.strip_suffix('*').unwrap_or(path).contains('*'),
        "--allow '{text}': a * stands at the end of a path alone, for all that begins so; for one \
         in the middle make a rule with a pattern, as in `path: {{ pattern: ^/v1/[^/]+/items$ }}` \
         (`requestrocket changes`)"
    );
    // A trailing * allows everything below; otherwise exactly this path, with or without a slash.
    let pattern = match path.strip_suffix('*') {
        Some(prefix) => format!("^{}", escape(prefix)),
        None => format!("^{}/?$", escape(path.trim_end_matches('/'))),
    };
    Ok(json!({
        "effect": "allow",
        "methods": [method.to_ascii_uppercase()],
        "path": { "pattern": pattern },
    }))
}

/// A text as a pattern that matches exactly it.
fn escape(text: &str) -> String {
    text.chars()
        .fold(String::with_capacity(text.len()), |mut out, c| {
            if r"\.+*?()|[]{}^$#&-~".contains(c) {
                out.push('\\');
            }
            out.push(c);
            out
        })
}

/// `60/min` and `10000/day` as a proxy's limits.
///
/// # Errors
/// A limit that is not written as one, or two of one window.
pub fn limits(texts: &[String]) -> anyhow::Result<Value> {
    let mut limits = serde_json::Map::new();
    for text in texts {
        let wrong = || format!("--limit {text}: write it like 60/min or 10000/day");
        let (count, window) = text.split_once('/').with_context(wrong)?;
        let count: u64 = count.parse().with_context(wrong)?;
        let field = match window {
            "min" | "minute" => "per_minute",
            "day" => "per_day",
            _ => bail!(wrong()),
        };
        ensure!(
            limits.insert(field.into(), count.into()).is_none(),
            "--limit {text}: another --limit is per {window} already; give one for each window"
        );
    }
    Ok(Value::Object(limits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allowed_call_becomes_a_rule() {
        for (text, method, pattern) in [
            (
                "POST /v1/chat/completions",
                "POST",
                r"^/v1/chat/completions/?$",
            ),
            ("get /v1/models/*", "GET", r"^/v1/models/"),
            ("GET /a.b", "GET", r"^/a\.b/?$"),
            ("GET /", "GET", r"^/?$"),
        ] {
            let rule = rule(text).unwrap();
            assert_eq!(rule["methods"], json!([method]));
            assert_eq!(rule["path"]["pattern"], pattern);
        }
        for bad in [
            "POST",
            "/v1",
            "POST v1",
            "PO ST /v1",
            "(x) /v1",
            "* /v1/x",
            "GET /v1/*/items",
            "GET /v1/**",
            "GET /v1?x=1",
            "GET /v1#x",
        ] {
            let refused = rule(bad).unwrap_err().to_string();
            assert!(
                refused.starts_with(&format!("--allow '{bad}': ")),
                "{refused}"
            );
        }
    }

    #[test]
    fn limits_are_read() {
        let check = |texts: &[&str]| {
            limits(
                &texts
                    .iter()
                    .map(|text| (*text).to_owned())
                    .collect::<Vec<_>>(),
            )
            .ok()
        };
        assert_eq!(check(&["60/min"]), Some(json!({ "per_minute": 60 })));
        let both = json!({ "per_minute": 1, "per_day": 5 });
        assert_eq!(check(&["1/minute", "5/day"]), Some(both));
        for twice in [
            ["5/min", "60/min"],
            ["5/min", "5/minute"],
            ["1/day", "1/day"],
        ] {
            assert_eq!(check(&twice), None, "{twice:?}");
        }
        for bad in ["60", "x/min", "60/hour", "-1/min"] {
            assert_eq!(check(&[bad]), None, "{bad}");
        }
    }
}
