//! Whether an endpoint of a target works, asked without waiting for a request to fail: the settings
//! of its active health checks, and what a row of outcomes means.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::checks;
use crate::problem::Problem;

/// Longest path, in bytes.
const PATH_BYTES_MAX: usize = 1_024;
/// Most statuses that are listed.
const STATUSES_MAX: usize = 20;

/// Active health checks: each node asks every endpoint that it uses, and passes over one that fails
/// them as over one whose breaker is open. They go out as requests do (`tls`, `http2`,
/// `allow_networks`, the operator's dial guard), without any credential.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HealthCheck {
    /// What is asked for by GET: path and query on the endpoint's host, not below the path of its
    /// `base_url`.
    pub path: String,
    /// Time between two checks of a node, give or take a tenth: 1,000 to 3,600,000. Default 10,000.
    #[serde(default = "interval_ms")]
    pub interval_ms: u64,
    /// How long the answer may take, connection included: 50 to 60,000, at most `interval_ms`.
    /// Default 2,000, or `interval_ms` where that is less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Statuses that say that it works, at most 20. Default all from 200 to 299.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub statuses: Vec<u16>,
    /// Checks in a row that must pass before one that failed is used again, 1 to 100. Default 2.
    #[serde(default = "healthy")]
    pub healthy: u32,
    /// Checks in a row that must fail before it is passed over, 1 to 100. Default 3.
    #[serde(default = "unhealthy")]
    pub unhealthy: u32,
}

fn interval_ms() -> u64 {
    10_000
}

/// Default of [`HealthCheck::timeout_ms`].
const TIMEOUT_MS: u64 = 2_000;

fn healthy() -> u32 {
    2
}

fn unhealthy() -> u32 {
    3
}

impl HealthCheck {
    /// How long the answer may take, in milliseconds.
    pub fn timeout_ms(&self) -> u64 {
        self.timeout_ms.unwrap_or(TIMEOUT_MS.min(self.interval_ms))
    }

    /// Whether a status says that the endpoint works.
    pub fn accepts(&self, status: u16) -> bool {
        match self.statuses.is_empty() {
            true => (200..=299).contains(&status),
            false => self.statuses.contains(&status),
        }
    }

    /// Reports what is wrong with the settings.
    pub fn check(&self, pointer: &str, problems: &mut Vec<Problem>) {
        let is_sent_as_it_is = |b: u8| b.is_ascii_graphic() && b != b'#';
        let path = &self.path;
        if !path.starts_with('/')
            || path.len() > PATH_BYTES_MAX
            || !path.bytes().all(is_sent_as_it_is)
        {
            let detail = format!(
                "must begin with `/` and be at most {PATH_BYTES_MAX} visible ASCII characters, \
                 without `#`"
            );
            problems.push(Problem::new(format!("{pointer}/path"), "path", detail));
        }
        let longest = self.interval_ms.clamp(50, 60_000);
        let fields = [
            ("interval_ms", Some(self.interval_ms), 1_000..=3_600_000),
            ("timeout_ms", self.timeout_ms, 50..=longest),
            ("healthy", Some(u64::from(self.healthy)), 1..=100),
            ("unhealthy", Some(u64::from(self.unhealthy)), 1..=100),
        ];
        for (field, value, range) in fields {
            checks::range(value, range, &format!("{pointer}/{field}"), problems);
        }
        if self.statuses.len() > STATUSES_MAX {
            let detail = format!("at most {STATUSES_MAX} statuses");
            problems.push(Problem::new(
                format!("{pointer}/statuses"),
                "too-many",
                detail,
            ));
        }
        for (at, status) in self.statuses.iter().enumerate() {
            // 1xx are interim, and skipped.
            let value = Some(u64::from(*status));
            let pointer = format!("{pointer}/statuses/{at}");
            checks::range(value, 200..=599, &pointer, problems);
        }
    }
}

/// What the checks of an endpoint say so far. Until they say otherwise it works.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    fails: bool,
    /// Outcomes in a row that speak against what is said.
    against: u32,
}

impl Verdict {
    /// Whether it is passed over.
    pub fn fails(&self) -> bool {
        self.fails
    }

    /// Takes the outcome of a check; says whether the verdict has changed.
    pub fn passed(&mut self, passed: bool, settings: &HealthCheck) -> bool {
        if passed != self.fails {
            self.against = 0;
            return false;
        }
        self.against = self.against.saturating_add(1);
        let needed = match self.fails {
            true => settings.healthy,
            false => settings.unhealthy,
        };
        let changes = self.against >= needed;
        if changes {
            *self = Self {
                fails: !self.fails,
                against: 0,
            };
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(json: &str) -> HealthCheck {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn every_value_out_of_its_range_is_named() {
        let pointers = |json: &str| {
            let mut problems = Vec::new();
            parsed(json).check("/health_check", &mut problems);
            let pointer = |p: Problem| p.pointer.trim_start_matches("/health_check").to_owned();
            problems.into_iter().map(pointer).collect::<Vec<_>>()
        };
        assert!(pointers(r#"{"path": "/healthz?full=1"}"#).is_empty());
        let all = r#"{"path": "healthz", "interval_ms": 999, "timeout_ms": 1000, "healthy": 0,
            "unhealthy": 101, "statuses": [200, 199, 600]}"#;
        assert_eq!(
            pointers(all),
            [
                "/path",
                "/interval_ms",
                "/timeout_ms",
                "/healthy",
                "/unhealthy",
                "/statuses/1",
                "/statuses/2"
            ]
        );
        for path in ["/a b", "/a#b", "/a\\r\\nx: y", "/\u{e4}", ""] {
            assert_eq!(pointers(&format!(r#"{{"path": "{path}"}}"#)), ["/path"]);
        }
        let many = format!(r#"{{"path": "/", "statuses": {:?}}}"#, [204; 21]);
        assert_eq!(pointers(&many), ["/statuses"]);
        assert!(serde_json::from_str::<HealthCheck>(r#"{"path": "/", "x": 1}"#).is_err());
    }

    #[test]
    fn defaults_are_those_that_are_documented() {
        let check = parsed(r#"{"path": "/"}"#);
        assert_eq!((check.interval_ms, check.timeout_ms()), (10_000, 2_000));
        assert_eq!((check.healthy, check.unhealthy), (2, 3));
        assert!(check.accepts(200) && check.accepts(299));
        assert!(!check.accepts(199) && !check.accepts(300));
        let own = parsed(r#"{"path": "/", "interval_ms": 1000, "statuses": [401]}"#);
        assert_eq!(own.timeout_ms(), 1_000);
        assert!(own.accepts(401) && !own.accepts(200));
    }

    #[test]
    fn a_verdict_changes_after_so_many_in_a_row() {
        let settings = parsed(r#"{"path": "/", "healthy": 2, "unhealthy": 3}"#);
        let mut verdict = Verdict::default();
        // As outcomes come in, where the verdict changes and what it then is.
        for (at, (passed, changes, fails)) in [
            (true, false, false),
            (false, false, false),
            (false, false, false),
            (true, false, false),
            (false, false, false),
            (false, false, false),
            (false, true, true),
            (false, false, true),
            (true, false, true),
            (false, false, true),
            (true, false, true),
            (true, true, false),
        ]
        .into_iter()
        .enumerate()
        {
            assert_eq!(verdict.passed(passed, &settings), changes, "{at}");
            assert_eq!(verdict.fails(), fails, "{at}");
        }
    }
}
