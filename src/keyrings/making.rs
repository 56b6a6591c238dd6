//! The two files of a region's keys: made together, or the second one anew from the first.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use clap::Args;
use proto::seal::{DigestKey, Keyring, PublicKeyring};
use proto::signature::SigningRing;
use zeroize::Zeroizing;

use super::{missing, parsed, unusable};
use crate::cli::Output;
use crate::private_file;
use crate::say;
use crate::serve::CannotStart;

/// Why a file is not written over.
const TAKEN: &str = "it is there already; secrets sealed to it could never be opened again";

/// Arguments of `keyring new`.
#[derive(Debug, Args)]
pub struct KeyringNewArgs {
    /// Name of the region.
    #[arg(long, default_value = "local")]
    pub region: String,
    /// A key ring file of another region of the installation: callers' keys then hold in both.
    #[arg(long, value_name = "FILE")]
    pub join: Option<PathBuf>,
    /// The file for nodes: it opens every secret of the region.
    #[arg(long)]
    pub nodes: PathBuf,
    /// The file for control planes: it seals secrets and opens none.
    #[arg(long)]
    pub control: PathBuf,
    /// How to say what was made.
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
}

/// Arguments of `keyring public`.
#[derive(Debug, Args)]
pub struct KeyringPublicArgs {
    /// The region's file for nodes.
    #[arg(long)]
    pub nodes: PathBuf,
    /// The file for control planes, which is made.
    #[arg(long)]
    pub control: PathBuf,
    /// What control planes of the region sign versions with, where they do: its public halves
    /// belong into the file.
    #[arg(long)]
    pub signing: Option<PathBuf>,
    /// How to say what was made.
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
}

/// Runs `requestrocket keyring new`.
pub(super) fn new(args: &KeyringNewArgs) -> anyhow::Result<()> {
    if args.nodes.exists() {
        let why = match args.control.exists() {
            true => TAKEN.to_owned(),
            false => format!(
                "{TAKEN}. `requestrocket keyring public` makes the file for control planes from it"
            ),
        };
        return Err(unusable(&args.nodes, why).into());
    }
    if args.control.exists() {
        return Err(unusable(&args.control, TAKEN).into());
    }
    let ring = match &args.join {
        Some(other) => Keyring::generate_with(&*args.region, digest_key_of(other, &args.region)?),
        None => Keyring::generate(&*args.region),
    };
    let json = ring.to_json();
    Keyring::parse(json.as_bytes()).map_err(|error| CannotStart(error.to_string()))?;
    let public = ring
        .public_half()
        .ok_or_else(|| CannotStart("the ring is empty".into()))?;
    create(&args.nodes, &json, TAKEN)?;
    if let Err(error) = create(
        &args.control,
        &public.to_json(),
        "it is the file for nodes too",
    ) {
        // Nothing was sealed to it, and the next try is to find the place free.
        let _ = std::fs::remove_file(&args.nodes);
        return Err(error);
    }
    tell(args.output, &args.region, &args.nodes, &args.control);
    Ok(())
}

/// Runs `requestrocket keyring public`.
pub(super) fn public(args: &KeyringPublicArgs) -> anyhow::Result<()> {
    let path = &args.nodes;
    let ring = parsed(path, Keyring::parse)?.ok_or_else(|| missing(path, "keys.ring_file"))?;
    let half = ring.public_half();
    let mut half = half.ok_or_else(|| unusable(path, "it has no key"))?;
    if let Some(path) = &args.signing {
        let signing = parsed(path, SigningRing::parse)?;
        let signing = signing.ok_or_else(|| unusable(path, "it is not there"))?;
        if signing.region != ring.region {
            let why = format!("it is of region {}, not {}", signing.region, ring.region);
            return Err(unusable(path, why).into());
        }
        half.signers = signing.verifying();
    }
    let taken = "it is there already, and is not overwritten";
    create(&args.control, &half.to_json(), taken)?;
    tell(args.output, &ring.region, &args.nodes, &args.control);
    Ok(())
}

/// Says what was made to a program; a person sees it in the folder.
fn tell(output: Output, region: &str, nodes: &Path, control: &Path) {
    if output == Output::Json {
        let made = serde_json::json!({"region": region, "nodes": nodes, "control": control});
        say(&made.to_string());
    }
}

/// Writes a file where there is none; `taken` says why none is written over.
fn create(path: &Path, json: &str, taken: &str) -> anyhow::Result<()> {
    let written = proto::private_file::create(path, json.as_bytes());
    Ok(written.map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => unusable(path, taken),
        _ => unusable(path, error),
    })?)
}

/// The digest key of an installation, from either file of one of its regions.
fn digest_key_of(path: &Path, joining: &str) -> anyhow::Result<DigestKey> {
    let found = private_file::read(path).map_err(|error| unusable(path, error))?;
    let text = Zeroizing::new(found.ok_or_else(|| unusable(path, "it is not there"))?);
    let (region, digest_key) = match PublicKeyring::parse(text.as_bytes()) {
        Ok(ring) => (ring.public.region.clone(), ring.digest_key),
        Err(_) => {
            let ring = Keyring::parse(text.as_bytes()).map_err(|error| unusable(path, error))?;
            (ring.region.clone(), ring.digest_key)
        }
    };
    match region == joining {
        false => Ok(digest_key),
        true => Err(unusable(path, "it is of the same region: a new one needs `--region`").into()),
    }
}
