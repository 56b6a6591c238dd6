//! Durations of attempts by the address that they went to, with a bound on the addresses.

use std::sync::Arc;

use proto::attempt::Attempt;
use proto::exposition::{Exemplar, Families, Label};
use proto::hosts::Origin;

use super::endings::{AttemptDurations, MethodName, OVERFLOW};
use super::held::Held;

/// Most addresses that have series of their own.
const ADDRESSES_MAX: usize = 1_000;

/// The durations of one address; clones share them.
#[derive(Clone, Debug, Default)]
pub struct AddressDurations(Arc<AttemptDurations>);

impl AddressDurations {
    /// An attempt of a request with this method has ended.
    pub fn observe(&self, method: MethodName, attempt: &Attempt) {
        self.0.observe(method, attempt);
    }

    /// Shows an attempt whose trace a collector has taken.
    pub fn exemplify(&self, method: MethodName, attempt: &Attempt, exemplar: Exemplar) {
        self.0.exemplify(method, attempt, exemplar);
    }
}

/// Host and port.
type Address = (Box<str>, u16);

/// The durations of all addresses.
#[derive(Debug, Default)]
pub(super) struct Addresses {
    known: Held<Address, AttemptDurations>,
    overflow: AddressDurations,
}

impl Addresses {
    /// The durations of an address.
    pub(super) fn of(&self, origin: &Origin) -> AddressDurations {
        let address = (Box::from(&*origin.host), origin.port);
        let found = self.known.of(address, ADDRESSES_MAX);
        found.map_or_else(|| self.overflow.clone(), AddressDurations)
    }

    /// Another configuration is in effect.
    pub(super) fn configured(&self) {
        self.known.configured();
    }

    pub(super) fn collect(&self, out: &mut Families) {
        let name = "http_client_request_duration_seconds";
        let family = out.histogram(name, "Duration of attempts until a target's answer began.");
        for ((host, port), durations) in self.known.all().iter() {
            let host: Label = ("server.address", host.to_string().into());
            let address = [host, ("server.port", (*port).into())];
            durations.add_to(family, &address);
        }
        self.overflow.0.add_to(family, &[OVERFLOW]);
    }
}

#[cfg(test)]
mod tests {
    use proto::exposition::text::Form;
    use proto::target::BaseUrl;

    use super::*;

    fn origin(host: &str) -> Origin {
        BaseUrl::parse(&format!("https://{host}")).unwrap().origin
    }

    #[test]
    fn attempts_are_told_apart_by_address_up_to_a_bound() {
        let addresses = Addresses::default();
        let attempt = Attempt {
            started_us: 0,
            connect_us: 2_000,
            wait_us: 500,
            reused: true,
            status: Some(404),
            failure: None,
        };
        let method = MethodName::of("GET");
        let held: Vec<_> = (0..2 * ADDRESSES_MAX)
            .map(|n| addresses.of(&origin(&format!("h{n}.example"))))
            .collect();
        for durations in &held {
            durations.observe(method, &attempt);
        }
        let mut families = Families::default();
        addresses.collect(&mut families);
        let text = families.text(Form::Prometheus);
        let line = "http_client_request_duration_seconds_bucket{http_request_method=\"GET\",\
                    http_response_status_code=\"404\",server_address=\"h7.example\",\
                    server_port=\"443\",error_type=\"404\",le=\"0.0025\"} 1";
        assert!(text.lines().any(|found| found == line), "{line}");
        assert_eq!(
            families.iter().next().unwrap().points.len(),
            ADDRESSES_MAX + 1
        );
        assert!(
            text.contains("otel_metric_overflow=\"true\",error_type=\"404\"} 1000"),
            "{text}"
        );
    }
}
