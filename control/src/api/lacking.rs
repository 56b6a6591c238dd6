//! What is told by a home that lacks what some regions keep alone: it was made one by force, and
//! fetches it by itself. Whatever is here whole is served and changed as ever.

use proto::object::ObjectId;
use proto::tree::OrgConfig;

use super::call::OrgCall;
use super::error::Refusal;
use super::write::set_unavailable;

/// The configuration where it is not here whole and this region is home, so that no other one is
/// asked.
fn in_part<'c>(call: &OrgCall, config: &'c OrgConfig) -> Option<&'c OrgConfig> {
    let directory = call.control.directory();
    let is_home = directory.is_none_or(|directory| directory.is_home(call.org_id()));
    let is_part = config.withheld().next().is_some();
    (is_home && is_part).then_some(config)
}

fn words(regions: &[String]) -> String {
    format!(
        "what {} alone keeps is not in this region",
        regions.join(", ")
    )
}

/// Refuses what is made of the whole configuration, such as a list of what may be pinned.
///
/// # Errors
/// 503, naming the regions that have the rest.
pub fn refuse_part(call: &OrgCall, config: &OrgConfig) -> Result<(), Refusal> {
    match in_part(call, config) {
        None => Ok(()),
        Some(config) => {
            let regions = config.withheld_regions();
            let words = format!("{}, and this is of all of it", words(&regions));
            Err(set_unavailable(&words, &regions))
        }
    }
}

/// Refuses what is about an object that is not here whole, or may be kept where it is not seen.
///
/// # Errors
/// 503, naming the regions that have it.
pub fn refuse_away(call: &OrgCall, config: &OrgConfig, id: ObjectId) -> Result<(), Refusal> {
    let away = in_part(call, config).map(|config| config.away(id));
    match away.filter(|regions| !regions.is_empty()) {
        None => Ok(()),
        Some(regions) => {
            let words = format!("{}, and {id} is or may be kept there", words(&regions));
            Err(set_unavailable(&words, &regions))
        }
    }
}

/// What is told of a document that names things which are not known here: they may be kept where
/// they are not seen.
pub fn unless_in_part(config: &OrgConfig, refusal: Refusal) -> Refusal {
    let mut errors = refusal.errors.iter();
    let regions = config.withheld_regions();
    if regions.is_empty() || !errors.any(|problem| problem.code == "not-found") {
        return refusal;
    }
    let words = format!(
        "{}, and may be what is named ({})",
        words(&regions),
        refusal.detail
    );
    set_unavailable(&words, &regions)
}
