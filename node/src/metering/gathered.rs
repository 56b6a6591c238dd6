//! What the rows that count a request come to.

use std::sync::Arc;

use proto::meter::value::ValueSet;

use super::{Applied, Counted, Row};
use crate::learner::Learner;
use crate::limits::{Meter, MeterSet, Slots, TooManyMeters};

/// What is the same for every request, whichever rows count it; none where that depends on it.
#[derive(Debug, Default)]
pub(super) struct Always {
    slots: Option<Arc<[Arc<Slots>]>>,
    values: Option<Values>,
    learning: Option<Arc<[Learner]>>,
}

type Values = Arc<[(Arc<Meter>, Arc<ValueSet>)]>;

impl Always {
    pub(super) fn of(rows: &[Row]) -> Self {
        let mut gathered = Gathered::default();
        for row in rows {
            if let Some(counted) = row.always() {
                gathered.add(counted.clone(), row, &Self::default());
            }
        }
        let all = |is_such: fn(&Row) -> bool| {
            let mut such = rows.iter().filter(|row| is_such(row));
            such.all(|row| row.always().is_some())
        };
        let Gathered {
            slots,
            values,
            learning,
            ..
        } = gathered;
        Self {
            slots: all(|row| row.slots.is_some()).then(|| shared(slots)),
            values: all(|row| row.value.is_some()).then(|| shared(values)),
            learning: all(|row| row.learn.is_some()).then(|| shared(learning)),
        }
    }
}

/// What the rows of a request come to, but for what is always the same.
#[derive(Default)]
pub(super) struct Gathered {
    meters: Vec<(Arc<Meter>, bool)>,
    slots: Vec<Arc<Slots>>,
    values: Vec<(Arc<Meter>, Arc<ValueSet>)>,
    learning: Vec<Learner>,
}

impl Gathered {
    /// With room for so many meters.
    pub(super) fn of_up_to(rows: usize) -> Self {
        Self {
            meters: Vec::with_capacity(rows),
            ..Self::default()
        }
    }

    /// A row counts the request, under this key.
    pub(super) fn add(&mut self, counted: Counted, row: &Row, always: &Always) {
        if always.slots.is_none() {
            self.slots.extend(counted.slots);
        }
        let Some(meter) = counted.meter else { return };
        if let (Some(value), None) = (&row.value, &always.values) {
            self.values.push((Arc::clone(&meter), Arc::clone(value)));
        }
        if let (Some((from, pause_max)), None) = (row.learn, &always.learning) {
            self.learning.push(Learner {
                meter: Arc::clone(&meter),
                from,
                pause_max,
            });
        }
        self.meters.push((meter, row.each_attempt));
    }

    /// What the request spends.
    ///
    /// # Errors
    /// They are more than can apply to one request.
    pub(super) fn applied(self, priority: u8, always: &Always) -> Result<Applied, TooManyMeters> {
        let Always {
            slots,
            values,
            learning,
        } = always;
        Ok(Applied {
            first: MeterSet::ordered(self.meters)?,
            slots: slots.clone().unwrap_or_else(|| shared(self.slots)),
            values: values.clone().unwrap_or_else(|| shared(self.values)),
            learning: learning.clone().unwrap_or_else(|| shared(self.learning)),
            priority,
        })
    }
}

/// Most are empty, and an empty one is there already.
fn shared<T>(items: Vec<T>) -> Arc<[T]> {
    match items.is_empty() {
        true => Arc::default(),
        false => items.into(),
    }
}
