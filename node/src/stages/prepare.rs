//! Stage 5: what will be sent, before the credential: path join, header hygiene, request filters.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, header};
use proto::filter::FilterSet;
use proto::outcome::{Code, EarlyEnd};
use proto::path::PathReading;

use crate::actor::{Next, Stage, StageKind};
use crate::flow::{Exchange, Inbound, Outgoing};
use crate::hygiene::fields;
use crate::inbound::{self, Buffered};
use crate::snapshot::CompiledProxy;

/// The stage.
pub struct Prepare;

impl Stage for Prepare {
    const KIND: StageKind = StageKind::Prepare;

    fn decide(&mut self, exchange: &mut Exchange) -> Next {
        let Some(proxy) = exchange.proxy.clone() else {
            return EarlyEnd::new(Code::InternalError, "prepare met no proxy").into();
        };
        if exchange.request.headers.contains_key(header::UPGRADE) {
            let detail = "this proxy does not allow upgrades; use plain requests";
            return EarlyEnd::new(Code::UpgradeDenied, detail).into();
        }
        let outgoing = match outgoing(exchange, &proxy) {
            Ok(outgoing) => outgoing,
            Err(end) => return end.into(),
        };
        exchange.outgoing = Some(outgoing);
        if exchange.applied.asks_for_usage() {
            ask_for_usage(exchange);
        }
        match request_filters(exchange, &proxy) {
            Some(filters) => filter_body(exchange, filters, proxy.body_buffer_bytes),
            None => Next::Continue,
        }
    }
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
        for name in &fields::CONDITIONAL {
            headers.remove(name);
        }
        // Codings that the filter stage can read.
        let codings = HeaderValue::from_static("gzip, br, zstd, deflate");
        headers.insert(header::ACCEPT_ENCODING, codings);
    }
    if exchange.applied.reads_answer() {
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

/// Asks for what a meter counts, where the caller has not said whether it wants to know.
fn ask_for_usage(exchange: &mut Exchange) {
    let Inbound::Buffered(body) = &exchange.body else {
        return;
    };
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

/// Applies request filters, which need the whole body.
fn filter_body(exchange: &mut Exchange, filters: Arc<FilterSet>, bytes_max: usize) -> Next {
    match &exchange.body {
        Inbound::None => return Next::Continue,
        Inbound::Buffered(bytes) => {
            let applied = filters.apply(bytes);
            return match applied {
                Ok(applied) => {
                    let body = exchange.notes.filtered(applied);
                    replace_body(exchange, body);
                    Next::Continue
                }
                Err(error) => not_filterable(&error).into(),
            };
        }
        Inbound::Oversize { .. } => return too_large(bytes_max).into(),
        Inbound::Stream { .. } => {}
    }
    inbound::buffer(bytes_max, move |exchange, buffered| match buffered {
        Buffered::Whole(bytes) => match filters.apply(&bytes) {
            Ok(applied) => {
                let body = exchange.notes.filtered(applied);
                replace_body(exchange, body);
                None
            }
            Err(error) => Some(not_filterable(&error)),
        },
        Buffered::TooLarge => Some(too_large(bytes_max)),
    })
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
             filters need it whole; raise the limit or send less"
        ),
    )
}
