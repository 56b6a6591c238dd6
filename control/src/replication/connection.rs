//! The side of a connection between the control planes of two regions that asks.
//!
//! Many asks may be under way at one time. From protocol 11 on each has a number, and the parts of
//! answers come in any order; before that answers come in the order of the asks.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proto::wire::link::{GREETING_BYTES_MAX, Welcome, read_frame, write_frame};
use proto::wire::replication::{
    Answer, AnswerPart, Ask, NumberedAsk, PROTOCOL, PROTOCOL_MIN, PROTOCOL_NUMBERED, RegionHello,
};
use proto::wire::{self, HEAD_BYTES, PAYLOAD_BYTES_MAX};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

use crate::regions::host_of;

/// Longest time for a connection, a handshake and a greeting.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// Longest wait for an answer, beyond what the ask itself may wait; also for a frame to be taken.
pub(super) const ANSWER_MAX: Duration = Duration::from_secs(30);
/// The same for an answer with content, which shares the way with those of other organisations.
const CONTENT_MAX: Duration = Duration::from_secs(120);
/// Largest frame, in bytes.
pub(super) const FRAME_BYTES_MAX: usize = HEAD_BYTES + PAYLOAD_BYTES_MAX;
/// Frames that wait to be written.
const FRAMES_MAX: usize = 16;

/// How other regions are called.
pub enum Dialer {
    /// With our certificate, and whom we trust.
    Tls(Arc<ClientConfig>),
    /// In one process.
    #[cfg(test)]
    Within(Arc<super::tests::net::Net>),
}

impl Dialer {
    /// Connects one region to a link listener of another.
    ///
    /// # Errors
    /// It does not answer, is not who it should be, or refuses.
    pub(super) async fn dial(
        &self,
        endpoint: &str,
        between: (&str, &str),
    ) -> io::Result<Connection> {
        match self {
            Self::Tls(tls) => Connection::open(endpoint, tls.clone(), between).await,
            #[cfg(test)]
            Self::Within(net) => net.dial(between).await,
        }
    }
}

/// What a connection runs over.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// A connection to another region, which is asked.
pub(super) struct Connection {
    frames: mpsc::Sender<Vec<u8>>,
    waiting: Arc<Waiting>,
    carrying: JoinHandle<()>,
    peer: String,
    protocol: u16,
    /// Whether asks have numbers.
    numbered: bool,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.carrying.abort();
    }
}

impl Connection {
    /// Connects to one link listener.
    ///
    /// # Errors
    /// It does not answer, is not who it should be, or refuses.
    pub async fn open(
        endpoint: &str,
        tls: Arc<ClientConfig>,
        (own, peer): (&str, &str),
    ) -> io::Result<Self> {
        let opening = async {
            let name = ServerName::try_from(host_of(endpoint).to_owned()).map_err(invalid)?;
            let tcp = TcpStream::connect(endpoint).await?;
            tcp.set_nodelay(true)?;
            let stream = TlsConnector::from(tls).connect(name, tcp).await?;
            Self::over(Box::new(stream), (own, peer)).await
        };
        tokio::time::timeout(CONNECT_MAX, opening).await?
    }

    /// Greets over a stream, as one region to another.
    ///
    /// # Errors
    /// The other side is no control plane, or refuses.
    pub async fn over(stream: Box<dyn Stream>, between: (&str, &str)) -> io::Result<Self> {
        Self::greet(stream, between, PROTOCOL).await
    }

    /// The same, speaking no higher protocol than this.
    async fn greet(
        mut stream: Box<dyn Stream>,
        (own, peer): (&str, &str),
        protocol: u16,
    ) -> io::Result<Self> {
        let hello = RegionHello {
            protocol,
            region: own.to_owned(),
        };
        write_frame(&mut stream, &hello).await?;
        let frame = read_frame(&mut stream, GREETING_BYTES_MAX).await?;
        let frame = frame.ok_or(io::ErrorKind::UnexpectedEof)?;
        let welcome: Welcome = wire::decode(&frame).map_err(invalid)?;
        match welcome.refused {
            None if welcome.protocol < PROTOCOL_MIN => Err(invalid(format!(
                "it speaks protocol {}: region {peer} runs an older program",
                welcome.protocol
            ))),
            None => {
                let protocol = welcome.protocol.min(protocol);
                let (frames, to_write) = mpsc::channel(FRAMES_MAX);
                let waiting = Arc::new(Waiting::default());
                let numbered = protocol >= PROTOCOL_NUMBERED;
                let carrying = tokio::spawn(carry(stream, to_write, waiting.clone(), numbered));
                Ok(Self {
                    frames,
                    waiting,
                    carrying,
                    peer: peer.to_owned(),
                    protocol,
                    numbered,
                })
            }
            Some(why) => Err(io::Error::new(io::ErrorKind::PermissionDenied, why)),
        }
    }

    /// A connection to a side that speaks no higher protocol.
    ///
    /// # Errors
    /// As of [`Self::over`].
    #[cfg(test)]
    pub async fn over_earlier(
        stream: Box<dyn Stream>,
        between: (&str, &str),
        protocol: u16,
    ) -> io::Result<Self> {
        Self::greet(stream, between, protocol).await
    }

    /// The region that is asked.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// The same connection, as if the other side knew no asks of a higher protocol.
    #[cfg(test)]
    pub fn speaking(mut self, protocol: u16) -> Self {
        self.protocol = protocol;
        self
    }

    /// The protocol that both sides speak.
    pub fn protocol(&self) -> u16 {
        self.protocol
    }

    /// Asks and waits for the answer, which itself may wait so long.
    ///
    /// # Errors
    /// The connection broke, or the answer is late; it is not to be used again.
    pub async fn ask(&self, ask: &Ask, wait: Duration) -> io::Result<Answer> {
        let answer_max = match ask {
            Ask::News { .. } | Ask::Applied(_) | Ask::Clock => ANSWER_MAX,
            Ask::Home { .. } | Ask::Shares(_) => ANSWER_MAX,
            _ if !self.numbered => ANSWER_MAX,
            _ => CONTENT_MAX,
        };
        let exchange = async {
            let answer = self.send(ask).await?;
            // A sender that is dropped without a word is of a task that was ended.
            let ended = |_| io::Error::from(io::ErrorKind::BrokenPipe);
            answer.await.map_err(ended)?
        };
        tokio::time::timeout(wait + answer_max, exchange).await?
    }

    /// Sends an ask; gives what its answer comes by.
    async fn send(&self, ask: &Ask) -> io::Result<oneshot::Receiver<io::Result<Answer>>> {
        // What is waited for stands in the order of what is written.
        let Ok(place) = self.frames.reserve().await else {
            return Err(self.waiting.why());
        };
        let (given, answer) = oneshot::channel();
        let mut waiting = self.waiting.lock();
        if let Some(why) = &waiting.broken {
            return Err(again(why));
        }
        let number = waiting.next;
        waiting.next += 1;
        let frame = match self.numbered {
            true => wire::encode(&NumberedAsk {
                number,
                ask: ask.clone(),
            }),
            false => wire::encode(ask),
        };
        let frame = frame.map_err(invalid)?;
        waiting.asks.push_back(Waiter {
            number,
            parts: Vec::new(),
            given,
        });
        // Under the lock: where asks have no numbers, answers are told apart by their order alone,
        // and two asks of different threads would be written in another one. It never waits.
        place.send(frame);
        drop(waiting);
        Ok(answer)
    }
}

/// The asks that have no answer yet.
#[derive(Default)]
struct Waiting(Mutex<Asks>);

#[derive(Default)]
struct Asks {
    next: u64,
    asks: VecDeque<Waiter>,
    /// Why nothing is answered any more.
    broken: Option<io::Error>,
}

/// Who waits for an answer.
struct Waiter {
    number: u64,
    /// What came of its frame.
    parts: Vec<u8>,
    given: oneshot::Sender<io::Result<Answer>>,
}

impl Waiting {
    // A poisoned value is whole: no change to it panics half way.
    fn lock(&self) -> MutexGuard<'_, Asks> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn why(&self) -> io::Error {
        let asks = self.lock();
        let none = || io::ErrorKind::BrokenPipe.into();
        asks.broken.as_ref().map_or_else(none, again)
    }

    /// Ends everything that waits.
    fn end(&self, why: io::Error) {
        let mut asks = self.lock();
        for waiter in asks.asks.drain(..) {
            // Who does not wait any more need not know.
            drop(waiter.given.send(Err(again(&why))));
        }
        asks.broken = Some(why);
    }

    /// Gives an answer to the ask that was sent first.
    fn answer(&self, frame: &[u8]) -> io::Result<()> {
        let waiter = self.lock().asks.pop_front().ok_or_else(unasked)?;
        let answer = wire::decode(frame).map_err(invalid)?;
        drop(waiter.given.send(Ok(answer)));
        Ok(())
    }

    /// Adds a part to an answer, and gives the answer with the last one.
    fn add(&self, part: AnswerPart) -> io::Result<()> {
        let mut asks = self.lock();
        let found = asks.asks.iter().position(|of| of.number == part.number);
        let waiter = found.and_then(|at| asks.asks.get_mut(at));
        let waiter = waiter.ok_or_else(unasked)?;
        if waiter.parts.len().saturating_add(part.bytes.len()) > FRAME_BYTES_MAX {
            return Err(invalid("an answer that is larger than a frame"));
        }
        waiter.parts.extend(part.bytes);
        let waiter = match found.filter(|_| part.last) {
            Some(at) => asks.asks.remove(at),
            None => None,
        };
        drop(asks);
        let Some(waiter) = waiter else {
            return Ok(());
        };
        let answer = wire::decode(&waiter.parts).map_err(invalid)?;
        drop(waiter.given.send(Ok(answer)));
        Ok(())
    }
}

/// Writes asks and reads answers until the stream ends.
async fn carry(
    stream: Box<dyn Stream>,
    mut frames: mpsc::Receiver<Vec<u8>>,
    waiting: Arc<Waiting>,
    numbered: bool,
) {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let writing = async {
        while let Some(frame) = frames.recv().await {
            writer.write_all(&frame).await?;
            writer.flush().await?;
        }
        io::Result::Ok(())
    };
    let reading = async {
        while let Some(frame) = read_frame(&mut reader, FRAME_BYTES_MAX).await? {
            match numbered {
                true => waiting.add(wire::decode(&frame).map_err(invalid)?)?,
                false => waiting.answer(&frame)?,
            }
        }
        io::Result::Ok(())
    };
    let ended = tokio::select! {
        written = writing => written,
        read = reading => read,
    };
    let ended = ended.err().unwrap_or(io::ErrorKind::UnexpectedEof.into());
    waiting.end(ended);
}

fn unasked() -> io::Error {
    invalid("an answer to what was not asked")
}

/// The same error for somebody else.
fn again(error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), error.to_string())
}

pub(super) fn invalid(error: impl ToString) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}
