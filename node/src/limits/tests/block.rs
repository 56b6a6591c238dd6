//! Opening, settling and closing blocks in a state.

use proto::meter::{Limit, MeterSpec, Window};

use crate::limits::block::{Block, Opener, life_now_ns, life_ns, share_of};
use crate::limits::clock::Moment;
use crate::limits::credit::CREDITS_MAX;
use crate::limits::state::{Instant, OPEN_MAX, State};

const SECOND: u64 = 1_000_000_000;
const ME: Opener = Opener { node: 1, boot: 1 };
const NOW: Instant = Instant {
    age_ns: 0,
    unix_s: 0,
};

fn spec(limit: u64, window: Window) -> MeterSpec {
    MeterSpec::new("", 1, vec![Limit::new(limit, window).unwrap()]).unwrap()
}

fn block(id: u64) -> Block {
    Block {
        id,
        left: 0,
        ends_in_ns: 200_000_000,
        unix_s: 0,
        opener: ME,
    }
}

#[test]
fn a_block_holds_at_most_a_twentieth_and_never_more_than_is_free() {
    let mut state = State::empty(&spec(100, Window::Minute), 0, 0);
    assert_eq!(state.open(1_000, 0, block(1)), 5);
    assert_eq!(state.free(), 95);
    state.charge(94, NOW);
    assert_eq!(state.open(1_000, 0, block(2)), 1);
    assert_eq!(state.open(1, 0, block(3)), 0);
    for (limit, most) in [(1, 1), (20, 1), (21, 2), (39, 2), (1_000_000, 50_000)] {
        let limit = Limit::new(limit, Window::Minute).unwrap();
        assert_eq!(share_of(&limit), most, "{limit:?}");
    }
}

#[test]
fn a_key_has_a_bounded_number_of_open_blocks() {
    let mut state = State::empty(&spec(1_000_000, Window::Minute), 0, 0);
    let opened = (0..100)
        .filter(|id| state.open(1, 0, block(*id)) > 0)
        .count();
    assert_eq!(opened, OPEN_MAX - CREDITS_MAX);
}

#[test]
fn a_settle_that_is_written_again_charges_nothing_twice() {
    let mut state = State::empty(&spec(100, Window::Minute), 0, 0);
    assert_eq!(state.open(5, 0, block(1)), 5);
    for spends in [2, 2, 3, 3, 5] {
        state.settle(ME, 1, 5, [(NOW, spends)].into_iter());
        assert_eq!(state.limits[0].used(), spends);
        assert_eq!(state.free(), 95);
    }
}

#[test]
fn what_was_drawn_and_never_sent_is_charged_at_the_end_and_the_rest_is_free_again() {
    let mut state = State::empty(&spec(100, Window::Minute), 0, 0);
    state.open(5, 0, block(1));
    state.settle(ME, 1, 5, [(NOW, 2)].into_iter());
    state.close(ME, 1, 1, NOW);
    assert_eq!((state.limits[0].used(), state.free()), (3, 97));
    // Of another incarnation, or gone: nothing happens.
    state.settle(Opener { node: 1, boot: 2 }, 1, 5, [(NOW, 5)].into_iter());
    state.close(ME, 1, 5, NOW);
    assert_eq!(state.free(), 97);
}

#[test]
fn blocks_live_a_hundredth_of_the_window_within_bounds_and_end_with_the_day() {
    let life = |window| life_ns(&spec(10, window));
    assert_eq!(life(Window::Second), SECOND / 5);
    assert_eq!(life(Window::Minute), 600_000_000);
    assert_eq!(life(Window::Hour), 30 * SECOND);
    let day = spec(10, Window::Day);
    let skew_ns = 250_000_000;
    let at = |before_end_ns: u64| Moment {
        boot_ns: 0,
        unix_ns: 86_400 * SECOND - before_end_ns,
    };
    assert_eq!(
        life_now_ns(&day, at(3_600 * SECOND), skew_ns, 1),
        30 * SECOND
    );
    assert_eq!(life_now_ns(&day, at(SECOND), skew_ns, 3), SECOND - skew_ns);
    assert_eq!(life_now_ns(&day, at(skew_ns), skew_ns, 1), 0);
}

/// Each token that comes is used at once, as those do who were told of it.
#[test]
fn nobody_is_told_of_a_token_before_it_comes() {
    const STEP_NS: u64 = 1_000_000;
    for limit in [1, 3, 20] {
        let mut state = State::empty(&spec(limit, Window::Second), 0, 0);
        state.charge(limit, NOW);
        let told: Vec<u64> = (1..=3 * limit).map(|k| state.free_in(k, 0).0).collect();
        let mut came = Vec::new();
        for step in 0..5_000 {
            while state.free() > 0 {
                state.charge(1, NOW);
                came.push(step * STEP_NS);
            }
            state.pass(STEP_NS, 0, ME);
        }
        assert!(came.len() >= told.len(), "{came:?}");
        for (told_ns, came_ns) in told.into_iter().zip(came) {
            // It came in the step that ended then.
            assert!(
                told_ns + STEP_NS >= came_ns,
                "of {limit}: {told_ns}, {came_ns}"
            );
        }
    }
}

#[test]
fn the_next_token_is_that_of_the_block_that_ends_first() {
    let mut state = State::empty(&spec(2, Window::Second), 0, 0);
    assert_eq!(state.open(1, 0, block(1)), 1);
    let first = Block {
        ends_in_ns: 50_000_000,
        ..block(2)
    };
    assert_eq!(state.open(1, 0, first), 1);
    let in_ns = [1, 2].map(|k| state.free_in(k, 0).0);
    assert_eq!(in_ns[1] - in_ns[0], 150_000_000, "{in_ns:?}");
}
