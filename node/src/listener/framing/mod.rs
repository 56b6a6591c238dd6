//! Where requests begin and end on a connection: a pure state machine over the bytes read.
//!
//! The socket hands it bytes and is told how many of them may pass on. A head passes only when it
//! is whole and well formed; until then the socket keeps its bytes. Bytes of a
//! `Content-Length` body are counted, not looked at. What is refused stays refused.

use crate::listener::chunked::Chunked;
use crate::listener::class::find_lf;
use crate::listener::head::{Body, begins_request, read_head};
use crate::listener::refusal::Refusal;

/// The sizes that a head may have.
#[derive(Clone, Copy, Debug)]
pub struct HeadLimits {
    /// Bytes from the first to the empty line, both included.
    pub bytes_max: usize,
    /// Fields.
    pub headers_max: usize,
}

/// What the socket does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Read more: of the head, with the bytes that did not pass in front; or of the body.
    Read,
    /// The request has ended; what did not pass belongs to the next one.
    Ended,
    /// Nothing more may pass on this connection.
    Refused(Refusal),
}

/// The judgement on some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// How many bytes at the front may pass on.
    pub pass: usize,
    /// Whether a head is among them.
    pub head: bool,
    /// What to do next.
    pub next: Next,
}

#[derive(Clone, Debug)]
enum State {
    Head,
    Length(u64),
    Chunked(Chunked),
    Tunnel,
    Ended,
    Refused(Refusal),
}

/// Follows the requests of one connection.
#[derive(Clone, Debug)]
pub struct Framer {
    limits: HeadLimits,
    state: State,
    /// How many bytes of the head were searched for its end.
    searched: usize,
    /// Where the line begins in which the search stands.
    line_start: usize,
    /// Where the request line begins: behind the one empty line that may be in front of it.
    head_start: usize,
    closes: bool,
}

impl Framer {
    /// At the first byte of a connection.
    pub const fn new(limits: HeadLimits) -> Self {
        Self {
            limits,
            state: State::Head,
            searched: 0,
            line_start: 0,
            head_start: 0,
            closes: false,
        }
    }

    /// Whether the next byte belongs to a head.
    pub const fn in_head(&self) -> bool {
        matches!(self.state, State::Head)
    }

    /// Whether no byte of the request was judged yet.
    pub const fn is_fresh(&self) -> bool {
        self.in_head() && self.searched == 0
    }

    /// Whether the bytes that follow are of another protocol.
    pub const fn in_tunnel(&self) -> bool {
        matches!(self.state, State::Tunnel)
    }

    /// Whether the request said that it is the connection's last.
    pub const fn closes(&self) -> bool {
        self.closes
    }

    /// Goes on to the next request, after [`Next::Ended`]; does nothing anywhere else.
    pub fn begin_next(&mut self) {
        if matches!(self.state, State::Ended) {
            *self = Self::new(self.limits);
        }
    }

    /// Judges the bytes that came.
    ///
    /// In a head the input must begin with the head's first byte each time, grown by what was
    /// read since. May overwrite `upgrade` in `Connection`, see [`read_head`].
    pub fn judge(&mut self, input: &mut [u8]) -> Judgement {
        let mut start = 0;
        let in_head = self.in_head();
        if in_head {
            match self.take_head(input) {
                Ok(Some(end)) => start = end,
                Ok(None) => {
                    return Judgement {
                        pass: 0,
                        head: false,
                        next: Next::Read,
                    };
                }
                Err(refusal) => {
                    self.state = State::Refused(refusal);
                    return Judgement {
                        pass: 0,
                        head: false,
                        next: Next::Refused(refusal),
                    };
                }
            }
        }
        let (used, next) = self.take_body(input.get(start..).unwrap_or_default());
        Judgement {
            pass: start + used,
            head: in_head,
            next,
        }
    }

    fn take_head(&mut self, input: &mut [u8]) -> Result<Option<usize>, Refusal> {
        let Some(end) = self.find_head_end(input)? else {
            return Ok(None);
        };
        let head = input.get_mut(self.head_start..end).unwrap_or_default();
        let head = read_head(head, self.limits.headers_max)?;
        self.closes = head.closes;
        self.state = match head.body {
            Body::None => State::Length(0),
            Body::Length(length) => State::Length(length),
            Body::Chunked => State::Chunked(Chunked::new()),
            Body::Tunnel => State::Tunnel,
        };
        Ok(Some(end))
    }

    /// Where the byte behind the empty line is. Each byte is searched once, however it comes.
    fn find_head_end(&mut self, input: &[u8]) -> Result<Option<usize>, Refusal> {
        if self.searched == 0 && input.first().is_some_and(|first| !begins_request(*first)) {
            return Err(Refusal::NotHttp);
        }
        let within = &input[..input.len().min(self.limits.bytes_max)];
        while let Some(found) = find_lf(&within[self.searched..]) {
            let lf = self.searched + found;
            self.searched = lf + 1;
            let line = &within[self.line_start..lf];
            if line.last() != Some(&b'\r') {
                return Err(Refusal::BareLf);
            }
            let begins_here = self.line_start == self.head_start;
            self.line_start = lf + 1;
            if line.len() > 1 {
                continue;
            }
            if !begins_here {
                return Ok(Some(lf + 1));
            }
            // RFC 9112 2.2: at least one empty line before a request is ignored. Not more: what
            // follows them is no request then.
            if self.head_start > 0 {
                return Err(Refusal::EmptyLines);
            }
            self.head_start = lf + 1;
        }
        self.searched = within.len();
        if input.len() >= self.limits.bytes_max {
            return Err(Refusal::HeadTooLarge);
        }
        Ok(None)
    }

    fn take_body(&mut self, input: &[u8]) -> (usize, Next) {
        match &mut self.state {
            State::Length(left) => {
                let used = usize::try_from(*left).map_or(input.len(), |left| left.min(input.len()));
                *left -= used as u64;
                if *left > 0 {
                    return (used, Next::Read);
                }
                self.state = State::Ended;
                (used, Next::Ended)
            }
            State::Chunked(chunked) => {
                let advance = chunked.advance(input);
                let next = match advance.end {
                    None => Next::Read,
                    Some(Ok(())) => {
                        self.state = State::Ended;
                        Next::Ended
                    }
                    Some(Err(refusal)) => {
                        self.state = State::Refused(refusal);
                        Next::Refused(refusal)
                    }
                };
                (advance.used, next)
            }
            State::Tunnel => (input.len(), Next::Read),
            State::Head => (0, Next::Read),
            State::Ended => (0, Next::Ended),
            State::Refused(refusal) => (0, Next::Refused(*refusal)),
        }
    }
}

#[cfg(test)]
mod tests;
