//! Server-sent events: WHATWG HTML §9.2.5 and §9.2.6.

use super::{Documents, StreamEnd};
use crate::json_text::{JsonError, JsonText};

/// Data of a `ping` that is not JSON passes up to this size, and only if it does not look like
/// JSON: the name alone must not carry a record past the filters.
const PING_BYTES_MAX: usize = 128;

/// The line and the event that are not complete yet.
#[derive(Debug, Default)]
pub(super) struct EventStream {
    line: Vec<u8>,
    /// The last byte was a CR: an LF now belongs to the same line end.
    after_cr: bool,
    /// The first line is behind us: a byte order mark is no longer expected.
    begun: bool,
    event: Event,
}

#[derive(Debug, Default)]
struct Event {
    /// Lines of known fields before the first `data` line, each with its LF.
    before: Vec<u8>,
    /// The same after it.
    after: Vec<u8>,
    /// Values of the `data` lines, joined by LF.
    data: Option<Vec<u8>>,
    name: Vec<u8>,
    /// Bytes of all lines so far, without line ends.
    bytes: usize,
}

impl EventStream {
    pub(super) fn push(
        &mut self,
        mut bytes: &[u8],
        documents: &mut Documents,
        out: &mut Vec<u8>,
    ) -> Result<(), StreamEnd> {
        loop {
            if self.after_cr && !bytes.is_empty() {
                self.after_cr = false;
                bytes = bytes.strip_prefix(b"\n").unwrap_or(bytes);
            }
            let Some(end) = bytes.iter().position(|byte| matches!(byte, b'\r' | b'\n')) else {
                return self.extend(bytes, documents);
            };
            let (line, rest) = bytes.split_at(end);
            self.extend(line, documents)?;
            self.after_cr = rest.first() == Some(&b'\r');
            bytes = rest.get(1..).unwrap_or_default();
            self.end_line(documents, out)?;
        }
    }

    /// A last line without its end counts; what cannot be filtered is discarded.
    pub(super) fn finish(&mut self, documents: &mut Documents, out: &mut Vec<u8>) {
        let start = out.len();
        let mut complete = Ok(());
        if !self.line.is_empty() {
            complete = self.end_line(documents, out);
        }
        if complete.is_ok() && self.event.bytes > 0 {
            complete = self.event.dispatch(documents, out);
        }
        if complete.is_err() {
            out.truncate(start);
        }
    }

    fn extend(&mut self, bytes: &[u8], documents: &Documents) -> Result<(), StreamEnd> {
        let size = self
            .event
            .bytes
            .saturating_add(self.line.len())
            .saturating_add(bytes.len());
        documents.check_size(size)?;
        self.line.extend_from_slice(bytes);
        Ok(())
    }

    fn end_line(&mut self, documents: &mut Documents, out: &mut Vec<u8>) -> Result<(), StreamEnd> {
        let mut line = self.line.as_slice();
        if !self.begun {
            self.begun = true;
            line = line.strip_prefix("\u{feff}".as_bytes()).unwrap_or(line);
        }
        let result = match line.first() {
            None => self.event.dispatch(documents, out),
            Some(b':') => {
                out.extend_from_slice(line);
                out.push(b'\n');
                Ok(())
            }
            Some(_) => {
                self.event.add(line);
                Ok(())
            }
        };
        self.line.clear();
        result
    }
}

impl Event {
    /// Takes one line that is neither empty nor a comment.
    fn add(&mut self, line: &[u8]) {
        let colon = line
            .iter()
            .position(|byte| *byte == b':')
            .unwrap_or(line.len());
        let (field, rest) = line.split_at(colon);
        let value = rest.strip_prefix(b":").unwrap_or(rest);
        let value = value.strip_prefix(b" ").unwrap_or(value);
        // A line that is dropped counts too, else it would not be bounded.
        self.bytes = self.bytes.saturating_add(line.len());
        match field {
            b"data" => match &mut self.data {
                Some(data) => {
                    data.push(b'\n');
                    data.extend_from_slice(value);
                }
                None => self.data = Some(value.to_vec()),
            },
            b"event" | b"id" | b"retry" => {
                if field == b"event" {
                    self.name = value.to_vec();
                }
                let lines = if self.data.is_some() {
                    &mut self.after
                } else {
                    &mut self.before
                };
                lines.extend_from_slice(line);
                lines.push(b'\n');
            }
            _ => {}
        }
    }

    /// The event is complete: hands it on filtered, and makes room for the next.
    fn dispatch(&mut self, documents: &mut Documents, out: &mut Vec<u8>) -> Result<(), StreamEnd> {
        let event = std::mem::take(self);
        let data = match event.data {
            Some(data) => Some(filter_data(&event.name, data, documents)?),
            None => None,
        };
        out.extend_from_slice(&event.before);
        for line in data
            .iter()
            .flat_map(|data| data.split(|byte| *byte == b'\n'))
        {
            out.extend_from_slice(if line.is_empty() { b"data:" } else { b"data: " });
            out.extend_from_slice(line);
            out.push(b'\n');
        }
        out.extend_from_slice(&event.after);
        out.push(b'\n');
        Ok(())
    }
}

fn filter_data(
    name: &[u8],
    data: Vec<u8>,
    documents: &mut Documents,
) -> Result<Vec<u8>, StreamEnd> {
    if data.trim_ascii().is_empty() || data == b"[DONE]" {
        return Ok(data);
    }
    match name == b"ping" && is_plain_ping(&data) {
        true => Ok(data),
        false => documents.filter(&data),
    }
}

fn is_plain_ping(data: &[u8]) -> bool {
    data.len() <= PING_BYTES_MAX
        && !data.iter().any(|byte| matches!(byte, b'{' | b'[' | b'"'))
        && matches!(JsonText::parse(data), Err(JsonError::NotJson { .. }))
}
