//! Drawn tokens of one meter: sent at the instant of the first write, or put back.

use std::sync::Arc;

use proto::record::MeterSpend;

use super::cell::{Charge, Generation};
use super::meter::Meter;

#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    cell: u8,
    generation: Generation,
    amount: u64,
}

/// What a request has drawn from one meter: one token, or as many as it sets aside. Dropping it
/// puts them back, if their part still stands.
#[derive(Debug)]
pub struct Token {
    meter: Arc<Meter>,
    /// `None` for a meter that only observes.
    place: Option<Place>,
    /// Where one part had too few.
    more: Vec<Place>,
}

/// Proof that tokens were spent.
#[derive(Debug, Default)]
pub struct Sent {
    /// What was set aside at meters that count values; nothing elsewhere.
    pub reserved: Vec<Reserved>,
    /// How much was spent of each meter, for the request's record.
    pub spent: Vec<MeterSpend>,
}

/// What is set aside at a meter until the answer says what it has cost.
#[derive(Debug)]
pub struct Reserved {
    meter: Arc<Meter>,
    charges: Vec<Charge>,
}

/// The token's part is over: draw anew, or answer 429.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the token's part is over; draw anew")]
pub struct Expired;

impl Place {
    pub(super) fn new(cell: usize, generation: Generation, amount: u64) -> Self {
        Self {
            cell: cell as u8,
            generation,
            amount,
        }
    }

    pub(super) fn put_back(self, meter: &Meter) {
        if let Some(cell) = meter.cells.get(usize::from(self.cell)) {
            cell.put_back(self.generation, self.amount);
        }
    }

    fn is_live(self, meter: &Meter, now_ns: u64) -> bool {
        let cell = meter.cells.get(usize::from(self.cell));
        cell.is_some_and(|cell| cell.is_open(self.generation, now_ns))
    }

    fn send(self, meter: &Meter, now_ns: u64) -> Result<Charge, Expired> {
        let cell = meter.cells.get(usize::from(self.cell)).ok_or(Expired)?;
        let sent = cell.send(self.generation, self.amount, now_ns);
        sent.ok_or(Expired)
    }
}

impl Token {
    /// Of one cell.
    pub(super) fn drawn(meter: Arc<Meter>, place: Place) -> Self {
        Self {
            meter,
            place: Some(place),
            more: Vec::new(),
        }
    }

    /// Of several.
    pub(super) fn gathered(meter: Arc<Meter>, more: Vec<Place>) -> Self {
        Self {
            meter,
            place: None,
            more,
        }
    }

    /// Of a meter that only observes, or whose limit does not hold now.
    pub(super) fn free(meter: Arc<Meter>) -> Self {
        Self::gathered(meter, Vec::new())
    }

    /// Spends the token at this instant: call it in the same poll as the first write, with the
    /// clock read right before.
    ///
    /// # Errors
    /// [`Expired`] when its part has ended; nothing may be sent on it.
    pub fn send(self, now_ns: u64) -> Result<Sent, Expired> {
        let mut sent = Sent::default();
        self.send_with(now_ns, &mut sent).map(|()| sent)
    }

    /// The same, with what was set aside at other meters.
    pub(super) fn send_with(mut self, now_ns: u64, sent: &mut Sent) -> Result<(), Expired> {
        if !self.is_live(now_ns) {
            return Err(Expired);
        }
        let mut charges = Vec::new();
        let reserves = self.meter.reserves();
        let places = self.place.iter().chain(&self.more);
        let tokens = places
            .map(|place| place.amount)
            .fold(0, u64::saturating_add);
        if tokens > 0
            && let Some(meter) = self.meter.shared_id()
        {
            sent.spent.push(MeterSpend { meter, tokens });
        }
        while let Some(place) = self.more.pop() {
            charges.push(place.send(&self.meter, now_ns)?);
        }
        if let Some(place) = self.place.take() {
            let charge = place.send(&self.meter, now_ns)?;
            if reserves {
                charges.push(charge);
            }
        }
        if reserves {
            let meter = Arc::clone(&self.meter);
            sent.reserved.push(Reserved { meter, charges });
        }
        Ok(())
    }

    /// Whether [`Token::send`] would succeed now.
    pub fn is_live(&self, now_ns: u64) -> bool {
        let mut places = self.place.iter().chain(&self.more);
        places.all(|place| place.is_live(&self.meter, now_ns))
    }

    /// The meter that it was drawn from.
    pub fn meter(&self) -> &Arc<Meter> {
        &self.meter
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        let places = self.place.take().into_iter().chain(self.more.drain(..));
        places.for_each(|place| place.put_back(&self.meter));
    }
}

impl Reserved {
    /// The meter.
    pub fn meter(&self) -> &Arc<Meter> {
        &self.meter
    }

    /// How much it is.
    pub fn amount(&self) -> u64 {
        let amounts = self.charges.iter().map(|charge| charge.amount);
        amounts.fold(0, u64::saturating_add)
    }

    /// The answer has not said what it has cost: what was set aside stays charged.
    pub fn missed(self) {
        self.meter.miss();
    }

    /// The answer says what it has cost: what is missing is charged now, what is left over is given
    /// back where it was charged.
    pub fn settle(self, actual: u64, now_ns: u64) {
        self.meter.learn(actual);
        self.meter.correct(&self.charges, actual, now_ns);
    }
}
