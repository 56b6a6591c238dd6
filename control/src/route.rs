//! What a row of the routing table says: method, path, who may call, what goes in and comes out.

use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;

use futures_util::future::{FutureExt, LocalBoxFuture};
use proto::id::RequestId;
use proto::org::Role;
use proto::tree::OrgConfig;

use crate::api::ahead::Given;
use crate::api::answer::Answer;
use crate::api::call::{Call, OrgCall, Presented};
use crate::api::error::Refusal;
use crate::state::Control;

/// The future that a handler returns.
pub type Answering = LocalBoxFuture<'static, Result<Answer, Refusal>>;

/// The methods of this API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verb {
    /// Reads.
    Get,
    /// Creates, or acts.
    Post,
    /// Replaces.
    Put,
    /// Merges (RFC 7396).
    Patch,
    /// Removes.
    Delete,
}

impl Verb {
    /// As in a request line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
        }
    }

    /// Whether it changes something.
    pub fn writes(self) -> bool {
        self != Self::Get
    }
}

/// Who may call a route, and what then runs: a handler gets exactly what was proved.
#[derive(Clone)]
pub enum Access {
    /// Anybody.
    Open(Rc<dyn Fn(Arc<Control>) -> Answering>),
    /// Whoever presents the token of an invitation, which the handler judges.
    Invited(Rc<dyn Fn(Presented) -> Answering>),
    /// Any valid token.
    Token(Rc<dyn Fn(Call) -> Answering>),
    /// An admin or owner of the organisation `system`.
    Operator(Rc<dyn Fn(Call) -> Answering>),
    /// A token of the path's organisation, or an operator's.
    Org(Need, Rc<dyn Fn(OrgCall) -> Answering>),
}

/// What a caller must be in an organisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// This role or a higher one.
    Role(Role),
    /// `member` for a proxy credential and what hangs on it, `admin` for a target credential.
    CredentialKind,
    /// `member`, and `admin` for the settings of a proxy that lift a guardrail.
    ProxySettings,
}

impl Need {
    /// The least role with which a call can succeed at all.
    pub fn least(self) -> Role {
        match self {
            Self::Role(role) => role,
            Self::CredentialKind | Self::ProxySettings => Role::Member,
        }
    }
}

/// What an answer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gives {
    /// One object of the named schema.
    One(&'static str),
    /// One object of either named schema, as a parameter says.
    Either(&'static str, &'static str),
    /// The created object, with 201.
    Created(&'static str),
    /// A page of objects.
    List(&'static str),
    /// Nothing, with 204.
    Nothing,
    /// Plain text.
    Text,
    /// Pieces of this media type, for as long as they come.
    Stream(&'static str),
    /// The OpenAPI document.
    Document,
}

/// What a request's body holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// No body.
    Nothing,
    /// A document of the named schema.
    Body(&'static str),
    /// The same, and it may be large: a whole configuration.
    Large(&'static str),
    /// A document, or no body at all.
    Optional(&'static str),
    /// A merge patch of the named schema.
    MergePatch(&'static str),
}

/// In which region a call is carried out, where there are several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// In the one that is home to the organisation.
    AtHome,
    /// In the one that is asked.
    Here,
    /// In the one that is asked; at home where that lacks the version that is presented, or a part.
    HereOrAtHome,
}

/// Which credentials the body of a call gives secrets for, by the configuration as it is here.
pub type GivenSecrets = fn(&OrgCall, &OrgConfig) -> Result<Vec<Given>, Refusal>;

/// A query parameter: name and meaning.
pub type Parameter = (&'static str, &'static str);

/// One row of the table.
#[derive(Clone)]
pub struct Route {
    /// The method.
    pub verb: Verb,
    /// The path below `/api/v1`, with `{name}` for its variable parts.
    pub path: &'static str,
    /// `<verb>_<resource>`, unique.
    pub operation: &'static str,
    /// One line for the documentation.
    pub summary: &'static str,
    /// Who may call, and what runs.
    pub access: Access,
    /// The body.
    pub takes: Takes,
    /// The answer.
    pub gives: Gives,
    /// Query parameters besides paging.
    pub parameters: &'static [Parameter],
    /// In which region it is carried out.
    pub served: Served,
    /// Whether it changes something, and so needs a token that is surely in force.
    pub changes: bool,
    /// Whether the operator's token of this region does, which no configuration knows.
    pub by_local_operator: bool,
    /// Which credentials its body gives secrets for, where it may give any.
    pub given_secrets: Option<GivenSecrets>,
}

impl Route {
    /// A row for anybody.
    pub fn open<F>(
        verb: Verb,
        path: &'static str,
        name: (&'static str, &'static str),
        handler: fn(Arc<Control>) -> F,
    ) -> Self
    where
        F: Future<Output = Result<Answer, Refusal>> + 'static,
    {
        let run = move |control| handler(control).boxed_local();
        Self::new(verb, path, name, Access::Open(Rc::new(run)))
    }

    /// A row for regions that are invited; carried out in the region that is asked.
    pub fn invited<F>(
        verb: Verb,
        path: &'static str,
        name: (&'static str, &'static str),
        handler: fn(Presented) -> F,
    ) -> Self
    where
        F: Future<Output = Result<Answer, Refusal>> + 'static,
    {
        let run = move |presented| handler(presented).boxed_local();
        Self::new(verb, path, name, Access::Invited(Rc::new(run))).local()
    }

    /// A row for every valid token.
    pub fn token<F>(
        verb: Verb,
        path: &'static str,
        name: (&'static str, &'static str),
        handler: fn(Call) -> F,
    ) -> Self
    where
        F: Future<Output = Result<Answer, Refusal>> + 'static,
    {
        let run = move |call| handler(call).boxed_local();
        Self::new(verb, path, name, Access::Token(Rc::new(run)))
    }

    /// A row for operators.
    pub fn operator<F>(
        verb: Verb,
        path: &'static str,
        name: (&'static str, &'static str),
        handler: fn(Call) -> F,
    ) -> Self
    where
        F: Future<Output = Result<Answer, Refusal>> + 'static,
    {
        let run = move |call| handler(call).boxed_local();
        Self::new(verb, path, name, Access::Operator(Rc::new(run)))
    }

    /// A row for members of the path's organisation.
    pub fn org<F>(
        verb: Verb,
        path: &'static str,
        name: (&'static str, &'static str),
        need: Need,
        handler: fn(OrgCall) -> F,
    ) -> Self
    where
        F: Future<Output = Result<Answer, Refusal>> + 'static,
    {
        let run = move |call| handler(call).boxed_local();
        Self::new(verb, path, name, Access::Org(need, Rc::new(run)))
    }

    fn new(
        verb: Verb,
        path: &'static str,
        (operation, summary): (&'static str, &'static str),
        access: Access,
    ) -> Self {
        Self {
            verb,
            path,
            operation,
            summary,
            access,
            takes: Takes::Nothing,
            gives: Gives::Nothing,
            parameters: &[],
            served: match verb.writes() {
                true => Served::AtHome,
                false => Served::Here,
            },
            changes: verb.writes(),
            by_local_operator: false,
            given_secrets: None,
        }
    }

    /// Carried out where it is asked for: it changes no configuration, whatever its method, and is
    /// about the nodes and the store of this region.
    pub fn local(mut self) -> Self {
        self.served = Served::Here;
        self
    }

    /// Only asks, whatever its method.
    pub fn changes_nothing(mut self) -> Self {
        self.changes = false;
        self
    }

    /// Reads configuration, which home has too: a version that is presented and does not arrive
    /// here is read there. Not for what each region has of its own: records, usage, nodes, links.
    pub fn of_configuration(mut self) -> Self {
        self.served = Served::HereOrAtHome;
        self
    }

    /// Also for the operator's token of this region.
    pub fn by_local_operator(mut self) -> Self {
        self.by_local_operator = true;
        self
    }

    /// Its body may give secrets of credentials.
    pub fn given_secrets(mut self, given: GivenSecrets) -> Self {
        self.given_secrets = Some(given);
        self
    }

    /// With this body.
    pub fn takes(mut self, takes: Takes) -> Self {
        self.takes = takes;
        self
    }

    /// With this answer.
    pub fn gives(mut self, gives: Gives) -> Self {
        self.gives = gives;
        self
    }

    /// With these query parameters.
    pub fn parameters(mut self, parameters: &'static [Parameter]) -> Self {
        self.parameters = parameters;
        self
    }

    /// The span of a call; nothing is made of it where no exporter is installed.
    pub fn span(&self, id: RequestId) -> tracing::Span {
        tracing::info_span!(
            "api",
            otel.kind = "server",
            otel.name = format!("{} {}", self.verb.as_str(), self.path),
            http.request.method = self.verb.as_str(),
            http.route = self.path,
            requestrocket.request.id = %id,
            http.response.status_code = tracing::field::Empty,
        )
    }

    /// Names of the variable parts of the path, in order.
    pub fn path_parameters(&self) -> impl Iterator<Item = &'static str> {
        self.path
            .split('/')
            .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
    }
}

impl std::fmt::Debug for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} {} ({})",
            self.verb.as_str(),
            self.path,
            self.operation
        )
    }
}
