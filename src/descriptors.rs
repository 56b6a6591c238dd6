//! The bound on open files of this process, of which each connection needs one.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::serve::Mode;

/// Raises the bound as far as the system allows, and says so where the gateway's own bound on
/// connections lies above it. Most systems start programs with 1,024 and allow far more.
pub fn raise(connections_max: usize, mode: Mode) {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    let allowed = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => raised.current,
        Err(_) => limit.current,
    };
    let Some(allowed) = allowed else {
        return;
    };
    // One for the caller, one for the target.
    let needed = (connections_max as u64).saturating_mul(2);
    if needed > allowed && mode != Mode::Dev {
        tracing::warn!(
            "this process may open {allowed} files; `gateway.connections_max` of \
             {connections_max} needs up to {needed}: raise the limit (LimitNOFILE, ulimit -n) or \
             lower the setting"
        );
    }
}
