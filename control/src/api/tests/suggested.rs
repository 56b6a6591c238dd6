//! Rules are suggested of what the target took, and of nothing else.

use jiff::Timestamp;
use proto::id::RequestId;
use proto::record::Record;
use serde_json::{Value, json};

use super::{Who, api};

#[actix_web::test]
async fn what_the_target_refused_makes_no_rule() {
    let api = api().await;
    let made = api.quick_path("admin").await;
    let now_us = Timestamp::now().as_microsecond();
    let record = |n: u128, method: &str, path: &str, further: Value| -> Record {
        let mut fields = json!({
            "request_id": RequestId::from_bits(n), "org_id": api.acme, "proxy_id": made.proxy,
            "config_version": 1, "node": "n", "region": "local", "method": method, "path": path,
            "query": [], "status": 200, "upstream_status": 200, "code": "proxy-access-granted",
            "started_at_us": now_us - 60_000_000, "total_us": 5, "stages": [],
            "request_bytes": 0, "response_bytes": 0, "upstream_request_bytes": 0,
            "upstream_response_bytes": 0, "attempts": 1, "denials": [], "shadow_rule_ids": [],
            "filter_ids": [], "upstream_ids": [], "client_aborted": false, "scrubbed": 0
        });
        for (name, value) in further.as_object().cloned().unwrap_or_default() {
            fields[name] = value;
        }
        serde_json::from_value(fields).unwrap()
    };
    let batch = [
        record(1, "GET", "/charges", json!({})),
        record(2, "POST", "/charges", json!({"upstream_status": 201})),
        record(3, "DELETE", "/charges", json!({"upstream_status": 403})),
        record(4, "GET", "/admin", json!({"upstream_status": 404})),
        record(5, "GET", "/late", json!({"upstream_status": null})),
        record(6, "GET", "/there", json!({"forwarded_to": "eu"})),
        record(
            7,
            "GET",
            "/early",
            json!({"upstream_status": null, "attempts": 0}),
        ),
        record(8, "GET", "", json!({})),
    ];
    api.control.records.insert(&batch).unwrap();
    let path = format!("/orgs/acme/proxies/{}/suggested-rules", made.proxy);
    let found = api.get(Who::Viewer, &path).await.is(200).body;
    let rules = found["rules"].as_array().unwrap().iter();
    let rules: Vec<_> = rules
        .map(|one| {
            let rule = &one["rule"];
            (rule["methods"].clone(), rule["path"]["pattern"].clone())
        })
        .collect();
    let expected = [
        (json!(["GET", "POST"]), json!("^/charges$")),
        (json!(["GET"]), json!("^/$")),
    ];
    assert_eq!(rules, expected, "{found}");
    assert_eq!(found["rules"][0]["by_method"], json!({"GET": 1, "POST": 1}));
    let reasons = json!({"refused_by_target": 2, "no_answer": 1, "other_region": 1});
    assert_eq!(
        found["left_over"],
        json!({"records": 4, "reasons": reasons})
    );
    assert_eq!(found["records"], 7, "one was never sent: {found}");

    for query in [
        "from=1h&to=2h",
        "from=2026-11-25T10:00:00Z&to=2026-11-25T10:00:00Z",
    ] {
        let reply = api
            .get(Who::Viewer, &format!("{path}?{query}"))
            .await
            .is(400);
        assert!(reply.text.contains("`from`"), "{}", reply.text);
    }
}
