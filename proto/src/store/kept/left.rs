//! What has left a region between two worlds: objects and sealed values that it had and may hold no
//! more, deleted, narrowed to other regions, or retired.

use std::sync::Arc;

use crate::object::Object;
use crate::store::follow::{OrgState, World};
use crate::tree::Differing;

/// Whether something of `before` has left. An object that changed and stays has not.
pub(super) fn has_left(before: &World, now: &World) -> bool {
    before.orgs.iter().any(|(org, old)| {
        let new = now.orgs.get(org);
        new.is_none_or(|new| !Arc::ptr_eq(old, new) && of_org(old, new))
    })
}

fn of_org(old: &OrgState, new: &OrgState) -> bool {
    let is_less = |(_, [before, now]): Differing| {
        // What is pinned elsewhere now may be here as a stub.
        let stays = |before: &Arc<Object>| {
            now.is_some_and(|now| now.body.regions() == before.body.regions())
        };
        before.is_some_and(|before| !stays(before))
    };
    let (was, is) = (&old.config.objects, &new.config.objects);
    was.differing(is).into_iter().any(is_less)
        || old.sealed.keys().any(|name| !new.sealed.contains_key(name))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::time::Duration;

    use bytes::Bytes;
    use serde_json::json;

    use super::super::{Kept, keep};
    use super::*;
    use crate::id::{CredentialId, OrgId, ProxyId, TargetId};
    use crate::keys;
    use crate::object::{Body, ObjectId};
    use crate::seal::{DigestKey, Sealed};
    use crate::store::Revision;
    use crate::store::embedded::Embedded;
    use crate::tree::{Hash, OrgConfig};
    use crate::version::Epoch;

    const ORG: OrgId = OrgId::from_bits(5);

    /// A world with sealed values of these names, and objects.
    fn world(revision: i64, secrets: &[&str], objects: Vec<(ObjectId, Body)>) -> Arc<World> {
        let epoch = Epoch {
            counter: 1,
            region: "eu".into(),
        };
        let mut config = OrgConfig::genesis(ORG, epoch);
        for (id, body) in objects {
            let at = jiff::Timestamp::UNIX_EPOCH;
            let object = Object {
                id,
                version: 1,
                created_at: at,
                updated_at: at,
                body,
            };
            config.objects.insert(id, Arc::new(object));
        }
        let sealed = |name: &&str| {
            let sealed = Sealed {
                key_id: "key".into(),
                region: "eu".into(),
                enc: Vec::new(),
                ciphertext: Vec::new(),
            };
            let name = (CredentialId::from_bits(1), (*name).to_owned());
            (name, Arc::new(sealed))
        };
        let state = OrgState {
            config: Arc::new(config),
            sealed: Arc::new(secrets.iter().map(sealed).collect()),
            sealed_whole: true,
            retired: Arc::default(),
        };
        let mut world = World {
            revision: Revision(revision),
            ..World::default()
        };
        world.orgs.insert(ORG, Arc::new(state));
        Arc::new(world)
    }

    fn target(name: &str) -> (ObjectId, Body) {
        let fields = json!({"base_url": "https://a.example", "name": name});
        let id = ObjectId::Target(TargetId::from_bits(1));
        (id, Body::Target(serde_json::from_value(fields).unwrap()))
    }

    fn proxy(regions: &[&str]) -> (ObjectId, Body) {
        let target = TargetId::from_bits(1);
        let fields = json!({"target_id": target, "proxy_credential_ids": [], "regions": regions});
        let id = ObjectId::Proxy(ProxyId::from_bits(1));
        (id, Body::Proxy(serde_json::from_value(fields).unwrap()))
    }

    #[test]
    fn what_is_deleted_narrowed_or_retired_has_left() {
        let whole = || world(1, &["one"], vec![target("a"), proxy(&["*"])]);
        for (now, expected) in [
            (whole(), false),
            (
                world(1, &["one", "two"], vec![target("b"), proxy(&["*"])]),
                false,
            ),
            (world(1, &["two"], vec![target("a"), proxy(&["*"])]), true),
            (world(1, &["one"], vec![target("a"), proxy(&["us"])]), true),
            (world(1, &["one"], vec![target("a")]), true),
            (Arc::new(World::default()), true),
        ] {
            assert_eq!(has_left(&whole(), &now), expected, "{now:?}");
        }
    }

    #[tokio::test]
    async fn neither_copy_keeps_what_has_left() {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(&dir.path().join("store")).unwrap();
        let key = DigestKey::from_bytes([1; 32]);
        let kept = Kept::new(dir.path().join("kept"), &key, "eu").unwrap();
        let kept = Arc::new(kept);
        let holds = |revision: i64| {
            let copies = [kept.copy.read(), kept.copy.read_previous()];
            copies.map(|copy| {
                let read = super::super::content(&copy.unwrap().unwrap()).unwrap();
                assert!(read.0 <= Revision(revision));
                let secrets = read.2.into_keys().filter(|key| key.starts_with("secrets/"));
                let names = secrets.map(|key| key.split('/').nth(3).unwrap().to_owned());
                (read.0.0, names.collect::<Vec<_>>().join(" "))
            })
        };
        let both = |new: (i64, &str), before: (i64, &str)| {
            [new, before].map(|(revision, names)| (revision, names.to_owned()))
        };
        // The root of the version before the first is in no store.
        let root = keys::leaf(ORG, &Hash::of(b""));
        let read = || HashMap::from([(root.clone(), Bytes::new())]);
        let mut seen = (read(), None);
        for (revision, secrets, expected) in [
            (1, &["old"][..], both((1, "old"), (1, "old"))),
            (2, &["new", "old"], both((2, "new old"), (1, "old"))),
            (3, &["new"], both((3, "new"), (3, "new"))),
            (4, &["new"], both((4, "new"), (3, "new"))),
        ] {
            let now = (&world(revision, secrets, Vec::new()), Some(Duration::ZERO));
            let seen = (&mut seen.0, &mut seen.1);
            keep(&kept, &*store, now, seen).await.unwrap();
            assert_eq!(holds(revision), expected, "{revision}");
        }
        // After a restart it is not known what the copies have.
        let now = (&world(5, &[], Vec::new()), Some(Duration::ZERO));
        let seen = (&mut read(), &mut None);
        keep(&kept, &*store, now, seen).await.unwrap();
        assert_eq!(holds(5), both((5, ""), (5, "")));
    }
}
