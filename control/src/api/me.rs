//! `/me`: what a token is told about itself.

use serde_json::json;

use super::answer::Answer;
use super::call::Call;
use super::error::Refusal;
use crate::route::{Gives, Route, Verb};

/// Rows of the routing table.
pub fn routes() -> Vec<Route> {
    vec![
        Route::token(
            Verb::Get,
            "/me",
            ("get_me", "Whose token this is and what it may do"),
            get,
        )
        .gives(Gives::One("Me"))
        .of_configuration(),
    ]
}

async fn get(call: Call) -> Result<Answer, Refusal> {
    let caller = &call.caller;
    let slug = call.control.slug_of(caller.org).unwrap_or_default();
    Ok(Answer::json(json!({
        "token_id": caller.token_id,
        "name": caller.token.name,
        "role": caller.token.role,
        "org_id": caller.org,
        "org": slug,
        "operator": caller.is_operator(),
        "expires_at": caller.token.expires_at,
    })))
}
