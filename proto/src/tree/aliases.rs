//! A renamed alias keeps answering for a while: whoever calls a proxy learns of its new name later
//! than whoever changed it.

use std::sync::Arc;

use jiff::SignedDuration;

use super::Objects;
use super::operation::Context;
use crate::object::{Body, Object, ObjectId};
use crate::proxy::{FormerAlias, Proxy};

/// Most former aliases of a proxy; the newest stay.
const FORMER_MAX: usize = 8;

/// Settles the former aliases of every touched proxy: they follow from what its alias was and is,
/// whatever an operation says of them.
pub(super) fn settle<'i>(
    before: &Objects,
    objects: &mut Objects,
    touched: impl Iterator<Item = &'i ObjectId>,
    context: &Context<'_>,
) {
    for id in touched {
        let old = before.get(id).and_then(|object| proxy(object));
        let Some((object, new)) = objects
            .get(id)
            .and_then(|object| Some((object, proxy(object)?)))
        else {
            continue;
        };
        let former = former(old, new, context);
        if former != new.former_aliases {
            let settled = Proxy {
                former_aliases: former,
                ..new.clone()
            };
            let object = Object {
                body: Body::Proxy(settled),
                ..Object::clone(object)
            };
            objects.insert(*id, Arc::new(object));
        }
    }
}

fn proxy(object: &Object) -> Option<&Proxy> {
    match &object.body {
        Body::Proxy(proxy) => Some(proxy),
        _ => None,
    }
}

fn former(old: Option<&Proxy>, new: &Proxy, context: &Context<'_>) -> Vec<FormerAlias> {
    let Some(old) = old else {
        return Vec::new();
    };
    // Nothing is pruned without need: that would be a change of its own.
    if old.alias == new.alias {
        return old.former_aliases.clone();
    }
    let grace = SignedDuration::try_from(context.policy.alias_grace).ok();
    let until = grace.and_then(|grace| context.now.checked_add(grace).ok());
    let last = old.alias.clone().zip(until);
    let last = last.map(|(alias, until)| FormerAlias { alias, until });
    let all = old.former_aliases.iter().cloned().chain(last);
    let mut kept: Vec<FormerAlias> = all
        .filter(|former| former.until > context.now && Some(&former.alias) != new.alias.as_ref())
        .collect();
    kept.drain(..kept.len().saturating_sub(FORMER_MAX));
    kept
}
