//! How much of a window is used at an instant: a sliding ring and a calendar window.
//!
//! Pure integer arithmetic. A sliding ring holds charges by *age*, the time from the charge to the
//! moment that its holder speaks about; there is no wall clock in it, and whoever moves it on says
//! by how much. The window is cut into K = 60 sub-windows and K + 1 of them are counted: the
//! current one is only partly over, so that with K alone a charge would leave up to one sub-window
//! early and two bursts could stand within one window's length. A charge may be entered later than
//! the send that it stands for, never earlier: then it also leaves later, and the bound holds.
//!
//! A calendar window counts per UTC day or month and is the only place that needs a wall clock.

use proto::meter::Window;
use serde::{Deserialize, Serialize};

/// Sub-windows per window (K). At most 1/K of a limit stays unused because of the cut.
pub const SUB_WINDOWS: usize = 60;

/// Sub-windows that are counted: K whole ones and the current one.
pub const COUNTED: usize = SUB_WINDOWS + 1;

/// Length of a sub-window: rounded up, so that K of them are never shorter than the window.
pub fn sub_window_ns(window: Window) -> u64 {
    window.width_ns().div_ceil(SUB_WINDOWS as u64)
}

/// Charges of the last K + 1 sub-windows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ring {
    /// Age of the beginning of the current sub-window, less than one sub-window.
    pub phase_ns: u64,
    /// Charges per sub-window, the current one first; what is missing at the end is zero.
    pub counts: Vec<u64>,
}

impl Ring {
    /// An empty ring whose sub-windows begin at the multiples of their length on the writer's own
    /// clock, so that spends counted on that grid enter without rounding.
    pub fn empty(now_ns: u64, sub_ns: u64) -> Self {
        Self {
            phase_ns: now_ns % sub_ns.max(1),
            counts: Vec::new(),
        }
    }

    /// Lets `elapsed_ns` pass: charges grow older, and leave when they are no longer counted.
    pub fn age(&mut self, elapsed_ns: u64, sub_ns: u64) {
        let sub_ns = sub_ns.max(1);
        let total_ns = self.phase_ns.saturating_add(elapsed_ns);
        self.phase_ns = total_ns % sub_ns;
        let shift = usize::try_from(total_ns / sub_ns)
            .unwrap_or(COUNTED)
            .min(COUNTED);
        if shift > 0 && !self.counts.is_empty() {
            self.counts.splice(0..0, std::iter::repeat_n(0, shift));
            self.trim();
        }
    }

    /// Enters `n` charges of that age; older than what is counted, they have left already.
    pub fn charge(&mut self, age_ns: u64, n: u64, sub_ns: u64) {
        let at = self.place(age_ns, sub_ns);
        if at >= COUNTED || n == 0 {
            return;
        }
        if self.counts.len() <= at {
            self.counts.resize(at + 1, 0);
        }
        if let Some(count) = self.counts.get_mut(at) {
            *count = count.saturating_add(n);
        }
    }

    /// Takes `n` charges of that age out, or older ones where there are fewer; never younger ones,
    /// which would be missed when the older ones have left.
    pub fn give_back(&mut self, age_ns: u64, n: u64, sub_ns: u64) {
        let at = self.place(age_ns, sub_ns);
        let mut left = n;
        for count in self.counts.iter_mut().skip(at) {
            let taken = left.min(*count);
            *count -= taken;
            left -= taken;
        }
        self.trim();
    }

    /// The sub-window of an age, the current one is 0.
    fn place(&self, age_ns: u64, sub_ns: u64) -> usize {
        let back = match age_ns.checked_sub(self.phase_ns) {
            None | Some(0) => 0,
            Some(beyond_ns) => (beyond_ns - 1) / sub_ns.max(1) + 1,
        };
        usize::try_from(back).unwrap_or(COUNTED)
    }

    /// Sum of what is counted.
    pub fn used(&self) -> u64 {
        self.counts.iter().fold(0, |sum, n| sum.saturating_add(*n))
    }

    /// When charges leave: (in how many nanoseconds, how many), the first to leave first.
    pub fn leaving(&self, sub_ns: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.counts
            .iter()
            .enumerate()
            .rev()
            .filter(|(_, n)| **n > 0)
            .map(move |(at, n)| {
                let boundaries = (COUNTED - at.min(COUNTED)) as u64;
                (
                    boundaries
                        .saturating_mul(sub_ns)
                        .saturating_sub(self.phase_ns),
                    *n,
                )
            })
    }

    /// Adds the charges of another ring, each at its age; where the grids differ a charge is
    /// entered at the youngest age that it can have.
    pub fn merge(&mut self, other: &Self, sub_ns: u64) {
        for (at, n) in other.counts.iter().enumerate() {
            let youngest_ns = match at {
                0 => 0,
                at => {
                    other
                        .phase_ns
                        .saturating_add((at as u64 - 1).saturating_mul(sub_ns))
                        + 1
                }
            };
            self.charge(youngest_ns, *n, sub_ns);
        }
    }

    fn trim(&mut self) {
        self.counts.truncate(COUNTED);
        while self.counts.last() == Some(&0) {
            self.counts.pop();
        }
    }
}

/// What is used of the current and the previous calendar window.
///
/// The previous one is kept for a clock that goes back over the border: the state returns to the
/// window before with the larger of both, so that no window gets its limit twice. After a jump it
/// is the one that was left, however far it is: a wrong clock may have jumped, and goes back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Calendar {
    /// Days or months since 1970-01-01.
    pub window: i64,
    /// Used in `window`.
    pub used: u64,
    /// Used in the window before, or in the one that a jump has left.
    pub previous: u64,
}

impl Calendar {
    /// Moves on to the window that the wall clock shows; never back.
    pub fn move_to(&mut self, window: i64) {
        if window <= self.window {
            return;
        }
        self.previous = self.used;
        self.used = 0;
        self.window = window;
    }

    /// Moves back to a window, from one that a wrong clock has opened: with the larger number that
    /// was used of both.
    pub fn set_back(&mut self, window: i64) {
        if window < self.window {
            self.used = self.used.max(self.previous);
            self.window = window;
        }
    }

    /// Enters `n` charges of a window; of one before the previous they no longer matter.
    pub fn charge(&mut self, window: i64, n: u64) {
        if window >= self.window {
            self.used = self.used.saturating_add(n);
        } else if window == self.window.saturating_sub(1) {
            self.previous = self.previous.saturating_add(n);
        }
    }

    /// Takes `n` charges of a window out.
    pub fn give_back(&mut self, window: i64, n: u64) {
        if window == self.window {
            self.used = self.used.saturating_sub(n);
        } else if window == self.window.saturating_sub(1) {
            self.previous = self.previous.saturating_sub(n);
        }
    }
}

const DAY_S: i64 = 86_400;

/// Number of the calendar window (days or months since 1970-01-01, UTC) that holds a second.
///
/// Windows under a day count whole lengths since 1970, which no limit uses today.
pub fn calendar_window(window: Window, unix_s: i64) -> i64 {
    match window {
        Window::Month => {
            let (year, month) = year_month(unix_s.div_euclid(DAY_S));
            (year - 1970) * 12 + month - 1
        }
        _ => unix_s.div_euclid(width_s(window)),
    }
}

/// First second after a calendar window.
pub fn calendar_end_s(window: Window, number: i64) -> i64 {
    match window {
        Window::Month => {
            let next = number.saturating_add(1);
            first_day(1970 + next.div_euclid(12), next.rem_euclid(12) + 1).saturating_mul(DAY_S)
        }
        _ => number.saturating_add(1).saturating_mul(width_s(window)),
    }
}

fn width_s(window: Window) -> i64 {
    i64::try_from(window.width_ns() / 1_000_000_000).unwrap_or(DAY_S)
}

/// Year and month (1 to 12) of a day since 1970-01-01: Howard Hinnant's `civil_from_days`.
fn year_month(day: i64) -> (i64, i64) {
    let z = day + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    (year_of_era + era * 400 + i64::from(month <= 2), month)
}

/// Days from 1970-01-01 to the first of a month: Howard Hinnant's `days_from_civil`.
fn first_day(year: i64, month: i64) -> i64 {
    let year = year.clamp(-1_000_000, 1_000_000) - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let shifted = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * shifted + 2) / 5;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUB: u64 = 10;

    /// Charges `n` at an age, lets time pass, and compares what is still counted.
    fn check(phase_ns: u64, age_ns: u64, elapsed_ns: u64, counted: u64) {
        let mut ring = Ring {
            phase_ns,
            counts: Vec::new(),
        };
        ring.charge(age_ns, 7, SUB);
        ring.age(elapsed_ns, SUB);
        let context = format!("phase {phase_ns}, age {age_ns}, then {elapsed_ns}");
        assert_eq!(ring.used(), counted, "{context}");
        assert!(ring.phase_ns < SUB, "{context}");
        assert!(ring.counts.len() <= COUNTED, "{context}");
    }

    #[test]
    fn a_charge_is_counted_for_its_whole_window_and_at_most_one_sub_window_more() {
        check(0, 0, 0, 7);
        check(0, 0, 600, 7); // the beginning of its sub-window: W later still counted
        check(0, 0, 609, 7);
        check(0, 0, 610, 0); // K + 1 sub-windows later
        check(9, 0, 600, 7); // the end of its sub-window
        check(9, 0, 601, 0); // older than W
        check(5, 5, 604, 7); // exactly on the border belongs to the current one
        check(5, 5, 605, 0);
        check(5, 6, 594, 7); // one older belongs to the one before
        check(5, 6, 595, 0);
        check(0, 601, 0, 0); // charged when it had left already
        check(0, 600, 0, 7);
        check(3, u64::MAX, 0, 0);
        check(3, 0, u64::MAX, 0);
    }

    #[test]
    fn leaving_tells_the_instant_at_which_age_drops_the_charge() {
        for phase in 0..SUB {
            for age in [0, 1, 5, 9, 10, 11, 95, 333, 599, 600] {
                let mut ring = Ring {
                    phase_ns: phase,
                    counts: Vec::new(),
                };
                ring.charge(age, 3, SUB);
                let Some((in_ns, 3)) = ring.leaving(SUB).next() else {
                    continue;
                };
                let mut before = ring.clone();
                before.age(in_ns - 1, SUB);
                ring.age(in_ns, SUB);
                assert_eq!(
                    (before.used(), ring.used()),
                    (3, 0),
                    "phase {phase}, age {age}"
                );
            }
        }
    }

    #[test]
    fn ageing_in_steps_is_ageing_at_once() {
        let mut steps = Ring {
            phase_ns: 3,
            counts: vec![1, 2, 3],
        };
        let mut once = steps.clone();
        for _ in 0..17 {
            steps.age(7, SUB);
        }
        once.age(17 * 7, SUB);
        assert_eq!(steps, once);
    }

    #[test]
    fn a_merge_makes_no_charge_older() {
        for phase in 0..SUB {
            let other = Ring {
                phase_ns: 4,
                counts: vec![1, 0, 0, 5],
            };
            let mut ring = Ring {
                phase_ns: phase,
                counts: Vec::new(),
            };
            ring.merge(&other, SUB);
            assert_eq!(ring.used(), 6);
            let first = ring.leaving(SUB).next().map(|(in_ns, _)| in_ns);
            assert!(
                first >= other.leaving(SUB).next().map(|(in_ns, _)| in_ns),
                "phase {phase}"
            );
        }
    }

    #[test]
    fn k_sub_windows_are_never_shorter_than_the_window() {
        for window in [Window::Second, Window::Minute, Window::Hour] {
            assert!(
                sub_window_ns(window) * SUB_WINDOWS as u64 >= window.width_ns(),
                "{window}"
            );
        }
    }

    fn check_calendar(unix_s: i64, day: i64, month: i64, month_end_s: i64) {
        assert_eq!(calendar_window(Window::Day, unix_s), day, "{unix_s}");
        assert_eq!(calendar_window(Window::Month, unix_s), month, "{unix_s}");
        assert_eq!(
            calendar_end_s(Window::Month, month),
            month_end_s,
            "{unix_s}"
        );
        let end_s = calendar_end_s(Window::Day, day);
        assert!(end_s > unix_s && end_s - unix_s <= DAY_S, "{unix_s}");
    }

    #[test]
    fn calendar_windows_are_days_and_months_in_utc() {
        check_calendar(0, 0, 0, 2_678_400);
        check_calendar(-1, -1, -1, 0);
        check_calendar(951_782_399, 11_015, 361, 951_868_800); // 2000-02-28, a leap year
        check_calendar(951_782_400, 11_016, 361, 951_868_800); // 2000-02-29
        check_calendar(951_868_800, 11_017, 362, 954_547_200); // 2000-03-01
        check_calendar(1_767_225_599, 20_453, 671, 1_767_225_600); // 2025-12-31T23:59:59
        check_calendar(1_767_225_600, 20_454, 672, 1_769_904_000); // 2026-01-01
    }

    #[test]
    fn a_clock_that_goes_back_over_the_border_gives_no_second_limit() {
        let mut calendar = Calendar {
            window: 10,
            used: 90,
            previous: 100,
        };
        calendar.move_to(11);
        assert_eq!(
            calendar,
            Calendar {
                window: 11,
                used: 0,
                previous: 90
            }
        );
        calendar.charge(11, 5);
        calendar.charge(10, 3);
        calendar.charge(9, 1_000);
        assert_eq!(
            calendar,
            Calendar {
                window: 11,
                used: 5,
                previous: 93
            }
        );
        calendar.move_to(10);
        assert_eq!(calendar.window, 11, "it moves on only");
        calendar.set_back(10);
        assert_eq!(
            calendar,
            Calendar {
                window: 10,
                used: 93,
                previous: 93
            }
        );
        calendar.charge(11, 2); // sent before the clock was set back
        assert_eq!(calendar.used, 95);
        calendar.move_to(13);
        assert_eq!(
            calendar,
            Calendar {
                window: 13,
                used: 0,
                previous: 95
            }
        );
        calendar.set_back(10);
        assert_eq!(
            (calendar.window, calendar.used),
            (10, 95),
            "it was a wrong clock"
        );
    }
}
