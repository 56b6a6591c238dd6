//! A drawn token: sent at the instant of the first write, or put back.

use std::sync::Arc;

use super::cell::Generation;
use super::meter::Meter;

#[derive(Clone, Copy, Debug)]
struct Place {
    cell: u8,
    generation: Generation,
}

/// A drawn token. Dropping it puts it back, if its part still stands.
#[derive(Debug)]
pub struct Token {
    meter: Arc<Meter>,
    /// `None` for a meter that only observes.
    place: Option<Place>,
}

/// Proof that a token was spent.
#[derive(Debug, PartialEq, Eq)]
pub struct Sent(());

impl Sent {
    /// For a request without meters.
    pub(super) fn nothing() -> Self {
        Self(())
    }
}

/// The token's part is over: draw anew, or answer 429.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the token's part is over; draw anew")]
pub struct Expired;

impl Token {
    /// Of a cell.
    pub(super) fn drawn(meter: Arc<Meter>, cell: usize, generation: Generation) -> Self {
        let place = Some(Place {
            cell: cell as u8,
            generation,
        });
        Self { meter, place }
    }

    /// Of a meter that only observes.
    pub(super) fn free(meter: Arc<Meter>) -> Self {
        Self { meter, place: None }
    }

    /// Spends the token at this instant: call it in the same poll as the first write, with the
    /// clock read right before.
    ///
    /// # Errors
    /// [`Expired`] when its part has ended; nothing may be sent on it.
    pub fn send(mut self, now_ns: u64) -> Result<Sent, Expired> {
        let Some(place) = self.place.take() else {
            return Ok(Sent(()));
        };
        let cell = self
            .meter
            .cells
            .get(usize::from(place.cell))
            .ok_or(Expired)?;
        if cell.send(place.generation, now_ns) {
            Ok(Sent(()))
        } else {
            Err(Expired)
        }
    }

    /// Whether [`Token::send`] would succeed now.
    pub fn is_live(&self, now_ns: u64) -> bool {
        let Some(place) = self.place else { return true };
        let cell = self.meter.cells.get(usize::from(place.cell));
        cell.is_some_and(|cell| cell.is_open(place.generation, now_ns))
    }

    /// The meter that it was drawn from.
    pub fn meter(&self) -> &Arc<Meter> {
        &self.meter
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        if let Some(place) = self.place.take()
            && let Some(cell) = self.meter.cells.get(usize::from(place.cell))
        {
            cell.put_back(place.generation);
        }
    }
}
