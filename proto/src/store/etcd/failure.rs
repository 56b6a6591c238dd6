//! What an etcd error means: which kind it is, and whether another endpoint may be tried.
//!
//! etcd and its client share few error codes between many meanings (`OutOfRange` alone is a
//! compacted revision, a future one, or an answer that is too long to decode), so texts decide.
//! They were collected from etcd 3.4.23 with etcd-client 0.21.1.

use etcd_client::Error;

use super::token::says_over;
use crate::store::{LeaseId, StoreError};

/// Whether a call may be carried out twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    /// A read, or a write that means the same when it is repeated.
    Repeatable,
    /// A write: once it may have reached a server, its outcome is unknown until it is answered.
    Once,
}

/// A call that failed at one endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// What to tell the caller, if nothing else is tried.
    pub(super) error: StoreError,
    /// Whether later calls had better go to another endpoint.
    pub(super) endpoint_failed: bool,
    /// Whether this call may be tried at another endpoint.
    pub(super) repeat: bool,
}

/// gRPC status codes (google.rpc.Code).
const INVALID_ARGUMENT: i32 = 3;
const UNAVAILABLE: i32 = 14;

/// What the client says when it could not connect: no byte of the request was sent.
const NOT_CONNECTED: [&str; 7] = [
    "tcp connect error",
    "tcp open error",
    "dns error",
    "deadline has elapsed",
    "invalid peer certificate",
    "received fatal alert",
    "Connecting to HTTPS without TLS enabled",
];

/// What the server says before it has begun to carry out a request.
const NOT_BEGUN: &str = "etcdserver: no leader";

/// The meaning of a client's error. `lease` is the lease that the call was about, if any.
pub(super) fn failure(error: &Error, call: Call, lease: LeaseId) -> Failure {
    match error {
        Error::GRpcStatus(status) => {
            by_status(i32::from(status.code()), status.message(), call, lease)
        }
        Error::LeaseKeepAliveError(text) if text.contains("not found") => {
            refused(StoreError::LeaseNotFound(lease))
        }
        // Found before anything is sent.
        Error::InvalidArgs(_) | Error::InvalidUri(_) | Error::TransportError(_) => {
            refused(StoreError::Unavailable(error.to_string()))
        }
        _ => lost(error.to_string(), call),
    }
}

/// The meaning of an error of the first call at an endpoint, where what is set wrongly shows: who
/// speaks TLS to a plain server, or the reverse, is cut off without words, and so is whoever shows
/// a certificate that the server does not trust.
pub(super) fn not_connected(error: &Error, is_tls: bool) -> Failure {
    let failed = failure(error, Call::Repeatable, LeaseId(0));
    let StoreError::Unavailable(text) = &failed.error else {
        return failed;
    };
    match cut_hint(text, is_tls) {
        Some(hint) => Failure {
            error: StoreError::Unavailable(format!("{text} ({hint})")),
            ..failed
        },
        None => failed,
    }
}

/// A call that was sent, perhaps, and has no answer.
pub(super) fn lost(text: String, call: Call) -> Failure {
    match call {
        Call::Repeatable => elsewhere(text),
        Call::Once => Failure {
            error: StoreError::OutcomeUnknown(text),
            endpoint_failed: true,
            repeat: false,
        },
    }
}

/// A call that this endpoint has not begun with.
fn elsewhere(text: String) -> Failure {
    Failure {
        error: StoreError::Unavailable(text),
        endpoint_failed: true,
        repeat: true,
    }
}

/// A call that every endpoint would answer like this.
pub(super) fn refused(error: StoreError) -> Failure {
    Failure {
        error,
        endpoint_failed: false,
        repeat: false,
    }
}

fn by_status(code: i32, text: &str, call: Call, lease: LeaseId) -> Failure {
    let says = |part: &str| text.contains(part);
    if says("has been compacted") {
        return refused(StoreError::Compacted(None));
    }
    if says("lease not found") {
        return refused(StoreError::LeaseNotFound(lease));
    }
    if says("database space exceeded") {
        return refused(StoreError::Full(text.into()));
    }
    let too_large = [
        "request is too large",
        "too many operations",
        "larger than max",
        "length too large",
    ];
    if too_large.into_iter().any(says) {
        return refused(StoreError::TooLarge(text.into()));
    }
    let barred = [
        "user name is empty",
        "authentication failed",
        "authentication is not enabled",
        "permission denied",
    ];
    if barred.into_iter().any(says) {
        let hint = "check `store.username` and `store.password_file`";
        return refused(StoreError::Unusable(format!("{text} ({hint})")));
    }
    // Also with the token that was asked for in its place.
    if says("too many requests") || says_over(text) {
        return refused(StoreError::Unavailable(text.into()));
    }
    if code == UNAVAILABLE && (NOT_CONNECTED.into_iter().any(says) || says(NOT_BEGUN)) {
        return match certificate_hint(text) {
            Some((hint, Cure::Settings)) => Failure {
                error: StoreError::Unusable(format!("{text} ({hint})")),
                ..elsewhere(String::new())
            },
            Some((hint, Cure::Member)) => elsewhere(format!("{text} ({hint})")),
            None => elsewhere(text.into()),
        };
    }
    if code == INVALID_ARGUMENT || says("future revision") {
        return refused(StoreError::Invalid(text.into()));
    }
    lost(text.into(), call)
}

const OTHER_AUTHORITY: &str =
    "`store.ca_file` does not hold the authority that signed this member's certificate";

/// What to do about a connection that was cut off at its begin.
fn cut_hint(text: &str, is_tls: bool) -> Option<&'static str> {
    let says = |words: &[&str]| words.iter().any(|words| text.contains(words));
    let in_tls = says(&["tls handshake eof", "InvalidContentType", "reset by peer"]);
    let behind_it = says(&["transport error", "operation was canceled", "fatal alert"]);
    match is_tls {
        true if in_tls => Some(
            "where this member speaks no TLS, `store.endpoints` begin with http:// and \
             `store.ca_file` is not set",
        ),
        true if behind_it => Some(
            "where this member takes certificates of clients, it refuses ours: renew the one of \
             `store.cert_file` and `store.key_file`, or set both",
        ),
        false if in_tls || behind_it => Some(
            "where this member speaks TLS, `store.endpoints` begin with https:// and \
             `store.ca_file` holds its authority",
        ),
        _ => None,
    }
}

/// Where the cure of a certificate is.
#[derive(Clone, Copy)]
enum Cure {
    /// Here: a start that ends says it best.
    Settings,
    /// At the member, which may come back by itself.
    Member,
}

/// What to do about a certificate that is not trusted, by the words of rustls.
fn certificate_hint(text: &str) -> Option<(&'static str, Cure)> {
    let rows = [
        (
            "certificate expired",
            "renew this member's certificate, or mend the clock of either machine",
            Cure::Member,
        ),
        ("UnknownIssuer", OTHER_AUTHORITY, Cure::Settings),
        // One of the same name with another key.
        ("BadSignature", OTHER_AUTHORITY, Cure::Settings),
        (
            "not valid for name",
            "`store.server_name` says which name the members' certificates hold",
            Cure::Settings,
        ),
    ];
    let found = rows.iter().find(|(words, ..)| text.contains(words))?;
    Some((found.1, found.2))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: LeaseId = LeaseId(7);

    #[test]
    fn every_known_answer_has_its_kind() {
        // Kind for a write, then whether another endpoint is tried for a write and for a read.
        let check = |code: i32, text: &str, kind: &str, repeat: (bool, bool)| {
            let write = by_status(code, text, Call::Once, LEASE);
            let read = by_status(code, text, Call::Repeatable, LEASE);
            assert!(
                format!("{:?}", write.error).starts_with(kind),
                "{text}: {write:?}"
            );
            assert_eq!((write.repeat, read.repeat), repeat, "{text}");
            assert!(!read.repeat || read.endpoint_failed, "{text}");
        };
        let (never, read_only, always) = ((false, false), (false, true), (true, true));
        check(3, "etcdserver: request is too large", "TooLarge", never);
        check(
            8,
            "grpc: received message larger than max (2098012 vs. 2097152)",
            "TooLarge",
            never,
        );
        check(
            3,
            "etcdserver: too many operations in txn request",
            "TooLarge",
            never,
        );
        let long = "Error, decoded message length too large: found 5000134 bytes, the limit is: 4";
        check(11, long, "TooLarge", never);
        check(
            3,
            "etcdserver: duplicate key given in txn request",
            "Invalid",
            never,
        );
        check(3, "etcdserver: key is not provided", "Invalid", never);
        let future = "etcdserver: mvcc: required revision is a future revision";
        check(11, future, "Invalid", never);
        let compacted = "etcdserver: mvcc: required revision has been compacted";
        check(11, compacted, "Compacted(None)", never);
        check(
            8,
            "etcdserver: mvcc: database space exceeded",
            "Full",
            never,
        );
        check(
            5,
            "etcdserver: requested lease not found",
            "LeaseNotFound(LeaseId(7))",
            never,
        );
        check(14, "tcp connect error", "Unavailable", always);
        check(14, "dns error", "Unavailable", always);
        check(
            14,
            "invalid peer certificate: UnknownIssuer",
            "Unusable",
            always,
        );
        check(14, "etcdserver: no leader", "Unavailable", always);
        check(8, "etcdserver: too many requests", "Unavailable", never);
        let password = "etcdserver: authentication failed, invalid user ID or password";
        check(3, password, "Unusable", never);
        check(3, "etcdserver: user name is empty", "Unusable", never);
        check(7, "etcdserver: permission denied", "Unusable", never);
        let expired = "invalid peer certificate: certificate expired";
        check(14, expired, "Unavailable", always);
        check(16, "etcdserver: invalid auth token", "Unavailable", never);
        let old = "etcdserver: revision of auth store is old";
        check(3, old, "Unavailable", never);
        check(14, "http2 error", "OutcomeUnknown", read_only);
        check(1, "Timeout expired", "OutcomeUnknown", read_only);
        check(2, "context deadline exceeded", "OutcomeUnknown", read_only);
        check(
            14,
            "etcdserver: request timed out",
            "OutcomeUnknown",
            read_only,
        );
        check(
            14,
            "etcdserver: leader changed",
            "OutcomeUnknown",
            read_only,
        );
        check(
            2,
            "h2 protocol error: error reading a body",
            "OutcomeUnknown",
            read_only,
        );
        check(0, "", "OutcomeUnknown", read_only);
    }

    #[test]
    fn a_connection_that_is_cut_off_is_told_why_it_may_be() {
        for (text, is_tls, hint) in [
            ("tls handshake eof", true, Some("speaks no TLS")),
            ("Connection reset by peer", true, Some("speaks no TLS")),
            ("transport error", true, Some("`store.cert_file`")),
            ("transport error", false, Some("https://")),
            ("operation was canceled", false, Some("https://")),
            ("tcp connect error", false, None),
            ("tcp connect error", true, None),
        ] {
            let found = cut_hint(text, is_tls);
            assert_eq!(found.is_some(), hint.is_some(), "{text}: {found:?}");
            assert!(
                hint.is_none_or(|hint| found.is_some_and(|text| text.contains(hint))),
                "{text}: {found:?}"
            );
        }
    }

    #[test]
    fn errors_without_a_status_have_their_kind() {
        let kind = |error: Error| failure(&error, Call::Once, LEASE).error;
        let gone = Error::LeaseKeepAliveError("lease not found".into());
        assert_eq!(kind(gone), StoreError::LeaseNotFound(LEASE));
        let closed = Error::LeaseKeepAliveError("channel closed".into());
        assert!(matches!(kind(closed), StoreError::OutcomeUnknown(_)));
        assert!(matches!(
            kind(Error::InvalidArgs("x".into())),
            StoreError::Unavailable(_)
        ));
    }
}
