//! Stage 5: what will be sent, before the credential: path join, header hygiene, request filters.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use proto::field_name::is_there;
use proto::filter::FilterSet;
use proto::outcome::{Code, EarlyEnd};
use proto::path::PathReading;
use proto::proxy::ErrorBodies;
use proto::validation::{BodyValidator, ValidationMode, needs_body};

use crate::actor::{Next, Stage, StageKind};
use crate::flow::{Exchange, Inbound, Outgoing};
use crate::hygiene::fields::{self, codings};
use crate::inbound::{self, Buffered};
use crate::reflected;
use crate::snapshot::CompiledProxy;
use crate::validating::{self, Side};

/// The stage.
pub struct Prepare;

impl Stage for Prepare {
    const KIND: StageKind = StageKind::Prepare;

    fn decide(&mut self, exchange: &mut Exchange) -> Next {
        let Some(proxy) = exchange.proxy.clone() else {
            return EarlyEnd::new(Code::InternalError, "prepare met no proxy").into();
        };
        if asks_for_a_tunnel(&exchange.request.headers) {
            let detail = "this proxy does not allow upgrades; use plain requests";
            return EarlyEnd::new(Code::UpgradeDenied, detail).into();
        }
        let outgoing = match outgoing(exchange, &proxy) {
            Ok(outgoing) => outgoing,
            Err(end) => return end.into(),
        };
        exchange.outgoing = Some(outgoing);
        let filters = request_filters(exchange, &proxy);
        let validator = proxy.request_validator.clone();
        if filters.is_none() && validator.is_none() {
            ask_for_usage(exchange);
            return Next::Continue;
        }
        let treated = Treated {
            filters,
            validator,
            bytes_max: proxy.body_buffer_bytes,
        };
        treat_body(exchange, treated)
    }
}

/// Whether it is an upgrade that the listener takes for one (RFC 9110 §7.8): to a websocket. Any
/// other offer, such as `h2c`, is ignored and does not travel.
fn asks_for_a_tunnel(headers: &HeaderMap) -> bool {
    if !is_there(headers, &header::UPGRADE) {
        return false;
    }
    let offers = headers.get_all(header::UPGRADE).iter();
    let mut offers = offers.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    offers.any(|offer| {
        let protocol = offer.split(|byte| *byte == b'/').next().unwrap_or_default();
        protocol.trim_ascii().eq_ignore_ascii_case(b"websocket")
    })
}

fn outgoing(exchange: &mut Exchange, proxy: &CompiledProxy) -> Result<Outgoing, EarlyEnd> {
    let rest = exchange.request.rest();
    let reading = PathReading::parse(&rest, proxy.target.path)
        .map_err(|refused| EarlyEnd::new(Code::MalformedRequest, refused.to_string()))?;
    let caller = std::mem::take(&mut exchange.request.headers);
    if proxy.elsewhere.is_some() {
        // The region that serves it reads it anew.
        return Ok(Outgoing {
            path: rest.to_vec(),
            query: exchange.request.query.take(),
            headers: fields::for_gateway(caller),
        });
    }
    let path = reading.join(&proxy.target.base.path);
    let mut headers = fields::for_target(caller, &proxy.request_fields).map_err(|refused| {
        EarlyEnd::new(
            Code::MalformedRequest,
            format!(
                "header name `{}` holds `_`, which many servers read as `-`; rename it, or set \
                     `allow_underscore_headers` on the target",
                refused.0
            ),
        )
    })?;
    if response_filters(exchange, proxy).is_some() {
        fields::ask_for_whole_body(&exchange.request.method, &mut headers);
        let codings = HeaderValue::from_static(match proxy.error_bodies {
            // They reach the caller as they come, who may not know the coding.
            ErrorBodies::Pass => "identity",
            // Codings that the filter stage can read.
            ErrorBodies::Blank | ErrorBodies::Filter => "gzip, br, zstd, deflate",
        });
        headers.insert(header::ACCEPT_ENCODING, codings);
    }
    reflected::ask_for_readable(proxy, &mut headers);
    if proxy.response_validator.is_some() {
        headers.remove(header::RANGE);
        headers.remove(header::IF_RANGE);
    }
    let is_read = exchange
        .applied
        .as_ref()
        .is_some_and(|of| of.reads_answer());
    if is_read || proxy.response_validator.is_some() {
        // Events of a coded stream could not be told apart.
        let plain = HeaderValue::from_static("identity");
        headers.insert(header::ACCEPT_ENCODING, plain);
    }
    Ok(Outgoing {
        path,
        query: exchange.request.query.take(),
        headers,
    })
}

/// Asks for what a meter counts, where the caller has not said whether it wants to know. Last: what
/// the caller sent is judged and filtered, not what is added here.
fn ask_for_usage(exchange: &mut Exchange) {
    let (Inbound::Buffered(body), Some(applied)) = (&exchange.body, &exchange.applied) else {
        return;
    };
    if !applied.asks_for_usage() {
        return;
    }
    if let Some(asking) = proto::meter::value::inject(body) {
        replace_body(exchange, asking.into());
        exchange.usage_asked = true;
    }
}

fn request_filters(exchange: &Exchange, proxy: &CompiledProxy) -> Option<Arc<FilterSet>> {
    let caller = exchange.caller.as_ref()?;
    proxy.credentials.get(caller.index)?.request_filters.clone()
}

/// The response filters that apply to this caller.
pub fn response_filters(exchange: &Exchange, proxy: &CompiledProxy) -> Option<Arc<FilterSet>> {
    let caller = exchange.caller.as_ref()?;
    proxy
        .credentials
        .get(caller.index)?
        .response_filters
        .clone()
}

/// What the body of a request is put through, all of which needs the whole.
struct Treated {
    filters: Option<Arc<FilterSet>>,
    validator: Option<Arc<BodyValidator>>,
    bytes_max: usize,
}

fn treat_body(exchange: &mut Exchange, treated: Treated) -> Next {
    let end = match &exchange.body {
        Inbound::Stream { .. } => {
            let bytes_max = treated.bytes_max;
            return inbound::buffer(bytes_max, move |exchange, buffered| match buffered {
                Buffered::Whole(bytes) => treated.treat(exchange, &bytes).err(),
                Buffered::TooLarge => treated.too_large(exchange).err(),
            });
        }
        Inbound::None => treated.none(exchange),
        Inbound::Buffered(bytes) if bytes.len() <= treated.bytes_max => {
            let bytes = bytes.clone();
            treated.treat(exchange, &bytes)
        }
        Inbound::Buffered(_) | Inbound::Oversize { .. } => treated.too_large(exchange),
    };
    end.map_or_else(Into::into, |()| Next::Continue)
}

impl Treated {
    /// There is no body. Methods that say what to do in one must have it.
    fn none(&self, exchange: &mut Exchange) -> Result<(), EarlyEnd> {
        let expected = needs_body(exchange.request.method.as_str());
        match self.validator.as_ref().filter(|_| expected) {
            Some(validator) => {
                let why = "and there is none; send one";
                validating::without(validator, Side::Request, why, &mut exchange.notes)
            }
            None => Ok(()),
        }
    }

    fn treat(&self, exchange: &mut Exchange, bytes: &Bytes) -> Result<(), EarlyEnd> {
        self.whole(exchange, bytes)?;
        ask_for_usage(exchange);
        Ok(())
    }

    fn whole(&self, exchange: &mut Exchange, bytes: &Bytes) -> Result<(), EarlyEnd> {
        if bytes.is_empty() && self.filters.is_none() {
            return self.none(exchange);
        }
        let mut body = bytes.clone();
        if let Some(filters) = &self.filters {
            let applied = filters
                .apply(bytes)
                .map_err(|error| not_filterable(&error))?;
            body = exchange.filtered(applied, StageKind::Prepare);
            replace_body(exchange, body.clone());
        }
        let Some(validator) = &self.validator else {
            return Ok(());
        };
        let codings = exchange
            .outgoing
            .as_ref()
            .map(|outgoing| codings(&outgoing.headers));
        let codings = codings
            .filter(|_| self.filters.is_none())
            .unwrap_or_default();
        match proto::body_view::decode(&body, &codings, self.bytes_max) {
            Ok(decoded) => {
                validating::hold(validator, Side::Request, &decoded, &mut exchange.notes)
            }
            Err(error) => {
                let why = format!("and this one cannot be decoded: {error}");
                validating::without(validator, Side::Request, &why, &mut exchange.notes)
            }
        }
    }

    fn too_large(&self, exchange: &mut Exchange) -> Result<(), EarlyEnd> {
        let bytes_max = self.bytes_max;
        match &self.validator {
            Some(validator)
                if self.filters.is_none() && validator.mode == ValidationMode::Report =>
            {
                let why = format!("and this one is larger than {bytes_max} bytes");
                validating::without(validator, Side::Request, &why, &mut exchange.notes)
            }
            _ => Err(too_large(bytes_max)),
        }
    }
}

fn replace_body(exchange: &mut Exchange, body: Bytes) {
    exchange.body = Inbound::Buffered(body);
    if let Some(outgoing) = &mut exchange.outgoing {
        for name in ["content-md5", "content-digest", "digest", "repr-digest"] {
            outgoing.headers.remove(HeaderName::from_static(name));
        }
    }
}

fn not_filterable(error: &proto::filter::FilterError) -> EarlyEnd {
    let detail = format!("the request's body must be JSON for this proxy's filters: {error}");
    EarlyEnd::new(Code::FilterNotJson, detail)
}

fn too_large(bytes_max: usize) -> EarlyEnd {
    EarlyEnd::new(
        Code::RequestTooLarge,
        format!(
            "the body is larger than {bytes_max} bytes (`body_buffer_bytes` of the proxy) and \
             filters or validation need it whole; raise the limit or send less"
        ),
    )
}
