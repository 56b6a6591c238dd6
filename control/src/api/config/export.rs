//! From a configuration to its document.

use std::collections::BTreeMap;

use proto::object::{Body, ObjectId};
use proto::tree::OrgConfig;
use serde_json::{Map, Value, json};

use super::stored::{Kind, Stored};
use super::{FORMAT, all};
use crate::api::answer::Answer;
use crate::api::attached::{Policies, Policy};
use crate::api::call::OrgCall;
use crate::api::credentials::Credentials;
use crate::api::error::Refusal;
use crate::api::filters::FilterKind;
use crate::api::lacking;
use crate::api::meters::MeterKind;
use crate::api::objects::{Resource, fields};
use crate::api::proxies::Proxies;
use crate::api::rules::RuleKind;
use crate::api::targets::Targets;

/// `GET …/config`.
pub async fn export(call: OrgCall) -> Result<Answer, Refusal> {
    let config = call.config()?;
    lacking::refuse_part(&call, &config)?;
    Ok(Answer::json(document(&config)))
}

/// The configuration as a document.
pub fn document(config: &OrgConfig) -> Value {
    let names = Names::of(config);
    let rules = attached::<RuleKind>(config);
    let filters = attached::<FilterKind>(config);
    let meters = attached::<MeterKind>(config);
    let entry = |id: &ObjectId, model: Map<String, Value>| {
        let mut entry = model;
        entry.retain(|_, value| !is_default(value));
        if !names.is_unique(id) {
            entry.shift_insert(0, "id".into(), json!(id));
        }
        let hanging = [
            ("rules", &rules),
            ("filters", &filters),
            ("meters", &meters),
        ];
        for (word, policies) in hanging {
            if let Some(policies) = policies.get(id) {
                entry.insert(word.into(), json!(policies));
            }
        }
        entry
    };
    let targets = all::<Targets>(config).map(|(id, model, _)| entry(id, fields(model)));
    let credentials = all::<Credentials>(config).map(|(id, model, _)| entry(id, fields(model)));
    let proxies = all::<Proxies>(config).map(|(id, proxy, _)| {
        let mut entry = entry(id, fields(proxy));
        let callers = proxy.proxy_credential_ids.iter();
        let callers: Vec<String> = callers
            .map(|id| names.of_id(ObjectId::Credential(*id)))
            .collect();
        let target = names.of_id(ObjectId::Target(proxy.target_id));
        let by_id = ["proxy_credential_ids", "target_id", "target_credential_id"];
        for field in by_id.iter().chain(Proxies::OWN) {
            entry.shift_remove(*field);
        }
        entry.insert("target".into(), json!(target));
        entry.insert("proxy_credentials".into(), json!(callers));
        if let Some(id) = proxy.target_credential_id {
            let name = names.of_id(ObjectId::Credential(id));
            entry.insert("target_credential".into(), json!(name));
        }
        entry
    });
    let mut document = json!({
        "format": FORMAT,
        "targets": targets.collect::<Vec<_>>(),
        "credentials": credentials.collect::<Vec<_>>(),
        "proxies": proxies.collect::<Vec<_>>(),
    });
    if let Some(own) = meters.get(&ObjectId::Org(config.org)) {
        document["meters"] = json!(own);
    }
    document
}

/// Fields that say nothing are left out: no null, no empty list, no empty object.
fn is_default(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

/// Policies by the object that they hang on, without their ids.
fn attached<K: Policy>(config: &OrgConfig) -> BTreeMap<ObjectId, Vec<Value>> {
    let mut found: BTreeMap<ObjectId, Vec<Value>> = BTreeMap::new();
    for (_, model, object) in all::<Policies<K>>(config) {
        if let Some(parent) = object.body.parent() {
            let mut fields = fields(model);
            fields.shift_remove("id");
            fields.retain(|_, value| !value.is_null());
            found.entry(parent).or_default().push(Value::Object(fields));
        }
    }
    found
}

/// The names of what can be named, where a name is that of one object of its kind.
struct Names(BTreeMap<ObjectId, Option<String>>);

impl Names {
    fn of(config: &OrgConfig) -> Self {
        let stored = Stored::of(config);
        let names = config.objects.iter().filter_map(|(id, object)| {
            let name = match &object.body {
                Body::Target(target) => &target.name,
                Body::Credential(stored) => &stored.credential.name,
                Body::Proxy(proxy) => &proxy.name,
                _ => return None,
            };
            let kind = Kind::of(&object.body)?;
            // A name that looks like an id would be read as one.
            let alone = stored.named(kind, name).len() == 1 && name.parse::<ObjectId>().is_err();
            // A proxy with an alias is found by that.
            let by_alias = matches!(&object.body, Body::Proxy(proxy) if proxy.alias.is_some());
            Some((*id, (alone || by_alias).then(|| name.clone())))
        });
        Self(names.collect())
    }

    fn is_unique(&self, id: &ObjectId) -> bool {
        self.0.get(id).is_some_and(Option::is_some)
    }

    fn of_id(&self, id: ObjectId) -> String {
        let name = self.0.get(&id).cloned().flatten();
        name.unwrap_or_else(|| id.to_string())
    }
}
