//! Hands the listening sockets of a process over to the one that replaces it, so that an upgrade on
//! one machine refuses no connection.
//!
//! A running process listens on a Unix socket in its data folder. The successor (`--take-over`)
//! connects, and is sent the names of the listeners and the descriptors themselves (`SCM_RIGHTS`,
//! unix(7)). What comes then is the role's:
//!
//! - A node shares its data folder for a while. Both accept from the same queues until the
//!   successor says that it serves; then the old process drains and ends.
//! - A process with a control plane keeps files that one process at a time may have open. The
//!   successor looks through everything that needs none of them, and asks the old process to end.
//!   Until that has ended, callers wait in the queues of the sockets; then the successor opens the
//!   files and serves.
//!
//! Either way a successor waits for the store before it says so, as long as the old process serves:
//! that may know more than the copy on its disk ([`STORE_WAIT_MAX`]).
//!
//! A successor that ends before it has asked changes nothing.

mod place;
mod predecessor;

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::ValueEnum;
use node::listener::Queue;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tracing::{info, warn};

pub use place::{Folder, Place};
pub use predecessor::Predecessor;

/// Most listeners of a process.
const LISTENERS_MAX: usize = 8;
/// How long a successor may take until it serves, or asks this process to end.
const START_MAX: Duration = Duration::from_secs(600);
/// How long a successor waits for the store while the old process serves: less than that one waits
/// for it.
pub const STORE_WAIT_MAX: Duration = Duration::from_secs(300);
/// How often it is told what a start waits for: the store, or the end of the old process.
pub const TELL_EVERY: Duration = Duration::from_secs(5);

/// What hands over: only its like can take its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// The data plane alone.
    Node,
    /// A control plane.
    Control,
    /// Both in one process.
    Standalone,
    /// The same with a demo, and with permissions that are for a developer's machine.
    Dev,
}

impl Role {
    /// The command that runs it.
    pub const fn command(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Control => "control",
            Self::Standalone => "standalone",
            Self::Dev => "dev",
        }
    }

    /// How a running process begins what it sends. Another number is another release's.
    const fn greeting(self) -> &'static str {
        match self {
            Self::Node => "requestrocket-handover 1",
            Self::Control => "requestrocket-handover 2 control",
            Self::Standalone => "requestrocket-handover 2 standalone",
            Self::Dev => "requestrocket-handover 2 dev",
        }
    }

    /// What a successor says for the old process to end.
    const fn word(self) -> &'static str {
        match self {
            Self::Node => "serving",
            Self::Control | Self::Standalone | Self::Dev => "leave",
        }
    }

    /// What becomes of connections that nobody has accepted when the old process ends.
    const fn queue(self) -> Queue {
        match self {
            Self::Node => Queue::HandedOver,
            Self::Control | Self::Standalone | Self::Dev => Queue::Held,
        }
    }
}

/// Where the process of a data folder hands over.
fn socket(data_dir: &Path) -> PathBuf {
    data_dir.join("handover.sock")
}

/// Longest word that a successor says.
const WORD_BYTES_MAX: u64 = 64;

/// Whether another process may have copies of the listeners. What is done to a socket is done to
/// them: one that is shut down takes no connection for its other owner either, for good.
#[derive(Clone, Debug)]
pub struct Shared {
    role: Role,
    given: Arc<AtomicBool>,
}

impl Shared {
    /// What becomes of connections that nobody has accepted when this process ends without a
    /// successor that has asked it to.
    pub fn queue(&self) -> Queue {
        match self.given.load(Ordering::Acquire) {
            true => self.role.queue(),
            false => Queue::Ends,
        }
    }
}

/// What a process hands over.
#[derive(Debug)]
pub struct Handover {
    path: PathBuf,
    shared: Shared,
    listeners: Vec<(&'static str, TcpListener)>,
}

impl Handover {
    /// Copies of these listeners, to be handed over by the process of this data folder.
    ///
    /// # Errors
    /// The process may open no more files.
    pub fn new<'a>(
        data_dir: &Path,
        role: Role,
        listeners: impl IntoIterator<Item = (&'static str, &'a TcpListener)>,
    ) -> io::Result<Self> {
        let copied = listeners.into_iter().map(|(name, listener)| {
            let copy = listener.try_clone()?;
            Ok((name, copy))
        });
        Ok(Self {
            path: socket(data_dir),
            shared: Shared {
                role,
                given: Arc::default(),
            },
            listeners: copied.collect::<io::Result<_>>()?,
        })
    }

    /// Whether the listeners have been given away, as it comes to be.
    pub fn shared(&self) -> Shared {
        self.shared.clone()
    }

    /// Waits for a successor that serves, or that wants to. Drop the future to hand over no longer:
    /// while it is there, connections wait in the listeners' queues even after this process accepts
    /// none.
    pub async fn replaced(self) -> Successor {
        let listener = match self.listen() {
            Ok(listener) => listener,
            Err(error) => {
                let path = self.path.display();
                warn!("{path} cannot be used, no process can take over from this one: {error}");
                return std::future::pending().await;
            }
        };
        loop {
            let handed = match listener.accept().await {
                Ok((line, _)) => self.hand(line).await,
                Err(error) => Err(error),
            };
            match handed {
                Ok(successor) => return successor,
                Err(error) => {
                    warn!("a process that was to take over did not: {error}; this one goes on");
                    // A listener that fails fails at once.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// Listens in the place of an earlier process, whose successors have come.
    fn listen(&self) -> io::Result<UnixListener> {
        let own = self.path.with_extension(std::process::id().to_string());
        // Left by a process of the same number that was killed between the two steps.
        let _ = std::fs::remove_file(&own);
        let listener = UnixListener::bind(&own)?;
        std::fs::set_permissions(&own, std::fs::Permissions::from_mode(0o600))?;
        std::fs::rename(&own, &self.path)?;
        Ok(listener)
    }

    async fn hand(&self, line: UnixStream) -> io::Result<Successor> {
        line.writable().await?;
        let Shared { role, given } = &self.shared;
        given.store(true, Ordering::Release);
        self.send(&line)?;
        info!("another process takes over");
        let mut said = String::new();
        let mut line = BufReader::new(line).take(WORD_BYTES_MAX);
        let read = tokio::time::timeout(START_MAX, line.read_line(&mut said)).await;
        match read {
            Ok(Ok(_)) if said.trim_end() == role.word() => Ok(Successor {
                role: *role,
                line: line.into_inner().into_inner(),
            }),
            Ok(Ok(0)) => {
                given.store(false, Ordering::Release);
                Err(io::Error::other("it ended before it served"))
            }
            Ok(Ok(_)) => Err(io::Error::other("it said something else")),
            Ok(Err(error)) => Err(error),
            // It may serve yet, and with these sockets.
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    fn send(&self, line: &UnixStream) -> io::Result<()> {
        let names: Vec<&str> = self.listeners.iter().map(|(name, _)| *name).collect();
        let message = format!("{} {}\n", self.shared.role.greeting(), names.join(" "));
        let descriptors: Vec<_> = self
            .listeners
            .iter()
            .map(|(_, socket)| socket.as_fd())
            .collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(LISTENERS_MAX))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
            return Err(io::Error::other("too many listeners"));
        }
        let bytes = [IoSlice::new(message.as_bytes())];
        // A fresh socket takes a message of this size whole.
        rustix::net::sendmsg(line, &bytes, &mut ancillary, SendFlags::NOSIGNAL)?;
        Ok(())
    }
}

/// The process that takes this one's place.
#[derive(Debug)]
pub struct Successor {
    role: Role,
    line: UnixStream,
}

impl Successor {
    /// What becomes of connections that nobody has accepted yet.
    pub fn queue(&self) -> Queue {
        self.role.queue()
    }

    /// Whether it waits for the end of this process, or has served already. One that is gone
    /// before leaves nobody who serves.
    pub fn takes_over(&self) -> bool {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let mut none = [0; 1];
        let ended = matches!(rustix::net::recv(&self.line, &mut none, flags), Ok((_, 0)));
        self.role == Role::Node || !ended
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::SocketAddr;

    use super::*;
    use crate::data_folder::DataFolder;

    fn listening() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    async fn found(dir: &Path, role: Role) -> Predecessor {
        loop {
            let dir = dir.to_owned();
            let found = tokio::task::spawn_blocking(move || Predecessor::find(&dir, role)).await;
            if let Some(found) = found.unwrap().unwrap() {
                return found;
            }
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_successor_gets_the_sockets_and_one_that_dies_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (gateway, address) = listening();
        let (admin, other) = listening();
        let own = [("gateway", &gateway), ("admin", &admin)];
        let handover = Handover::new(dir.path(), Role::Node, own).unwrap();
        let shared = handover.shared();
        assert_eq!(shared.queue(), Queue::Ends);
        let running = tokio::spawn(handover.replaced());
        let given = found(dir.path(), Role::Node).await;
        assert_eq!(shared.queue(), Queue::HandedOver, "another one has them");
        drop(given);
        while shared.queue() != Queue::Ends {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let mut predecessor = found(dir.path(), Role::Node).await;
        let any = SocketAddr::new(address.ip(), 0);
        assert!(predecessor.listener("link", any).is_none());
        let elsewhere = SocketAddr::new(other.ip(), address.port());
        assert!(
            predecessor.listener("admin", elsewhere).is_none(),
            "bound anew"
        );
        let taken = predecessor.listener("gateway", any).unwrap();
        assert!(predecessor.listener("gateway", any).is_none(), "only once");
        drop(gateway);
        let caller = std::net::TcpStream::connect(address).unwrap();
        let (_, from) = taken.accept().unwrap();
        assert_eq!(from, caller.local_addr().unwrap());
        assert!(!running.is_finished());
        predecessor.replaced();
        let successor = running.await.unwrap();
        assert_eq!(successor.queue(), Queue::HandedOver);
        assert!(successor.takes_over(), "it serves already");
    }

    #[tokio::test]
    async fn what_a_successor_waits_for_ends_with_the_old_process() {
        let dir = tempfile::tempdir().unwrap();
        let handover = Handover::new(dir.path(), Role::Node, []).unwrap();
        let running = tokio::spawn(handover.replaced());
        let predecessor = found(dir.path(), Role::Node).await;
        let done = predecessor.while_it_serves(async { 7 }).await;
        assert_eq!(done, Some(7));
        {
            let waiting = predecessor.while_it_serves(std::future::pending::<()>());
            tokio::pin!(waiting);
            let soon = tokio::time::timeout(Duration::from_millis(20), &mut waiting).await;
            assert!(soon.is_err(), "the old process serves");
            // As when it is killed, or drains.
            running.abort();
            assert_eq!(waiting.await, None);
        }
        // Nothing keeps this one from going on alone.
        predecessor.replaced();
    }

    #[tokio::test]
    async fn a_successor_that_needs_the_data_folder_has_it_when_the_old_process_ends() {
        let dir = tempfile::tempdir().unwrap();
        let (control, address) = listening();
        let claim = DataFolder::open(dir.path()).unwrap().claim().unwrap();
        let own = [("control", &control)];
        let handover = Handover::new(dir.path(), Role::Control, own).unwrap();
        let running = tokio::spawn(handover.replaced());
        let mut predecessor = found(dir.path(), Role::Control).await;
        let taken = predecessor.listener("control", address).unwrap();
        let place = Place::Taken(DataFolder::open(dir.path()).unwrap(), predecessor);
        let mut taking = tokio::spawn(place.take(|| Ok(()), async { Ok(()) }));
        let successor = running.await.unwrap();
        assert_eq!(successor.queue(), Queue::Held);
        assert!(successor.takes_over() && !taking.is_finished());
        drop(control);
        std::net::TcpStream::connect(address).unwrap();
        taken.accept().unwrap();
        drop(successor);
        let soon = tokio::time::timeout(Duration::from_millis(50), &mut taking).await;
        assert!(soon.is_err(), "the folder is still another one's");
        drop(claim);
        taking.await.unwrap().unwrap().serves();
    }

    #[tokio::test]
    async fn a_successor_that_has_asked_and_is_gone_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let handover = Handover::new(dir.path(), Role::Standalone, []).unwrap();
        let running = tokio::spawn(handover.replaced());
        let predecessor = found(dir.path(), Role::Standalone).await;
        predecessor.replaced();
        let successor = running.await.unwrap();
        assert!(!successor.takes_over());
    }

    #[tokio::test]
    async fn nobody_and_somebody_else_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let find = |role| Predecessor::find(dir.path(), role);
        assert!(find(Role::Node).unwrap().is_none());
        let path = socket(dir.path());
        let other = std::os::unix::net::UnixListener::bind(path).unwrap();
        let greetings = [
            "requestrocket-handover 3 gateway\n",
            "requestrocket-handover 1 gateway\n",
            "requestrocket-handover 2 standalone gateway\n",
            "requestrocket-handover 2 standalone gateway\n",
        ];
        let answering = std::thread::spawn(move || {
            for greeting in greetings {
                let (mut line, _) = other.accept().unwrap();
                line.write_all(greeting.as_bytes()).unwrap();
            }
        });
        for role in [Role::Node, Role::Standalone, Role::Control, Role::Dev] {
            let said = find(role).unwrap_err().to_string();
            assert!(
                said.contains("another release, or another command"),
                "{said}"
            );
        }
        answering.join().unwrap();
        // The file of a process that was killed.
        assert!(find(Role::Node).unwrap().is_none());
    }
}
