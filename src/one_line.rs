//! One event, one line: what a caller or a target has sent cannot begin a line of its own in the
//! log, nor steer the terminal of whoever reads it; and no line holds a secret that is in use.

use std::borrow::Cow;
use std::io::{self, Write};

use node::credentials::shown::shown;
use proto::visible;
use tracing_subscriber::fmt::MakeWriter;

/// A text as it may leave the process: live secrets and keys that we issue overwritten, characters
/// that are not seen escaped.
pub fn clean(text: &[u8]) -> Cow<'_, str> {
    let text = match shown(text) {
        Cow::Borrowed(text) => String::from_utf8_lossy(text),
        Cow::Owned(text) => Cow::Owned(String::from_utf8_lossy(&text).into_owned()),
    };
    match text {
        Cow::Borrowed(text) => visible::on_one_line(text),
        Cow::Owned(text) => Cow::Owned(visible::on_one_line(&text).into_owned()),
    }
}

/// Writes each event with what is not seen in it escaped, but for the end of the line.
#[derive(Clone, Copy, Debug)]
pub struct OneLine<W>(pub W);

/// One event's writer.
#[derive(Debug)]
pub struct Line<W>(W);

impl<'a, W: MakeWriter<'a>> MakeWriter<'a> for OneLine<W> {
    type Writer = Line<W::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        Line(self.0.make_writer())
    }
}

impl<W: Write> Write for Line<W> {
    // The subscriber hands over a whole event at a time.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let line = event.strip_suffix(b"\n").unwrap_or(event);
        match clean(line) {
            Cow::Owned(mut clean) => {
                clean.push('\n');
                self.0.write_all(clean.as_bytes())?;
            }
            Cow::Borrowed(_) => self.0.write_all(event)?,
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use node::credentials::live::LiveSecrets;

    use super::*;

    fn written(event: &str) -> String {
        let mut line = Line(Vec::new());
        line.write_all(event.as_bytes()).unwrap();
        String::from_utf8(line.0).unwrap()
    }

    #[test]
    fn a_live_secret_is_in_no_line() {
        let secret = "one-line-live-secret";
        let scrub = std::sync::Arc::new(node::credentials::scrub::Scrub::new([secret], []));
        LiveSecrets::of_process().add(&scrub);
        let stars = "*".repeat(secret.len());
        let line = format!("ERROR header Bearer {secret}\n");
        assert_eq!(written(&line), format!("ERROR header Bearer {stars}\n"));
        let forged = format!("ERROR {secret}\nINFO\n");
        assert_eq!(written(&forged), format!("ERROR {stars}\\nINFO\n"));
        drop(scrub);
        assert_eq!(written(&line), line);
    }

    #[test]
    fn an_event_is_one_line_whatever_it_holds() {
        assert_eq!(written("INFO a: ü\n"), "INFO a: ü\n");
        assert_eq!(
            written("INFO GET /\n2026 ERROR forged\r\u{1b}[2J\u{9b}x\u{202e}y\u{2028}z\n"),
            "INFO GET /\\n2026 ERROR forged\\r\\u001b[2J\\u009bx\\u202ey\\u2028z\n"
        );
        let event = serde_json::json!({"path": "/\u{9b}\u{202e}\u{7f}"});
        let line = written(&format!("{event}\n"));
        assert!(line.trim_end().is_ascii(), "{line}");
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&line).unwrap(),
            event
        );
        let key = format!("rr_live_{}", "k".repeat(49));
        assert!(!written(&format!("GET /{key}\n")).contains("rr_live"));
    }
}
