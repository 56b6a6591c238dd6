//! A client that sends exactly the bytes it is told to and reads answers strictly.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;

use super::{Gateway, PATIENCE};

/// An answer as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }
}

/// One connection.
pub struct Client {
    io: TcpStream,
    read: Vec<u8>,
}

impl Client {
    pub fn connect(gateway: &Gateway) -> Self {
        Self::on(TcpStream::connect(gateway.addr).unwrap())
    }

    pub fn on(io: TcpStream) -> Self {
        io.set_nodelay(true).unwrap();
        io.set_read_timeout(Some(PATIENCE)).unwrap();
        io.set_write_timeout(Some(PATIENCE)).unwrap();
        Self {
            io,
            read: Vec::new(),
        }
    }

    pub fn local_addr(&self) -> std::net::SocketAddr {
        self.io.local_addr().unwrap()
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.io.write_all(bytes).unwrap();
    }

    /// Sends what the listener may refuse to take.
    pub fn try_send(&mut self, bytes: &[u8]) {
        let _ = self.io.write_all(bytes);
    }

    pub fn get(&mut self, target: &str) -> Answer {
        self.send(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes());
        self.answer()
    }

    /// Closes the sending side only.
    pub fn half_close(&self) {
        self.io.shutdown(std::net::Shutdown::Write).unwrap();
    }

    /// Another handle for the same connection.
    pub fn second(&self) -> TcpStream {
        self.io.try_clone().unwrap()
    }

    /// The next answer to a request with a body in its answer.
    pub fn answer(&mut self) -> Answer {
        self.try_answer(true).expect("an answer")
    }

    /// The next answer to a HEAD request.
    pub fn head_answer(&mut self) -> Answer {
        self.try_answer(false).expect("an answer")
    }

    /// The next answer, or `None` when the connection ends.
    pub fn try_answer(&mut self, with_body: bool) -> Option<Answer> {
        let head = loop {
            if let Some(end) = self.read.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                break self.consume(end + 4);
            }
            if !self.fill() {
                assert!(self.read.is_empty(), "half a head: {:?}", self.read);
                return None;
            }
        };
        let head = String::from_utf8(head).unwrap();
        let status = head[9..12].parse().unwrap();
        let mut answer = Answer {
            status,
            head,
            body: Vec::new(),
        };
        if with_body && status >= 200 && status != 204 && status != 304 {
            answer.body = self.body(&answer);
        }
        Some(answer)
    }

    fn body(&mut self, answer: &Answer) -> Vec<u8> {
        if answer.header("transfer-encoding") != Some("chunked") {
            let length = answer.header("content-length").unwrap().parse().unwrap();
            return self.exactly(length);
        }
        let mut body = Vec::new();
        loop {
            let chunk = self.chunk();
            if chunk.is_empty() {
                assert_eq!(self.exactly(2), b"\r\n");
                return body;
            }
            body.extend(chunk);
        }
    }

    /// The data of the next chunk.
    pub fn chunk(&mut self) -> Vec<u8> {
        let line = loop {
            if let Some(end) = self.read.windows(2).position(|bytes| bytes == b"\r\n") {
                break self.consume(end + 2);
            }
            assert!(self.fill(), "a cut body");
        };
        let size = std::str::from_utf8(&line).unwrap().trim();
        let size = usize::from_str_radix(size, 16).unwrap();
        let data = self.exactly(size);
        if size > 0 {
            assert_eq!(self.exactly(2), b"\r\n");
        }
        data
    }

    pub fn exactly(&mut self, length: usize) -> Vec<u8> {
        while self.read.len() < length {
            assert!(self.fill(), "a cut body");
        }
        self.consume(length)
    }

    /// Waits for the end; nothing may come before it.
    pub fn expect_end(&mut self) {
        while self.fill() {}
        assert_eq!(
            String::from_utf8_lossy(&self.read),
            "",
            "bytes behind the last answer"
        );
    }

    fn consume(&mut self, length: usize) -> Vec<u8> {
        let rest = self.read.split_off(length);
        std::mem::replace(&mut self.read, rest)
    }

    /// Reads some; whether the connection goes on.
    fn fill(&mut self) -> bool {
        let mut buf = [0; 65_536];
        match self.io.read(&mut buf) {
            Ok(0) => false,
            Ok(count) => {
                self.read.extend_from_slice(&buf[..count]);
                true
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => false,
            Err(error) => panic!("nothing came: {error}; before: {:?}", self.read),
        }
    }
}
