//! The data of server-sent events (WHATWG HTML §9.2.6) while they pass.
//!
//! Bytes go on as they come. Only where an event may have to be taken out is one held until it is
//! complete. Memory is bounded by one event; a larger one passes unread.

/// What becomes of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It goes on.
    Passes,
    /// It was there for us alone.
    TakenOut,
}

/// The event that is not complete yet.
#[derive(Debug, Default)]
pub struct Events {
    event_bytes_max: usize,
    /// Holds each event until it is complete.
    holds: bool,
    held: Vec<u8>,
    line: Vec<u8>,
    /// The line has something in it.
    begun: bool,
    data: Option<Vec<u8>>,
    /// The last byte was a CR: an LF now belongs to the same line end.
    after_cr: bool,
    oversize: bool,
}

impl Events {
    /// A stream at its start; `holds`: events can be taken out of it.
    pub fn new(event_bytes_max: usize, holds: bool) -> Self {
        Self {
            event_bytes_max,
            holds,
            ..Self::default()
        }
    }

    /// Takes the next bytes, tells `each` the data of every event that they complete, and appends
    /// to `out`, where events are held, what goes on.
    pub fn push(
        &mut self,
        mut bytes: &[u8],
        each: &mut dyn FnMut(&[u8]) -> Fate,
        out: &mut Vec<u8>,
    ) {
        while !bytes.is_empty() {
            if std::mem::take(&mut self.after_cr)
                && let Some(rest) = bytes.strip_prefix(b"\n")
            {
                self.hold(b"\n");
                bytes = rest;
                continue;
            }
            let end = bytes.iter().position(|byte| matches!(byte, b'\r' | b'\n'));
            let (line, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
            self.extend(line, out);
            let Some((end, rest)) = rest.split_first() else {
                return;
            };
            self.after_cr = *end == b'\r';
            self.hold(&[*end]);
            self.end_line(each, out);
            bytes = rest;
        }
    }

    /// The stream is complete: a last event counts even without its empty line.
    pub fn finish(&mut self, each: &mut dyn FnMut(&[u8]) -> Fate, out: &mut Vec<u8>) {
        self.add_line();
        self.dispatch(each, out);
        out.append(&mut self.held);
    }

    fn hold(&mut self, bytes: &[u8]) {
        if self.holds {
            self.held.extend_from_slice(bytes);
        }
    }

    fn extend(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        self.hold(bytes);
        let data = self.data.as_ref().map_or(0, Vec::len);
        let size = data.max(self.held.len()) + self.line.len() + bytes.len();
        if self.oversize || size > self.event_bytes_max {
            (self.oversize, self.data) = (true, None);
            self.line.clear();
            out.append(&mut self.held);
        } else {
            self.line.extend_from_slice(bytes);
        }
        self.begun |= !bytes.is_empty();
    }

    fn end_line(&mut self, each: &mut dyn FnMut(&[u8]) -> Fate, out: &mut Vec<u8>) {
        match std::mem::take(&mut self.begun) {
            false => self.dispatch(each, out),
            true => self.add_line(),
        }
    }

    fn add_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        let value = match line.strip_prefix(b"data") {
            Some([]) => &[][..],
            Some([b':', value @ ..]) => value.strip_prefix(b" ").unwrap_or(value),
            _ => return,
        };
        match &mut self.data {
            Some(data) => {
                data.push(b'\n');
                data.extend_from_slice(value);
            }
            None => self.data = Some(value.to_vec()),
        }
    }

    fn dispatch(&mut self, each: &mut dyn FnMut(&[u8]) -> Fate, out: &mut Vec<u8>) {
        let data = self.data.take().filter(|_| !self.oversize);
        let fate = data.map_or(Fate::Passes, |data| each(&data));
        self.oversize = false;
        match fate {
            Fate::Passes => out.append(&mut self.held),
            Fate::TakenOut => self.held.clear(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The data of all events, and what went on, for a stream cut into pieces.
    fn pass(stream: &[u8], piece: usize, cap: usize, holds: bool) -> (Vec<String>, String) {
        let (mut seen, mut out) = (Vec::new(), Vec::new());
        let mut events = Events::new(cap, holds);
        let mut each = |data: &[u8]| {
            seen.push(String::from_utf8_lossy(data).into_owned());
            match data == b"out" {
                true => Fate::TakenOut,
                false => Fate::Passes,
            }
        };
        for piece in stream.chunks(piece) {
            events.push(piece, &mut each, &mut out);
        }
        events.finish(&mut each, &mut out);
        (seen, String::from_utf8(out).unwrap())
    }

    #[test]
    fn how_a_stream_is_cut_makes_no_difference() {
        let stream = b": hi\r\n\r\ndata: a\ndata:b\nid: 7\n\ndata: out\r\n\r\nevent: x\rdata\r\r\
                       data: end";
        for piece in 1..=stream.len() {
            let (seen, out) = pass(stream, piece, 100, true);
            assert_eq!(seen, ["a\nb", "out", "", "end"], "{piece}");
            let rest = String::from_utf8_lossy(stream).replace("data: out\r\n\r", "");
            assert_eq!(out, rest, "{piece}");
            assert_eq!(pass(stream, piece, 100, false), (seen, String::new()));
        }
    }

    #[test]
    fn an_event_that_is_too_large_passes_unread() {
        let large = "x".repeat(50);
        let stream = format!("data: a\n\ndata: {large}\ndata: b\n\ndata: c\n\n");
        for piece in [1, 7, 1_000] {
            for holds in [false, true] {
                let (seen, out) = pass(stream.as_bytes(), piece, 30, holds);
                assert_eq!(seen, ["a", "c"], "{piece}");
                assert_eq!(out, if holds { stream.as_str() } else { "" });
            }
        }
    }
}
