//! Many changes as one version: all of them or none, seen beforehand with `dry_run`.
//!
//! What is to be done is planned on the newest version, again when somebody publishes in between,
//! so that names and contents are looked up in exactly the version that the result follows.

use std::sync::Arc;

use proto::problem::Problem;
use proto::tree::{self, Draft, OrgConfig};
use serde_json::{Value, json};

use super::answer::Answer;
use super::call::OrgCall;
use super::error::Refusal;
use super::lacking;
use super::plan::Plan;
use super::secret::SHOWN_BEFORE;
use super::versions::{around, changes, outcome};
use crate::publish::{PublishError, Published};
use crate::route::Parameter;

/// The parameter that both routes know.
pub const DRY_RUN: Parameter = (
    "dry_run",
    "`true`: check everything, say what would change, and change nothing",
);

enum Failed {
    Refused(Box<Refusal>),
    Publish(PublishError),
}

impl From<Refusal> for Failed {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(Box::new(refusal))
    }
}

impl From<PublishError> for Failed {
    fn from(error: PublishError) -> Self {
        Self::Publish(error)
    }
}

/// Publishes what `plan` makes of the newest version; with `dry_run` only says what it would.
///
/// # Errors
/// Everything that stands against it, at its place in the submitted document.
pub async fn carry_out(
    call: &OrgCall,
    plan: impl Fn(&OrgConfig) -> Plan,
) -> Result<Answer, Refusal> {
    if call.request.if_match.is_some() {
        let detail = "does not apply to several objects at once; an operation has `if_match`";
        return Err(Refusal::parameter("If-Match", detail));
    }
    let dry_run: Option<bool> = call.request.query.parsed("dry_run", "true or false")?;
    if dry_run == Some(true) {
        let (current, draft, made) = drafted(call, plan).await?;
        let differences = tree::diff(&current.objects, draft.objects());
        let n = current.head.n;
        let mut answer = changes(&call.view(), n, n, &differences);
        warn(&made, &mut answer);
        made.show_reissued(&mut answer);
        return Ok(Answer::json(answer));
    }
    let (published, made, before) = publish(call, &plan).await?;
    let mut answer = outcome(call, &published, &before).await?;
    if !published.replayed {
        warn(&made, &mut answer);
        answer["generated"] = made.shown_once().into();
        made.show_reissued(&mut answer);
    } else if !published.changed.is_empty() && generated_before(call, &published, plan).await? {
        // Other keys are in force.
        let detail = "were shown in the first answer to this write alone; for new ones rotate the \
                      credentials (`POST …/credentials/{id}/rotate`)";
        answer["warnings"] = json!([Problem::new("/generated", SHOWN_BEFORE, detail)]);
    }
    Ok(Answer::json(answer).version(call.org_id(), published.n))
}

/// Adds what is to be said of given secrets to the credentials that changed, where rules have what
/// is to be said of them, and to the answer where they change nothing.
fn warn(plan: &Plan, answer: &mut Value) {
    plan.show_remarks(answer);
    for change in answer["changes"].as_array_mut().into_iter().flatten() {
        plan.show_warnings(&mut change["after"]);
    }
}

/// Whether a write that was carried out before generated keys, by what was there before it.
async fn generated_before(
    call: &OrgCall,
    published: &Published,
    plan: impl Fn(&OrgConfig) -> Plan,
) -> Result<bool, Refusal> {
    let around = around(call, published.n).await?;
    let before = around.map_or_else(|| Arc::clone(&published.config), |(before, _)| before);
    Ok(plan(&before).generates())
}

/// Publishes what `plan` makes of the newest version: what was published, the plan that it was made
/// by, and the version before.
///
/// # Errors
/// As for [`carry_out`].
pub async fn publish(
    call: &OrgCall,
    plan: impl Fn(&OrgConfig) -> Plan,
) -> Result<(Published, Plan, Arc<OrgConfig>), Refusal> {
    let publisher = &call.control.publisher;
    let (mut last, mut before) = (Plan::default(), None);
    let make = |current: &Arc<OrgConfig>| {
        last = plan(current);
        before = Some(Arc::clone(current));
        let checked = last.checked();
        checked.map_err(|refusal| lacking::unless_in_part(current, refusal).into())
    };
    let published = publisher.publish_made(call.publishing(), make).await;
    let published = published.map_err(|failed| refusal(&last, failed))?;
    call.control.see_version(call.org_id(), published.n).await;
    let before = before.unwrap_or_else(|| Arc::clone(&published.config));
    Ok((published, last, before))
}

/// The newest version, the draft of what `plan` makes of it, and that plan; nothing is published.
///
/// # Errors
/// As for [`carry_out`].
pub async fn drafted(
    call: &OrgCall,
    plan: impl Fn(&OrgConfig) -> Plan,
) -> Result<(Arc<OrgConfig>, Draft, Plan), Refusal> {
    let mut last = Plan::default();
    let make = |current: &Arc<OrgConfig>| {
        last = plan(current);
        let checked = last.checked();
        checked.map_err(|refusal| lacking::unless_in_part(current, refusal).into())
    };
    let drafted = call.control.publisher.draft(&call.publishing(), make).await;
    match drafted {
        Ok((current, draft)) => Ok((current, draft, last)),
        Err(failed) => Err(refusal(&last, failed)),
    }
}

fn refusal(plan: &Plan, failed: Failed) -> Refusal {
    match failed {
        Failed::Refused(refusal) => *refusal,
        Failed::Publish(error) => plan.refusal(error),
    }
}
