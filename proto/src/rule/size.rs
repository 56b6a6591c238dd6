//! How much memory a rule's patterns take when compiled, known without compiling them again.
//!
//! A scope has its own bound; an organisation has one too, since a member may make as many proxies
//! as there is room for objects and every node compiles all of them.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use super::{Effect, Rule, RuleSet};

/// Largest sum over all rules of an organisation, in bytes.
pub const ORG_COMPILED_BYTES_MAX: usize = 64 * 1024 * 1024;
/// What may be compiled to judge one change, in bytes: the largest organisation as a whole, of
/// whose patterns some are compiled twice.
pub const CHANGE_COMPILED_BYTES_MAX: usize = 2 * ORG_COMPILED_BYTES_MAX;
/// Sizes that are remembered; then all are forgotten.
const REMEMBERED_MAX: usize = 200_000;

impl Rule {
    /// An upper bound of what its compiled patterns take, in bytes. Compiled once: a process
    /// remembers it by the rule's content.
    pub fn compiled_bytes_max(&self) -> usize {
        let has_pattern = self.path.is_some()
            || !self.headers.is_empty()
            || !self.query.is_empty()
            || !self.body.is_empty();
        if !has_pattern {
            return 0;
        }
        let parts = (&self.path, &self.headers, &self.query, &self.body);
        remembered(&parts, || {
            let named = Self {
                id: "alone".into(),
                ..self.clone()
            };
            let alone = RuleSet::compile(&[named], Effect::Allow);
            // One that does not compile is refused for itself.
            alone.map_or(0, |set| set.compiled_bytes_max())
        })
    }
}

/// The size of what `content` compiles to, measured once for equal contents.
pub fn remembered(content: &impl Serialize, measure: impl FnOnce() -> usize) -> usize {
    static SIZES: Mutex<Option<HashMap<[u8; 32], usize>>> = Mutex::new(None);
    // Structs of texts and lists always serialise.
    let key = *blake3::hash(&serde_json::to_vec(content).unwrap_or_default()).as_bytes();
    let known = |sizes: &Option<HashMap<_, usize>>| sizes.as_ref()?.get(&key).copied();
    if let Some(size) = known(&SIZES.lock().unwrap_or_else(PoisonError::into_inner)) {
        return size;
    }
    let size = measure();
    let mut sizes = SIZES.lock().unwrap_or_else(PoisonError::into_inner);
    let sizes = sizes.get_or_insert_default();
    if sizes.len() >= REMEMBERED_MAX {
        sizes.clear();
    }
    sizes.insert(key, size);
    size
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_as_large_as_its_patterns() {
        let rule = |json: serde_json::Value| -> Rule { serde_json::from_value(json).unwrap() };
        let none = rule(serde_json::json!({"effect": "deny", "methods": ["GET"]}));
        assert_eq!(none.compiled_bytes_max(), 0);
        let small = serde_json::json!({"effect": "deny", "path": {"pattern": "^/v1"}});
        let large = serde_json::json!({"effect": "deny", "path": {"pattern": r"\w{12}"}});
        let (small, large) = (rule(small), rule(large));
        assert!(small.compiled_bytes_max() < 64 * 1024);
        assert!(large.compiled_bytes_max() > 64 * 1024);
        assert_eq!(large.compiled_bytes_max(), large.compiled_bytes_max());
    }
}
