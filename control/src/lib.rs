//! The control plane: REST API, versions, records.

pub mod publish;
