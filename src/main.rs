//! The `requestrocket` binary: parse the command line, run a role, exit with its code.
fn main() {}
