//! HTTP/1.1 over a plain socket, as callers that a library would not let us be: every byte of a
//! request is ours, and an answer is read as it comes.

use std::cell::RefCell;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

/// Longest silence of a peer; a test that waits longer has failed. So long that a machine which has
/// much to do besides is no reason.
pub const SILENCE_MAX: Duration = Duration::from_secs(120);

/// So much of the body of the last answer is shown by a wait that was in vain.
const SHOWN_CHARS: usize = 600;

thread_local! {
    /// The last answer to [`Request::send`] of this thread.
    static LAST: RefCell<Option<Message>> = const { RefCell::new(None) };
}

/// The last answer that this thread got, for whoever has waited for another one.
pub fn last_answer() -> String {
    let last = LAST.with_borrow(Clone::clone);
    last.map_or_else(String::new, |answer| {
        let text: String = answer.text().chars().take(SHOWN_CHARS).collect();
        format!("; the last answer was {} {text}", answer.start)
    })
}

/// A message's start line, fields and body, whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// The request line or the status line.
    pub start: String,
    /// Fields in their order, names in small letters.
    pub fields: Vec<(String, String)>,
    /// The body, without its framing.
    pub body: Vec<u8>,
    /// Whether the body ended as its framing says.
    pub complete: bool,
}

impl Message {
    /// The value of a field; the first of several.
    pub fn field(&self, name: &str) -> Option<&str> {
        let found = self.fields.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    /// An answer's status.
    pub fn status(&self) -> u16 {
        let status = self.start.split(' ').nth(1);
        let status = status.and_then(|text| text.parse().ok());
        status.unwrap_or_else(|| panic!("no status in {:?}", self.start))
    }

    /// A request's method.
    pub fn method(&self) -> &str {
        self.start.split(' ').next().unwrap_or_default()
    }

    /// A request's target.
    pub fn target(&self) -> &str {
        self.start.split(' ').nth(1).unwrap_or_default()
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{} {:?}: {error}", self.start, self.text()))
    }

    /// The status and our code for it.
    pub fn outcome(&self) -> (u16, &str) {
        let code = self.field("requestrocket-proxy-code").unwrap_or_default();
        (self.status(), code)
    }
}

/// A connection whose answers are read in turn.
pub struct Connection {
    reader: BufReader<TcpStream>,
}

impl Connection {
    /// Connects to `host:port` or `http://host:port`.
    pub fn open(address: &str) -> Self {
        let address = address.trim_start_matches("http://");
        let stream = TcpStream::connect(address)
            .unwrap_or_else(|error| panic!("connecting to {address}: {error}"));
        Self::of(stream)
    }

    /// A connection that is open already.
    pub fn of(stream: TcpStream) -> Self {
        stream.set_nodelay(true).expect("a socket");
        stream
            .set_read_timeout(Some(SILENCE_MAX))
            .expect("a socket");
        Self {
            reader: BufReader::new(stream),
        }
    }

    /// The socket.
    pub fn stream(&mut self) -> &mut TcpStream {
        self.reader.get_mut()
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream()
            .write_all(bytes.as_ref())
            .expect("the peer reads");
    }

    /// The next message, or `None` when the peer has closed. Interim answers are passed over.
    pub fn read(&mut self) -> Option<Message> {
        self.read_to("GET")
    }

    /// The next answer to a request of this method.
    pub fn read_to(&mut self, method: &str) -> Option<Message> {
        loop {
            let mut message = self.head()?;
            let answer = message.start.starts_with("HTTP/");
            if answer && (100..200).contains(&message.status()) {
                continue;
            }
            let bodiless = answer && (method == "HEAD" || [204, 304].contains(&message.status()));
            if bodiless {
                message.complete = true;
            } else {
                self.body(&mut message, answer);
            }
            return Some(message);
        }
    }

    /// The next head; `None` when the peer has closed or was reset before it ended.
    pub fn head(&mut self) -> Option<Message> {
        let mut message = Message {
            start: self.line()?,
            ..Message::default()
        };
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Some(message);
            }
            let (name, value) = line.split_once(':').unwrap_or((&line, ""));
            let field = (name.to_ascii_lowercase(), value.trim().to_owned());
            message.fields.push(field);
        }
    }

    /// A line without its end; `None` where the stream ends.
    fn line(&mut self) -> Option<String> {
        let mut line = Vec::new();
        match self.reader.read_until(b'\n', &mut line) {
            Ok(_) if line.ends_with(b"\n") => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                panic!("the peer was silent for {SILENCE_MAX:?}")
            }
            _ => return None,
        }
        let line = String::from_utf8_lossy(&line);
        Some(line.trim_end_matches(['\r', '\n']).to_owned())
    }

    /// Reads what is there; `None` at the end of the stream.
    pub fn some(&mut self) -> Option<Vec<u8>> {
        let found = match self.reader.fill_buf() {
            Ok([]) => return None,
            Ok(bytes) => bytes.to_vec(),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                panic!("the peer was silent for {SILENCE_MAX:?}")
            }
            Err(_) => return None,
        };
        self.reader.consume(found.len());
        Some(found)
    }

    fn body(&mut self, message: &mut Message, answer: bool) {
        if message.field("transfer-encoding").is_some() {
            message.complete = self.chunks(&mut message.body).is_some();
        } else if let Some(length) = message.field("content-length") {
            let length: u64 = length.parse().expect("a length is a number");
            let mut limited = (&mut self.reader).take(length);
            let whole = limited.read_to_end(&mut message.body).is_ok();
            message.complete = whole && message.body.len() as u64 == length;
        } else if answer {
            message.complete = self.reader.read_to_end(&mut message.body).is_ok();
        } else {
            message.complete = true;
        }
    }

    fn chunks(&mut self, body: &mut Vec<u8>) -> Option<()> {
        loop {
            let size = self.line()?;
            let size = u64::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
            let before = body.len() as u64;
            (&mut self.reader).take(size).read_to_end(body).ok()?;
            if body.len() as u64 - before != size {
                return None;
            }
            if size == 0 {
                while !self.line()?.is_empty() {}
                return Some(());
            }
            self.line()?;
        }
    }
}

/// A request, before it is bytes.
#[derive(Clone, Debug)]
pub struct Request {
    method: String,
    target: String,
    fields: Vec<(String, String)>,
    body: Option<Vec<u8>>,
}

impl Request {
    /// A request without fields.
    pub fn new(method: &str, target: &str) -> Self {
        Self {
            method: method.into(),
            target: target.into(),
            fields: Vec::new(),
            body: None,
        }
    }

    /// With this field, after those that it has.
    pub fn field(mut self, name: &str, value: &str) -> Self {
        self.fields.push((name.into(), value.into()));
        self
    }

    /// Without these fields.
    pub fn without(mut self, name: &str) -> Self {
        self.fields.retain(|(known, _)| known != name);
        self
    }

    /// With a body and its length.
    pub fn body(mut self, body: impl AsRef<[u8]>) -> Self {
        self.body = Some(body.as_ref().to_vec());
        self
    }

    /// With a JSON body.
    pub fn json(self, body: &str) -> Self {
        self.field("content-type", "application/json").body(body)
    }

    /// Its bytes, to this host.
    pub fn bytes(&self, host: &str) -> Vec<u8> {
        let host = host.trim_start_matches("http://");
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.target);
        if !self.fields.iter().any(|(name, _)| name == "host") {
            head.push_str(&format!("host: {host}\r\n"));
        }
        for (name, value) in &self.fields {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if let Some(body) = &self.body {
            head.push_str(&format!("content-length: {}\r\n", body.len()));
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        bytes.extend(self.body.iter().flatten());
        bytes
    }

    /// Sends it on a connection of its own and reads the answer.
    pub fn send(&self, host: &str) -> Message {
        let mut connection = Connection::open(host);
        connection.send(self.bytes(host));
        let answer = connection.read_to(&self.method);
        let answer = answer
            .unwrap_or_else(|| panic!("{} {}: closed without answer", self.method, self.target));
        LAST.set(Some(answer.clone()));
        answer
    }
}
