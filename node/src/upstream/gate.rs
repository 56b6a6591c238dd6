//! The gate before each attempt: what is counted there is what is sent.

use std::pin::Pin;

use tokio::time::{Instant, timeout_at};

/// Why a gate does not let an attempt go at this instant.
pub enum Hold<G> {
    /// It must not go.
    Refused(G),
    /// Not before this has ended; then the gate is asked again, or the attempt is refused.
    Until(Pin<Box<dyn Future<Output = Result<(), G>>>>),
}

/// Waits at the gate until it lets an attempt pass. `false`: the time was over before; nothing was
/// counted.
pub(super) async fn pass<G>(
    gate: &mut dyn FnMut(&mut u32) -> Result<(), Hold<G>>,
    attempts: &mut u32,
    due: Option<Instant>,
) -> Result<bool, G> {
    loop {
        if due.is_some_and(|due| Instant::now() >= due) {
            return Ok(false);
        }
        let ready = match gate(attempts) {
            Ok(()) => return Ok(true),
            Err(Hold::Refused(refusal)) => return Err(refusal),
            Err(Hold::Until(ready)) => ready,
        };
        match due {
            None => ready.await?,
            // What comes too late is looked at above.
            Some(due) => timeout_at(due, ready).await.unwrap_or(Ok(()))?,
        }
    }
}
