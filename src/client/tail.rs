//! `requestrocket tail`: requests as they come, pushed by the control plane.

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::StreamExt;
use serde_json::Value;

use super::problem::Problem;
use super::records::{add, chosen, encoded, line_of};
use super::{Api, Pieces, across};
use crate::cli::{Output, TailArgs};
use crate::say;

/// Longest silence of a control plane that is there: it says something every 10 s.
const SILENCE_MAX: Duration = Duration::from_secs(40);
/// Pause before a connection is made anew.
const PAUSE: Duration = Duration::from_secs(1);
/// How many of the last requests are remembered.
const SHOWN_MAX: usize = 1_024;
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
    let mut shown = Shown::default();
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
        for record in items.iter().rev() {
            shown.is_new(record);
            show(record, args);
        }
    }
    while let Some(pieces) = following.take() {
        read(pieces, args, &mut shown).await;
        eprintln!("requestrocket: the connection ended; connecting again");
        following = Some(loop {
            tokio::time::sleep(PAUSE).await;
            match api.stream_after(&path, shown.last()).await {
                Ok(pieces) => break pieces,
                Err(error) if is_final(&error) => return Err(error),
                Err(_) => {}
            }
        });
        if shown.last().is_none() {
            // Nobody can tell what came after nothing.
            eprintln!("requestrocket: {}", missed(&Value::Null));
        }
    }
    Ok(())
}

/// Whether asking again leads to the same answer: a token that is no longer valid will not become
/// valid again.
fn is_final(error: &anyhow::Error) -> bool {
    let problem = error.downcast_ref::<Problem>();
    problem
        .is_some_and(|Problem(told)| matches!(told["status"].as_u64(), Some(400 | 401 | 403 | 404)))
}

/// What is said of requests that are not shown; the count is null where nobody knows it.
fn missed(count: &Value) -> String {
    match count {
        Value::Null => "some may have been missed; `requestrocket records` has them".to_owned(),
        count => format!("{count} were missed: too many came"),
    }
}

/// The requests that were shown last: after a connection that ended some may come again.
#[derive(Default)]
struct Shown(VecDeque<String>);

impl Shown {
    /// Notes a request that is about to be shown; false where it was already.
    fn is_new(&mut self, record: &Value) -> bool {
        let id = record["id"].as_str().unwrap_or_default();
        if self.0.iter().rev().any(|shown| shown == id) {
            return false;
        }
        if self.0.len() >= SHOWN_MAX {
            self.0.pop_front();
        }
        self.0.push_back(id.to_owned());
        true
    }

    /// The last of them.
    fn last(&self) -> Option<&str> {
        self.0.back().map(String::as_str)
    }
}

fn show(record: &Value, args: &TailArgs) {
    match args.output {
        Output::Json => say(&record.to_string()),
        Output::Text => say(&line_of(record, args.regions.as_deref())),
    }
}

/// Shows events until the connection ends or is silent.
async fn read(mut pieces: Pieces, args: &TailArgs, shown: &mut Shown) {
    let mut events = Events::default();
    while let Ok(Some(Ok(piece))) = tokio::time::timeout(SILENCE_MAX, pieces.next()).await {
        for (name, data) in events.take(&piece) {
            match (name.as_str(), serde_json::from_str::<Value>(&data)) {
                ("record", Ok(record)) if shown.is_new(&record) => show(&record, args),
                ("missed", Ok(told)) => eprintln!("requestrocket: {}", missed(&told["count"])),
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
    use serde_json::json;

    use super::*;

    #[test]
    fn a_request_is_shown_once_and_the_last_is_known() {
        let mut shown = Shown::default();
        let record = |n: usize| serde_json::json!({"id": format!("req_{n}")});
        assert_eq!(shown.last(), None);
        for n in 0..SHOWN_MAX * 2 {
            assert!(shown.is_new(&record(n)));
            assert!(!shown.is_new(&record(n)));
        }
        assert_eq!(shown.0.len(), SHOWN_MAX);
        assert_eq!(
            shown.last(),
            Some(format!("req_{}", SHOWN_MAX * 2 - 1).as_str())
        );
    }

    #[test]
    fn only_what_will_not_change_ends_it() {
        let problem = |status: u64| anyhow::Error::from(Problem(json!({ "status": status })));
        for status in [400, 401, 403, 404] {
            assert!(is_final(&problem(status)), "{status}");
        }
        for status in [429, 500, 502, 503] {
            assert!(!is_final(&problem(status)), "{status}");
        }
        assert!(!is_final(&anyhow::anyhow!(
            "cannot reach the control plane"
        )));
        assert_eq!(missed(&json!(3)), "3 were missed: too many came");
        assert!(missed(&Value::Null).starts_with("some may"));
    }

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
