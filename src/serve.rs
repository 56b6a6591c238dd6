//! Runs node and control in one process: `dev` and `standalone`.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use node::config::Permission;
use proto::seal::Keyring;
use zeroize::Zeroizing;

use crate::bootstrap;
use crate::cli::{DevArgs, Output, StandaloneArgs};
use crate::process::Process;
use crate::settings::{self, Settings};
use crate::{logging, private_file};

/// The process cannot start, for a reason that its operator can mend: one line, exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct CannotStart(pub String);

/// Threads of the runtime that serves store, limits and telemetry.
const BACKGROUND_THREADS: usize = 2;

/// Runs `requestrocket dev`.
///
/// # Errors
/// [`CannotStart`] and settings errors before anything runs; later ones when a part fails.
pub fn dev(args: &DevArgs) -> anyhow::Result<()> {
    let mut base = Settings::default();
    base.gateway.explain_unauthorized = true;
    base.policy.allow_http = true;
    base.log.filter = "warn".into();
    base.dial_guard.permit = ["127.0.0.0/8", "::1/128"]
        .iter()
        .filter_map(|network| network.parse().ok())
        .map(|network| Permission {
            network,
            ports: vec!["1-65535".into()],
            orgs: vec!["*".into()],
        })
        .collect();
    let mut settings = settings::load(&base, args.config.as_deref(), std::env::vars())?;
    if let Some(gateway) = args.gateway {
        settings.gateway.listen = gateway;
    }
    if let Some(control) = args.control {
        settings.control.listen = control;
    }
    if let Some(data_dir) = &args.data_dir {
        settings.data_dir.clone_from(data_dir);
    }
    run(settings, Mode::Dev, args.output)
}

/// Runs `requestrocket standalone`.
///
/// # Errors
/// As for [`dev`].
pub fn standalone(args: &StandaloneArgs) -> anyhow::Result<()> {
    let base = Settings::default();
    let mut settings = settings::load(&base, args.config.as_deref(), std::env::vars())?;
    settings.control.insecure |= args.insecure_control;
    run(settings, Mode::Standalone, args.output)
}

/// What is run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// With an echo target and a demo.
    Dev,
    /// For production.
    Standalone,
}

fn run(settings: Settings, mode: Mode, output: Output) -> anyhow::Result<()> {
    let given = bootstrap::given(&settings.control)?;
    let control_address = settings.control.listen;
    if !control_address.ip().is_loopback() && !settings.control.insecure {
        return Err(CannotStart(format!(
            "the control address {control_address} is not loopback and has no TLS; put a TLS \
             proxy before a loopback address, or accept it with --insecure-control \
             (`control.insecure`)"
        ))
        .into());
    }
    make_folder(&settings.data_dir)?;
    let gateway = bind(settings.gateway.listen, "gateway")?;
    let control = bind(settings.control.listen, "control")?;
    let admin = settings.admin.listen;
    let admin = admin.map(|address| bind(address, "admin")).transpose()?;
    let keyring = Arc::new(keyring(&settings)?);
    let background = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(BACKGROUND_THREADS)
        .thread_name("background")
        .enable_all()
        .build()?;
    let telemetry = logging::install(&settings.log, &background)?;
    let process = Process {
        settings,
        mode,
        output,
        gateway,
        control,
        admin,
        keyring,
        given,
    };
    let outcome = actix_rt::System::new().block_on(process.serve(&background));
    telemetry.shutdown();
    background.shutdown_timeout(Duration::from_secs(2));
    outcome
}

fn make_folder(path: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let made = std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path);
    let probe = path.join(".writable");
    made.and_then(|()| std::fs::write(&probe, b""))
        .and_then(|()| std::fs::remove_file(&probe))
        .map_err(|error| {
            CannotStart(format!(
                "the data folder {} cannot be written: {error}; choose another with --data-dir \
                 (`data_dir`)",
                path.display()
            ))
        })?;
    Ok(())
}

fn bind(address: SocketAddr, what: &str) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind(address).map_err(|error| {
        CannotStart(format!(
            "the {what} address {address} cannot be used: {error}; choose one (`{what}.listen`; \
             --{what} of `dev`), port 0 takes a free one"
        ))
    })?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Reads the key ring, or makes one at the first start.
fn keyring(settings: &Settings) -> anyhow::Result<Keyring> {
    let path = settings.data_dir.join("keyring.json");
    let unusable = |reason: String| {
        CannotStart(format!(
            "the key ring {} cannot be used: {reason}",
            path.display()
        ))
    };
    let found = private_file::read(&path).map_err(|error| unusable(error.to_string()))?;
    if let Some(text) = found {
        let text = Zeroizing::new(text);
        let ring = Keyring::parse(text.as_bytes()).map_err(|error| unusable(error.to_string()))?;
        if ring.region != settings.region {
            let reason = format!("it is of region {}, not {}", ring.region, settings.region);
            return Err(unusable(reason).into());
        }
        return Ok(ring);
    }
    let ring = Keyring::generate(&*settings.region);
    Keyring::parse(ring.to_json().as_bytes()).map_err(|error| unusable(error.to_string()))?;
    private_file::write(&path, ring.to_json().as_bytes())
        .map_err(|error| unusable(error.to_string()))?;
    Ok(ring)
}
