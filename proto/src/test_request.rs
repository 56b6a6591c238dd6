//! A test request: what a control plane asks of a node, and what became of it.
//!
//! Control neither opens secrets nor dials a tenant's address, so a node sends the request. They
//! meet in the store: control puts the request below `live/`, under a lease; the first node that
//! puts its name to it sends it and puts the outcome, under the same lease, so that nothing of it
//! stays.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::id::{CredentialId, OrgId, ProxyId, RequestId};
use crate::record::{AuthFailure, StageTime};
use crate::store::LeaseId;

/// Most bytes of an answer's body that an outcome holds.
pub const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// A request to send through a proxy, with everything that a caller's request passes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestRequest {
    /// Its id, also that of its record.
    pub id: RequestId,
    /// The proxy's organisation.
    pub org: OrgId,
    /// The proxy.
    pub proxy: ProxyId,
    /// The least version of the configuration that a node must have applied.
    pub version: u64,
    /// The proxy credential that the caller is taken to hold.
    pub credential: CredentialId,
    /// The method.
    pub method: String,
    /// The path behind the proxy, with its query.
    pub path: String,
    /// Header fields.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: String,
    /// The address that it counts as coming from.
    pub source: IpAddr,
    /// Whether the outcome shall hold the target's answer.
    pub answer: bool,
}

/// A test request as it stands in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Posted {
    /// The request.
    pub request: TestRequest,
    /// What it lives under, and all that is written about it.
    pub lease: Option<LeaseId>,
}

/// What became of a test request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TestOutcome {
    /// The node that sent it.
    pub node: String,
    /// The status that a caller would have got.
    pub status: u16,
    /// The value of `requestrocket-proxy-code`.
    pub code: String,
    /// Why the caller would have been refused with 401.
    pub auth_failure: Option<AuthFailure>,
    /// The status that the target answered.
    pub upstream_status: Option<u16>,
    /// How often it was sent to the target.
    pub attempts: u32,
    /// How long it took, in microseconds.
    pub total_us: u64,
    /// How long each stage took.
    pub stages: Vec<StageTime>,
    /// The gateway's own problem document, where the request ended early.
    pub problem: Option<Value>,
    /// The target's answer, where it was asked for.
    pub answer: Option<TestAnswer>,
}

/// The answer that a caller would have got.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestAnswer {
    /// Its header fields.
    pub headers: Vec<(String, String)>,
    /// The first of its body, as text.
    pub body: String,
    /// Whether that is all of it.
    pub whole: bool,
}
