//! Hands the listening sockets of a node over to the process that replaces it, so that an upgrade
//! on one machine refuses no connection.
//!
//! A running node listens on a Unix socket in its data folder. The successor
//! (`requestrocket node --take-over`) connects, is sent the names of the listeners and the
//! descriptors themselves (`SCM_RIGHTS`, unix(7)), and starts. Both accept from the same queues
//! until the successor says that it serves; only then does the old process drain and end. A
//! successor that ends before that changes nothing.

use std::io::{self, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use tokio::io::AsyncBufReadExt;
use tokio::net::UnixListener;
use tracing::{info, warn};

use crate::serve::CannotStart;

/// What both sides speak; another number is another release's.
const PROTOCOL: &str = "requestrocket-handover 1";
/// What a successor says when it serves.
const SERVING: &str = "serving";
/// Most listeners of a process.
const LISTENERS_MAX: usize = 8;
/// Longest first message.
const MESSAGE_BYTES_MAX: usize = 256;
/// How long the other side may take for a message that it has ready.
const MESSAGE_MAX: Duration = Duration::from_secs(5);
/// How long a successor may take to start.
const START_MAX: Duration = Duration::from_secs(600);

/// Where the process of a data folder hands over.
fn socket(data_dir: &Path) -> PathBuf {
    data_dir.join("handover.sock")
}

/// Listeners of a running process, and the line to it.
#[derive(Debug)]
pub struct Predecessor {
    listeners: Vec<(String, TcpListener)>,
    line: UnixStream,
}

impl Predecessor {
    /// Asks the process that uses the data folder for its listeners; `None` where none hands over.
    ///
    /// # Errors
    /// [`CannotStart`]: it answers, and not as this release does.
    pub fn find(data_dir: &Path) -> anyhow::Result<Option<Self>> {
        let path = socket(data_dir);
        let line = match UnixStream::connect(&path) {
            Ok(line) => line,
            Err(error) => {
                info!("nothing to take over at {}: {error}", path.display());
                return Ok(None);
            }
        };
        let taken = receive(&line).map_err(|error| {
            CannotStart(format!(
                "the running node did not hand over its listeners: {error}; stop it and start \
                 without --take-over"
            ))
        })?;
        Ok(Some(Self {
            listeners: taken,
            line,
        }))
    }

    /// Its listener of this name, where that listens on the address that is wanted.
    pub fn listener(&mut self, name: &str, wanted: SocketAddr) -> Option<TcpListener> {
        let fits = |listener: &TcpListener| {
            listener.local_addr().is_ok_and(|address| {
                address.ip() == wanted.ip() && [0, address.port()].contains(&wanted.port())
            })
        };
        let place = self.listeners.iter().position(|(known, _)| known == name)?;
        let (_, listener) = self.listeners.swap_remove(place);
        if fits(&listener) {
            return Some(listener);
        }
        info!("{name} listens on {wanted} from now on, the old address goes with the old process");
        None
    }

    /// Says that this process serves; the old one drains and ends.
    pub fn replaced(mut self) {
        if let Err(error) = writeln!(self.line, "{SERVING}") {
            warn!("the old process did not hear that this one serves: {error}; stop it by hand");
        }
    }
}

fn receive(line: &UnixStream) -> io::Result<Vec<(String, TcpListener)>> {
    line.set_read_timeout(Some(MESSAGE_MAX))?;
    let mut bytes = [0; MESSAGE_BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(LISTENERS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut into = [IoSliceMut::new(&mut bytes)];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = rustix::net::recvmsg(line, &mut into, &mut ancillary, flags)?.bytes;
    let mut descriptors: Vec<OwnedFd> = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(sent) = message {
            descriptors.extend(sent);
        }
    }
    let text = std::str::from_utf8(&bytes[..received]).unwrap_or_default();
    let unknown = || io::Error::new(io::ErrorKind::InvalidData, "it is of another release");
    let names = text.strip_prefix(PROTOCOL).ok_or_else(unknown)?;
    let names: Vec<&str> = names.split_whitespace().collect();
    if names.len() != descriptors.len() {
        return Err(unknown());
    }
    let named = names.into_iter().map(str::to_owned);
    let listeners = descriptors.into_iter().map(TcpListener::from);
    Ok(named.zip(listeners).collect())
}

/// What a process hands over.
#[derive(Debug)]
pub struct Handover {
    path: PathBuf,
    listeners: Vec<(&'static str, TcpListener)>,
}

impl Handover {
    /// Copies of these listeners, to be handed over by the process of this data folder.
    ///
    /// # Errors
    /// The process may open no more files.
    pub fn new<'a>(
        data_dir: &Path,
        listeners: impl IntoIterator<Item = (&'static str, &'a TcpListener)>,
    ) -> io::Result<Self> {
        let copied = listeners.into_iter().map(|(name, listener)| {
            let copy = listener.try_clone()?;
            Ok((name, copy))
        });
        Ok(Self {
            path: socket(data_dir),
            listeners: copied.collect::<io::Result<_>>()?,
        })
    }

    /// Waits for a successor that serves. Drop the future to hand over no longer: while it is
    /// there, connections wait in the listeners' queues even after this process accepts none.
    pub async fn replaced(self) {
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
                Ok(()) => return,
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

    async fn hand(&self, line: tokio::net::UnixStream) -> io::Result<()> {
        line.writable().await?;
        self.send(&line)?;
        info!("another process takes over");
        let mut said = String::new();
        let mut line = tokio::io::BufReader::new(line);
        let read = tokio::time::timeout(START_MAX, line.read_line(&mut said)).await;
        match read {
            Ok(Ok(_)) if said.trim_end() == SERVING => Ok(()),
            Ok(Ok(_)) => Err(io::Error::other("it ended before it served")),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    fn send(&self, line: &tokio::net::UnixStream) -> io::Result<()> {
        let names: Vec<&str> = self.listeners.iter().map(|(name, _)| *name).collect();
        let message = format!("{PROTOCOL} {}\n", names.join(" "));
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

#[cfg(test)]
mod tests {
    use super::*;

    fn listening() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    async fn found(dir: &Path) -> Predecessor {
        loop {
            let dir = dir.to_owned();
            let found = tokio::task::spawn_blocking(move || Predecessor::find(&dir)).await;
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
        let handover = Handover::new(dir.path(), own).unwrap();
        let running = tokio::spawn(handover.replaced());
        drop(found(dir.path()).await);
        let mut predecessor = found(dir.path()).await;
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
        running.await.unwrap();
    }

    #[tokio::test]
    async fn nobody_and_somebody_else_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Predecessor::find(dir.path()).unwrap().is_none());
        let other = std::os::unix::net::UnixListener::bind(socket(dir.path())).unwrap();
        let answering = std::thread::spawn(move || {
            let (mut line, _) = other.accept().unwrap();
            line.write_all(b"requestrocket-handover 2 gateway\n")
                .unwrap();
        });
        let said = Predecessor::find(dir.path()).unwrap_err().to_string();
        assert!(said.contains("another release"), "{said}");
        answering.join().unwrap();
        // The file of a process that was killed.
        assert!(Predecessor::find(dir.path()).unwrap().is_none());
    }
}
