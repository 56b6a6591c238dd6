//! Signals for processes that a test started.

use std::process::Command;

/// Sends a process a signal, by the name that a shell knows it by.
///
/// # Panics
/// There is no such process, or no such signal.
pub fn send(name: &str, process: u32) {
    // The shell's own `kill`, which is there where no package has brought one.
    let kill = format!("kill -{name} {process}");
    let sent = Command::new("sh").args(["-c", &kill]).status();
    assert!(sent.expect("a shell").success(), "{kill}");
}
