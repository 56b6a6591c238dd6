//! Whether what is known of revoked secrets is young enough for a credential.
//!
//! A node that is cut off from the store and from its peers goes on with what it has, and does not
//! learn that a secret is over. Credentials that say `max_fact_age_s` are refused there after that.

use std::time::Duration;

use proto::health::Health;
use proto::outcome::{Code, EarlyEnd};

/// Whether enough is known of revoked secrets for a credential that wants that.
///
/// # Errors
/// [`Code::FactsStale`].
pub fn facts_are_young(
    health: &Health,
    max_age: Option<Duration>,
    whose: &str,
) -> Result<(), EarlyEnd> {
    let Some(max_age) = max_age.filter(|max| health.facts_are_older_than(*max)) else {
        return Ok(());
    };
    let detail = format!(
        "this node has been cut off from its store and from other nodes for longer than the {} s \
         (`max_fact_age_s`) after which the {whose} credential is refused; try again, another \
         node may know more",
        max_age.as_secs()
    );
    Err(EarlyEnd::new(Code::FactsStale, detail))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_credential_that_says_so_is_refused_and_only_beyond_its_age() {
        let (minute, hour) = (Duration::from_secs(60), Duration::from_secs(3_600));
        let health = Health::default();
        assert!(facts_are_young(&health, None, "caller's").is_ok());
        assert!(
            facts_are_young(&health, Some(hour), "caller's").is_err(),
            "never proven"
        );
        health.facts_were_whole(minute);
        assert!(facts_are_young(&health, Some(hour), "caller's").is_ok());
        let end = facts_are_young(&health, Some(minute / 2), "target's").unwrap_err();
        assert_eq!((end.code, end.status), (Code::FactsStale, 503));
        assert!(
            end.detail.contains("30 s (`max_fact_age_s`)"),
            "{}",
            end.detail
        );
        assert!(
            end.detail.contains("the target's credential"),
            "{}",
            end.detail
        );
        // Heard of again.
        health.facts_were_whole(Duration::ZERO);
        assert!(facts_are_young(&health, Some(minute / 2), "target's").is_ok());
    }
}
