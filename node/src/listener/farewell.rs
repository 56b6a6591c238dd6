//! How a connection ends: a last answer if there is one to give, our end of the stream, and a
//! short time to read what the client is still sending.
//!
//! A socket closed with unread bytes resets the connection, and a reset can throw away the answer
//! before the client reads it (RFC 9112 9.6). So a connection that ends in the middle of a
//! request is half closed first and read empty, for [`LINGER`] at most.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::socket::LINGER;
use super::timers::Deadline;

/// Enough to empty a socket in few calls.
const SCRATCH_BYTES: usize = 4 * 1024;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Step {
    #[default]
    Say,
    Close,
    Read,
    Done,
}

/// The end of a connection.
#[derive(Debug, Default)]
pub(super) struct Farewell {
    answer: Vec<u8>,
    said: usize,
    lingers: bool,
    step: Step,
    deadline: Deadline,
}

impl Farewell {
    /// Gives a last answer first.
    pub(super) fn say(&mut self, answer: Vec<u8>) {
        self.answer = answer;
        self.lingers = true;
    }

    /// Reads on for a while after our end is closed.
    pub(super) const fn linger(&mut self) {
        self.lingers = true;
    }

    /// Whether it reads on.
    pub(super) const fn lingers(&self) -> bool {
        self.lingers
    }

    /// Goes through the end; ready when it is over. An error of the stream is an end too.
    pub(super) fn poll<IO>(&mut self, cx: &mut Context<'_>, io: &mut IO) -> Poll<()>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        if !self.deadline.is_set() {
            self.deadline.set(LINGER);
        }
        if self.advance(cx, io).is_ready() || self.deadline.is_over(cx) {
            self.step = Step::Done;
            return Poll::Ready(());
        }
        Poll::Pending
    }

    fn advance<IO>(&mut self, cx: &mut Context<'_>, io: &mut IO) -> Poll<()>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        loop {
            self.step = match self.step {
                Step::Say if self.said < self.answer.len() => {
                    let rest = self.answer.get(self.said..).unwrap_or_default();
                    match ready!(Pin::new(&mut *io).poll_write(cx, rest)) {
                        Ok(0) | Err(_) => Step::Done,
                        Ok(count) => {
                            self.said += count;
                            Step::Say
                        }
                    }
                }
                Step::Say => match ready!(Pin::new(&mut *io).poll_flush(cx)) {
                    Ok(()) => Step::Close,
                    Err(_) => Step::Done,
                },
                Step::Close => match ready!(Pin::new(&mut *io).poll_shutdown(cx)) {
                    Ok(()) if self.lingers => Step::Read,
                    _ => Step::Done,
                },
                Step::Read => {
                    let mut scratch = [0; SCRATCH_BYTES];
                    let mut buf = ReadBuf::new(&mut scratch);
                    match ready!(Pin::new(&mut *io).poll_read(cx, &mut buf)) {
                        Ok(()) if !buf.filled().is_empty() => Step::Read,
                        _ => Step::Done,
                    }
                }
                Step::Done => return Poll::Ready(()),
            };
        }
    }
}
