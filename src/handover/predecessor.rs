//! The side that takes over: listeners of a running process, and the line to it.

use std::io::{self, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use tracing::{info, warn};

use super::{LISTENERS_MAX, Role, socket};
use crate::serve::CannotStart;

/// Longest first message.
const MESSAGE_BYTES_MAX: usize = 256;
/// How long the other side may take for a message that it has ready.
const MESSAGE_MAX: Duration = Duration::from_secs(5);
/// Connections that may wait for their place in the queue of a socket while nobody accepts; the
/// system may have a lower bound (`net.core.somaxconn`). Beyond it they are not refused: who asks
/// is not answered, and asks again after a second.
const QUEUE_MAX: i32 = 4_096;

/// Listeners of a running process, and the line to it.
#[derive(Debug)]
pub struct Predecessor {
    role: Role,
    listeners: Vec<(String, TcpListener)>,
    line: UnixStream,
}

impl Predecessor {
    /// Asks the process that uses the data folder for its listeners; `None` where none hands over.
    ///
    /// # Errors
    /// [`CannotStart`]: it answers, and not as one of this role and release does.
    pub fn find(data_dir: &Path, role: Role) -> anyhow::Result<Option<Self>> {
        let path = socket(data_dir);
        let line = match UnixStream::connect(&path) {
            Ok(line) => line,
            Err(error) => {
                info!("nothing to take over at {}: {error}", path.display());
                return Ok(None);
            }
        };
        let taken = receive(&line, role).map_err(|error| {
            CannotStart(format!(
                "the process that runs on {} did not hand over its listeners: {error}; stop it and \
                 start without --take-over",
                data_dir.display()
            ))
        })?;
        Ok(Some(Self {
            role,
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
        if !fits(&listener) {
            info!("{name} listens on {wanted} from now on, the old address goes with the old one");
            return None;
        }
        if let Err(error) = rustix::net::listen(&listener, QUEUE_MAX) {
            warn!("the queue of {name} stays as it is: {error}");
        }
        Some(listener)
    }

    /// Does this for as long as the old process serves and waits for this one; `None` when it does
    /// so no longer: it was asked to end, or was killed.
    pub async fn while_it_serves<T>(&self, doing: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            // What is done counts, even where the old process ends at that moment.
            biased;
            done = doing => Some(done),
            () = self.ended() => None,
        }
    }

    /// It says nothing after its greeting: its end of the line closes, or stays open.
    async fn ended(&self) {
        let watched = self.line.try_clone().and_then(|line| {
            line.set_nonblocking(true)?;
            tokio::net::UnixStream::from_std(line)
        });
        let line = match watched {
            Ok(line) => line,
            Err(error) => {
                warn!("it cannot be seen whether the old process is there: {error}");
                return std::future::pending().await;
            }
        };
        let mut said = [0; 1];
        while line.readable().await.is_ok() {
            match line.try_read(&mut said) {
                Ok(1..) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(0) | Err(_) => return,
            }
        }
    }

    /// Says that this process serves; the old one drains and ends.
    pub fn replaced(mut self) {
        match self.say() {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                info!("the old process had ended before this one served");
            }
            Err(error) => {
                warn!("the old process did not hear that this one serves: {error}; stop it by hand")
            }
        }
    }

    /// Asks the old process to end. It ends with an error if the line that is given ends before.
    pub fn leave(mut self) -> UnixStream {
        // One that cannot be told ends by itself.
        if self.say().is_ok() {
            info!("the old process ends what it has in hand, callers wait meanwhile");
        }
        self.line
    }

    fn say(&mut self) -> io::Result<()> {
        writeln!(self.line, "{}", self.role.word())
    }
}

fn receive(line: &UnixStream, role: Role) -> io::Result<Vec<(String, TcpListener)>> {
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
    let unknown = || {
        let why = "it is of another release, or another command";
        io::Error::new(io::ErrorKind::InvalidData, why)
    };
    let names = text.strip_prefix(role.greeting()).ok_or_else(unknown)?;
    let names: Vec<&str> = names.split_whitespace().collect();
    if names.len() != descriptors.len() {
        return Err(unknown());
    }
    let named = names.into_iter().map(str::to_owned);
    let listeners = descriptors.into_iter().map(TcpListener::from);
    Ok(named.zip(listeners).collect())
}
