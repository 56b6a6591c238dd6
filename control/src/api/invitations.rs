//! Invitations of further regions, and how a region joins by one.

use std::net::IpAddr;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use proto::audit::Act;
use proto::problem::Problem;
use proto::seal::{self, invitation_id, invited_region, is_region_name, issue_invitation};
use proto::tree::SYSTEM_ORG;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::answer::Answer;
use super::call::{Call, Presented};
use super::error::{Code, Refusal};
use super::invitation_schemas::{key, show};
use super::{page, write};
use crate::config::RegionKeys;
use crate::login::{worth_a_look, wrong_token};
use crate::regions::invitations::{
    self, Addresses, Admission, FAULT, Introduction, Invitation, InvitationError, Joined,
};
use crate::route::{Gives, Route, Takes, Verb};
use crate::router::BASE;
use crate::state::Control;

/// How long an invitation is valid when nothing is said, and at least and most, in seconds.
const VALID_S: (u64, u64, u64) = (3_600, 60, 7 * 86_400);
/// How long one that nobody used is shown after its end.
const SHOWN_AFTER: Duration = Duration::from_secs(7 * 86_400);

/// Rows of the routing table.
pub fn routes() -> Vec<Route> {
    vec![
        Route::operator(
            Verb::Post,
            "/regions/invitations",
            (
                "invite_region",
                "Invite a further region: makes a token that it joins with, once",
            ),
            invite,
        )
        .takes(Takes::Body("InvitationRequest"))
        .gives(Gives::Created("Invitation"))
        .local(),
        Route::operator(
            Verb::Get,
            "/regions/invitations",
            (
                "list_invitations",
                "List invitations made in this region, and the regions that joined by them",
            ),
            list,
        )
        .gives(Gives::List("Invitation")),
        Route::operator(
            Verb::Get,
            "/regions/invitations/{id}",
            ("get_invitation", "Read an invitation"),
            get,
        )
        .gives(Gives::One("Invitation")),
        Route::operator(
            Verb::Delete,
            "/regions/invitations/{id}",
            (
                "withdraw_invitation",
                "Withdraw an invitation; a region of its name may be invited anew then",
            ),
            withdraw,
        )
        .local(),
        Route::invited(
            Verb::Post,
            "/regions/join",
            (
                "join_regions",
                "Join the installation as the region that the token invites",
            ),
            join,
        )
        .takes(Takes::Body("Introduction"))
        .gives(Gives::One("Admission")),
    ]
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct InvitationRequest {
    region: String,
    control: String,
    replication: Vec<String>,
    #[serde(default)]
    insecure: bool,
    valid_s: Option<u64>,
}

fn read<T: DeserializeOwned>(body: &Value) -> Result<T, Refusal> {
    serde_json::from_value(body.clone())
        .map_err(|error| Refusal::invalid(vec![Problem::new("", "body", error.to_string())]))
}

fn refuse_faults(faults: Vec<Problem>) -> Result<(), Refusal> {
    match faults.is_empty() {
        true => Ok(()),
        false => Err(Refusal::invalid(faults)),
    }
}

async fn invite(call: Call) -> Result<Answer, Refusal> {
    let control = &call.control;
    let wanted: InvitationRequest = read(&call.request.body)?;
    own_keys(control)?;
    at_home(control)?;
    let gateway = Some(control.settings.gateway_url.clone());
    let by = Addresses::new(wanted.control, gateway, wanted.replication);
    let by = match wanted.insecure {
        true => by.though_plain(),
        false => by,
    };
    let (valid_s, least, most) = VALID_S;
    let valid_s = wanted.valid_s.unwrap_or(valid_s);
    let mut faults = Vec::new();
    if !is_region_name(&wanted.region) {
        let words = "must be 1 to 40 characters of a-z, 0-9 and `-`";
        faults.push(Problem::new("/region", FAULT, words));
    }
    if !(least..=most).contains(&valid_s) {
        let words = format!("must be {least} to {most} seconds");
        faults.push(Problem::new("/valid_s", FAULT, words));
    }
    faults.extend(by.faults());
    refuse_faults(faults)?;
    if others(control).any(|name| name == wanted.region) {
        return Err(taken(&wanted.region));
    }
    let created_at = Timestamp::now();
    let invitation = Invitation {
        region: wanted.region,
        by,
        created_at,
        created_by: call.caller.token.name.clone(),
        expires_at: created_at
            .saturating_add(SignedDuration::from_secs(valid_s.cast_signed()))
            .map_err(|error| Refusal::new(Code::Internal, error.to_string()))?,
        joined: None,
    };
    let token = issue_invitation(&invitation.region);
    let id = invitation_id(&token);
    let act = Act::RegionInvited {
        region: invitation.region.clone(),
        invitation: id.clone(),
    };
    call.audited(SYSTEM_ORG, act).await?;
    let kept = invitations::keep(control.publisher.store(), &id, &invitation, SHOWN_AFTER);
    kept.await
        .map_err(|error| refusal(&invitation.region, error))?;
    let (region, by) = (&invitation.region, &invitation.created_by);
    tracing::warn!(%region, by, "region {region} was invited by {by}");
    let mut shown = show(&id, &invitation, created_at);
    shown["token"] = json!(*token);
    let location = format!("{BASE}/regions/invitations/{id}");
    Ok(Answer::json(shown).created(location))
}

async fn list(call: Call) -> Result<Answer, Refusal> {
    let page = call.request.page()?;
    let store = call.control.publisher.store();
    let all = invitations::all(store).await;
    let all = all.map_err(|error| refusal("", error.into()))?;
    let now = Timestamp::now();
    let items = all
        .iter()
        .map(|(id, one)| (key(id, one), show(id, one, now)));
    Ok(Answer::json(page::cut(items.collect(), &page)))
}

async fn get(call: Call) -> Result<Answer, Refusal> {
    let id = call.request.part("id");
    let found = invitations::read(call.control.publisher.store(), id).await;
    let (found, _) = found.map_err(|error| refusal("", error))?;
    Ok(Answer::json(show(id, &found, Timestamp::now())))
}

async fn withdraw(call: Call) -> Result<Answer, Refusal> {
    let id = call.request.part("id");
    let found = invitations::read(call.control.publisher.store(), id).await;
    found.map_err(|error| refusal("", error))?;
    let act = Act::InvitationWithdrawn {
        invitation: id.to_owned(),
    };
    call.audited(SYSTEM_ORG, act).await?;
    let gone = invitations::withdraw(call.control.publisher.store(), id).await;
    let gone = gone.map_err(|error| refusal("", error))?;
    let (region, by) = (&gone.region, &call.caller.token.name);
    tracing::warn!(%region, by, "the invitation of region {region} was withdrawn by {by}");
    Ok(Answer::nothing())
}

async fn join(presented: Presented) -> Result<Answer, Refusal> {
    let control = &presented.control;
    let (id, introduced) = introduced(&presented).await?;
    let (region, keys) = (introduced.public.region.clone(), own_keys(control)?);
    at_home(control)?;
    if others(control).any(|name| name == region) {
        return Err(taken(&region));
    }
    let public = introduced.public.clone();
    let joined = Joined {
        at: Timestamp::now(),
        source: presented.source,
        region: introduced,
    };
    let used = invitations::use_up(control.publisher.store(), &id, joined).await;
    let (invitation, is_first) = used.map_err(|error| {
        let told = refusal(&region, error);
        stale(control, presented.source, told)
    })?;
    let (source, fingerprint) = (presented.source, public.fingerprint());
    if is_first {
        tracing::warn!(
            %region, ?source, fingerprint,
            "region {region} joined with key {fingerprint}: list it in `regions.peers` of the \
             others"
        );
        // Written before anything is given, as far as the store lets it: the invitation says the
        // same.
        let act = Act::RegionJoined {
            region: region.clone(),
            fingerprint,
        };
        presented.audited("invitation", act).await?;
    }
    let sealed = seal::seal_digest_key(&public, &id, &control.digest_key);
    let sealed = sealed.map_err(|error| Refusal::new(Code::Internal, error.to_string()))?;
    let admission = Admission {
        home: home(control),
        digest_key: sealed,
        invitation: id,
        content_by_region: control.publisher.cuts_by_region(),
        regions: all_but(control, keys, &invitation).await?,
    };
    Ok(Answer::json(json!(admission)))
}

/// A token that was worth something once, and not now: counted like a wrong one, and said aloud
/// where somebody else may have it.
fn stale(control: &Control, source: Option<IpAddr>, told: Refusal) -> Refusal {
    if matches!(told.code, Code::InvitationUsed | Code::InvitationExpired) {
        wrong_token(control, source);
        let detail = &told.detail;
        tracing::warn!(?source, "an invitation was shown in vain: {detail}");
    }
    told
}

/// The region that a token invites and the invitation's id, if it can be used now.
///
/// # Errors
/// It is none, or was used, or is over; 429 where many wrong ones came from there.
pub async fn usable<'t>(
    control: &Control,
    token: &'t str,
    source: Option<IpAddr>,
) -> Result<(&'t str, String), Refusal> {
    let Some(region) = invited_region(token) else {
        return Err(wrong_token(control, source));
    };
    worth_a_look(control, source)?;
    let id = invitation_id(token);
    let usable = invitations::usable(control.publisher.store(), &id, Timestamp::now());
    match usable.await {
        Ok(_) => Ok((region, id)),
        Err(InvitationError::Unknown) => Err(wrong_token(control, source)),
        Err(error) => Err(stale(control, source, refusal(region, error))),
    }
}

/// The invitation's id and what the region tells of itself, both judged.
async fn introduced(presented: &Presented) -> Result<(String, Introduction), Refusal> {
    let (control, source) = (&presented.control, presented.source);
    // Nobody without an invitation learns what is wrong with a document.
    let (region, id) = usable(control, &presented.token, source).await?;
    let introduced: Introduction = read(&presented.body)?;
    let mut faults = introduced.faults();
    if introduced.public.region != region {
        let words = format!("must be `{region}`, which the invitation is for");
        faults.push(Problem::new("/public/region", FAULT, words));
    }
    refuse_faults(faults)?;
    Ok((id, introduced))
}

/// The keys of this region, which a region that joins has to know.
fn own_keys(control: &Control) -> Result<&RegionKeys, Refusal> {
    let none = "this control plane has no `keys.public_file` and no `link.listen`, as one of \
                several regions has: only a cluster can have further regions";
    let keys = control.settings.keys.as_ref();
    keys.ok_or_else(|| Refusal::new(Code::Conflict, none))
}

/// Invitations are made and used in one region, so that no two regions take one name.
fn at_home(control: &Control) -> Result<(), Refusal> {
    let home = home(control);
    if home == control.settings.region {
        return Ok(());
    }
    let detail = format!("regions are invited, and join, at home: ask a control plane of {home}");
    Err(Refusal::new(Code::Conflict, detail))
}

/// The regions that are known by the settings.
fn others(control: &Control) -> impl Iterator<Item = &str> {
    let peers = control.directory().map(|known| known.regions.names());
    let own = std::iter::once(control.settings.region.as_str());
    own.chain(peers.into_iter().flatten())
}

fn home(control: &Control) -> String {
    match control.directory() {
        Some(directory) => directory.homes.region_of(SYSTEM_ORG),
        None => control.settings.region.clone(),
    }
}

/// All regions that a new one has to know: this one, those of the settings, and those that joined
/// since.
async fn all_but(
    control: &Control,
    keys: &RegionKeys,
    invitation: &Invitation,
) -> Result<Vec<Introduction>, Refusal> {
    let mut all = vec![Introduction {
        public: keys.public.clone(),
        signers: keys.signers.clone(),
        addresses: invitation.by.clone(),
    }];
    let peers = control.directory().into_iter();
    all.extend(peers.flat_map(|known| &known.regions.peers).map(|peer| {
        let (control, gateway) = (peer.control.clone(), peer.gateway.clone());
        let addresses = Addresses::new(control, gateway, peer.replication.clone());
        Introduction {
            public: peer.public.clone(),
            signers: peer.signers.clone(),
            // Its settings say so.
            addresses: addresses.though_plain(),
        }
    }));
    let kept = invitations::all(control.publisher.store()).await;
    let kept = kept.map_err(|error| refusal(&invitation.region, error.into()))?;
    for joined in kept.into_iter().filter_map(|(_, one)| one.joined) {
        let name = &joined.region.public.region;
        let is_known = |known: &Introduction| known.public.region == *name;
        if *name != invitation.region && !all.iter().any(is_known) {
            all.push(joined.region);
        }
    }
    Ok(all)
}

fn taken(region: &str) -> Refusal {
    let detail = format!("there is a region `{region}` already; choose another name");
    Refusal::new(Code::Conflict, detail)
}

fn refusal(region: &str, error: InvitationError) -> Refusal {
    match error {
        InvitationError::Unknown => Refusal::not_found(),
        InvitationError::Taken => taken(region),
        InvitationError::TooMany => Refusal::new(Code::Conflict, error.to_string()),
        InvitationError::Expired(at) => {
            let detail = format!(
                "the invitation was valid until {at}; ask for a new one (`requestrocket regions \
                 invite {region}`)"
            );
            Refusal::new(Code::InvitationExpired, detail)
        }
        InvitationError::Used(by) => {
            let from = by.source.map(|source| format!(" from {source}"));
            let detail = format!(
                "the invitation was used at {}{} by a region at {} with key {}; where that is not \
                 yours, withdraw it, find out who saw the token, and give callers new keys",
                by.at,
                from.unwrap_or_default(),
                proto::checks::printable(&by.region.addresses.control),
                by.region.public.fingerprint()
            );
            Refusal::new(Code::InvitationUsed, detail)
        }
        InvitationError::Store(error) => write::refusal(error.into()),
    }
}
