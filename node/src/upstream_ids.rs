//! Ids under which a vendor's support finds a request, as answers tell them.

use http::HeaderMap;
use proto::record::UpstreamId;

use crate::credentials::live::Whose;
use crate::records::reduce::shortened;

/// Those of an answer.
pub fn of(headers: &HeaderMap, whose: Whose) -> impl Iterator<Item = UpstreamId> {
    let named = headers
        .iter()
        .filter(|(name, _)| is_upstream_id(name.as_str()));
    named.filter_map(move |(name, value)| {
        let value = shortened(value.to_str().ok()?, 128, whose);
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
