//! `requestrocket regions join`: a further region of an installation, as that region sees it.
//!
//! The region that joins makes its keys itself, shows the public ones with the token of its
//! invitation, and gets the installation's digest key sealed to them. What it needs is written as
//! files; nothing that is there is overwritten.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use control::regions::invitations::{Addresses, Admission, Introduction};
use control::regions::{base_url, is_plain};
use proto::seal::{
    DigestKey, Keyring, PublicKeyring, invitation_id, invited_region, is_region_name,
    open_digest_key,
};
use proto::signature::SigningRing;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::Api;
use super::access::ControlArgs;
use super::records::shown;
use crate::cli::Output;
use crate::private_file;
use crate::serve::CannotStart;

/// Arguments of `regions join`.
#[derive(Debug, Args)]
pub struct JoinArgs {
    /// The token of the invitation; better given in the environment than as an argument.
    #[arg(env = "REQUESTROCKET_INVITATION", hide_env_values = true)]
    pub token: String,
    /// Base URL of the control plane that invites.
    #[arg(long, value_name = "URL")]
    pub at: String,
    /// PEM file with the authorities of its certificate, instead of the system's.
    #[arg(long, env = "REQUESTROCKET_CA_FILE")]
    pub ca_file: Option<PathBuf>,
    /// Show the token to an `http://` address that is not this machine, and let the others send
    /// callers' tokens to one here.
    #[arg(long)]
    pub insecure: bool,
    /// Under which URL the other regions will reach this one's REST API.
    #[arg(long, value_name = "URL")]
    pub address: String,
    /// Under which URL callers will reach this region's gateway.
    #[arg(long, value_name = "URL")]
    pub gateway: Option<String>,
    /// Where the others will reach the link of this one's control planes (`link.listen`),
    /// `host:port`; once for each.
    #[arg(long, required = true, value_name = "HOST:PORT")]
    pub replication: Vec<String>,
    /// The folder in which key files and settings are written.
    #[arg(long)]
    pub dir: PathBuf,
    /// How to say what was made.
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
}

/// What `regions join` has made before it asks, so that it can ask again.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Begun {
    ring: Keyring,
    signing: SigningRing,
}

/// The files of a region that joins.
struct Files {
    nodes: PathBuf,
    control: PathBuf,
    signing: PathBuf,
    settings: PathBuf,
    /// What `regions join` remembers until it is done.
    begun: PathBuf,
}

impl Files {
    /// None of them may be there, unless they are of a try that did not come to its end.
    fn new(dir: &Path, region: &str) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir).map_err(|error| unusable(dir, error))?;
        let file = |end: &str| dir.join(format!("{region}{end}"));
        let files = Self {
            nodes: file(".json"),
            control: file(".public.json"),
            signing: file(".signing.json"),
            settings: file(".regions.toml"),
            begun: file(".joining.json"),
        };
        let made = [
            &files.nodes,
            &files.control,
            &files.signing,
            &files.settings,
        ];
        if !files.begun.exists() {
            made.into_iter().try_for_each(|path| absent(path))?;
        }
        Ok(files)
    }
}

/// Joins: makes the region's keys, shows them, and writes what came back.
pub(super) async fn join(args: &JoinArgs) -> anyhow::Result<Value> {
    let token = Zeroizing::new(args.token.trim().to_owned());
    let region = invited_region(&token).ok_or_else(|| {
        let why = "this is no token of an invitation, or not all of it: `rr_join_…`, from \
                   `requestrocket regions invite`";
        CannotStart(why.into())
    })?;
    check_address(args)?;
    let files = Files::new(&args.dir, region)?;
    let Begun { mut ring, signing } = begun(&files.begun, region)?;
    let signer = signing.signer().context("the signing key cannot be used")?;
    let base = |url: &String| url.trim_end_matches('/').to_owned();
    let gateway = args.gateway.as_ref().map(base);
    let addresses = Addresses::new(base(&args.address), gateway, args.replication.clone());
    let introduced = Introduction {
        public: ring.public().context("the key ring is empty")?,
        signers: vec![signer.public().clone()],
        addresses: match args.insecure {
            true => addresses.though_plain(),
            false => addresses,
        },
    };
    let admission = admitted(args, &token, &introduced).await?;
    ring.digest_key = open_digest_key(&ring, &admission.invitation, &admission.digest_key)?;
    for peer in &admission.regions {
        let text = public_of(peer, &ring.digest_key).to_json();
        absent_or(&args.dir.join(public_file(&peer.public.region)), &text)?;
    }
    for peer in &admission.regions {
        let path = args.dir.join(public_file(&peer.public.region));
        write(&path, &public_of(peer, &ring.digest_key).to_json())?;
    }
    let (fingerprint, digest) = (introduced.public.fingerprint(), introduced.digest());
    write(
        &files.control,
        &public_of(&introduced, &ring.digest_key).to_json(),
    )?;
    write(&files.signing, &signing.to_json())?;
    write(&files.settings, &of_control(args, region, &admission))?;
    write(&files.nodes, &ring.to_json())?;
    std::fs::remove_file(&files.begun).map_err(|error| unusable(&files.begun, error))?;
    let others = admission.regions.iter().map(|one| &*one.public.region);
    Ok(json!({
        "region": region, "home": admission.home, "others": others.collect::<Vec<_>>(),
        "fingerprint": fingerprint, "digest": digest, "nodes": files.nodes,
        "control": files.control, "signing": files.signing, "settings": files.settings,
    }))
}

/// Shows the invitation and what the region is; gives what came back, checked.
async fn admitted(
    args: &JoinArgs,
    token: &str,
    introduced: &Introduction,
) -> anyhow::Result<Admission> {
    let asked = ControlArgs {
        control_url: args.at.clone(),
        ca_file: args.ca_file.clone(),
        token: Some(token.to_owned()),
        org: proto::org::DEFAULT.into(),
    };
    let api = Api::named_by(&asked, "--at")?;
    let told = api
        .act_absolute("/regions/join", &json!(introduced))
        .await?;
    let admission: Admission =
        serde_json::from_value(told).context("the answer is that of another release")?;
    if admission.invitation != invitation_id(token) {
        bail!("the answer is to another invitation");
    }
    for peer in &admission.regions {
        // Names become names of files.
        let name = &peer.public.region;
        let is_good = is_region_name(name) && *name != introduced.public.region;
        if !is_good || !peer.faults().is_empty() {
            bail!(
                "the answer has a region `{}` that cannot be one",
                shown(name)
            );
        }
    }
    Ok(admission)
}

/// The token opens the installation's digest key: it is not shown to whoever listens.
fn check_address(args: &JoinArgs) -> anyhow::Result<()> {
    let url = base_url(&args.at).ok_or_else(|| {
        let why = format!(
            "`--at` is `{}`: it must be a URL, as https://control.example.com",
            args.at
        );
        CannotStart(why)
    })?;
    if is_plain(&url) && !args.insecure {
        let why = format!(
            "`--at` is `{}`, without TLS: whoever listens could join in your place; make it \
             https://, or accept it with --insecure",
            args.at
        );
        return Err(CannotStart(why).into());
    }
    Ok(())
}

/// The keys that were made before, where an answer did not come; else new ones.
fn begun(path: &Path, region: &str) -> anyhow::Result<Begun> {
    let found = private_file::read(path).map_err(|error| unusable(path, error))?;
    if let Some(text) = found.map(Zeroizing::new) {
        let begun: Begun = serde_json::from_str(&text).map_err(|error| {
            let at = (error.line(), error.column());
            unusable(
                path,
                format!(
                    "it is not what `regions join` writes (line {}, column {})",
                    at.0, at.1
                ),
            )
        })?;
        return Ok(begun);
    }
    let mut signing = SigningRing::empty(region);
    signing.rotate();
    let begun = Begun {
        ring: Keyring::generate(region),
        signing,
    };
    write(path, &Zeroizing::new(serde_json::to_string(&begun)?))?;
    Ok(begun)
}

pub(super) fn public_file(region: &str) -> String {
    format!("{region}.public.json")
}

/// The file that control planes have of a region.
pub(super) fn public_of(region: &Introduction, digest_key: &DigestKey) -> PublicKeyring {
    PublicKeyring {
        public: region.public.clone(),
        digest_key: digest_key.clone(),
        signers: region.signers.clone(),
    }
}

/// The settings that control planes of the new region have of its own and of the others.
fn of_control(args: &JoinArgs, region: &str, admission: &Admission) -> String {
    let dir = std::path::absolute(&args.dir).unwrap_or_else(|_| args.dir.clone());
    let file = |name: &str| json!(dir.join(format!("{region}{name}")));
    let mut text = format!(
        "# Settings of control planes of region {region}, to be put beside the others.\n\
         region = {}\n\n[keys]\npublic_file = {}\nsigning_file = {}\n\n[regions]\nhome = {}\n",
        json!(region),
        file(".public.json"),
        file(".signing.json"),
        json!(admission.home),
    );
    if admission.content_by_region {
        text.push_str("content_by_region = true\n");
    }
    for peer in &admission.regions {
        let path = dir.join(public_file(&peer.public.region));
        text.push_str(&peer_table(peer, &path));
    }
    text
}

/// A region in the list of another. A JSON text is a TOML text of the same meaning.
pub(super) fn peer_table(peer: &Introduction, file: &Path) -> String {
    let mut text = format!(
        "\n[[regions.peers]]\nname = {}\ncontrol = {}\n",
        json!(peer.public.region),
        json!(peer.addresses.control),
    );
    if peer.addresses.insecure {
        text.push_str("insecure = true\n");
    }
    if let Some(gateway) = &peer.addresses.gateway {
        text.push_str(&format!("gateway = {}\n", json!(gateway)));
    }
    text.push_str(&format!(
        "replication = {}\npublic_file = {}\n",
        json!(peer.addresses.replication),
        json!(std::path::absolute(file).unwrap_or_else(|_| file.to_owned())),
    ));
    text
}

/// What `regions join` says.
pub(super) fn has_joined(made: &Value) -> Vec<String> {
    let text = |key: &str| shown(made[key].as_str().unwrap_or_default());
    let region = text("region");
    vec![
        format!(
            "region {region} has joined, with key {}",
            text("fingerprint")
        ),
        format!(
            "    and in all {}: compare that with what the others are told",
            text("digest")
        ),
        format!(
            "    {}    for its nodes alone (`keys.ring_file`)",
            text("nodes")
        ),
        format!(
            "    {}, {}    for its control planes",
            text("control"),
            text("signing")
        ),
        format!(
            "    {}    their settings: keys, home and the other regions",
            text("settings")
        ),
        "Next:".into(),
        format!(
            "  1. link certificates of {region}, where the authority is: `requestrocket link issue`"
        ),
        format!(
            "  2. in every other region: `requestrocket regions joined {region}`, and its lines"
        ),
        "     into the settings of control planes".into(),
        format!("  3. start {region}; `requestrocket regions` shows how far it has come"),
    ]
}

pub(super) fn absent(path: &Path) -> anyhow::Result<()> {
    match path.exists() {
        false => Ok(()),
        true => Err(unusable(path, "it is there already, and is not overwritten").into()),
    }
}

/// A file that says the same is as good as none.
pub(super) fn absent_or(path: &Path, text: &str) -> anyhow::Result<()> {
    let found = private_file::read(path).map_err(|error| unusable(path, error))?;
    match found.map(Zeroizing::new) {
        Some(found) if found.as_str() == text => Ok(()),
        _ => absent(path),
    }
}

pub(super) fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let written = private_file::write(path, text.as_bytes());
    Ok(written.map_err(|error| unusable(path, error))?)
}

pub(super) fn unusable(path: &Path, reason: impl std::fmt::Display) -> CannotStart {
    CannotStart(format!("{} cannot be used: {reason}", path.display()))
}
