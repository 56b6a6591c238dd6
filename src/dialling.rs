//! Lets the control plane ask the dial guard, which is the node's: neither knows of the other.

use std::sync::Arc;

use control::dial_guard::{Asked, DialGuard, Foreseen};
use node::sync::guard::Guard;
use node::upstream::foreseen::{self, BLOCKED, Permits, foresee};
use node::upstream::{Hosts, is_our_address};

/// What is shown of an address that is a name.
const NAME: &str = "is a name: what it resolves to is judged when it is dialled";
/// What is shown of an address where the settings of nodes decide.
const IF_PERMITTED: &str = "is judged when it is dialled, by the `dial_guard.permit` of the node";

/// The guard of the node in this process.
pub fn of(guard: Guard, hosts: Hosts) -> DialGuard {
    Arc::new(move |asked: &Asked<'_>| {
        if !asked.is_here {
            return unknown(asked);
        }
        let policy = guard.policy(asked.org, asked.allow_networks);
        judged(asked, &Permits::Known(&policy), &hosts)
    })
}

/// Those of nodes elsewhere, whose settings are not known here.
pub fn elsewhere() -> DialGuard {
    Arc::new(|asked: &Asked<'_>| unknown(asked))
}

fn unknown(asked: &Asked<'_>) -> Foreseen {
    let permits = Permits::Elsewhere(asked.allow_networks);
    judged(asked, &permits, &Hosts::default())
}

fn judged(asked: &Asked<'_>, permits: &Permits<'_>, hosts: &Hosts) -> Foreseen {
    match foresee(asked.origin, permits, hosts, &is_our_address) {
        foreseen::Foreseen::Passes => Foreseen::Passes,
        foreseen::Foreseen::Refused => Foreseen::Refused(BLOCKED),
        foreseen::Foreseen::Name => Foreseen::AtDialling(NAME),
        foreseen::Foreseen::IfPermitted => Foreseen::AtDialling(IF_PERMITTED),
    }
}
