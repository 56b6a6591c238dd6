//! Pure: may a target's credential be sent at all. Nodes ask it of each request, and `explain` of
//! the request that is explained, so that both say the same.

use jiff::Timestamp;

use super::{AuthType, SecretState};
use crate::hosts::{HostPattern, Origin};
use crate::retired::Retired;

/// How a target credential's secret stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is there.
    InForce,
    /// There is none: none was given so far, or it is destroyed.
    Missing,
    /// It was revoked, by a fact beside the configuration.
    Revoked,
}

impl Standing {
    /// That of a stored secret at `now`, by the facts of its credential.
    pub fn of(secret: Option<&SecretState>, facts: Option<&Retired>, now: Timestamp) -> Self {
        match secret {
            None => Self::Missing,
            Some(secret) if facts.is_some_and(|facts| facts.covers(&secret.generation, now)) => {
                Self::Revoked
            }
            Some(_) => Self::InForce,
        }
    }
}

/// Why a target credential is not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Withheld {
    /// A host that calls may go to is none of its `hosts`.
    #[error(
        "the target credential is not bound to this target's host; add the host to its `hosts` \
         and give the secret again"
    )]
    Unbound,
    /// It has no secret.
    #[error("the target credential has no secret; give it one")]
    Missing,
    /// Its secret was revoked.
    #[error("the target credential's secret was revoked; give it a new one")]
    Revoked,
}

/// Judges whether a credential may be sent to all of `origins`, those that calls may go to.
///
/// # Errors
/// Why not: where it may go comes first, since no secret helps there.
pub fn judge<'o>(
    (auth_type, hosts): (AuthType, &[HostPattern]),
    standing: Standing,
    mut origins: impl Iterator<Item = &'o Origin>,
) -> Result<(), Withheld> {
    if auth_type == AuthType::None {
        return Ok(());
    }
    if !origins.all(|origin| hosts.iter().any(|host| host.matches(origin))) {
        return Err(Withheld::Unbound);
    }
    match standing {
        Standing::InForce => Ok(()),
        Standing::Missing => Err(Withheld::Missing),
        Standing::Revoked => Err(Withheld::Revoked),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_goes_to_its_hosts_while_it_has_a_secret() {
        use Standing::{InForce, Missing, Revoked};
        let check = |auth_type, hosts: &[&str], standing, expected| {
            let hosts: Vec<HostPattern> = hosts.iter().map(|h| h.parse().unwrap()).collect();
            let origin = |url: &str| Origin::of(&url::Url::parse(url).unwrap()).unwrap();
            let origins = [origin("https://a.example"), origin("https://b.example")];
            let judged = judge((auth_type, &hosts), standing, origins.iter());
            assert_eq!(judged, expected, "{hosts:?} {standing:?}");
        };
        let both = ["a.example", "b.example"];
        check(AuthType::Bearer, &both, InForce, Ok(()));
        check(AuthType::Bearer, &both, Missing, Err(Withheld::Missing));
        check(AuthType::Bearer, &both, Revoked, Err(Withheld::Revoked));
        check(
            AuthType::Bearer,
            &both[..1],
            InForce,
            Err(Withheld::Unbound),
        );
        check(AuthType::Bearer, &[], Missing, Err(Withheld::Unbound));
        check(AuthType::None, &[], Missing, Ok(()));
    }
}
