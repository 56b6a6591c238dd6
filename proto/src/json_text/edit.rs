//! Cutting values out of a document, and the text that is left.
//!
//! **Whitespace.** Everything that is kept keeps the whitespace around it. With a removed value go
//! its name, one comma and the whitespace before it; a container that loses all its values also
//! loses the whitespace inside (`{ }` never appears, `{}` does).

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

    /// The document as it is now: the text that came, minus the cuts.
    pub fn render(&self) -> String {
        if !self.edited {
            return self.text.to_owned();
        }
        let root = self.node(NodeId::ROOT).span;
        if self.root_nulled {
            let end = self.text.len() as u32;
            return [self.slice((0, root.0)), "null", self.slice((root.1, end))].concat();
        }
        let mut cuts = Vec::new();
        for id in self.subtree(NodeId::ROOT) {
            if self.node(id).thinned {
                self.cuts_of(id, &mut cuts);
            }
        }
        // A container's cuts lie between its kept children, theirs inside them: all are disjoint.
        cuts.sort_unstable();
        let mut out = String::with_capacity(self.text.len());
        let mut copied = 0;
        for (start, end) in cuts {
            out.push_str(self.slice((copied, start)));
            copied = end;
        }
        out.push_str(self.slice((copied, self.text.len() as u32)));
        out
    }

    /// The spans that go out of one container, not looking into its kept children.
    fn cuts_of(&self, container: NodeId, cuts: &mut Vec<(u32, u32)>) {
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
                        None => (inner_start, lead),
                        // Up to the comma before this child.
                        Some(end) => (end, lead.saturating_sub(1)),
                    });
                    pending = false;
                }
                kept_until = Some(child.span.1);
            }
            at = child.after.max(at + 1);
        }
        if pending {
            cuts.push(match kept_until {
                None => (inner_start, inner_end),
                Some(end) => (end, self.space_before(inner_end)),
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
