//! Whether the audit is as it was written: `GET /orgs/{org}/audit/verify`.

use proto::audit::signed::{self, Signed};
use proto::audit::verify;
use proto::tree::VersionRecord;
use serde_json::{Value, json};

use super::answer::Answer;
use super::audit::count_logins;
use super::call::OrgCall;
use super::error::Refusal;
use super::write;
use crate::audit;
use crate::publish::PublishError;

/// Versions that are read at once.
const VERSIONS_AT_ONCE: usize = 200;

/// The answer.
pub async fn verified(call: OrgCall) -> Result<Answer, Refusal> {
    count_logins(&call).await;
    let (publisher, org) = (&call.control.publisher, call.org_id());
    // Versions first: what they say of has been written then.
    let versions = all_versions(&call).await.map_err(write::refusal)?;
    let chain = audit::chain(publisher.store(), org).await;
    let mut chain = chain.map_err(|error| write::refusal(error.into()))?;
    chain.kept_min = audit::ENTRIES_MAX;
    let found = verify::verify(org, publisher.region(), &chain, &versions);
    let signed = signed(&call).await.map_err(write::refusal)?;
    let of_records = signed.iter().flat_map(|signed| &signed.breaks);
    let all = found
        .breaks
        .iter()
        .chain(of_records)
        .take(verify::BREAKS_MAX);
    let breaks = all.map(|found| {
        json!({
            "entry": found.entry, "version": found.version,
            "problem": found.problem.as_str(), "detail": found.detail,
        })
    });
    let breaks: Vec<Value> = breaks.collect();
    Ok(Answer::json(json!({
        "org": org, "region": publisher.region(),
        "holds": breaks.is_empty(),
        "first_entry": found.entries.map(|(first, _)| first),
        "last_entry": found.entries.map(|(_, last)| last),
        "anchored_until": (found.anchored > 0).then_some(found.anchored_until),
        "first_version": versions.first().map(|record| record.head.n),
        "last_version": versions.last().map(|record| record.head.n),
        "signed_versions": signed.map(|signed| signed.holding),
        "breaks": breaks,
    })))
}

/// What the signatures of versions say; `None` without `regions`.
async fn signed(call: &OrgCall) -> Result<Option<Signed>, PublishError> {
    let Some(directory) = call.control.directory() else {
        return Ok(None);
    };
    let (org, regions) = (call.org_id(), &directory.regions);
    let records = call.control.publisher.signed_records(org).await?;
    let keys = |region: &str| regions.signers(region).unwrap_or_default();
    Ok(Some(signed::check(org, &regions.own, &records, keys)))
}

/// Every version that is kept, in order.
async fn all_versions(call: &OrgCall) -> Result<Vec<VersionRecord>, PublishError> {
    let (publisher, org) = (&call.control.publisher, call.org_id());
    let (mut versions, mut before) = (Vec::new(), u64::MAX);
    loop {
        let page = publisher.versions(org, before, VERSIONS_AT_ONCE).await?;
        let (whole, last) = (page.len() == VERSIONS_AT_ONCE, page.last());
        let next = last.map(|oldest| oldest.record.head.n);
        versions.extend(page.into_iter().map(|kept| kept.record));
        match next.filter(|_| whole) {
            Some(next) => before = next,
            None => break,
        }
    }
    versions.reverse();
    Ok(versions)
}

/// Its form.
pub fn schema() -> Value {
    let text = |description: &str| json!({"type": "string", "description": description});
    let number =
        |description: &str| json!({"type": ["integer", "null"], "description": description});
    json!({
        "type": "object",
        "description": "Whether what is kept of the audit of one region is as it was written",
        "properties": {
            "org": text("The organisation"),
            "region": text("The region whose entries these are"),
            "holds": {"type": "boolean", "description": "Whether there is no break"},
            "first_entry": number("The first entry that is kept"),
            "last_entry": number("The last one"),
            "anchored_until": number("Up to this entry versions prove what there was"),
            "first_version": number("The first version that is kept"),
            "last_version": number("The last one"),
            "signed_versions": number("Versions in the store whose record, with author, address \
                                       and time, is as it was signed; null without `regions`"),
            "breaks": {"type": "array", "description": "The first of them", "items": {
                "type": "object", "properties": {
                    "entry": number("The entry that does not hold"),
                    "version": number("The version that does not, or that says so"),
                    "problem": {"type": "string", "enum": ["changed", "missing", "reordered"]},
                    "detail": text("The same for a person"),
                }}},
        }
    })
}
