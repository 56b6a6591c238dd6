//! Values of settings that are seen to be wrong before anything is opened or written.

use proto::seal::is_region_name;
use proto::target::BaseUrl;

use crate::logging;
use crate::settings::{Settings, SettingsError};

/// Looks at every value that could be read and still cannot be meant.
///
/// # Errors
/// The first one that is wrong.
pub fn check(settings: &Settings) -> Result<(), SettingsError> {
    let wrong = |key, value: &str, why: &str| {
        Err(SettingsError::Value {
            key,
            value: value.to_owned(),
            why: why.to_owned(),
        })
    };
    if !is_region_name(&settings.region) {
        let why = "a name of a region is 1 to 40 characters of a-z, 0-9 and `-`";
        return wrong("region", &settings.region, why);
    }
    if let Some(url) = &settings.gateway.public_url
        && let Err(why) = BaseUrl::parse(url)
    {
        // What stands before an @ may be a password.
        let shown = if url.contains('@') { "…" } else { url };
        let why = format!("it {why}: write it like https://gw.example.com");
        return wrong("gateway.public_url", shown, &why);
    }
    let mut problems = Vec::new();
    proto::checks::slug(&settings.gateway.default_org, "", &mut problems);
    if let Some(problem) = problems.first() {
        return wrong(
            "gateway.default_org",
            &settings.gateway.default_org,
            &problem.detail,
        );
    }
    if let Some((key, why)) = zero(settings) {
        return wrong(key, "0", why);
    }
    match logging::check(&settings.log) {
        Ok(()) => Ok(()),
        Err(why) => wrong("log.filter", &settings.log.filter, &why),
    }
}

/// The first setting that is 0 and with that lets nothing work, with why.
fn zero(settings: &Settings) -> Option<(&'static str, &'static str)> {
    let gateway = &settings.gateway;
    let every = "every request would be refused; leave it out for the default";
    let rows = [
        (
            "gateway.requests_in_flight_max",
            gateway.requests_in_flight_max == 0,
            every,
        ),
        (
            "gateway.mailbox_capacity",
            gateway.mailbox_capacity == 0,
            every,
        ),
        (
            "gateway.connections_max",
            gateway.connections_max == 0,
            every,
        ),
        ("gateway.head_bytes_max", gateway.head_bytes_max == 0, every),
        (
            "gateway.head_timeout_ms",
            gateway.head_timeout_ms == 0,
            every,
        ),
        (
            "gateway.body_idle_timeout_ms",
            gateway.body_idle_timeout_ms == 0,
            every,
        ),
        (
            "limits.nodes",
            settings.limits.nodes == 0,
            "at least one node spends of the limits",
        ),
        (
            "history.store_versions",
            settings.history.store_versions == 0,
            "the version in force stays in the store",
        ),
        (
            "records.retention_days",
            settings.records.enabled && settings.records.retention_days == 0,
            "every record would go at once; set `records.enabled = false` to keep none",
        ),
    ];
    let found = rows.into_iter().find(|(_, is_zero, _)| *is_zero);
    found.map(|(key, _, why)| (key, why))
}
