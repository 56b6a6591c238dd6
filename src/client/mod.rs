//! The command line as a client of the REST API.

pub mod add;
pub mod audit;
pub mod configuration;
pub mod explain;
pub mod nodes;
pub mod versions;

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
    pub fn new(args: &ControlArgs) -> Self {
        let base = args.control_url.trim_end_matches('/');
        Self {
            client: awc::Client::builder().disable_redirects().finish(),
            root: format!("{base}/api/v1"),
            base: format!("{base}/api/v1/orgs/{}", args.org),
            token: args.token.clone(),
        }
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

/// A problem document (RFC 9457) as lines for a person.
fn problem(document: &Value) -> String {
    let text = |key: &str| document[key].as_str().unwrap_or_default().to_owned();
    let mut lines = format!("{}: {}", text("title"), text("detail"));
    for error in document["errors"].as_array().into_iter().flatten() {
        let pointer = error["pointer"].as_str().unwrap_or_default();
        let detail = error["detail"].as_str().unwrap_or_default();
        lines.push_str(&format!("\n  {pointer}: {detail}"));
    }
    lines
}
