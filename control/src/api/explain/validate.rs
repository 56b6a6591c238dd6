//! A request's body against the schema of its proxy.

use proto::filter::{Direction, Filter};
use proto::outcome::Code;
use proto::rule::Scope;
use proto::validation::{BodyValidator, ValidationMode, needs_body};
use serde_json::json;

use super::described::Described;
use super::judge::{Answer, Explained, Judged};

impl Judged<'_> {
    /// The body against the proxy's schema, by the function that nodes use.
    pub(super) fn validate(&self, explained: &mut Explained, request: &Described) {
        let Some(schema) = &self.proxy.validation.request else {
            return explained.pass("prepare", json!({}));
        };
        let filtered = |(_, filter): &(Scope, &Filter)| filter.direction == Direction::Request;
        let (Some(body), false) = (&request.body, self.filters.iter().any(filtered)) else {
            let unknown = match &request.body {
                Some(_) => "request filters come first and are not applied here",
                None => "the body is not known",
            };
            if explained.answer == Answer::Allowed && schema.mode == ValidationMode::Enforce {
                explained.answer = Answer::Unknown;
            }
            return explained.push("prepare", "unknown", json!({"validation": unknown}));
        };
        if body.is_empty() {
            let needed = needs_body(&request.method);
            return match schema.mode {
                ValidationMode::Enforce if needed => {
                    explained.end("prepare", Code::ValidationFailed, "there is no body");
                }
                ValidationMode::Report if needed => {
                    explained.pass("prepare", json!({"warning": "there is no body"}));
                }
                _ => explained.pass("prepare", json!({})),
            };
        }
        let judged = BodyValidator::new(schema).map(|validator| validator.check(body));
        match (judged, schema.mode) {
            (Ok(Err(invalid)), ValidationMode::Enforce) => {
                explained.end("prepare", Code::ValidationFailed, &invalid.summary());
            }
            (Ok(Err(invalid)), ValidationMode::Report) => {
                explained.pass("prepare", json!({"warning": invalid.summary()}));
            }
            (Ok(Ok(())), _) => explained.pass("prepare", json!({"validation": "valid"})),
            // Nodes keep the last good form of such a proxy.
            (Err(_), _) => explained.pass("prepare", json!({"validation": "unusable"})),
        }
    }
}
