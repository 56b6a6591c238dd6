//! What a region has that was made home by force (`schedules.md` part two, 5): everything that a
//! home must have, also of what is kept to other regions.

use std::sync::Arc;

use proto::credential::Credential;
use proto::id::CredentialId;
use proto::keys;
use proto::object::ObjectId;
use proto::seal::{Binding, Sealed, open};
use proto::tree::{Operation, SecretChange};
use serde_json::json;

use super::moves::{comes, equal, following};
use super::net::{Region, bearer, create_target, create_with_secret, installation, rename};

/// A target credential whose secret is for eu alone.
fn of_eu() -> Credential {
    let fields = json!({"kind": "target", "auth_type": "bearer", "name": "c",
                        "hosts": ["h1.example"], "regions": ["eu"]});
    serde_json::from_value(fields).unwrap()
}

/// The regions that a store has a sealed value of the credential for, and the token of the one
/// that this region's key ring opens.
async fn sealed(region: &Region, id: CredentialId) -> (Vec<String>, Option<String>) {
    let (mut regions, mut token) = (Vec::new(), None);
    let prefix = keys::secrets_of(region.org(), id);
    for (key, value) in region.dump(&[&prefix]).await {
        let (_, seal_id, of) = keys::parse_secret(&key).unwrap();
        regions.push(of.to_owned());
        let hosts = of_eu().hosts;
        let binding = Binding {
            org: region.org(),
            credential: id,
            hosts: &hosts,
            seal_id,
        };
        let sealed: Sealed = serde_json::from_slice(&value).unwrap();
        let opened = open(&region.ring, &binding, &sealed).ok();
        token = token.or(opened.and_then(|secret| secret.token.clone()));
    }
    (regions, token)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_that_was_made_home_by_force_has_what_is_kept_to_another() {
    let (net, regions) = installation(&["us", "eu", "ap"]).await;
    let [us, eu, ap]: [Region; 3] = regions.try_into().ok().unwrap();
    let all = [following(&us), following(&eu), following(&ap)];
    let (org, id) = (us.org(), CredentialId::from_bits(1));
    us.publish(org, vec![create_target(1, "of us")]).await;
    let create = create_with_secret(&us.publisher, 1, of_eu(), "one");
    us.publish(org, vec![create]).await;
    equal(&[&us, &eu, &ap]).await;
    // us is gone for good, with its store; ap, which opens nothing of eu, becomes home.
    drop(all);
    net.cut("us", "eu");
    net.cut("us", "ap");
    let _following = [following(&eu), following(&ap)];
    let promoted = ap.replication.promote(false).await.unwrap();
    assert_eq!(promoted.not_asked, ["us"]);
    comes("ap as home", || async { ap.homes.region_of(org) == "ap" }).await;
    // Changes of everything are made there, also of what is for eu alone.
    ap.publish(org, vec![rename(1, "of ap")]).await;
    equal(&[&eu, &ap]).await;
    let one = (vec!["eu".to_owned()], Some("one".to_owned()));
    assert_eq!(sealed(&eu, id).await, one);
    assert_eq!(sealed(&ap, id).await, (vec!["eu".to_owned()], None));
    let set = Operation::Update {
        id: ObjectId::Credential(id),
        precondition: None,
        change: Arc::new(|body| Ok(body.clone())),
        secret: SecretChange::Set {
            secret: ap.publisher.prepare(&of_eu(), bearer("two")),
            old_until: None,
        },
    };
    ap.publish(org, vec![set]).await;
    equal(&[&eu, &ap]).await;
    comes("the new secret alone", || async {
        sealed(&eu, id).await == (vec!["eu".to_owned()], Some("two".to_owned()))
    })
    .await;
    assert_eq!(sealed(&ap, id).await, (vec!["eu".to_owned()], None));
    // It is signed by the new home.
    let head = ap.head(org).await.unwrap();
    assert_eq!(head.epoch.region, "ap");
    let signatures = eu.dump(&[&keys::signature(org, head.n)]).await;
    assert_eq!(signatures.len(), 1);
}
