//! OTLP over HTTP/protobuf: one POST for each export.

use std::sync::Arc;

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use url::Url;

use super::{ANSWER_BYTES_MAX, Collector, NotTaken};

/// Sends exports to a collector.
pub struct Http {
    url: Url,
    headers: Vec<(header::HeaderName, header::HeaderValue)>,
    gzip: bool,
    tls: Option<Arc<rustls::ClientConfig>>,
}

impl Http {
    /// A connection is made for each export.
    ///
    /// # Errors
    /// The endpoint is no URL, a certificate cannot be used, or a header field is none.
    pub fn new(collector: &Collector) -> anyhow::Result<Self> {
        let endpoint = &collector.endpoint;
        let path = format!("/v1/{}", collector.signal.name());
        let base = endpoint.trim_end_matches('/');
        let url: Url = match collector.is_whole || base.ends_with(&path) {
            true => endpoint.parse()?,
            false => format!("{base}{path}").parse()?,
        };
        let headers = collector.headers.iter().map(|(name, value)| {
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
            gzip: collector.gzip,
            tls: collector.rustls()?,
        })
    }

    /// Sends an encoded export; gives the encoded answer.
    ///
    /// # Errors
    /// It was not taken.
    pub async fn export(&self, body: Bytes) -> Result<Bytes, NotTaken> {
        let (status, answer) = self.post(body).await.map_err(NotTaken::for_now)?;
        if status.is_success() {
            return Ok(answer);
        }
        let error = anyhow!("the collector answered {status}");
        // What the specification of OTLP says of statuses.
        match status.as_u16() {
            429 | 502 | 503 | 504 => Err(NotTaken::for_now(error)),
            _ => Err(NotTaken::for_good(error)),
        }
    }

    async fn post(&self, body: Bytes) -> anyhow::Result<(StatusCode, Bytes)> {
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

    fn request(&self, host: &str, port: u16, body: Bytes) -> anyhow::Result<Request<Full<Bytes>>> {
        let mut builder = Request::post(target(&self.url))
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
                compressed(&body)?.into()
            }
            false => body,
        };
        Ok(builder.body(Full::new(body))?)
    }
}

/// As the request's target names it, with a query where the operator gave one.
fn target(url: &Url) -> &str {
    &url[url::Position::BeforePath..url::Position::AfterQuery]
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
) -> anyhow::Result<(StatusCode, Bytes)> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let driving = tokio::spawn(connection);
    let answer = sender.send_request(request).await?;
    let status = answer.status();
    // Read to its end, so that a collector is not cut off while it writes.
    let read = Limited::new(answer.into_body(), ANSWER_BYTES_MAX)
        .collect()
        .await;
    driving.abort();
    let body = read.map_err(|error| anyhow!("{error}"))?.to_bytes();
    Ok((status, body))
}
