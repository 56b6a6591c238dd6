//! In which regions a target credential has no sealed value yet: one that was added later has it
//! once nodes that can open the secret have sealed it for that.

use futures_util::stream::{StreamExt, TryStreamExt};
use proto::id::CredentialId;
use proto::object::StoredCredential;
use proto::store::{StoreError, lacking};
use serde_json::{Value, json};

use super::answer::{Answer, Content};
use super::call::OrgCall;
use super::error::Refusal;
use super::write;
use crate::regions::Directory;

/// Credentials looked at at one time.
const AT_ONCE: usize = 8;

/// Adds `unsealed_in` to the credentials that an answer shows and that lack a value somewhere.
///
/// # Errors
/// The store failed.
pub async fn show(call: &OrgCall, answer: &mut Answer) -> Result<(), Refusal> {
    let Some(directory) = call.control.directory() else {
        return Ok(());
    };
    let Content::Json(body) = &mut answer.content else {
        return Ok(());
    };
    let shown: Vec<&mut Value> = match body.get("items").is_some() {
        true => {
            let items = body["items"].as_array_mut();
            items.into_iter().flatten().collect()
        }
        false => vec![body],
    };
    let config = call.config()?;
    let looks = shown.into_iter().filter_map(|shown| {
        let id: CredentialId = shown["id"].as_str()?.parse().ok()?;
        let stored = config.credential(id)?.clone();
        Some(async move {
            let lacking = unsealed_in(call, directory, (id, &stored)).await?;
            if !lacking.is_empty() {
                shown["unsealed_in"] = json!(lacking);
            }
            Ok::<_, StoreError>(())
        })
    });
    let looks: Vec<_> = looks.collect();
    let looked = futures_util::stream::iter(looks).buffer_unordered(AT_ONCE);
    let looked = looked.try_collect::<()>().await;
    looked.map_err(|error| write::refusal(error.into()))
}

/// The regions that a secret is for and that have no value of it.
async fn unsealed_in(
    call: &OrgCall,
    directory: &Directory,
    (id, stored): (CredentialId, &StoredCredential),
) -> Result<Vec<String>, StoreError> {
    let Some(seal_id) = stored.seal_id() else {
        return Ok(Vec::new());
    };
    let store = call.control.publisher.store();
    let held = lacking::regions_with(store, call.org_id(), id, seal_id).await?;
    let names = directory.regions.names();
    let lacking =
        names.filter(|region| stored.credential.is_for_region(region) && !held.contains(*region));
    let mut lacking: Vec<String> = lacking.map(str::to_owned).collect();
    lacking.sort_unstable();
    Ok(lacking)
}
