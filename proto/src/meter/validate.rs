//! The checks of one meter at save: everything that is wrong with it, at once.

use super::{
    Algorithm, AtLimit, Holding, LIMITS_PER_METER_MAX, Limit, Meter, MeterAlgorithm, MeterError,
    MeterKind, NOTES_CHARS_MAX, StoreLoss, Window, share, spec,
};
use crate::checks;
use crate::problem::Problem;

impl Meter {
    /// Everything that is wrong with the meter; empty if it can be stored.
    pub fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if !spec::is_name(&self.name) {
            let error = MeterError::Name(checks::printable(&self.name));
            problems.push(Problem::new("/name", "meter-name", error.to_string()));
        }
        self.check_limits(&mut problems);
        self.check_value(&mut problems);
        if let Some(when) = &self.when {
            problems.extend(when.validate().into_iter().map(|p| p.below("/when")));
        }
        problems.extend(self.key.validate().into_iter().map(|p| p.below("/key")));
        if let Some(hold) = &self.at_limit.hold {
            hold.check("/at_limit/hold", &mut problems);
            if self.limits.iter().all(|limit| limit.window.is_none()) {
                let detail = "holds callers of limits with a window only; add one or remove this";
                problems.push(Problem::new("/at_limit/hold", "not-applicable", detail));
            }
        }
        if self.limits.is_empty() {
            self.check_observer(&mut problems);
        }
        let passes = self
            .on_store_loss
            .filter(|does| *does != StoreLoss::FailClosed);
        if passes.is_some() && self.cancels_lost() {
            let detail = "lets calls pass without etcd, while `on_lost: cancel` ends them; give \
                          `fail_closed` or remove one of them";
            problems.push(Problem::new("/on_store_loss", "contradicts", detail));
        }
        if let Some(learn) = &self.learn {
            let (most, allowed) = (Some(learn.pause_max_ms), 1..=3_600_000);
            checks::range(most, allowed, "/learn/pause_max_ms", &mut problems);
        }
        let limits = self.limits.iter().enumerate().flat_map(|(at, limit)| {
            let burst = limit
                .burst
                .map(|burst| (format!("/limits/{at}/burst"), burst));
            [(format!("/limits/{at}/limit"), limit.limit)]
                .into_iter()
                .chain(burst)
        });
        problems.extend(share::check(&self.shared_by, limits));
        let chars = self.notes.as_ref().map_or(0, |notes| notes.chars().count());
        if chars > NOTES_CHARS_MAX {
            let detail = format!("has {chars} characters; at most {NOTES_CHARS_MAX} are allowed");
            problems.push(Problem::new("/notes", "notes-too-long", detail));
        }
        problems
    }

    fn check_value(&self, problems: &mut Vec<Problem>) {
        let of_values = self.kind == MeterKind::ResponseValue;
        match &self.value {
            Some(value) if of_values => {
                problems.extend(value.validate().into_iter().map(|p| p.below("/value")));
            }
            Some(_) => {
                let detail = "belongs to `kind: response_value` only; name it or remove this";
                problems.push(Problem::new("/value", "not-applicable", detail));
            }
            None if of_values => {
                let detail = "is missing: which number of the answer is counted?";
                problems.push(Problem::new("/value", "required", detail));
            }
            None => {}
        }
        let in_flight = Some(MeterAlgorithm::Concurrency);
        let slots = self
            .limits
            .iter()
            .position(|limit| limit.algorithm == in_flight);
        if let Some(at) = slots.filter(|_| of_values) {
            let detail = "counts calls in flight, not values of answers; use a meter of its own";
            let pointer = format!("/limits/{at}/algorithm");
            problems.push(Problem::new(pointer, "not-applicable", detail));
        }
    }

    fn check_limits(&self, problems: &mut Vec<Problem>) {
        if self.limits.len() > LIMITS_PER_METER_MAX {
            let detail = format!(
                "{} limits; at most {LIMITS_PER_METER_MAX} are allowed, one per window",
                self.limits.len()
            );
            problems.push(Problem::new("/limits", "too-many", detail));
            return;
        }
        let mut valid: Vec<(usize, Limit)> = Vec::new();
        let mut seen: Vec<Option<Window>> = Vec::new();
        for (at, limit) in self.limits.iter().enumerate() {
            match limit.compile() {
                Ok(limit) => valid.extend(limit.map(|limit| (at, limit))),
                Err(error) => problems.push(limit_problem(at, &error)),
            }
            let is_slots = limit.algorithm == Some(MeterAlgorithm::Concurrency);
            let told = !is_slots && limit.window.is_none();
            if seen.contains(&limit.window) && !told {
                let (field, detail) = match limit.window {
                    Some(window) => ("window", MeterError::SameWindow(window).to_string()),
                    None => ("algorithm", "two limits of calls in flight".to_owned()),
                };
                let pointer = format!("/limits/{at}/{field}");
                problems.push(Problem::new(pointer, "duplicate", detail));
            }
            if !told {
                seen.push(limit.window);
            }
        }
        for (at, limit) in &valid {
            // A bucket passes more than one window's worth at first.
            let counts = |limit: &Limit| limit.algorithm() != Algorithm::TokenBucket;
            let slower = valid.iter().map(|(_, other)| other).find(|other| {
                let less = other.window() > limit.window() && other.limit() < limit.limit();
                less && counts(other) && counts(limit)
            });
            if let Some(slower) = slower {
                let detail = format!(
                    "{} per {} can never be reached: {} per {} is less; lower it or remove it",
                    limit.limit(),
                    limit.window(),
                    slower.limit(),
                    slower.window()
                );
                let pointer = format!("/limits/{at}/limit");
                problems.push(Problem::new(pointer, "never-reached", detail));
            }
        }
    }

    /// Without limits nothing is refused, so nothing may be said about refusals.
    fn check_observer(&self, problems: &mut Vec<Problem>) {
        let mut useless = |pointer: &str| {
            let detail = "says nothing without `limits`; add one or remove this";
            problems.push(Problem::new(pointer, "not-applicable", detail));
        };
        if self.on_store_loss.is_some() {
            useless("/on_store_loss");
        }
        if !self.shared_by.is_empty() {
            useless("/shared_by");
        }
        if self.at_limit != AtLimit::default() {
            useless("/at_limit");
        }
    }
}

impl Holding {
    fn check(&self, pointer: &str, problems: &mut Vec<Problem>) {
        let at = |field: &str| format!("{pointer}/{field}");
        let wait = Some(self.max_wait_ms);
        checks::range(wait, 1..=300_000, &at("max_wait_ms"), problems);
        let most = Some(u64::from(self.max_waiting));
        checks::range(most, 1..=4_000, &at("max_waiting"), problems);
        if let Some(name) = &self.priority_header
            && (!checks::is_token(name) || name.len() > 256)
        {
            let detail = format!("`{}` is not a header name", checks::printable(name));
            problems.push(Problem::new(at("priority_header"), "header-name", detail));
        }
    }
}

/// A limit's fault at its place.
fn limit_problem(at: usize, error: &MeterError) -> Problem {
    let (field, code) = match error {
        MeterError::Algorithm { .. } => ("algorithm", "algorithm-window"),
        MeterError::NoWindow => ("window", "required"),
        MeterError::SlotWindow => ("window", "not-applicable"),
        MeterError::OnLost => ("on_lost", "not-applicable"),
        MeterError::BurstRange(_) => ("burst", "range"),
        MeterError::BurstAlgorithm => ("burst", "not-applicable"),
        _ => ("limit", "range"),
    };
    Problem::new(format!("/limits/{at}/{field}"), code, error.to_string())
}
