//! The control plane: REST API, versions, records.
