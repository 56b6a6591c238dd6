//! What a panic writes: one line on standard error, like every event and in the form of them,
//! without live secrets. As text a backtrace follows in lines of its own.

use std::any::Any;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::Write;
use std::panic::PanicHookInfo;
use std::sync::OnceLock;

use jiff::Timestamp;
use serde_json::json;
use tracing_subscriber::fmt::MakeWriter;

use crate::one_line::OneLine;
use crate::settings::LogFormat;

/// The form of log lines, once the settings are read.
static FORMAT: OnceLock<LogFormat> = OnceLock::new();

/// Takes the place of the standard hook, which writes a message as it is, over several lines.
pub fn install() {
    std::panic::set_hook(Box::new(|panic| {
        // As `RUST_BACKTRACE` asks for it; it names functions and files, no values.
        let backtrace = Backtrace::capture();
        let captured = backtrace.status() == BacktraceStatus::Captured;
        let backtrace = captured.then(|| backtrace.to_string());
        let format = FORMAT.get().copied().unwrap_or_default();
        let line = line(format, &message(panic), backtrace.as_deref());
        // Not through `tracing`: the panic may have come from there.
        let _ = OneLine(std::io::stderr)
            .make_writer()
            .write_all(format!("{line}\n").as_bytes());
        if let (LogFormat::Text, Some(backtrace)) = (format, backtrace) {
            eprintln!("{backtrace}");
        }
    }));
}

/// From here on panics are told in this form.
pub fn told_as(format: LogFormat) {
    // A process reads its settings once.
    let _ = FORMAT.set(format);
}

fn line(format: LogFormat, message: &str, backtrace: Option<&str>) -> String {
    match format {
        LogFormat::Text => format!("ERROR {message}"),
        LogFormat::Json => {
            let mut fields = json!({ "message": message });
            if let Some(backtrace) = backtrace {
                fields["backtrace"] = json!(backtrace);
            }
            let timestamp = format!("{:.6}", Timestamp::now());
            json!({"timestamp": timestamp, "level": "ERROR", "fields": fields, "target": "panic"})
                .to_string()
        }
    }
}

fn message(panic: &PanicHookInfo<'_>) -> String {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("<unnamed>");
    let text = text(panic.payload());
    match panic.location() {
        Some(location) => format!("thread '{name}' panicked at {location}: {text}"),
        None => format!("thread '{name}' panicked: {text}"),
    }
}

fn text(payload: &(dyn Any + Send)) -> &str {
    let owned = || payload.downcast_ref::<String>().map(String::as_str);
    let text = payload.downcast_ref::<&str>().copied().or_else(owned);
    text.unwrap_or("a value that is no text")
}
