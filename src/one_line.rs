//! One event, one line: what a caller or a target has sent cannot begin a line of its own in the
//! log, nor steer the terminal of whoever reads it; and no line holds a secret that is in use.
//!
//! What frames an event is ours and stays, whatever an organisation has saved as a secret: time,
//! level and part of the program, and all of JSON but the values of fields.

use std::borrow::Cow;
use std::io::{self, Write};

use node::credentials::live::Whose;
use node::credentials::shown::{shown, shown_text};
use proto::visible;
use serde_json::Value;
use tracing_subscriber::fmt::MakeWriter;

/// A text as it may leave the process: live secrets and keys that we issue overwritten, characters
/// that are not seen escaped.
pub fn clean(text: &[u8]) -> Cow<'_, str> {
    visible(match shown(text, Whose::Everybodys) {
        Cow::Borrowed(text) => String::from_utf8_lossy(text),
        Cow::Owned(text) => Cow::Owned(String::from_utf8_lossy(&text).into_owned()),
    })
}

fn visible(text: Cow<'_, str>) -> Cow<'_, str> {
    match text {
        Cow::Borrowed(text) => visible::on_one_line(text),
        Cow::Owned(text) => Cow::Owned(visible::on_one_line(&text).into_owned()),
    }
}

/// An event as it may leave the process.
fn clean_event(event: &[u8]) -> Cow<'_, str> {
    match shown(event, Whose::Everybodys) {
        Cow::Borrowed(event) => visible(String::from_utf8_lossy(event)),
        // Seldom: only then it is looked at what of the event it is.
        Cow::Owned(_) => visible(Cow::Owned(without_secrets(event))),
    }
}

/// An event without the secrets in what it tells, framed as it was.
fn without_secrets(event: &[u8]) -> String {
    if let Ok(Value::Object(mut document)) = serde_json::from_slice(event) {
        let is_ours = |name: &str| matches!(name, "timestamp" | "level" | "target");
        let told = document.iter_mut().filter(|(name, _)| !is_ours(name));
        told.for_each(|(_, value)| overwrite(value));
        return Value::Object(document).to_string();
    }
    let text = String::from_utf8_lossy(event);
    // `2026-11-29T23:31:28.319Z  WARN node::reflected: …`
    let told = text.find(": ").map_or(0, |at| at + 2);
    let (frame, told) = text.split_at(told);
    format!("{frame}{}", shown_text(told, Whose::Everybodys))
}

/// Overwrites the secrets in each text of a document, but not in names of fields.
fn overwrite(document: &mut Value) {
    match document {
        Value::String(text) => {
            if let Cow::Owned(clean) = shown_text(text, Whose::Everybodys) {
                *text = clean;
            }
        }
        Value::Object(fields) => fields.values_mut().for_each(overwrite),
        Value::Array(values) => values.iter_mut().for_each(overwrite),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
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
        match clean_event(line) {
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
        LiveSecrets::of_process().add(None, &scrub);
        let stars = "*".repeat(secret.len());
        let line = format!("ERROR header Bearer {secret}\n");
        assert_eq!(written(&line), format!("ERROR header Bearer {stars}\n"));
        let forged = format!("ERROR {secret}\nINFO\n");
        assert_eq!(written(&forged), format!("ERROR {stars}\\nINFO\n"));
        drop(scrub);
        assert_eq!(written(&line), line);
    }

    #[test]
    fn what_an_organisation_saves_breaks_no_line() {
        let saved = [
            "\",\"fields\":{\"message\":",
            "\"},\"target\":\"",
            "T00:00:00.000000Z",
            "2026-01-01T00",
            "node::reflected",
            "request_id\":",
            "its-own-secret",
        ];
        let org = proto::id::OrgId::from_bits(1);
        let scrub = std::sync::Arc::new(node::credentials::scrub::Scrub::new(saved, []));
        LiveSecrets::of_process().add(Some(org), &scrub);
        let event = |secret: &str| {
            format!(
                "{{\"timestamp\":\"2026-01-01T00:00:00.000000Z\",\"level\":\"WARN\",\"fields\":\
                 {{\"message\":\"it quotes {secret}\",\"request_id\":\"req_1\"}},\
                 \"target\":\"node::reflected\"}}\n"
            )
        };
        assert_eq!(written(&event(saved[6])), event("**************"));
        let line = |secret: &str| {
            format!("2026-01-01T00:00:00.000000Z  WARN node::reflected: it quotes {secret}\n")
        };
        assert_eq!(written(&line(saved[6])), line("**************"));
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
