//! The gate before each attempt: what is counted there is what is sent.

use std::pin::Pin;

/// Why a gate does not let an attempt go at this instant.
pub enum Hold<G> {
    /// It must not go.
    Refused(G),
    /// Not before this has ended; then the gate is asked again, or the attempt is refused.
    Until(Pin<Box<dyn Future<Output = Result<(), G>>>>),
}

/// Waits at the gate until it lets an attempt pass.
pub(super) async fn pass<G>(
    gate: &mut dyn FnMut(&mut u32) -> Result<(), Hold<G>>,
    attempts: &mut u32,
) -> Result<(), G> {
    while let Err(hold) = gate(attempts) {
        match hold {
            Hold::Refused(refusal) => return Err(refusal),
            Hold::Until(ready) => ready.await?,
        }
    }
    Ok(())
}
