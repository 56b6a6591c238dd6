//! Where a problem is said to be.
//!
//! Who wrote a list of operations is told which of them is at fault. The operations of a rollback
//! nobody wrote: there a problem names the object, by kind and name in words, and by the place
//! that the API has it at in its pointer: `/proxies/prx_…/target_id`.

use super::operation::Operation;
use super::{Objects, OrgConfig};
use crate::object::{Body, ObjectId};
use crate::problem::Problem;

/// Tells problems of operations.
pub(super) struct Told<'a> {
    operations: &'a [Operation],
    /// Whether nobody wrote them.
    is_return: bool,
}

impl<'a> Told<'a> {
    pub fn of(operations: &'a [Operation]) -> Self {
        let mut all = operations.iter();
        let is_return = all.any(|operation| matches!(operation, Operation::Restore { .. }));
        Self {
            operations,
            is_return,
        }
    }

    /// The problem of the operation at a place in the list.
    pub fn problem(
        &self,
        (before, after): (&OrgConfig, &Objects),
        (at, problem): (usize, Problem),
    ) -> Problem {
        match self.operations.get(at) {
            Some(operation) if self.is_return => {
                let id = operation.id();
                let object = after.get(&id).or_else(|| before.object(id));
                of_object(id, object.map(|object| &object.body), problem)
            }
            _ if self.operations.len() > 1 => problem.below(&format!("/{at}")),
            _ => problem,
        }
    }
}

fn of_object(id: ObjectId, body: Option<&Body>, problem: Problem) -> Problem {
    let (collection, kind) = match id {
        ObjectId::Org(_) => ("orgs", "organisation"),
        ObjectId::Token(_) => ("tokens", "API token"),
        ObjectId::Target(_) => ("targets", "target"),
        ObjectId::Credential(_) => ("credentials", "credential"),
        ObjectId::Proxy(_) => ("proxies", "proxy"),
        ObjectId::Rule(_) => ("rules", "rule"),
        ObjectId::Filter(_) => ("filters", "filter"),
        ObjectId::Meter(_) => ("meters", "meter"),
    };
    let name = match body {
        Some(Body::Org(org)) => &*org.slug,
        Some(Body::Token(stored)) => &stored.token.name,
        Some(Body::Target(target)) => &target.name,
        Some(Body::Credential(stored)) => &stored.credential.name,
        Some(Body::Proxy(proxy)) => &proxy.name,
        Some(Body::Meter(meter)) => &meter.spec.name,
        Some(Body::Rule(_) | Body::Filter(_)) | None => "",
    };
    let whose = match name {
        "" => format!("{kind} {id}"),
        name => format!("{kind} `{name}`"),
    };
    let problem = problem.below(&format!("/{collection}/{id}"));
    Problem {
        detail: format!("{whose}: {}", problem.detail),
        ..problem
    }
}
