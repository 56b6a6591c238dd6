//! A real OTLP receiver gets one trace per request: a server span and a child per stage.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::trace::v1::Span;
use tonic::{Request, Response, Status};

/// Longest wait for the spans of a request, batching included.
const WAIT: Duration = Duration::from_secs(30);

struct Receiving(Sender<Vec<Span>>);

#[tonic::async_trait]
impl TraceService for Receiving {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let spans = request
            .into_inner()
            .resource_spans
            .into_iter()
            .flat_map(|resource| resource.scope_spans)
            .flat_map(|scope| scope.spans)
            .collect();
        // An error means that the test has what it wants.
        let _ = self.0.send(spans);
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// Starts a receiver on a free port, on a thread of its own.
fn receiver() -> (SocketAddr, Receiver<Vec<Span>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    listener.set_nonblocking(true).expect("a socket");
    let (sender, spans) = channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            let incoming = tonic::transport::server::TcpIncoming::from(listener);
            let service = TraceServiceServer::new(Receiving(sender));
            let server = tonic::transport::Server::builder().add_service(service);
            server.serve_with_incoming(incoming).await
        })
    });
    (address, spans)
}

struct Gateway {
    process: Child,
    ready: serde_json::Value,
    _data: tempfile::TempDir,
}

impl Gateway {
    fn start(otlp: SocketAddr) -> Self {
        let data = tempfile::tempdir().expect("a folder");
        let mut process = Command::new(env!("CARGO_BIN_EXE_requestrocket"))
            .args([
                "dev",
                "--gateway",
                "127.0.0.1:0",
                "--control",
                "127.0.0.1:0",
            ])
            .args(["--output", "json", "--data-dir"])
            .arg(data.path().join("rr"))
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{otlp}"))
            .env("OTEL_BSP_SCHEDULE_DELAY", "100")
            .stdout(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let mut line = String::new();
        let stdout = process.stdout.take().expect("its output");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        let ready = serde_json::from_str(&line).expect("one line of JSON");
        Self {
            process,
            ready,
            _data: data,
        }
    }

    /// Calls the demo with a `traceparent` and gives the answer.
    fn call(&self, traceparent: &str) -> String {
        let text = |value: &serde_json::Value| value.as_str().expect("a text").to_owned();
        let gateway = text(&self.ready["gateway"]);
        let host = gateway.trim_start_matches("http://");
        let key = text(&self.ready["demo"]["api_key"]);
        let mut stream = TcpStream::connect(host).expect("a connection");
        write!(
            stream,
            "GET /api/demo/x HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {key}\r\n\
             traceparent: {traceparent}\r\nconnection: close\r\n\r\n"
        )
        .expect("a request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_request_is_one_trace_with_a_span_per_stage() {
    let (address, received) = receiver();
    let gateway = Gateway::start(address);
    let trace_id = "0af7651916cd43dd8448eb211c80319c";
    let answer = gateway.call(&format!("00-{trace_id}-b7ad6b7169203331-01"));
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    // The target sees the same trace, with our span as the parent.
    assert!(answer.contains(&format!("00-{trace_id}-")), "{answer}");
    assert!(!answer.contains("b7ad6b7169203331"), "{answer}");

    let wanted: Vec<&str> = proto::record::Stage::ALL
        .iter()
        .map(|stage| stage.name())
        .chain(["GET"])
        .collect();
    let mut spans: Vec<Span> = Vec::new();
    while !wanted
        .iter()
        .all(|name| spans.iter().any(|span| span.name == *name))
    {
        let more = received.recv_timeout(WAIT);
        let names: Vec<&String> = spans.iter().map(|span| &span.name).collect();
        let more = more.unwrap_or_else(|_| panic!("only {names:?} of {wanted:?} came"));
        let ours = |span: &Span| hex::encode(&span.trace_id) == trace_id;
        spans.extend(more.into_iter().filter(ours));
    }
    let server = spans
        .iter()
        .find(|span| span.name == "GET")
        .expect("found above");
    assert_eq!(hex::encode(&server.parent_span_id), "b7ad6b7169203331");
    for span in spans.iter().filter(|span| span.name != "GET") {
        assert_eq!(span.parent_span_id, server.span_id, "{}", span.name);
        assert!(
            span.start_time_unix_nano >= server.start_time_unix_nano,
            "{}",
            span.name
        );
        assert!(
            span.end_time_unix_nano <= server.end_time_unix_nano,
            "{}",
            span.name
        );
    }
}
