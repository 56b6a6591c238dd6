//! Receivers of OTLP: one over gRPC, one over HTTP with protobuf.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tonic::codec::CompressionEncoding;
use tonic::transport::{Identity, ServerTlsConfig};
use tonic::{Request, Response, Status};

use crate::harness::upstream::{After, Upstream};

/// What a receiver got.
#[derive(Clone, Default)]
pub struct Received(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    spans: Vec<Span>,
    headers: Vec<(String, String)>,
    /// Keeps the receiver over HTTP.
    upstream: Option<Upstream>,
}

impl Received {
    /// All spans so far.
    pub fn spans(&self) -> Vec<Span> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .spans
            .clone()
    }

    /// A header field of the last export over HTTP.
    pub fn header(&self, name: &str) -> Option<String> {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = state.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.clone())
    }

    fn take(&self, request: ExportTraceServiceRequest, headers: Vec<(String, String)>) {
        let scopes = request.resource_spans.into_iter().flat_map(|resource| {
            let named = resource
                .resource
                .iter()
                .flat_map(|resource| &resource.attributes);
            assert!(
                named.clone().any(|pair| pair.key == "service.name"),
                "a service has a name"
            );
            resource.scope_spans
        });
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.spans.extend(scopes.flat_map(|scope| scope.spans));
        state.headers = headers;
    }
}

#[tonic::async_trait]
impl TraceService for Received {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.take(request.into_inner(), Vec::new());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// A certificate for `localhost` that is its own authority, and its key, both PEM.
pub fn certificate() -> (String, String) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    (made.cert.pem(), made.signing_key.serialize_pem())
}

/// Starts a receiver over gRPC on a free port, on a thread of its own; gives its endpoint.
pub fn grpc() -> (String, Received) {
    let (address, received) = grpc_with(None);
    (format!("http://{address}"), received)
}

/// The same with TLS.
pub fn grpc_tls(certificate: &str, key: &str) -> (String, Received) {
    let (address, received) = grpc_with(Some(Identity::from_pem(certificate, key)));
    (format!("https://localhost:{}", address.port()), received)
}

fn grpc_with(identity: Option<Identity>) -> (SocketAddr, Received) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    listener.set_nonblocking(true).expect("a socket");
    let received = Received::default();
    let service =
        TraceServiceServer::new(received.clone()).accept_compressed(CompressionEncoding::Gzip);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            let incoming = tonic::transport::server::TcpIncoming::from(listener);
            let mut builder = tonic::transport::Server::builder();
            if let Some(identity) = identity {
                let tls = ServerTlsConfig::new().identity(identity);
                builder = builder.tls_config(tls).expect("TLS");
            }
            builder
                .add_service(service)
                .serve_with_incoming(incoming)
                .await
        })
    });
    (address, received)
}

/// Starts a receiver over HTTP with TLS, on a thread of its own; gives its endpoint.
pub fn http_tls(certificate: &str, key: &str) -> (String, Received) {
    let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).expect("PEM")];
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("PEM");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("a certificate");
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("an address").port();
    let received = Received::default();
    let taking = received.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let connection = rustls::ServerConnection::new(config.clone()).expect("TLS");
            let mut stream = BufReader::new(rustls::StreamOwned::new(connection, stream));
            let mut length = 0;
            loop {
                let mut line = String::new();
                if stream.read_line(&mut line).is_err() || line.trim().is_empty() {
                    break;
                }
                let line = line.to_ascii_lowercase();
                if let Some(value) = line.strip_prefix("content-length:") {
                    length = value.trim().parse().expect("a number");
                }
            }
            let mut body = vec![0; length];
            if stream.read_exact(&mut body).is_err() {
                continue;
            }
            taking.take(
                ExportTraceServiceRequest::decode(&body[..]).expect("OTLP"),
                Vec::new(),
            );
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
            // The other end may have what it wants.
            let _ = stream.get_mut().write_all(answer);
        }
    });
    (format!("https://localhost:{port}"), received)
}

/// Starts a receiver over HTTP; gives its endpoint.
pub fn http() -> (String, Received) {
    let received = Received::default();
    let taking = received.clone();
    let upstream = Upstream::start(move |request, connection| {
        assert_eq!((request.method(), request.target()), ("POST", "/v1/traces"));
        assert_eq!(
            request.field("content-type"),
            Some("application/x-protobuf")
        );
        let body = match request.field("content-encoding") {
            Some("gzip") => {
                let mut plain = Vec::new();
                let mut decoder = flate2::read::GzDecoder::new(&request.body[..]);
                decoder.read_to_end(&mut plain).expect("gzip");
                plain
            }
            _ => request.body.clone(),
        };
        let export = ExportTraceServiceRequest::decode(&body[..]).expect("an export");
        taking.take(export, request.fields.clone());
        connection.send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
        After::Keep
    });
    let endpoint = upstream.url();
    received
        .0
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .upstream = Some(upstream);
    (endpoint, received)
}
