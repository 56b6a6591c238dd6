//! The files with a region's keys: one for nodes, which open secrets, one for control planes,
//! which only seal them.

use std::path::{Path, PathBuf};

use proto::seal::{Keyring, PublicKeyring};
use zeroize::Zeroizing;

use crate::cli::{KeyringNewArgs, Output};
use crate::private_file;
use crate::say;
use crate::serve::CannotStart;
use crate::settings::Settings;

/// Where the key ring of nodes is.
fn ring_file(settings: &Settings) -> PathBuf {
    let given = settings.keys.ring_file.clone();
    given.unwrap_or_else(|| settings.data_dir.join("keyring.json"))
}

/// Reads the key ring, or makes one at the first start of a single machine.
///
/// # Errors
/// [`CannotStart`]: it cannot be read, or is of another region.
pub fn own(settings: &Settings) -> anyhow::Result<Keyring> {
    let path = ring_file(settings);
    match read(&path, settings)? {
        Some(ring) => Ok(ring),
        None => {
            let ring = Keyring::generate(&*settings.region);
            write(&path, &ring.to_json())?;
            // What cannot be read again must not be used either.
            read(&path, settings)?.ok_or_else(|| unusable(&path, "it is gone").into())
        }
    }
}

/// Reads the key ring of a node in a cluster.
///
/// # Errors
/// [`CannotStart`]: it is not there, cannot be read, or is of another region.
pub fn of_node(settings: &Settings) -> anyhow::Result<Keyring> {
    let path = ring_file(settings);
    read(&path, settings)?.ok_or_else(|| missing(&path, "keys.ring_file").into())
}

/// Reads what a control plane in a cluster has of it.
///
/// # Errors
/// As for [`of_node`].
pub fn of_control(settings: &Settings) -> anyhow::Result<PublicKeyring> {
    let path = settings.keys.public_file.clone();
    let path = path.unwrap_or_else(|| settings.data_dir.join("keyring.public.json"));
    let found = private_file::read(&path).map_err(|error| unusable(&path, error))?;
    let text = Zeroizing::new(found.ok_or_else(|| missing(&path, "keys.public_file"))?);
    let ring = PublicKeyring::parse(text.as_bytes()).map_err(|error| unusable(&path, error))?;
    check_region(&path, &ring.public.region, settings)?;
    Ok(ring)
}

/// Runs `requestrocket keyring new`.
///
/// # Errors
/// A file is there already or cannot be written, or the region has no name that can be used.
pub fn new(args: &KeyringNewArgs) -> anyhow::Result<()> {
    for path in [&args.nodes, &args.control] {
        if path.exists() {
            let why = "it is there already; secrets sealed to it could never be opened again";
            return Err(unusable(path, why).into());
        }
    }
    let ring = Keyring::generate(&*args.region);
    let json = ring.to_json();
    Keyring::parse(json.as_bytes()).map_err(|error| CannotStart(error.to_string()))?;
    let public = ring
        .public_half()
        .ok_or_else(|| CannotStart("the ring is empty".into()))?;
    write(&args.nodes, &json)?;
    write(&args.control, &public.to_json())?;
    if args.output == Output::Json {
        let made = serde_json::json!({"region": args.region, "nodes": args.nodes,
                                      "control": args.control});
        say(&made.to_string());
    }
    Ok(())
}

fn read(path: &Path, settings: &Settings) -> anyhow::Result<Option<Keyring>> {
    let found = private_file::read(path).map_err(|error| unusable(path, error))?;
    let Some(text) = found.map(Zeroizing::new) else {
        return Ok(None);
    };
    let ring = Keyring::parse(text.as_bytes()).map_err(|error| unusable(path, error))?;
    check_region(path, &ring.region, settings)?;
    Ok(Some(ring))
}

fn check_region(path: &Path, region: &str, settings: &Settings) -> anyhow::Result<()> {
    if region == settings.region {
        return Ok(());
    }
    let why = format!("it is of region {region}, not {}", settings.region);
    Err(unusable(path, why).into())
}

fn write(path: &Path, json: &str) -> anyhow::Result<()> {
    let written = private_file::write(path, json.as_bytes());
    Ok(written.map_err(|error| unusable(path, error))?)
}

fn unusable(path: &Path, reason: impl std::fmt::Display) -> CannotStart {
    CannotStart(format!(
        "the key ring {} cannot be used: {reason}",
        path.display()
    ))
}

fn missing(path: &Path, setting: &str) -> CannotStart {
    CannotStart(format!(
        "there is no key ring {} (`{setting}`); make one with `requestrocket keyring new`",
        path.display()
    ))
}
