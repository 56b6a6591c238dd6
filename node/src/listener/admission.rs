//! How many connections there may be: in all, and from one client.
//!
//! Counted at the accept, over all workers. A connection that finds no place is answered and
//! closed; actix-server's own limit, a little higher, stops the accepting itself when even such
//! answers become too many.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::refusal::Refusal;

/// Places for connections; shared by all workers.
#[derive(Debug)]
pub struct Admission {
    connections_max: usize,
    per_ip_max: Option<usize>,
    open: AtomicUsize,
    refused: AtomicU64,
    fresh: AtomicUsize,
    leaving: AtomicBool,
    // Locked for one map operation per accept and close, never across an await.
    per_ip: Mutex<HashMap<IpAddr, usize>>,
}

/// One connection's place, given back when it goes.
#[derive(Debug)]
pub struct Place {
    admission: Arc<Admission>,
    ip: Option<IpAddr>,
}

/// A connection that has not had a request yet; drop it with the first one.
#[derive(Debug)]
pub struct Fresh(Arc<Admission>);

impl Fresh {
    /// Where it was counted.
    pub fn admission(&self) -> Arc<Admission> {
        Arc::clone(&self.0)
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        self.0.fresh.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Admission {
    /// As many places, of which one address may have only some.
    pub fn new(connections_max: usize, per_ip_max: Option<usize>) -> Self {
        Self {
            connections_max,
            per_ip_max,
            open: AtomicUsize::new(0),
            refused: AtomicU64::new(0),
            fresh: AtomicUsize::new(0),
            leaving: AtomicBool::new(false),
            per_ip: Mutex::default(),
        }
    }

    /// Connections that have a place.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Connections that found none, since the start.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Counts a connection that was accepted and has not had a request yet.
    pub fn enter(self: &Arc<Self>) -> Fresh {
        self.fresh.fetch_add(1, Ordering::Relaxed);
        Fresh(Arc::clone(self))
    }

    /// From here on every answer is the last of its connection.
    pub fn leave(&self) {
        self.leaving.store(true, Ordering::Relaxed);
    }

    /// Whether every answer is the last of its connection.
    pub fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Relaxed)
    }

    /// Connections that have not had a request yet.
    pub fn fresh(&self) -> usize {
        self.fresh.load(Ordering::Relaxed)
    }

    /// A place for a connection from `ip`.
    ///
    /// # Errors
    /// [`Refusal::Connections`] or [`Refusal::ConnectionsPerIp`].
    pub fn admit(self: &Arc<Self>, ip: Option<IpAddr>) -> Result<Place, Refusal> {
        let admitted = self.try_admit(ip);
        if admitted.is_err() {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        admitted
    }

    fn try_admit(self: &Arc<Self>, ip: Option<IpAddr>) -> Result<Place, Refusal> {
        // The place exists before it is known to be free, so that every way out gives it back.
        let mut place = Place {
            admission: Arc::clone(self),
            ip: None,
        };
        if self.open.fetch_add(1, Ordering::Relaxed) >= self.connections_max {
            return Err(Refusal::Connections);
        }
        if let (Some(max), Some(ip)) = (self.per_ip_max, ip.map(client)) {
            let mut per_ip = self.per_ip.lock().unwrap_or_else(PoisonError::into_inner);
            let count = per_ip.entry(ip).or_default();
            if *count >= max {
                drop(per_ip);
                return Err(Refusal::ConnectionsPerIp);
            }
            *count += 1;
            place.ip = Some(ip);
        }
        Ok(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.admission.open.fetch_sub(1, Ordering::Relaxed);
        if let Some(ip) = self.ip {
            let mut per_ip = self
                .admission
                .per_ip
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if let Some(count) = per_ip.get_mut(&ip) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    per_ip.remove(&ip);
                }
            }
        }
    }
}

/// Who counts as one client: an IPv4 address, also in its IPv6 form, or an IPv6 /64, of which a
/// client has all addresses.
fn client(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & (u128::MAX << 64)).into(),
        ip => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn places_are_counted_and_given_back() {
        let admission = Arc::new(Admission::new(2, None));
        let first = admission.admit(ip("192.0.2.1")).unwrap();
        let _second = admission.admit(ip("192.0.2.1")).unwrap();
        assert_eq!(admission.admit(None).unwrap_err(), Refusal::Connections);
        assert_eq!((admission.open(), admission.refused()), (2, 1));
        drop(first);
        assert_eq!(admission.open(), 1);
        admission.admit(None).unwrap();
        assert_eq!(admission.open(), 1);
    }

    #[test]
    fn a_client_has_its_share() {
        let admission = Arc::new(Admission::new(100, Some(1)));
        for (first, second, same) in [
            ("192.0.2.1", "192.0.2.1", true),
            ("192.0.2.1", "192.0.2.2", false),
            ("192.0.2.1", "::ffff:192.0.2.1", true),
            ("2001:db8::1", "2001:db8::2", true),
            ("2001:db8::1", "2001:db8:0:1::1", false),
        ] {
            let held = admission.admit(ip(first)).unwrap();
            let refused = admission.admit(ip(second)).err();
            assert_eq!(
                refused,
                same.then_some(Refusal::ConnectionsPerIp),
                "{first} {second}"
            );
            drop(held);
            admission.admit(ip(second)).unwrap();
        }
        assert_eq!(admission.open(), 0);
        assert!(
            admission.per_ip.lock().unwrap().is_empty(),
            "no address is kept"
        );
    }
}
