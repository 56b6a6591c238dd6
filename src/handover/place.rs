//! The place of a process: the data folder, and the process that has it now, where this one is to
//! take over from it.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::{Duration, Instant};

use tracing::{error, info};

use super::{Predecessor, Role, TELL_EVERY};
use crate::data_folder::{Claim, DataFolder};

/// Longest wait for the end of the old process, which has bounds of its own: `gateway.drain_ms`
/// above all.
const END_MAX: Duration = Duration::from_secs(600);

/// The data folder.
pub enum Place {
    /// This process has it.
    Own(Claim),
    /// Another one has it.
    Taken(DataFolder, Predecessor),
}

impl Place {
    /// Claims the folder; where `take_over` and a process of this role is there, gets its listeners
    /// instead.
    ///
    /// # Errors
    /// [`crate::serve::CannotStart`]: the folder cannot be used, or belongs to another process that
    /// does not hand over.
    pub fn find(data_dir: &Path, role: Role, take_over: bool) -> anyhow::Result<Self> {
        let folder = DataFolder::open(data_dir)?;
        let predecessor = match take_over {
            true => Predecessor::find(data_dir, role)?,
            false => None,
        };
        match predecessor {
            Some(predecessor) => Ok(Self::Taken(folder, predecessor)),
            None => Ok(Self::Own(folder.claim()?)),
        }
    }

    /// The listener of this name of the process that is there.
    pub fn listener(&mut self, name: &str, wanted: SocketAddr) -> Option<TcpListener> {
        match self {
            Self::Own(_) => None,
            Self::Taken(_, predecessor) => predecessor.listener(name, wanted),
        }
    }

    /// What a process needs that shares the folder with the one that is there until that ends.
    pub fn shared(self) -> (Folder, Option<Predecessor>) {
        match self {
            Self::Own(claim) => (Folder::Own(claim), None),
            Self::Taken(folder, predecessor) => (Folder::Shared(folder), Some(predecessor)),
        }
    }

    /// Has the folder for this process: the one that is there is asked to end, if `check` finds
    /// that this one can start, and once `ready` is. That is not waited for longer than the other
    /// serves.
    ///
    /// # Errors
    /// The other does not end. What `check` and `ready` say.
    pub async fn take(
        self,
        check: impl FnOnce() -> anyhow::Result<()>,
        ready: impl Future<Output = anyhow::Result<()>>,
    ) -> anyhow::Result<Taken> {
        let (claim, is_successor) = match self {
            Self::Own(claim) => (claim, false),
            Self::Taken(folder, predecessor) => {
                check()?;
                match predecessor.while_it_serves(ready).await {
                    Some(ready) => ready?,
                    None => info!("the old process ends by itself: its place is taken at once"),
                }
                let _line = predecessor.leave();
                (freed(folder).await?, true)
            }
        };
        // Threads may write there until the very end of the process.
        std::mem::forget(claim);
        Ok(Taken { is_successor })
    }
}

/// The folder of a process that ends: whatever it has said or not, it has ended when the folder is
/// free.
async fn freed(folder: DataFolder) -> anyhow::Result<Claim> {
    let begun = Instant::now();
    let claim = folder.claim_later();
    tokio::pin!(claim);
    loop {
        match tokio::time::timeout(TELL_EVERY, &mut claim).await {
            Ok(claim) => return Ok(claim?),
            Err(_) if begun.elapsed() < END_MAX => {
                let waited_s = begun.elapsed().as_secs();
                info!(waited_s, "the old process has not ended after {waited_s} s");
            }
            // Not a fault of this process: whoever starts it may start it again.
            Err(_) => anyhow::bail!(
                "the old process was asked to end, and still has the data folder: stop it"
            ),
        }
    }
}

/// The folder where two processes share it for a while.
pub enum Folder {
    /// This process's.
    Own(Claim),
    /// That of the process that this one replaces, until it ends.
    Shared(DataFolder),
}

impl Folder {
    /// The folder, as soon as it is free.
    ///
    /// # Errors
    /// It cannot be locked at all.
    pub async fn claim(self) -> std::io::Result<Claim> {
        match self {
            Self::Own(claim) => Ok(claim),
            Self::Shared(folder) => folder.claim_later().await,
        }
    }
}

/// The folder is this process's until its end.
pub struct Taken {
    is_successor: bool,
}

impl Taken {
    /// This process serves.
    pub fn serves(mut self) {
        self.is_successor = false;
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if self.is_successor {
            error!(
                "the old process has ended and this one did not come to serve: nobody listens now; \
                 mend what is said next, and start again"
            );
        }
    }
}
