//! What a handler is handed: who calls, where, with what, all of it checked before.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use actix_web::HttpRequest;
use actix_web::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use jiff::Timestamp;
use proto::audit::{Act, Said};
use proto::forwarded::TrustedProxies;
use proto::id::OrgId;
use proto::org::Role;
use proto::tree::{OrgConfig, SYSTEM_ORG};
use serde_json::Value;
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::error::Refusal;
use super::objects::View;
use super::page::PageRequest;
use super::precondition::{Condition, Weak};
use super::write;
use crate::audit;
use crate::operator::Caller;
use crate::publish::{self, Author, Idempotency};
use crate::regions::forward::FORWARDED_BY;
use crate::state::{Control, OrgName};

/// A call by a known caller.
#[derive(Clone)]
pub struct Call {
    /// What serves it.
    pub control: Arc<Control>,
    /// Whose token it holds.
    pub caller: Caller,
    /// What it asks for.
    pub request: Request,
}

/// A call by whoever presents a token that is none of the API's.
pub struct Presented {
    /// What serves it.
    pub control: Arc<Control>,
    /// The token.
    pub token: Zeroizing<String>,
    /// The address that the connection came from.
    pub source: Option<IpAddr>,
    /// The body.
    pub body: Value,
}

/// A call within an organisation that the caller belongs to, or operates.
#[derive(Clone)]
pub struct OrgCall {
    /// What serves it.
    pub control: Arc<Control>,
    /// Whose token it holds.
    pub caller: Caller,
    /// The caller's role in this organisation.
    pub role: Role,
    /// The organisation.
    pub org: OrgName,
    /// What it asks for.
    pub request: Request,
}

impl OrgCall {
    /// The organisation's id.
    pub fn org_id(&self) -> OrgId {
        self.org.id
    }

    /// The organisation's configuration as last seen; empty before its first version.
    ///
    /// # Errors
    /// The organisation is being made or removed.
    pub fn config(&self) -> Result<Arc<OrgConfig>, Refusal> {
        self.control
            .config(self.org.id)
            .ok_or_else(Refusal::not_found)
    }

    /// What answers are made from.
    pub fn view(&self) -> View<'_> {
        View {
            control: &self.control,
            role: self.role,
            slug: &self.org.slug,
        }
    }

    /// Who a version will name as its author.
    pub fn author(&self) -> Author {
        Author {
            name: self.caller.token_id.to_string(),
            role: self.role,
            source: self.request.source,
        }
    }

    /// What an audit entry says of this call.
    pub fn said(&self, act: Act) -> Said {
        said(&self.caller, &self.request, act)
    }

    /// Writes an entry of what this call is about to do into the audit of its organisation.
    ///
    /// # Errors
    /// The store failed: it must not be done.
    pub async fn audited(&self, act: Act) -> Result<(), Refusal> {
        audited(&self.control, self.org_id(), self.said(act)).await
    }

    /// What the publisher is told of this call.
    pub fn publishing(&self) -> publish::Request {
        publish::Request {
            org: self.org_id(),
            author: self.author(),
            deadline: Instant::now() + self.control.settings.write_deadline,
            idempotency: self.request.idempotency.clone(),
        }
    }

    /// Refuses what `system` holds of all organisations to those in it who are no operators.
    ///
    /// # Errors
    /// 403.
    pub fn of_operators(&self) -> Result<(), Refusal> {
        of_operators(self.org_id(), self.role)
    }

    /// Refuses a caller below a role.
    ///
    /// # Errors
    /// 403, naming what needs the role.
    pub fn require(&self, role: Role, what: &str) -> Result<(), Refusal> {
        require(self.role, role, what)
    }
}

impl Call {
    /// What an audit entry says of this call.
    pub fn said(&self, act: Act) -> Said {
        said(&self.caller, &self.request, act)
    }

    /// Writes an entry of what this call is about to do into the audit of an organisation.
    ///
    /// # Errors
    /// The store failed: it must not be done.
    pub async fn audited(&self, org: OrgId, act: Act) -> Result<(), Refusal> {
        audited(&self.control, org, self.said(act)).await
    }
}

impl Presented {
    /// Writes an entry of what this call does into the audit of `system`.
    ///
    /// # Errors
    /// The store failed.
    pub async fn audited(&self, actor: &str, act: Act) -> Result<(), Refusal> {
        let said = Said {
            at: Timestamp::now(),
            actor: actor.to_owned(),
            source: self.source,
            act,
        };
        audited(&self.control, SYSTEM_ORG, said).await
    }
}

async fn audited(control: &Control, org: OrgId, said: Said) -> Result<(), Refusal> {
    let written = audit::append(control.publisher.store(), org, said, &[]).await;
    written
        .map(drop)
        .map_err(|error| write::refusal(error.into()))
}

fn said(caller: &Caller, request: &Request, act: Act) -> Said {
    Said {
        at: Timestamp::now(),
        actor: match caller.is_local() {
            true => "local-operator".into(),
            false => caller.token_id.to_string(),
        },
        source: request.source,
        act,
    }
}

/// Refuses what `system` holds of all organisations (what they are called, who missed a proxy of
/// theirs) to those in it who are no operators.
///
/// # Errors
/// 403.
pub fn of_operators(org: OrgId, role: Role) -> Result<(), Refusal> {
    match org == SYSTEM_ORG {
        true => require(role, Role::Admin, "what concerns other organisations"),
        false => Ok(()),
    }
}

/// Refuses a role that is too low.
///
/// # Errors
/// 403, naming what needs the role.
pub fn require(has: Role, needs: Role, what: &str) -> Result<(), Refusal> {
    if has >= needs {
        return Ok(());
    }
    let (has, needs) = (
        crate::openapi::role_name(has),
        crate::openapi::role_name(needs),
    );
    Err(Refusal::forbidden(format!(
        "{what} needs role {needs}; this token has role {has}"
    )))
}

/// The parts of a request that handlers look at.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Variable parts of the path, by name.
    pub path: BTreeMap<&'static str, String>,
    /// Query parameters.
    pub query: Query,
    /// `If-Match`.
    pub if_match: Option<Condition>,
    /// `If-None-Match`.
    pub if_none_match: Option<Condition>,
    /// `Idempotency-Key`, as the publisher remembers it with the version.
    pub idempotency: Option<Idempotency>,
    /// The address that the connection came from.
    pub source: Option<IpAddr>,
    /// `Accept`, where its value is text.
    pub accept: Option<String>,
    /// `Last-Event-ID`, likewise.
    pub last_event: Option<String>,
    /// What the same question is put to other regions with.
    pub asking: Asking,
    /// The body; null when the route takes none.
    pub body: Value,
}

/// What a question is put to other regions with.
#[derive(Clone, Debug, Default)]
pub struct Asking {
    /// The caller's token as it was presented, which each region judges for itself. It is marked as
    /// secret, so that it stands in no log.
    pub authorization: Option<HeaderValue>,
    /// Whether another region passed the question on: it is not passed on again.
    pub is_passed_on: bool,
}

impl Asking {
    /// Reads it from a request's head.
    pub fn of(headers: &HeaderMap) -> Self {
        let mut authorization = headers.get(header::AUTHORIZATION).cloned();
        if let Some(value) = &mut authorization {
            value.set_sensitive(true);
        }
        Self {
            authorization,
            is_passed_on: headers.contains_key(FORWARDED_BY),
        }
    }
}

impl Request {
    /// A variable part of the path.
    pub fn part(&self, name: &str) -> &str {
        // The router fills every part of the route's path, so the default is never taken.
        self.path.get(name).map(String::as_str).unwrap_or_default()
    }

    /// An id in the path.
    ///
    /// # Errors
    /// 404: a text that is no id names nothing.
    pub fn id<T: std::str::FromStr>(&self, name: &str) -> Result<T, Refusal> {
        self.part(name).parse().map_err(|_| Refusal::not_found())
    }

    /// Which page is asked for.
    ///
    /// # Errors
    /// See [`PageRequest::parse`].
    pub fn page(&self) -> Result<PageRequest, Refusal> {
        PageRequest::parse(self.query.get("limit"), self.query.get("cursor"))
    }
}

/// Query parameters, each at most once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query(BTreeMap<String, String>);

impl Query {
    /// Reads a query string.
    ///
    /// # Errors
    /// A parameter that the route does not know, or one given twice.
    pub fn parse(text: &str, known: &[&str]) -> Result<Self, Refusal> {
        let mut parameters = BTreeMap::new();
        for (name, value) in url::form_urlencoded::parse(text.as_bytes()) {
            if !known.contains(&&*name) {
                let name = proto::checks::printable(&name);
                let detail = match super::shape::nearest(&name, known.iter().copied()) {
                    Some(near) => format!("is not known here; did you mean `{near}`?"),
                    None if known.is_empty() => "is not known here; none is".to_owned(),
                    None => format!("is not known here; known are {}", known.join(", ")),
                };
                return Err(Refusal::parameter(&name, detail));
            }
            let twice = parameters.insert(name.to_string(), value.into_owned());
            if twice.is_some() {
                return Err(Refusal::parameter(&name, "is given twice"));
            }
        }
        Ok(Self(parameters))
    }

    /// The value of a parameter.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// All of them: name and value.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }

    /// The value of a parameter, parsed.
    ///
    /// # Errors
    /// 400, with `expected` in its words.
    pub fn parsed<T: std::str::FromStr>(
        &self,
        name: &str,
        expected: &str,
    ) -> Result<Option<T>, Refusal> {
        self.get(name)
            .map(|text| {
                text.parse()
                    .map_err(|_| Refusal::parameter(name, format!("must be {expected}")))
            })
            .transpose()
    }
}

/// Reads the two preconditions of a request.
///
/// # Errors
/// A header that is no list of entity tags.
pub fn conditions(headers: &HeaderMap) -> Result<(Option<Condition>, Option<Condition>), Refusal> {
    let read = |name: &HeaderName, word: &'static str, weak: Weak| {
        single(headers, name, word)?
            .map(|value| Condition::parse(word, value, weak))
            .transpose()
    };
    Ok((
        read(&header::IF_MATCH, "If-Match", Weak::Never)?,
        read(&header::IF_NONE_MATCH, "If-None-Match", Weak::Counts)?,
    ))
}

/// The address that a request comes from: the peer's, or the one that trusted proxies name.
pub fn source(request: &HttpRequest, proxies: &TrustedProxies) -> Option<IpAddr> {
    let lines = request.headers().get_all(proxies.header.name());
    let lines = lines.map(HeaderValue::as_bytes);
    let peer = request.peer_addr()?;
    Some(proxies.source(peer.ip(), lines))
}

/// The value of a header that may be given once.
///
/// # Errors
/// It is given twice, or is no text.
pub fn single<'h>(
    headers: &'h HeaderMap,
    name: &HeaderName,
    word: &str,
) -> Result<Option<&'h str>, Refusal> {
    let mut values = headers.get_all(name);
    let value = values.next();
    if values.next().is_some() {
        return Err(Refusal::parameter(word, "is given twice"));
    }
    value
        .map(|value| {
            value
                .to_str()
                .map_err(|_| Refusal::parameter(word, "holds something else than ASCII text"))
        })
        .transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_and_doubled_parameters_are_refused() {
        for (text, good) in [
            ("", true),
            ("limit=5&cursor=x", true),
            ("limt=5", false),
            ("limit=5&limit=6", false),
            ("a%20b=1", false),
        ] {
            assert_eq!(
                Query::parse(text, &["limit", "cursor"]).is_ok(),
                good,
                "{text}"
            );
        }
    }
}
