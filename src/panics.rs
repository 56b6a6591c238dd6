//! What a panic writes: one line on standard error, like every event, without live secrets.

use std::any::Any;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::Write;
use std::panic::PanicHookInfo;

use tracing_subscriber::fmt::MakeWriter;

use crate::one_line::OneLine;

/// Takes the place of the standard hook, which writes a message as it is, over several lines.
pub fn install() {
    std::panic::set_hook(Box::new(|panic| {
        let line = format!("{}\n", message(panic));
        // Not through `tracing`: the panic may have come from there.
        let _ = OneLine(std::io::stderr)
            .make_writer()
            .write_all(line.as_bytes());
        // As `RUST_BACKTRACE` asks for it; it names functions and files, no values.
        let backtrace = Backtrace::capture();
        if backtrace.status() == BacktraceStatus::Captured {
            eprintln!("{backtrace}");
        }
    }));
}

fn message(panic: &PanicHookInfo<'_>) -> String {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("<unnamed>");
    let text = text(panic.payload());
    match panic.location() {
        Some(location) => format!("ERROR thread '{name}' panicked at {location}: {text}"),
        None => format!("ERROR thread '{name}' panicked: {text}"),
    }
}

fn text(payload: &(dyn Any + Send)) -> &str {
    let owned = || payload.downcast_ref::<String>().map(String::as_str);
    let text = payload.downcast_ref::<&str>().copied().or_else(owned);
    text.unwrap_or("a value that is no text")
}
