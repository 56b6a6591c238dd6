//! The socket that actix-web reads from: it passes on only what is certainly one request at a
//! time, in time, and ends everything else itself.
//!
//! Around a TCP or TLS stream. What actix-web 4.18 does not do and this does:
//! - every head is checked whole before a byte of it passes ([`super::head`]);
//! - every head, every read of a body, every stalled write and the idle time have a deadline
//!   (actix-web times the first head only);
//! - chunk extensions and trailers have an end;
//! - a request passes only when the one before it is answered, and none passes behind one that
//!   closes the connection;
//! - a client that goes away while a request is in hand ends the connection with an error, upon
//!   which actix-web drops the handler's future. (With an orderly end of file it would let the
//!   handler run on, or, with `h1_allow_half_closed(false)`, it would also take the handler away
//!   from a request whose body we cut and that is to be answered.) A client that closes only its
//!   sending side is taken for gone, as in nginx: the two cannot be told apart.
//!
//! A refusal between requests is written by this socket, when actix-web shuts it down. A refusal
//! within a body ends the payload with an error; the handler answers
//! ([`Connection::body_fault`]) and the connection closes.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::connection::Connection;
use super::farewell::Farewell;
use super::framing::{Framer, HeadLimits, Judgement, Next};
use super::refusal::Refusal;
use super::timers::Deadline;

/// How long a connection that ends early goes on to read, so that the answer is not lost to the
/// reset that unread bytes cause.
pub(super) const LINGER: Duration = Duration::from_secs(5);

/// How long a connection may take for what.
#[derive(Clone, Copy, Debug)]
pub struct SocketTimeouts {
    /// For a head, from its first byte; and for that first byte on a fresh connection.
    pub head: Duration,
    /// Between two reads of a body.
    pub body_read: Duration,
    /// For the client to take at least one byte of an answer.
    pub write: Duration,
    /// Between an answer and the next request.
    pub keep_alive: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Between requests, or within a head.
    Head,
    /// Within a body.
    Body,
    /// A request is whole; its answer is not.
    Answer,
    /// Nothing further is served; what comes is thrown away.
    Closing,
    /// actix-web is told that the client has ended.
    Ended,
}

/// A guarded connection. `P` is held for its life, such as a place among the connections.
#[derive(Debug)]
pub struct GuardedSocket<IO, P = ()> {
    io: IO,
    framer: Framer,
    timeouts: SocketTimeouts,
    connection: Connection,
    stage: Stage,
    /// What was read and has not passed on: a part of a head, or requests that came early.
    held: BytesMut,
    /// How many bytes at the front of `held` may pass on.
    released: usize,
    /// How many bytes may be held.
    held_max: usize,
    read_deadline: Deadline,
    write_deadline: Deadline,
    /// Whether the client was seen to go while its request was in hand.
    gone: bool,
    farewell: Farewell,
    _permit: P,
}

impl<IO, P> GuardedSocket<IO, P> {
    /// Guards a fresh connection.
    pub fn new(io: IO, limits: HeadLimits, timeouts: SocketTimeouts, permit: P) -> Self {
        let mut read_deadline = Deadline::none();
        read_deadline.set(timeouts.head);
        Self {
            io,
            framer: Framer::new(limits),
            timeouts,
            connection: Connection::default(),
            stage: Stage::Head,
            held: BytesMut::new(),
            released: 0,
            held_max: limits.bytes_max,
            read_deadline,
            write_deadline: Deadline::none(),
            gone: false,
            farewell: Farewell::default(),
            _permit: permit,
        }
    }

    /// The same socket for a connection about which more is known.
    pub fn with_connection(mut self, connection: Connection) -> Self {
        self.connection = connection;
        self
    }

    /// The same socket that does nothing but tell the client why it is refused.
    pub fn refusing(mut self, refusal: Refusal) -> Self {
        self.refuse(refusal);
        self
    }

    /// What is known of the connection; shared with its handlers.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Nothing more passes on.
    fn end(&mut self) {
        self.stage = Stage::Ended;
        self.read_deadline.clear();
    }

    /// Whether requests that came early wait to be judged.
    fn next_waits(&self) -> bool {
        self.stage == Stage::Head && self.framer.is_fresh() && !self.held.is_empty()
    }

    /// Ends the connection for a reason: by our own answer between requests, else by cutting the
    /// body of the request in hand.
    fn refuse(&mut self, refusal: Refusal) {
        self.connection.refused(refusal);
        self.end();
        self.held.truncate(self.released);
        if self.connection.in_flight() {
            self.connection.cut_body(refusal);
            self.farewell.linger();
        } else if self.connection.is_closing() {
            // The last answer has said that nothing follows.
            self.farewell.linger();
        } else {
            self.connection.close();
            self.farewell.say(refusal.answer());
        }
    }

    /// Goes on to the next request when the answer to the last one is given.
    fn settle(&mut self) {
        if self.connection.in_flight() {
            return;
        }
        match self.stage {
            Stage::Answer if self.connection.is_closing() => {
                self.stage = Stage::Closing;
                // actix-web ends it at once, or when the client has taken its answer.
                self.read_deadline.set(self.timeouts.write);
            }
            Stage::Answer => {
                self.stage = Stage::Head;
                self.framer.begin_next();
                self.read_deadline.set(self.timeouts.keep_alive);
            }
            // Answered before its body was over: actix-web only waits for the rest now.
            Stage::Body if !self.farewell.lingers() => {
                self.farewell.linger();
                self.connection.close();
                self.read_deadline.set(LINGER);
            }
            _ => {}
        }
    }

    fn time_out(&mut self) {
        match self.stage {
            Stage::Body if self.connection.in_flight() => self.refuse(Refusal::BodyTimeout),
            Stage::Head if !self.held.is_empty() => self.refuse(Refusal::HeadTimeout),
            // Nothing was begun, so nothing is answered.
            _ => self.end(),
        }
    }

    /// Follows a judgement on bytes of which the front passes on.
    fn follow(&mut self, judgement: Judgement, begins: bool) {
        if judgement.head {
            self.connection.begin_request();
        }
        match judgement.next {
            Next::Read if self.framer.in_head() => {
                if begins {
                    self.read_deadline.set(self.timeouts.head);
                }
            }
            Next::Read => {
                self.stage = Stage::Body;
                if !self.farewell.lingers() {
                    self.read_deadline.clear();
                }
            }
            Next::Ended => {
                self.stage = Stage::Answer;
                self.read_deadline.clear();
                self.connection.end_body();
                if self.framer.closes() {
                    self.connection.close();
                }
            }
            Next::Refused(refusal) => self.refuse(refusal),
        }
    }

    /// Judges what is held, which begins with the first byte of a head.
    fn judge_held(&mut self, begins: bool) {
        let judgement = self.framer.judge(&mut self.held);
        self.released = judgement.pass;
        self.follow(judgement, begins);
    }

    /// Takes the bytes behind `start` in `buf`, which were just read. Those that may not pass on
    /// yet are taken out again.
    fn take(&mut self, buf: &mut ReadBuf<'_>, start: usize) {
        let fresh = &mut buf.filled_mut()[start..];
        match self.stage {
            Stage::Head | Stage::Body if self.held.is_empty() => {
                let judgement = self.framer.judge(fresh);
                self.held.extend_from_slice(&fresh[judgement.pass..]);
                buf.set_filled(start + judgement.pass);
                self.follow(judgement, true);
            }
            Stage::Head => {
                self.held.extend_from_slice(fresh);
                buf.set_filled(start);
                self.judge_held(false);
            }
            Stage::Answer if !self.connection.is_closing() => {
                self.held.extend_from_slice(fresh);
                buf.set_filled(start);
            }
            // In `Body` nothing is held, see `follow`.
            Stage::Body | Stage::Answer | Stage::Closing | Stage::Ended => {
                self.farewell.linger();
                buf.set_filled(start);
            }
        }
    }

    /// Passes on what is released; whether anything was.
    fn hand_on(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        let count = self.released.min(buf.remaining());
        if count == 0 {
            return false;
        }
        buf.put_slice(self.held.get(..count).unwrap_or_default());
        self.held.advance(count);
        self.released -= count;
        if self.held.is_empty() {
            // Memory is for connections that hold something.
            self.held = BytesMut::new();
        }
        true
    }

    /// The client has ended, or the connection has.
    fn leave(&mut self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        if !self.connection.in_flight() {
            self.end();
            return Poll::Ready(Ok(()));
        }
        if !self.gone {
            // Once more round, so that a handler that answers at once still does.
            self.gone = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Err(io::Error::new(
            io::ErrorKind::ConnectionAborted,
            "the client went away before it was answered",
        )))
    }

    /// Sets the deadline for what the socket waits for now.
    fn await_bytes(&mut self) {
        let waits = self.stage == Stage::Body && !self.framer.in_tunnel();
        if waits && !self.read_deadline.is_set() {
            self.read_deadline.set(self.timeouts.body_read);
        }
    }
}

impl<IO: AsyncRead + Unpin, P: Unpin> AsyncRead for GuardedSocket<IO, P> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.settle();
        loop {
            if buf.remaining() == 0 || this.hand_on(buf) || this.stage == Stage::Ended {
                return Poll::Ready(Ok(()));
            }
            if this.next_waits() {
                this.judge_held(true);
                continue;
            }
            if this.gone {
                return this.leave(cx);
            }
            if this.stage == Stage::Answer && this.held.len() >= this.held_max {
                // Full. The flush behind the answer wakes this task.
                return Poll::Pending;
            }
            let start = buf.filled().len();
            match Pin::new(&mut this.io).poll_read(cx, buf) {
                Poll::Ready(Ok(())) if buf.filled().len() > start => {
                    this.take(buf, start);
                    if buf.filled().len() > start {
                        return Poll::Ready(Ok(()));
                    }
                }
                Poll::Ready(_) => return this.leave(cx),
                Poll::Pending => {
                    this.await_bytes();
                    if !this.read_deadline.is_over(cx) {
                        return Poll::Pending;
                    }
                    this.time_out();
                }
            }
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin, P: Unpin> GuardedSocket<IO, P> {
    /// Watches that a write does not stall for ever.
    fn in_time<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.write_deadline.clear();
            return written;
        }
        if !self.write_deadline.is_set() {
            self.write_deadline.set(self.timeouts.write);
        }
        if self.write_deadline.is_over(cx) {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the client takes no byte of its answer",
            )));
        }
        Poll::Pending
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin, P: Unpin> AsyncWrite for GuardedSocket<IO, P> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.io).poll_write(cx, bytes);
        this.in_time(cx, written)
    }

    /// actix-web flushes behind every answer: the moment to go on to the next request.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.settle();
        if this.next_waits() || this.read_deadline.is_over(cx) {
            cx.waker().wake_by_ref();
        }
        let flushed = Pin::new(&mut this.io).poll_flush(cx);
        this.in_time(cx, flushed)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.end();
        ready!(this.farewell.poll(cx, &mut this.io));
        Poll::Ready(Ok(()))
    }
}
