//! What tests start: the real binary, upstreams, etcd; all on free ports of the loopback interface,
//! all stopped by process id.
#![allow(dead_code, reason = "each test program uses a part of it")]

pub mod address;
pub mod balancer;
pub mod clickhouse;
pub mod disk;
pub mod etcd;
pub mod etcd_relay;
pub mod folder;
pub mod gateway;
pub mod http;
pub mod metrics;
pub mod otlp;
pub mod packed;
pub mod secrets;
pub mod shifted_clock;
pub mod signals;
pub mod stores;
pub mod tls_relay;
pub mod upstream;

use std::time::{Duration, Instant};

/// Lets this process open as many files as the system allows.
pub fn raise_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    setrlimit(Resource::Nofile, raised).expect("the own limit may be raised to its maximum");
}

/// Waits until `found` gives something.
///
/// # Panics
/// After [`http::SILENCE_MAX`].
pub fn wait_for<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + http::SILENCE_MAX;
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(
            Instant::now() < until,
            "waited for {what} in vain{}",
            http::last_answer()
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}
