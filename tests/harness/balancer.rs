//! A load balancer for TCP: connections go to those behind it in turn, and past one that takes
//! none.

use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// Runs as long as the test program.
pub struct Balancer {
    address: SocketAddr,
    behind: Arc<[Behind]>,
}

struct Behind {
    address: String,
    carried: AtomicUsize,
}

impl Balancer {
    /// Before these addresses.
    pub fn before(addresses: &[String]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let behind = addresses.iter().map(|address| Behind {
            address: address.clone(),
            carried: AtomicUsize::new(0),
        });
        let behind: Arc<[Behind]> = behind.collect();
        let shared = Arc::clone(&behind);
        thread::spawn(move || {
            for (turn, client) in listener.incoming().flatten().enumerate() {
                carry(client, &shared, turn);
            }
        });
        Self { address, behind }
    }

    /// Where clients connect.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// How many connections each has taken.
    pub fn carried(&self) -> Vec<usize> {
        let carried = |behind: &Behind| behind.carried.load(Ordering::Relaxed);
        self.behind.iter().map(carried).collect()
    }
}

/// Carries a connection until one side ends it; closed where nobody takes it.
fn carry(client: TcpStream, behind: &[Behind], turn: usize) {
    let mut places = (0..behind.len()).map(|at| &behind[(turn + at) % behind.len()]);
    let taken = places.find_map(|place| Some((place, TcpStream::connect(&place.address).ok()?)));
    let Some((place, server)) = taken else { return };
    place.carried.fetch_add(1, Ordering::Relaxed);
    let doubled = || Some((client.try_clone().ok()?, server.try_clone().ok()?));
    let Some((to_client, from_server)) = doubled() else {
        return;
    };
    for (mut from, mut to) in [(client, server), (from_server, to_client)] {
        thread::spawn(move || {
            // However it ends, the other side learns of it.
            let _ = std::io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Both);
            let _ = from.shutdown(Shutdown::Both);
        });
    }
}
