//! One request as a file for trace viewers: what it is made of. The spans are those that nodes
//! export, which this crate knows nothing of: whoever runs both brings the two together.

use proto::id::TargetId;
use proto::object::{Body, ObjectId};
use proto::record::Record;
use proto::target::Target;
use proto::tree::OrgConfig;
use serde_json::Value;

/// Writes a request as an `ExportTraceServiceRequest` in JSON.
pub type TraceFile = fn(&Told<'_>) -> Value;

/// A recorded request.
pub struct Told<'a> {
    /// What is known of it.
    pub record: &'a Record,
    /// The target that it was for, where that is known: see [`target`].
    pub target: Option<(TargetId, &'a Target)>,
    /// `http` or `https`: how callers reach gateways.
    pub scheme: &'a str,
}

/// The target of a recorded request: records do not say it, so it is known while neither proxy nor
/// target have been changed since.
pub fn target<'a>(config: &'a OrgConfig, record: &Record) -> Option<(TargetId, &'a Target)> {
    let unchanged = |id| {
        let object = config.objects.get(&id)?;
        (object.version <= record.config_version).then_some(&object.body)
    };
    let Body::Proxy(proxy) = unchanged(ObjectId::Proxy(record.proxy_id))? else {
        return None;
    };
    match unchanged(ObjectId::Target(proxy.target_id))? {
        Body::Target(target) => Some((proxy.target_id, target)),
        _ => None,
    }
}
