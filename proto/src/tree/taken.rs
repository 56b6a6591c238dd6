//! Names that no two objects of an organisation have.

use std::collections::BTreeMap;

use super::Objects;
use super::operation::ApplyError;
use crate::object::{Body, ObjectId};

/// The first name of a touched object that another object has.
pub(super) fn taken(objects: &Objects, touched: &BTreeMap<ObjectId, usize>) -> Option<ApplyError> {
    let mut names: BTreeMap<(&str, &str), Vec<ObjectId>> = BTreeMap::new();
    for id in touched.keys() {
        if let Some(name) = objects.get(id).and_then(|object| unique_name(&object.body)) {
            names.entry(name).or_default().push(*id);
        }
    }
    if names.is_empty() {
        return None;
    }
    for (id, object) in objects.named() {
        let ids = unique_name(&object.body).and_then(|name| names.get_mut(&name));
        if let Some(ids) = ids.filter(|_| !touched.contains_key(id)) {
            // Whoever did not ask for the name in this publish had it first.
            ids.insert(0, *id);
        }
    }
    names.into_iter().find_map(|((field, name), ids)| {
        let [by, _, ..] = &ids[..] else {
            return None;
        };
        Some(ApplyError::Taken {
            what: format!("{field} `{name}`"),
            by: *by,
        })
    })
}

/// What no other object may be called.
fn unique_name(body: &Body) -> Option<(&'static str, &str)> {
    match body {
        Body::Org(org) => Some(("slug", &org.slug)),
        Body::Proxy(proxy) => Some(("alias", proxy.alias.as_deref()?)),
        _ => None,
    }
}
