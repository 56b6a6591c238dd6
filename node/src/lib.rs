//! The data plane: one actix actor per pipeline stage, connected by message passing.
//!
//! In reading order: `listener` (bytes in), `worker` (wiring), `actor` and `flow` (how a request
//! moves), `stages`, `answer` (bytes out); what stages use: `presented`, `hygiene`, `credentials`,
//! `limits`, `upstream`, `inbound`; what feeds them: `sync` and `snapshot`; what they feed:
//! `records`, `metrics`, `telemetry`.

pub mod actor;
pub mod admin;
pub mod answer;
pub mod body;
pub mod config;
pub mod credentials;
pub mod facts;
pub mod flow;
pub mod gateway;
pub mod hygiene;
pub mod inbound;
pub mod limits;
pub mod listener;
pub mod metering;
pub mod metrics;
pub mod outbound;
pub mod presented;
pub mod records;
pub mod refused;
pub mod request;
pub mod snapshot;
pub mod spending;
pub mod stages;
pub mod sync;
pub mod telemetry;
pub mod upstream;
pub mod worker;
