//! The command line as a client of the REST API.

pub mod add;
pub mod audit;
pub mod configuration;
pub mod explain;
pub mod nodes;
pub mod regions;
pub mod versions;

use std::sync::Arc;

use anyhow::{Context, bail};
use serde_json::Value;

use crate::cli::ControlArgs;

/// Largest answer of the control plane that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A large write may take longer than the client waits by itself.
const WRITE_MAX: std::time::Duration = std::time::Duration::from_secs(60);

/// A connection to the control plane, as one organisation.
pub struct Api {
    client: awc::Client,
    /// Of the API.
    root: String,
    /// Of the organisation.
    base: String,
    token: String,
}

impl Api {
    /// A client for the organisation that the arguments name.
    ///
    /// # Errors
    /// No token is given, or the system's certificates cannot be used for an `https` address.
    pub fn new(args: &ControlArgs) -> anyhow::Result<Self> {
        let token = args.token.clone().filter(|token| !token.trim().is_empty());
        let token = token.context(
            "no API token: set REQUESTROCKET_TOKEN; a new gateway has one in `admin-token` of its \
             data folder (`.requestrocket/admin-token` of `dev`)",
        )?;
        let base = args.control_url.trim_end_matches('/');
        let builder = awc::Client::builder().disable_redirects();
        let client = match base.starts_with("https:") {
            true => builder
                .connector(awc::Connector::new().rustls_0_23(system_trust()?))
                .finish(),
            false => builder.finish(),
        };
        Ok(Self {
            client,
            root: format!("{base}/api/v1"),
            base: format!("{base}/api/v1/orgs/{}", args.org),
            token: token.trim().to_owned(),
        })
    }

    /// Creates something and gives the answer.
    ///
    /// # Errors
    /// The control plane cannot be reached, or says what is wrong.
    pub async fn create(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let request = self.client.post(format!("{}{path}", self.base));
        self.answered(path, request.bearer_auth(&self.token).send_json(body))
            .await
    }

    /// Puts a document in the place of what is there.
    ///
    /// # Errors
    /// As for [`Api::create`].
    pub async fn replace(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let request = self.client.put(format!("{}{path}", self.base));
        let request = request.timeout(WRITE_MAX).bearer_auth(&self.token);
        self.answered(path, request.send_json(body)).await
    }

    /// Reads something.
    ///
    /// # Errors
    /// As for [`Api::create`].
    pub async fn get(&self, path: &str) -> anyhow::Result<Value> {
        let request = self.client.get(format!("{}{path}", self.base));
        self.answered(path, request.bearer_auth(&self.token).send())
            .await
    }

    /// Reads something that belongs to no organisation.
    ///
    /// # Errors
    /// As for [`Api::create`].
    pub async fn get_absolute(&self, path: &str) -> anyhow::Result<Value> {
        let request = self.client.get(format!("{}{path}", self.root));
        self.answered(path, request.bearer_auth(&self.token).send())
            .await
    }

    /// Lets the control plane do something that takes no document.
    ///
    /// # Errors
    /// As for [`Api::create`].
    pub async fn act(&self, path: &str) -> anyhow::Result<Value> {
        let request = self.client.post(format!("{}{path}", self.base));
        self.answered(path, request.bearer_auth(&self.token).send())
            .await
    }

    async fn answered(&self, path: &str, sending: awc::SendClientRequest) -> anyhow::Result<Value> {
        let mut answer = sending
            .await
            .map_err(|error| anyhow::anyhow!("{error}"))
            .with_context(|| format!("cannot reach the control plane at {}", self.base))?;
        // A control plane has this in every answer, and no proxy code.
        let headers = answer.headers();
        let is_control = headers.contains_key("requestrocket-request-id")
            && !headers.contains_key("requestrocket-proxy-code");
        if !is_control {
            bail!(
                "{} is no control plane of RequestRocket; check --control \
                 (REQUESTROCKET_CONTROL_URL)",
                self.root
            );
        }
        let bytes = answer.body().limit(ANSWER_BYTES_MAX).await?;
        let value: Value = serde_json::from_slice(&bytes)
            .with_context(|| format!("{path} answered {} without JSON", answer.status()))?;
        if !answer.status().is_success() {
            bail!("{}", problem(&value));
        }
        Ok(value)
    }

    /// Deletes something.
    ///
    /// # Errors
    /// As for [`Api::create`].
    pub async fn delete(&self, path: &str) -> anyhow::Result<()> {
        let url = format!("{}{path}", self.base);
        let answer = self
            .client
            .delete(&url)
            .bearer_auth(&self.token)
            .send()
            .await
            .map_err(|error| anyhow::anyhow!("{error}"))?;
        if !answer.status().is_success() {
            bail!("{url} answered {}", answer.status());
        }
        Ok(())
    }
}

/// Trust in whom the system trusts, as for the gateway's own calls.
fn system_trust() -> anyhow::Result<Arc<rustls::ClientConfig>> {
    use rustls_platform_verifier::ConfigVerifierExt;
    let config = rustls::ClientConfig::with_platform_verifier();
    Ok(Arc::new(config.context("the system's certificates")?))
}

/// A problem document (RFC 9457) as lines for a person.
fn problem(document: &Value) -> String {
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
    fn each_fault_of_a_problem_is_told_once_with_its_place() {
        let one = json!({"title": "The document breaks rules", "detail": "/a is missing",
                         "errors": [{"pointer": "/a", "detail": "is missing"}]});
        assert_eq!(problem(&one), "The document breaks rules\n  /a is missing");
        let whole = json!({"title": "T", "detail": "d",
                           "errors": [{"pointer": "", "detail": "must be object"}]});
        assert_eq!(problem(&whole), "T\n  the document must be object");
        let none = json!({"title": "Not found", "detail": "no such object"});
        assert_eq!(problem(&none), "Not found: no such object");
    }
}
