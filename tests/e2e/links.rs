//! What control takes on the listener for records: whom it believes, and what it reads before that.

use std::path::Path;
use std::sync::Arc;

use proto::wire::link::{
    Ack, GREETING_BYTES_MAX, Hello, PROTOCOL, TimedAck, Welcome, read_frame, write_frame,
};
use proto::wire::{self, Message, RecordBatch};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::cluster::Cluster;
use crate::harness::gateway::{Gateway, binary};
use crate::harness::http::SILENCE_MAX;
use crate::harness::wait_for;

pub type Stream = TlsStream<TcpStream>;

/// A client that trusts this authority, with a certificate of this folder or none.
pub fn tls(authority: &Path, own: Option<(&Path, &str)>) -> TlsConnector {
    let mut roots = rustls::RootCertStore::empty();
    let root = CertificateDer::from_pem_file(authority).expect("an authority");
    roots.add(root).expect("a root");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("protocols")
        .with_root_certificates(roots);
    let config = match own {
        None => config.with_no_client_auth(),
        Some((folder, name)) => {
            let chain = CertificateDer::pem_file_iter(folder.join(format!("{name}.pem")));
            let chain: Result<Vec<_>, _> = chain.expect("a file").collect();
            let key = PrivateKeyDer::from_pem_file(folder.join(format!("{name}-key.pem")));
            config
                .with_client_auth_cert(chain.expect("a chain"), key.expect("a key"))
                .expect("they belong together")
        }
    };
    TlsConnector::from(Arc::new(config))
}

/// Makes an authority and a certificate for `name` in a folder.
fn issue(folder: &Path, arguments: &[&str]) {
    let made = binary().arg("link").args(arguments).arg(folder).status();
    assert!(made.expect("the binary runs").success());
}

struct Link {
    cluster: Cluster,
    control: Gateway,
}

impl Link {
    fn start() -> Self {
        let cluster = Cluster::new();
        let control = Gateway::with(cluster.control_start());
        // Its certificate is made on the way.
        let _settings = cluster.node_start("gw-1", "gw-1");
        Self { cluster, control }
    }

    async fn connect(&self, connector: &TlsConnector) -> std::io::Result<Stream> {
        let tcp = TcpStream::connect(&self.cluster.link).await?;
        let name = ServerName::try_from("127.0.0.1").expect("an address");
        connector.connect(name, tcp).await
    }

    /// A connection with the certificate of `gw-1`.
    async fn certified(&self) -> Stream {
        let folder = self.cluster.file("");
        let connector = tls(&self.cluster.file("ca.pem"), Some((&folder, "gw-1")));
        self.connect(&connector).await.expect("a connection")
    }

    /// Greets as this node with this protocol; gives the answer.
    async fn greet(&self, protocol: u16, node: &str) -> (Stream, Welcome) {
        let mut stream = self.certified().await;
        let hello = Hello {
            protocol,
            node: node.to_owned(),
            region: "local".to_owned(),
        };
        write_frame(&mut stream, &hello).await.expect("it is sent");
        let welcome = answer(&mut stream).await.expect("an answer");
        (stream, welcome)
    }

    fn wait_said(&self, text: &str) {
        wait_for(text, || self.control.log().contains(text).then_some(()));
    }
}

pub async fn frame(stream: &mut Stream) -> Option<Vec<u8>> {
    let read = tokio::time::timeout(SILENCE_MAX, read_frame(stream, GREETING_BYTES_MAX));
    // An error ends a connection like its end does.
    read.await.expect("an end or an answer").ok().flatten()
}

async fn answer<M: Message>(stream: &mut Stream) -> Option<M> {
    let frame = frame(stream).await?;
    Some(wire::decode(&frame).expect("the answer"))
}

fn batch(node: &str) -> RecordBatch {
    RecordBatch {
        node: node.to_owned(),
        sequence: 7,
        dropped: 0,
        records: Vec::new(),
    }
}

pub fn block_on(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(work);
}

#[test]
fn only_who_proves_a_certificate_of_the_cluster_may_say_anything() {
    let link = Link::start();
    let foreign = tempfile::tempdir().expect("a folder");
    issue(foreign.path(), &["authority", "--dir"]);
    issue(foreign.path(), &["issue", "gw-1", "--dir"]);
    let authority = link.cluster.file("ca.pem");
    block_on(async {
        for own in [None, Some((foreign.path(), "gw-1"))] {
            // A client learns of it in the handshake or when it reads.
            let Ok(mut stream) = link.connect(&tls(&authority, own)).await else {
                continue;
            };
            let hello = Hello {
                protocol: PROTOCOL,
                node: "gw-1".into(),
                region: "local".into(),
            };
            let _ = write_frame(&mut stream, &hello).await;
            assert_eq!(frame(&mut stream).await, None, "{own:?}");
        }
        let mut plain = TcpStream::connect(&link.cluster.link).await.expect("TCP");
        plain.write_all(&[0; 64]).await.expect("it is sent");
        let mut said = Vec::new();
        let read = tokio::time::timeout(SILENCE_MAX, plain.read_to_end(&mut said));
        let _ = read.await.expect("the connection ends");
        // At most an alert of TLS.
        assert!(said.len() <= 7, "{said:?}");
        let (_, welcome) = link.greet(PROTOCOL, "gw-1").await;
        assert_eq!(welcome.refused, None);
    });
}

#[test]
fn each_side_says_what_it_speaks_and_both_go_on_with_the_lower_one() {
    let link = Link::start();
    block_on(async {
        let (mut stream, welcome) = link.greet(1, "gw-1").await;
        assert_eq!((welcome.protocol, welcome.refused), (PROTOCOL, None));
        let sent = write_frame(&mut stream, &batch("gw-1")).await;
        sent.expect("it is sent");
        let stored: Ack = answer(&mut stream).await.expect("an answer of protocol 1");
        assert_eq!(stored.sequence, 7);
        // The newest, and one that is not known yet.
        for protocol in [PROTOCOL, PROTOCOL + 1] {
            let (mut stream, welcome) = link.greet(protocol, "gw-1").await;
            assert_eq!((welcome.protocol, welcome.refused), (PROTOCOL, None));
            let sent = write_frame(&mut stream, &batch("gw-1")).await;
            sent.expect("it is sent");
            let stored: TimedAck = answer(&mut stream).await.expect("an answer");
            assert_eq!(stored.sequence, 7);
            assert!(stored.unix_ns > 0);
        }
        let (mut stream, welcome) = link.greet(0, "gw-1").await;
        assert_eq!(welcome.refused.as_deref(), Some("protocol 0 is not known"));
        assert_eq!(frame(&mut stream).await, None);
        let (mut stream, welcome) = link.greet(PROTOCOL, "gw-2").await;
        let refused = "the certificate does not name `gw-2`";
        assert_eq!(welcome.refused.as_deref(), Some(refused));
        assert_eq!(frame(&mut stream).await, None);
    });
}

#[test]
fn nothing_is_decoded_that_is_too_long_of_another_kind_or_of_another_node() {
    let link = Link::start();
    block_on(async {
        // What would follow is not waited for.
        let mut stream = link.certified().await;
        let sent = stream.write_all(&announcing(64 * 1024)).await;
        sent.expect("it is sent");
        assert_eq!(frame(&mut stream).await, None);
        link.wait_said("at most 4096 may come");

        let mut stream = link.certified().await;
        stream.write_all(&[0x5a; 128]).await.expect("it is sent");
        assert_eq!(frame(&mut stream).await, None);

        // A batch before a greeting is none.
        let mut stream = link.certified().await;
        let sent = write_frame(&mut stream, &batch("gw-1")).await;
        sent.expect("it is sent");
        assert_eq!(frame(&mut stream).await, None);

        let (mut stream, _) = link.greet(PROTOCOL, "gw-1").await;
        let sent = write_frame(&mut stream, &batch("gw-2")).await;
        sent.expect("it is sent");
        assert_eq!(frame(&mut stream).await, None);
        link.wait_said("gw-1 sent records of gw-2");
        let (mut stream, _) = link.greet(PROTOCOL, "gw-1").await;
        let sent = stream.write_all(&announcing(u32::MAX)).await;
        sent.expect("it is sent");
        assert_eq!(frame(&mut stream).await, None);
        let (_, welcome) = link.greet(PROTOCOL, "gw-1").await;
        assert_eq!(welcome.refused, None, "it goes on");
    });
}

/// The head of a batch's frame that says that so many bytes follow.
fn announcing(bytes: u32) -> Vec<u8> {
    let mut head = wire::encode(&batch("gw-1")).expect("a frame");
    head.truncate(wire::HEAD_BYTES);
    head[wire::HEAD_BYTES - 4..].copy_from_slice(&bytes.to_be_bytes());
    head
}
