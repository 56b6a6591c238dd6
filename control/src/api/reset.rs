//! A meter that forgets what was used until now: a version of its own, like every change of it.

use proto::meter::Meter;
use proto::org::Role;
use proto::problem::Problem;

use super::answer::Answer;
use super::call::OrgCall;
use super::error::Refusal;
use super::meters::{Meters, refuse_proxy};
use super::write;
use crate::route::{Gives, Need, Route, Verb};

/// Rows of the routing table.
pub fn routes() -> Vec<Route> {
    vec![
        Route::org(
            Verb::Post,
            "/orgs/{org}/meters/{meter_id}/reset",
            (
                "reset_meter",
                "Let a meter, wherever it hangs, forget what was used until now, pauses too",
            ),
            Need::Role(Role::Admin),
            reset,
        )
        .gives(Gives::One("Meter")),
    ]
}

async fn reset(mut call: OrgCall) -> Result<Answer, Refusal> {
    let id = call.request.part("meter_id").to_owned();
    refuse_proxy(&*call.config()?, &id)?;
    call.request.path.insert("id", id);
    write::edit::<Meters>(&call, forgetting).await
}

/// The meter with a count that nobody has used.
fn forgetting(meter: &Meter) -> Result<Meter, Vec<Problem>> {
    let next = meter.resets.checked_add(1).ok_or_else(|| {
        let detail = "was reset as often as can be counted: put another meter in its place";
        vec![Problem::new("/resets", "range", detail)]
    })?;
    Ok(Meter {
        resets: next,
        ..meter.clone()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reset_makes_a_count_of_its_own_until_there_is_no_further_one() {
        let once = forgetting(&Meter::default()).unwrap();
        let twice = forgetting(&once).unwrap();
        assert_eq!((once.resets, twice.resets), (1, 2));
        let last = Meter {
            resets: u32::MAX,
            ..Meter::default()
        };
        let problems = forgetting(&last).unwrap_err();
        assert_eq!(problems[0].pointer, "/resets");
    }
}
