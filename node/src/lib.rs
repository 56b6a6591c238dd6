//! The data plane: one actix actor per pipeline stage, connected by message passing.
//!
//! In reading order: `listener` (bytes in), `worker` (wiring), `actor`, `runner`, `flow`, `reply`
//! (how a request moves), `stages`, `answer` (bytes out); what stages use: `presented`, `hygiene`,
//! `credentials`, `limits`, `upstream`, `endpoints`, `failover`, `outcomes`,
//! `inbound`, `elsewhere`, `lent`, `cut`; how nodes talk to each other: `peers`; what
//! feeds them: `sync` and `snapshot`; what they feed: `records`, `metrics`, `telemetry`; who calls
//! besides callers: `test_run`.

pub mod actor;
pub mod admin;
pub mod answer;
pub mod attempts;
pub mod body;
pub mod breakers;
pub mod config;
pub mod copied_values;
pub mod credentials;
pub mod cut;
pub mod decoded;
pub mod digests;
pub mod elsewhere;
pub mod endpoints;
pub mod events;
pub mod explained;
pub mod facts;
pub mod failover;
pub mod flow;
pub mod forgotten;
pub mod gateway;
pub mod health_checks;
pub mod hygiene;
pub mod inbound;
pub mod learner;
pub mod learning;
pub mod lent;
pub mod limits;
pub mod listener;
pub mod mailbox;
pub mod metering;
pub mod metrics;
pub mod outbound;
pub mod outcomes;
pub mod payload;
pub mod peers;
pub mod presented;
pub mod rearming;
pub mod records;
pub mod reflected;
pub mod refused;
pub mod reply;
pub mod reply_body;
pub mod request;
pub mod runner;
pub mod scrubbed_body;
pub mod settling;
pub mod snapshot;
pub mod spending;
pub mod splitmix;
pub mod stages;
pub mod sync;
pub mod telemetry;
pub mod test_run;
pub mod traces;
pub mod treatment;
pub mod turn;
pub mod unanswered;
pub mod upstream;
pub mod upstream_ids;
pub mod validating;
pub mod worker;
