//! The `requestrocket` binary: parse the command line, run what it says, exit with its code.

mod bootstrap;
mod certificate_files;
mod certificates;
mod cli;
mod client;
mod clock;
mod config_check;
mod configuration;
mod control_settings;
mod data_folder;
mod data_plane;
#[cfg(test)]
mod delivered;
mod demo;
mod descriptors;
mod dialling;
mod expiry;
mod footing;
mod gauges;
mod handover;
mod hosts_file;
mod keyrings;
mod known_nodes;
mod link_authorities;
mod link_tls;
mod logging;
mod one_line;
mod otlp;
mod own_secrets;
mod panics;
mod peering;
mod permissions;
mod preflight;
mod private_file;
mod ready;
mod record_store;
mod regions;
mod resealing;
mod roles;
mod serve;
mod servers;
mod setting_faults;
mod setting_values;
mod settings;
mod stores;
mod traces;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use proto::visible;

use crate::cli::{Cli, Command, ConfigCommand, LinkCommand, Output};
use crate::settings::SettingsError;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Exit code for what the user can mend: settings, a taken port, a folder without access.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    // Process-wide, before anything can open a TLS connection; an error means it is set already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    panics::install();
    let command = Cli::parse().command;
    let output = command.output();
    match run(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            match output {
                Output::Text => eprintln!(
                    "{}",
                    visible::in_lines(&format!("requestrocket: {error:#}"))
                ),
                Output::Json => {
                    let document = client::problem::document(&error).to_string();
                    eprintln!("{}", visible::in_lines(&document));
                }
            }
            let usage = error.is::<SettingsError>() || error.is::<serve::CannotStart>();
            ExitCode::from(if usage { EXIT_USAGE } else { 1 })
        }
    }
}

/// Does what the command line says.
fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Dev(args) => serve::dev(&args),
        Command::Standalone(args) => serve::standalone(&args),
        Command::Node(args) => serve::node(&args),
        Command::Control(args) => serve::control(&args),
        Command::Keyring(command) => command.run(),
        Command::Link(LinkCommand::Authority(args)) => certificates::authority(&args),
        Command::Link(LinkCommand::Issue(args)) => certificates::issue(&args),
        Command::Add(args) => on_system(client::add::run(&args)),
        Command::List(args) => on_system(client::list::list(&args)),
        Command::Get(args) => on_system(client::objects::get(&args)),
        Command::Create(args) => on_system(client::objects::create(&args)),
        Command::Set(args) => on_system(client::objects::set(&args)),
        Command::Delete(args) => on_system(client::objects::delete(&args)),
        Command::Rotate(args) => on_system(client::rotating::rotate(&args)),
        Command::Health(args) => on_system(client::health::check(&args)),
        Command::Completions(args) => client::completions::print(args),
        Command::Nodes(args) => on_system(client::nodes::list(&args)),
        Command::Unmatched(args) => on_system(client::unmatched::list(&args)),
        Command::Meters(args) => on_system(client::meters::run(&args)),
        Command::Raise(args) => on_system(client::meters::raise(&args)),
        Command::Regions(args) => on_system(client::regions::run(&args)),
        Command::Replication(args) => on_system(client::replication::list(&args)),
        Command::Apply(args) => on_system(client::configuration::apply(&args)),
        Command::Changes(args) => on_system(client::configuration::changes(&args)),
        Command::Export(args) => on_system(client::configuration::export(&args)),
        Command::Explain(args) => on_system(client::explain::explain(&args)),
        Command::SuggestRules(args) => on_system(client::suggest_rules::suggest(&args)),
        Command::Test(args) => on_system(client::test::run(&args)),
        Command::Records(args) => on_system(client::records::list(&args)),
        Command::Record(args) => on_system(client::records::show(&args)),
        Command::Tail(args) => on_system(client::tail::tail(&args)),
        Command::Trace(args) => on_system(client::trace::draw(&args)),
        Command::Top(args) => on_system(client::telemetry::top(&args)),
        Command::Telemetry(args) => on_system(client::telemetry::by_time(&args)),
        Command::Audit(args) => on_system(client::audit::run(&args)),
        Command::Recover(args) => on_system(client::recover::recover(&args)),
        Command::Restore(args) => stores::restore(&args),
        Command::Versions(args) => on_system(client::versions::list(&args)),
        Command::Diff(args) => on_system(client::versions::diff(&args)),
        Command::Rollback(args) => on_system(client::versions::rollback(&args)),
        Command::Config(ConfigCommand::Reference) => {
            say(settings::REFERENCE.trim_end());
            Ok(())
        }
        Command::Config(ConfigCommand::Check(args)) => on_system(config_check::run(&args)),
        Command::Openapi => {
            say(control::openapi::openapi_json());
            Ok(())
        }
    }
}

/// Runs a client command.
fn on_system(command: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    actix_rt::System::new().block_on(command)
}

/// Writes what a command answers, in lines or as JSON, with what is not seen in it escaped.
fn say(text: &str) {
    write(&visible::in_lines(text));
}

/// Writes to standard output: the one place that does. A reader that has enough (`| head`) ends the
/// command quietly.
fn write(text: &str) {
    let mut out = std::io::stdout().lock();
    if let Err(error) = writeln!(out, "{text}").and_then(|()| out.flush()) {
        if error.kind() != std::io::ErrorKind::BrokenPipe {
            eprintln!("requestrocket: standard output cannot be written: {error}");
        }
        std::process::exit(i32::from(error.kind() != std::io::ErrorKind::BrokenPipe));
    }
}
