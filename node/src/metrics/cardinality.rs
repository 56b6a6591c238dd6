//! Whatever callers send, metrics keep their size.

use proto::attempt::Attempt;
use proto::exposition::text::Form;
use proto::hosts::Origin;
use proto::outcome::Code;
use proto::target::BaseUrl;

use super::{Ending, MethodName, Metrics};
use crate::actor::STAGES;
use crate::limits::Stats;

/// Most bytes of the text form with all series that callers can make, and those of the most
/// proxies.
const CALLERS_BYTES_MAX: usize = 500_000;

fn size(metrics: &Metrics) -> (usize, usize) {
    let families = metrics.families(&Stats::default());
    let points = families.iter().map(|family| family.points.len()).sum();
    (points, families.text(Form::Prometheus).len())
}

/// A request whose method, status and code no other has, as far as there are so many.
fn send(metrics: &Metrics, n: u32) {
    let method = MethodName::of(&format!("METHOD{n}"));
    let known = MethodName::of(["GET", "POST", "PUT", "DELETE"][n as usize % 4]);
    let status = Some((100 + n % 900) as u16);
    let code = Code::ALL[n as usize % Code::ALL.len()];
    let ending = Ending {
        method: if n.is_multiple_of(2) { method } else { known },
        status,
        upstream_status: None,
        code,
    };
    metrics.request_ended(&ending, u64::from(n));
    metrics.stages_left(&[n; STAGES]);
    metrics.responded(n.into());
    metrics.proxy(&format!("prx_{n}")).ended(status);
    metrics.listener_refused(code);
}

#[test]
fn a_million_of_everything_is_as_large_as_some_thousands() {
    let metrics = Metrics::default();
    for n in 0..10_000 {
        send(&metrics, n);
    }
    let (points, bytes) = size(&metrics);
    for n in 0..1_000_000 {
        send(&metrics, n);
    }
    let (points_after, bytes_after) = size(&metrics);
    // Statuses of the proxies that are held change with who came last; digits of values grow.
    assert!(points_after <= points + 10, "{points} {points_after}");
    assert!(bytes_after < CALLERS_BYTES_MAX, "{bytes} {bytes_after}");
    assert!(bytes_after < bytes + bytes / 2, "{bytes} {bytes_after}");
}

fn attempt(status: u16) -> Attempt {
    Attempt {
        started_us: 0,
        connect_us: 1,
        wait_us: 1,
        reused: false,
        status: Some(status),
        failure: None,
    }
}

/// Hosts are those of targets; many of them, each with every status, have a bound as well.
#[test]
fn many_hosts_have_the_series_of_a_thousand() {
    let metrics = Metrics::default();
    let method = MethodName::of("GET");
    let base = BaseUrl::parse("https://host.example").unwrap().origin;
    let mut held = Vec::new();
    for n in 0..20_000_u32 {
        let host = format!("h{n}.example");
        let origin = Origin {
            host,
            ..base.clone()
        };
        let durations = metrics.address(&origin);
        durations.observe(method, &attempt((200 + n % 400) as u16));
        if n < 1_000 {
            held.push(durations);
        }
    }
    for durations in held.iter().take(10) {
        for status in 100..1_000 {
            durations.observe(method, &attempt(status));
        }
    }
    let families = metrics.families(&Stats::default());
    let attempts = families
        .iter()
        .find(|family| family.name == "http_client_request_duration_seconds");
    let points = attempts.unwrap().points.len();
    // One each, 17 of those that answered all kinds, and 17 that the rest shares.
    assert_eq!(points, 990 + 10 * 17 + 17);
}
