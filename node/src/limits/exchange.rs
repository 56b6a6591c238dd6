//! What brokers and owners of different nodes say to each other about tokens.
//!
//! A node asks the owner of a key for tokens; the owner lends it a part of a block that it holds
//! open in the store. The ask counts as received later than it was sent, so a life that the owner
//! counts from its receipt of the ask, and the holder from before it sent it, never ends later at
//! the holder; and what the holder reports by elapsed time the owner never charges too early. A
//! report is absolute and final, so that any repetition is harmless; what is not reported is
//! charged at the block's end.

use proto::meter::{Algorithm, Estimate, Limit, MeterSpec, Share, StoreLoss, Window};
use serde::{Deserialize, Serialize};

use super::block::Opener;
use super::cell::Spends;
use super::corrections::Correction;
use super::hold::Level;
use super::state::State;

/// Items of one batch; the rest goes into the next. With the largest states they fit into a frame.
pub const BATCH_ITEMS_MAX: usize = 128;

/// All that one node has to tell another at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenBatch {
    /// In the order in which they were said.
    pub items: Vec<Item>,
}

/// One saying about one key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// The key in the store.
    pub key: String,
    /// What is said.
    pub word: Word,
}

/// What is said about a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Word {
    /// To an owner.
    Ask(Ask),
    /// The owner's answer.
    Answer(Answer),
    /// What became of a part, from who held it to who lent it; repeated until it is heard.
    Report(Report),
    /// The report of this part need not come again.
    Heard {
        /// The part, by the ask that it answered.
        part: u64,
    },
    /// What answers have cost, against what was set aside; to an owner, repeated until it is in
    /// the store.
    Correct {
        /// The limits: the owner may not have met the key.
        spec: SpecForm,
        /// What is to be corrected.
        correction: Correction,
        /// When, on the clock of the owner.
        told: Option<Told>,
    },
    /// A correction is in the store and need not come again.
    Corrected {
        /// Its number.
        number: u64,
    },
    /// After an ask: who is held on the asking node. Peers before protocol 3 do not know it.
    Holding {
        /// By rank, the first first.
        levels: Vec<Level>,
    },
    /// After an answer: who is held on all other nodes. Peers before protocol 3 do not know it.
    HeldElsewhere {
        /// By rank, the first first.
        levels: Vec<Level>,
    },
    /// As [`Word::Ask`], of limits that regions share.
    AskShare(Ask, Share),
    /// As [`Word::Correct`], of limits that regions share.
    CorrectShare {
        /// The limits, as above.
        spec: SpecForm,
        /// What the region had of them at the start.
        share: Share,
        /// As above.
        correction: Correction,
        /// As above.
        told: Option<Told>,
    },
    /// Of no key: the store went back to an earlier state of itself. Peers before protocol 3 do
    /// not know it.
    StoreReturned {
        /// How long ago that was found.
        ago_ns: u64,
    },
    /// Of no key: how many keys a node writes. Peers before protocol 3 do not know it.
    Writing {
        /// In a second.
        per_second: u64,
    },
}

impl Word {
    /// An ask, of limits of which the region has a share or all.
    pub fn ask(ask: Ask, share: Option<Share>) -> Self {
        match share {
            None => Self::Ask(ask),
            Some(share) => Self::AskShare(ask, share),
        }
    }
}

impl TokenBatch {
    /// The same for a peer that speaks an earlier protocol than 3.
    pub fn before_protocol_3(mut self) -> Self {
        self.items.retain(|item| {
            !matches!(
                item.word,
                Word::Holding { .. }
                    | Word::HeldElsewhere { .. }
                    | Word::StoreReturned { .. }
                    | Word::Writing { .. }
            )
        });
        self
    }
}

/// An instant on the clock of a peer: no later than it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// When the peer said something.
    pub at_ns: u64,
    /// How long ago that was heard.
    pub since_ns: u64,
}

/// A node wants tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// Rises with every ask of this start of the node.
    pub id: u64,
    /// The limits that the node knows: the owner may not have met the key.
    pub spec: SpecForm,
    /// How many tokens.
    pub wanted: u64,
    /// Somebody else asked the asking node: whoever gets this asks nobody further.
    pub relayed: bool,
}

/// What an owner answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Which ask.
    pub ask: u64,
    /// The answer.
    pub reply: Reply,
    /// What is used, as the owner knows it now.
    pub seen: Option<Seen>,
    /// When, on the owner's clock: what is told later is told relative to it.
    pub at_ns: u64,
}

/// The kinds of answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// A part of a block.
    Granted(Grant),
    /// Nothing is free for so long.
    Refused {
        /// From the owner's answer on.
        in_ns: u64,
    },
    /// The store has been asked; another answer follows.
    Later,
    /// The owner does not reach the store, or leaves: somebody else is to be asked.
    NoStore,
}

/// A part that is lent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Its tokens.
    pub amount: u64,
    /// Its life from the ask.
    pub life_ns: u64,
    /// Length of the sub-windows that spends are counted in.
    pub sub_ns: u64,
    /// How far the first of them had come at the ask.
    pub phase_ns: u64,
}

/// A state as an owner knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// With all that the owner knows to be spent.
    pub state: State,
    /// The store had this revision before.
    pub revision: i64,
}

/// What became of a part, final.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The part, by the ask that it answered.
    pub part: u64,
    /// Spends by sub-window.
    pub spends: Spends,
    /// Tokens that were never drawn.
    pub rest: u64,
}

/// A [`MeterSpec`] on the wire.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpecForm {
    name: String,
    version: u64,
    /// Each with its capacity: the burst of a token bucket.
    limits: Vec<(u64, Window, Algorithm, u64)>,
    on_store_loss: StoreLoss,
    /// How much a request sets aside, where it counts values.
    estimate: Option<Estimate>,
    /// The id of what it belongs to; empty where the speaker does not know it.
    meter: String,
}

impl From<&MeterSpec> for SpecForm {
    fn from(spec: &MeterSpec) -> Self {
        let limits = spec.limits().iter();
        Self {
            name: spec.name().to_owned(),
            version: spec.version(),
            limits: limits
                .map(|limit| {
                    (
                        limit.limit(),
                        limit.window(),
                        limit.algorithm(),
                        limit.capacity(),
                    )
                })
                .collect(),
            on_store_loss: spec.store_loss(),
            estimate: spec.estimate(),
            meter: String::new(),
        }
    }
}

impl SpecForm {
    /// The meter, where it is one that a configuration can hold.
    pub fn spec(&self) -> Option<MeterSpec> {
        let limits = self
            .limits
            .iter()
            .map(|(limit, window, algorithm, capacity)| {
                let limit = Limit::with_algorithm(*limit, *window, *algorithm).ok()?;
                match algorithm {
                    Algorithm::TokenBucket => limit.with_burst(*capacity).ok(),
                    Algorithm::SlidingWindow | Algorithm::FixedWindow => Some(limit),
                }
            });
        let limits: Option<Vec<Limit>> = limits.collect();
        let spec = MeterSpec::new(&self.name, self.version, limits?).ok()?;
        let spec = spec.on_store_loss(self.on_store_loss);
        Some(spec.estimating(self.estimate))
    }

    /// The same with the id of what it belongs to.
    #[must_use]
    pub fn of(self, meter: Option<&str>) -> Self {
        Self {
            meter: meter.unwrap_or_default().to_owned(),
            ..self
        }
    }

    /// The id of what it belongs to.
    pub fn meter(&self) -> Option<&str> {
        (!self.meter.is_empty()).then_some(self.meter.as_str())
    }

    /// The version of its configuration.
    pub fn version(&self) -> u64 {
        self.version
    }
}

/// What an owner has to say, and has noticed, in one look.
#[derive(Debug, Default)]
pub struct Outbox {
    /// To whom, and what.
    pub words: Vec<(Opener, Word)>,
    /// Peers that did not answer in time.
    pub silent: Vec<Opener>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_meter_arrives_with_what_bounds_it() {
        let bucket = Limit::with_algorithm(300, Window::Minute, Algorithm::TokenBucket);
        let limits = vec![
            bucket.unwrap().with_burst(7).unwrap(),
            Limit::new(10, Window::Second).unwrap(),
            Limit::new(1_000, Window::Day).unwrap(),
        ];
        let spec = MeterSpec::new("m", 3, limits)
            .unwrap()
            .on_store_loss(StoreLoss::FailClosed)
            .estimating(Some(Estimate::Given(9)));
        let arrived = SpecForm::from(&spec).spec().unwrap();
        assert_eq!(arrived.limits(), spec.limits());
        assert_eq!(arrived.limits()[0].capacity(), 7);
        assert_eq!(arrived.store_loss(), spec.store_loss());
        assert_eq!(arrived.estimate(), spec.estimate());
        assert_eq!((arrived.name(), arrived.version()), ("m", 3));
    }
}
