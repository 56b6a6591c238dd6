//! OTLP over HTTP/protobuf: one POST for each batch.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SpanData;
use prost::Message;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use url::Url;

/// Longest time for one batch.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Most bytes of an answer that are read.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Sends batches to a collector.
pub struct HttpExporter {
    url: Url,
    headers: Vec<(header::HeaderName, header::HeaderValue)>,
    gzip: bool,
    tls: Option<Arc<rustls::ClientConfig>>,
    resource: ResourceAttributesWithSchema,
}

impl HttpExporter {
    /// An exporter to the traces path of an endpoint, with these further fields.
    ///
    /// # Errors
    /// The endpoint is no URL, or a field is none.
    pub fn new(
        endpoint: &str,
        headers: &[(String, String)],
        gzip: bool,
        tls: Option<Arc<rustls::ClientConfig>>,
        resource: &Resource,
    ) -> anyhow::Result<Self> {
        let base = endpoint.trim_end_matches('/');
        let url: Url = match base.ends_with("/v1/traces") {
            true => base.parse()?,
            false => format!("{base}/v1/traces").parse()?,
        };
        if url.host_str().is_none() || !matches!(url.scheme(), "http" | "https") {
            bail!("{endpoint} is no http or https URL");
        }
        let headers = headers.iter().map(|(name, value)| {
            let name: header::HeaderName = name.parse().context("the name of a header")?;
            let mut value: header::HeaderValue = value
                .parse()
                .with_context(|| format!("the value of {name}"))?;
            value.set_sensitive(true);
            Ok((name, value))
        });
        Ok(Self {
            headers: headers.collect::<anyhow::Result<_>>()?,
            url,
            gzip,
            tls,
            resource: resource.into(),
        })
    }

    /// Sends a batch.
    ///
    /// # Errors
    /// It was not taken.
    pub async fn export(&self, spans: Vec<SpanData>) -> anyhow::Result<()> {
        let request = ExportTraceServiceRequest {
            resource_spans: group_spans_by_resource_and_scope(spans, &self.resource),
        };
        let body = request.encode_to_vec();
        tokio::time::timeout(TIMEOUT, self.post(body))
            .await
            .context("the collector did not answer in time")?
    }

    async fn post(&self, body: Vec<u8>) -> anyhow::Result<()> {
        let host = self.url.host_str().unwrap_or_default();
        let port = self.url.port_or_known_default().unwrap_or(4318);
        let address = host.trim_matches(['[', ']']);
        let stream = TcpStream::connect((address, port)).await?;
        stream.set_nodelay(true)?;
        let request = self.request(host, port, body)?;
        match &self.tls {
            Some(config) if self.url.scheme() == "https" => {
                let name = ServerName::try_from(address.to_owned())?;
                let connector = TlsConnector::from(config.clone());
                exchange(connector.connect(name, stream).await?, request).await
            }
            None if self.url.scheme() == "https" => bail!("there is no trust in any certificate"),
            _ => exchange(stream, request).await,
        }
    }

    fn request(
        &self,
        host: &str,
        port: u16,
        body: Vec<u8>,
    ) -> anyhow::Result<Request<Full<Bytes>>> {
        let mut builder = Request::post(self.url.path())
            .header(header::HOST, format!("{host}:{port}"))
            .header(header::CONTENT_TYPE, "application/x-protobuf")
            .header(
                header::USER_AGENT,
                concat!("requestrocket/", env!("CARGO_PKG_VERSION")),
            );
        for (name, value) in &self.headers {
            builder = builder.header(name, value);
        }
        let body = match self.gzip {
            true => {
                builder = builder.header(header::CONTENT_ENCODING, "gzip");
                compressed(&body)?
            }
            false => body,
        };
        Ok(builder.body(Full::new(Bytes::from(body)))?)
    }
}

fn compressed(body: &[u8]) -> std::io::Result<Vec<u8>> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(body)?;
    encoder.finish()
}

/// One request on a connection of its own.
async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> anyhow::Result<()> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let driving = tokio::spawn(connection);
    let answer = sender.send_request(request).await?;
    let status = answer.status();
    // Read to its end, so that a collector is not cut off while it writes.
    let read = Limited::new(answer.into_body(), ANSWER_BYTES_MAX)
        .collect()
        .await;
    driving.abort();
    if !status.is_success() {
        bail!("the collector answered {status}");
    }
    read.map(drop).map_err(|error| anyhow::anyhow!("{error}"))
}
