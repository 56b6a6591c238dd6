//! TLS: who is believed, which version is spoken, and HTTP/2 over it.

use std::net::IpAddr;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::TlsAcceptor;

use super::super::tls::{MinVersion, TlsCache, TlsSettingsError};
use super::*;

type Issuer = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Issuer {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    Issuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A server's configuration with a certificate for `name`; self-signed without an authority.
pub(super) fn server(
    name: &str,
    authority: Option<&Issuer>,
    protocols: &[&str],
) -> rustls::ServerConfig {
    let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = match authority {
        Some(authority) => params.signed_by(&key, authority).unwrap(),
        None => params.self_signed(&key).unwrap(),
    };
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    config.alpn_protocols = protocols
        .iter()
        .map(|name| name.as_bytes().to_vec())
        .collect();
    config
}

/// A TLS target that answers in HTTP/1.1 with the protocol that was negotiated.
async fn tls_peer(config: rustls::ServerConfig) -> Peer {
    let acceptor = TlsAcceptor::from(Arc::new(config));
    Peer::start(move |_, stream| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(mut stream) = acceptor.accept(stream).await else {
                return;
            };
            let chosen = stream
                .get_ref()
                .1
                .alpn_protocol()
                .unwrap_or(b"none")
                .to_vec();
            let chosen = String::from_utf8(chosen).unwrap();
            let mut buffer = [0; 4096];
            while stream.read(&mut buffer).await.is_ok_and(|count| count > 0) {
                stream.write_all(ok(&chosen).as_bytes()).await.unwrap();
            }
        }
    })
    .await
}

pub(super) fn tls(peer: &Peer, host: &str, spec: TlsSpec, http2: bool) -> Arc<Destination> {
    destination(host, peer.port, |parts| {
        parts.scheme = Scheme::Https;
        parts.tls = Arc::new(TlsSettings::new(&spec).unwrap());
        parts.http2 = http2;
    })
}

pub(super) fn resolving(name: &str) -> Upstream {
    let hosts = [(
        name.to_owned(),
        vec!["127.0.0.1".parse::<IpAddr>().unwrap()],
    )]
    .into();
    Upstream::new(UpstreamSettings {
        hosts,
        ..Default::default()
    })
}

#[test]
fn a_certificate_is_believed_for_its_name_and_its_authority() {
    let check = |server_name: &str, signed: bool, change: fn(&mut TlsSpec), expect: bool| {
        let server_name = server_name.to_owned();
        on_worker(async move {
            let authority = authority();
            let config = server(&server_name, signed.then_some(&authority), &["http/1.1"]);
            let peer = tls_peer(config).await;
            let mut spec = TlsSpec {
                roots: Roots::Only(authority.pem()),
                ..TlsSpec::default()
            };
            change(&mut spec);
            if let Roots::PlatformAnd(pem) = &mut spec.roots {
                *pem = authority.pem();
            }
            let destination = tls(&peer, "target.test", spec.clone(), false);
            let outcome = match get(&resolving("target.test"), &destination).await {
                Ok(mut answer) => read(&mut answer.body).await.0,
                Err(failure) => {
                    assert_eq!(failure.kind.code(), Some("upstream-tls"));
                    name(&failure)
                }
            };
            let expect = if expect {
                "http/1.1"
            } else {
                "tls, never carried out"
            };
            assert_eq!(outcome, expect, "{server_name} {signed} {spec:?}");
        });
    };
    check("target.test", true, |_| {}, true);
    check(
        "target.test",
        true,
        |spec| spec.roots = Roots::PlatformAnd(String::new()),
        true,
    );
    check("other.test", true, |_| {}, false);
    check(
        "other.test",
        true,
        |spec| spec.server_name = Some("other.test".into()),
        true,
    );
    check(
        "target.test",
        true,
        |spec| spec.server_name = Some("other.test".into()),
        false,
    );
    check("target.test", false, |_| {}, false);
    check(
        "target.test",
        false,
        |spec| spec.roots = Roots::Unchecked,
        true,
    );
    check(
        "other.test",
        false,
        |spec| spec.roots = Roots::Unchecked,
        true,
    );
    check(
        "target.test",
        true,
        |spec| spec.min_version = MinVersion::Tls13,
        true,
    );
}

#[test]
fn the_platforms_authorities_do_not_vouch_for_a_stranger() {
    on_worker(async {
        // Where the machine has no authorities there is nothing to try.
        let Ok(settings) = TlsSettings::new(&TlsSpec::default()) else {
            return;
        };
        let peer = tls_peer(server("target.test", Some(&authority()), &[])).await;
        let destination = destination("target.test", peer.port, |parts| {
            parts.scheme = Scheme::Https;
            parts.tls = Arc::new(settings);
        });
        let failure = get(&resolving("target.test"), &destination)
            .await
            .unwrap_err();
        assert_eq!(name(&failure), "tls, never carried out");
    });
}

#[test]
fn http2_is_spoken_only_where_both_sides_want_it() {
    let check = |offered: &'static [&'static str], allowed: bool, expect: &'static str| {
        on_worker(async move {
            let peer = tls_peer(server("target.test", None, offered)).await;
            let spec = TlsSpec {
                roots: Roots::Unchecked,
                ..TlsSpec::default()
            };
            let destination = tls(&peer, "target.test", spec, allowed);
            let text = get_text(&resolving("target.test"), &destination).await.0;
            assert_eq!(text, expect, "{offered:?} {allowed}");
        });
    };
    check(&["h2", "http/1.1"], false, "http/1.1");
    check(&["http/1.1"], true, "http/1.1");
    check(&[], true, "none");
}

#[test]
fn connections_do_not_cross_tls_identities() {
    on_worker(async {
        let peer = tls_peer(server("target.test", None, &[])).await;
        let upstream = resolving("target.test");
        let spec = || TlsSpec {
            roots: Roots::Unchecked,
            ..TlsSpec::default()
        };
        let send = async |spec| {
            get_text(&upstream, &tls(&peer, "target.test", spec, false))
                .await
                .1
        };
        assert!(!send(spec()).await.reused);
        assert!(send(spec()).await.reused);
        let named = TlsSpec {
            server_name: Some("target.test".to_owned()),
            ..spec()
        };
        assert!(!send(named).await.reused);
        assert!(
            !send(TlsSpec {
                min_version: MinVersion::Tls13,
                ..spec()
            })
            .await
            .reused
        );
        // The strict identity is not served by the connection of the lax one: it fails.
        let pem = authority().pem();
        let strict = tls(
            &peer,
            "target.test",
            TlsSpec {
                roots: Roots::Only(pem),
                ..spec()
            },
            false,
        );
        assert!(get(&upstream, &strict).await.is_err());
    });
}

#[test]
fn settings_that_cannot_work_are_refused_when_they_are_built() {
    let check = |spec: TlsSpec, expect: fn(&TlsSettingsError) -> bool| {
        let error = TlsSettings::new(&spec).unwrap_err();
        assert!(expect(&error), "{error}");
    };
    let roots = |pem: &str| TlsSpec {
        roots: Roots::Only(pem.to_owned()),
        ..TlsSpec::default()
    };
    let certificates =
        |error: &TlsSettingsError| matches!(error, TlsSettingsError::Certificates(_));
    check(roots(""), certificates);
    check(roots("no PEM at all"), certificates);
    check(
        roots("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
        certificates,
    );
    let named = TlsSpec {
        roots: Roots::Unchecked,
        server_name: Some("a b".to_owned()),
        ..TlsSpec::default()
    };
    check(named, |error| {
        matches!(error, TlsSettingsError::ServerName(_))
    });
    let cache = TlsCache::default();
    let spec = TlsSpec {
        roots: Roots::Unchecked,
        ..TlsSpec::default()
    };
    let (first, second) = (cache.get(&spec).unwrap(), cache.get(&spec).unwrap());
    assert!(Arc::ptr_eq(&first, &second), "equal settings are one value");
}
