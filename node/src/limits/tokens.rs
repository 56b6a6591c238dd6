//! Several meters of one request: drawn slowest window first, all or none.

use std::sync::Arc;

use proto::meter::Limit;

use super::meter::{Draw, Meter};
use super::refusal::{Mode, Refusal};
use super::token::{Expired, Sent, Token};
use super::waiting::{OnHold, Waiting};

/// Meters that can apply to one request.
pub const METERS_MAX: usize = proto::meter::METERS_PER_REQUEST_MAX;

/// More meters than a request can draw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} meters apply to one request, at most {METERS_MAX} may")]
pub struct TooManyMeters(pub usize);

/// The meters of a request, in the order in which they are drawn; made once per configuration.
#[derive(Clone, Debug, Default)]
pub struct MeterSet {
    meters: Arc<[Arc<Meter>]>,
    /// What each sets aside at least; one element per meter, or none where it does not matter.
    least: Arc<[u64]>,
    /// Which of them further attempts of the request spend too, one bit each.
    repeats: u8,
}

/// What a draw from several meters gives.
#[derive(Debug)]
pub enum DrawAll {
    /// A token of each.
    Drawn(Tokens),
    /// The broker was asked for one of them.
    Wait(Box<WaitingAll>),
    /// One of them refuses; the tokens of the others went back.
    Refused(Box<Refusal>),
}

impl MeterSet {
    /// Orders meters by their slowest window, the slowest first; a meter named twice counts once.
    ///
    /// # Errors
    /// [`TooManyMeters`] above [`METERS_MAX`].
    pub fn new(meters: &[Arc<Meter>]) -> Result<Self, TooManyMeters> {
        let meters = meters.iter().map(|meter| (Arc::clone(meter), true));
        Self::repeating(meters.collect())
    }

    /// The same, of which further attempts of the request spend only those that say so.
    ///
    /// # Errors
    /// As [`MeterSet::new`].
    pub fn repeating(mut meters: Vec<(Arc<Meter>, bool)>) -> Result<Self, TooManyMeters> {
        meters.sort_by_key(|(meter, _)| std::cmp::Reverse(meter.slowest()));
        Self::ordered(meters)
    }

    /// The same of meters that come the slowest first.
    ///
    /// # Errors
    /// As [`MeterSet::new`].
    pub fn ordered(meters: Vec<(Arc<Meter>, bool)>) -> Result<Self, TooManyMeters> {
        if meters.is_empty() {
            return Ok(Self::default());
        }
        let meters = once(meters);
        if meters.len() > METERS_MAX {
            return Err(TooManyMeters(meters.len()));
        }
        let bits = meters.iter().enumerate();
        let bits = bits.map(|(at, (_, repeats))| u8::from(*repeats) << at);
        Ok(Self {
            repeats: bits.fold(0, |all, bit| all | bit),
            meters: meters.into_iter().map(|(meter, _)| meter).collect(),
            least: Arc::default(),
        })
    }

    /// Those that a further attempt of the request spends.
    #[must_use]
    pub fn repeated(&self) -> Self {
        let is_repeated = |at: &usize| self.repeats & (1 << at) != 0;
        let places = || (0..self.meters.len()).filter(is_repeated);
        Self {
            meters: places()
                .filter_map(|at| self.meters.get(at).cloned())
                .collect(),
            least: places()
                .filter_map(|at| self.least.get(at).copied())
                .collect(),
            repeats: u8::MAX,
        }
    }

    /// The meters, slowest first.
    pub fn meters(&self) -> &[Arc<Meter>] {
        &self.meters
    }

    /// The same meters, of which each sets aside at least what `least` says.
    #[must_use]
    pub fn reserving(&self, least: impl Fn(&Arc<Meter>) -> u64) -> Self {
        Self {
            least: self.meters.iter().map(least).collect(),
            ..self.clone()
        }
    }

    /// Draws what a request spends of each. Never blocks.
    pub fn draw(&self, now_ns: u64) -> DrawAll {
        self.draw_on(Tokens::default(), 0, now_ns)
    }

    /// The same for a request that had its turn at all of them, and whose tokens ended before it
    /// could be sent: it goes before those who are held.
    pub fn draw_again(&self, now_ns: u64) -> DrawAll {
        let tokens = Tokens {
            had: u8::MAX,
            ..Tokens::default()
        };
        self.draw_on(tokens, 0, now_ns)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.meters.is_empty()
    }

    /// A meter that is nearly used up, and its limit.
    pub fn near(&self) -> Option<(&Arc<Meter>, Limit)> {
        self.meters
            .iter()
            .find_map(|meter| Some((meter, meter.near()?)))
    }

    /// A meter that lets requests pass without its owner and the store, and by what.
    pub fn passing_by(&self) -> Option<(&Arc<Meter>, Mode)> {
        self.meters
            .iter()
            .find_map(|meter| Some((meter, meter.passes_by()?)))
    }

    /// Whether one of them is known to be empty, without drawing.
    pub fn check(&self, now_ns: u64) -> Option<Refusal> {
        self.meters.iter().find_map(|meter| meter.check(now_ns))
    }

    fn draw_on(&self, mut tokens: Tokens, rounds: u32, now_ns: u64) -> DrawAll {
        for (at, meter) in self.meters.iter().enumerate() {
            if tokens.has(at) {
                continue;
            }
            let least = self.least.get(at).copied().unwrap_or_default();
            let drawn = match tokens.had(at) {
                false => meter.draw(least, now_ns),
                true => meter.draw_again(least, now_ns),
            };
            match drawn {
                Draw::Drawn(token) => tokens.put(at, token),
                Draw::Refused(refusal) => return DrawAll::Refused(refusal),
                Draw::Wait(waiting) => {
                    let drawn = Partly {
                        meters: self.clone(),
                        tokens,
                        rounds,
                        at,
                    };
                    return DrawAll::Wait(Box::new(WaitingAll { waiting, drawn }));
                }
            }
        }
        DrawAll::Drawn(tokens)
    }
}

/// Each meter once; one that is named twice is spent again where either says so.
fn once(meters: Vec<(Arc<Meter>, bool)>) -> Vec<(Arc<Meter>, bool)> {
    let (mut rest, mut twice) = (meters.as_slice(), false);
    while let Some(((first, _), others)) = rest.split_first() {
        twice |= others.iter().any(|(other, _)| Arc::ptr_eq(first, other));
        rest = others;
    }
    if !twice {
        return meters;
    }
    let mut known: Vec<(Arc<Meter>, bool)> = Vec::with_capacity(meters.len());
    for (meter, repeats) in meters {
        let mut same = known.iter_mut().filter(|(one, _)| Arc::ptr_eq(one, &meter));
        match same.next() {
            Some((_, known)) => *known |= repeats,
            None => known.push((meter, repeats)),
        }
    }
    known
}

/// A request that waits for one of its meters, with the tokens of the slower ones in hand.
#[derive(Debug)]
pub struct WaitingAll {
    waiting: Waiting,
    drawn: Partly,
}

/// What it has of the other meters.
#[derive(Debug)]
struct Partly {
    meters: MeterSet,
    tokens: Tokens,
    /// How often it has waited before.
    rounds: u32,
    /// The place of the meter that it waits for.
    at: usize,
}

/// So often tokens are drawn again that ended while others were waited for.
const ROUNDS_MAX: u32 = 16;

impl WaitingAll {
    /// Waits for this meter, then draws the rest, waiting again where needed. What ended meanwhile
    /// is drawn again, before all who have not had their turn. `on_hold` is told of each turn that
    /// is waited for, and of its meter.
    ///
    /// # Errors
    /// The refusal of the meter that refuses; the other tokens went back.
    pub async fn granted(
        self,
        priority: u8,
        mut on_hold: impl FnMut(OnHold, Option<Arc<str>>),
    ) -> Result<Tokens, Box<Refusal>> {
        let mut waits = self;
        loop {
            let clock = waits.waiting.clock();
            let Self { waiting, drawn } = waits;
            let token = waiting.granted(priority, &mut on_hold).await?;
            match drawn.go_on(token, clock.boot_ns()) {
                DrawAll::Drawn(tokens) => return Ok(tokens),
                DrawAll::Refused(refusal) => return Err(refusal),
                DrawAll::Wait(next) => waits = *next,
            }
        }
    }

    /// What it has, or what it still waits for, without waiting.
    #[cfg(test)]
    pub(super) fn poll_now(self, now_ns: u64) -> DrawAll {
        let mut waits = self;
        loop {
            let token = match waits.waiting.poll_now(now_ns) {
                Some(Ok(token)) => token,
                Some(Err(refusal)) => return DrawAll::Refused(refusal),
                None => return DrawAll::Wait(Box::new(waits)),
            };
            let Self { waiting, drawn } = waits;
            drop(waiting);
            match drawn.go_on(token, now_ns) {
                DrawAll::Wait(next) => waits = *next,
                ended => return ended,
            }
        }
    }

    /// The tokens of the meters that it does not wait for.
    #[cfg(test)]
    pub(super) fn in_hand(&self) -> &Tokens {
        &self.drawn.tokens
    }
}

impl Partly {
    /// Puts the token in that was waited for, and draws the rest.
    fn go_on(self, token: Token, now_ns: u64) -> DrawAll {
        let Self {
            meters,
            mut tokens,
            rounds,
            at,
        } = self;
        tokens.put(at, token);
        if rounds < ROUNDS_MAX {
            tokens.let_go_of_ended(now_ns);
        }
        meters.draw_on(tokens, rounds.saturating_add(1), now_ns)
    }
}

/// Tokens of all meters of a request. Dropping them puts them back.
#[derive(Debug, Default)]
pub struct Tokens {
    /// With the place of its meter.
    first: Option<Placed>,
    /// The others: few requests have any. Room for all that a request may have would be copied with
    /// each step that it takes.
    others: Vec<Placed>,
    /// Of which meters there was a token, one bit each: who had its turn keeps it.
    had: u8,
}

/// A token, and the place of its meter.
type Placed = (usize, Token);

impl Tokens {
    fn held(&self) -> impl Iterator<Item = &Placed> {
        self.first.iter().chain(&self.others)
    }

    /// Spends all of them at this instant, or, when one is over, none: draw anew then.
    ///
    /// # Errors
    /// [`Expired`]; the others went back. One that ended between the check and the mark leaves
    /// those marked before it spent, which is never too many.
    pub fn send(mut self, now_ns: u64) -> Result<Sent, Expired> {
        if !self.are_live(now_ns) {
            return Err(Expired);
        }
        let mut sent = Sent::default();
        for (_, token) in self.first.take().into_iter().chain(self.others.drain(..)) {
            token.send_with(now_ns, &mut sent)?;
        }
        Ok(sent)
    }

    /// Whether all of them can still be sent.
    pub fn are_live(&self, now_ns: u64) -> bool {
        self.held().all(|(_, token)| token.is_live(now_ns))
    }

    /// Whether there is one of a meter that can still be sent.
    #[cfg(test)]
    pub(super) fn has_live(&self, meter: &Arc<Meter>, now_ns: u64) -> bool {
        self.held()
            .any(|(_, token)| Arc::ptr_eq(token.meter(), meter) && token.is_live(now_ns))
    }

    fn has(&self, at: usize) -> bool {
        self.held().any(|(place, _)| *place == at)
    }

    fn had(&self, at: usize) -> bool {
        self.had & (1 << at) != 0
    }

    fn put(&mut self, at: usize, token: Token) {
        self.had |= 1 << at;
        match &self.first {
            None => self.first = Some((at, token)),
            Some(_) => {
                let to = self.others.partition_point(|(place, _)| *place < at);
                self.others.insert(to, (at, token));
            }
        }
    }

    fn let_go_of_ended(&mut self, now_ns: u64) {
        let is_live = |(_, token): &mut Placed| token.is_live(now_ns);
        self.others.retain_mut(is_live);
        if self.first.as_mut().is_some_and(|first| !is_live(first)) {
            self.first = None;
        }
    }
}
