//! A record with something in every field, and what earlier releases had of it.

use super::*;

/// A record with something in every field.
pub(crate) fn full() -> Record {
    Record {
        request_id: RequestId::from_bits(1),
        org_id: OrgId::from_bits(2),
        proxy_id: ProxyId::from_bits(3),
        proxy_credential_id: Some(CredentialId::from_bits(4)),
        proxy_credential_generation: Some("1.local.7".into()),
        target_credential_id: Some(CredentialId::from_bits(5)),
        target_credential_generation: Some("1.local.8".into()),
        config_version: 300,
        node: "node-a".into(),
        region: "local".into(),
        method: "POST".into(),
        path: "/v1/charges".into(),
        query: vec![QueryField {
            name: "expand".into(),
            value: REDACTED.into(),
        }],
        status: Some(400),
        upstream_status: None,
        code: "proxy-access-denied".into(),
        auth_failure: Some(AuthFailure::WrongKey),
        started_at_us: 1_795_000_000_000_000,
        total_us: 1_234,
        stages: vec![StageTime {
            stage: Stage::Authorize,
            us: 12,
        }],
        request_bytes: 10,
        response_bytes: 20,
        upstream_request_bytes: 30,
        upstream_response_bytes: 40,
        attempts: 1,
        denials: vec![Denial {
            scope: RecordScope::Target,
            scope_id: "tgt_00000000000000000000000006".into(),
            default: false,
            rule_ids: vec![RuleId::from_bits(7)],
        }],
        shadow_rule_ids: vec![RuleId::from_bits(8)],
        filter_ids: vec![FilterId::from_bits(9)],
        source_address: Some("192.0.2.1".into()),
        user_agent: Some("curl/8".into()),
        upstream_ids: vec![UpstreamId {
            header: "x-request-id".into(),
            value: "abc".into(),
        }],
        trace_id: Some("0af7651916cd43dd8448eb211c80319c".into()),
        left_gateway: Some("files.example".into()),
        client_aborted: true,
        scrubbed: 2,
        sends: vec![Attempt {
            started_us: 100,
            connect_us: 20,
            wait_us: 1_000,
            reused: true,
            status: None,
            failure: Some(AttemptFailure::Reset),
        }],
        limited_by: vec!["minute".into()],
        scrub: ScrubState::Skipped,
        endpoints: vec!["eu.api.example:8443".into()],
        forwarded_to: Some("eu".into()),
        forwarded_from: Some("us".into()),
        payload: Some(Box::new(Payload {
            request: Some(Captured {
                content_type: Some("application/json".into()),
                content: "{}".into(),
                ..Captured::default()
            }),
            response: Some(Captured {
                content: "AAE=".into(),
                base64: true,
                truncated: true,
                withheld: Some("memory".into()),
                ..Captured::default()
            }),
        })),
        meters: vec![MeterSpend {
            meter: "mtr_0000000000000000000000000a".into(),
            tokens: 12,
        }],
        presented: Some(PresentedKey {
            place: "x-api-key".into(),
            hint: "aZ09".parse().ok(),
        }),
        refused_by: vec![MeterRefusal {
            meter: "mtr_0000000000000000000000000a".to_owned(),
            window: Some("minute".into()),
            cause: RefusalCause::StoreLost,
        }],
        method_overridden: Some(true),
        events: vec![SpanEvent {
            stage: Stage::Limit,
            at_us: 300,
            kind: SpanEventKind::HoldBegan,
            subject: Some("mtr_7".into()),
            count: Some(2),
        }],
        events_dropped: 1,
        value_missing: vec!["mtr_0000000000000000000000000a".into()],
    }
}

/// The same as a release without `sends` would have it.
pub(crate) fn without_sends(record: Record) -> Record {
    let mut record = without_scrub(record);
    record.sends.clear();
    record.limited_by.clear();
    record
}

/// The same as a release without `scrub` would have it.
pub(crate) fn without_scrub(mut record: Record) -> Record {
    record.scrub = ScrubState::None;
    without_endpoints(record)
}

/// The same as a release without `endpoints` would have it.
pub(crate) fn without_endpoints(mut record: Record) -> Record {
    record.endpoints.clear();
    record.forwarded_to = None;
    record.forwarded_from = None;
    without_payload(record)
}

/// The same as a release without `payload` would have it.
pub(crate) fn without_payload(mut record: Record) -> Record {
    record.payload = None;
    record.meters.clear();
    without_presented(record)
}

/// The same as a release without `presented` would have it.
pub(crate) fn without_presented(mut record: Record) -> Record {
    record.presented = None;
    without_refused_by(record)
}

/// The same as a release without `refused_by` would have it.
pub(crate) fn without_refused_by(mut record: Record) -> Record {
    record.refused_by.clear();
    record.method_overridden = None;
    without_events(record)
}

/// The same as a release without `events` would have it.
pub(crate) fn without_events(mut record: Record) -> Record {
    record.events.clear();
    record.events_dropped = 0;
    without_value_missing(record)
}

/// The same as a release without `value_missing` would have it.
pub(crate) fn without_value_missing(mut record: Record) -> Record {
    record.value_missing.clear();
    record
}

#[test]
fn reasons_stand_at_their_numbers() {
    for (at, failure) in AuthFailure::ALL.into_iter().enumerate() {
        assert_eq!(failure as usize, at, "{}", failure.as_str());
    }
    for (at, failure) in AttemptFailure::ALL.into_iter().enumerate() {
        assert_eq!(failure as usize, at, "{}", failure.as_str());
    }
}

#[test]
fn json_and_back() {
    let record = full();
    let json = serde_json::to_value(&record).unwrap();
    assert_eq!(json["stages"][0]["stage"], "authorize");
    assert_eq!(json["auth_failure"], "wrong-key");
    assert_eq!(serde_json::from_value::<Record>(json).unwrap(), record);
}
