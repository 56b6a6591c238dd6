//! What the operator lets organisations ask for at all; settings of the installation, not
//! versioned configuration.

use serde::{Deserialize, Serialize};

use crate::hosts::Scheme;
use crate::problem::Problem;
use crate::target::{BaseUrl, Target};

/// The operator's limits on what a target may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Targets may speak plain HTTP. Default false.
    #[serde(default)]
    pub allow_http: bool,
    /// Targets may be reached without verifying their certificate. Default false.
    #[serde(default)]
    pub allow_insecure_tls: bool,
}

impl Policy {
    /// Every way in which a target leaves the policy.
    pub fn judge(&self, target: &Target) -> Vec<Problem> {
        let mut problems = Vec::new();
        let plain =
            BaseUrl::parse(&target.base_url).is_ok_and(|base| base.origin.scheme == Scheme::Http);
        if plain && !self.allow_http {
            let detail = "is plain http, which the operator's setting `policy.allow_http` forbids";
            problems.push(Problem::new("/base_url", "policy", detail));
        }
        if target.tls.insecure && !self.allow_insecure_tls {
            let detail = "turns off certificate checks, which the operator's setting \
                          `policy.allow_insecure_tls` forbids";
            problems.push(Problem::new("/tls/insecure", "policy", detail));
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(policy: Policy, target: serde_json::Value, expected: &[&str]) {
        let target: Target = serde_json::from_value(target).unwrap();
        let found = policy.judge(&target);
        let pointers: Vec<_> = found.iter().map(|p| p.pointer.as_str()).collect();
        assert_eq!(pointers, expected, "{target:?}");
        assert!(
            found.iter().all(|p| p.detail.contains("`policy.")),
            "names the setting"
        );
    }

    #[test]
    fn a_target_stays_within_the_policy() {
        let none = Policy::default();
        let all = Policy {
            allow_http: true,
            allow_insecure_tls: true,
        };
        let https = serde_json::json!({"base_url": "https://a.example"});
        let http = serde_json::json!({"base_url": "http://a.example", "allow_http": true});
        let insecure = serde_json::json!({
            "base_url": "https://a.example", "tls": {"insecure": true}
        });
        check(none, https, &[]);
        check(none, http.clone(), &["/base_url"]);
        check(none, insecure.clone(), &["/tls/insecure"]);
        check(all, http, &[]);
        check(all, insecure, &[]);
    }
}
