//! Filters of targets, credentials and proxies.

use proto::filter::Filter;
use proto::id::FilterId;
use proto::object::{Attached, Body, ObjectId};
use proto::problem::Problem;

use super::attached::{self, Policies, Policy, places};
use crate::route::Route;

/// The resource.
pub type Filters = Policies<FilterKind>;

/// What is a filter's own.
pub enum FilterKind {}

impl Policy for FilterKind {
    type Model = Filter;
    const COLLECTION: &'static str = "filters";
    const SCHEMA: &'static str = "Filter";
    const PART: &'static str = "filter_id";

    fn id(bits: u128) -> ObjectId {
        ObjectId::Filter(FilterId::from_bits(bits))
    }

    fn fresh_id() -> ObjectId {
        ObjectId::Filter(FilterId::new())
    }

    fn of(body: &Body) -> Option<&Attached<Filter>> {
        match body {
            Body::Filter(filter) => Some(filter),
            _ => None,
        }
    }

    fn body(attached: Attached<Filter>) -> Body {
        Body::Filter(attached)
    }

    fn validate(model: &Filter) -> Vec<Problem> {
        model.validate()
    }
}

/// Rows of the routing table.
pub fn routes() -> Vec<Route> {
    attached::everywhere::<FilterKind>(places!("filter"))
}
