//! The command line as a client of the REST API.

pub mod access;
mod across;
pub mod add;
pub mod audit;
mod clock_skew;
pub mod completions;
pub mod configuration;
mod confirm;
mod dialled;
pub mod explain;
mod fields;
pub mod health;
mod inviting;
mod joining;
mod kinds;
pub mod list;
pub mod meters;
mod named;
mod narrowing;
pub mod nodes;
pub mod objects;
pub mod problem;
pub mod records;
pub mod recover;
mod region_faults;
pub mod regions;
pub mod replication;
pub mod rotating;
mod sdks;
mod secrets;
mod strict_json;
pub mod suggest_rules;
mod table;
pub mod tail;
pub mod telemetry;
pub mod test;
pub mod trace;
pub mod unmatched;
pub mod versions;
mod warnings;
mod written;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use awc::http::{Method, StatusCode, header};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::Value;

use self::problem::Problem;
use self::written::{VERSION, Written};
use crate::cli::ControlArgs;

/// By what a person names the control plane.
const NAMED_BY: &str = "--control, REQUESTROCKET_CONTROL_URL";

/// Largest answer of the control plane that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A read may wait for its version, and ask other regions.
const READ_MAX: Duration = Duration::from_secs(30);

/// A large write takes its time.
const WRITE_MAX: Duration = Duration::from_secs(60);

/// What an operator decides may make every member of etcd rewrite its file, one after the other.
const OPERATOR_MAX: Duration = Duration::from_secs(20 * 60);

/// Longest time for which an answer is read that comes piece by piece: a year.
const STREAM_MAX: Duration = Duration::from_secs(365 * 86_400);

/// An answer while it comes.
pub type Pieces = awc::ClientResponse;

/// A connection to the control plane, as one organisation.
pub struct Api {
    client: awc::Client,
    /// The control plane, and by what a person names it.
    control: String,
    named_by: &'static str,
    /// Of the API.
    root: String,
    /// Of the organisation.
    base: String,
    token: String,
    written: Written,
}

impl Api {
    /// A client for the organisation that the arguments name.
    ///
    /// # Errors
    /// No token is given, the address is none, or the authorities of an `https` one cannot be used.
    pub fn new(args: &ControlArgs) -> anyhow::Result<Self> {
        Self::named_by(args, NAMED_BY)
    }

    /// The same, with how a person names the control plane.
    ///
    /// # Errors
    /// As for [`Api::new`].
    pub fn named_by(args: &ControlArgs, named_by: &'static str) -> anyhow::Result<Self> {
        let token = args.token.clone().filter(|token| !token.trim().is_empty());
        let token = token.context(
            "no API token: set REQUESTROCKET_TOKEN; a new gateway has one in `admin-token` of its \
             data folder (`.requestrocket/admin-token` of `dev`)",
        )?;
        let ca_file = args.ca_file.as_deref();
        let (client, base) = connection(ca_file, (&args.control_url, named_by), READ_MAX)?;
        Ok(Self {
            client,
            control: base.to_owned(),
            named_by,
            root: format!("{base}/api/v1"),
            base: format!("{base}/api/v1/orgs/{}", args.org),
            written: Written::of(base, &args.org, token.trim()),
            token: token.trim().to_owned(),
        })
    }

    /// Posts a document and gives the answer.
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
        self.answered(path, self.reading(path, request).send())
            .await
    }

    /// Reads something that belongs to no organisation.
    ///
    /// # Errors
    /// As for [`Api::create`].
    pub async fn get_absolute(&self, path: &str) -> anyhow::Result<Value> {
        let request = self.client.get(format!("{}{path}", self.root));
        self.answered(path, self.reading(path, request).send())
            .await
    }

    /// Reads a list that belongs to no organisation, all pages of it. The path may have a query.
    ///
    /// # Errors
    /// As for [`Api::create`].
    pub async fn list_absolute(&self, path: &str) -> anyhow::Result<Value> {
        let mut found = self.get_absolute(path).await?;
        let joint = if path.contains('?') { '&' } else { '?' };
        while let Some(cursor) = found["next_cursor"].as_str() {
            let next = format!("{path}{joint}cursor={cursor}");
            let mut page = self.get_absolute(&next).await?;
            let further = page["items"].take();
            if let (Some(items), Value::Array(further)) = (found["items"].as_array_mut(), further) {
                items.extend(further);
            }
            found["next_cursor"] = page["next_cursor"].take();
        }
        Ok(found)
    }

    /// Lets the control plane do something that belongs to no organisation.
    ///
    /// # Errors
    /// As for [`Api::create`].
    pub async fn act_absolute(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let request = self.client.post(format!("{}{path}", self.root));
        let request = request.timeout(OPERATOR_MAX).bearer_auth(&self.token);
        self.answered(path, request.send_json(body)).await
    }

    /// Makes, changes or removes what stands at a place of the API; where a version is named, only
    /// if it is at that. What is answered; nothing of what is removed.
    ///
    /// # Errors
    /// As for [`Api::create`].
    pub async fn write(
        &self,
        method: Method,
        path: &str,
        seen: Option<u64>,
        document: Option<&Value>,
    ) -> anyhow::Result<Value> {
        let request = self.client.request(method, format!("{}{path}", self.root));
        let mut request = request.timeout(WRITE_MAX).bearer_auth(&self.token);
        if let Some(version) = seen {
            request = request.insert_header((header::IF_MATCH, format!("\"{version}\"")));
        }
        let sending = match document {
            Some(document) => request.send_json(document),
            None => request.send(),
        };
        let answer = self.reached(sending).await?;
        match answer.status() {
            StatusCode::NO_CONTENT => Ok(Value::Null),
            _ => self.value(path, answer).await,
        }
    }

    /// Lets the control plane do something that takes no document.
    ///
    /// # Errors
    /// As for [`Api::create`].
    pub async fn act(&self, path: &str) -> anyhow::Result<Value> {
        let request = self.client.post(format!("{}{path}", self.base));
        let request = request.timeout(WRITE_MAX).bearer_auth(&self.token);
        self.answered(path, request.send()).await
    }

    /// An organisation is gone: no later command asks for its last version.
    pub fn forget(&self, org: &str) {
        Written::of(&self.control, org, &self.token).forget();
    }

    /// Reads something that comes piece by piece, for as long as it comes.
    ///
    /// # Errors
    /// As for [`Api::create`].
    pub async fn stream(&self, path: &str) -> anyhow::Result<Pieces> {
        self.stream_after(path, None).await
    }

    /// The same of events, from behind the last one that was read.
    ///
    /// # Errors
    /// As for [`Api::stream`].
    pub async fn stream_after(&self, path: &str, last: Option<&str>) -> anyhow::Result<Pieces> {
        let mut request = self.client.get(format!("{}{path}", self.base));
        if let Some(last) = last {
            request = request.insert_header(("last-event-id", last));
        }
        let sending = request.timeout(STREAM_MAX).bearer_auth(&self.token).send();
        let answer = self.reached(sending).await?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        Err(match self.value(path, answer).await {
            Ok(_) => anyhow::anyhow!("{path} answered without what was asked for"),
            Err(error) => error,
        })
    }

    /// A read of what was written last, or later.
    fn reading(&self, path: &str, request: awc::ClientRequest) -> awc::ClientRequest {
        let request = request.bearer_auth(&self.token);
        match self.written.for_read(path) {
            Some(version) => request.insert_header((VERSION, version)),
            None => request,
        }
    }

    async fn answered(&self, path: &str, sending: awc::SendClientRequest) -> anyhow::Result<Value> {
        let answer = self.reached(sending).await?;
        self.value(path, answer).await
    }

    async fn reached(&self, sending: awc::SendClientRequest) -> anyhow::Result<Pieces> {
        let answer = sending
            .await
            .map_err(|error| anyhow::anyhow!("{error}"))
            .with_context(|| {
                let (control, named_by) = (&self.control, self.named_by);
                format!("cannot reach the control plane at {control} ({named_by})")
            })?;
        // A control plane has this in every answer, and no proxy code.
        let headers = answer.headers();
        let is_control = headers.contains_key("requestrocket-request-id")
            && !headers.contains_key("requestrocket-proxy-code");
        if !is_control {
            bail!(
                "{} is no control plane of RequestRocket; check its address ({})",
                self.control,
                self.named_by
            );
        }
        if let Some(version) = headers
            .get(VERSION)
            .and_then(|version| version.to_str().ok())
        {
            self.written.told(version);
        }
        Ok(answer)
    }

    async fn value(&self, path: &str, mut answer: Pieces) -> anyhow::Result<Value> {
        let bytes = answer.body().limit(ANSWER_BYTES_MAX).await?;
        let value: Value = serde_json::from_slice(&bytes)
            .with_context(|| format!("{path} answered {} without JSON", answer.status()))?;
        if !answer.status().is_success() {
            return Err(Problem(value).into());
        }
        Ok(value)
    }
}

/// A client for a URL, and its base.
///
/// # Errors
/// It is none, or the authorities of an `https` one cannot be used.
pub fn connection<'u>(
    ca_file: Option<&Path>,
    (url, named_by): (&'u str, &'static str),
    timeout: Duration,
) -> anyhow::Result<(awc::Client, &'u str)> {
    let (base, is_tls) = address(url, named_by)?;
    let builder = awc::Client::builder().disable_redirects().timeout(timeout);
    let client = match (is_tls, ca_file) {
        (true, _) => builder
            .connector(awc::Connector::new().rustls_0_23(trust(ca_file)?))
            .finish(),
        (false, None) => builder.finish(),
        (false, Some(_)) => bail!(
            "--ca-file (REQUESTROCKET_CA_FILE) is for a control plane with TLS, and {base} \
             ({named_by}) has none: write https://, or leave the file out"
        ),
    };
    Ok((client, base))
}

/// The base URL of a control plane, and whether it speaks TLS. Who has copied it from a call may
/// have the beginning of the API's paths with it.
fn address<'g>(given: &'g str, named_by: &str) -> anyhow::Result<(&'g str, bool)> {
    let base = given.trim().trim_end_matches('/');
    let base = base.strip_suffix("/api/v1").unwrap_or(base);
    let is_tls = base.starts_with("https://");
    if !is_tls && !base.starts_with("http://") {
        let like = "write it like http://127.0.0.1:8081";
        bail!("`{given}` is no URL of a control plane ({named_by}): {like}");
    }
    Ok((base, is_tls))
}

/// Whom to believe that they are the control plane: the authorities of a file, or the system's.
fn trust(ca_file: Option<&Path>) -> anyhow::Result<Arc<rustls::ClientConfig>> {
    use rustls_platform_verifier::ConfigVerifierExt;
    let Some(path) = ca_file else {
        let config = rustls::ClientConfig::with_platform_verifier();
        return Ok(Arc::new(config.context("the system's certificates")?));
    };
    let faulty = || format!("the authorities in {} cannot be used", path.display());
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).with_context(faulty)? {
        let added = roots.add(certificate.with_context(faulty)?);
        added.with_context(faulty)?;
    }
    if roots.is_empty() {
        bail!("{} holds no certificate in PEM", path.display());
    }
    let config = rustls::ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_of_a_control_plane_is_a_url_and_ends_before_the_apis_paths() {
        for (given, expected) in [
            ("http://127.0.0.1:8081", ("http://127.0.0.1:8081", false)),
            ("http://127.0.0.1:8081/", ("http://127.0.0.1:8081", false)),
            ("https://gw.example/api/v1", ("https://gw.example", true)),
            ("https://gw.example/api/v1/", ("https://gw.example", true)),
        ] {
            assert_eq!(address(given, "--at").unwrap(), expected);
        }
        for given in ["127.0.0.1:8081", "localhost:8081", "ftp://a.example", ""] {
            let said = address(given, "--at").unwrap_err().to_string();
            assert!(said.contains("(--at)"), "{said}");
        }
    }
}
