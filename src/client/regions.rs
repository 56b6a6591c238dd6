//! `requestrocket regions`: which region is home, how far the others have come, and moves of home.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::Api;
use super::inviting::{self, InviteArgs, JoinedArgs, WithdrawArgs};
use super::joining::{self, JoinArgs};
use super::problem::Problem;
use super::records::shown;
use super::region_faults::{diverged, frozen, sealed_otherwise, skew, untaken, unverified};
use crate::cli::{ControlArgs, Output};
use crate::say;

/// Arguments of `regions`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct RegionsArgs {
    /// What to do; without it the regions are listed.
    #[command(subcommand)]
    pub action: Option<RegionsAction>,
    /// How to show them, and where.
    #[command(flatten)]
    pub list: ListArgs,
}

/// Arguments of a list.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// How to show them.
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
    /// Where the control plane is.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// What can be done with regions.
#[derive(Debug, Subcommand)]
pub enum RegionsAction {
    /// Make a region home. Home hands over while it can be reached; where it cannot, the region's
    /// own control plane takes it.
    Promote(PromoteArgs),
    /// List versions made on branches that are not in force, kept in this region for a person.
    Aside(ListArgs),
    /// End every secret of a credential in the region of this control plane at once, whether home
    /// can be reached or not; all regions have it as soon as home has.
    Revoke(RevokeArgs),
    /// Invite a further region: makes a token that it joins with, once.
    Invite(InviteArgs),
    /// List invitations made in this region, and who joined by them.
    Invitations(ListArgs),
    /// Withdraw an invitation; a region of its name may be invited anew then.
    Withdraw(WithdrawArgs),
    /// Join an installation as a further region: makes its keys, and settings for its control
    /// planes.
    Join(JoinArgs),
    /// Write what control planes of this region need of one that has joined.
    Joined(JoinedArgs),
}

/// Arguments of `regions promote`.
#[derive(Debug, Args)]
pub struct PromoteArgs {
    /// The region.
    pub region: String,
    /// Where home cannot be reached, do without a majority of the regions, and without what regions
    /// that do not answer alone keep, which is frozen until they do. What only the others have is
    /// set aside when they are back.
    #[arg(long)]
    pub force: bool,
    /// Only tell what the region's own control plane would make it home of where home cannot be
    /// reached, and what would be frozen. Nothing is moved.
    #[arg(long, conflicts_with = "diverged")]
    pub dry_run: bool,
    /// Where regions have different histories (`diverged`), let that of this region count, whether
    /// it is home or not; what the others have instead is set aside there. Nothing else moves.
    #[arg(long)]
    pub diverged: bool,
    /// How to show it.
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
    /// Where the control plane is.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// Arguments of `regions revoke`.
#[derive(Debug, Args)]
pub struct RevokeArgs {
    /// The credential's id.
    pub credential: String,
    /// How to show it.
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
    /// Where the control plane is.
    #[command(flatten)]
    pub control: ControlArgs,
}

impl RegionsArgs {
    /// How to show what comes of it.
    pub fn output(&self) -> Output {
        match &self.action {
            None => self.list.output,
            Some(RegionsAction::Promote(args)) => args.output,
            Some(RegionsAction::Aside(args)) => args.output,
            Some(RegionsAction::Revoke(args)) => args.output,
            Some(RegionsAction::Invite(args)) => args.output,
            Some(RegionsAction::Invitations(args)) => args.output,
            Some(RegionsAction::Withdraw(args)) => args.output,
            Some(RegionsAction::Join(args)) => args.output,
            Some(RegionsAction::Joined(args)) => args.output,
        }
    }
}

/// Lists the regions, or moves home.
///
/// # Errors
/// What the control plane said.
pub async fn run(args: &RegionsArgs) -> anyhow::Result<()> {
    let (found, lines): (Value, fn(&Value) -> Vec<String>) = match &args.action {
        None => {
            let api = Api::new(&args.list.control)?;
            (api.list_absolute("/regions").await?, regions)
        }
        Some(RegionsAction::Promote(args)) => (promote(args).await?, promoted),
        Some(RegionsAction::Aside(args)) => {
            let api = Api::new(&args.control)?;
            (api.list_absolute("/regions/aside").await?, aside)
        }
        Some(RegionsAction::Revoke(args)) => {
            let api = Api::new(&args.control)?;
            let wanted = json!({"credential": args.credential, "org": args.control.org});
            (api.act_absolute("/revocations", &wanted).await?, revoked)
        }
        Some(RegionsAction::Invite(args)) => (inviting::invite(args).await?, inviting::invited),
        Some(RegionsAction::Invitations(args)) => {
            (inviting::invitations(args).await?, inviting::listed)
        }
        Some(RegionsAction::Withdraw(args)) => (inviting::withdraw(args).await?, withdrawn),
        Some(RegionsAction::Join(args)) => (joining::join(args).await?, joining::has_joined),
        Some(RegionsAction::Joined(args)) => {
            (inviting::joined(args).await?, inviting::has_been_joined)
        }
    };
    match args.output() {
        Output::Json => say(&found.to_string()),
        Output::Text => say(&lines(&found).join("\n")),
    }
    Ok(())
}

/// Lets home hand over; where it cannot be reached, promotes.
async fn promote(args: &PromoteArgs) -> anyhow::Result<Value> {
    let api = Api::new(&args.control)?;
    let region = &args.region;
    let promotion = format!("/regions/{region}/promote");
    let wanted = json!({"force": args.force});
    if args.dry_run {
        let path = format!("{promotion}?dry_run=true");
        return api.act_absolute(&path, &wanted).await;
    }
    if args.diverged {
        let wanted = json!({"force": args.force, "diverged": true});
        return api.act_absolute(&promotion, &wanted).await;
    }
    let path = format!("/regions/{region}/hand-over");
    let unreached = match api.act_absolute(&path, &json!({})).await {
        // What is home already has nothing to hand over; what has its home elsewhere may have lost
        // it.
        Ok(moved) if list(&moved, "moved").is_empty() && !list(&moved, "elsewhere").is_empty() => {
            anyhow::anyhow!(
                "{region} is home already; what has its home elsewhere could not be promoted"
            )
        }
        Ok(moved) => return Ok(moved),
        Err(error) => match error.downcast_ref::<Problem>() {
            Some(problem) if asks_for_promotion(&problem.0) => error,
            _ => return Err(error),
        },
    };
    let promoted = api.act_absolute(&promotion, &wanted).await;
    promoted.map_err(|error| match error.downcast_ref::<Problem>() {
        // What a hand-over that ended early has moved, and what not, is told all the same.
        Some(_) if !is_under_way(&unreached) => error,
        _ => error.context(unreached.to_string()),
    })
}

/// Whether an answer to a hand-over means that home is not there to hand over: it cannot be
/// reached, it cannot be asked with this token, or it is sealed for a region that is gone.
fn asks_for_promotion(problem: &Value) -> bool {
    let code = problem["code"].as_str().unwrap_or_default();
    matches!(code, "home-unavailable" | "home-moved" | "forbidden")
}

/// Whether home has begun to hand over.
fn is_under_way(error: &anyhow::Error) -> bool {
    let problem = error.downcast_ref::<Problem>();
    problem.is_some_and(|problem| problem.0["code"] == "home-moved")
}

pub fn list(found: &Value, key: &str) -> Vec<Value> {
    found[key].as_array().cloned().unwrap_or_default()
}

/// A line for each region, and for each thing that is wrong with it.
pub(super) fn regions(found: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    for region in list(found, "items") {
        lines.push(line(&region));
        lines.extend(content(&region));
        lines.extend(skew(&region));
        lines.extend(sealed_otherwise(&region));
        lines.extend(diverged(&region));
        lines.extend(unverified(&region));
        lines.extend(untaken(&region));
        lines.extend(list(&region, "frozen").iter().filter_map(frozen));
    }
    lines
}

/// Where what is pinned to regions is kept, as the own region does it.
fn content(region: &Value) -> Option<String> {
    let where_to = match region["content_by_region"].as_bool()? {
        true => "there and at home alone",
        false => "in every region (`regions.content_by_region` is off)",
    };
    Some(format!("  what lists `regions` is kept {where_to}"))
}

/// The name of an organisation in an answer.
pub fn name(of: &Value) -> &str {
    let slug = of["slug"].as_str().or(of["org"].as_str());
    slug.unwrap_or_default()
}

fn promoted(found: &Value) -> Vec<String> {
    let region = found["region"].as_str().unwrap_or_default();
    let handed = list(found, "moved");
    let mut lines: Vec<String> = handed
        .iter()
        .map(|one| format!("{:20} handed over to {region}", name(one)))
        .collect();
    if found["moved"].is_array() && handed.is_empty() {
        lines.push(format!("{region} is home already, nothing was moved"));
    }
    let is_dry = found["dry_run"] == true;
    for one in list(found, "promoted") {
        let from = one["from"].as_str().unwrap_or_default();
        if is_dry {
            lines.push(format!(
                "{:20} would be of {region}, from what {from} has",
                name(&one)
            ));
            lines.extend(frozen(&one));
            continue;
        }
        lines.push(format!(
            "{:20} home is {region} from version {} on (epoch {}), from what {} had",
            name(&one),
            one["n"],
            one["epoch"]["counter"],
            from
        ));
        lines.extend(frozen(&one));
    }
    lines.extend(list(found, "left").iter().map(|one| {
        let why = one["why"].as_str().unwrap_or_default();
        format!("{:20} is left where it is: {why}", name(one))
    }));
    let not_asked = list(found, "not_asked");
    let not_asked: Vec<&str> = not_asked.iter().filter_map(Value::as_str).collect();
    if !not_asked.is_empty() {
        lines.push(format!(
            "not asked: {}; what only they have is set aside when they are back",
            not_asked.join(", ")
        ));
    }
    lines
}

fn revoked(found: &Value) -> Vec<String> {
    let text = |key: &str| found[key].as_str().unwrap_or_default();
    let (credential, region) = (text("credential"), text("region"));
    let mut lines = vec![format!(
        "{credential} of {} is revoked in region {region}; set a new secret at home",
        name(found)
    )];
    lines.extend(used(found));
    lines
}

/// How a credential was used in the region; nothing where its control plane is of a release that
/// does not tell.
fn used(found: &Value) -> Vec<String> {
    if let Some(why) = found["use_unknown"].as_str() {
        return vec![format!("how it was used is not known: {}", shown(why))];
    }
    let Some(count) = found["used_24h"].as_u64() else {
        return Vec::new();
    };
    let last = match found["last_used_at"].as_str() {
        Some(at) => format!("last used {}", shown(at)),
        None => "no use of it is recorded here".to_owned(),
    };
    let least = match found["use_complete"].as_bool() {
        Some(false) => "at least ",
        _ => "",
    };
    let mut lines = vec![format!(
        "{last}; {least}{count} requests in the last 24 hours"
    )];
    let sources = list(found, "sources");
    let sources: Vec<String> = sources
        .iter()
        .filter_map(Value::as_str)
        .map(shown)
        .collect();
    if !sources.is_empty() {
        let more = match found["sources_cut"].as_bool() {
            Some(true) => " and more",
            _ => "",
        };
        lines.push(format!("from {}{more}", sources.join(", ")));
    }
    lines
}

fn withdrawn(found: &Value) -> Vec<String> {
    let id = found["withdrawn"].as_str().unwrap_or_default();
    vec![format!("{id} is withdrawn")]
}

fn aside(found: &Value) -> Vec<String> {
    let items = list(found, "items");
    if items.is_empty() {
        return vec!["nothing is set aside in this region".into()];
    }
    let line = |one: &Value| {
        format!(
            "{:20} version {:6} of epoch {}.{}  {}  {} changes by {}",
            name(one),
            one["n"],
            one["epoch"]["counter"],
            one["epoch"]["region"].as_str().unwrap_or_default(),
            one["at"].as_str().unwrap_or_default(),
            one["changes"],
            one["author"].as_str().unwrap_or_default()
        )
    };
    items.iter().map(line).collect()
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
    let mut words = replication(&region["replication"]);
    if let Some(to) = region["hands_over_to"].as_str() {
        words = format!("hands over to {to}");
    }
    format!("{line} {words}").trim_end().to_owned()
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
        let decide = diverged(&follower).unwrap();
        assert!(decide.contains("home: org_1; decide") && decide.contains("--diverged"));
        assert_eq!(diverged(&home), None);
    }

    #[test]
    fn a_region_that_is_home_already_is_said_to_be() {
        let found = json!({"region": "us", "moved": [], "elsewhere": []});
        assert_eq!(promoted(&found), ["us is home already, nothing was moved"]);
        let found = json!({"region": "us", "promoted": [], "left": [], "not_asked": []});
        assert_eq!(promoted(&found), [""; 0]);
    }

    #[test]
    fn copies_that_are_sealed_to_other_keys_are_a_line() {
        let told = |count: Value| {
            sealed_otherwise(&json!({"sealed_to_other_keys": count, "public_key_id": "k1"}))
        };
        let some = told(json!(3)).unwrap_or_default();
        assert!(some.starts_with("  3 of its secrets"), "{some}");
        assert!(some.contains("`public_file` (k1):"), "{some}");
        assert_eq!(told(json!(0)), None);
        let unknown = told(json!(null)).unwrap_or_default();
        assert!(unknown.contains("is not known here"), "{unknown}");
        assert_eq!(sealed_otherwise(&json!({"name": "own"})), None);
    }

    #[test]
    fn a_clock_that_is_off_is_a_line() {
        let told = |ahead_ms: Value| skew(&json!({"clock_ahead_ms": ahead_ms}));
        let ahead =
            "  clock-skew its clock is 300.0 s ahead of this control plane's; set both by NTP";
        assert_eq!(told(json!(300_000)).as_deref(), Some(ahead));
        let behind = "  clock-skew its clock is 2.5 s behind this control plane's; set both by NTP";
        assert_eq!(told(json!(-2_500)).as_deref(), Some(behind));
        assert_eq!(told(json!(null)), None);
    }

    #[test]
    fn how_a_revoked_credential_was_used_is_told() {
        let found = json!({
            "credential": "crd_1", "slug": "acme", "region": "eu",
            "last_used_at": "2026-11-25T10:00:00Z", "used_24h": 7,
            "sources": ["192.0.2.1", "192.0.2.2"], "sources_cut": true, "use_complete": false,
            "use_unknown": null,
        });
        let expected = [
            "crd_1 of acme is revoked in region eu; set a new secret at home",
            "last used 2026-11-25T10:00:00Z; at least 7 requests in the last 24 hours",
            "from 192.0.2.1, 192.0.2.2 and more",
        ];
        assert_eq!(revoked(&found), expected);
        let unknown = json!({"used_24h": null, "use_unknown": "the store is away"});
        assert_eq!(
            used(&unknown),
            ["how it was used is not known: the store is away"]
        );
        let never = json!({"used_24h": 0, "last_used_at": null, "sources": []});
        assert_eq!(
            used(&never),
            ["no use of it is recorded here; 0 requests in the last 24 hours"]
        );
        assert!(used(&json!({})).is_empty());
    }

    #[test]
    fn where_what_is_pinned_is_kept_is_told_of_the_own_region() {
        let told = |keeps: Value| content(&json!({"content_by_region": keeps}));
        let alone = "  what lists `regions` is kept there and at home alone";
        assert_eq!(told(json!(true)).as_deref(), Some(alone));
        let everywhere = "  what lists `regions` is kept in every region \
                          (`regions.content_by_region` is off)";
        assert_eq!(told(json!(false)).as_deref(), Some(everywhere));
        assert_eq!(content(&json!({"name": "another"})), None);
    }

    #[test]
    fn what_is_not_taken_is_told_with_why() {
        let found = json!({"items": [{
            "name": "eu", "own": true,
            "unverified": [{"org": "org_1", "version": 7, "why": "it was altered"}],
            "untaken": [{"org": "org_2", "why": "a leaf is missing"}],
        }]});
        let expected = [
            "  version 7 of org_1 is not taken: it was altered",
            "  org_2 is not taken, and is tried again: a leaf is missing",
        ];
        assert_eq!(regions(&found)[1..], expected);
    }

    #[test]
    fn what_moved_and_who_was_not_asked_is_told() {
        let handed = json!({"region": "eu", "moved": [{"org": "org_1", "slug": "acme"}]});
        assert!(promoted(&handed)[0].ends_with("handed over to eu"));
        let taken = json!({
            "region": "eu", "not_asked": ["us"],
            "promoted": [{"org": "org_1", "slug": null, "n": 8, "from": "ap",
                          "epoch": {"counter": 2, "region": "eu"}}],
            "left": [{"org": "org_2", "slug": "acme", "why": "it has objects"}],
        });
        let lines = promoted(&taken);
        assert!(
            lines[0].starts_with("org_1") && lines[0].contains("version 8"),
            "{lines:?}"
        );
        assert!(lines[1].starts_with("acme") && lines[1].ends_with("it has objects"));
        assert!(lines[2].starts_with("not asked: us;"), "{lines:?}");
        assert_eq!(aside(&json!({"items": []})).len(), 1);
        for (code, expected) in [("home-unavailable", true), ("conflict", false)] {
            assert_eq!(
                asks_for_promotion(&json!({"code": code})),
                expected,
                "{code}"
            );
        }
    }
}
