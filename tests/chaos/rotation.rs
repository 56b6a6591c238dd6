//! The secret of a target credential is replaced under load. What stands behind takes the old one
//! and the new one for a while, as vendors do: no request fails, and none carries anything else.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use serde_json::json;

use super::cluster::{self, Links, SECOND};
use crate::harness::upstream::{Upstream, json_answer};
use crate::harness::wait_for;

/// How often each `Authorization` came.
type Carried = Arc<Mutex<BTreeMap<String, u64>>>;

const ROTATIONS: usize = 10;

#[test]
fn a_rotated_target_secret_costs_no_request_and_its_predecessor_is_not_seen_again() {
    // With links between nodes, over which they hear of what is retired before etcd tells them.
    cluster::run_with(Links::Peers, |cluster, _| {
        let carried = Carried::default();
        let (counts, answer) = (Arc::clone(&carried), json_answer("200 OK", "{}"));
        let upstream = Upstream::raw_at(cluster.callers().address, move |connection, _| {
            while let Some(request) = connection.read() {
                let value = request.field("authorization").unwrap_or_default();
                *counts.lock().unwrap().entry(value.to_owned()).or_default() += 1;
                connection.send(&answer);
            }
        });
        let proxy = cluster.proxy_to(&upstream.url(), json!({}));
        let load = cluster.load(&proxy);
        load.after(SECOND).is_clean("before anything");
        let path = format!("/credentials/{}/rotate", proxy.target_credential);
        let seen = || carried.lock().unwrap().keys().cloned().collect::<Vec<_>>();
        let [mut old]: [String; 1] = seen().try_into().expect("one secret");
        for at in 0..ROTATIONS {
            let token = format!("sk_rotated_{at}");
            let new = format!("Bearer {token}");
            let control = &cluster.controls[at % 2];
            let rotated = control.call("POST", &path, &json!({"secret": {"token": token}}));
            assert_eq!(rotated.status(), 200, "{}", rotated.text());
            wait_for("the new secret", || seen().contains(&new).then_some(()));
            cluster.agrees(0);
            // What is on its way still ends with the secret that it began with.
            load.after(SECOND / 5).is_clean("rotated");
            let during = std::mem::take(&mut *carried.lock().unwrap());
            let allowed = |value: &String| *value == old || *value == new;
            assert!(during.keys().all(allowed), "{during:?}");
            // From here on everything was sent by nodes that all have the new one.
            load.after(SECOND / 5).is_clean("afterwards");
            assert_eq!(seen(), std::slice::from_ref(&new), "rotation {at}");
            old = new;
        }
    });
}
