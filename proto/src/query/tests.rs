//! Rows of form-decoded reading and exact removal.

use proptest::prelude::*;

use super::*;

#[track_caller]
fn reads(query: &str, expected: &[(&str, &str)]) {
    let decoded: Vec<_> = pairs(query.as_bytes())
        .map(|(name, value)| {
            (
                String::from_utf8_lossy(&name).into_owned(),
                String::from_utf8_lossy(&value).into(),
            )
        })
        .collect();
    let expected: Vec<_> = expected
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_string()))
        .collect();
    assert_eq!(decoded, expected, "{query:?}");
}

#[test]
fn a_query_is_read_as_a_form() {
    reads("", &[]);
    reads("&&", &[]);
    reads("a", &[("a", "")]);
    reads("a=", &[("a", "")]);
    reads("=b", &[("", "b")]);
    reads("a=1&b=2&a=3", &[("a", "1"), ("b", "2"), ("a", "3")]);
    reads("a=b=c", &[("a", "b=c")]);
    reads("k%65y=v%61l", &[("key", "val")]);
    reads("my+key=a+b%2B", &[("my key", "a b+")]);
    reads("a%3Db=1%26c", &[("a=b", "1&c")]);
    reads(
        "p=100%&q=%zz&r=%4",
        &[("p", "100%"), ("q", "%zz"), ("r", "%4")],
    );
    reads("a=1;b=2", &[("a", "1;b=2")]);
}

#[track_caller]
fn removes(query: &str, name: &str, expected: Option<&str>) {
    let left = remove(query.as_bytes(), name.as_bytes());
    let left = left.map(|left| String::from_utf8(left.into_owned()).unwrap());
    assert_eq!(left.as_deref(), expected, "{query:?} without {name:?}");
    assert_eq!(
        contains(query.as_bytes(), name.as_bytes()),
        expected.is_some()
    );
}

#[test]
fn removing_a_parameter_keeps_every_other_byte() {
    removes("", "key", None);
    removes("a=1", "key", None);
    removes("key=1", "key", Some(""));
    removes("key", "key", Some(""));
    removes("a=1&key=2&b=3", "key", Some("a=1&b=3"));
    removes("key=2&b=3", "key", Some("b=3"));
    removes("b=3&key=2", "key", Some("b=3"));
    removes("key=1&key=2&key=3", "key", Some(""));
    // Every spelling that a form decodes to the name.
    removes("k%65y=evil&b=1", "key", Some("b=1"));
    removes("%6b%65%79=evil", "key", Some(""));
    removes("api+key=1&api%20key=2&c", "api key", Some("c"));
    for spelling in ["api_key=1", "API-Key=1", "%41pi-k%65y", "api%5Fkey=1"] {
        let query = format!("a=1&{spelling}&api-keys=2");
        assert_eq!(remove(query.as_bytes(), b"api-key"), None, "{spelling}");
        let left = remove_equivalent(query.as_bytes(), b"api-key").unwrap();
        assert_eq!(&*left, b"a=1&api-keys=2", "{spelling}");
    }
    for (query, expected) in [
        ("a=1;api-key=2&b", "a=1&b"),
        ("a=1;%61pi_key=2;c&API-KEY=3&b;", "a=1;c&b;"),
        ("api-key;=2&b", "=2&b"),
        ("api-key=1;b=2&c", "c"),
        ("c&d;api-key", "c&d"),
    ] {
        let left = remove_equivalent(query.as_bytes(), b"api-key").unwrap();
        assert_eq!(&*left, expected.as_bytes(), "{query}");
    }
    assert_eq!(
        remove_equivalent(b"a=1;b=2%3Bapi-key=3&c;", b"api-key"),
        None
    );
    assert_eq!(remove_equivalent(b"a=1&&", b""), None);
    // Everything else stays, however it is written.
    removes(
        "a=%41+%zz&&key=1&=&b%5B%5D=%2f",
        "key",
        Some("a=%41+%zz&&=&b%5B%5D=%2f"),
    );
    removes("key=1&", "key", Some(""));
    removes("Key=1&keys=2&akey=3", "key", None);
    removes("&&", "", None);
    removes("=1&a", "", Some("a"));
}

proptest! {
    #[test]
    fn no_bytes_panic(query in proptest::collection::vec(any::<u8>(), 0..64), name in ".{0,3}") {
        let _ = pairs(&query).count();
        let _ = remove(&query, name.as_bytes());
    }

    #[test]
    fn what_was_removed_is_gone_and_the_rest_is_there(query in "[ab%6+=&1]{0,24}") {
        let (query, name) = (query.as_bytes(), b"a");
        let left = remove(query, name).unwrap_or(query.into());
        prop_assert!(!contains(&left, name));
        let kept: Vec<_> = pairs(query).filter(|(found, _)| **found != *name).collect();
        prop_assert_eq!(pairs(&left).collect::<Vec<_>>(), kept);
    }
}
