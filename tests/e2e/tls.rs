//! Targets with certificates that do not prove who they are.

use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{CertificateParams, CertifiedIssuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};

use crate::harness::gateway::{Gateway, TARGET_SECRET};
use crate::harness::upstream::{Upstream, json_answer};

/// A certificate authority of a test.
pub fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, "test authority");
    CertifiedIssuer::self_signed(params, key).expect("a certificate")
}

/// A certificate for a name, valid until a year.
pub fn certificate(
    authority: &CertifiedIssuer<'_, KeyPair>,
    name: &str,
    until: i32,
) -> (Vec<CertificateDer<'static>>, PrivatePkcs8KeyDer<'static>) {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new([name.to_owned()]).expect("a name");
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(until, 1, 1);
    let certificate = params.signed_by(&key, authority).expect("a certificate");
    let chain = vec![certificate.der().clone()];
    (chain, PrivatePkcs8KeyDer::from(key.serialize_der()))
}

/// A server with this certificate; its base URL under `localhost`.
fn serve(
    certificate: (Vec<CertificateDer<'static>>, PrivatePkcs8KeyDer<'static>),
) -> (String, Arc<std::sync::Mutex<Vec<String>>>) {
    let (port, seen) = serve_at("127.0.0.1", certificate);
    (format!("https://localhost:{port}"), seen)
}

/// A server with this certificate at an address: its port, and what it is sent, which begins with
/// the name that it was asked for where there was one.
fn serve_at(
    address: &str,
    (chain, key): (Vec<CertificateDer<'static>>, PrivatePkcs8KeyDer<'static>),
) -> (u16, Arc<std::sync::Mutex<Vec<String>>>) {
    use std::io::{BufRead, BufReader, Write};
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(chain, key.into())
        .expect("a certificate and its key");
    let config = Arc::new(config);
    let listener = TcpListener::bind((address, 0)).expect("a free port");
    let port = listener.local_addr().expect("an address").port();
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let shared = seen.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { continue };
            let session = rustls::ServerConnection::new(config.clone()).expect("a session");
            let mut reader = BufReader::new(rustls::StreamOwned::new(session, stream));
            let mut line = String::new();
            // A handshake that fails ends here.
            let mut asked = false;
            while reader.read_line(&mut line).is_ok_and(|read| read > 2) {
                let mut seen = shared.lock().expect("a list");
                if !std::mem::replace(&mut asked, true)
                    && let Some(name) = reader.get_ref().conn.server_name()
                {
                    seen.push(format!("SNI {name}"));
                }
                seen.push(line.trim().to_owned());
                line.clear();
            }
            let answer = json_answer("200 OK", r#"{"secure":true}"#);
            let _ = reader.get_mut().write_all(answer.as_bytes());
        }
    });
    (port, seen)
}

fn outcome(gateway: &Gateway, url: &str, tls: Value) -> (u16, String) {
    let target = json!({"tls": tls, "allow_networks": ["127.0.0.0/8", "::1/128"]});
    let answer = gateway.proxy_with(url, target, json!({})).get("/");
    let (status, code) = answer.outcome();
    (status, code.to_owned())
}

#[test]
fn only_a_certificate_that_proves_the_target_gets_the_secret() {
    let gateway = Gateway::start();
    let authority = authority();
    let ca = authority.pem();
    let refused = (502, "upstream-tls".to_owned());
    let (good, seen) = serve(certificate(&authority, "localhost", 2050));
    assert_eq!(
        outcome(&gateway, &good, json!({})),
        refused,
        "unknown authority"
    );
    assert!(seen.lock().expect("a list").is_empty(), "nothing was sent");
    let granted = (200, "proxy-access-granted".to_owned());
    assert_eq!(outcome(&gateway, &good, json!({"ca": ca})), granted);
    assert_eq!(seen.lock().expect("a list")[0], "SNI localhost");
    let injected = format!("authorization: Bearer {TARGET_SECRET}");
    assert!(seen.lock().expect("a list").contains(&injected), "{seen:?}");
    for (what, name, until) in [
        ("wrong name", "other", 2050),
        ("expired", "localhost", 2021),
    ] {
        let (bad, seen) = serve(certificate(&authority, name, until));
        assert_eq!(
            outcome(&gateway, &bad, json!({"ca": ca})),
            refused,
            "{what}"
        );
        assert!(seen.lock().expect("a list").is_empty(), "{what}");
    }
}

/// A certificate is judged by the address, which no name is asked for with (RFC 6066 §3).
#[test]
fn an_address_of_ipv6_is_proven_by_a_certificate_for_it() {
    let gateway = Gateway::start();
    let authority = authority();
    let ca = authority.pem();
    let (port, seen) = serve_at("::1", certificate(&authority, "::1", 2050));
    let url = format!("https://[::1]:{port}");
    let granted = (200, "proxy-access-granted".to_owned());
    assert_eq!(outcome(&gateway, &url, json!({"ca": ca})), granted);
    let sent = seen.lock().expect("a list").clone();
    assert!(sent.contains(&format!("host: [::1]:{port}")), "{sent:?}");
    assert!(!sent.iter().any(|line| line.starts_with("SNI")), "{sent:?}");
    let (port, seen) = serve_at("::1", certificate(&authority, "localhost", 2050));
    let refused = (502, "upstream-tls".to_owned());
    let url = format!("https://[::1]:{port}");
    assert_eq!(outcome(&gateway, &url, json!({"ca": ca})), refused);
    assert!(seen.lock().expect("a list").is_empty(), "nothing was sent");
}

#[test]
fn a_target_that_speaks_no_tls_is_a_tls_failure() {
    let gateway = Gateway::start();
    let plain = Upstream::raw(|connection, _| {
        connection.some();
        connection.send("HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n");
    });
    let url = format!("https://localhost:{}", plain.port());
    assert_eq!(
        outcome(&gateway, &url, json!({})),
        (502, "upstream-tls".into())
    );
}

/// Whoever chooses the authority and answers DNS would get the secret of every target.
#[test]
fn an_authority_of_its_own_needs_the_operators_leave() {
    let authority = authority();
    let (url, _) = serve(certificate(&authority, "localhost", 2050));
    let target = json!({
        "base_url": url, "tls": {"ca": authority.pem()}, "allow_networks": ["127.0.0.0/8"],
    });
    let port = url.rsplit(':').next().expect("a port");
    for (exceptions, status) in [
        ("[]".to_owned(), 422),
        ("[\"other.example\"]".to_owned(), 422),
        ("[\"localhost:1\"]".to_owned(), 422),
        (format!("[\"localhost:{port}\"]"), 201),
    ] {
        let config = format!("[egress]\ntls_exceptions = {exceptions}");
        let gateway = Gateway::configured(&config);
        let answer = gateway.api("POST", "/targets", Some(&target));
        assert_eq!(answer.status(), status, "{exceptions}: {}", answer.text());
        if status == 422 {
            let error = &answer.json()["errors"][0];
            assert_eq!(error["pointer"], "/tls/ca");
            let detail = error["detail"].as_str().expect("a text");
            assert!(detail.contains("`egress.tls_exceptions`"), "{detail}");
        }
    }
}

#[test]
fn verification_is_switched_off_only_where_the_operator_allows_it() {
    let authority = authority();
    let (url, _) = serve(certificate(&authority, "other", 2050));
    let insecure = json!({
        "base_url": url, "tls": {"insecure": true}, "allow_networks": ["127.0.0.0/8"],
    });
    let gateway = Gateway::start();
    let refused = gateway.api("POST", "/targets", Some(&insecure));
    assert_eq!(refused.status(), 422);
    assert_eq!(refused.json()["errors"][0]["pointer"], "/tls/insecure");
    let allowed = "[policy]\nallow_insecure_tls = true";
    let gateway = Gateway::configured(&format!("{allowed}\n[egress]\ntls_exceptions = []"));
    let refused = gateway.api("POST", "/targets", Some(&insecure));
    assert_eq!(refused.status(), 422, "the host is not excepted");
    let gateway = Gateway::configured(allowed);
    let (status, _) = outcome(&gateway, &url, json!({"insecure": true}));
    assert_eq!(status, 200);
}

/// Writes a new certificate for this machine into the folder; its authority is in `ca.pem`.
fn renew(folder: &std::path::Path) {
    let authority = authority();
    std::fs::write(folder.join("ca.pem"), authority.pem()).expect("a file");
    write(
        certificate(&authority, "localhost", 2099),
        [folder.join("cert.pem"), folder.join("key.pem")],
    );
}

/// Writes a certificate and its key as PEM.
pub fn write(
    (chain, key): (Vec<CertificateDer<'static>>, PrivatePkcs8KeyDer<'static>),
    [cert_file, key_file]: [PathBuf; 2],
) {
    let pem = |label: &str, der: &[u8]| {
        use base64::Engine;
        let text = base64::engine::general_purpose::STANDARD.encode(der);
        format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
    };
    std::fs::write(cert_file, pem("CERTIFICATE", &chain[0])).expect("a file");
    std::fs::write(key_file, pem("PRIVATE KEY", key.secret_pkcs8_der())).expect("a file");
}

#[test]
fn both_listeners_speak_tls_and_show_a_renewed_certificate_without_a_restart() {
    let files = tempfile::tempdir().expect("a folder");
    renew(files.path());
    let path = |name: &str| files.path().join(name);
    let tls = format!(
        "cert_file = {:?}\nkey_file = {:?}\n",
        path("cert.pem"),
        path("key.pem")
    );
    let gateway = Gateway::configured(&format!("[gateway.tls]\n{tls}[control.tls]\n{tls}"));
    let named = |url: &str| url.replace("https://127.0.0.1", "https://localhost");
    let (at, control) = (named(&gateway.url), named(&gateway.control));
    assert!(at.starts_with("https://localhost:"), "{at}");
    let (demo, key) = gateway.demo();
    let called = |ca: &str| {
        let mut curl = std::process::Command::new("curl");
        curl.args([
            "-s",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code} %{http_version}",
        ])
        .arg("--cacert")
        .arg(path(ca))
        .args(["-H", &format!("authorization: Bearer {key}")])
        .arg(format!("{at}{demo}"));
        let output = curl.output().expect("curl runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert_eq!(called("ca.pem"), "200 1.1");
    let listed = |ca: &[&str]| {
        let mut command = crate::harness::gateway::binary();
        let command = command
            .args(["versions", "--control", &control])
            .args(ca)
            .env("REQUESTROCKET_TOKEN", &gateway.token);
        command.output().expect("the binary runs")
    };
    let ca = path("ca.pem");
    let output = listed(&["--ca-file", &ca.to_string_lossy()]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    assert!(!listed(&[]).status.success(), "nobody vouches for it");

    // What does not fit is not shown.
    std::fs::copy(path("ca.pem"), path("old-ca.pem")).expect("a copy");
    std::fs::write(path("key.pem"), "half a ke").expect("a file");
    crate::harness::wait_for("a word about it", || {
        gateway.log().contains("is not renewed").then_some(())
    });
    assert_eq!(called("old-ca.pem"), "200 1.1");
    renew(files.path());
    crate::harness::wait_for("the new certificate", || {
        (called("ca.pem") == "200 1.1").then_some(())
    });
    assert_eq!(called("old-ca.pem"), "000 0");
    crate::harness::wait_for("the API's", || {
        let output = listed(&["--ca-file", &ca.to_string_lossy()]);
        output.status.success().then_some(())
    });
}
