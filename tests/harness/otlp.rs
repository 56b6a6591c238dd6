//! Receivers of OTLP: one over gRPC, one over HTTP with protobuf.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};

use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::{
    LogsService, LogsServiceServer,
};
use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsServiceRequest, ExportLogsServiceResponse,
};
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use opentelemetry_proto::tonic::metrics::v1::Metric;
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tonic::codec::CompressionEncoding;
use tonic::metadata::MetadataMap;
use tonic::transport::{Identity, ServerTlsConfig};
use tonic::{Request, Response, Status};

use super::upstream::{After, Upstream};

/// What a receiver got.
#[derive(Clone, Default)]
pub struct Received(Arc<Mutex<State>>);

/// How a receiver behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mood {
    /// It takes all.
    #[default]
    Well,
    /// It says to come again later.
    Unavailable,
    /// It says never to send that again.
    Refusing,
    /// It reads and does not answer.
    Silent,
    /// Over gRPC: it takes all of an export but one span.
    Picky,
}

#[derive(Default)]
struct State {
    mood: Mood,
    spans: Vec<Span>,
    /// Lines with the part of the program that they come from.
    lines: Vec<(String, LogRecord)>,
    /// By name, as last told.
    metrics: BTreeMap<String, Metric>,
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

    /// Behaves so from now on.
    pub fn be(&self, mood: Mood) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).mood = mood;
    }

    fn mood(&self) -> Mood {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).mood
    }

    /// What a call over gRPC comes to that is not taken.
    async fn ready(&self) -> Result<(), Status> {
        match self.mood() {
            Mood::Well | Mood::Picky => Ok(()),
            Mood::Unavailable => Err(Status::unavailable("later")),
            Mood::Refusing => Err(Status::invalid_argument("never")),
            Mood::Silent => std::future::pending().await,
        }
    }

    /// All log lines so far, each with the part of the program that it comes from.
    pub fn lines(&self) -> Vec<(String, LogRecord)> {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.lines.clone()
    }

    /// Metrics by name, as last told.
    pub fn metrics(&self) -> BTreeMap<String, Metric> {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.metrics.clone()
    }

    /// A header field of the last export, with gRPC one of its metadata.
    pub fn header(&self, name: &str) -> Option<String> {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = state.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.clone())
    }

    fn take(&self, export: Export, headers: Vec<(String, String)>) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match export {
            Export::Traces(request) => {
                let scopes = request.resource_spans.into_iter().flat_map(|told| {
                    check_resource(told.resource.as_ref());
                    told.scope_spans
                });
                state.spans.extend(scopes.flat_map(|scope| scope.spans));
            }
            Export::Metrics(request) => {
                let scopes = request.resource_metrics.into_iter().flat_map(|told| {
                    check_resource(told.resource.as_ref());
                    told.scope_metrics
                });
                let metrics = scopes.flat_map(|scope| scope.metrics);
                let named = metrics.map(|metric| (metric.name.clone(), metric));
                state.metrics.extend(named);
            }
            Export::Logs(request) => {
                let scopes = request.resource_logs.into_iter().flat_map(|told| {
                    check_resource(told.resource.as_ref());
                    told.scope_logs
                });
                for scope in scopes {
                    let name = scope.scope.map(|scope| scope.name).unwrap_or_default();
                    let lines = scope.log_records.into_iter();
                    state.lines.extend(lines.map(|line| (name.clone(), line)));
                }
            }
        }
        state.headers = headers;
    }
}

/// What a call over gRPC came with.
fn fields(metadata: &MetadataMap) -> Vec<(String, String)> {
    let headers = metadata.clone().into_headers();
    let text = |value: &http::HeaderValue| value.to_str().unwrap_or_default().to_owned();
    let fields = headers.iter();
    fields
        .map(|(name, value)| (name.to_string(), text(value)))
        .collect()
}

/// One export.
enum Export {
    Traces(ExportTraceServiceRequest),
    Metrics(ExportMetricsServiceRequest),
    Logs(ExportLogsServiceRequest),
}

impl Export {
    fn decode(path: &str, body: &[u8]) -> Self {
        match path {
            "/v1/traces" => Self::Traces(Message::decode(body).expect("OTLP")),
            "/v1/metrics" => Self::Metrics(Message::decode(body).expect("OTLP")),
            "/v1/logs" => Self::Logs(Message::decode(body).expect("OTLP")),
            other => panic!("{other} is no path of OTLP"),
        }
    }
}

fn check_resource(resource: Option<&Resource>) {
    let mut named = resource.iter().flat_map(|resource| &resource.attributes);
    assert!(
        named.any(|pair| pair.key == "service.name"),
        "a service has a name"
    );
}

#[tonic::async_trait]
impl TraceService for Received {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.ready().await?;
        let fields = fields(request.metadata());
        self.take(Export::Traces(request.into_inner()), fields);
        let partial_success = (self.mood() == Mood::Picky).then(|| ExportTracePartialSuccess {
            rejected_spans: 1,
            error_message: "one is too many".into(),
        });
        Ok(Response::new(ExportTraceServiceResponse {
            partial_success,
        }))
    }
}

#[tonic::async_trait]
impl MetricsService for Received {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        self.ready().await?;
        let fields = fields(request.metadata());
        self.take(Export::Metrics(request.into_inner()), fields);
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl LogsService for Received {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        self.ready().await?;
        let fields = fields(request.metadata());
        self.take(Export::Logs(request.into_inner()), fields);
        Ok(Response::new(ExportLogsServiceResponse::default()))
    }
}

/// A certificate for `localhost` that is its own authority, and its key, both PEM.
pub fn certificate() -> (String, String) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    (made.cert.pem(), made.signing_key.serialize_pem())
}

/// Starts a receiver over gRPC on a free port, on a thread of its own; gives its endpoint.
pub fn grpc() -> (String, Received) {
    let (address, received) = grpc_with(listener(), None);
    (format!("http://{address}"), received)
}

/// The same on an address that was free.
pub fn grpc_at(address: SocketAddr) -> Received {
    let listener = TcpListener::bind(address).expect("the address is free again");
    grpc_with(listener, None).1
}

/// The same with TLS.
pub fn grpc_tls(certificate: &str, key: &str) -> (String, Received) {
    let (address, received) = grpc_with(listener(), Some(Identity::from_pem(certificate, key)));
    (format!("https://localhost:{}", address.port()), received)
}

fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").expect("a free port")
}

fn grpc_with(listener: TcpListener, identity: Option<Identity>) -> (SocketAddr, Received) {
    let address = listener.local_addr().expect("an address");
    listener.set_nonblocking(true).expect("a socket");
    let received = Received::default();
    let traces =
        TraceServiceServer::new(received.clone()).accept_compressed(CompressionEncoding::Gzip);
    let metrics =
        MetricsServiceServer::new(received.clone()).accept_compressed(CompressionEncoding::Gzip);
    let logs =
        LogsServiceServer::new(received.clone()).accept_compressed(CompressionEncoding::Gzip);
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
                .add_service(traces)
                .add_service(metrics)
                .add_service(logs)
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
    let listener = listener();
    let port = listener.local_addr().expect("an address").port();
    let received = Received::default();
    let taking = received.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let connection = rustls::ServerConnection::new(config.clone()).expect("TLS");
            let mut stream = BufReader::new(rustls::StreamOwned::new(connection, stream));
            let mut length = 0;
            let mut path = String::new();
            loop {
                let mut line = String::new();
                if stream.read_line(&mut line).is_err() || line.trim().is_empty() {
                    break;
                }
                let line = line.to_ascii_lowercase();
                if let Some(rest) = line.strip_prefix("post ") {
                    path = rest.split(' ').next().unwrap_or_default().to_owned();
                }
                if let Some(value) = line.strip_prefix("content-length:") {
                    length = value.trim().parse().expect("a number");
                }
            }
            let mut body = vec![0; length];
            // Who does not trust the certificate leaves without a request.
            if path.is_empty() || stream.read_exact(&mut body).is_err() {
                continue;
            }
            taking.take(Export::decode(&path, &body), Vec::new());
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
        assert_eq!(request.method(), "POST");
        assert_eq!(
            request.field("content-type"),
            Some("application/x-protobuf")
        );
        let refusal = match taking.mood() {
            Mood::Well | Mood::Picky => None,
            Mood::Unavailable => Some("503 Service Unavailable"),
            Mood::Refusing => Some("400 Bad Request"),
            Mood::Silent => {
                while connection.some().is_some() {}
                return After::Close;
            }
        };
        if let Some(status) = refusal {
            connection.send(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n"));
            return After::Keep;
        }
        let body = match request.field("content-encoding") {
            Some("gzip") => {
                let mut plain = Vec::new();
                let mut decoder = flate2::read::GzDecoder::new(&request.body[..]);
                decoder.read_to_end(&mut plain).expect("gzip");
                plain
            }
            _ => request.body.clone(),
        };
        taking.take(
            Export::decode(request.target(), &body),
            request.fields.clone(),
        );
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
