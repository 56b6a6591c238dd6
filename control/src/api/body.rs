//! Request bodies: declared as JSON, at most 1 MiB, and JSON indeed.

use actix_web::http::header::{self, HeaderMap};
use actix_web::web;
use futures_util::StreamExt;
use serde_json::{Map, Value};

use super::error::{Code, Refusal};
use crate::route::Takes;

/// Largest body, in bytes.
pub const BODY_BYTES_MAX: usize = 1024 * 1024;

/// Largest whole configuration, in bytes.
pub const LARGE_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Reads the body as the route takes it.
///
/// # Errors
/// 413, 415 or 400, with what to do.
pub async fn read(
    headers: &HeaderMap,
    payload: web::Payload,
    takes: Takes,
) -> Result<Value, Refusal> {
    if takes == Takes::Nothing {
        return Ok(Value::Null);
    }
    let bytes = raw(headers, payload, takes).await?;
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
    parse(bytes)
}

/// The body as it came, within the route's bound.
///
/// # Errors
/// 413, or 400 where it was cut.
pub async fn raw(
    headers: &HeaderMap,
    payload: web::Payload,
    takes: Takes,
) -> Result<Vec<u8>, Refusal> {
    collect(headers, payload, most(takes)).await
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
    mut payload: web::Payload,
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
    while let Some(chunk) = payload.next().await {
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
    use super::*;

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
