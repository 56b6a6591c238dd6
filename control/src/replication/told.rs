//! Which facts of retired secrets a follower was told of on its connection, so that each is told
//! once, and again where it was not taken.

use std::collections::BTreeMap;
use std::sync::Arc;

use proto::id::CredentialId;
use proto::retired::Retired;
use proto::wire::replication::Position;

type Facts = Arc<BTreeMap<CredentialId, Retired>>;

/// What was told of an organisation.
pub(super) struct Told {
    facts: Facts,
    /// What was told before that.
    before: Option<Facts>,
    /// Where the follower stood, if versions came along: it still stands there where it did not
    /// take them, and then it did not take all of the facts either.
    with_versions_after: Option<Option<Position>>,
}

impl Told {
    /// What is then told, and what of it goes into an answer to a follower that stands at `after`,
    /// as pairs of a credential and the JSON of its fact.
    pub fn of(
        earlier: Option<Self>,
        facts: &Facts,
        (after, with_versions): (Option<Position>, bool),
    ) -> (Self, Vec<(CredentialId, Vec<u8>)>) {
        let known = earlier.and_then(|earlier| earlier.taken(&after));
        let is_new = |(id, fact): &(&CredentialId, &Retired)| {
            known.as_ref().and_then(|known| known.get(*id)) != Some(*fact)
        };
        // A struct of texts and numbers always serialises.
        let json = |fact: &Retired| serde_json::to_vec(fact).unwrap_or_default();
        let new = facts.iter().filter(is_new);
        let new = new.map(|(id, fact)| (*id, json(fact))).collect();
        let told = Self {
            facts: Arc::clone(facts),
            before: known,
            with_versions_after: with_versions.then_some(after),
        };
        (told, new)
    }

    /// What a follower that asks from here has.
    fn taken(self, after: &Option<Position>) -> Option<Facts> {
        match self.with_versions_after.as_ref() == Some(after) {
            true => self.before,
            false => Some(self.facts),
        }
    }
}
