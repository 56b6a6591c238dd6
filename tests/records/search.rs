//! What every records store answers to a search.

use proto::record::{
    Attempt, AttemptFailure, Captured, Denial, MeterRefusal, MeterSpend, Payload, QueryField,
    RecordScope, RefusalCause,
};

use super::*;

pub fn another_organisation_sees_nothing(records: &Records) {
    records.insert(&[record(1, 1)]).unwrap();
    let other = OrgId::from_bits(2);
    assert_eq!(records.get(other, RequestId::from_bits(1)).unwrap(), None);
    assert!(
        records
            .list(other, &RecordFilter::default(), 10)
            .unwrap()
            .0
            .is_empty()
    );
}

pub fn filters_select(records: &Records) {
    let batch: Vec<_> = (0..12).map(|n| record(n, 1)).collect();
    records.insert(&batch).unwrap();
    let check = |filter: RecordFilter, expected: &[u128]| {
        let (found, next) = records.list(ORG, &filter, 100).unwrap();
        assert_eq!(numbers(&found), expected, "{filter:?}");
        assert_eq!(next, None);
    };
    check(
        RecordFilter::default(),
        &[11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0],
    );
    check(
        by(|filter| filter.proxy = Some(ProxyId::from_bits(0))),
        &[9, 6, 3, 0],
    );
    check(
        by(|filter| filter.credential = Some(CredentialId::from_bits(4))),
        &[9, 4],
    );
    check(
        by(|filter| filter.status = "4xx".parse().ok()),
        &[11, 9, 7, 5, 3, 1],
    );
    check(
        by(|filter| filter.status = "200".parse().ok()),
        &[10, 8, 6, 4, 2, 0],
    );
    check(by(|filter| filter.status = "500".parse().ok()), &[]);
    let limited = by(|filter| {
        filter.code = Some("rate-limited".into());
        filter.from_us = Some(3_000);
    });
    check(limited, &[11, 9, 7]);
    check(
        by(|filter| (filter.from_us, filter.to_us) = (Some(1_000), Some(2_000))),
        &[3, 2],
    );
    let early = by(|filter| {
        filter.proxy = Some(ProxyId::from_bits(0));
        filter.status = "2xx".parse().ok();
        filter.to_us = Some(4_000);
    });
    check(early, &[6, 0]);
}

pub fn pages_join_to_the_whole(records: &Records) {
    let batch: Vec<_> = (0..11).map(|n| record(n, 1)).collect();
    records.insert(&batch).unwrap();
    for limit in [1, 2, 3, 10, 11, 12] {
        let (mut seen, mut filter) = (Vec::new(), RecordFilter::default());
        loop {
            let (page, next) = records.list(ORG, &filter, limit).unwrap();
            seen.extend(numbers(&page));
            match next {
                // A cursor survives its trip through the API.
                Some(cursor) => filter.after = cursor.to_string().parse().ok(),
                None => break,
            }
        }
        assert_eq!(seen, (0..11).rev().collect::<Vec<_>>(), "limit {limit}");
    }
}

/// Every field finds the record that has the value and not the one that has another.
pub fn every_field_selects(records: &Records) {
    let plain = record(1, 1);
    let mut rich = record(2, 1);
    rich.proxy_credential_id = Some(CredentialId::from_bits(77));
    rich.target_credential_id = Some(CredentialId::from_bits(78));
    rich.target_credential_generation = Some("1.local.9".into());
    (rich.config_version, rich.node, rich.region) = (9, "gw-2".into(), "eu".into());
    (rich.method, rich.path) = ("POST".into(), "/v1/charges".into());
    rich.query = vec![QueryField {
        name: "expand".into(),
        value: "REDACTED".into(),
    }];
    (rich.status, rich.upstream_status) = (Some(504), Some(503));
    rich.auth_failure = Some(proto::record::AuthFailure::Expired);
    rich.presented = Some(proto::record::PresentedKey {
        place: "x-api-key".into(),
        hint: "aZ09".parse().ok(),
    });
    (rich.total_us, rich.request_bytes, rich.response_bytes) = (2_000_000, 100, 200);
    (rich.upstream_request_bytes, rich.upstream_response_bytes) = (300, 400);
    rich.attempts = 2;
    rich.endpoints = vec!["eu.example:443".into()];
    (rich.forwarded_to, rich.forwarded_from) = (Some("us".into()), Some("ap".into()));
    rich.method_overridden = Some(true);
    rich.events = vec![proto::record::SpanEvent::new(
        proto::record::SpanEventKind::BreakerOpened,
        proto::record::Stage::Forward,
        7,
    )];
    rich.value_missing = vec!["mtr_9".into()];
    rich.meters = vec![MeterSpend {
        meter: "mtr_8".into(),
        tokens: 1,
    }];
    rich.denials = vec![Denial {
        scope: RecordScope::TargetCredential,
        scope_id: "crd_1".into(),
        default: true,
        rule_ids: Vec::new(),
    }];
    rich.sends = vec![Attempt {
        started_us: 1,
        connect_us: 1,
        wait_us: 1,
        reused: false,
        status: None,
        failure: Some(AttemptFailure::Reset),
    }];
    rich.limited_by = vec!["minute".into()];
    rich.refused_by = vec![MeterRefusal {
        meter: "mtr_7".into(),
        window: Some("minute".into()),
        cause: RefusalCause::Empty,
    }];
    rich.shadow_rule_ids = vec![proto::id::RuleId::from_bits(5)];
    rich.filter_ids = vec![proto::id::FilterId::from_bits(6)];
    rich.source_address = Some("192.0.2.7".into());
    rich.user_agent = Some("OpenAI/Python".into());
    rich.upstream_ids = vec![proto::record::UpstreamId {
        header: "x-request-id".into(),
        value: "up-1".into(),
    }];
    rich.trace_id = Some("0af7651916cd43dd8448eb211c80319c".into());
    rich.left_gateway = Some("files.example".into());
    (rich.client_aborted, rich.scrubbed) = (true, 1);
    rich.scrub = proto::record::ScrubState::Skipped;
    let mut ended = record(3, 1);
    ended.stages = vec![proto::record::StageTime {
        stage: proto::record::Stage::Limit,
        us: 1,
    }];
    let mut cut = record(4, 1);
    (cut.code, cut.stages) = ("upstream-unreachable".into(), ended.stages.clone());
    (cut.status, cut.upstream_status) = (Some(200), Some(200));
    records.insert(&[plain, rich, ended, cut]).unwrap();
    let rows = [
        ("proxy_credential", CredentialId::from_bits(77).to_string()),
        ("target_credential", CredentialId::from_bits(78).to_string()),
        ("generation", "1.local.9".into()),
        ("version", "9".into()),
        ("node", "gw-2".into()),
        ("region", "eu".into()),
        ("method", "post".into()),
        ("path", "/v1/*".into()),
        ("query", "expand".into()),
        ("upstream_status", "5xx".into()),
        ("auth_failure", "expired".into()),
        ("key_place", "X-API-Key".into()),
        ("key_hint", "aZ09".into()),
        ("duration_ms_min", "2000".into()),
        ("request_bytes_min", "100".into()),
        ("response_bytes_min", "200".into()),
        ("upstream_request_bytes_min", "300".into()),
        ("upstream_response_bytes_min", "400".into()),
        ("attempts_min", "2".into()),
        ("failure", "reset".into()),
        ("limited_by", "minute".into()),
        ("meter", "mtr_7".into()),
        ("cause", "empty".into()),
        ("spent", "mtr_8".into()),
        ("value_missing", "mtr_9".into()),
        ("denied_by", "target_credential".into()),
        ("endpoint", "eu.example:443".into()),
        ("forwarded_to", "us".into()),
        ("forwarded_from", "ap".into()),
        ("method_overridden", "true".into()),
        ("event", "breaker-opened".into()),
        ("rule", proto::id::RuleId::from_bits(5).to_string()),
        ("filter", proto::id::FilterId::from_bits(6).to_string()),
        ("source", "192.0.2.0/24".into()),
        ("user_agent", "openai".into()),
        ("upstream_id", "up-1".into()),
        ("trace_id", "0AF7651916CD43DD8448EB211C80319C".into()),
        ("left_gateway", "files.example".into()),
        ("client_aborted", "true".into()),
        ("scrubbed", "true".into()),
        ("scrub", "skipped".into()),
    ];
    let find = |name: &str, value: &str| {
        let filter = by(|filter| filter.conditions = vec![field(name, value)]);
        numbers(&records.list(ORG, &filter, 10).unwrap().0)
    };
    for (name, value) in &rows {
        assert_eq!(find(name, value), [2], "{name}={value}");
    }
    let maxima = [
        ("duration_ms_max", "1999"),
        ("request_bytes_max", "99"),
        ("response_bytes_max", "199"),
        ("attempts_max", "1"),
    ];
    for (name, value) in maxima {
        assert_eq!(find(name, value), [4, 3, 1], "{name}={value}");
    }
    for name in ["endpoint", "forwarded_to", "forwarded_from"] {
        assert_eq!(find(name, ""), [0u128; 0], "{name}");
    }
    assert_eq!(find("method_overridden", "false"), [0u128; 0]);
    assert_eq!(find("event", "retry"), [0u128; 0]);
    assert_eq!(find("ended_by", "limit"), [3]);
    assert_eq!(find("ended_by", "respond"), [4]);
    assert_eq!(find("key_hint", "az09"), [0u128; 0]);
    assert_eq!(find("key_place", ""), [0u128; 0]);
    let tried: Vec<&str> = rows.iter().map(|(name, _)| *name).collect();
    for field in FIELDS {
        let known = tried.contains(&field.name);
        assert!(
            known || field.name == "ended_by" || maxima.iter().any(|(name, _)| *name == field.name),
            "{}",
            field.name
        );
    }
}

pub fn what_comes_twice_is_shown_once(records: &Records) {
    let batch: Vec<_> = (1..=4).map(|n| record(n, 1)).collect();
    records.insert(&batch).unwrap();
    records.insert(&batch).unwrap();
    records.insert(&batch[2..]).unwrap();
    assert_eq!(all(records), [4, 3, 2, 1]);
    let (page, next) = records.list(ORG, &RecordFilter::default(), 3).unwrap();
    assert_eq!((numbers(&page), next.is_some()), (vec![4, 3, 2], true));
    assert_eq!(records.insert(&[] as &[Record]).unwrap(), 0);
    let found = records.get(ORG, RequestId::from_bits(3)).unwrap();
    assert_eq!(found, Some(batch[2].clone()));
}

pub fn a_record_comes_back_whole(records: &Records) {
    let mut odd = record(7, 1);
    odd.path = "/a'b\\c\"d\n\u{1F680}?\0".into();
    odd.user_agent = Some("\u{130}stanbul 'OR 1=1".into());
    odd.total_us = u64::MAX;
    odd.response_bytes = u64::MAX;
    odd.status = None;
    odd.started_at_us = 1_795_000_000_123_456;
    odd.events = vec![
        proto::record::SpanEvent::new(
            proto::record::SpanEventKind::SecretReflected,
            proto::record::Stage::Filter,
            u32::MAX,
        )
        .of(Some("crd_'1".into()))
        .counted(u32::MAX),
    ];
    odd.events_dropped = u32::MAX;
    odd.meters = vec![MeterSpend {
        meter: "mtr_1".into(),
        tokens: u64::MAX,
    }];
    odd.payload = Some(Box::new(Payload {
        request: Some(Captured {
            content_type: Some("text/plain".into()),
            content: "what 'was' sent \u{1F680}".into(),
            ..Captured::default()
        }),
        response: None,
    }));
    let mut following = records.follow(ORG, RecordFilter::default()).unwrap();
    records.insert(std::slice::from_ref(&odd)).unwrap();
    let found = records.get(ORG, odd.request_id).unwrap();
    assert_eq!(found.as_ref(), Some(&odd));
    // Bodies are in no list.
    odd.payload = None;
    let found = records.list(ORG, &RecordFilter::default(), 1).unwrap();
    assert_eq!(found.0, [odd.clone()]);
    let followed = RUNTIME.block_on(following.next());
    assert_eq!(followed, Some(Tail::Record(Box::new(odd))));
}

/// Whatever a value holds it is compared, and is no part of a query.
pub fn what_callers_send_is_never_sql(records: &Records) {
    let mut nasty = record(1, 1);
    nasty.path = "/v1/100%_\\'?".into();
    records.insert(&[nasty, record(2, 1)]).unwrap();
    let find = |name: &str, value: &str| {
        let filter = by(|filter| filter.conditions = vec![field(name, value)]);
        numbers(&records.list(ORG, &filter, 10).unwrap().0)
    };
    assert_eq!(find("path", "/v1/100%_\\'?"), [1]);
    assert_eq!(find("path", "*%_\\'*"), [1]);
    assert_eq!(find("path", "/v1/1__*"), [0u128; 0]);
    for text in [
        "' OR 1 = 1 --",
        "\\",
        "\\'",
        "{a: String}",
        "?",
        "\0",
        "\u{1F680}",
    ] {
        for name in [
            "path",
            "node",
            "user_agent",
            "upstream_id",
            "query",
            "generation",
        ] {
            assert_eq!(find(name, text), [0u128; 0], "{name}={text}");
        }
        let filter = by(|filter| filter.code = Some(text.into()));
        assert!(records.list(ORG, &filter, 10).unwrap().0.is_empty());
    }
    // Instants that no calendar has.
    let ever = by(|filter| (filter.from_us, filter.to_us) = (Some(i64::MIN), Some(i64::MAX)));
    assert_eq!(records.list(ORG, &ever, 10).unwrap().0.len(), 2);
    let never = by(|filter| filter.from_us = Some(i64::MAX));
    assert!(records.list(ORG, &never, 10).unwrap().0.is_empty());
}

pub fn followers_get_what_they_asked_for(records: &Records) {
    let filter = by(|filter| filter.status = "429".parse().ok());
    let mut following = records.follow(ORG, filter).unwrap();
    let mut stranger = records
        .follow(OrgId::from_bits(2), RecordFilter::default())
        .unwrap();
    records.insert(&[record(0, 1), record(1, 1)]).unwrap();
    let mut next = || RUNTIME.block_on(following.next());
    let Some(Tail::Record(found)) = next() else {
        panic!("a record");
    };
    assert_eq!(found.request_id, RequestId::from_bits(1));
    // Nobody waits for one who does not read.
    let many: Vec<_> = (0..4_000).map(|n| record(2 * n + 11, 1)).collect();
    records.insert(&many).unwrap();
    assert_eq!(next(), Some(Tail::Missed(4_000 - 1_024)));
    let mut came = 0;
    while came < 1_024 && matches!(next(), Some(Tail::Record(_))) {
        came += 1;
    }
    assert_eq!(came, 1_024);
    records.insert(&[record(3, 2)]).unwrap();
    let Some(Tail::Record(found)) = RUNTIME.block_on(stranger.next()) else {
        panic!("a record");
    };
    assert_eq!(
        found.request_id,
        RequestId::from_bits(3),
        "and none of others"
    );
}

pub fn followers_are_bounded_and_leave_their_place(records: &Records) {
    let follow = || records.follow(ORG, RecordFilter::default());
    let mut all: Vec<_> = std::iter::from_fn(follow).take(1_000).collect();
    assert!(all.len() < 1_000 && follow().is_none());
    all.pop();
    assert!(follow().is_some());
}
