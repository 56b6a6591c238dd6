//! Opens connections to targets: resolve, judge, connect, TLS. The only file of the node that
//! opens upstream sockets, so that there is no way round the guard.
//!
//! *Every* address of the answer is judged, and one refused address refuses the whole name. A name
//! that answers with a public and an internal address is a rebinding attack or a mistake; taking
//! the public one would leave the attacker to repeat the question until the other one is used.
//! What is connected to is the judged value itself ([`AllowedAddr`]), never the name again.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;

use proto::hosts::Scheme;
use rustls_pki_types::ServerName;

use super::address::{AllowedAddr, judge};
use super::destination::{Destination, Host};
use super::error::FailureKind;
use super::resolve::Resolver;
use super::transport::Transport;

/// Addresses of one name that are tried before the dial fails.
const ATTEMPTS_MAX: usize = 8;

/// The least time an address is given while others are left, so that a long list of dead addresses
/// does not leave each too little to answer at all.
const SHARE_MIN: Duration = Duration::from_millis(250);

/// Probes keep the way through address translators open during a long silent call, and find a
/// target that vanished without a word: within a minute, where the kernel's own values would take
/// eleven.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(30);
/// Between two probes of which the first was not answered.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// Probes without an answer after which the connection is lost.
const KEEPALIVE_PROBES: u32 = 3;

/// Connects to a destination before `deadline`.
pub(super) async fn dial(
    destination: &Destination,
    resolver: &Resolver,
    deadline: Instant,
) -> Result<Transport, FailureKind> {
    let addresses = timeout_at(deadline, resolve_and_judge(destination, resolver))
        .await
        .map_err(|_| FailureKind::ConnectTimeout)??;
    let (stream, remote) = connect_first(&addresses, deadline).await?;
    // Failing to set an option is no reason to fail the request.
    let _ = stream.set_nodelay(true);
    let _ = probe_while_silent(&SockRef::from(&stream));
    match destination.parts.scheme {
        Scheme::Http => Ok(Transport::plain(stream, remote)),
        Scheme::Https => timeout_at(deadline, wrap_tls(destination, stream, remote))
            .await
            .map_err(|_| FailureKind::ConnectTimeout)?,
    }
}

/// Has the kernel ask a silent connection's other end whether it is still there.
fn probe_while_silent(socket: &SockRef<'_>) -> std::io::Result<()> {
    let probes = TcpKeepalive::new()
        .with_time(KEEPALIVE_AFTER)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    socket.set_tcp_keepalive(&probes)
}

async fn resolve_and_judge(
    destination: &Destination,
    resolver: &Resolver,
) -> Result<Vec<AllowedAddr>, FailureKind> {
    let parts = &destination.parts;
    let addresses = resolver
        .resolve(&parts.host)
        .await
        .map_err(FailureKind::Resolve)?;
    addresses
        .into_iter()
        .map(|ip| {
            let address = SocketAddr::new(ip, parts.port);
            judge(address, &parts.guard, &is_our_address)
                .map_err(|reason| FailureKind::Refused { address, reason })
        })
        .collect()
}

/// Addresses that nobody has: documentation's (RFC 5737, RFC 3849).
const NOBODYS_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1));
const NOBODYS_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));

/// Whether an address belongs to this machine: only then can something be bound to it, unless the
/// system lets anything be bound (`ip_nonlocal_bind`, which gateways with moving addresses set).
///
/// Asked of the system each time, because interfaces come and go. Nothing is sent.
pub fn is_our_address(ip: IpAddr) -> bool {
    let nobodys = match ip {
        IpAddr::V4(_) => NOBODYS_V4,
        IpAddr::V6(_) => NOBODYS_V6,
    };
    is_bindable(ip) && (!is_bindable(nobodys) || leads_back(ip))
}

fn is_bindable(ip: IpAddr) -> bool {
    UdpSocket::bind((ip, 0)).is_ok()
}

/// Whether what is sent to an address would be sent from it: the system's routes lead back to this
/// machine.
fn leads_back(ip: IpAddr) -> bool {
    let any: IpAddr = match ip {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // A datagram socket's connection sends nothing; it chooses a route. The port may be any.
    let source = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect((ip, 9))?;
        socket.local_addr()
    });
    let is_itself = source.is_ok_and(|source| source.ip() == ip);
    is_itself || ip.is_loopback() || ip.is_unspecified()
}

/// Tries the addresses in order; each gets its share of what time is left.
async fn connect_first(
    addresses: &[AllowedAddr],
    deadline: Instant,
) -> Result<(TcpStream, SocketAddr), FailureKind> {
    let count = addresses.len().min(ATTEMPTS_MAX);
    let mut outcome = Err(FailureKind::ConnectTimeout);
    for (index, address) in addresses.iter().take(count).enumerate() {
        let now = Instant::now();
        let share = share(
            deadline.saturating_duration_since(now),
            count.saturating_sub(index),
        );
        match timeout_at(now + share, TcpStream::connect(address.socket())).await {
            Ok(Ok(stream)) => return Ok((stream, address.socket())),
            Ok(Err(error)) => outcome = Err(FailureKind::Connect(error)),
            Err(_) => outcome = Err(FailureKind::ConnectTimeout),
        }
    }
    outcome
}

/// The part of `left` for the next of `addresses_left` addresses.
fn share(left: Duration, addresses_left: usize) -> Duration {
    let divisor = u32::try_from(addresses_left).unwrap_or(u32::MAX).max(1);
    (left / divisor).max(SHARE_MIN).min(left)
}

async fn wrap_tls(
    destination: &Destination,
    stream: TcpStream,
    remote: SocketAddr,
) -> Result<Transport, FailureKind> {
    let parts = &destination.parts;
    let name = match (&parts.tls.server_name, &parts.host) {
        (Some(name), _) => name.clone(),
        (None, Host::Literal(ip)) => ServerName::IpAddress((*ip).into()),
        (None, Host::Name(name)) => ServerName::try_from(name.clone())
            .map_err(|error| FailureKind::Tls(std::io::Error::other(error)))?,
    };
    let config = if parts.http2 {
        &parts.tls.http1_or_2
    } else {
        &parts.tls.http1
    };
    TlsConnector::from(config.clone())
        .connect(name, stream)
        .await
        .map(|stream| Transport::tls(stream, remote))
        .map_err(FailureKind::Tls)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_connection_is_lost_within_a_minute() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let socket = SockRef::from(&stream);
        probe_while_silent(&socket).unwrap();
        assert!(socket.keepalive().unwrap());
        let between = socket.tcp_keepalive_interval().unwrap();
        let probing = between * socket.tcp_keepalive_retries().unwrap();
        let lost_after = socket.tcp_keepalive_time().unwrap() + probing;
        assert_eq!(lost_after, Duration::from_secs(60));
    }

    #[test]
    fn an_address_is_ours_where_routes_lead_back_to_it() {
        for (ip, expected) in [
            ("127.0.0.1", true),
            ("127.3.2.1", true),
            ("0.0.0.0", true),
            ("203.0.113.1", false),
            ("8.8.4.4", false),
            ("2001:db8::1", false),
        ] {
            let ip: IpAddr = ip.parse().unwrap();
            assert_eq!(leads_back(ip), expected, "{ip}");
            assert_eq!(is_our_address(ip), expected, "{ip}");
        }
        // Those of the interfaces, as far as a way out tells one.
        let own = UdpSocket::bind("0.0.0.0:0").unwrap();
        if own.connect("8.8.4.4:9").is_ok() {
            let ip = own.local_addr().unwrap().ip();
            assert!(leads_back(ip) && is_our_address(ip), "{ip}");
        }
    }

    #[test]
    fn each_address_gets_its_share_of_the_time_that_is_left() {
        let check = |left_ms, addresses, expect_ms| {
            let share = share(Duration::from_millis(left_ms), addresses);
            assert_eq!(
                share,
                Duration::from_millis(expect_ms),
                "{left_ms} ms, {addresses}"
            );
        };
        check(5000, 1, 5000);
        check(5000, 2, 2500);
        check(5000, 8, 625);
        check(1000, 8, 250); // never less than the least share ...
        check(100, 8, 100); // ... nor more than what is left
        check(100, 0, 100);
        check(0, 3, 0);
    }
}
