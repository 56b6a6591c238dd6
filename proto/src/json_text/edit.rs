//! Cutting values out of a document, putting strings in the place of others, and the text that
//! comes of it.
//!
//! **Whitespace.** Everything that is kept keeps the whitespace around it. With a removed value go
//! its name, one comma and the whitespace before it; a container that loses all its values also
//! loses the whitespace inside (`{ }` never appears, `{}` does).

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use super::{JsonText, Kind, NodeId};

/// How a value fares in [`JsonText::retain`].
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Dropped,
    /// Holds something that is kept.
    Ancestor,
    /// Kept with all that is in it.
    Kept,
}

impl JsonText<'_> {
    /// Cuts one value out, with its name and all that is in it. The root cannot be cut out.
    /// True if that changed something.
    pub fn remove(&mut self, id: NodeId) -> bool {
        let Some(node) = self.nodes.get_mut(id.0 as usize) else {
            return false;
        };
        if id == NodeId::ROOT || node.removed {
            return false;
        }
        node.removed = true;
        let parent = node.parent as usize;
        if let Some(parent) = self.nodes.get_mut(parent) {
            parent.thinned = true;
        }
        self.edited = true;
        true
    }

    /// Puts a string in the place of a value and all that is in it. True unless the value is
    /// removed, or inside one that is replaced itself.
    pub fn replace(&mut self, id: NodeId, text: &str) -> bool {
        let nulled = id == NodeId::ROOT && self.root_nulled;
        let Some(node) = self.nodes.get_mut(id.0 as usize) else {
            return false;
        };
        if nulled || node.removed {
            return false;
        }
        node.replaced = true;
        node.kind = Kind::String;
        self.replaced.insert(id.0, quoted(text));
        self.edited = true;
        true
    }

    /// Gives members of one object other names. A name that another of its members has already
    /// gets a number, for two of one name cannot be read.
    pub fn rename_members(&mut self, object: NodeId, names: Vec<(NodeId, String)>) {
        let renamed: HashSet<NodeId> = names.iter().map(|(member, _)| *member).collect();
        let others = self
            .children(object)
            .filter(|member| !renamed.contains(member));
        let mut counts: HashMap<String, usize> = others
            .map(|member| (self.name(member).into_owned(), 1))
            .collect();
        for (member, name) in names {
            let mut free = name.clone();
            while counts.contains_key(&free) {
                let count = counts.entry(name.clone()).or_default();
                *count += 1;
                free = format!("{name} {count}");
            }
            self.renamed.insert(member.0, quoted(&free));
            self.edited = true;
            counts.insert(free, 1);
        }
    }

    /// Cuts out everything but `kept` (whole subtrees) and the containers around them. The root
    /// stays: a container that holds nothing of `kept` becomes `{}` or `[]`, a scalar that is not
    /// kept becomes `null`. True if that changed something.
    pub fn retain(&mut self, kept: &[NodeId]) -> bool {
        let mut fates = vec![Fate::Dropped; self.nodes.len()];
        for id in kept {
            if let Some(fate) = fates.get_mut(id.0 as usize) {
                *fate = Fate::Kept;
            }
        }
        for id in kept {
            self.mark_ancestors(*id, &mut fates);
        }
        if let Some(root @ Fate::Dropped) = fates.first_mut() {
            if !self.kind(NodeId::ROOT).is_container() {
                let changed = self.kind(NodeId::ROOT) != Kind::Null;
                self.root_nulled |= changed;
                self.edited |= changed;
                return changed;
            }
            *root = Fate::Ancestor;
        }
        let mut changed = false;
        let mut at = 0;
        while let (Some(node), Some(fate)) = (self.nodes.get(at as usize), fates.get(at as usize)) {
            let after = node.after;
            match fate {
                _ if node.removed => at = after,
                Fate::Kept => at = after,
                Fate::Ancestor if node.replaced => at = after,
                Fate::Ancestor => at += 1,
                Fate::Dropped => {
                    changed |= self.remove(NodeId(at));
                    at = after;
                }
            }
        }
        changed
    }

    /// Linear over all calls: a walk ends where an earlier one has passed.
    fn mark_ancestors(&self, id: NodeId, fates: &mut [Fate]) {
        let mut at = id;
        while at != NodeId::ROOT {
            at = NodeId(self.node(at).parent);
            match fates.get_mut(at.0 as usize) {
                Some(fate @ Fate::Dropped) => *fate = Fate::Ancestor,
                _ => return,
            }
        }
    }

    /// The document as it is now: the text that came, with its edits.
    pub fn render(&self) -> String {
        if !self.edited {
            return self.text.to_owned();
        }
        let end = self.text.len() as u32;
        let root = self.node(NodeId::ROOT).span;
        if self.root_nulled {
            return [self.slice((0, root.0)), "null", self.slice((root.1, end))].concat();
        }
        self.render_span(NodeId::ROOT, (0, end))
    }

    /// One value as it is now, without the space around it.
    pub fn render_value(&self, id: NodeId) -> Cow<'_, str> {
        let node = self.node(id);
        match self.edited && self.kind(id).is_container() {
            true => Cow::Owned(self.render_span(id, node.span)),
            false => Cow::Borrowed(self.raw(id)),
        }
    }

    /// The text of `span`, which holds the value `id` and no other edits than those in it.
    fn render_span(&self, id: NodeId, span: (u32, u32)) -> String {
        let mut edits: Vec<(u32, u32, &str)> = Vec::new();
        for inner in self.subtree(id) {
            let node = self.node(inner);
            if node.replaced {
                edits.push((node.span.0, node.span.1, self.raw(inner)));
            } else if node.thinned {
                self.cuts_of(inner, &mut edits);
            }
            // The name of the value itself lies outside of it.
            if !self.renamed.is_empty() && inner != id && self.renamed.contains_key(&inner.0) {
                edits.push((node.key.0, node.key.1, self.quoted_name(inner)));
            }
        }
        // A container's cuts lie between its kept children, their edits inside them: all are
        // disjoint.
        edits.sort_unstable();
        let mut out = String::with_capacity((span.1 - span.0) as usize);
        let mut copied = span.0;
        for (start, end, instead) in edits {
            out.push_str(self.slice((copied, start)));
            out.push_str(instead);
            copied = end;
        }
        out.push_str(self.slice((copied, span.1)));
        out
    }

    /// The spans that go out of one container, not looking into its kept children.
    fn cuts_of<'t>(&'t self, container: NodeId, cuts: &mut Vec<(u32, u32, &'t str)>) {
        let node = self.node(container);
        let (inner_start, inner_end) = (node.span.0 + 1, node.span.1.saturating_sub(1));
        let mut kept_until = None;
        let mut pending = false;
        let mut at = container.0 + 1;
        while at < node.after {
            let child = self.node(NodeId(at));
            if child.removed {
                pending = true;
            } else {
                if pending {
                    let lead = self.space_before(self.lead_of(NodeId(at)));
                    cuts.push(match kept_until {
                        None => (inner_start, lead, ""),
                        // Up to the comma before this child.
                        Some(end) => (end, lead.saturating_sub(1), ""),
                    });
                    pending = false;
                }
                kept_until = Some(child.span.1);
            }
            at = child.after.max(at + 1);
        }
        if pending {
            cuts.push(match kept_until {
                None => (inner_start, inner_end, ""),
                Some(end) => (end, self.space_before(inner_end), ""),
            });
        }
    }

    /// Where a child begins: at its name if it has one.
    fn lead_of(&self, id: NodeId) -> u32 {
        let node = self.node(id);
        if node.key.1 > 0 {
            node.key.0
        } else {
            node.span.0
        }
    }

    /// Where the whitespace begins that ends at `end`.
    fn space_before(&self, end: u32) -> u32 {
        let before = self.text.as_bytes().get(..end as usize).unwrap_or_default();
        let space = |byte: &&u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
        end - before.iter().rev().take_while(space).count() as u32
    }
}

/// A JSON string of a text.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
