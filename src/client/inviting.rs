//! `requestrocket regions invite`, `invitations`, `withdraw` and `joined`: a further region, as the
//! regions see it that are there.

use std::path::PathBuf;

use anyhow::{Context, bail};
use awc::http::Method;
use clap::Args;
use control::regions::invitations::Introduction;
use control::regions::{base_url, is_loopback};
use proto::seal::PublicKeyring;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::Api;
use super::access::ControlArgs;
use super::joining::{absent_or, peer_table, public_file, public_of, unusable, write};
use super::records::shown;
use super::regions::ListArgs;
use crate::cli::Output;
use crate::private_file;
use crate::serve::CannotStart;

/// Arguments of `regions invite`.
#[derive(Debug, Args)]
pub struct InviteArgs {
    /// The name of the region that is to join: 1 to 40 characters of a-z, 0-9 and `-`.
    pub region: String,
    /// Where the region will reach the link of this one's control planes (`link.listen`),
    /// `host:port`; once for each.
    #[arg(long, required = true, value_name = "HOST:PORT")]
    pub replication: Vec<String>,
    /// Under which URL it will reach this region's REST API; that of `--control` when absent, where
    /// that is not of this machine alone.
    #[arg(long, value_name = "URL")]
    pub address: Option<String>,
    /// Let it send callers' tokens to an `http://` address that is not this machine.
    #[arg(long)]
    pub insecure: bool,
    /// For how many seconds the token is worth something.
    #[arg(long, default_value_t = 3_600)]
    pub valid_s: u64,
    /// How to show it.
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
    /// Where the control plane is.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// Arguments of `regions withdraw`.
#[derive(Debug, Args)]
pub struct WithdrawArgs {
    /// The invitation's id.
    pub id: String,
    /// How to show it.
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
    /// Where the control plane is.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// Arguments of `regions joined`.
#[derive(Debug, Args)]
pub struct JoinedArgs {
    /// The region that has joined.
    pub region: String,
    /// The `keys.public_file` of this region, whose digest key the other's file gets.
    #[arg(long, value_name = "FILE")]
    pub own: PathBuf,
    /// The folder in which the other region's file is written.
    #[arg(long)]
    pub dir: PathBuf,
    /// How to say what was made.
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
    /// Where the control plane is that invited it.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// Invites a region.
pub(super) async fn invite(args: &InviteArgs) -> anyhow::Result<Value> {
    let control = args.address.as_ref().unwrap_or(&args.control.control_url);
    let wanted = json!({"region": args.region, "control": control.trim_end_matches('/'),
                        "replication": args.replication, "valid_s": args.valid_s,
                        "insecure": args.insecure});
    if args.address.is_none() && base_url(control).is_some_and(|url| is_loopback(&url)) {
        let why = format!(
            "`--control` is `{control}`, which is this machine: say with `--address` under which \
             URL the new region will reach this region's REST API"
        );
        return Err(CannotStart(why).into());
    }
    let api = Api::new(&args.control)?;
    let mut made = api.act_absolute("/regions/invitations", &wanted).await?;
    made["control"] = wanted["control"].clone();
    Ok(made)
}

/// The invitations that were made in a region.
pub(super) async fn invitations(args: &ListArgs) -> anyhow::Result<Value> {
    let api = Api::new(&args.control)?;
    api.list_absolute("/regions/invitations").await
}

/// Takes an invitation back.
pub(super) async fn withdraw(args: &WithdrawArgs) -> anyhow::Result<Value> {
    let api = Api::new(&args.control)?;
    let path = format!("/regions/invitations/{}", args.id);
    api.write(Method::DELETE, &path, None, None).await?;
    Ok(json!({"withdrawn": args.id}))
}

/// Writes what control planes of this region need of one that has joined.
pub(super) async fn joined(args: &JoinedArgs) -> anyhow::Result<Value> {
    let api = Api::new(&args.control)?;
    let all = api.list_absolute("/regions/invitations").await?;
    let items = all["items"].as_array().into_iter().flatten();
    let mut joined = items.filter(|one| one["region"] == *args.region && one["joined"].is_object());
    let Some(found) = joined.next().map(|one| &one["joined"]) else {
        bail!(
            "region {} has not joined by an invitation of the region that was asked; `regions \
             invitations` lists them",
            args.region
        );
    };
    let peer: Introduction = serde_json::from_value(json!({
        "public": found["public"], "signers": found["signers"], "addresses": found["addresses"],
    }))
    .context("the answer is that of another release")?;
    let text = private_file::read(&args.own).map_err(|error| unusable(&args.own, error))?;
    let text = Zeroizing::new(text.ok_or_else(|| unusable(&args.own, "it is not there"))?);
    let own = PublicKeyring::parse(text.as_bytes()).map_err(|error| unusable(&args.own, error))?;
    let path = args.dir.join(public_file(&args.region));
    let text = public_of(&peer, &own.digest_key).to_json();
    absent_or(&path, &text)?;
    write(&path, &text)?;
    Ok(json!({
        "region": args.region, "control": path, "fingerprint": peer.public.fingerprint(),
        "digest": peer.digest(),
        "settings": peer_table(&peer, &path),
    }))
}

/// What `regions invite` says.
pub(super) fn invited(made: &Value) -> Vec<String> {
    let text = |key: &str| shown(made[key].as_str().unwrap_or_default());
    vec![
        format!(
            "region {} may join until {}, once. There:",
            text("region"),
            text("expires_at")
        ),
        String::new(),
        format!("    export REQUESTROCKET_INVITATION={}", text("token")),
        format!(
            "    requestrocket regions join --at {} --address URL --gateway URL \\\n        \
             --replication HOST:PORT --dir DIR",
            text("control")
        ),
        String::new(),
        "Whoever shows the token first joins, and gets what callers' keys are known by: give it \
         to nobody else."
            .into(),
    ]
}

/// What `regions invitations` says.
pub(super) fn listed(found: &Value) -> Vec<String> {
    let items = found["items"].as_array().cloned().unwrap_or_default();
    if items.is_empty() {
        return vec!["nobody was invited in this region".into()];
    }
    let line = |one: &Value| {
        let text = |value: &Value| shown(value.as_str().unwrap_or_default());
        let mut line = format!(
            "{:16} {:8} until {}  by {}  {}",
            text(&one["region"]),
            text(&one["state"]),
            text(&one["expires_at"]),
            text(&one["created_by"]),
            text(&one["id"])
        );
        if let Some(joined) = one["joined"].as_object() {
            line.push_str(&format!(
                "\n    joined {} from {}, key {}",
                text(&joined["at"]),
                text(&joined["source"]),
                text(&joined["fingerprint"])
            ));
        }
        line
    };
    items.iter().map(line).collect()
}

/// What `regions joined` says.
pub(super) fn has_been_joined(made: &Value) -> Vec<String> {
    let text = |key: &str| made[key].as_str().unwrap_or_default();
    let (region, fingerprint) = (shown(text("region")), shown(text("fingerprint")));
    vec![
        format!("# Region {region}, key {fingerprint}, and in all"),
        format!(
            "# {}: compare both with what `regions join` said there.",
            shown(text("digest"))
        ),
        "# Into the settings of control planes here, under `[regions]` with its `home`:".into(),
        text("settings").trim().to_owned(),
    ]
}
