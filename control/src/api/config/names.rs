//! What a document calls by name, found.

use proto::object::ObjectId;
use serde_json::{Map, Value};

use super::apply::Work;
use super::entry::Key;
use super::stored::Kind;
use crate::api::objects::Resource;
use crate::api::targets::Targets;

impl Work<'_> {
    /// A proxy's fields with ids in the place of names.
    pub(super) fn resolved(
        &mut self,
        pointer: &str,
        mut fields: Map<String, Value>,
    ) -> Option<Map<String, Value>> {
        let mut whole = true;
        let mut one = |work: &mut Self, kind, pointer: String, name: &str| {
            let id = work.referred(kind, &pointer, name);
            whole &= id.is_some();
            id.map(|id| Value::from(id.to_string()))
        };
        for (word, kind, field) in [
            ("target", Kind::Target, "target_id"),
            (
                "target_credential",
                Kind::TargetCredential,
                "target_credential_id",
            ),
        ] {
            if let Some(Value::String(name)) = fields.shift_remove(word)
                && let Some(id) = one(self, kind, format!("{pointer}/{word}"), &name)
            {
                fields.insert(field.into(), id);
            }
        }
        if let Some(Value::Array(names)) = fields.shift_remove("proxy_credentials") {
            let mut ids = Vec::new();
            for (at, name) in names.iter().enumerate() {
                let place = format!("{pointer}/proxy_credentials/{at}");
                let name = name.as_str().unwrap_or_default();
                ids.extend(one(self, Kind::ProxyCredential, place, name));
            }
            fields.insert("proxy_credential_ids".into(), Value::Array(ids));
        }
        let target = fields.get("target_id").and_then(Value::as_str);
        let name = fields.get("name").or(fields.get("alias")).cloned();
        if let Some(name) = name.or_else(|| self.target_name(target?).map(Value::from)) {
            fields.insert("name".into(), name);
        }
        whole.then_some(fields)
    }

    fn target_name(&self, id: &str) -> Option<String> {
        let id: ObjectId = id.parse().ok()?;
        if let Some(name) = self.targets.get(&id) {
            return Some(name.clone());
        }
        let body = &self.config.object(id)?.body;
        Targets::model(body).map(|target| target.name.clone())
    }

    /// What a name means: an entry of the document, or else an object that is there.
    fn referred(&mut self, kind: Kind, pointer: &str, name: &str) -> Option<ObjectId> {
        let in_document = self.named.get(&Key::Name(kind, name.to_owned()));
        let mut found = in_document.cloned().unwrap_or_default();
        if found.is_empty() {
            found.extend(self.stored.named(kind, name));
            let id: Option<ObjectId> = name.parse().ok();
            let issued = id.and_then(|id| self.reissued.get(&id));
            if let Some((id, _)) = issued.filter(|(_, of)| *of == kind) {
                return Some(*id);
            }
            found.extend(id.filter(|id| {
                let object = self.config.object(*id);
                object.is_some_and(|object| Kind::of(&object.body) == Some(kind))
            }));
            // What the document does not name is about to go.
            found.retain(|id| !self.manner.prunes || self.kept.contains(id));
        }
        if let [id] = found.as_slice() {
            return Some(*id);
        }
        let (name, words, count) = (proto::checks::printable(name), kind.words(), found.len());
        let detail = match count {
            0 if self.manner.prunes => format!("the document has no `{name}` among its {words}"),
            0 => format!("neither the document nor the organisation has `{name}` among {words}"),
            _ => format!("{count} {words} are named `{name}`; give the id"),
        };
        self.refuse(pointer.to_owned(), "unknown-reference", detail);
        None
    }
}
