//! The data plane: one actor per pipeline stage.

pub mod limits;
