//! Which regions the nodes of this one seal their secrets for: a person says so in the key ring
//! file of nodes, which no control plane can write.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use clap::Args;
use proto::seal::{Keyring, PublicKeyring, RegionPublicKey};
use serde_json::{Value, json};
use tracing::warn;
use zeroize::Zeroizing;

use super::{missing, parsed, ring_file, unusable, write};
use crate::cli::Output;
use crate::private_file;
use crate::say;
use crate::settings::Settings;

/// Arguments of `keyring trust`.
#[derive(Debug, Args)]
pub struct KeyringTrustArgs {
    /// The file for nodes of this region, which lists the key from then on.
    #[arg(long)]
    pub nodes: PathBuf,
    /// The other region's file for control planes.
    #[arg(long, value_name = "FILE")]
    pub region_file: PathBuf,
    /// What its people say that `keyring show` tells them of it; without this it is only said.
    #[arg(long)]
    pub fingerprint: Option<String>,
    /// How to say what was done.
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
}

/// Arguments of `keyring show`.
#[derive(Debug, Args)]
pub struct KeyringShowArgs {
    /// Either file of a region.
    pub file: PathBuf,
    /// How to say it.
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
}

/// Runs `requestrocket keyring trust`.
pub(super) fn trust(args: &KeyringTrustArgs) -> anyhow::Result<()> {
    let path = &args.nodes;
    let mut ring = parsed(path, Keyring::parse)?.ok_or_else(|| missing(path, "keys.ring_file"))?;
    let from = &args.region_file;
    let other = parsed(from, PublicKeyring::parse)?
        .ok_or_else(|| unusable(from, "it is not there; copy it from the other region"))?;
    let (own, region) = (ring.region.clone(), other.public.region.clone());
    if region == own {
        return Err(unusable(from, "it is of the same region, whose nodes need nobody").into());
    }
    if other.digest_key != ring.digest_key {
        let why = "it is of another installation; make it with `requestrocket keyring new --join`";
        return Err(unusable(from, why).into());
    }
    let fingerprint = other.public.fingerprint();
    if let Some(expected) = &args.fingerprint
        && !expected.trim().eq_ignore_ascii_case(&fingerprint)
    {
        let why = format!("its key is {fingerprint}, not the one that was named");
        return Err(unusable(from, why).into());
    }
    let key = other.public.clone();
    let replaced = ring.trust(other.public).filter(|before| *before != key);
    let json = ring.to_json();
    // What cannot be read again would end every node that starts.
    Keyring::parse(json.as_bytes()).map_err(|error| unusable(path, error))?;
    write(path, &json)?;
    if args.output == Output::Json {
        let replaced = replaced.map(|before| before.fingerprint());
        let done = json!({"region": own, "trusts": region, "fingerprint": fingerprint,
                          "replaced": replaced});
        say(&done.to_string());
        return Ok(());
    }
    say(&format!(
        "nodes of region {own} with this file seal their secrets for region {region}, key\n  \
         {fingerprint}\nThat is what `requestrocket keyring show` says of the file in {region}; \
         if not, take it out of `trusted` at once."
    ));
    Ok(())
}

/// Runs `requestrocket keyring show`.
pub(super) fn show(args: &KeyringShowArgs) -> anyhow::Result<()> {
    let path = &args.file;
    let found = private_file::read(path).map_err(|error| unusable(path, error))?;
    let text = Zeroizing::new(found.ok_or_else(|| unusable(path, "it is not there"))?);
    let (public, older, trusted) = match PublicKeyring::parse(text.as_bytes()) {
        Ok(ring) => (Some(ring.public), Vec::new(), Vec::new()),
        Err(_) => {
            let ring = Keyring::parse(text.as_bytes()).map_err(|error| unusable(path, error))?;
            let older: Vec<String> = ring.ids().skip(1).map(str::to_owned).collect();
            (ring.public(), older, ring.trusted.clone())
        }
    };
    let public = public.ok_or_else(|| unusable(path, "it has no key"))?;
    if args.output == Output::Json {
        let trusted: Vec<Value> = trusted.iter().map(named).collect();
        let mut shown = named(&public);
        shown["key"] = json!(public.key_id);
        shown["older"] = json!(older);
        shown["trusted"] = json!(trusted);
        say(&shown.to_string());
        return Ok(());
    }
    say(&format!(
        "region {}, key {}",
        public.region,
        public.fingerprint()
    ));
    if !older.is_empty() {
        say(&format!(
            "seals to key {}, opens what is sealed to {} too",
            public.key_id,
            older.join(", ")
        ));
    }
    for key in &trusted {
        say(&format!(
            "vouches for region {}, key {}",
            key.region,
            key.fingerprint()
        ));
    }
    Ok(())
}

fn named(key: &RegionPublicKey) -> Value {
    json!({"region": key.region, "fingerprint": key.fingerprint()})
}

/// Asks the key ring file of nodes which keys it vouches for, each time anew, so that a person need
/// not restart the nodes. While it cannot be read the last answer stands.
pub fn trusted(settings: &Settings) -> Box<dyn Fn() -> Vec<RegionPublicKey> + Send + Sync> {
    let path = ring_file(settings);
    let last = Mutex::new((Vec::new(), false));
    Box::new(move || {
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        let (keys, failed) = &mut *last;
        match parsed(&path, Keyring::parse) {
            Ok(Some(ring)) => (*keys, *failed) = (ring.trusted.clone(), false),
            // Somebody is putting another one in its place.
            Ok(None) => {}
            Err(error) if !*failed => {
                warn!("{error}; until it can be, the regions that it vouched for are vouched for");
                *failed = true;
            }
            Err(_) => {}
        }
        keys.clone()
    })
}
