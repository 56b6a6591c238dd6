//! What the official SDKs of known APIs read from the environment.
//!
//! They differ in how much of the path is the base URL's: OpenAI's has `/v1` in it, Anthropic's
//! appends `/v1` to it.

use proto::target::BaseUrl;

/// An SDK.
struct Sdk {
    /// The host of its API.
    host: &'static str,
    /// The path that its base URL has there.
    path: &'static str,
    /// What it reads the base URL from.
    base_url: &'static str,
    /// What it reads the key from.
    key: &'static str,
}

const SDKS: [Sdk; 4] = [
    Sdk {
        host: "api.openai.com",
        path: "/v1",
        base_url: "OPENAI_BASE_URL",
        key: "OPENAI_API_KEY",
    },
    Sdk {
        host: "api.anthropic.com",
        path: "",
        base_url: "ANTHROPIC_BASE_URL",
        key: "ANTHROPIC_API_KEY",
    },
    Sdk {
        host: "api.cohere.com",
        path: "",
        base_url: "CO_API_URL",
        key: "CO_API_KEY",
    },
    Sdk {
        host: "api.groq.com",
        path: "",
        base_url: "GROQ_BASE_URL",
        key: "GROQ_API_KEY",
    },
];

/// The variables for an API behind a proxy with this URL and key; none of an API that is not known.
///
/// # Errors
/// The SDK asks for paths that the proxy does not reach: with which base URL it would.
pub fn variables(
    base: &BaseUrl,
    (url, key): (&str, &str),
) -> Result<Vec<(&'static str, String)>, String> {
    let mut known = SDKS.iter();
    let Some(sdk) = known.find(|sdk| sdk.host == base.origin.host) else {
        return Ok(Vec::new());
    };
    let below = sdk.path.strip_prefix(base.path.as_str());
    let Some(below) = below.filter(|rest| rest.is_empty() || rest.starts_with('/')) else {
        return Err(format!(
            "has the path {}, and the SDK of {} appends its own: for the SDK, add \
             https://{}{} (paths of --allow begin behind that)",
            base.path, sdk.host, sdk.host, sdk.path
        ));
    };
    Ok(vec![
        (sdk.base_url, format!("{url}{below}")),
        (sdk.key, key.to_owned()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sdk_gets_the_base_url_to_which_it_appends_its_own_paths() {
        for (base, expected) in [
            (
                "https://api.openai.com",
                Ok("OPENAI_BASE_URL=http://g/api/x/v1"),
            ),
            (
                "https://api.openai.com/v1/",
                Ok("OPENAI_BASE_URL=http://g/api/x"),
            ),
            (
                "https://api.openai.com/v",
                Err("https://api.openai.com/v1 "),
            ),
            (
                "https://api.openai.com/v1/chat",
                Err("https://api.openai.com/v1 "),
            ),
            (
                "https://api.anthropic.com",
                Ok("ANTHROPIC_BASE_URL=http://g/api/x"),
            ),
            (
                "https://api.anthropic.com/",
                Ok("ANTHROPIC_BASE_URL=http://g/api/x"),
            ),
            (
                "https://api.anthropic.com/v1",
                Err("https://api.anthropic.com "),
            ),
            ("https://api.cohere.com", Ok("CO_API_URL=http://g/api/x")),
            ("https://api.groq.com", Ok("GROQ_BASE_URL=http://g/api/x")),
            (
                "https://api.groq.com/openai/v1",
                Err("https://api.groq.com "),
            ),
            ("https://api.example.com/v1", Ok("")),
        ] {
            let base = BaseUrl::parse(base).unwrap();
            let told = variables(&base, ("http://g/api/x", "k"));
            match expected {
                Ok("") => assert_eq!(told, Ok(Vec::new())),
                Ok(line) => {
                    let lines = told.unwrap();
                    let (name, url) = &lines[0];
                    assert_eq!(format!("{name}={url}"), line);
                    assert!(lines[1].0.ends_with("_API_KEY") && lines[1].1 == "k");
                }
                Err(words) => assert!(told.unwrap_err().contains(words), "{words}"),
            }
        }
    }
}
