//! Who operates: what a token may do, and which token a request holds.
//!
//! Tokens are looked up by keyed digest in an index, never by scanning; who does not know the
//! digest key learns nothing from the time that a lookup takes.

use std::collections::HashMap;

use jiff::Timestamp;
use proto::id::{OrgId, TokenId};
use proto::object::StoredToken;
use proto::org::{ApiToken, Role};
use proto::tree::SYSTEM_ORG;
use subtle::ConstantTimeEq;

/// What every API token begins with.
pub const TOKEN_PREFIX: &str = "rr_api_";

/// A token that was presented, found and is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Its id.
    pub token_id: TokenId,
    /// What the API shows of it.
    pub token: ApiToken,
    /// Its organisation.
    pub org: OrgId,
    /// Whether that is `system`.
    pub of_system: bool,
}

/// No token that the API makes has this id: it names the operator's own of this region.
const LOCAL: TokenId = TokenId::from_bits(0);

impl Caller {
    /// Whoever holds the operator's token of this region (`control.operator_token_file`), which no
    /// replicated configuration knows.
    pub fn local() -> Self {
        Self {
            token_id: LOCAL,
            token: ApiToken {
                name: "local operator".into(),
                role: Role::Owner,
                expires_at: None,
            },
            org: SYSTEM_ORG,
            of_system: true,
        }
    }

    /// Whether it is that one.
    pub fn is_local(&self) -> bool {
        self.token_id == LOCAL
    }

    /// An admin or owner of `system` acts in every organisation.
    pub fn is_operator(&self) -> bool {
        self.of_system && self.token.role >= Role::Admin
    }

    /// Its role in an organisation; `None` means that the organisation does not exist for it.
    pub fn role_in(&self, org: OrgId) -> Option<Role> {
        (self.org == org || self.is_operator()).then_some(self.token.role)
    }
}

/// Every token of every organisation, by digest.
#[derive(Debug, Default)]
pub struct TokenIndex {
    by_digest: HashMap<String, Caller>,
}

impl TokenIndex {
    /// Adds the tokens of one organisation.
    pub fn add<'t>(
        &mut self,
        org: OrgId,
        of_system: bool,
        tokens: impl Iterator<Item = (TokenId, &'t StoredToken)>,
    ) {
        for (token_id, stored) in tokens {
            let caller = Caller {
                token_id,
                token: stored.token.clone(),
                org,
                of_system,
            };
            self.by_digest.insert(stored.digest.clone(), caller);
        }
    }

    /// The token with this digest, if it is in force at `now`.
    pub fn find(&self, digest: &str, now: Timestamp) -> Option<&Caller> {
        let (found, caller) = self.by_digest.get_key_value(digest)?;
        let equal: bool = found.as_bytes().ct_eq(digest.as_bytes()).into();
        let in_force = caller.token.expires_at.is_none_or(|end| now < end);
        (equal && in_force).then_some(caller)
    }
}

/// The token in an `Authorization` header field: scheme `Bearer` (RFC 6750 §2.1), any case.
pub fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.trim().split_once(' ')?;
    let token = token.trim_start();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYSTEM: OrgId = OrgId::from_bits(1);
    const ACME: OrgId = OrgId::from_bits(2);

    fn stored(role: Role, expires_at: Option<&str>, digest: &str) -> StoredToken {
        StoredToken {
            token: ApiToken {
                name: "t".into(),
                role,
                expires_at: expires_at.map(|text| text.parse().unwrap()),
            },
            digest: digest.into(),
        }
    }

    fn index() -> TokenIndex {
        let tokens = [
            (TokenId::from_bits(1), stored(Role::Owner, None, "aa")),
            (
                TokenId::from_bits(2),
                stored(Role::Viewer, Some("2026-01-01T00:00:00Z"), "bb"),
            ),
        ];
        let mut index = TokenIndex::default();
        index.add(ACME, false, tokens.iter().map(|(id, token)| (*id, token)));
        let system = [
            (TokenId::from_bits(3), stored(Role::Admin, None, "cc")),
            (TokenId::from_bits(4), stored(Role::Member, None, "dd")),
        ];
        index.add(SYSTEM, true, system.iter().map(|(id, token)| (*id, token)));
        index
    }

    #[test]
    fn tokens_are_found_while_in_force() {
        let index = index();
        for (digest, now, expected) in [
            ("aa", "2026-06-01T00:00:00Z", Some(1)),
            ("bb", "2025-12-31T23:59:59Z", Some(2)),
            ("bb", "2026-01-01T00:00:00Z", None),
            ("ee", "2026-01-01T00:00:00Z", None),
            ("", "2026-01-01T00:00:00Z", None),
        ] {
            let found = index.find(digest, now.parse().unwrap());
            assert_eq!(
                found.map(|caller| caller.token_id.bits()),
                expected,
                "{digest} {now}"
            );
        }
    }

    #[test]
    fn roles_end_at_the_organisation_unless_an_operators() {
        let index = index();
        let now = "2025-01-01T00:00:00Z".parse().unwrap();
        for (digest, org, expected) in [
            ("aa", ACME, Some(Role::Owner)),
            ("aa", SYSTEM, None),
            ("cc", ACME, Some(Role::Admin)),
            ("cc", SYSTEM, Some(Role::Admin)),
            ("dd", ACME, None),
            ("dd", SYSTEM, Some(Role::Member)),
        ] {
            let caller = index.find(digest, now).unwrap();
            assert_eq!(caller.role_in(org), expected, "{digest} in {org}");
        }
    }

    #[test]
    fn the_scheme_is_bearer() {
        for (value, expected) in [
            ("Bearer abc", Some("abc")),
            ("bearer  abc ", Some("abc")),
            ("Basic abc", None),
            ("Bearer", None),
            ("Bearer ", None),
            ("abc", None),
        ] {
            assert_eq!(bearer(value), expected, "{value}");
        }
    }
}
