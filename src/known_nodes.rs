//! The other nodes of the region, kept on disk: a node that starts while the store is away finds
//! its peers, and knows among how many a limit is shared.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use node::peers::Known;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tracing::warn;

use crate::private_file;

/// The file that a data folder keeps them in.
pub struct KnownNodes {
    file: PathBuf,
}

/// What the file holds.
#[derive(Serialize, Deserialize)]
struct Kept {
    nodes: Vec<Known>,
}

impl KnownNodes {
    /// Those of a data folder.
    pub fn of(data_dir: &Path) -> Self {
        Self {
            file: data_dir.join("known_nodes.json"),
        }
    }

    /// The nodes that were known last. A file that cannot be read counts as none: the store has
    /// them, and peers call.
    pub fn read(&self) -> Vec<Known> {
        let read = private_file::read(&self.file).and_then(|text| match text {
            Some(text) => Ok(serde_json::from_str::<Kept>(&text)?.nodes),
            None => Ok(Vec::new()),
        });
        read.unwrap_or_else(|error| {
            let file = self.file.display();
            warn!("{file} is not used, peers are known once the store is reached: {error}");
            Vec::new()
        })
    }

    /// Writes every list that appears, until nobody lists nodes any more.
    pub async fn keep(self: Arc<Self>, mut known: watch::Receiver<Vec<Known>>) {
        while known.changed().await.is_ok() {
            let nodes = known.borrow_and_update().clone();
            let Ok(text) = serde_json::to_vec(&Kept { nodes }) else {
                continue;
            };
            let file = self.file.clone();
            let write = move || private_file::write(&file, &text);
            let written = tokio::task::spawn_blocking(write).await;
            if let Ok(Err(error)) = written {
                let file = self.file.display();
                warn!("{file} cannot be written, a start without the store has no peers: {error}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_known_is_known_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        assert!(KnownNodes::of(dir.path()).read().is_empty(), "none yet");
        let (told, listed) = watch::channel(Vec::new());
        let keeping = tokio::spawn(Arc::new(KnownNodes::of(dir.path())).keep(listed));
        let nodes = vec![Known {
            node: "n2".into(),
            address: "10.0.0.2:8083".into(),
        }];
        told.send(nodes.clone()).unwrap();
        while KnownNodes::of(dir.path()).read() != nodes {
            tokio::task::yield_now().await;
        }
        drop(told);
        keeping.await.unwrap();
        std::fs::write(dir.path().join("known_nodes.json"), "{").unwrap();
        assert!(KnownNodes::of(dir.path()).read().is_empty());
    }
}
