//! The files with a region's keys: one for nodes, which open secrets, one for control planes,
//! which only seal them.

mod making;
mod rotating;
mod trust;

use std::fmt::Display;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use proto::seal::{Keyring, PublicKeyring, RegionPublicKey};
use proto::signature::{Signer, SigningRing, VerifyingKey};
use zeroize::Zeroizing;

use self::making::{KeyringNewArgs, KeyringPublicArgs};
use self::rotating::{KeyringForgetArgs, KeyringPublishArgs, KeyringRotateArgs};
pub use self::trust::trusted;
use self::trust::{KeyringShowArgs, KeyringTrustArgs};
use crate::cli::Output;
use crate::private_file;
use crate::say;
use crate::serve::CannotStart;
use crate::settings::Settings;
use crate::stores;

/// The commands about keys.
#[derive(Debug, Subcommand)]
pub enum KeyringCommand {
    /// Make a key ring: a file for the nodes of a region, and one for its control planes.
    New(KeyringNewArgs),
    /// Make the file for control planes anew from that for nodes, where it is lost or was not made.
    Public(KeyringPublicArgs),
    /// Put a newer key into the file for nodes; they seal the region's secrets to it anew.
    Rotate(KeyringRotateArgs),
    /// Put the newest key of the file for nodes into the one that control planes have.
    Publish(KeyringPublishArgs),
    /// Take an older key out of the file for nodes, when nothing is sealed to it any more.
    Forget(KeyringForgetArgs),
    /// Make a key that control planes of a region sign versions with: its public half is added to
    /// the file that control planes of all regions have.
    Signer(KeyringSignerArgs),
    /// Vouch for the key of another region: nodes of this one then seal their secrets for it too.
    Trust(KeyringTrustArgs),
    /// Say which keys a file holds, by what two people compare.
    Show(KeyringShowArgs),
}

impl KeyringCommand {
    /// Runs it.
    ///
    /// # Errors
    /// A file cannot be used or written, or is not what the command is for.
    pub fn run(&self) -> anyhow::Result<()> {
        match self {
            Self::New(args) => making::new(args),
            Self::Public(args) => making::public(args),
            Self::Rotate(args) => rotating::rotate(args),
            Self::Publish(args) => rotating::publish(args),
            Self::Forget(args) => rotating::forget(args),
            Self::Signer(args) => signer(args),
            Self::Trust(args) => trust::trust(args),
            Self::Show(args) => trust::show(args),
        }
    }

    /// The form of its answer.
    pub fn output(&self) -> Output {
        match self {
            Self::New(args) => args.output,
            Self::Public(args) => args.output,
            Self::Rotate(args) => args.output,
            Self::Publish(args) => args.output,
            Self::Forget(args) => args.output,
            Self::Signer(args) => args.output,
            Self::Trust(args) => args.output,
            Self::Show(args) => args.output,
        }
    }
}

/// Arguments of `keyring signer`.
#[derive(Debug, Args)]
pub struct KeyringSignerArgs {
    /// The region's file for control planes, which gets the public half.
    #[arg(long)]
    pub control: PathBuf,
    /// The file of the region's control planes alone: it signs. Where it is there already, the new
    /// key signs from the next start on.
    #[arg(long)]
    pub signing: PathBuf,
    /// How to say what was made.
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
}

/// Where the key ring of nodes is.
fn ring_file(settings: &Settings) -> PathBuf {
    let given = settings.keys.ring_file.clone();
    given.unwrap_or_else(|| settings.data_dir.join("keyring.json"))
}

/// Reads the key ring, or makes one at the first start of a single machine.
///
/// # Errors
/// [`CannotStart`]: it cannot be read, is of another region, or is gone while the store that was
/// filled with it is there.
pub fn own(settings: &Settings) -> anyhow::Result<Keyring> {
    match existing(settings)? {
        Some(ring) => Ok(ring),
        None => {
            // A new ring beside a store that is put back later would open nothing of it.
            stores::not_lost(settings)?;
            let path = ring_file(settings);
            let ring = Keyring::generate(&*settings.region);
            write(&path, &ring.to_json())?;
            // What cannot be read again must not be used either.
            read(&path, settings)?.ok_or_else(|| unusable(&path, "it is gone").into())
        }
    }
}

/// Reads the key ring of a single machine; none before its first start.
///
/// # Errors
/// As for [`own`].
pub fn existing(settings: &Settings) -> anyhow::Result<Option<Keyring>> {
    let path = ring_file(settings);
    let ring = read(&path, settings)?;
    match stores::used_file(settings) {
        Some(store) if ring.is_none() => Err(lost(&path, &store).into()),
        _ => Ok(ring),
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
    let ring =
        parsed(&path, PublicKeyring::parse)?.ok_or_else(|| missing(&path, "keys.public_file"))?;
    check_region(&path, &ring.public.region, settings, "keys.public_file")?;
    Ok(ring)
}

/// Runs `requestrocket keyring signer`.
fn signer(args: &KeyringSignerArgs) -> anyhow::Result<()> {
    let path = &args.control;
    let mut public =
        parsed(path, PublicKeyring::parse)?.ok_or_else(|| missing(path, "keys.public_file"))?;
    let region = public.public.region.clone();
    let mut ring = match parsed(&args.signing, SigningRing::parse)? {
        None => SigningRing::empty(&*region),
        Some(ring) if ring.region == region => ring,
        Some(ring) => {
            let why = format!("it is of region {}, not {region}", ring.region);
            return Err(unusable(&args.signing, why).into());
        }
    };
    let key = ring.rotate();
    let id = key.id.clone();
    public.signers.push(key);
    // A public half alone does no harm.
    write(path, &public.to_json())?;
    write(&args.signing, &ring.to_json())?;
    if args.output == Output::Json {
        let made = serde_json::json!({"region": region, "key": id, "control": args.control,
                                      "signing": args.signing});
        say(&made.to_string());
    }
    Ok(())
}

/// Reads what signs versions of this region; none where it does not sign.
///
/// # Errors
/// [`CannotStart`]: it cannot be read, is of another region, or others could not verify it.
pub fn signing(settings: &Settings, own: &PublicKeyring) -> anyhow::Result<Option<Signer>> {
    let Some(path) = &settings.keys.signing_file else {
        return Ok(None);
    };
    let absent = "it is not there; make it with `requestrocket keyring signer`";
    let ring = parsed(path, SigningRing::parse)?.ok_or_else(|| unusable(path, absent))?;
    check_region(path, &ring.region, settings, "keys.signing_file")?;
    let signer = ring.signer();
    if let Some(signer) = &signer
        && !own.signers.contains(signer.public())
    {
        let why = format!(
            "`keys.public_file` does not list its key {}: other regions could not verify it",
            signer.public().id
        );
        return Err(unusable(path, why).into());
    }
    Ok(signer)
}

/// What a file of keys holds; none where it is not there.
fn parsed<T, E: Display>(
    path: &Path,
    parse: impl FnOnce(&[u8]) -> Result<T, E>,
) -> anyhow::Result<Option<T>> {
    let found = private_file::read(path).map_err(|error| unusable(path, error))?;
    let Some(text) = found.map(Zeroizing::new) else {
        return Ok(None);
    };
    let ring = parse(text.as_bytes()).map_err(|error| unusable(path, error))?;
    Ok(Some(ring))
}

/// Reads what control planes of another region seal to and sign with.
///
/// # Errors
/// [`CannotStart`]: it is not there, cannot be read, is of another region than `region`, or of
/// another installation.
pub fn of_peer(
    path: &Path,
    region: &str,
    own: &PublicKeyring,
) -> anyhow::Result<(RegionPublicKey, Vec<VerifyingKey>)> {
    let absent = || {
        let why = format!("it is not there; copy it from region {region}");
        unusable(path, why)
    };
    let ring = parsed(path, PublicKeyring::parse)?.ok_or_else(absent)?;
    if ring.public.region != region {
        let why = format!("it is of region {}, not {region}", ring.public.region);
        return Err(unusable(path, why).into());
    }
    if ring.digest_key != own.digest_key {
        let why = "it is of another installation; make it with `requestrocket keyring new --join`";
        return Err(unusable(path, why).into());
    }
    Ok((ring.public, ring.signers))
}

fn read(path: &Path, settings: &Settings) -> anyhow::Result<Option<Keyring>> {
    let Some(ring) = parsed(path, Keyring::parse)? else {
        return Ok(None);
    };
    check_region(path, &ring.region, settings, "keys.ring_file")?;
    Ok(Some(ring))
}

/// Whether a file is of this region; `setting` is the one that names the file.
fn check_region(
    path: &Path,
    region: &str,
    settings: &Settings,
    setting: &str,
) -> anyhow::Result<()> {
    if region == settings.region {
        return Ok(());
    }
    let why = format!(
        "it is of region {region}, and `region` is `{own}`: set `region` to `{region}`, or \
         `{setting}` to the file of region {own}; what is sealed for a region opens with its own \
         key ring alone",
        own = settings.region
    );
    Err(unusable(path, why).into())
}

fn write(path: &Path, json: &str) -> anyhow::Result<()> {
    let written = private_file::replace(path, json.as_bytes());
    Ok(written.map_err(|error| unusable(path, error))?)
}

fn unusable(path: &Path, reason: impl Display) -> CannotStart {
    CannotStart(format!(
        "the key ring {} cannot be used: {reason}",
        path.display()
    ))
}

fn lost(path: &Path, store: &Path) -> CannotStart {
    CannotStart(format!(
        "there is no key ring {} (`keys.ring_file`), but {} was filled with one: with another no \
         caller's key would be known and no secret could be opened. Put it back, name it in \
         `keys.ring_file`, or move the store away to begin anew",
        path.display(),
        store.display()
    ))
}

fn missing(path: &Path, setting: &str) -> CannotStart {
    CannotStart(format!(
        "there is no key ring {} (`{setting}`); make one with `requestrocket keyring new`; that \
         for control planes alone, of that for nodes, with `requestrocket keyring public`",
        path.display()
    ))
}
