//! What is wrong with a region, in lines below its own.

use serde_json::Value;

use super::clock_skew;
use super::records::shown;
use super::regions::{list, name};

/// That the clock of a region is not that of the control plane which was asked.
pub fn skew(region: &Value) -> Option<String> {
    clock_skew::words(region, "this control plane's").map(|skew| format!("  {skew}"))
}

/// That a region cannot do without its older keys yet, or that it is not known here.
pub fn sealed_otherwise(region: &Value) -> Option<String> {
    let told = region.get("sealed_to_other_keys")?;
    let Some(count) = told.as_u64() else {
        let line = "  how many of its secrets are kept here sealed to its older keys is not known \
                    here: ask the control plane that replicates, while it is connected there";
        return Some(line.to_owned());
    };
    let key = region["public_key_id"].as_str();
    let key = key.map(|key| format!(" ({})", shown(key)));
    let key = key.unwrap_or_default();
    (count > 0).then(|| {
        format!(
            "  {count} of its secrets are kept here sealed to another of its keys than the one in \
             its `public_file`{key}: it cannot do without its older keys yet"
        )
    })
}

/// The organisations of which a region has another history than home, and who ends that.
pub fn diverged(region: &Value) -> Option<String> {
    let orgs = list(&region["replication"], "diverged");
    let orgs: Vec<&str> = orgs.iter().filter_map(Value::as_str).collect();
    (!orgs.is_empty()).then(|| {
        format!(
            "  diverged from home: {}; decide whose history counts: `regions promote REGION \
             --diverged`",
            orgs.join(", ")
        )
    })
}

/// The versions that a region does not take, a line each.
pub fn unverified(region: &Value) -> Vec<String> {
    let line = |one: &Value| {
        let text = |key: &str| one[key].as_str().unwrap_or_default().to_owned();
        let (n, org, why) = (&one["version"], text("org"), text("why"));
        format!("  version {n} of {org} is not taken: {why}")
    };
    list(region, "unverified").iter().map(line).collect()
}

/// The organisations that a region cannot take for another fault, a line each.
pub fn untaken(region: &Value) -> Vec<String> {
    let line = |one: &Value| {
        let text = |key: &str| one[key].as_str().unwrap_or_default().to_owned();
        let (org, why) = (text("org"), text("why"));
        format!("  {org} is not taken, and is tried again: {why}")
    };
    list(region, "untaken").iter().map(line).collect()
}

/// What an organisation's new home does not have.
pub fn frozen(one: &Value) -> Option<String> {
    let regions = [list(one, "frozen"), list(one, "regions")].concat();
    let regions: Vec<&str> = regions.iter().filter_map(Value::as_str).collect();
    let regions = shown(&regions.join(", "));
    (!regions.is_empty()).then(|| {
        format!(
            "  {}: what {regions} alone keeps is frozen: it is served there as it is, and cannot \
             be changed until it has come here",
            name(one)
        )
    })
}
