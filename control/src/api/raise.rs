//! A meter that gives more than its limits for a while: no version, under a lease of its length.

use std::time::Duration;

use proto::audit::Act;
use proto::id::MeterId;
use proto::keys;
use proto::meter::{Meter, MeterAlgorithm};
use proto::object::{Body, ObjectId};
use proto::org::Role;
use proto::problem::Problem;
use proto::raise::{PERCENT, Raise, SECONDS};
use proto::store::{Op, StoreError};
use proto::{checks, wire};
use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::Answer;
use super::call::OrgCall;
use super::error::Refusal;
use super::meters::refuse_proxy;
use super::{objects, shape, write};
use crate::audit;
use crate::openapi::schemas;
use crate::publish::PublishError;
use crate::route::{Gives, Need, Route, Takes, Verb};

/// Rows of the routing table.
pub fn routes() -> Vec<Route> {
    vec![
        Route::org(
            Verb::Post,
            "/orgs/{org}/meters/{meter_id}/raise",
            (
                "raise_meter",
                "Let a meter, wherever it hangs, give more than its limits per window for a while",
            ),
            Need::Role(Role::Admin),
            raise,
        )
        .takes(Takes::Body("RaiseInput"))
        .gives(Gives::One("Raised"))
        .local(),
    ]
}

/// What is submitted.
#[derive(Debug, Deserialize)]
struct Input {
    percent: u64,
    #[serde(default)]
    seconds: Option<u64>,
}

async fn raise(call: OrgCall) -> Result<Answer, Refusal> {
    let document = call.request.body.clone();
    let input: Input = shape::parse(schemas(), "RaiseInput", document).map_err(Refusal::invalid)?;
    let config = call.config()?;
    refuse_proxy(&config, call.request.part("meter_id"))?;
    let id: MeterId = call.request.id("meter_id")?;
    let object = config.object(ObjectId::Meter(id));
    let object = object.ok_or_else(|| objects::not_here(&config))?;
    let ends = input.percent == 100;
    let mut problems = Vec::new();
    if !ends {
        if let Body::Meter(meter) = &object.body {
            problems.extend(not_by_window(&meter.spec));
        }
        checks::range(Some(input.percent), PERCENT, "/percent", &mut problems);
        match input.seconds {
            Some(_) => checks::range(input.seconds, SECONDS, "/seconds", &mut problems),
            None => {
                let detail = "is missing: for how long?";
                problems.push(Problem::new("/seconds", "required", detail));
            }
        }
    }
    if !problems.is_empty() {
        return Err(Refusal::invalid(problems));
    }
    let seconds = input.seconds.filter(|_| !ends).unwrap_or(0);
    let written = written(&call, id, input.percent, seconds).await;
    written.map_err(|error| write::refusal(PublishError::Store(error)))?;
    let token = call.caller.token_id;
    tracing::info!(
        meter = %id, %token,
        "meter {id} gives {} percent of its limits for {seconds} s, by token {token}",
        input.percent
    );
    Ok(Answer::json(json!({
        "meter_id": id, "percent": input.percent, "seconds": seconds,
    })))
}

/// What is wrong with raising a meter that gives nothing per window.
fn not_by_window(meter: &Meter) -> Option<Problem> {
    let slots = Some(MeterAlgorithm::Concurrency);
    if meter.limits.iter().any(|limit| limit.algorithm != slots) {
        return None;
    }
    let detail = match meter.limits.is_empty() {
        true => "the meter has no limits: it refuses nothing".to_owned(),
        false => "the meter limits calls in flight, which have no window to give more in; change \
                  `limits` of the meter"
            .to_owned(),
    };
    Some(Problem::new("/percent", "not-applicable", detail))
}

async fn written(
    call: &OrgCall,
    id: MeterId,
    percent: u64,
    seconds: u64,
) -> Result<(), StoreError> {
    let store = call.control.publisher.store();
    let key = keys::raise(id);
    let op = if seconds == 0 {
        Op::Delete(key)
    } else {
        let raise = Raise {
            ms: seconds.saturating_mul(1_000),
            percent,
        };
        let value = wire::encode(&raise);
        let value = value.map_err(|error| StoreError::Invalid(error.to_string()))?;
        let lease = store.grant_lease(Duration::from_secs(seconds)).await?;
        Op::Put {
            key,
            value: value.into(),
            lease: Some(lease.id),
        }
    };
    let act = Act::MeterRaised {
        meter_id: id,
        percent,
        seconds,
    };
    audit::append(store, call.org_id(), call.said(act), &[op])
        .await
        .map(drop)
}

/// What is submitted.
pub fn input_schema() -> Value {
    json!({
        "type": "object",
        "additionalProperties": false,
        "required": ["percent"],
        "properties": {
            "percent": {
                "type": "integer", "minimum": 0,
                "description": "What it gives, in percent of each of its limits per window: 101 to \
                                1,000; 100 ends it"
            },
            "seconds": {
                "type": "integer", "minimum": 0,
                "description": "How long: 1 to 86,400"
            }
        }
    })
}

/// What is answered.
pub fn schema() -> Value {
    json!({
        "type": "object",
        "description": "It makes no version and ends by itself; another one takes its place",
        "properties": {
            "meter_id": {"type": "string"},
            "percent": {"type": "integer", "description": "What it gives, in percent"},
            "seconds": {"type": "integer", "description": "For how long from now on"}
        }
    })
}
