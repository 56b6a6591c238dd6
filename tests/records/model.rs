//! Random searches of random records.

use std::any::Any;
use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};

use super::*;

/// A store, and what goes with it.
type Opened = (Box<dyn Any>, Arc<Records>);

/// The `n`th request of the model: times, ids and organisations in no common order.
fn modelled(n: u128) -> Record {
    let mut record = record(n, 1 + n % 2);
    // About every second one has a mark of its own for the moment of its id.
    record.request_id = RequestId::from_bits((n * 37 % 128) << 89);
    record.started_at_us = 1_000 * (n as i64 * 7_919 % 40);
    record.proxy_id = ProxyId::from_bits(n / 2 % 3);
    record.target_credential_id = n.is_multiple_of(7).then(|| CredentialId::from_bits(n % 4));
    record.status = (!n.is_multiple_of(11)).then_some([200, 204, 404, 429, 502][n as usize % 5]);
    record
}

fn filters() -> impl Strategy<Value = RecordFilter> {
    let status: &[&str] = &["200", "2xx", "4xx", "5xx", "418", "1xx"];
    let code: &[&str] = &["proxy-access-granted", "rate-limited", "absent"];
    let time = || proptest::option::weighted(0.3, 0i64..42_000);
    (
        proptest::option::weighted(0.3, (0u128..4).prop_map(ProxyId::from_bits)),
        proptest::option::weighted(0.3, (0u128..6).prop_map(CredentialId::from_bits)),
        proptest::option::weighted(0.3, proptest::sample::select(status)),
        proptest::option::weighted(0.3, proptest::sample::select(code)),
        (time(), time()),
        proptest::option::weighted(0.3, 0u128..128),
    )
        .prop_map(
            |(proxy, credential, status, code, (from_us, to_us), after)| RecordFilter {
                conditions: Vec::new(),
                proxy,
                credential,
                status: status.map(|status| status.parse().unwrap()),
                code: code.map(str::to_owned),
                from_us,
                to_us,
                after: after.map(|n| RecordCursor::of(&modelled(n))),
            },
        )
}

/// What layout 1 asked SQL for, over records as they are.
fn holds(filter: &RecordFilter, record: &Record) -> bool {
    let credentials = [record.proxy_credential_id, record.target_credential_id];
    let text = record.status.map(|status| status.to_string());
    let statuses = |wanted: &str| -> StatusFilter { wanted.parse().unwrap() };
    let status_holds = |wanted| {
        text.as_ref().is_some_and(|text| {
            wanted == statuses(text) || wanted == statuses(&format!("{}xx", &text[..1]))
        })
    };
    filter.proxy.is_none_or(|id| record.proxy_id == id)
        && filter
            .credential
            .is_none_or(|id| credentials.contains(&Some(id)))
        && filter.status.is_none_or(status_holds)
        && filter.code.as_ref().is_none_or(|code| record.code == *code)
        && filter
            .from_us
            .is_none_or(|from| record.started_at_us >= from)
        && filter.to_us.is_none_or(|to| record.started_at_us < to)
        && filter
            .after
            .is_none_or(|after| RecordCursor::of(record) < after)
}

/// A search agrees with what a plain list of the records would answer.
pub fn searches_agree_with_a_plain_list(cases: u32, open: impl Fn() -> Opened) {
    let batches = proptest::collection::vec(proptest::collection::vec(0u128..128, 0..12), 0..24);
    let repeated = proptest::collection::vec(any::<Index>(), 0..4);
    let searches = proptest::collection::vec((filters(), 1usize..9), 12);
    let mut runner = TestRunner::new(Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    });
    runner
        .run(
            &(batches, repeated, searches),
            |(batches, repeated, searches)| {
                let (_kept, records) = open();
                let mut model = BTreeMap::new();
                let again = repeated.iter().filter(|_| !batches.is_empty());
                let again = again.map(|at| at.get(&batches)).collect::<Vec<_>>();
                for numbers in batches.iter().chain(again) {
                    let batch: Vec<_> = numbers.iter().map(|n| modelled(*n)).collect();
                    records.insert(&batch).unwrap();
                    let placed = batch
                        .into_iter()
                        .map(|record| (RecordCursor::of(&record), record));
                    model.extend(placed);
                }
                for (filter, limit) in searches {
                    agrees(&records, &model, filter, limit)?;
                }
                for record in (0..128).step_by(5).map(modelled) {
                    let kept = model.get(&RecordCursor::of(&record));
                    let got = records.get(record.org_id, record.request_id).unwrap();
                    prop_assert_eq!(got.as_ref(), kept);
                    let other = OrgId::from_bits(3 - record.org_id.bits());
                    prop_assert_eq!(records.get(other, record.request_id).unwrap(), None);
                }
                Ok(())
            },
        )
        .unwrap();
}

fn agrees(
    records: &Records,
    model: &BTreeMap<RecordCursor, Record>,
    mut filter: RecordFilter,
    limit: usize,
) -> Result<(), TestCaseError> {
    for org in [1, 2].map(OrgId::from_bits) {
        let expected: Vec<_> = model
            .values()
            .rev()
            .filter(|record| record.org_id == org && holds(&filter, record))
            .collect();
        let (found, next) = records.list(org, &filter, limit).unwrap();
        let shown: Vec<_> = expected.iter().copied().take(limit).cloned().collect();
        prop_assert_eq!(next.is_some(), expected.len() > limit);
        prop_assert_eq!(&found, &shown);
        if next.is_some() {
            filter.after = next;
        }
    }
    Ok(())
}
