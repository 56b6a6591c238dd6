//! The beginning of a link: TLS, who the other one is, and which protocol both speak.

use std::sync::Arc;
use std::time::Duration;

use proto::wire;
use proto::wire::link::{GREETING_BYTES_MAX, read_frame, write_frame};
use rustls::client::verify_server_name;
use rustls::pki_types::ServerName;
use rustls::server::ParsedCertificate;
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::wire::{PROTOCOL, PeerHello, PeerWelcome, Verdict};
use super::{Identity, Tls};
use crate::limits::Opener;

/// Longest time for a connection, a handshake and a greeting.
const GREETING_MAX: Duration = Duration::from_secs(5);

/// A stream to a peer that has proved who it is.
pub type Stream = tokio_rustls::TlsStream<TcpStream>;

/// Whom a link leads to, and what both speak on it.
#[derive(Clone, Copy, Debug)]
pub struct Spoken {
    /// That start of it.
    pub peer: Opener,
    /// The lower of both protocols.
    pub protocol: u16,
}

/// Dials a node and greets it: the stream if this is now the link of the pair, `None` if the other
/// one will dial.
///
/// # Errors
/// It cannot be reached, is not the node of that name, or sends us away.
pub async fn dial(
    address: &str,
    node: &str,
    me: &Identity,
    tls: &Tls,
) -> std::io::Result<Option<(Stream, Spoken)>> {
    let greeting = async {
        let name = ServerName::try_from(node.to_owned()).map_err(invalid)?;
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        let connector = TlsConnector::from(Arc::clone(&tls.client));
        let mut stream = connector.connect(name, tcp).await?;
        let hello = PeerHello {
            protocol: PROTOCOL,
            node: me.node.clone(),
            region: me.region.clone(),
            incarnation: me.incarnation,
            address: me.address.clone(),
        };
        write_frame(&mut stream, &hello).await?;
        let frame = read_frame(&mut stream, GREETING_BYTES_MAX).await?;
        let frame = frame.ok_or(std::io::ErrorKind::UnexpectedEof)?;
        let welcome: PeerWelcome = wire::decode(&frame).map_err(invalid)?;
        match welcome.verdict {
            Verdict::Linked => {
                let spoken = Spoken {
                    peer: welcome.incarnation,
                    protocol: welcome.protocol.min(PROTOCOL),
                };
                Ok(Some((Stream::from(stream), spoken)))
            }
            Verdict::CallBack => Ok(None),
            Verdict::Refused(why) => Err(std::io::Error::new(
                std::io::ErrorKind::PermissionDenied,
                why,
            )),
        }
    };
    tokio::time::timeout(GREETING_MAX, greeting).await?
}

/// Takes a connection: who dialled, and the stream unless it was only a knock.
///
/// # Errors
/// The caller is no node of our region, or fails on the way.
pub async fn accept(
    tcp: TcpStream,
    me: &Identity,
    tls: &Tls,
) -> std::io::Result<(PeerHello, Option<Stream>)> {
    let greeting = async {
        tcp.set_nodelay(true)?;
        let acceptor = TlsAcceptor::from(Arc::clone(&tls.server));
        let mut stream = acceptor.accept(tcp).await?;
        let frame = read_frame(&mut stream, GREETING_BYTES_MAX).await?;
        let frame = frame.ok_or(std::io::ErrorKind::UnexpectedEof)?;
        let hello: PeerHello = wire::decode(&frame).map_err(invalid)?;
        let certificates = stream.get_ref().1.peer_certificates();
        let verdict = judge(&hello, certificates.and_then(|chain| chain.first()), me);
        let welcome = PeerWelcome {
            protocol: PROTOCOL,
            incarnation: me.incarnation,
            verdict: verdict.clone(),
        };
        write_frame(&mut stream, &welcome).await?;
        match verdict {
            Verdict::Linked => Ok((hello, Some(Stream::from(stream)))),
            Verdict::CallBack => Ok((hello, None)),
            Verdict::Refused(why) => Err(invalid(why)),
        }
    };
    tokio::time::timeout(GREETING_MAX, greeting).await?
}

fn judge(
    hello: &PeerHello,
    certificate: Option<&rustls::pki_types::CertificateDer<'_>>,
    me: &Identity,
) -> Verdict {
    let parsed = certificate.and_then(|first| ParsedCertificate::try_from(first).ok());
    let name = ServerName::try_from(hello.node.clone());
    let named = match (parsed, name) {
        (Some(certificate), Ok(name)) => verify_server_name(&certificate, &name).is_ok(),
        _ => false,
    };
    if !named {
        return Verdict::Refused(format!("the certificate does not name `{}`", hello.node));
    }
    if hello.protocol == 0 {
        return Verdict::Refused("protocol 0 is not known".into());
    }
    if hello.region != me.region {
        return Verdict::Refused(format!(
            "it is a node of region {}, not {}",
            hello.region, me.region
        ));
    }
    if hello.node == me.node {
        return Verdict::Refused(format!(
            "it is named {} as this node is: give each its own `node_name`",
            me.node
        ));
    }
    match dials(&hello.node, &me.node) {
        true => Verdict::Linked,
        false => Verdict::CallBack,
    }
}

/// Whether of a pair this node dials the other: so there is one connection.
pub fn dials(this: &str, other: &str) -> bool {
    this < other
}

fn invalid(error: impl ToString) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidData, error.to_string())
}
