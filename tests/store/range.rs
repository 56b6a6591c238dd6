//! Cases of ranges.

use proto::store::limits::TXN_OPS_MAX;
use proto::store::{Range, Revision};

use crate::AnyStore;
use crate::steps::{all, check_refused, delete, keys, page, put};

pub async fn pages_while_writing(store: AnyStore) {
    let names: Vec<String> = (0..25).map(|n| format!("p/{n:02}")).collect();
    for name in &names {
        put(&*store, name, "old").await;
    }
    let mut range = Range {
        limit: 10,
        ..all("p/")
    };
    let mut seen = Vec::new();
    loop {
        let page = page(&*store, range.clone()).await;
        seen.extend(
            page.items
                .iter()
                .map(|item| (item.key.clone(), item.value.clone())),
        );
        // Changes ahead of the reader, behind it, and where there was nothing.
        put(&*store, "p/24", "new").await;
        delete(&*store, "p/23").await;
        put(&*store, "p/00", "new").await;
        put(&*store, "p/135", "new").await;
        range.at = Some(*range.at.get_or_insert(page.revision));
        assert_eq!(
            range.at,
            Some(page.revision),
            "all pages tell the same revision"
        );
        if !page.more {
            break;
        }
        range.after = page.items.last().map(|item| item.key.clone());
    }
    let expected: Vec<_> = names.into_iter().map(|name| (name, "old".into())).collect();
    assert_eq!(seen, expected);
    let now = page(&*store, all("p/")).await;
    assert_eq!(now.items.len(), 25, "one gone, one more");
    assert_eq!(&now.items[0].value[..], b"new");
}

pub async fn byte_order(store: AnyStore) {
    let ordered = [
        "B",
        "a",
        "a\0",
        "a/",
        "a/b",
        "a0",
        "aa",
        "z",
        "ä",
        "\u{ffff}",
        "\u{10000}",
    ];
    for key in ordered.iter().rev() {
        put(&*store, key, "1").await;
    }
    assert_eq!(keys(&page(&*store, all("")).await), ordered);
    let under_a = ["a", "a\0", "a/", "a/b", "a0", "aa"];
    assert_eq!(keys(&page(&*store, all("a")).await), under_a);
    assert_eq!(keys(&page(&*store, all("a/")).await), ["a/", "a/b"]);
    assert_eq!(keys(&page(&*store, all("nothing")).await), [""; 0]);
}

pub async fn after(store: AnyStore) {
    for key in ["a/1", "a/2", "a/3", "b/1"] {
        put(&*store, key, "1").await;
    }
    let check = async |after: &str, expected: &[&str]| {
        let found = page(
            &*store,
            Range {
                after: Some(after.into()),
                ..all("a/")
            },
        )
        .await;
        assert_eq!(keys(&found), expected, "after {after}");
    };
    check("a/1", &["a/2", "a/3"]).await;
    check("a/1x", &["a/2", "a/3"]).await;
    check("a/3", &[]).await;
    check("A", &["a/1", "a/2", "a/3"]).await;
    check("b", &[]).await;
}

pub async fn limit(store: AnyStore) {
    for key in ["a/1", "a/2", "a/3", "b/1"] {
        put(&*store, key, "1").await;
    }
    let check = async |limit: usize, expected: &[&str], more: bool| {
        let found = page(&*store, Range { limit, ..all("a/") }).await;
        assert_eq!(
            (keys(&found), found.more),
            (expected.to_vec(), more),
            "limit {limit}"
        );
    };
    check(1, &["a/1"], true).await;
    check(2, &["a/1", "a/2"], true).await;
    check(3, &["a/1", "a/2", "a/3"], false).await;
    check(1_000_000, &["a/1", "a/2", "a/3"], false).await;
    delete(&*store, "a/3").await;
    check(2, &["a/1", "a/2"], false).await;
}

pub async fn large_values(store: AnyStore) {
    // Five megabytes: more than a message of etcd's client may hold.
    let names: Vec<String> = (0..5).map(|n| format!("large/{n}")).collect();
    for name in &names {
        put(&*store, name, vec![7; 1_000_000]).await;
    }
    let mut range = all("large/");
    let mut seen = Vec::new();
    loop {
        let page = page(&*store, range.clone()).await;
        assert!(page.items.iter().all(|item| item.value.len() == 1_000_000));
        seen.extend(page.items.iter().map(|item| item.key.clone()));
        if !page.more {
            break;
        }
        range.at = Some(page.revision);
        range.after = page.items.last().map(|item| item.key.clone());
    }
    assert_eq!(seen, names);
}

pub async fn refused(store: AnyStore) {
    let at = put(&*store, "a", "1").await;
    let check = async |what: &str, range: Range| {
        check_refused(what, "Invalid", store.range(range).await);
    };
    check(
        "no keys at all",
        Range {
            limit: 0,
            ..all("")
        },
    )
    .await;
    check(
        "revision zero",
        Range {
            at: Some(Revision(0)),
            ..all("")
        },
    )
    .await;
    check(
        "a revision not reached yet",
        Range {
            at: Some(at.next()),
            ..all("")
        },
    )
    .await;
    assert_eq!(
        keys(
            &page(
                &*store,
                Range {
                    at: Some(at),
                    ..all("a")
                }
            )
            .await
        ),
        ["a"]
    );
}

pub async fn several(store: AnyStore) {
    for n in (0..TXN_OPS_MAX).step_by(2) {
        put(&*store, &format!("s/{n}"), format!("value {n}")).await;
    }
    // Each, backwards, and one of them twice.
    let all = (0..TXN_OPS_MAX - 1).rev().map(|n| format!("s/{n}"));
    let all: Vec<String> = all.chain(["s/0".to_owned()]).collect();
    let found = store.get_all(all.clone()).await.expect("an answer");
    assert_eq!(found.len(), all.len());
    for (key, found) in all.iter().zip(found) {
        let alone = store.get(key).await.expect("an answer").value;
        assert_eq!(found, alone, "{key}");
    }
    assert_eq!(store.get_all(Vec::new()).await, Ok(Vec::new()));
    for (refused, why) in [
        (vec!["s/0".to_owned(); TXN_OPS_MAX + 1], "too many"),
        (vec![String::new()], "an empty key"),
    ] {
        assert!(store.get_all(refused).await.is_err(), "{why}");
    }
}
