//! How many connections to the REST API are open: a process that ends lets those that are kept end
//! with an answer that says so.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// The open connections of a listener; clones count the same ones.
#[derive(Clone, Debug, Default)]
pub struct Connections(Arc<AtomicUsize>);

impl Connections {
    /// How many are open.
    pub fn open(&self) -> usize {
        self.0.load(Relaxed)
    }

    /// Counts one more until what is returned is dropped.
    pub(crate) fn opened(&self) -> Opened {
        self.0.fetch_add(1, Relaxed);
        Opened(self.clone())
    }
}

/// A connection that is open.
pub(crate) struct Opened(Connections);

impl Drop for Opened {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_counts_until_it_ends() {
        let connections = Connections::default();
        let (first, second) = (connections.opened(), connections.opened());
        assert_eq!(connections.open(), 2);
        drop(first);
        assert_eq!(connections.clone().open(), 1);
        drop(second);
        assert_eq!(connections.open(), 0);
    }
}
