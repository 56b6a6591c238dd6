//! What the proxies of all organisations are called, kept from snapshot to snapshot.

use std::sync::Arc;

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
}

impl Naming {
    /// Takes in what a version replaces; `all` are the forms that stand then. The organisation with
    /// the slug `default` needs no slug in its aliases.
    pub(super) fn take<'a>(
        &mut self,
        replaced: &Replaced,
        default: &str,
        all: impl Iterator<Item = (&'a Arc<str>, &'a Arc<CompiledProxy>)>,
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
            self.names.insert(form.id_text.clone(), form.clone());
            for name in called(slug, default, form.alias.as_deref()) {
                self.names.insert(name, form.clone());
            }
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
