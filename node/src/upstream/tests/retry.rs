//! When a request may be repeated.

use super::super::retry::*;
use super::*;

#[test]
fn the_methods_of_the_rfc_are_idempotent_and_no_others() {
    for method in ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"] {
        assert!(is_idempotent(&method.parse().unwrap()), "{method}");
    }
    for method in ["POST", "PATCH", "CONNECT", "get", "PROPFIND", "QUERY"] {
        assert!(!is_idempotent(&method.parse().unwrap()), "{method}");
    }
}

#[test]
fn retries_add_a_fifth_at_most() {
    let mut budget = RetryBudget::default();
    assert!(budget.take_retry(), "the first is free");
    assert!(!budget.take_retry());
    let mut retries = 0;
    for _ in 0..1000 {
        budget.count_request();
        retries += usize::from(budget.take_retry());
    }
    assert_eq!(retries, 200);
    // A long quiet time saves up ten.
    for _ in 0..100_000 {
        budget.count_request();
    }
    assert_eq!((0..100).filter(|_| budget.take_retry()).count(), 10);
}

#[test]
fn retry_after_is_read_in_all_its_forms() {
    let now = "1994-11-06T08:49:37Z".parse().unwrap();
    let check = |value: &str, expect: Option<u64>| {
        let wait = retry_after(value.as_bytes(), now, Duration::from_secs(600));
        assert_eq!(wait, expect.map(Duration::from_secs), "{value}");
    };
    check("0", Some(0));
    check("120", Some(120));
    check(" 7 ", Some(7));
    check("601", Some(600));
    check("99999999999999999999999", Some(600));
    check("Sun, 06 Nov 1994 08:50:37 GMT", Some(60));
    check("Sun, 06 Nov 1994 08:48:37 GMT", Some(0));
    check("Tue, 06 Nov 2094 08:49:37 GMT", None); // the wrong day of the week
    check("Sat, 06 Nov 2094 08:49:37 GMT", Some(600));
    check("Sunday, 06-Nov-94 08:50:37 GMT", Some(60));
    check("Sun Nov  6 08:50:37 1994", Some(60));
    for value in ["", "-1", "+5", "1.5", "soon", "5s", "Sun, 06 Nov", "\u{fc}"] {
        check(value, None);
    }
}

#[test]
fn backoff_doubles_up_to_its_most_and_is_random_below() {
    let check = |attempt, random, expect_ms| {
        let wait = backoff(
            attempt,
            Duration::from_millis(100),
            Duration::from_secs(1),
            random,
        );
        assert_eq!(wait, Duration::from_millis(expect_ms), "{attempt} {random}");
    };
    check(1, 0.0, 0);
    check(1, 0.5, 50);
    check(2, 0.5, 100);
    check(3, 0.5, 200);
    check(5, 0.5, 500);
    check(0, 0.5, 50);
    check(33, 0.5, 500);
    check(u32::MAX, 0.5, 500);
    check(1, 7.0, 100);
    check(1, -1.0, 0);
}
