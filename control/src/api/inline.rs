//! `POST …/proxies` with an inline `target` and inline `credentials`: everything that the proxy
//! needs is made in one version with it, all of it or nothing.
//!
//! An inline object is what its own route takes. A target credential without `hosts` is bound to
//! the target's own host, which is what nearly everybody means.

use std::collections::BTreeSet;

use proto::credential::CredentialKind;
use proto::hosts::HostPattern;
use proto::object::ObjectId;
use proto::problem::Problem;
use proto::seal::DigestKey;
use proto::target::{BaseUrl, Target};
use proto::tree::OrgConfig;
use serde_json::{Map, Value, json};

use super::ahead::Given;
use super::answer::Answer;
use super::batch;
use super::call::OrgCall;
use super::credentials::Credentials;
use super::error::{Code, Refusal};
use super::objects::{Resource, show};
use super::plan::Plan;
use super::proxies::Proxies;
use super::secret::shown_before;
use super::shape::Schemas;
use super::targets::Targets;
use crate::openapi::{extend, reference};
use crate::publish::Published;
use crate::router::BASE;

/// Fields of the document that are objects of their own.
const TARGET: &str = "target";
const CREDENTIALS: &str = "credentials";
/// Most inline credentials: as many as a proxy can name, and the target's.
const CREDENTIALS_MAX: usize = 33;

/// Whether a document makes more than the proxy itself.
pub fn has_inline(document: &Value) -> bool {
    [TARGET, CREDENTIALS]
        .iter()
        .any(|field| document.get(field).is_some())
}

/// Says of a credential of a write that was carried out before that its key is not shown again.
fn tell_shown_before(credential: &mut Value, again: &Plan) {
    let of = |field: &str| credential[field].as_str().unwrap_or_default();
    let field = match (of("kind"), of("auth_type")) {
        ("proxy", "api_key") => "key",
        ("proxy", "bearer") => "token",
        _ => return,
    };
    if again.generates() {
        credential["warnings"] = json!([shown_before(field)]);
    }
}

/// Makes the proxy and what stands in its document as one version.
///
/// # Errors
/// Everything that stands against it, at its place in the document; nothing was made.
pub async fn create(call: &OrgCall) -> Result<Answer, Refusal> {
    let document = &call.request.body;
    let key = &call.control.digest_key;
    let (published, plan, _) = batch::publish(call, |config| planned(document, config, key))
        .await
        .map_err(without_consequences)?;
    let proxy = made::<Proxies>(call, &published)
        .pop()
        .ok_or_else(Refusal::not_found)?;
    let id = proxy["id"].as_str().unwrap_or_default();
    let location = format!("{BASE}/orgs/{}/proxies/{id}", call.org.slug);
    let version = proxy["version"].as_u64().unwrap_or(published.n);
    let mut answer = proxy;
    if let Some(target) = made::<Targets>(call, &published).pop() {
        answer[TARGET] = target;
    }
    let mut credentials = made::<Credentials>(call, &published);
    // Of a write that was carried out before, other keys were generated and are in force.
    let again = || planned(document, &published.config, key);
    let again = published.replayed.then(again);
    for credential in &mut credentials {
        match &again {
            None => plan.show_once(credential),
            Some(again) => tell_shown_before(credential, again),
        }
    }
    if !credentials.is_empty() {
        answer[CREDENTIALS] = credentials.into();
    }
    Ok(Answer::json(answer)
        .etag(version)
        .version(call.org_id(), published.n)
        .created(location))
}

/// The credentials for which the document gives a secret.
///
/// # Errors
/// What is wrong with the document.
pub fn given(call: &OrgCall, config: &OrgConfig) -> Result<Vec<Given>, Refusal> {
    planned(&call.request.body, config, &call.control.digest_key).given()
}

/// The objects of a kind that a version made and that are still there.
fn made<R: Resource>(call: &OrgCall, published: &Published) -> Vec<Value> {
    let ids = published.changed.iter().filter(|id| R::span().contains(id));
    ids.filter_map(|id| published.config.object(*id))
        .map(|object| show::<R>(&call.view(), object))
        .collect()
}

/// What a document makes of a version.
fn planned(document: &Value, config: &OrgConfig, key: &DigestKey) -> Plan {
    let mut plan = Plan::default();
    let Value::Object(fields) = document else {
        plan.create("", Proxies::fresh_id(), None, document.clone(), key);
        return plan;
    };
    let mut proxy = fields.clone();
    let target = proxy.shift_remove(TARGET);
    let credentials = proxy.shift_remove(CREDENTIALS);
    let hosts = match &target {
        Some(target) => own_hosts(base_urls(target)),
        None => stored_hosts(config, &proxy),
    };
    if let Some(target) = target {
        let id = Targets::fresh_id();
        name(&mut plan, &mut proxy, "target_id", TARGET, id);
        plan.create("/target", id, None, target, key);
    }
    match credentials {
        None => {}
        Some(Value::Array(list)) if list.len() <= CREDENTIALS_MAX => {
            for (at, credential) in list.into_iter().enumerate() {
                let place = format!("/{CREDENTIALS}/{at}");
                let id = Credentials::id_of_new(credential.get("secret"));
                let credential = bind(&mut plan, &mut proxy, &place, id, credential, &hosts);
                plan.create(&place, id, None, credential, key);
            }
        }
        Some(_) => {
            let detail = format!("must be a list of at most {CREDENTIALS_MAX} credentials");
            plan.problem(Problem::new("/credentials", "type", detail));
        }
    }
    plan.create("", Proxies::fresh_id(), None, Value::Object(proxy), key);
    plan
}

/// The URLs that requests to a submitted target go to.
fn base_urls(target: &Value) -> Vec<&str> {
    let listed = target.get("endpoints").and_then(Value::as_array);
    let listed = listed.into_iter().flatten();
    let all = std::iter::once(target).chain(listed);
    all.filter_map(|holder| holder.get("base_url")?.as_str())
        .collect()
}

/// The hosts of the target that the document names by id.
fn stored_hosts(config: &OrgConfig, proxy: &Map<String, Value>) -> Vec<String> {
    let id = proxy.get("target_id").and_then(Value::as_str);
    let target = id.and_then(|id| config.target(id.parse().ok()?));
    let bases = target.into_iter().flat_map(Target::bases);
    let hosts: BTreeSet<String> = bases.map(|(_, base)| own_host(base)).collect();
    hosts.into_iter().collect()
}

/// Names what is made in a field of the proxy that may not be given as well.
fn name(
    plan: &mut Plan,
    proxy: &mut Map<String, Value>,
    field: &'static str,
    inline: &str,
    id: ObjectId,
) {
    if proxy.get(field).is_some_and(|given| !given.is_null()) {
        let detail = format!("`{field}` is given or made already; leave one of them out");
        let pointer = format!("/{inline}");
        plan.problem(Problem::new(pointer, "contradiction", detail));
    }
    proxy.insert(field.to_owned(), json!(id));
}

/// Names an inline credential in the proxy, and completes its document.
fn bind(
    plan: &mut Plan,
    proxy: &mut Map<String, Value>,
    place: &str,
    id: ObjectId,
    mut credential: Value,
    hosts: &[String],
) -> Value {
    let kind = credential.get("kind").cloned().unwrap_or_default();
    if kind == json!(CredentialKind::Target) {
        let inline = place.trim_start_matches('/');
        name(plan, proxy, "target_credential_id", inline, id);
        if let (false, Value::Object(fields)) = (hosts.is_empty(), &mut credential)
            && fields.get("auth_type").and_then(Value::as_str) != Some("none")
        {
            fields.entry("hosts").or_insert_with(|| json!(hosts));
        }
    } else {
        // Of an unknown kind too: its own fault is told, and no second one of a missing id.
        let ids = proxy
            .entry("proxy_credential_ids")
            .or_insert_with(|| json!([]));
        if let Value::Array(ids) = ids {
            ids.push(json!(id));
        }
    }
    credential
}

/// A refusal without the hosts that a credential lacks because the target's own cannot be read.
fn without_consequences(mut refusal: Refusal) -> Refusal {
    let of_target = |problem: &Problem| {
        let field = problem.pointer.strip_prefix("/target/");
        field.is_some_and(|field| field.ends_with("base_url"))
    };
    if refusal.code != Code::ValidationFailed || !refusal.errors.iter().any(of_target) {
        return refusal;
    }
    refusal.errors.retain(|problem| {
        let field = problem.pointer.strip_prefix("/credentials/");
        let is_hosts = field.is_some_and(|field| field.ends_with("/hosts"));
        !(is_hosts && problem.code == "required")
    });
    Refusal::invalid(refusal.errors)
}

/// The hosts of base URLs, as entries of `hosts`.
fn own_hosts(base_urls: Vec<&str>) -> Vec<String> {
    let bases = base_urls
        .into_iter()
        .filter_map(|text| BaseUrl::parse(text).ok());
    let hosts: BTreeSet<String> = bases.map(own_host).collect();
    hosts.into_iter().collect()
}

fn own_host(base: BaseUrl) -> String {
    HostPattern::exact(base.origin).to_string()
}

/// Adds what is submitted and answered. The schemas of proxy, target and credential must be there.
pub fn add_schemas(schemas: &mut Schemas) {
    let list = |item: &str, description: &str| {
        let mut list = json!({"type": "array", "items": reference(item)});
        list["description"] = json!(description);
        list
    };
    let given = list(
        "CredentialInput",
        "Made with the proxy: at most one of kind `target`, bound to the target's host where it \
         has no `hosts`; those of kind `proxy` are added to `proxy_credential_ids`",
    );
    let made = list(
        "Credential",
        "The credentials made with the proxy; a generated key is shown here only",
    );
    for (name, credentials) in [("NewProxy", given), ("CreatedProxy", made)] {
        let fields = [(TARGET, reference("Target")), (CREDENTIALS, credentials)];
        extend(schemas, "Proxy", name, &fields);
    }
    if let Some(new) = schemas.get_mut("NewProxy") {
        // What is made inline is not named by id.
        new["required"] = json!([]);
    }
}
