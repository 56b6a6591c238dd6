//! `requestrocket regions`: which region is home, and how far the others have come.

use clap::Args;
use serde_json::Value;

use super::Api;
use crate::cli::{ControlArgs, Output};
use crate::say;

/// Arguments of `regions`.
#[derive(Debug, Args)]
pub struct RegionsArgs {
    /// How to show them.
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
    /// Where the control plane is.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// Lists the regions.
///
/// # Errors
/// What the control plane said.
pub async fn list(args: &RegionsArgs) -> anyhow::Result<()> {
    let api = Api::new(&args.control)?;
    let found = api.get_absolute("/regions").await?;
    if args.output == Output::Json {
        say(&found.to_string());
        return Ok(());
    }
    let items = found["items"].as_array().cloned().unwrap_or_default();
    let lines: Vec<String> = items.iter().map(line).collect();
    say(&lines.join("\n"));
    Ok(())
}

fn line(region: &Value) -> String {
    let text = |key: &str| region[key].as_str().unwrap_or("-").to_owned();
    let role = match region["home"].as_bool() {
        Some(true) => "home",
        _ => "follower",
    };
    let own = match region["own"].as_bool() {
        Some(true) => "*",
        _ => " ",
    };
    let line = format!("{own} {:16} {role:10} {:32}", text("name"), text("gateway"));
    format!("{line} {}", replication(&region["replication"]))
        .trim_end()
        .to_owned()
}

fn replication(told: &Value) -> String {
    if told.is_null() {
        return String::new();
    }
    let mut words = Vec::new();
    words.push(match told["connected"].as_bool() {
        Some(true) => "connected".to_owned(),
        _ => "not connected".to_owned(),
    });
    if let Some(versions) = told["lag_versions"].as_u64() {
        words.push(format!("{versions} versions behind"));
    }
    if let Some(seconds) = told["lag_seconds"].as_f64() {
        words.push(format!("current {seconds:.1} s ago"));
    }
    let diverged = told["diverged"].as_array().map_or(0, Vec::len);
    if diverged > 0 {
        words.push(format!("{diverged} organisations diverged"));
    }
    if let Some(error) = told["error"].as_str() {
        words.push(error.to_owned());
    }
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_region_is_a_line() {
        let home = json!({"name": "us", "own": false, "home": true, "gateway": "http://us"});
        assert!(line(&home).starts_with("  us"), "{}", line(&home));
        assert!(line(&home).contains("home"));
        let follower = json!({
            "name": "eu", "own": true, "home": false, "gateway": null,
            "replication": {"connected": false, "lag_versions": 3, "lag_seconds": 1.25,
                            "diverged": ["org_1"], "error": "home: refused"},
        });
        let shown = line(&follower);
        assert!(shown.starts_with("* eu"), "{shown}");
        let expected = "not connected, 3 versions behind, current 1.2 s ago, \
                        1 organisations diverged, home: refused";
        assert!(shown.ends_with(expected), "{shown}");
    }
}
