//! What an answer has cost, read while it passes and held against what was set aside for it.
//!
//! The body goes through here on its way to filters and caller, piece by piece and not later. At
//! its end each meter learns the value; one that did not come leaves what was set aside as it is,
//! and so does an answer that is cut, by its caller or by the target, unless it has said more
//! already.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, header};
use proto::meter::value::{Reading, ValueSet};

use crate::limits::{Clock, Meter, Reserved, SystemClock};
use crate::spending::Spends;
use crate::upstream::Watch;

/// One answer.
#[derive(Debug)]
pub struct Settling {
    calls: Vec<(Reserved, Reading)>,
    /// What the request's record will say.
    spends: Spends,
}

impl Settling {
    /// Of an answer with these headers; none where no meter counts its values. `injected`: its
    /// target was asked for usage on a meter's behalf, and the event may be taken out.
    pub fn new(
        reserved: Vec<Reserved>,
        values: &[(Arc<Meter>, Arc<ValueSet>)],
        headers: &HeaderMap,
        bytes_max: usize,
        injected: bool,
        spends: Spends,
    ) -> Option<Self> {
        let codings = headers.get_all(header::CONTENT_ENCODING).iter();
        let codings = codings.filter_map(|value| value.to_str().ok());
        let codings = codings.collect::<Vec<_>>().join(",");
        let mut injected = injected;
        let mut calls = Vec::new();
        for reserved in reserved {
            let own = values
                .iter()
                .find(|(of, _)| Arc::ptr_eq(of, reserved.meter()));
            if let Some((_, set)) = own {
                // One takes the event out, the last: all others are to see it.
                let takes = set.injects() && std::mem::take(&mut injected);
                let reading = Reading::new(Arc::clone(set), headers, &codings, bytes_max, takes);
                calls.push((reserved, reading));
            }
        }
        calls.sort_by_key(|(_, reading)| reading.takes_out());
        (!calls.is_empty()).then_some(Self { calls, spends })
    }

    /// Takes a body that is there whole; what goes on of it.
    pub fn whole(mut self, body: Bytes) -> Bytes {
        let body = self.piece(body);
        let rest = self.ended();
        if rest.is_empty() {
            return body;
        }
        let mut whole = BytesMut::from(&body[..]);
        whole.extend_from_slice(&rest);
        whole.freeze()
    }
}

impl Watch for Settling {
    fn piece(&mut self, piece: Bytes) -> Bytes {
        let calls = self.calls.iter_mut();
        calls.fold(piece, |piece, (_, reading)| reading.piece(piece))
    }

    fn ended(&mut self) -> Bytes {
        let now_ns = SystemClock.boot_ns();
        let mut rest = Bytes::new();
        for (reserved, mut reading) in self.calls.drain(..) {
            let own = reading.finish();
            if !own.is_empty() {
                rest = own;
            }
            match reading.total() {
                Some(actual) => {
                    self.spends.correct(&reserved, actual);
                    reserved.settle(actual, now_ns);
                }
                None => self.spends.missed(reserved),
            }
        }
        rest
    }
}

impl Drop for Settling {
    /// The answer was cut: it has cost what it has said already, or what was set aside.
    fn drop(&mut self) {
        for (reserved, reading) in self.calls.drain(..) {
            match reading.total() {
                Some(seen) if seen > reserved.amount() => {
                    self.spends.correct(&reserved, seen);
                    reserved.settle(seen, SystemClock.boot_ns());
                }
                _ => self.spends.missed(reserved),
            }
        }
    }
}
