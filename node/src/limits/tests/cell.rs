//! What workers and the broker can do to a cell, and in which order nothing gets through.

use crate::limits::cell::{Cell, SPEND_SLOTS, Span};

const MS: u64 = 1_000_000;

fn open(amount: u64) -> Cell {
    let cell = Cell::default();
    cell.open(amount, Span::new(0, 200 * MS, 16 * MS, 0));
    cell
}

#[test]
fn a_cell_gives_as_many_tokens_as_were_put_in() {
    let cell = open(2);
    let (generation, left) = cell.draw(1, 0).unwrap();
    assert_eq!(left, 1);
    assert!(cell.draw(1, MS).is_some());
    assert_eq!(cell.draw(1, MS), None);
    cell.put_back(generation, 1);
    assert!(cell.draw(1, MS).is_some());
}

#[test]
fn nothing_is_drawn_or_sent_at_or_after_the_end() {
    let cell = open(2);
    let (generation, _) = cell.draw(1, 0).unwrap();
    assert_eq!(cell.draw(1, 200 * MS), None);
    assert_eq!(cell.count(200 * MS), 0);
    assert!(cell.send(generation, 1, 200 * MS).is_none());
    assert!(cell.send(generation, 1, 200 * MS - 1).is_some());
}

#[test]
fn what_a_closed_part_held_is_final() {
    let cell = open(5);
    let (generation, _) = cell.draw(1, 0).unwrap();
    let (late, _) = cell.draw(1, 0).unwrap();
    assert!(cell.send(generation, 1, 20 * MS).is_some());
    let closed = cell.close();
    assert_eq!(closed.rest, 3);
    assert_eq!(closed.spends.iter().sum::<u64>(), 1);
    // Too late: neither a send nor a return of the old part reaches the next one.
    assert!(cell.send(late, 1, 21 * MS).is_none());
    cell.open(1, Span::new(30 * MS, 200 * MS, 16 * MS, 0));
    cell.put_back(late, 1);
    assert!(cell.send(late, 1, 31 * MS).is_none());
    assert_eq!((cell.rest(), cell.spends()), (1, [0; SPEND_SLOTS]));
}

#[test]
fn a_spend_is_charged_at_the_end_of_its_sub_window_never_before_it() {
    for (life_ms, sub_ms, phase_ms) in [(200, 16, 0), (200, 16, 7), (30_000, 16, 3), (1, 1_000, 0)]
    {
        let (start, end) = (1_000 * MS, (1_000 + life_ms) * MS);
        let span = Span::new(start, end, sub_ms * MS, phase_ms * MS);
        for at in [start, start + life_ms * MS / 2, end - 1] {
            let cell = Cell::default();
            cell.open(1, span);
            let (generation, _) = cell.draw(1, at).unwrap();
            assert!(cell.send(generation, 1, at).is_some());
            let slot = cell.spends().iter().position(|n| *n == 1).unwrap();
            assert!(span.slot_end_ns(slot) >= at, "{span:?} at {at}");
        }
    }
}

#[test]
fn workers_together_send_no_more_than_the_cell_held() {
    for round in 0..20 {
        let cell = open(1_000);
        let sent: u64 = std::thread::scope(|scope| {
            let work = || {
                let mut sent = 0;
                while let Some((generation, _)) = cell.draw(1, MS) {
                    if sent % 3 == 0 {
                        cell.put_back(generation, 1);
                        sent += u64::from(
                            cell.draw(1, MS)
                                .is_some_and(|(g, _)| cell.send(g, 1, MS).is_some()),
                        );
                    } else {
                        sent += u64::from(cell.send(generation, 1, MS).is_some());
                    }
                }
                sent
            };
            let workers: Vec<_> = (0..4).map(|_| scope.spawn(work)).collect();
            // Some rounds close in the middle: what was sent before is what the close saw.
            let closed = (round % 2 == 0).then(|| cell.close());
            let sent = workers.into_iter().map(|w| w.join().unwrap()).sum();
            if let Some(closed) = closed {
                assert_eq!(closed.spends.iter().sum::<u64>(), sent);
            }
            sent
        });
        assert!(sent <= 1_000, "{sent}");
    }
}
