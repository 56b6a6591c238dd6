//! What the audit tells while a test runs, on its thread.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::DefaultGuard;
use tracing::{Dispatch, Event, Metadata, Subscriber};

use super::stream::TARGET;

/// The fields of an event, as texts.
#[derive(Default)]
pub(crate) struct Told(pub BTreeMap<String, String>);

impl Told {
    /// These fields, in one line; `-` for one that is not there.
    pub(crate) fn line(&self, fields: &[&str]) -> String {
        let field = |name: &&str| self.0.get(*name).map_or("-", String::as_str);
        fields.iter().map(field).collect::<Vec<_>>().join(" ")
    }
}

impl Visit for Told {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().to_owned(), value.to_owned());
    }
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name().to_owned(), format!("{value:?}"));
    }
}

/// Hears the events of the audit.
#[derive(Clone, Default)]
pub(crate) struct Heard(Arc<Mutex<Vec<Told>>>);

impl Heard {
    /// Hears until the guard is dropped.
    pub(crate) fn begin() -> (Self, DefaultGuard) {
        // While there is one dispatcher alone, whether an event is wanted is asked of the thread
        // that comes to it first, which may be another test's, and never again.
        static ANOTHER: OnceLock<Dispatch> = OnceLock::new();
        ANOTHER.get_or_init(|| Dispatch::new(Self::default()));
        let heard = Self::default();
        let guard = tracing::subscriber::set_default(heard.clone());
        (heard, guard)
    }

    fn told(&self) -> MutexGuard<'_, Vec<Told>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These fields of what was told since this was last asked, a line each.
    pub(crate) fn lines(&self, fields: &[&str]) -> Vec<String> {
        let told = std::mem::take(&mut *self.told());
        told.iter().map(|told| told.line(fields)).collect()
    }
}

impl Subscriber for Heard {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && metadata.target() == TARGET
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, event: &Event<'_>) {
        let mut told = Told::default();
        event.record(&mut told);
        self.told().push(told);
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}
