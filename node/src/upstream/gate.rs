//! The gate before each attempt: what is counted there is what is sent.

use std::pin::Pin;

use tokio::time::{Instant, timeout_at};

use super::head::RequestHead;

/// A gate's leave: the instant for which it has counted the attempt, on CLOCK_BOOTTIME in
/// nanoseconds; none where it counts nothing.
pub type Leave = Option<u64>;

/// Why a gate does not let an attempt go at this instant.
pub enum Hold<G> {
    /// It must not go.
    Refused(G),
    /// Not before this has ended; then the gate is asked again, or the attempt is refused.
    Until(Pin<Box<dyn Future<Output = Result<(), G>>>>),
}

/// Is asked before each attempt, with its number from 1 and what will be sent.
pub type Gate<'g, G> = dyn FnMut(u32, &mut RequestHead) -> Result<Leave, Hold<G>> + 'g;

/// Waits at the gate until it lets an attempt pass. `None`: the time was over before; nothing was
/// counted.
pub(super) async fn pass<G>(
    gate: &mut Gate<'_, G>,
    (attempts, head): (&mut u32, &mut RequestHead),
    due: Option<Instant>,
) -> Result<Option<Leave>, G> {
    loop {
        if due.is_some_and(|due| Instant::now() >= due) {
            return Ok(None);
        }
        let ready = match gate(*attempts + 1, head) {
            Ok(leave) => {
                *attempts += 1;
                return Ok(Some(leave));
            }
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
