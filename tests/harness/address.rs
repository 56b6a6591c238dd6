//! Addresses at which something will listen, or listen again, chosen before it starts.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::{Mutex, PoisonError};

/// Below these ports there are those of well-known services.
const FIRST: u16 = 10_000;
/// Where Linux begins with the ports that it chooses itself, unless it is told otherwise.
const EPHEMERAL: u16 = 32_768;
const RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// What this process has been given. A UDP socket at the same port keeps it from other processes
/// of tests and leaves TCP free.
static TAKEN: Mutex<Vec<UdpSocket>> = Mutex::new(Vec::new());

/// An address of the loopback interface that belongs to the caller until the process ends.
///
/// A port that the system chose and that was given up may be chosen again by it, for a listener or
/// for a connection of anybody. This one is outside of what it chooses from.
///
/// # Panics
/// Without a free port.
pub fn reserved() -> SocketAddr {
    let range = std::fs::read_to_string(RANGE).unwrap_or_default();
    let first = range.split_whitespace().next();
    let end = first.and_then(|first| first.parse().ok());
    let ports = FIRST..end.unwrap_or(EPHEMERAL);
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    for port in ports.clone() {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let Ok(kept) = UdpSocket::bind(address) else {
            continue;
        };
        if TcpListener::bind(address).is_ok() {
            taken.push(kept);
            return address;
        }
    }
    panic!("no port of {ports:?} is free");
}
