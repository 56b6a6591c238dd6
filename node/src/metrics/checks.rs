//! Health checks by endpoint.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use proto::exposition::Families;

use crate::health_checks::Checked;

/// Target and endpoint.
type Key = (Box<str>, Arc<str>);

/// The endpoints that are checked; their number has a bound where they are made.
#[derive(Debug, Default)]
pub(super) struct Checks(Mutex<BTreeMap<Key, Weak<Checked>>>);

impl Checks {
    /// An endpoint is checked for as long as it is held.
    pub(super) fn add(&self, checked: &Arc<Checked>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, known| known.strong_count() > 0);
        let key = (checked.target.to_string().into(), checked.label.clone());
        known.insert(key, Arc::downgrade(checked));
    }

    /// Those that are checked.
    pub(super) fn all(&self) -> Vec<Arc<Checked>> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.values().filter_map(Weak::upgrade).collect()
    }

    pub(super) fn collect(&self, out: &mut Families) {
        let all = self.all();
        let labels = |checked: &Checked| {
            [
                ("target", checked.target.to_string().into()),
                ("endpoint", checked.label.to_string().into()),
            ]
        };
        let name = "requestrocket_endpoint_checks_total";
        let help = "Health checks of endpoints, by outcome.";
        let family = out.counter(name, help);
        for checked in &all {
            let (passed, failed) = checked.counts();
            for (outcome, count) in [("passed", passed), ("failed", failed)] {
                let [target, endpoint] = labels(checked);
                family.with([target, endpoint, ("outcome", outcome.into())], count);
            }
        }
        let name = "requestrocket_endpoint_failing";
        let help = "Whether an endpoint is passed over because it fails its health checks.";
        let family = out.gauge(name, help);
        for checked in &all {
            family.with(labels(checked), u64::from(checked.fails()));
        }
    }
}
