//! The secrets that this process itself is given: they are overwritten wherever text leaves it that
//! is not an answer, like those of targets.

use std::sync::{Arc, Mutex, PoisonError};

use node::credentials::live::LiveSecrets;
use node::credentials::scrub::Scrub;

/// For as long as the process lives.
static KEPT: Mutex<Vec<Arc<Scrub>>> = Mutex::new(Vec::new());

/// From here on no log line and no panic shows this secret, however it gets there.
pub fn keep(secret: &str) {
    let scrub = Arc::new(Scrub::new([secret], []));
    if scrub.is_empty() {
        return;
    }
    LiveSecrets::of_process().add(None, &scrub);
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    kept.push(scrub);
}

#[cfg(test)]
mod tests {
    use node::credentials::live::Whose;

    use super::*;

    #[test]
    fn what_is_kept_is_overwritten() {
        keep("an-operators-token-77d1");
        keep("short");
        let line = b"GET /x with an-operators-token-77d1, short";
        let clean = LiveSecrets::of_process().overwritten(Whose::Everybodys, line);
        assert_eq!(clean, &b"GET /x with ***********************, short"[..]);
    }
}
