//! OTLP over gRPC: one unary call for each export, on a connection that is kept.

use anyhow::Context;
use bytes::{Buf, BufMut, Bytes};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName};
use tonic::codec::{Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::MetadataMap;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status};

use super::{ANSWER_BYTES_MAX, Collector, NotTaken, TIMEOUT};

/// Sends exports to a collector.
pub struct Grpc {
    client: tonic::client::Grpc<Channel>,
    path: PathAndQuery,
    metadata: MetadataMap,
}

impl Grpc {
    /// The connection is made by the first export.
    ///
    /// # Errors
    /// The endpoint is no URL, a certificate cannot be used, or a header field is none.
    pub fn new(collector: &Collector) -> anyhow::Result<Self> {
        let mut endpoint = Endpoint::from_shared(collector.endpoint.clone())?
            .user_agent(concat!("requestrocket/", env!("CARGO_PKG_VERSION")))?
            .connect_timeout(TIMEOUT);
        if let Some(pem) = &collector.authorities {
            let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem));
            if let Some((certificate, key)) = &collector.identity {
                tls = tls.identity(Identity::from_pem(certificate, key));
            }
            endpoint = endpoint.tls_config(tls)?;
        }
        let mut client = tonic::client::Grpc::new(endpoint.connect_lazy())
            .accept_compressed(CompressionEncoding::Gzip)
            .max_decoding_message_size(ANSWER_BYTES_MAX);
        if collector.gzip {
            client = client.send_compressed(CompressionEncoding::Gzip);
        }
        let mut fields = HeaderMap::new();
        for (name, value) in &collector.headers {
            let name: HeaderName = name.parse().context("the name of a header")?;
            fields.insert(name, value.parse().context("the value of a header")?);
        }
        Ok(Self {
            client,
            path: PathAndQuery::from_static(collector.signal.method()),
            metadata: MetadataMap::from_headers(fields),
        })
    }

    /// Sends an encoded export; gives the encoded answer.
    ///
    /// # Errors
    /// It was not taken.
    pub async fn export(&self, request: Bytes) -> Result<Bytes, NotTaken> {
        let mut client = self.client.clone();
        client.ready().await.map_err(NotTaken::for_now)?;
        let mut request = Request::new(request);
        *request.metadata_mut() = self.metadata.clone();
        let answer = client.unary(request, self.path.clone(), Encoded).await;
        Ok(answer.map_err(refused)?.into_inner())
    }
}

/// What the specification of OTLP says of statuses: these will not change by trying again.
fn refused(status: Status) -> NotTaken {
    match status.code() {
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::Unimplemented
        | Code::Internal
        | Code::Unauthenticated
        | Code::ResourceExhausted => NotTaken::for_good(status),
        _ => NotTaken::for_now(status),
    }
}

/// Messages that are encoded already: one that is sent again need not be made again.
#[derive(Clone, Copy)]
struct Encoded;

impl Codec for Encoded {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Encoded {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(item);
        Ok(())
    }
}

impl Decoder for Encoded {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}
