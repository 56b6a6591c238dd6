//! Keys that requests bring: however many there are, the work and the memory are bounded.

use std::collections::HashSet;
use std::sync::Arc;

use proto::meter::{Limit, MeterSpec, Window};

use crate::limits::{Limits, MeterKey, Opener, Settings, SystemClock, VALUE_BYTES_MAX};

fn spec() -> Arc<MeterSpec> {
    let limit = Limit::new(10, Window::Minute).unwrap();
    Arc::new(MeterSpec::new("", 1, vec![limit]).unwrap())
}

fn limits(keys_max: usize) -> Arc<Limits> {
    let mut settings = Settings::single_node(Opener { node: 1, boot: 1 });
    settings.keys_max = keys_max;
    Limits::unserved(&settings, Arc::new(SystemClock)).0
}

#[test]
fn one_value_has_one_meter_and_a_long_one_the_overflow_key() {
    let (limits, spec) = (limits(100), spec());
    let newcomers = limits.newcomers(1);
    let keyed = |value: &[u8]| limits.keyed("mtr_1", value, &spec, &newcomers);
    assert!(Arc::ptr_eq(&keyed(b"a"), &keyed(b"a")));
    assert!(!Arc::ptr_eq(&keyed(b"a"), &keyed(b"b")));
    assert_eq!(keyed(b"a").key(), Some(&MeterKey::of("mtr_1", "a")));
    let fits = vec![b'x'; VALUE_BYTES_MAX];
    assert!(!keyed(&fits).key().unwrap().is_overflow());
    for bytes in [VALUE_BYTES_MAX + 1, 10 * 1024 * 1024] {
        let long = keyed(&vec![b'x'; bytes]);
        assert!(long.key().unwrap().is_overflow(), "{bytes}");
    }
}

#[test]
fn too_many_new_values_share_the_overflow_key() {
    let (limits, spec) = (limits(100_000), spec());
    let newcomers = limits.newcomers(1);
    let held: Vec<_> = (0..5_000)
        .map(|n| limits.keyed("mtr_1", n.to_string().as_bytes(), &spec, &newcomers))
        .collect();
    let distinct: HashSet<_> = held
        .iter()
        .map(|meter| meter.key().unwrap().digest())
        .collect();
    // Two hundred a second, and the loop may see a second or two turn.
    assert!(
        (200..=1_001).contains(&distinct.len()),
        "{}",
        distinct.len()
    );
    assert!(held.iter().any(|meter| meter.key().unwrap().is_overflow()));
    let again = limits.keyed("mtr_1", b"0", &spec, &newcomers);
    assert!(
        !again.key().unwrap().is_overflow(),
        "who is known stays known"
    );
}

#[test]
fn a_full_process_puts_the_rest_together() {
    let (limits, spec) = (limits(50), spec());
    let newcomers = limits.newcomers(1);
    let held: Vec<_> = (0..100)
        .map(|n| limits.keyed("mtr_1", n.to_string().as_bytes(), &spec, &newcomers))
        .collect();
    let own = held
        .iter()
        .filter(|meter| !meter.key().unwrap().is_overflow());
    assert_eq!(own.count(), 45, "and leaves a ninth to others");
}
