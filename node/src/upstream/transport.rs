//! The byte stream of one connection, plain or TLS, as hyper drives it.
//!
//! Besides choosing between the two it does two small things. It counts what arrives, because
//! "not one byte of an answer came" is a condition of a replay, and what leaves, because an upload
//! under way is not silence. And it holds back write errors: a
//! target that answers 413 in the middle of an upload and closes makes our next write fail while
//! its answer waits in our receive buffer, and hyper would end the exchange on the write error
//! with the answer unread. So a write that fails because the peer is gone waits for ever, and
//! reading decides: the answer, if there is one, or the end.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// One connection's bytes.
pub(super) struct Transport {
    io: Io,
    received: Rc<Cell<u64>>,
    written: Rc<Cell<u64>>,
    write_broken: bool,
    pub(super) remote: SocketAddr,
}

impl Transport {
    pub(super) fn plain(stream: TcpStream, remote: SocketAddr) -> Self {
        Self::new(Io::Plain(stream), remote)
    }

    pub(super) fn tls(stream: TlsStream<TcpStream>, remote: SocketAddr) -> Self {
        Self::new(Io::Tls(Box::new(stream)), remote)
    }

    fn new(io: Io, remote: SocketAddr) -> Self {
        Self {
            io,
            received: Rc::default(),
            written: Rc::default(),
            write_broken: false,
            remote,
        }
    }

    /// Whether the handshake chose HTTP/2 (ALPN `h2`).
    pub(super) fn is_http2(&self) -> bool {
        match &self.io {
            Io::Plain(_) => false,
            Io::Tls(stream) => stream.get_ref().1.alpn_protocol() == Some(b"h2"),
        }
    }

    /// Bytes received so far, shared with whoever has to know.
    pub(super) fn received(&self) -> Rc<Cell<u64>> {
        self.received.clone()
    }

    /// Bytes written so far.
    pub(super) fn written(&self) -> Rc<Cell<u64>> {
        self.written.clone()
    }

    fn wrote(&mut self, outcome: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(count)) = &outcome {
            self.written
                .set(self.written.get().wrapping_add(*count as u64));
        }
        self.hold_back(outcome)
    }

    fn hold_back<T>(&mut self, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match outcome {
            Poll::Ready(Err(error)) if is_gone(&error) => {
                self.write_broken = true;
                Poll::Pending
            }
            outcome => outcome,
        }
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::NotConnected
    )
}

impl AsyncRead for Transport {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let outcome = match &mut this.io {
            Io::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Io::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        };
        let count = buf.filled().len().saturating_sub(before) as u64;
        this.received.set(this.received.get().wrapping_add(count));
        outcome
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.write_broken {
            // The reading side is polled by the same task and ends the connection.
            return Poll::Pending;
        }
        let outcome = match &mut this.io {
            Io::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Io::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        };
        this.wrote(outcome)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let [one] = bufs {
            // A head without a body; the plain system call is the cheaper one.
            return self.poll_write(cx, one);
        }
        let this = self.get_mut();
        if this.write_broken {
            return Poll::Pending;
        }
        let outcome = match &mut this.io {
            Io::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Io::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        };
        this.wrote(outcome)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(stream) => stream.is_write_vectored(),
            Io::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.write_broken {
            return Poll::Pending;
        }
        let outcome = match &mut this.io {
            Io::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Io::Tls(stream) => Pin::new(stream).poll_flush(cx),
        };
        this.hold_back(outcome)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.write_broken {
            return Poll::Ready(Ok(()));
        }
        match &mut this.io {
            Io::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Io::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
