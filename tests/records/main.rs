//! What a records store answers: one suite, run on SQLite and on ClickHouse, and what is
//! ClickHouse's alone.
#![allow(clippy::unwrap_used, reason = "a test fails by panic")]

mod faults;
mod model;
mod search;
#[path = "../harness/clickhouse.rs"]
mod server;
mod together;

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use control::records::aggregate::{Aggregates, Order, Question};
use control::records::clickhouse::ClickHouseSettings;
use control::records::condition::Condition;
use control::records::field::FIELDS;
use control::records::tally::Dimension;
use control::records::{RecordCursor, RecordFilter, Records, Retention, StatusFilter, Tail};
use proto::id::{CredentialId, OrgId, ProxyId, RequestId};
use proto::record::Record;
use server::ClickHouse;
use tokio::runtime::Runtime;

/// What a store does.
type Case = fn(&Records);

/// Every sentence that holds of both stores.
const SUITE: &[(&str, Case)] = &[
    (
        "another_organisation_sees_nothing",
        search::another_organisation_sees_nothing,
    ),
    (
        "what_comes_twice_is_shown_once",
        search::what_comes_twice_is_shown_once,
    ),
    ("filters_select", search::filters_select),
    ("pages_join_to_the_whole", search::pages_join_to_the_whole),
    ("every_field_selects", search::every_field_selects),
    (
        "a_record_comes_back_whole",
        search::a_record_comes_back_whole,
    ),
    (
        "what_callers_send_is_never_sql",
        search::what_callers_send_is_never_sql,
    ),
    (
        "followers_get_what_they_asked_for",
        search::followers_get_what_they_asked_for,
    ),
    (
        "followers_are_bounded",
        search::followers_are_bounded_and_leave_their_place,
    ),
    (
        "tallies_say_what_the_records_say",
        together::kept_tallies_say_what_the_records_say,
    ),
    (
        "what_broke_off_is_an_error",
        together::what_broke_off_is_an_error_and_a_used_up_budget_a_refusal,
    ),
    (
        "the_largest_groups_come_first",
        together::the_largest_groups_come_first,
    ),
    (
        "spans_of_time_sum_to_the_whole",
        together::spans_of_time_sum_to_the_whole,
    ),
    (
        "the_use_of_a_credential_is_told",
        together::the_use_of_a_credential_is_told,
    ),
];

/// The runtime behind the store, as a control plane has it.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime can be made")
});

/// A fresh SQLite store.
fn on_sqlite() -> (tempfile::TempDir, Arc<Records>) {
    let dir = tempfile::tempdir().unwrap();
    let records = Records::open(&dir.path().join("records.db")).unwrap();
    (dir, Arc::new(records))
}

/// A store in a fresh database.
fn on_clickhouse(server: &ClickHouse) -> Arc<Records> {
    Arc::new(Records::in_clickhouse(
        settings(server),
        RUNTIME.handle().clone(),
    ))
}

fn settings(server: &ClickHouse) -> ClickHouseSettings {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // What the program itself does at its start.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let roots = rustls::RootCertStore::empty();
    let tls = rustls::ClientConfig::builder().with_root_certificates(roots);
    ClickHouseSettings {
        url: server.url().parse().unwrap(),
        user: server::USER.into(),
        password: server::PASSWORD.to_owned().into(),
        database: format!("records_{}", NEXT.fetch_add(1, Relaxed)),
        tls: Arc::new(tls.with_no_client_auth()),
        gather: Duration::ZERO,
        // The records of these tests are old.
        days: 100_000,
    }
}

#[test]
fn the_suite_passes_on_sqlite() {
    for (name, case) in SUITE {
        eprintln!("{name}");
        let (_dir, records) = on_sqlite();
        case(&records);
    }
    model::searches_agree_with_a_plain_list(32, || {
        let (dir, records) = on_sqlite();
        (Box::new(dir), records)
    });
}

#[test]
fn the_suite_passes_on_clickhouse() {
    let server = ClickHouse::start();
    for (name, case) in SUITE {
        eprintln!("{name}");
        case(&on_clickhouse(&server));
    }
    model::searches_agree_with_a_plain_list(6, || (Box::new(()), on_clickhouse(&server)));
    together::both_stores_answer_the_same(&on_sqlite().1, &on_clickhouse(&server));
    faults::a_table_of_an_earlier_release_gets_its_columns(&server);
    faults::what_is_too_old_or_too_large_goes(&server);
    faults::a_wrong_password_is_said(&server);
}

#[test]
fn nothing_is_lost_or_counted_twice_whatever_happens() {
    faults::whatever_happens();
}

fn record(n: u128, org: u128) -> Record {
    let even = n.is_multiple_of(2);
    let json = serde_json::json!({
        "request_id": RequestId::from_bits(n),
        "org_id": OrgId::from_bits(org),
        "proxy_id": ProxyId::from_bits(n % 3),
        "proxy_credential_id": CredentialId::from_bits(n % 5),
        "config_version": 1, "node": "n", "region": "local", "method": "GET", "path": "/",
        "query": [],
        "status": if even { 200 } else { 429 },
        "code": if even { "proxy-access-granted" } else { "rate-limited" },
        "started_at_us": 1_000 * (n as i64 / 2), "total_us": 5, "stages": [],
        "request_bytes": 0, "response_bytes": 0, "upstream_request_bytes": 0,
        "upstream_response_bytes": 0, "attempts": 1, "denials": [], "shadow_rule_ids": [],
        "filter_ids": [], "upstream_ids": [], "client_aborted": false, "scrubbed": 0
    });
    serde_json::from_value(json).unwrap()
}

const ORG: OrgId = OrgId::from_bits(1);

fn by(set: impl FnOnce(&mut RecordFilter)) -> RecordFilter {
    let mut filter = RecordFilter::default();
    set(&mut filter);
    filter
}

fn numbers(records: &[Record]) -> Vec<u128> {
    records.iter().map(|r| r.request_id.bits()).collect()
}

fn field(name: &str, value: &str) -> Condition {
    let field = FIELDS.iter().find(|field| field.name == name).unwrap();
    field.condition(value).unwrap()
}

/// Numbers of the records that an organisation has.
fn all(records: &Records) -> Vec<u128> {
    let found = records.list(ORG, &RecordFilter::default(), 100_000);
    numbers(&found.unwrap().0)
}

fn question(by: Dimension) -> Question {
    Question {
        org: ORG,
        by,
        from_s: 0,
        to_s: 3_600,
        bucket_s: None,
        filter: RecordFilter::default(),
        order: Order::Count,
        limit: 10,
    }
}
