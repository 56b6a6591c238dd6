//! What the proxies of all organisations are called, kept from snapshot to snapshot.
//!
//! Control planes issue ids, so no two organisations share one. If somebody writes one into the
//! store for a second organisation, it leads to the proxy of the organisation that was there first,
//! on every node, whatever came in which order.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proto::id::ProxyId;

use crate::snapshot::{CompiledProxy, FormerNames, Names};

/// A form of a proxy, and the slug of its organisation.
pub(super) type Form = (Arc<str>, Arc<CompiledProxy>);

/// Forms that a version replaces, and those that it brings.
#[derive(Default)]
pub(super) struct Replaced {
    pub(super) gone: Vec<Form>,
    pub(super) come: Vec<Form>,
}

/// Names, as the newest snapshot has them.
#[derive(Default)]
pub(super) struct Naming {
    names: Names<Arc<CompiledProxy>>,
    former: Arc<FormerNames>,
    /// Ids that more than one organisation has.
    contested: BTreeSet<ProxyId>,
}

impl Naming {
    /// Takes in what a version replaces; `all` are the forms that stand then. The organisation with
    /// the slug `default` needs no slug in its aliases.
    pub(super) fn take<'a>(
        &mut self,
        replaced: &Replaced,
        default: &str,
        all: impl Iterator<Item = (&'a Arc<str>, &'a Arc<CompiledProxy>)> + Clone,
    ) {
        // All of these first: what one gives up another may take at once.
        for (slug, form) in &replaced.gone {
            let its = |stands: &Arc<CompiledProxy>| Arc::ptr_eq(stands, form);
            self.names.remove_if(&form.id_text, its);
            for name in called(slug, default, form.alias.as_deref()) {
                self.names.remove_if(&name, its);
            }
        }
        for (slug, form) in &replaced.come {
            let stands = self.names.get(&form.id_text);
            if stands.is_some_and(|stands| stands.org != form.org) {
                self.contested.insert(form.id);
            }
            self.names.insert(form.id_text.clone(), form.clone());
            for name in called(slug, default, form.alias.as_deref()) {
                self.names.insert(name, form.clone());
            }
        }
        if !self.contested.is_empty() {
            self.settle(all.clone());
        }
        // Few have any, and two may have had the same one.
        let mut replaced = replaced.gone.iter().chain(&replaced.come);
        if replaced.any(|(_, form)| !form.former_aliases.is_empty()) {
            let mut former = FormerNames::new();
            for (slug, form) in all {
                for old in &form.former_aliases {
                    for name in called(slug, default, Some(&old.alias)) {
                        let last = former.get(&name).map(|(_, until)| *until);
                        // Of two that were called so it leads to the later one.
                        if last.is_none_or(|last| last < old.until) {
                            former.insert(name, (form.clone(), old.until));
                        }
                    }
                }
            }
            self.former = Arc::new(former);
        }
    }

    /// Gives each id that several organisations have to the oldest of them.
    fn settle<'a>(&mut self, all: impl Iterator<Item = (&'a Arc<str>, &'a Arc<CompiledProxy>)>) {
        let mut having: BTreeMap<ProxyId, Vec<&Arc<CompiledProxy>>> = BTreeMap::new();
        for (_, form) in all.filter(|(_, form)| self.contested.contains(&form.id)) {
            having.entry(form.id).or_default().push(form);
        }
        for forms in having.values() {
            // Ids of organisations rise with the time of their making.
            if let Some(first) = forms.iter().min_by_key(|form| form.org) {
                self.names.insert(first.id_text.clone(), Arc::clone(first));
            }
        }
        self.contested
            .retain(|id| having.get(id).is_some_and(|forms| forms.len() > 1));
    }

    pub(super) fn names(&self) -> Names<Arc<CompiledProxy>> {
        self.names.clone()
    }

    pub(super) fn former(&self) -> Arc<FormerNames> {
        Arc::clone(&self.former)
    }
}

/// How a proxy is called by an alias: with its organisation's slug, and for one organisation
/// without.
fn called(slug: &str, default: &str, alias: Option<&str>) -> impl Iterator<Item = Box<str>> {
    let with_slug = alias.map(|alias| format!("{slug}.{alias}").into());
    let without = alias.filter(|_| slug == default).map(Into::into);
    with_slug.into_iter().chain(without)
}
