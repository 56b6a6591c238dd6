//! `requestrocket tail`: requests as they come, pushed by the control plane.

use std::time::Duration;

use futures_util::StreamExt;
use serde_json::Value;

use super::records::{add, chosen, encoded, line_of};
use super::{Api, Pieces, across};
use crate::cli::{Output, TailArgs};
use crate::say;

/// Longest silence of a control plane that is there: it says something every 10 s.
const SILENCE_MAX: Duration = Duration::from_secs(40);
/// Pause before a connection is made anew.
const PAUSE: Duration = Duration::from_secs(1);
/// Longest event that is read, in bytes.
const EVENT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Shows the last requests, and goes on where asked to.
///
/// # Errors
/// What the control plane said, at the first connection; later ones are tried again and again.
pub async fn tail(args: &TailArgs) -> anyhow::Result<()> {
    let api = Api::new(&args.control)?;
    let query = chosen(&args.choice)?;
    // Followed first, so that nothing is lost between the two.
    let path = format!("/records/follow?{}", encoded(&query));
    let mut following = match args.follow {
        true => Some(api.stream(&path).await?),
        false => None,
    };
    if args.lines > 0 {
        let mut query = query.clone();
        add(&mut query, "limit", Some(&args.lines.to_string()));
        add(&mut query, "regions", args.regions.as_deref());
        let found = api.get(&format!("/records?{}", encoded(&query))).await?;
        across::warn(&found);
        let items = found["items"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        items.iter().rev().for_each(|record| show(record, args));
    }
    while let Some(pieces) = following.take() {
        read(pieces, args).await;
        eprintln!("requestrocket: the connection ended; connecting again, some may be missing");
        following = Some(loop {
            tokio::time::sleep(PAUSE).await;
            match api.stream(&path).await {
                Ok(pieces) => break pieces,
                // A token that is no longer valid will not become valid again.
                Err(error) if error.is::<super::problem::Problem>() => return Err(error),
                Err(_) => {}
            }
        });
    }
    Ok(())
}

fn show(record: &Value, args: &TailArgs) {
    match args.output {
        Output::Json => say(&record.to_string()),
        Output::Text => say(&line_of(record, args.regions.as_deref())),
    }
}

/// Shows events until the connection ends or is silent.
async fn read(mut pieces: Pieces, args: &TailArgs) {
    let mut events = Events::default();
    while let Ok(Some(Ok(piece))) = tokio::time::timeout(SILENCE_MAX, pieces.next()).await {
        for (name, data) in events.take(&piece) {
            match (name.as_str(), serde_json::from_str::<Value>(&data)) {
                ("record", Ok(record)) => show(&record, args),
                ("missed", Ok(missed)) => {
                    eprintln!(
                        "requestrocket: {} were missed: too many came",
                        missed["count"]
                    );
                }
                _ => {}
            }
        }
        if events.rest.len() > EVENT_BYTES_MAX {
            return;
        }
    }
}

/// Server-sent events out of the pieces of a stream, as far as the control plane makes use of them.
#[derive(Default)]
struct Events {
    rest: Vec<u8>,
}

impl Events {
    /// The events that end with this piece: name and data.
    fn take(&mut self, piece: &[u8]) -> Vec<(String, String)> {
        self.rest.extend_from_slice(piece);
        let mut events = Vec::new();
        while let Some(end) = self.rest.windows(2).position(|two| two == b"\n\n") {
            let event: Vec<u8> = self.rest.drain(..end + 2).collect();
            let text = String::from_utf8_lossy(&event);
            let field = |name: &str| {
                let lines = text.lines();
                let mut values = lines.filter_map(|line| line.strip_prefix(name));
                values.next().map(|value| value.trim_start().to_owned())
            };
            if let (Some(name), Some(data)) = (field("event:"), field("data:")) {
                events.push((name, data));
            }
        }
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_out_however_they_are_cut() {
        let stream = b": following\n\nevent: record\nid: r1\ndata: {\"a\":1}\n\n\
                       event: missed\ndata: {\"count\":3}\n\n";
        let expected = [
            ("record".to_owned(), "{\"a\":1}".to_owned()),
            ("missed".to_owned(), "{\"count\":3}".to_owned()),
        ];
        for size in 1..stream.len() {
            let mut events = Events::default();
            let found: Vec<_> = stream
                .chunks(size)
                .flat_map(|piece| events.take(piece))
                .collect();
            assert_eq!(found, expected, "{size}");
        }
    }
}
