//! Ids under which a vendor's support finds a request, as answers tell them.

use http::HeaderMap;
use proto::record::UpstreamId;

use crate::credentials::live::Whose;
use crate::records::reduce::shortened;

/// Most bytes that are kept of one.
const BYTES_MAX: usize = 128;

/// Those of an answer.
pub fn of(headers: &HeaderMap, whose: Whose) -> impl Iterator<Item = UpstreamId> {
    let named = headers
        .iter()
        .filter(|(name, _)| is_upstream_id(name.as_str()));
    named.filter_map(move |(name, value)| {
        // A text of visible characters and spaces; a tab is neither.
        let text = value.to_str().ok().filter(|text| !text.contains('\t'))?;
        let value = shortened(text, BYTES_MAX, whose);
        let header = name.as_str().to_owned();
        Some(UpstreamId { header, value })
    })
}

fn is_upstream_id(name: &str) -> bool {
    matches!(
        name,
        "x-request-id"
            | "request-id"
            | "x-amzn-requestid"
            | "x-github-request-id"
            | "cf-ray"
            | "openai-processing-ms"
            | "anthropic-request-id"
    )
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn found(fields: &[(&str, &[u8])]) -> Vec<(String, String)> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            let name: HeaderName = name.parse().unwrap();
            headers.append(name, HeaderValue::from_bytes(value).unwrap());
        }
        of(&headers, Whose::Nobodys)
            .map(|id| (id.header, id.value))
            .collect()
    }

    #[test]
    fn seven_fields_are_ids_and_no_others() {
        for name in [
            "x-request-id",
            "request-id",
            "x-amzn-requestid",
            "x-github-request-id",
            "cf-ray",
            "openai-processing-ms",
            "anthropic-request-id",
        ] {
            let sent = name.to_uppercase();
            let expected = (name.to_owned(), "7e1 f-0".to_owned());
            assert_eq!(found(&[(&sent, b"7e1 f-0")]), [expected]);
        }
        for name in [
            "set-cookie",
            "authorization",
            "x-request-ids",
            "x-request",
            "x-amz-id-2",
            "etag",
            "date",
        ] {
            assert_eq!(found(&[(name, b"7e1f")]), [], "{name}");
        }
    }

    #[test]
    fn an_id_is_printable_and_short() {
        let long = "7".repeat(129);
        for (value, expected) in [
            (&b"~!x y"[..], Some("~!x y")),
            (&long.as_bytes()[..128], Some(&long[..128])),
            (long.as_bytes(), Some(&long[..128])),
            (b"a\tb", None),
            (b"a\xc3\xa9", None),
            (b"a\xe2\x80\xaeb", None),
            (b"a\xff", None),
        ] {
            let found = found(&[("request-id", value)]);
            let found = found.first().map(|(_, value)| value.as_str());
            assert_eq!(found, expected, "{value:?}");
        }
        // The others of an answer stay.
        let fields: [(&str, &[u8]); 2] = [("cf-ray", b"a\xff"), ("request-id", b"r")];
        assert_eq!(found(&fields), [("request-id".into(), "r".into())]);
    }
}
