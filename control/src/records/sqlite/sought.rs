//! What a search may ask the marks of blocks for. Pure.

use proto::id::ProxyId;

use super::block::{Mark, Sought, Unusual, Wanted};
use crate::records::query::{RecordFilter, StatusFilter};

impl RecordFilter {
    /// Marks that every block with an answer has.
    pub(super) fn sought(&self) -> Sought {
        let marks = [
            self.proxy.map(|id| Mark::Proxy(id.bits())),
            self.credential.map(|id| Mark::Credential(id.bits())),
            self.status.map(mark),
            self.code.as_deref().map(Mark::Code),
        ];
        let outcomes = [
            self.status.and_then(unusual),
            self.code.as_deref().and_then(Unusual::code),
        ];
        let proxy = self.proxy.map(ProxyId::bits);
        let pair = |unusual| Some(Mark::Pair(proxy?, unusual));
        let pairs = outcomes.into_iter().flatten().filter_map(pair);
        Sought {
            marks: marks.into_iter().flatten().map(Wanted::from).collect(),
            pairs: pairs.map(Wanted::from).collect(),
        }
    }
}

fn mark(status: StatusFilter) -> Mark<'static> {
    match status.exact() {
        Some(status) => Mark::Status(status),
        None => Mark::StatusClass(status.range().0 / 100),
    }
}

fn unusual(status: StatusFilter) -> Option<Unusual<'static>> {
    match status.exact() {
        Some(status) => Unusual::status(status),
        None => Unusual::class(status.range().0 / 100),
    }
}
