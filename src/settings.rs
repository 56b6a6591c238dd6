//! Boot settings: defaults, then the TOML file, then the environment, then flags.
//!
//! Unknown keys are errors that name the nearest known one. `reference.toml` beside this file is
//! the documentation of every key; a test compares it with the defaults below.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use node::config::{DialGuardSettings, GatewaySettings};
use serde::{Deserialize, Serialize};

use crate::control_settings::ControlSettings;
use crate::otlp::OtlpSettings;
use crate::otlp::metrics::MetricsSettings;
use crate::permissions::{EgressSettings, PolicySettings};
use crate::record_store::RecordsSettings;
use crate::regions::RegionsSettings;
use crate::setting_faults;
use crate::setting_values;
use crate::stores::StoreSettings;
use crate::traces::TraceSettings;

/// Every key with its default, unit and meaning.
pub const REFERENCE: &str = include_str!("reference.toml");

/// All boot settings.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Where configuration, records and keys are kept.
    pub data_dir: PathBuf,
    /// The name of this region.
    pub region: String,
    /// The name of this node in records; the host's name when absent.
    pub node_name: Option<String>,
    /// The callers' listener.
    pub gateway: GatewaySettings,
    /// The control plane's listener.
    pub control: ControlSettings,
    /// The operator's listener.
    pub admin: AdminSettings,
    /// Where configuration and tokens are.
    pub store: StoreSettings,
    /// Files with the region's keys.
    pub keys: KeySettings,
    /// The connection between nodes and control planes.
    pub link: LinkSettings,
    /// The links between nodes.
    pub peers: PeerSettings,
    /// The regions of the installation.
    pub regions: RegionsSettings,
    /// Rate limits.
    pub limits: LimitSettings,
    /// Which addresses that are not public tenants may ask for.
    pub dial_guard: DialGuardSettings,
    /// How targets are reached.
    pub egress: EgressSettings,
    /// What tenants may ask for at all.
    pub policy: PolicySettings,
    /// Records of requests.
    pub records: RecordsSettings,
    /// Versions of configurations.
    pub history: HistorySettings,
    /// The collector of traces, metrics and log lines.
    pub otlp: OtlpSettings,
    /// Traces of requests.
    pub traces: TraceSettings,
    /// Metrics over OTLP.
    pub metrics: MetricsSettings,
    /// Log lines.
    pub log: LogSettings,
}

/// The operator's listener: `/healthz`, `/readyz` and `/metrics` without a token.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdminSettings {
    /// Address to listen on; none when absent. Whoever reaches it reads the metrics.
    pub listen: Option<SocketAddr>,
}

/// Files with the region's keys.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KeySettings {
    /// The key ring of nodes; `keyring.json` in `data_dir` when absent.
    pub ring_file: Option<PathBuf>,
    /// What control planes have of it; `keyring.public.json` in `data_dir` when absent.
    pub public_file: Option<PathBuf>,
    /// What control planes of the region sign versions with.
    pub signing_file: Option<PathBuf>,
}

/// The connection between nodes and control planes.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LinkSettings {
    /// Where a control plane takes records of nodes.
    pub listen: Option<SocketAddr>,
    /// Where a node finds control planes, `host:port` each.
    pub endpoints: Vec<String>,
    /// A PEM file with our certificate; that of a node names it (`node_name`).
    pub cert_file: Option<PathBuf>,
    /// A PEM file with its key.
    pub key_file: Option<PathBuf>,
    /// A PEM file with the authorities that the other side's certificate comes from.
    pub ca_file: Option<PathBuf>,
}

/// The links between nodes.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PeerSettings {
    /// Address that the other nodes of the region connect to; without it the node has no links.
    pub listen: Option<SocketAddr>,
    /// What they dial, `host:port`; the address that is listened on when absent.
    pub advertise: Option<String>,
}

/// Rate limits.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitSettings {
    /// The least number of nodes that is assumed while the store cannot be reached, and where large
    /// reads of it are spread.
    pub nodes: u32,
    /// Keys that all nodes together write in a second, at most.
    pub max_key_writes: u64,
}

impl Default for LimitSettings {
    fn default() -> Self {
        Self {
            nodes: 1,
            max_key_writes: 1_000,
        }
    }
}

/// Versions of configurations, on control planes.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HistorySettings {
    /// Newest versions of an organisation that stay in the store, at least 1.
    pub store_versions: u64,
    /// Most older versions of an organisation in the archive.
    pub archive_versions: u64,
    /// How long they are kept there, in days.
    pub archive_days: u32,
    /// Seconds between two rounds that archive versions and sweep the store.
    pub sweep_s: u64,
}

impl Default for HistorySettings {
    fn default() -> Self {
        Self {
            store_versions: 20,
            archive_versions: 1_000,
            archive_days: 90,
            sweep_s: 60,
        }
    }
}

/// Log lines.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogSettings {
    /// `text` or `json`.
    pub format: LogFormat,
    /// What is logged, as in `info,node=debug`.
    pub filter: String,
    /// Log a line for each request, whatever `filter` says.
    pub requests: bool,
    /// Whether lines go to a collector too, where there is one.
    pub export: bool,
    /// Their collector, where it is another one than that of all signals.
    pub endpoint: Option<String>,
}

/// The form of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self {
            format: LogFormat::Text,
            filter: "info".into(),
            requests: false,
            export: true,
            endpoint: None,
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("./.requestrocket"),
            region: "local".into(),
            node_name: None,
            gateway: GatewaySettings::default(),
            control: ControlSettings::default(),
            admin: AdminSettings::default(),
            store: StoreSettings::default(),
            keys: KeySettings::default(),
            link: LinkSettings::default(),
            peers: PeerSettings::default(),
            regions: RegionsSettings::default(),
            limits: LimitSettings::default(),
            dial_guard: DialGuardSettings::default(),
            egress: EgressSettings::default(),
            policy: PolicySettings::default(),
            records: RecordsSettings::default(),
            history: HistorySettings::default(),
            otlp: OtlpSettings::default(),
            traces: TraceSettings::default(),
            metrics: MetricsSettings::default(),
            log: LogSettings::default(),
        }
    }
}

/// Settings that cannot be used: one clear line, exit code 2.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file cannot be read or is not TOML, or a value has a wrong type.
    #[error("{0}")]
    Unreadable(String),
    /// A key that does not exist.
    #[error("unknown setting `{key}`{hint}; `requestrocket config reference` prints every setting")]
    UnknownKey {
        /// The key with its tables.
        key: String,
        /// `: did you mean …?`, or nothing.
        hint: String,
    },
    /// A value that cannot be.
    #[error("`{key}` is `{value}`: {why}")]
    Value {
        /// The key with its tables.
        key: &'static str,
        /// What it is set to.
        value: String,
        /// What it may be.
        why: String,
    },
}

/// The environment's part: `REQUESTROCKET_GATEWAY__LISTEN` is `gateway.listen`.
const ENVIRONMENT_PREFIX: &str = "REQUESTROCKET";
/// Variables that begin like settings but are arguments of client commands or of `dev`.
const NOT_SETTINGS: [&str; 6] = [
    "REQUESTROCKET_CA_FILE",
    "REQUESTROCKET_ADMIN_TOKEN",
    "REQUESTROCKET_ADMIN_TOKEN_FILE",
    "REQUESTROCKET_TOKEN",
    "REQUESTROCKET_CONTROL_URL",
    "REQUESTROCKET_ORG",
];

impl Settings {
    /// How this process is named: `node_name`, or the host's name.
    pub fn name(&self) -> String {
        let host = || {
            let name = std::fs::read_to_string("/proc/sys/kernel/hostname");
            name.map_or_else(|_| "node".to_owned(), |name| name.trim().to_owned())
        };
        self.node_name.clone().unwrap_or_else(host)
    }
}

/// Reads the settings from a file and an environment.
///
/// # Errors
/// What is wrong, and where.
pub fn load(
    base: &Settings,
    file: Option<&Path>,
    environment: impl Iterator<Item = (String, String)>,
) -> Result<Settings, SettingsError> {
    let unreadable = |error| SettingsError::Unreadable(setting_faults::told(&error, None));
    let defaults = config::Config::try_from(base).map_err(unreadable)?;
    let environment: std::collections::HashMap<String, String> = environment
        .filter(|(name, _)| !NOT_SETTINGS.contains(&name.as_str()))
        .collect();
    let mut builder = config::Config::builder();
    if let Some(path) = file {
        if !path.exists() {
            let text = format!("config file {} does not exist", path.display());
            return Err(SettingsError::Unreadable(text));
        }
        builder = builder.add_source(config::File::from(path).format(config::FileFormat::Toml));
    }
    let given = builder
        .add_source(
            config::Environment::with_prefix(ENVIRONMENT_PREFIX)
                .prefix_separator("_")
                .separator("__")
                .try_parsing(true)
                .source(Some(environment)),
        )
        .build()
        .map_err(unreadable)?;
    let keys: serde_json::Value = given.clone().try_deserialize().map_err(unreadable)?;
    refuse_unknown(&keys, &serde_json::json!(base), "")?;
    let merged = config::Config::builder()
        .add_source(defaults)
        .add_source(given)
        .build()
        .map_err(unreadable)?;
    let values = merged.clone().try_deserialize().ok();
    let settings = merged.try_deserialize().map_err(|error| {
        SettingsError::Unreadable(setting_faults::told(&error, values.as_ref()))
    })?;
    setting_values::check(&settings)?;
    Ok(settings)
}

/// Compares the given keys with the known ones, table by table.
fn refuse_unknown(
    given: &serde_json::Value,
    known: &serde_json::Value,
    path: &str,
) -> Result<(), SettingsError> {
    let (Some(given), Some(known)) = (given.as_object(), known.as_object()) else {
        return Ok(());
    };
    for (key, value) in given {
        let full = if path.is_empty() {
            key.clone()
        } else {
            format!("{path}.{key}")
        };
        match known.get(key) {
            Some(inner) => refuse_unknown(value, inner, &full)?,
            None => {
                let hint = nearest(key, known.keys())
                    .map(|name| format!(": did you mean `{name}`?"))
                    .unwrap_or_default();
                return Err(SettingsError::UnknownKey { key: full, hint });
            }
        }
    }
    Ok(())
}

/// The known name that differs least, where it does not differ in more than a third.
fn nearest<'k>(key: &str, known: impl Iterator<Item = &'k String>) -> Option<&'k String> {
    known
        .map(|name| (distance(key, name), name))
        .min()
        .filter(|(distance, name)| *distance <= name.len().max(key.len()) / 3 + 1)
        .map(|(_, name)| name)
}

/// Levenshtein's distance.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in other.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(toml: &str, environment: &[(&str, &str)]) -> Result<Settings, SettingsError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        std::fs::write(&path, toml).unwrap();
        let environment = environment
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        load(&Settings::default(), Some(&path), environment)
    }

    #[test]
    fn later_sources_win() {
        let settings = with(
            "region = \"eu\"\n[gateway]\nlisten = \"127.0.0.1:1\"\nkeep_alive_ms = 5",
            &[
                ("REQUESTROCKET_GATEWAY__LISTEN", "127.0.0.1:2"),
                ("REQUESTROCKET_ADMIN_TOKEN", "not a setting"),
                ("REQUESTROCKET_POLICY__ALLOW_HTTP", "true"),
            ],
        )
        .unwrap();
        assert_eq!(settings.region, "eu");
        assert_eq!(settings.gateway.listen.port(), 2);
        assert_eq!(settings.gateway.keep_alive_ms, 5);
        assert!(settings.policy.allow_http);
        assert_eq!(settings.gateway.mailbox_capacity, 1_024, "defaults stay");
    }

    #[test]
    fn mistakes_are_named() {
        for (toml, environment, expected) in [
            ("gatway = 1", None, "`gatway`: did you mean `gateway`?"),
            (
                "[gateway]\nlistn = 1",
                None,
                "`gateway.listn`: did you mean `listen`?",
            ),
            ("[gateway]\nzzzzzzzz = 1", None, "`gateway.zzzzzzzz`;"),
            (
                "",
                Some("REQUESTROCKET_GATEWAY__LISTN"),
                "`gateway.listn`: did you mean",
            ),
            ("[gateway]\nlisten = 7", None, "listen"),
            ("[gateway", None, "config.toml"),
            (
                "[[dial_guard.permit]]\nnetwork = \"10.0.0.0/8\"",
                None,
                "orgs",
            ),
            (
                "[egress]\ntls_exceptions = [\"https://a.example\"]",
                None,
                "`https://a.example` is not a host",
            ),
            (
                "[records]\nstore = \"sqlit\"",
                None,
                "`records.store` is \"sqlit\": unknown variant `sqlit`, expected `sqlite` or",
            ),
            (
                "[gateway]\npublic_url = \"gw.example.com\"",
                None,
                "`gateway.public_url` is `gw.example.com`: it is not a URL",
            ),
            (
                "[gateway]\npublic_url = \"https://gw.example.com?x=1\"",
                None,
                "it holds a query or fragment",
            ),
            (
                "[gateway]\npublic_url = \"https://u:hush-7d1@gw.example.com\"",
                None,
                "`gateway.public_url` is `…`: it holds a user or password",
            ),
            (
                "[gateway]\nrequests_in_flight_max = 0",
                None,
                "`gateway.requests_in_flight_max` is `0`: every request would be refused",
            ),
            (
                "[gateway]\ndefault_org = \"No Slug\"",
                None,
                "`gateway.default_org` is `No Slug`: must be 1 to 40 characters",
            ),
            (
                "[records]\nretention_days = 0",
                None,
                "set `records.enabled = false` to keep none",
            ),
            (
                "[gateway]\nlisten = \"nope\"",
                None,
                "`gateway.listen` is \"nope\": an address is missing: write 127.0.0.1:8080 for",
            ),
            (
                "[gateway]\nlisten = \"localhost:8088\"",
                None,
                "`gateway.listen` is \"localhost:8088\": `localhost` is a name, and an address is \
                 needed: write 127.0.0.1:8088 for",
            ),
            (
                "[gateway]\nlisten = 8088",
                None,
                "`gateway.listen` is 8088: an address is missing: write 127.0.0.1:8088 for",
            ),
            (
                "[control]\nlisten = \"[::1]\"",
                None,
                "`control.listen` is \"[::1]\": it is no address with a port: write 127.0.0.1:8080",
            ),
            (
                "[dial_guard]\npermit = [\"10.0.0.0/8\"]",
                None,
                "`dial_guard.permit[0]` is \"10.0.0.0/8\": write permit = [{ network = ",
            ),
            (
                "[dial_guard]\npermit = \"10.0.0.0/8\"",
                None,
                "`dial_guard.permit` is \"10.0.0.0/8\": write permit = [{ network = ",
            ),
            (
                "[[dial_guard.permit]]\nnetwork = \"10.0.0.0/8\"\nports = \"443\"\norgs = [\"*\"]",
                None,
                "`dial_guard.permit[0].ports` is \"443\": write permit = [{ network = ",
            ),
            (
                "[[dial_guard.permit]]\nnetwork = \"a.example\"\nports = []\norgs = [\"*\"]",
                None,
                "`dial_guard.permit[0].network` is \"a.example\": invalid IP address syntax: write",
            ),
            (
                "[[dial_guard.permit]]\nnetwork = \"10.0.0.0/8\"\nport = [\"1\"]\norgs = [\"*\"]",
                None,
                "unknown field `port`, expected one of `network`, `ports`, `orgs`: write permit =",
            ),
            (
                "[[dial_guard.permit]]\nnetwork = \"10.0.0.0/8\"",
                None,
                "`dial_guard.permit[0].orgs` is missing",
            ),
            (
                "[[dial_guard.permit]]\nnetwork = \"10.0.0.1\"\norgs = []",
                None,
                "`dial_guard.permit[0].network` is \"10.0.0.1\": a network has a length: write \
                 10.0.0.1/32",
            ),
            (
                "region = eu",
                None,
                "config.toml is not valid: TOML parse error at line 1, column 10: string values",
            ),
        ] {
            let environment: Vec<_> = environment.iter().map(|name| (*name, "1")).collect();
            let error = with(toml, &environment).unwrap_err().to_string();
            assert!(error.contains(expected), "{toml:?}: {error}");
        }
    }

    #[test]
    fn the_reference_holds_every_key_with_its_default() {
        let reference: serde_json::Value = config::Config::builder()
            .add_source(config::File::from_str(REFERENCE, config::FileFormat::Toml))
            .build()
            .and_then(config::Config::try_deserialize)
            .unwrap();
        let mut defaults = serde_json::json!(Settings::default());
        drop_nulls(&mut defaults);
        assert_eq!(reference, defaults);
        let optional = [
            "node_name",
            "public_url",
            "hosts_file",
            "admin_token",
            "admin_token_file",
            "operator_token_file",
        ];
        for key in optional {
            assert!(
                REFERENCE.contains(&format!("# {key} = ")),
                "{key} is not documented"
            );
        }
    }

    fn drop_nulls(value: &mut serde_json::Value) {
        if let Some(map) = value.as_object_mut() {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(drop_nulls);
        }
    }
}
