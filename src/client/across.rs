//! Answers of several regions: what is asked, and what is said of regions that are missing.

use serde_json::Value;

use super::records::shown;

/// A path with the regions that are asked.
pub fn path(path: &str, regions: Option<&str>) -> String {
    match regions {
        None => path.to_owned(),
        Some(regions) => {
            let mut query = url::form_urlencoded::Serializer::new(String::new());
            let query = query.append_pair("regions", regions).finish();
            let sign = if path.contains('?') { '&' } else { '?' };
            format!("{path}{sign}{query}")
        }
    }
}

/// Says on standard error which regions are missing in an answer.
pub fn warn(answer: &Value) {
    for line in missing(answer) {
        eprintln!("requestrocket: {line}");
    }
}

/// The same of an answer that came as a stream, whose head names them.
pub fn warn_of_head(missing: &str) {
    let missing = shown(missing);
    eprintln!("requestrocket: not in this file, as these regions did not answer: {missing}");
}

fn missing(answer: &Value) -> Vec<String> {
    let missing = answer["partial"].as_array().into_iter().flatten();
    let text = |value: &Value| shown(value.as_str().unwrap_or_default());
    missing
        .map(|missing| {
            format!(
                "region {} is missing here ({}): {}",
                text(&missing["region"]),
                text(&missing["reason"]),
                text(&missing["detail"])
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn regions_are_a_query() {
        assert_eq!(path("/records/req_1", None), "/records/req_1");
        let asked = path("/records/req_1", Some("eu,us"));
        assert_eq!(asked, "/records/req_1?regions=eu%2Cus");
    }

    #[test]
    fn each_region_that_is_missing_is_a_line() {
        let answer = json!({"partial": [
            {"region": "eu", "reason": "late", "detail": "a\nb"},
        ]});
        let lines = missing(&answer);
        assert_eq!(lines, ["region eu is missing here (late): a\\nb"]);
        assert!(missing(&json!({"items": []})).is_empty());
    }
}
