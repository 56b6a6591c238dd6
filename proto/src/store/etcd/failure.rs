//! What an etcd error means: which kind it is, and whether another endpoint may be tried.
//!
//! etcd and its client share few error codes between many meanings (`OutOfRange` alone is a
//! compacted revision, a future one, or an answer that is too long to decode), so texts decide.
//! They were collected from etcd 3.4.23 with etcd-client 0.21.1.

use etcd_client::Error;

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
        "auth token",
    ];
    if barred.into_iter().any(says) {
        let hint = "check `store.username` and `store.password_file`";
        return refused(StoreError::Unavailable(format!("{text} ({hint})")));
    }
    if says("too many requests") {
        return refused(StoreError::Unavailable(text.into()));
    }
    if code == UNAVAILABLE && (NOT_CONNECTED.into_iter().any(says) || says(NOT_BEGUN)) {
        return elsewhere(match certificate_hint(text) {
            Some(hint) => format!("{text} ({hint})"),
            None => text.into(),
        });
    }
    if code == INVALID_ARGUMENT || says("future revision") {
        return refused(StoreError::Invalid(text.into()));
    }
    lost(text.into(), call)
}

const OTHER_AUTHORITY: &str =
    "`store.ca_file` does not hold the authority that signed this member's certificate";

/// What to do about a certificate that is not trusted, by the words of rustls.
fn certificate_hint(text: &str) -> Option<&'static str> {
    let rows = [
        (
            "certificate expired",
            "renew this member's certificate, or mend the clock of either machine",
        ),
        ("UnknownIssuer", OTHER_AUTHORITY),
        // One of the same name with another key.
        ("BadSignature", OTHER_AUTHORITY),
        (
            "not valid for name",
            "`store.server_name` says which name the members' certificates hold",
        ),
    ];
    let found = rows.iter().find(|(words, _)| text.contains(words))?;
    Some(found.1)
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
            "Unavailable",
            always,
        );
        check(14, "etcdserver: no leader", "Unavailable", always);
        check(8, "etcdserver: too many requests", "Unavailable", never);
        let password = "etcdserver: authentication failed, invalid user ID or password";
        check(3, password, "Unavailable", never);
        check(3, "etcdserver: user name is empty", "Unavailable", never);
        check(7, "etcdserver: permission denied", "Unavailable", never);
        check(16, "etcdserver: invalid auth token", "Unavailable", never);
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
