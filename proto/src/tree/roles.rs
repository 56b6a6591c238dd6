//! What a role may change in a configuration.
//!
//! The API's table decides per route; this decides per object and on the newest head, so that a
//! lost race, a list of changes or a rollback never does what a single request may not. Who may
//! edit a policy is who may edit the object that it hangs on.

use std::sync::Arc;

use super::{Objects, credential_in};
use crate::checks::printable;
use crate::credential::{AuthType, CredentialKind, UseBy};
use crate::object::{Body, Object, ObjectId};
use crate::org::Role;
use crate::problem::Problem;
use crate::proxy::{Cookies, ErrorBodies, ForeignUrls, Proxy, RewriteUrls};

/// Why a role does not reach for the change of one object; empty when it does.
pub(super) fn beyond(
    before: &Objects,
    objects: &Objects,
    old: Option<&Arc<Object>>,
    new: Option<&Arc<Object>>,
    role: Role,
) -> Vec<Problem> {
    let unchanged = matches!((old, new), (Some(old), Some(new)) if Arc::ptr_eq(old, new));
    if role >= Role::Admin || unchanged {
        return Vec::new();
    }
    let bodies = [old, new].into_iter().flatten().map(|object| &object.body);
    let reach = |id: ObjectId| {
        objects
            .get(&id)
            .or(before.get(&id))
            .map(|object| &object.body)
    };
    let members = |body: &Body| match body {
        Body::Proxy(_) => true,
        Body::Credential(stored) => stored.credential.kind == CredentialKind::Proxy,
        _ => false,
    };
    let mine = |body: &Body| match body.parent() {
        // What hangs on the organisation concerns everybody's proxies.
        Some(ObjectId::Org(_)) => false,
        Some(parent) => reach(parent).is_none_or(members),
        None => members(body),
    };
    if role < Role::Member || !bodies.clone().all(mine) {
        return vec![Problem::new(
            "",
            "role",
            "only admins may change this object",
        )];
    }
    match (
        old.map(|object| &object.body),
        new.map(|object| &object.body),
    ) {
        (Some(Body::Proxy(old)), Some(Body::Proxy(new))) => admin_settings(objects, Some(old), new),
        (None, Some(Body::Proxy(new))) => admin_settings(objects, None, new),
        _ => Vec::new(),
    }
}

/// Settings of a proxy that a member may keep, but not choose.
fn admin_settings(objects: &Objects, old: Option<&Proxy>, new: &Proxy) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut needed = |pointer: &str, detail: String| {
        problems.push(Problem::new(pointer, "role", detail));
    };
    let bound = new.target_credential_id;
    if let Some(id) = bound.filter(|_| old.and_then(|old| old.target_credential_id) != bound)
        && credential_in(objects, id).is_some_and(|stored| stored.credential.use_by == UseBy::Admin)
    {
        let detail = format!("{id} may be bound by admins only (its `use_by` is `admin`)");
        needed("/target_credential_id", detail);
    }
    for (at, id) in new.proxy_credential_ids.iter().enumerate() {
        let open = credential_in(objects, *id)
            .is_some_and(|stored| stored.credential.auth_type == AuthType::None);
        if open && !old.is_some_and(|old| old.proxy_credential_ids.contains(id)) {
            let detail = format!("{id} lets anybody call; only admins may bind it");
            needed(&format!("/proxy_credential_ids/{at}"), detail);
        }
    }
    for (at, name) in new.forward_caller_headers.iter().enumerate() {
        if !old.is_some_and(|old| old.forward_caller_headers.contains(name)) {
            let detail = format!("only admins may forward `{}`", printable(name));
            needed(&format!("/forward_caller_headers/{at}"), detail);
        }
    }
    // A binding is credential and target together: a kept credential that is sent elsewhere leaves
    // the rules of the target that its admin had in mind.
    if let (Some(old), Some(id)) = (old.filter(|old| old.target_id != new.target_id), bound)
        && old.target_credential_id == bound
        && credential_in(objects, id).is_some_and(|stored| stored.credential.use_by == UseBy::Admin)
    {
        let detail = format!("{id} may be used with another target by admins only (`use_by`)");
        needed("/target_id", detail);
    }
    let off = RewriteUrls::Off;
    if new.rewrite_urls == off && old.is_none_or(|old| old.rewrite_urls != off) {
        needed("/rewrite_urls", "only admins may turn it `off`".into());
    }
    let refuses = |proxy: &Proxy| proxy.foreign_urls == ForeignUrls::Refuse;
    if old.is_some_and(refuses) && !refuses(new) {
        needed(
            "/foreign_urls",
            "only admins may let foreign URLs pass again".into(),
        );
    }
    if new.acknowledge_open && !old.is_some_and(|old| old.acknowledge_open) {
        needed("/acknowledge_open", "only admins may acknowledge it".into());
    }
    let pass = Some(Cookies::Pass);
    if new.cookies == pass && old.is_none_or(|old| old.cookies != pass) {
        needed("/cookies", "only admins may let cookies pass".into());
    }
    let pass = ErrorBodies::Pass;
    if new.error_bodies == pass && old.is_none_or(|old| old.error_bodies != pass) {
        needed(
            "/error_bodies",
            "only admins may let error bodies pass unfiltered".into(),
        );
    }
    let kept = old.and_then(|old| old.record.payload.as_ref());
    if let Some(payload) = &new.record.payload
        && !kept.is_some_and(|kept| kept.covers(payload))
    {
        let detail = "only admins may let records keep bodies, or more of them";
        needed("/record/payload", detail.into());
    }
    problems
}
