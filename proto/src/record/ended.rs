//! How a request ended: in which stage, and whether that is an error. Pure, and the same for
//! metrics, traces, counts and searches.

use super::{Attempt, Record, Stage, StageTime};
use crate::outcome::Code;
use crate::wire::StoredRecord;

/// Codes of what ends an answer that had begun: its caller has the target's status and not the
/// whole answer.
pub const BREAKING: [Code; 10] = [
    Code::UpstreamBlocked,
    Code::UpstreamUnreachable,
    Code::UpstreamTls,
    Code::UpstreamTimeout,
    Code::UpstreamInvalid,
    Code::ResponseTooLarge,
    Code::FilterNotJson,
    Code::ValidationFailed,
    Code::GatewayStopped,
    Code::InternalError,
];

/// Whether an answer with this status broke off, for a reason that is not its caller's. Where the
/// status is the code's own, the gateway answered with it.
pub fn is_broken(status: u16, code: Code) -> bool {
    BREAKING.contains(&code) && status != code.facts().status
}

/// Whether a request that ended so is an error: a 5xx, an answer that broke off, or none at all
/// for a caller that waited for it.
pub fn is_error(status: Option<u16>, code: &str) -> bool {
    match status {
        None => code != Code::ClientAborted.as_str(),
        Some(500..) => true,
        Some(status) => Code::named(code).is_some_and(|code| is_broken(status, code)),
    }
}

/// What a record says of its request's end.
#[derive(Clone, Copy)]
struct Ended<'a> {
    status: Option<u16>,
    upstream_status: Option<u16>,
    code: &'a str,
    stages: &'a [StageTime],
    sends: &'a [Attempt],
    is_forwarded: bool,
}

impl Ended<'_> {
    /// What the target answered last; records of early releases do not have each attempt.
    fn answered(&self) -> Option<u16> {
        let last = self.sends.last();
        last.map_or(self.upstream_status, |attempt| attempt.status)
    }

    fn broke_off(&self) -> bool {
        let (Some(status), Some(code)) = (self.status, Code::named(self.code)) else {
            return false;
        };
        // Another region's gateway gives a code with the status of its own.
        let is_targets = status >= 500 && self.answered() == Some(status) && !self.is_forwarded;
        is_broken(status, code) || BREAKING.contains(&code) && is_targets
    }

    fn stage(&self) -> Option<Stage> {
        match Code::named(self.code) {
            Some(Code::AccessGranted) => return None,
            Some(Code::ClientAborted) => return Some(Stage::Respond),
            _ if self.broke_off() => return Some(Stage::Respond),
            _ if self.is_forwarded && self.answered().is_some() => return Some(Stage::Forward),
            _ => {}
        }
        let mut passed = self.stages.iter().rev().map(|time| time.stage);
        passed.find(|stage| *stage < Stage::Record)
    }
}

impl Record {
    /// Whether it is an error: see [`is_error`].
    pub fn is_error(&self) -> bool {
        is_error(self.status, &self.code)
    }

    /// Whether the answer had begun and broke off, for a reason that is not the caller's.
    pub fn broke_off(&self) -> bool {
        self.ended().broke_off()
    }

    /// The stage in which the request ended, where it was not answered in full: the last one that
    /// it reached, or `respond` where the answer broke off or the caller left.
    pub fn ended_by(&self) -> Option<Stage> {
        self.ended().stage()
    }

    fn ended(&self) -> Ended<'_> {
        Ended {
            status: self.status,
            upstream_status: self.upstream_status,
            code: &self.code,
            stages: &self.stages,
            sends: &self.sends,
            is_forwarded: self.forwarded_to.is_some(),
        }
    }
}

impl StoredRecord<'_> {
    /// The stage in which the request ended: see [`Record::ended_by`].
    pub fn ended_by(&self) -> Option<Stage> {
        let ended = Ended {
            status: self.status,
            upstream_status: self.upstream_status,
            code: self.code,
            stages: &self.stages,
            sends: &self.sends,
            is_forwarded: self.forwarded_to.is_some(),
        };
        ended.stage()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record that reached a stage, and what the attempts were answered.
    fn record(code: &str, status: Option<u16>, last: Stage, answers: &[Option<u16>]) -> Record {
        let reached = Stage::ALL.into_iter().filter(|stage| *stage <= last);
        let attempt = |status: &Option<u16>| Attempt {
            started_us: 0,
            connect_us: 0,
            wait_us: 1,
            reused: false,
            status: *status,
            failure: None,
        };
        Record {
            code: code.to_owned().into(),
            status,
            upstream_status: answers.iter().copied().flatten().last(),
            stages: reached.map(|stage| StageTime { stage, us: 1 }).collect(),
            sends: answers.iter().map(attempt).collect(),
            forwarded_to: None,
            ..super::super::tests::full()
        }
    }

    #[test]
    fn every_end_has_its_stage() {
        use Stage::{Authorize, Filter, Forward, Limit, Prepare, Respond};
        let answered = |status| Some(Some(status));
        for (code, status, last, answer, ended_by, error) in [
            (
                "proxy-access-granted",
                Some(200),
                Filter,
                answered(200),
                None,
                false,
            ),
            (
                "proxy-access-granted",
                Some(503),
                Filter,
                answered(503),
                None,
                true,
            ),
            (
                "proxy-access-denied",
                Some(400),
                Authorize,
                None,
                Some(Authorize),
                false,
            ),
            ("rate-limited", Some(429), Limit, None, Some(Limit), false),
            (
                "limit-unavailable",
                Some(503),
                Limit,
                None,
                Some(Limit),
                true,
            ),
            (
                "filter-not-json",
                Some(422),
                Prepare,
                None,
                Some(Prepare),
                false,
            ),
            (
                "filter-not-json",
                Some(422),
                Filter,
                answered(200),
                Some(Filter),
                false,
            ),
            (
                "filter-not-json",
                Some(200),
                Filter,
                answered(200),
                Some(Respond),
                true,
            ),
            (
                "validation-failed",
                Some(422),
                Prepare,
                None,
                Some(Prepare),
                false,
            ),
            (
                "validation-failed",
                Some(200),
                Filter,
                answered(200),
                Some(Respond),
                true,
            ),
            (
                "response-too-large",
                Some(502),
                Filter,
                answered(200),
                Some(Filter),
                true,
            ),
            (
                "response-too-large",
                Some(200),
                Filter,
                answered(200),
                Some(Respond),
                true,
            ),
            (
                "upstream-unreachable",
                Some(502),
                Forward,
                Some(None),
                Some(Forward),
                true,
            ),
            (
                "upstream-unreachable",
                Some(200),
                Filter,
                answered(200),
                Some(Respond),
                true,
            ),
            (
                "upstream-unreachable",
                Some(404),
                Filter,
                answered(404),
                Some(Respond),
                true,
            ),
            (
                "upstream-unreachable",
                Some(502),
                Filter,
                answered(502),
                Some(Respond),
                true,
            ),
            (
                "upstream-timeout",
                Some(504),
                Forward,
                Some(None),
                Some(Forward),
                true,
            ),
            (
                "upstream-timeout",
                Some(200),
                Filter,
                answered(200),
                Some(Respond),
                true,
            ),
            (
                "gateway-stopped",
                Some(200),
                Filter,
                answered(200),
                Some(Respond),
                true,
            ),
            (
                "gateway-stopped",
                Some(503),
                Filter,
                answered(503),
                Some(Respond),
                true,
            ),
            (
                "gateway-stopped",
                Some(503),
                Forward,
                Some(None),
                Some(Forward),
                true,
            ),
            (
                "gateway-stopped",
                None,
                Forward,
                Some(None),
                Some(Forward),
                true,
            ),
            (
                "client-aborted",
                Some(200),
                Filter,
                answered(200),
                Some(Respond),
                false,
            ),
            (
                "client-aborted",
                None,
                Forward,
                Some(None),
                Some(Respond),
                false,
            ),
            ("internal-error", Some(500), Limit, None, Some(Limit), true),
        ] {
            let record = record(code, status, last, answer.as_slice());
            let case = format!("{code} {status:?} {last:?} {answer:?}");
            assert_eq!(record.ended_by(), ended_by, "{case}");
            assert_eq!(StoredRecord::of(&record).ended_by(), ended_by, "{case}");
            assert_eq!(record.is_error(), error, "{case}");
        }
    }

    #[test]
    fn the_last_attempt_decides_whose_status_it_is() {
        // The target's 502 was tried again, and the second attempt got no answer.
        let mut again = record(
            "upstream-unreachable",
            Some(502),
            Stage::Forward,
            &[Some(502), None],
        );
        assert_eq!(again.ended_by(), Some(Stage::Forward));
        // Records of early releases say only what the target answered last.
        again.sends.clear();
        assert_eq!(again.ended_by(), Some(Stage::Respond));
        // What a gateway of another region answered is not cut.
        let answers = [Some(504)];
        let mut passed_on = record("upstream-timeout", Some(504), Stage::Filter, &answers);
        passed_on.forwarded_to = Some("eu".into());
        assert_eq!(passed_on.ended_by(), Some(Stage::Forward));
        passed_on.status = Some(200);
        assert_eq!(passed_on.ended_by(), Some(Stage::Respond));
    }
}
