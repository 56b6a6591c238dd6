//! API tokens of an organisation. Nobody makes, changes or deletes one above their own role.

use std::ops::RangeInclusive;

use jiff::Timestamp;
use proto::id::TokenId;
use proto::object::{Body, Object, ObjectId, StoredToken};
use proto::org::{ApiToken, Role};
use proto::problem::Problem;
use proto::seal::{Purpose, issue_api_token};
use serde_json::{Map, Value, json};

use super::answer::{Answer, Content};
use super::call::{OrgCall, require};
use super::error::Refusal;
use super::objects::{self, Edit, Manner, Resource, Rights, View};
use super::secret::SHOWN_BEFORE;
use super::warned::{add, past, warn};
use super::write;
use crate::route::{Gives, Need, Route, Takes, Verb};

/// The resource.
pub enum Tokens {}

impl Resource for Tokens {
    type Model = ApiToken;
    const COLLECTION: &'static str = "tokens";
    const SCHEMA: &'static str = "ApiToken";

    fn fresh_id() -> ObjectId {
        ObjectId::Token(TokenId::new())
    }

    fn span() -> RangeInclusive<ObjectId> {
        ObjectId::Token(TokenId::from_bits(0))..=ObjectId::Token(TokenId::from_bits(u128::MAX))
    }

    fn model(body: &Body) -> Option<&ApiToken> {
        match body {
            Body::Token(stored) => Some(&stored.token),
            _ => None,
        }
    }

    fn with_model(body: &Body, model: ApiToken) -> Body {
        match body {
            Body::Token(stored) => Body::Token(StoredToken {
                token: model,
                digest: stored.digest.clone(),
            }),
            other => other.clone(),
        }
    }

    fn validate(model: &ApiToken) -> Vec<Problem> {
        model.validate()
    }

    fn decorate(shown: &mut Map<String, Value>, _view: &View<'_>, object: &Object) {
        if let Some(token) = Self::model(&object.body) {
            warn(shown, past(token.expires_at, Timestamp::now()));
        }
    }

    fn guard(rights: &Rights, edit: &Edit<'_, ApiToken>) -> Result<(), Refusal> {
        for token in [edit.before, edit.after].into_iter().flatten() {
            let what = format!("a token of role {}", crate::openapi::role_name(token.role));
            require(rights.role, token.role, &what)?;
        }
        let Some(after) = edit.after else {
            return Ok(());
        };
        // A token that ends makes nothing that lasts longer, of itself or of another.
        let lasts = |end: Timestamp| after.expires_at.is_none_or(|after| after > end);
        if let Some(until) = rights.until.filter(|until| lasts(*until)) {
            let detail = format!("this token ends at {until}, and what it makes ends then too");
            return Err(Refusal::forbidden(format!(
                "{detail}: give an earlier `expires_at`"
            )));
        }
        if edit.before.is_none() && after.expires_at.is_some_and(|end| end <= Timestamp::now()) {
            let detail = "is over already; give a later instant, or none";
            let problem = Problem::new("/expires_at", "range", detail);
            return Err(Refusal::invalid(vec![problem]));
        }
        Ok(())
    }
}

const ALL: &str = "/orgs/{org}/tokens";
const ONE: &str = "/orgs/{org}/tokens/{id}";

/// Rows of the routing table.
pub fn routes() -> Vec<Route> {
    let admin = Need::Role(Role::Admin);
    let made = (
        "create_token",
        "Create a token; the answer holds it, this once",
    );
    vec![
        Route::org(
            Verb::Get,
            ALL,
            ("list_tokens", "List API tokens"),
            admin,
            list,
        )
        .gives(Gives::List("ApiToken"))
        .of_configuration(),
        Route::org(Verb::Post, ALL, made, admin, create)
            .takes(Takes::Body("ApiToken"))
            .gives(Gives::Created("ApiToken")),
        Route::org(
            Verb::Get,
            ONE,
            ("get_token", "Read an API token"),
            admin,
            get,
        )
        .gives(Gives::One("ApiToken"))
        .of_configuration(),
        Route::org(
            Verb::Patch,
            ONE,
            ("update_token", "Change an API token"),
            admin,
            update,
        )
        .takes(Takes::MergePatch("ApiToken"))
        .gives(Gives::One("ApiToken")),
        Route::org(
            Verb::Delete,
            ONE,
            ("delete_token", "Revoke an API token"),
            admin,
            delete,
        ),
    ]
}

async fn list(call: OrgCall) -> Result<Answer, Refusal> {
    objects::list::<Tokens>(&call, |_, _| true)
}

async fn get(call: OrgCall) -> Result<Answer, Refusal> {
    objects::get::<Tokens>(&call)
}

async fn create(call: OrgCall) -> Result<Answer, Refusal> {
    let token = objects::parse::<Tokens>(call.request.body.clone()).map_err(Refusal::invalid)?;
    let secret = issue_api_token();
    let digest = call
        .control
        .digest_key
        .digest(Purpose::ApiToken, secret.as_bytes());
    let body = Body::Token(StoredToken {
        token,
        digest: hex::encode(digest),
    });
    let mut answer = write::create::<Tokens>(&call, body).await?;
    // Of a remembered write, another was generated and is in force.
    if let Content::Json(shown) = &mut answer.content {
        match answer.replayed {
            false => shown["secret"] = json!({ "token": secret.as_str() }),
            true => {
                let detail = "was shown in the first answer to this write alone; for a new one \
                              delete this token and create another";
                add(
                    shown,
                    vec![Problem::new("/secret/token", SHOWN_BEFORE, detail)],
                );
            }
        }
    }
    Ok(answer)
}

async fn update(call: OrgCall) -> Result<Answer, Refusal> {
    write::change::<Tokens>(&call, Manner::Merge).await
}

async fn delete(call: OrgCall) -> Result<Answer, Refusal> {
    write::delete::<Tokens>(&call).await
}
