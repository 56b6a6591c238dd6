//! The bytes of a state: stable, bounded, and refused where they are not ours.

use proto::meter::Window;
use proto::wire::{self, WireError};

use crate::limits::block::{Block, Opener};
use crate::limits::bucket::Bucket;
use crate::limits::codec::{BYTES_MAX, CodecError, decode, encode};
use crate::limits::state::{Charges, OPEN_MAX, State, Usage};
use crate::limits::window::{COUNTED, Calendar, Ring};

fn state() -> State {
    let block = |id| Block {
        id,
        left: 7,
        ends_in_ns: -1,
        unix_s: 1_790_000_000,
        opener: Opener { node: 1, boot: 2 },
    };
    State {
        version: 42,
        limits: vec![
            Usage {
                window: Window::Minute,
                limit: 60,
                charges: Charges::Sliding(Ring {
                    phase_ns: 5,
                    counts: vec![1, 0, 300],
                }),
            },
            Usage {
                window: Window::Day,
                limit: 10_000,
                charges: Charges::Fixed(Calendar {
                    window: 20_000,
                    used: 9,
                    previous: 8,
                }),
            },
        ],
        open: vec![block(1), block(u64::MAX)],
        folded: Vec::new(),
    }
}

/// Schema 3 as the first release wrote it. When this fails, the layout changed: give it a new
/// number, and read this one as long as stores may hold it.
const GOLDEN: &str = "52525731010003000000332a02013c0005030100fb2c0103fb102701fb409c0908\
                      02010701fc007762d50102fdffffffffffffffff0701fc007762d50102";

#[test]
fn schema_3_has_these_bytes() {
    assert_eq!(hex::encode(encode(&state()).unwrap()), GOLDEN);
    assert_eq!(decode(&hex::decode(GOLDEN).unwrap()).unwrap(), state());
}

#[test]
fn a_state_with_a_bucket_has_a_schema_of_its_own() {
    let mut state = state();
    let mut bucket = Bucket::full(10);
    bucket.charge(3, 1_000_000_000);
    state.limits.push(Usage {
        window: Window::Second,
        limit: 50,
        charges: Charges::Bucket(bucket),
    });
    let bytes = encode(&state).unwrap();
    assert_eq!(bytes.get(5..7), Some(&[0, 15][..]));
    assert_eq!(decode(&bytes).unwrap(), state);
    let without = wire::decode::<State>(&bytes);
    assert!(matches!(without, Err(WireError::Schema { found: 15, .. })));
}

#[test]
fn the_largest_state_fits() {
    let mut largest = state();
    largest.open = vec![
        Block {
            id: u64::MAX,
            left: u64::MAX,
            ends_in_ns: i64::MIN,
            unix_s: i64::MIN,
            opener: Opener {
                node: u64::MAX,
                boot: u64::MAX,
            },
        };
        OPEN_MAX
    ];
    let usage = Usage {
        window: Window::Minute,
        limit: u64::MAX,
        charges: Charges::Sliding(Ring {
            phase_ns: u64::MAX,
            counts: vec![u64::MAX; COUNTED],
        }),
    };
    largest.limits = vec![usage; proto::meter::LIMITS_PER_METER_MAX];
    let bytes = encode(&largest).unwrap();
    assert_eq!(decode(&bytes).unwrap(), largest);

    let mut more = largest.clone();
    more.open.push(more.open[0].clone());
    let bytes = encode(&more).unwrap();
    assert!(matches!(decode(&bytes), Err(CodecError::TooMany(_))));
    let mut more = largest.clone();
    more.limits.push(more.limits[0].clone());
    let bytes = encode(&more).unwrap();
    assert!(matches!(decode(&bytes), Err(CodecError::TooMany(_))));
    let mut more = largest;
    if let Charges::Sliding(ring) = &mut more.limits[0].charges {
        ring.counts.push(1);
    }
    let bytes = encode(&more).unwrap();
    assert!(matches!(decode(&bytes), Err(CodecError::TooMany(_))));
}

#[test]
fn what_is_not_a_state_is_refused() {
    let good = encode(&state()).unwrap();
    for at in 0..good.len() {
        assert!(decode(&good[..at]).is_err(), "cut at {at}");
    }
    assert!(matches!(
        decode(b"\x01{\"version\":1}"),
        Err(CodecError::Frame(WireError::Magic | WireError::Cut { .. }))
    ));
    assert!(matches!(
        decode(&vec![0; BYTES_MAX + 1]),
        Err(CodecError::TooLarge(_))
    ));
    let foreign = proto::wire::encode(&proto::wire::RecordBatch::default()).unwrap();
    assert!(matches!(
        decode(&foreign),
        Err(CodecError::Frame(WireError::Schema { .. }))
    ));
}
