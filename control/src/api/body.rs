//! Request bodies: declared as JSON, at most 1 MiB, here in time, and JSON indeed.

use std::time::Duration;

use actix_web::http::header::{self, HeaderMap};
use actix_web::web;
use futures_util::StreamExt;
use serde_json::{Map, Value};
use tokio::time::{Instant, timeout_at};

use super::error::{Code, Refusal};
use crate::route::Takes;

/// Largest body, in bytes.
pub const BODY_BYTES_MAX: usize = 1024 * 1024;

/// Largest whole configuration, in bytes.
pub const LARGE_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Most values in a document, those in others included: thirty for each object of the largest
/// configuration.
const VALUES_MAX: usize = 3_000_000;

/// How long a body is waited for. What has come of it is kept in memory meanwhile.
#[derive(Clone, Copy, Debug)]
pub struct BodyWaits {
    /// For the next part of it.
    pub part: Duration,
    /// From its head to its end, however it trickles.
    pub whole: Duration,
}

impl Default for BodyWaits {
    /// A whole configuration of the largest size still comes at 5 Mbit/s.
    fn default() -> Self {
        Self {
            part: Duration::from_secs(10),
            whole: Duration::from_secs(60),
        }
    }
}

/// Reads the body as the route takes it.
///
/// # Errors
/// 408, 413, 415 or 400, with what to do.
pub async fn read(
    headers: &HeaderMap,
    (payload, waits): (web::Payload, BodyWaits),
    takes: Takes,
) -> Result<Value, Refusal> {
    if takes == Takes::Nothing {
        return Ok(Value::Null);
    }
    let bytes = raw(headers, (payload, waits), takes).await?;
    document(headers, &bytes, takes)
}

/// A body that was read, as the route takes it.
///
/// # Errors
/// 415 or 400, with what to do.
pub fn document(headers: &HeaderMap, bytes: &[u8], takes: Takes) -> Result<Value, Refusal> {
    if bytes.is_empty() && matches!(takes, Takes::Optional(_)) {
        return Ok(Value::Object(Map::new()));
    }
    // Browsers send forms and text across origins without asking; JSON they must ask for.
    let media_type = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .map(|value| value.trim().to_ascii_lowercase())
        .unwrap_or_default();
    let merge_patch = matches!(takes, Takes::MergePatch(_));
    let good = media_type == "application/json"
        || (merge_patch && media_type == "application/merge-patch+json");
    if !good {
        return Err(Refusal::new(
            Code::UnsupportedMediaType,
            format!("send `Content-Type: application/json`, not `{media_type}`"),
        ));
    }
    refuse_many_values(bytes)?;
    parse(bytes)
}

/// The body as it came, within the route's bound.
///
/// # Errors
/// 408, 413, or 400 where it was cut.
pub async fn raw(
    headers: &HeaderMap,
    (payload, waits): (web::Payload, BodyWaits),
    takes: Takes,
) -> Result<Vec<u8>, Refusal> {
    collect(headers, (payload, waits), most(takes)).await
}

/// A body that was made here, if home takes one so large.
///
/// # Errors
/// 413.
pub fn fits(bytes: Vec<u8>, takes: Takes) -> Result<Vec<u8>, Refusal> {
    let (length, most) = (bytes.len(), most(takes));
    if length <= most {
        return Ok(bytes);
    }
    let detail = format!(
        "with its secrets sealed for each region the body has {length} bytes, and a body has at \
         most {most} here: send it in parts, or in the home region"
    );
    Err(Refusal::new(Code::BodyTooLarge, detail))
}

fn most(takes: Takes) -> usize {
    match takes {
        Takes::Large(_) => LARGE_BYTES_MAX,
        _ => BODY_BYTES_MAX,
    }
}

async fn collect(
    headers: &HeaderMap,
    (mut payload, waits): (web::Payload, BodyWaits),
    most: usize,
) -> Result<Vec<u8>, Refusal> {
    let too_large = || {
        Refusal::new(
            Code::BodyTooLarge,
            format!("a body has at most {most} bytes here"),
        )
    };
    let announced = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.parse::<u64>().ok());
    if announced.is_some_and(|length| length > most as u64) {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    let end = Instant::now() + waits.whole;
    loop {
        let until = end.min(Instant::now() + waits.part);
        let next = timeout_at(until, payload.next()).await;
        let Some(chunk) = next.map_err(|_| late(waits))? else {
            break;
        };
        let chunk = chunk.map_err(|error| {
            Refusal::new(Code::MalformedJson, format!("the body was cut: {error}"))
        })?;
        if bytes.len() + chunk.len() > most {
            return Err(too_large());
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

fn late(waits: BodyWaits) -> Refusal {
    let detail = format!(
        "the body did not come in time: each part of it within {} s, all of it within {} s",
        waits.part.as_secs(),
        waits.whole.as_secs()
    );
    Refusal::new(Code::RequestTimeout, detail)
}

/// Refuses a document of more values than any needs: in memory each takes a hundred times what a
/// comma takes in the body.
fn refuse_many_values(bytes: &[u8]) -> Result<(), Refusal> {
    let (mut values, mut in_text, mut escaped) = (1usize, false, false);
    for byte in bytes {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            b',' | b'[' | b'{' if !in_text => values += 1,
            _ => {}
        }
    }
    if values <= VALUES_MAX {
        return Ok(());
    }
    let detail = format!("a body has at most {VALUES_MAX} values here, this one has {values}");
    Err(Refusal::new(Code::BodyTooLarge, detail))
}

fn parse(bytes: &[u8]) -> Result<Value, Refusal> {
    serde_json::from_slice(bytes).map_err(|error| {
        // serde_json's words end with " at line L column C".
        Refusal::new(
            Code::MalformedJson,
            format!("the body is not JSON: {error}"),
        )
    })
}

#[cfg(test)]
mod tests {
    use actix_web::FromRequest;
    use actix_web::test::TestRequest;
    use bytes::Bytes;

    use super::*;

    #[actix_web::test]
    async fn a_body_is_here_in_time_or_it_is_refused() {
        let waits = BodyWaits {
            part: Duration::from_millis(100),
            whole: Duration::from_millis(300),
        };
        let never = futures_util::stream::pending();
        let trickle = futures_util::stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            Some((Ok(Bytes::from_static(b" ")), ()))
        });
        let whole = futures_util::stream::iter([Ok(Bytes::from_static(b"{}"))]);
        let bodies: [(actix_http::BoxedPayloadStream, _); 3] = [
            (Box::pin(never), Some(Code::RequestTimeout)),
            (Box::pin(trickle), Some(Code::RequestTimeout)),
            (Box::pin(whole), None),
        ];
        for (body, refused) in bodies {
            let request = TestRequest::default().to_http_request();
            let payload = web::Payload::from_request(&request, &mut body.into());
            let payload = (payload.await.unwrap(), waits);
            let read = raw(request.headers(), payload, Takes::Body("Any")).await;
            assert_eq!(read.err().map(|refusal| refusal.code), refused);
        }
    }

    #[test]
    fn values_are_counted_outside_of_texts() {
        let many = |value: &str| format!("[{}0]", value.repeat(VALUES_MAX)).into_bytes();
        for (value, good) in [("0,", false), ("{},", false), ("\\,", true)] {
            let document = match good {
                true => format!("[\"{}\"]", value.repeat(VALUES_MAX)).into_bytes(),
                false => many(value),
            };
            let refused = refuse_many_values(&document).err();
            assert_eq!(refused.is_none(), good, "{value}");
            assert!(refused.is_none_or(|refusal| refusal.code == Code::BodyTooLarge));
        }
        assert!(refuse_many_values(br#"{"a": ["\",,,", 1], "b": {}}"#).is_ok());
    }

    #[test]
    fn the_place_of_the_fault_is_told() {
        for (text, place) in [
            ("{\"a\": 1,\n \"b\" 2}", "line 2 column 6"),
            ("", "line 1 column 0"),
            ("{} {}", "line 1 column 4"),
        ] {
            let refusal = parse(text.as_bytes()).unwrap_err();
            assert_eq!(refusal.code, Code::MalformedJson);
            assert!(refusal.detail.ends_with(place), "{}", refusal.detail);
        }
        let deep = "[".repeat(100_000);
        assert!(parse(deep.as_bytes()).is_err(), "depth is bounded");
    }
}
