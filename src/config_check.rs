//! `requestrocket config check`: whether a process could start with a file of settings. Everything
//! is looked at that a start looks at, but addresses are not bound and servers not asked.

use proto::seal::Keyring;
use serde_json::json;

use crate::cli::{ConfigCheckArgs, Output};
use crate::handover::Role;
use crate::roles::{control, node};
use crate::serve::{self, CannotStart};
use crate::settings::Settings;
use crate::{bootstrap, keyrings, preflight, regions, say};

/// Says that it could.
///
/// # Errors
/// The first thing that is wrong.
pub async fn run(args: &ConfigCheckArgs) -> anyhow::Result<()> {
    let settings = serve::settings_of(args.role, Some(&args.file))?;
    check(args.role, &settings).map_err(|error| CannotStart(format!("{error:#}")))?;
    let command = args.role.command();
    let warnings: Vec<String> = match args.role {
        Role::Control => regions::warnings(&settings).collect(),
        _ => Vec::new(),
    };
    say(&match args.output {
        Output::Json => {
            let mut told = json!({"file": args.file, "role": command});
            if !warnings.is_empty() {
                told["warnings"] = json!(warnings);
            }
            told.to_string()
        }
        Output::Text => {
            let mut text = format!(
                "`requestrocket {command}` can use the settings of {}",
                args.file.display()
            );
            for warning in &warnings {
                text.push_str("\nwarning: ");
                text.push_str(warning);
            }
            text
        }
    });
    Ok(())
}

fn check(role: Role, settings: &Settings) -> anyhow::Result<()> {
    if role != Role::Node {
        bootstrap::given(&settings.control)?;
        serve::check_control(settings)?;
    }
    match role {
        Role::Dev | Role::Standalone => {
            let existing = keyrings::existing(settings)?;
            // What the first start will make.
            let ring = existing.unwrap_or_else(|| Keyring::generate(&*settings.region));
            let keys = ring.public_half();
            let keys = keys.ok_or_else(|| CannotStart("the key ring has no key".into()))?;
            preflight::of_single(settings, &keys, Vec::new())
        }
        Role::Node => {
            keyrings::of_node(settings)?;
            node::check_endpoints(settings)?;
            preflight::of_node(settings, Vec::new())
        }
        Role::Control => {
            let keys = keyrings::of_control(settings)?;
            control::gateway_url(settings)?;
            preflight::of_control(settings, &keys)
        }
    }
}
