//! Attempts that match no proxy: kept for the operator, who alone can tell a mistyped alias from a
//! probe. A few of them, since anybody on the network can make as many as they like.

use std::borrow::Cow;
use std::sync::Arc;

use percent_encoding::percent_decode;
use proto::id::ProxyId;
use proto::record::{REDACTED, Record};
use proto::tree::SYSTEM_ORG;

use super::reduce::{self, shortened};
use crate::credentials::live::Whose;
use crate::flow::Exchange;
use crate::presented::ISSUED;
use crate::stages::record::Origin;
use crate::telemetry::trace_id_text;

/// Longest name that is kept, in characters.
const NAME_CHARS_MAX: usize = 96;

/// The operator alone reads them.
pub const SHOWN_TO: Whose = Whose::Everybodys;

/// The record of an attempt: what was called, never what was presented.
pub fn record(exchange: &Exchange, origin: &Origin, method: Cow<'static, str>) -> Record {
    let agent = exchange.notes.agent.as_ref();
    Record {
        request_id: exchange.id,
        org_id: SYSTEM_ORG,
        proxy_id: ProxyId::from_bits(0),
        proxy_credential_id: None,
        proxy_credential_generation: None,
        target_credential_id: None,
        target_credential_generation: None,
        config_version: 0,
        node: Arc::clone(&origin.node),
        region: Arc::clone(&origin.region),
        method,
        path: name(&exchange.notes.path),
        query: Vec::new(),
        status: exchange.end.as_ref().map(|end| end.status),
        upstream_status: None,
        code: "".into(),
        auth_failure: exchange.notes.refusal,
        started_at_us: exchange.started_at.as_microsecond(),
        total_us: 0,
        stages: Vec::new(),
        request_bytes: 0,
        response_bytes: 0,
        upstream_request_bytes: 0,
        upstream_response_bytes: 0,
        attempts: 0,
        denials: Vec::new(),
        shadow_rule_ids: Vec::new(),
        filter_ids: Vec::new(),
        source_address: Some(exchange.request.peer.ip().to_canonical().to_string()),
        user_agent: agent.and_then(|agent| reduce::user_agent(agent, SHOWN_TO)),
        upstream_ids: Vec::new(),
        trace_id: exchange.notes.trace_id.map(trace_id_text),
        left_gateway: None,
        client_aborted: false,
        scrubbed: 0,
        sends: Vec::new(),
        limited_by: Vec::new(),
        scrub: Default::default(),
        endpoints: Vec::new(),
        forwarded_to: None,
        forwarded_from: None,
        payload: None,
        meters: Vec::new(),
        presented: exchange.notes.presented.clone(),
        refused_by: Vec::new(),
        method_overridden: None,
        events: Vec::new(),
        events_dropped: 0,
        value_missing: Vec::new(),
    }
}

/// The name of the proxy that was called, unless it may be a key that stood in the wrong place.
fn name(called: &[u8]) -> String {
    let plain = Cow::from(percent_decode(called));
    let key = plain.windows(ISSUED.len()).any(|part| part == ISSUED);
    match key {
        true => REDACTED.to_owned(),
        false => {
            let called = reduce::without_secrets(called, SHOWN_TO);
            shortened(&String::from_utf8_lossy(&called), NAME_CHARS_MAX, SHOWN_TO)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credentials::live::LiveSecrets;
    use crate::credentials::scrub::Scrub;

    #[test]
    fn a_name_holds_no_key() {
        assert_eq!(name(b"strpie"), "strpie");
        assert_eq!(name(b"rr_live_abc"), REDACTED);
        assert_eq!(name(b"x.rr_live_abc"), REDACTED);
        assert_eq!(name(b"%72r_live_abc"), REDACTED);
        assert_eq!(name(b"a%20b+c"), "a%20b+c");
        let scrub = Arc::new(Scrub::new(["unmatched+secret/x"], []));
        LiveSecrets::of_process().add(None, &scrub);
        assert_eq!(name(b"a-unmatched+secret%2Fx"), "a-********************");
        assert_eq!(name(&[b'a'; 200]).len(), NAME_CHARS_MAX);
        assert_eq!(name(b"a\xffb"), "a\u{fffd}b");
    }
}
