//! The nodes of a region: who is there, what each serves, and what it cannot serve.

use proto::keys;
use proto::member::Member;
use proto::store::load;
use serde_json::{Value, json};

use super::answer::Answer;
use super::call::Call;
use super::error::Refusal;
use super::{page, write};
use crate::route::{Gives, Route, Verb};

/// Rows of the routing table.
pub fn routes() -> Vec<Route> {
    vec![
        Route::operator(
            Verb::Get,
            "/nodes",
            ("list_nodes", "List the nodes of this region"),
            list,
        )
        .gives(Gives::List("Node")),
    ]
}

async fn list(call: Call) -> Result<Answer, Refusal> {
    let newest = call.control.fingerprint();
    let mut members: Vec<Member> = Vec::new();
    let store = call.control.publisher.store();
    let listed = load::list(store, keys::NODES, None, |pair| {
        // One of another release that cannot be read is not worth failing for.
        members.extend(serde_json::from_slice::<Member>(&pair.value).ok());
    });
    listed.await.map_err(|error| write::refusal(error.into()))?;
    members.sort_by(|one, other| (&one.region, &one.name).cmp(&(&other.region, &other.name)));
    let items = members
        .iter()
        .map(|member| shown(member, &newest))
        .collect();
    Ok(Answer::json(page::page(items, None)))
}

fn shown(member: &Member, newest: &str) -> Value {
    // A member of plain fields always serialises.
    let mut shown = serde_json::to_value(member).unwrap_or_default();
    shown["current"] = json!(member.serves == newest);
    shown
}
