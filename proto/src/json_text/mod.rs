//! A JSON document that is never rewritten: spans into the bytes that came, and cuts out of them.
//!
//! A filter must hand on what it keeps exactly as the target wrote it: key order, number text
//! (`1.0`, `1e400`, `-0`, twenty digits), string escapes. A parsed value tree loses all of that, so
//! here a document is its text plus a flat table of spans. Removing a value marks it; rendering
//! copies the text between the marks. Values that are removed are no longer seen by any walk, and
//! one that is replaced reads as the string in its place, so what a second edit sees is what
//! re-parsing the first one's output would give.
//!
//! **What counts as JSON** is what every parser reads the same way: RFC 8259, UTF-8, no byte order
//! mark, nothing after the value, no `NaN`; also no two members of one name (names compared after
//! their escapes are resolved), no lone surrogate in a name, at most [`DEPTH_MAX`] levels and
//! [`NODES_MAX`] values. Anything else is an error: a filter that guesses leaks.
//!
//! Nothing here recurses on the document, and time is linear in its length.

mod edit;
mod scan;
mod unescape;

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::HashMap;

pub(crate) use unescape::unicode_escape;

/// Deepest nesting of arrays and objects that is read (`[[]]` has two levels).
pub const DEPTH_MAX: usize = 64;

/// Most values that one document may hold. The table of spans takes 28 bytes for each, so that
/// the worst body costs 28 MB beside its text.
pub const NODES_MAX: usize = 1_000_000;

/// Why bytes are not a document that can be read in exactly one way.
///
/// Offsets count bytes from the start. No variant holds any text of the document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// Not RFC 8259 JSON in UTF-8.
    #[error("not JSON at byte {offset}: {reason}")]
    NotJson {
        /// Where reading stopped.
        offset: usize,
        /// The rule that was broken.
        reason: &'static str,
    },
    /// Two members of one object have the same name (RFC 8259 §4 leaves the meaning open).
    #[error("two members of the object at byte {offset} have the same name")]
    DuplicateKey {
        /// Where the object begins.
        offset: usize,
    },
    /// More than [`DEPTH_MAX`] levels.
    #[error("nested deeper than {DEPTH_MAX} levels at byte {offset}")]
    TooDeep {
        /// Where the level begins that is one too many.
        offset: usize,
    },
    /// More than [`NODES_MAX`] values.
    #[error("more than {NODES_MAX} values")]
    TooManyNodes,
}

/// One value of one document: its place in document order. The root is [`NodeId::ROOT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(u32);

impl NodeId {
    /// The document's outermost value.
    pub const ROOT: NodeId = NodeId(0);

    /// Its place in document order.
    pub fn row(self) -> u32 {
        self.0
    }
}

/// The type of a value (RFC 8259 §3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `null`
    Null,
    /// `true` or `false`
    Bool,
    /// Any number.
    Number,
    /// Any string.
    String,
    /// `[…]`
    Array,
    /// `{…}`
    Object,
}

impl Kind {
    /// Whether values of this type can hold others.
    pub fn is_container(self) -> bool {
        matches!(self, Kind::Array | Kind::Object)
    }
}

/// One row of the table: where a value and its name stand, and where its subtree ends.
#[derive(Clone, Debug)]
struct Node {
    /// Span of the member name with its quotes; empty for elements and the root.
    key: (u32, u32),
    /// Span of the value.
    span: (u32, u32),
    /// The container. The root is its own parent.
    parent: u32,
    /// The first row after this value's subtree.
    after: u32,
    kind: Kind,
    /// Cut out by an edit, with its whole subtree.
    removed: bool,
    /// At least one direct child is cut out.
    thinned: bool,
    /// A string stands in its place, see [`JsonText::replace`].
    replaced: bool,
}

/// What a row number outside the table reads as. Rows are numbered by the table itself, so this
/// is only for a [`NodeId`] of another document: it reads as an empty value and ends every walk.
const NOWHERE: Node = Node {
    key: (0, 0),
    span: (0, 0),
    parent: 0,
    after: 0,
    kind: Kind::Null,
    removed: false,
    thinned: false,
    replaced: false,
};

/// A document: its text and the table of its values in document order.
#[derive(Clone, Debug)]
pub struct JsonText<'a> {
    text: &'a str,
    nodes: Vec<Node>,
    /// What stands in the place of values: strings with their quotes, by row.
    replaced: HashMap<u32, String>,
    /// What members are called instead: strings with their quotes, by row.
    renamed: HashMap<u32, String>,
    /// A scalar root that an edit replaced by `null`.
    root_nulled: bool,
    edited: bool,
}

impl<'a> JsonText<'a> {
    /// Reads a whole body.
    ///
    /// # Errors
    /// [`JsonError`], see the module: bytes that cannot be read in exactly one way.
    pub fn parse(body: &'a [u8]) -> Result<JsonText<'a>, JsonError> {
        let text = std::str::from_utf8(body).map_err(|fault| JsonError::NotJson {
            offset: fault.valid_up_to(),
            reason: "invalid UTF-8",
        })?;
        let nodes = scan::scan(text)?;
        Ok(JsonText {
            text,
            nodes,
            replaced: HashMap::new(),
            renamed: HashMap::new(),
            root_nulled: false,
            edited: false,
        })
    }

    /// The type of a value.
    pub fn kind(&self, id: NodeId) -> Kind {
        match id {
            NodeId::ROOT if self.root_nulled => Kind::Null,
            _ => self.node(id).kind,
        }
    }

    /// The text of a value as it came, or of the string in its place; edits inside it are not
    /// applied.
    pub fn raw(&self, id: NodeId) -> &str {
        match id {
            NodeId::ROOT if self.root_nulled => "null",
            _ if self.node(id).replaced => self.replaced.get(&id.0).map_or("", String::as_str),
            _ => self.slice(self.node(id).span),
        }
    }

    /// Where a value stands in the text, in bytes.
    pub fn span(&self, id: NodeId) -> std::ops::Range<usize> {
        let (start, end) = self.node(id).span;
        start as usize..end as usize
    }

    /// The text of a string value, escapes resolved (a lone surrogate reads as U+FFFD). Empty for
    /// values of other types.
    pub fn string(&self, id: NodeId) -> Cow<'_, str> {
        match self.kind(id) {
            Kind::String => unescape::unescape(without_quotes(self.raw(id))).text,
            _ => Cow::Borrowed(""),
        }
    }

    /// The container of a value; the root is its own.
    pub fn parent(&self, id: NodeId) -> NodeId {
        NodeId(self.node(id).parent)
    }

    /// How many containers hold a value.
    pub fn depth(&self, id: NodeId) -> u32 {
        let mut depth = 0;
        let mut at = id;
        while at != NodeId::ROOT {
            at = self.parent(at);
            depth += 1;
        }
        depth
    }

    /// Where a value stands: a JSON pointer (RFC 6901).
    pub fn pointer(&self, id: NodeId) -> String {
        let mut tokens = Vec::new();
        let mut at = id;
        while at != NodeId::ROOT {
            let parent = self.parent(at);
            tokens.push(match self.is_member(at) {
                true => self.name(at).replace('~', "~0").replace('/', "~1"),
                false => self
                    .children(parent)
                    .take_while(|child| *child != at)
                    .count()
                    .to_string(),
            });
            at = parent;
        }
        tokens
            .iter()
            .rev()
            .map(|token| format!("/{token}"))
            .collect()
    }

    /// Whether a value has a name: it is a member of an object.
    pub fn is_member(&self, id: NodeId) -> bool {
        self.node(id).key.1 > 0
    }

    /// Whether `inner` is `outer` or in it.
    pub fn is_within(&self, inner: NodeId, outer: NodeId) -> bool {
        inner >= outer && inner.0 < self.node(outer).after
    }

    /// The name of a member, escapes resolved. Empty for elements and the root.
    pub fn name(&self, id: NodeId) -> Cow<'_, str> {
        unescape::unescape(without_quotes(self.quoted_name(id))).text
    }

    /// The name of a member with its quotes and escapes; empty for elements and the root.
    fn quoted_name(&self, id: NodeId) -> &str {
        // Hardly any document has members with other names than they came with.
        if !self.renamed.is_empty()
            && let Some(name) = self.renamed.get(&id.0)
        {
            return name;
        }
        self.slice(self.node(id).key)
    }

    /// Whether a member is called `name`.
    pub fn is_named(&self, id: NodeId, name: &str) -> bool {
        let inner = without_quotes(self.quoted_name(id));
        // An escape takes at most six bytes for one of the text (`\u0041`), and never less room
        // than its text: a name of another size need not be read.
        let fits = inner.len() >= name.len() && inner.len() <= name.len().saturating_mul(6);
        match fits && inner.contains('\\') {
            true => unescape::unescape(inner).text == name,
            false => inner == name,
        }
    }

    /// The elements or members of a value in document order, without what was removed. Empty for
    /// scalars.
    pub fn children(&self, id: NodeId) -> Children<'_> {
        let node = self.node(id);
        let end = match node.replaced || (id == NodeId::ROOT && self.root_nulled) {
            true => 0,
            false => node.after,
        };
        Children {
            nodes: &self.nodes,
            at: id.0.saturating_add(1),
            end,
        }
    }

    /// A value and everything in it in document order, without what was removed.
    pub fn subtree(&self, id: NodeId) -> Subtree<'_> {
        Subtree {
            nodes: &self.nodes,
            at: id.0,
            end: self.node(id).after,
        }
    }

    fn node(&self, id: NodeId) -> &Node {
        self.nodes.get(id.0 as usize).unwrap_or(&NOWHERE)
    }

    fn slice(&self, (start, end): (u32, u32)) -> &'a str {
        self.text.get(start as usize..end as usize).unwrap_or("")
    }
}

/// See [`JsonText::children`].
#[derive(Clone, Debug)]
pub struct Children<'t> {
    nodes: &'t [Node],
    at: u32,
    end: u32,
}

impl Iterator for Children<'_> {
    type Item = NodeId;

    fn next(&mut self) -> Option<NodeId> {
        while self.at < self.end {
            let node = self.nodes.get(self.at as usize)?;
            let id = NodeId(self.at);
            self.at = node.after;
            if !node.removed {
                return Some(id);
            }
        }
        None
    }
}

/// See [`JsonText::subtree`].
#[derive(Clone, Debug)]
pub struct Subtree<'t> {
    nodes: &'t [Node],
    at: u32,
    end: u32,
}

impl Iterator for Subtree<'_> {
    type Item = NodeId;

    fn next(&mut self) -> Option<NodeId> {
        while self.at < self.end {
            let node = self.nodes.get(self.at as usize)?;
            let id = NodeId(self.at);
            match node.removed || node.replaced {
                true => self.at = node.after,
                false => self.at += 1,
            }
            if !node.removed {
                return Some(id);
            }
        }
        None
    }
}

fn without_quotes(quoted: &str) -> &str {
    quoted
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'))
        .unwrap_or("")
}
