//! The end of a request that no answer of its target came to.

use proto::outcome::{Code, EarlyEnd};
use tracing::{info, warn};

use crate::flow::Exchange;
use crate::inbound;
use crate::snapshot::CompiledProxy;
use crate::upstream::foreseen::BLOCKED;
use crate::upstream::{Failure, FailureKind};

/// The end of a request that its target did not answer; the log has what a caller is not told.
pub fn end(exchange: &Exchange, proxy: &CompiledProxy, failure: &Failure) -> EarlyEnd {
    let (request, target) = (exchange.id, &proxy.target.id);
    let (trace_id, span_id) = exchange.trace_ids();
    // The log has the inner address; the caller never does.
    match failure.kind {
        FailureKind::BodyFromCaller(error) => {
            info!(%request, trace_id, span_id, "{request}: {error}");
            return inbound::broken(error);
        }
        FailureKind::Refused { .. } => {
            warn!(%request, trace_id, span_id, %target, "{request}: {failure}");
        }
        _ => {
            info!(%request, trace_id, span_id, %target, "{request}: {failure}");
        }
    }
    early_end(&proxy.first_byte_text, failure)
}

/// What a caller is told of a failure, with what to do next.
fn early_end(first_byte_text: &str, failure: &Failure) -> EarlyEnd {
    let carried = match failure.maybe_carried_out {
        true => "; the request may have been carried out",
        false => "; the request was not carried out",
    };
    let mut end = told(&failure.kind, first_byte_text, carried);
    if failure.maybe_carried_out && failure.kind.is_before_sending() {
        end.detail = format!("{}{carried} by an earlier attempt", end.detail).into();
    }
    if end.code == Code::UpstreamTimeout && failure.maybe_carried_out {
        // Three waits would be three bills.
        end.should_retry = Some(false);
    }
    end
}

/// What is told of each kind.
fn told(kind: &FailureKind, first_byte_text: &str, carried: &str) -> EarlyEnd {
    match kind {
        FailureKind::Refused { .. } => EarlyEnd::new(Code::UpstreamBlocked, BLOCKED),
        FailureKind::Resolve(_) => EarlyEnd::new(
            Code::UpstreamUnreachable,
            "the target's host name has no address; check `base_url` of the target",
        ),
        FailureKind::Connect(_) => EarlyEnd::new(
            Code::UpstreamUnreachable,
            "the target refuses connections; check `base_url` of the target and whether it is up",
        ),
        FailureKind::Reset(_) => EarlyEnd::new(
            Code::UpstreamUnreachable,
            format!("connection closed before an answer{carried}"),
        ),
        FailureKind::BadHttp(_) => EarlyEnd::new(
            Code::UpstreamInvalid,
            format!("the target's answer is not valid HTTP/1.1{carried}"),
        ),
        FailureKind::Tls(_) => EarlyEnd::new(
            Code::UpstreamTls,
            "TLS with the target failed: its certificate must be valid for the host of `base_url` \
             and come from a known authority; set `tls.ca` of the target for a private one",
        ),
        FailureKind::ConnectTimeout => EarlyEnd::new(
            Code::UpstreamTimeout,
            "no connection to the target in time (`timeouts.connect_ms`); check that it is up",
        ),
        FailureKind::FirstByteTimeout => EarlyEnd::new(
            Code::UpstreamTimeout,
            format!("no first byte within {first_byte_text}; raise it or stream{carried}"),
        ),
        FailureKind::TotalTimeout => EarlyEnd::new(
            Code::UpstreamTimeout,
            format!("no answer within `timeouts.total_ms`; raise it{carried}"),
        ),
        FailureKind::CallerStalled => EarlyEnd::new(
            Code::UpstreamTimeout,
            format!(
                "the body of the request had not come when `timeouts.total_ms` was over; raise it \
                 or send faster{carried}"
            ),
        ),
        FailureKind::Held => EarlyEnd::new(
            Code::UpstreamTimeout,
            "a limit or a busy pool held the request until `timeouts.total_ms` was over",
        ),
        FailureKind::PoolExhausted => EarlyEnd::new(
            Code::Overloaded,
            "all connections to the target are busy; try again shortly",
        )
        .header("retry-after", "1"),
        FailureKind::BadTarget => EarlyEnd::new(
            Code::MalformedRequest,
            "the path and query cannot be sent as they are; percent-encode them",
        ),
        FailureKind::BodyFromCaller(error) => inbound::broken(*error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The last attempt may have met a closed port, and the one before it a target that worked.
    #[test]
    fn what_an_earlier_attempt_may_have_done_is_told() {
        let failure = |kind: FailureKind| Failure {
            maybe_carried_out: !kind.is_before_sending(),
            kind,
            attempts: 1,
            earlier: Vec::new(),
            again: None,
        };
        let closed = || FailureKind::Connect(std::io::Error::other("closed"));
        let reset = || FailureKind::Reset("gone".into());
        for (kind, before, carried) in [
            (closed(), false, None),
            (closed(), true, Some("may have been carried out")),
            (
                FailureKind::ConnectTimeout,
                true,
                Some("may have been carried out"),
            ),
            (reset(), false, Some("may have been carried out")),
            (reset(), true, Some("may have been carried out")),
        ] {
            let end = early_end("5 s", &failure(kind).after_others(before));
            let said = ["may have been carried out", "was not carried out"];
            let said: Vec<_> = said
                .into_iter()
                .filter(|text| end.detail.contains(text))
                .collect();
            assert_eq!(said, Vec::from_iter(carried), "{}", end.detail);
        }
    }
}
