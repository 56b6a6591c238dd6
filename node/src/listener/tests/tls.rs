//! TLS: HTTP/1.1 whatever the client offers, the same guard behind it.

use std::sync::Arc;

use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{Gateway, ListenerSettings, SHORT, settings};

fn secured(settings: ListenerSettings) -> (Gateway, CertificateDer<'static>) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let certificate = made.cert.der().clone();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    // What the caller may have left in the configuration does not count.
    config.alpn_protocols = vec![b"h2".to_vec()];
    (
        Gateway::start(ListenerSettings {
            tls: Some(Arc::new(config)),
            ..settings
        }),
        certificate,
    )
}

async fn connect(
    gateway: &Gateway,
    root: &CertificateDer<'static>,
    offers: &[&str],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(root.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = offers
        .iter()
        .map(|offer| offer.as_bytes().to_vec())
        .collect();
    let tcp = TcpStream::connect(gateway.addr).await?;
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config))
        .connect(name, tcp)
        .await
}

/// Everything that comes until the end; a missing close_notify is a failure.
async fn exchange(io: &mut TlsStream<TcpStream>, bytes: &[u8]) -> String {
    io.write_all(bytes).await.unwrap();
    let mut answer = String::new();
    io.read_to_string(&mut answer).await.unwrap();
    answer
}

#[actix_rt::test]
async fn only_http_1_1_is_agreed_on() {
    let (gateway, root) = secured(settings());
    for (offers, agreed) in [
        (&["h2", "http/1.1"][..], Some(&b"http/1.1"[..])),
        (&["http/1.1"], Some(b"http/1.1")),
        (&[], None),
    ] {
        let mut io = connect(&gateway, &root, offers).await.unwrap();
        assert_eq!(io.get_ref().1.alpn_protocol(), agreed, "{offers:?}");
        let last = b"GET /a HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        let answer = exchange(&mut io, last).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(answer.ends_with("GET /a 0 pattern"), "{answer}");
    }
    let mut io = connect(&gateway, &root, &[]).await.unwrap();
    let answer = exchange(
        &mut io,
        b"GET /tls HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    )
    .await;
    assert!(answer.ends_with("\r\n\r\nlocalhost"), "{answer}");
    let error = connect(&gateway, &root, &["h2"]).await.unwrap_err();
    assert!(
        error.to_string().contains("NoApplicationProtocol"),
        "{error}"
    );
}

#[actix_rt::test]
async fn the_guard_stands_behind_tls_too() {
    let (gateway, root) = secured(settings());
    let mut io = connect(&gateway, &root, &[]).await.unwrap();
    let answer = exchange(&mut io, b"GET / HTTP/1.1\r\nHost: a\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert!(answer.contains("malformed-request"), "{answer}");
    assert!(gateway.seen.take().is_empty());
    let mut io = connect(&gateway, &root, &[]).await.unwrap();
    io.write_all(b"GET /hang HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .unwrap();
    gateway.seen.wait_hanging(1);
    drop(io);
    gateway.seen.wait_hanging(0);
}

#[actix_rt::test]
async fn a_handshake_that_does_not_come_is_given_up() {
    let (gateway, _) = secured(ListenerSettings {
        head_timeout: SHORT,
        ..settings()
    });
    let mut io = TcpStream::connect(gateway.addr).await.unwrap();
    let mut bytes = Vec::new();
    io.read_to_end(&mut bytes).await.unwrap();
    assert!(bytes.is_empty());
    // Plain HTTP on a TLS port gets an alert, not an answer.
    let mut io = TcpStream::connect(gateway.addr).await.unwrap();
    io.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .unwrap();
    let _ = io.read_to_end(&mut bytes).await;
    assert!(!bytes.starts_with(b"HTTP"));
}
