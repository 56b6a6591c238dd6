//! A newer key for a region's secrets, and the end of an older one.
//!
//! In this order: the newer key into the file for nodes, on every node; then into the file that
//! control planes seal by, here and in the other regions. Nodes seal anew what is there meanwhile,
//! and the older key goes when nothing is sealed to it any more.

use std::path::PathBuf;

use clap::Args;
use proto::seal::{Keyring, PublicKeyring};
use serde_json::json;

use super::{missing, parsed, unusable, write};
use crate::cli::Output;
use crate::say;

/// Arguments of `keyring rotate`.
#[derive(Debug, Args)]
pub struct KeyringRotateArgs {
    /// The region's file for nodes: it gets a newer key, and keeps those that it has.
    #[arg(long)]
    pub nodes: PathBuf,
    /// How to say what was made.
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
}

/// Arguments of `keyring publish`.
#[derive(Debug, Args)]
pub struct KeyringPublishArgs {
    /// The region's file for nodes, which all of them have by now.
    #[arg(long)]
    pub nodes: PathBuf,
    /// The file that control planes have: what they seal to becomes the newest key. What versions
    /// are signed with stays.
    #[arg(long)]
    pub control: PathBuf,
    /// How to say what was done.
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
}

/// Arguments of `keyring forget`.
#[derive(Debug, Args)]
pub struct KeyringForgetArgs {
    /// The older key, as `keyring show` names it.
    pub key: String,
    /// The region's file for nodes.
    #[arg(long)]
    pub nodes: PathBuf,
    /// How to say what was done.
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
}

/// Runs `requestrocket keyring rotate`.
pub(super) fn rotate(args: &KeyringRotateArgs) -> anyhow::Result<()> {
    let path = &args.nodes;
    let mut ring = parsed(path, Keyring::parse)?.ok_or_else(|| missing(path, "keys.ring_file"))?;
    let Some(pair) = ring.rotate() else {
        let why = "it has as many keys as it may have: `requestrocket keyring forget` those that \
                   nothing is sealed to";
        return Err(unusable(path, why).into());
    };
    let key = pair.id().to_owned();
    let (region, json) = (ring.region.clone(), ring.to_json());
    // What cannot be read again would end every node that starts.
    Keyring::parse(json.as_bytes()).map_err(|error| unusable(path, error))?;
    write(path, &json)?;
    let older: Vec<&str> = ring.ids().skip(1).collect();
    say(&match args.output {
        Output::Json => json!({"region": region, "key": key, "older": older}).to_string(),
        Output::Text => format!(
            "{} has key {key} of region {region} now. Give the file to every node and restart \
             them, one after the other; then `requestrocket keyring publish` puts the key into \
             the file of control planes",
            path.display()
        ),
    });
    Ok(())
}

/// Runs `requestrocket keyring publish`.
pub(super) fn publish(args: &KeyringPublishArgs) -> anyhow::Result<()> {
    let (path, control) = (&args.nodes, &args.control);
    let ring = parsed(path, Keyring::parse)?.ok_or_else(|| missing(path, "keys.ring_file"))?;
    let public = parsed(control, PublicKeyring::parse)?;
    let mut public = public.ok_or_else(|| missing(control, "keys.public_file"))?;
    if public.public.region != ring.region {
        let why = format!(
            "it is of region {}, and {} of region {}",
            public.public.region,
            path.display(),
            ring.region
        );
        return Err(unusable(control, why).into());
    }
    if public.digest_key != ring.digest_key {
        let why = format!("it is of another installation than {}", path.display());
        return Err(unusable(control, why).into());
    }
    public.public = ring
        .public()
        .ok_or_else(|| unusable(path, "it has no key"))?;
    write(control, &public.to_json())?;
    let (region, key) = (&public.public.region, &public.public.key_id);
    let fingerprint = public.public.fingerprint();
    say(&match args.output {
        Output::Json => {
            json!({"region": region, "key": key, "fingerprint": fingerprint}).to_string()
        }
        Output::Text => format!(
            "control planes with {} seal to key {key} of region {region} from their next start \
             on, fingerprint\n  {fingerprint}",
            control.display()
        ),
    });
    Ok(())
}

/// Runs `requestrocket keyring forget`.
pub(super) fn forget(args: &KeyringForgetArgs) -> anyhow::Result<()> {
    let (path, key) = (&args.nodes, &args.key);
    let mut ring = parsed(path, Keyring::parse)?.ok_or_else(|| missing(path, "keys.ring_file"))?;
    if ring.ids().next() == Some(key.as_str()) {
        let why = format!("key {key} is the one that seals; `keyring rotate` makes a newer one");
        return Err(unusable(path, why).into());
    }
    if !ring.forget(key) {
        let known: Vec<&str> = ring.ids().collect();
        let why = format!("it has no key {key}, but {}", known.join(", "));
        return Err(unusable(path, why).into());
    }
    write(path, &ring.to_json())?;
    let region = &ring.region;
    say(&match args.output {
        Output::Json => json!({"region": region, "forgotten": key}).to_string(),
        Output::Text => format!(
            "{} opens nothing that is sealed to key {key} of region {region} from the next start \
             of a node on; keep the file of before with backups of the store",
            path.display()
        ),
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_key_is_put_in_and_published_and_an_older_one_taken_out() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let (nodes, control, output) = (at("us.json"), at("us.public.json"), Output::Json);
        let mut first = Keyring::generate("us");
        std::fs::write(&nodes, first.to_json().as_bytes()).unwrap();
        let half = first.public_half().unwrap();
        std::fs::write(&control, half.to_json().as_bytes()).unwrap();
        let ring = || parsed(&nodes, Keyring::parse).unwrap().unwrap();
        let public = || {
            parsed(&control, PublicKeyring::parse)
                .unwrap()
                .unwrap()
                .public
        };
        let old = half.public.key_id.clone();

        let rotated = rotate(&KeyringRotateArgs {
            nodes: nodes.clone(),
            output,
        });
        rotated.unwrap();
        let ids: Vec<String> = ring().ids().map(str::to_owned).collect();
        assert_eq!((ids.len(), &ids[1]), (2, &old));
        assert_eq!(public(), half.public, "control planes come later");
        let publishing = |control: &PathBuf| {
            publish(&KeyringPublishArgs {
                nodes: nodes.clone(),
                control: control.clone(),
                output,
            })
        };
        publishing(&control).unwrap();
        assert_eq!(public(), ring().public().unwrap());

        for (ring, why) in [
            (Keyring::generate("us"), "another installation"),
            (Keyring::generate("eu"), "it is of region eu"),
        ] {
            let other = at("other");
            let half = ring.public_half().unwrap();
            std::fs::write(&other, half.to_json().as_bytes()).unwrap();
            let said = publishing(&other).unwrap_err().to_string();
            assert!(said.contains(why), "{said}");
        }

        let forgetting = |key: &str| {
            forget(&KeyringForgetArgs {
                key: key.to_owned(),
                nodes: nodes.clone(),
                output,
            })
        };
        for (key, why) in [(&*ids[0], "the one that seals"), ("x", "it has no key x")] {
            let said = forgetting(key).unwrap_err().to_string();
            assert!(said.contains(why), "{said}");
        }
        forgetting(&old).unwrap();
        assert_eq!(ring().ids().collect::<Vec<_>>(), [&*ids[0]]);
        while first.rotate().is_some() {}
        std::fs::write(&nodes, first.to_json().as_bytes()).unwrap();
        let full = rotate(&KeyringRotateArgs {
            nodes: nodes.clone(),
            output,
        });
        assert!(full.unwrap_err().to_string().contains("as many keys"));
    }
}
