//! The commands that serve: settings are read, addresses bound and keys opened before anything
//! runs.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ::node::config::Permission;
use tokio::runtime::Runtime;

use crate::cli::{DevArgs, NodeRoleArgs, Output, RoleArgs};
use crate::handover::{Place, Role};
use crate::roles::Bound;
use crate::roles::control::ControlPlane;
use crate::roles::node::Node;
use crate::roles::single::Single;
use crate::settings::{self, Settings};
use crate::stores::StoreKind;
use crate::{bootstrap, descriptors, keyrings, logging};

/// The process cannot start, for a reason that its operator can mend: one line, exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct CannotStart(pub String);

/// A file of `data_dir` cannot be used. Where its disk is full or fails, another start may do
/// better: then the exit code is not the one after which a service is not started again.
pub fn unusable(what: String, is_of_disk: bool) -> anyhow::Error {
    match is_of_disk {
        true => anyhow::anyhow!("{what}: the disk of `data_dir` is full or fails"),
        false => CannotStart(what).into(),
    }
}

/// Threads of the runtime that serves store, limits and telemetry.
const BACKGROUND_THREADS: usize = 2;

/// Runs `requestrocket dev`.
///
/// # Errors
/// [`CannotStart`] and settings errors before anything runs; later ones when a part fails.
pub fn dev(args: &DevArgs) -> anyhow::Result<()> {
    let mut settings = settings_of(Role::Dev, args.node.config.as_deref())?;
    if let Some(gateway) = args.gateway {
        settings.gateway.listen = gateway;
    }
    if let Some(control) = args.control {
        settings.control.listen = control;
    }
    if let Some(data_dir) = &args.data_dir {
        settings.data_dir.clone_from(data_dir);
    }
    run(settings, Mode::Dev, args.node.output, args.node.take_over)
}

/// What holds on a developer's machine where the settings say nothing.
fn for_development() -> Settings {
    let mut base = Settings::default();
    base.gateway.explain_unauthorized = true;
    base.policy.allow_http = true;
    base.egress.tls_exceptions = ["localhost", "127.0.0.1", "[::1]"]
        .iter()
        .filter_map(|host| host.parse().ok())
        .collect();
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
    base
}

/// Runs `requestrocket standalone`.
///
/// # Errors
/// As for [`dev`].
pub fn standalone(args: &RoleArgs) -> anyhow::Result<()> {
    let given = &args.node;
    let mut settings = settings_of(Role::Standalone, given.config.as_deref())?;
    settings.control.insecure |= args.insecure_control;
    run(settings, Mode::Standalone, given.output, given.take_over)
}

/// What is run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// With an echo target and a demo.
    Dev,
    /// For production.
    Standalone,
}

impl Mode {
    /// As what it hands over.
    pub const fn role(self) -> Role {
        match self {
            Self::Dev => Role::Dev,
            Self::Standalone => Role::Standalone,
        }
    }
}

fn run(settings: Settings, mode: Mode, output: Output, take_over: bool) -> anyhow::Result<()> {
    let given = bootstrap::given(&settings.control)?;
    check_control(&settings)?;
    let mut place = Place::find(&settings.data_dir, mode.role(), take_over)?;
    let bound = Bound {
        gateway: Some(open(&mut place, settings.gateway.listen, "gateway")?),
        control: Some(open(&mut place, settings.control.listen, "control")?),
        admin: open_where(&mut place, settings.admin.listen, "admin")?,
        link: None,
        peers: None,
    };
    let keyring = Arc::new(keyrings::own(&settings)?);
    let told = settings.clone();
    let connections_max = settings.gateway.connections_max;
    let single = Single {
        settings,
        mode,
        output,
        bound,
        keyring,
        given,
        place,
    };
    on_runtimes(&told, async |background| {
        descriptors::raise(connections_max, mode);
        single.serve(background).await
    })
}

/// Runs `requestrocket node`.
///
/// # Errors
/// As for [`dev`].
pub fn node(args: &NodeRoleArgs) -> anyhow::Result<()> {
    let (ignored, args) = (args.insecure_control, &args.node);
    let settings = settings_of(Role::Node, args.config.as_deref())?;
    let mut place = Place::find(&settings.data_dir, Role::Node, args.take_over)?;
    let bound = Bound {
        gateway: Some(open(&mut place, settings.gateway.listen, "gateway")?),
        control: None,
        admin: open_where(&mut place, settings.admin.listen, "admin")?,
        link: None,
        peers: open_where(&mut place, settings.peers.listen, "peers")?,
    };
    let keyring = Arc::new(keyrings::of_node(&settings)?);
    let told = settings.clone();
    let node = Node {
        settings,
        output: args.output,
        bound,
        keyring,
        place,
    };
    on_runtimes(&told, async |background| {
        if ignored {
            tracing::warn!(
                "`--insecure-control` means nothing to a node, which has no REST API; the next \
                 release does not know it: take it out of the command"
            );
        }
        node.serve(background).await
    })
}

/// Runs `requestrocket control`.
///
/// # Errors
/// As for [`dev`].
pub fn control(args: &RoleArgs) -> anyhow::Result<()> {
    let mut settings = settings_of(Role::Control, args.node.config.as_deref())?;
    settings.control.insecure |= args.insecure_control;
    let args = &args.node;
    let given = bootstrap::given(&settings.control)?;
    check_control(&settings)?;
    let mut place = Place::find(&settings.data_dir, Role::Control, args.take_over)?;
    let bound = Bound {
        gateway: None,
        control: Some(open(&mut place, settings.control.listen, "control")?),
        admin: open_where(&mut place, settings.admin.listen, "admin")?,
        link: open_where(&mut place, settings.link.listen, "link")?,
        peers: None,
    };
    let keys = keyrings::of_control(&settings)?;
    let told = settings.clone();
    let plane = ControlPlane {
        settings,
        output: args.output,
        bound,
        keys,
        given,
        place,
    };
    on_runtimes(&told, async |background| plane.serve(background).await)
}

/// The settings of a process: by its file, the environment, and what holds where both say nothing.
///
/// # Errors
/// What is wrong with them, or that they are for another command.
pub fn settings_of(role: Role, file: Option<&Path>) -> anyhow::Result<Settings> {
    let base = match role {
        Role::Dev => for_development(),
        Role::Standalone | Role::Node | Role::Control => Settings::default(),
    };
    let settings = settings::load(&base, file, std::env::vars())?;
    let why = match role {
        Role::Dev | Role::Standalone if settings.regions.given() => {
            "`regions` is for control planes of a cluster; this process is all of a region"
        }
        Role::Node | Role::Control if settings.store.kind == StoreKind::Embedded => {
            "a cluster needs `store.kind = \"etcd\"` with `store.endpoints`; on one machine use \
             `requestrocket standalone`"
        }
        _ => return Ok(settings),
    };
    Err(CannotStart(why.into()).into())
}

/// Runs a role: workers on an actix system of this thread, the rest on a runtime behind it.
fn on_runtimes(
    settings: &Settings,
    role: impl AsyncFnOnce(&Runtime) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let background = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(BACKGROUND_THREADS)
        .thread_name("background")
        .enable_all()
        .build()?;
    let telemetry = logging::install(settings, &background)?;
    let outcome = actix_rt::System::new().block_on(role(&background));
    telemetry.shutdown(&background);
    background.shutdown_timeout(Duration::from_secs(2));
    outcome
}

/// Least age at which a copy of operators' tokens may be called too old, in seconds: it is noted
/// every ten that it is current, and another control plane takes over within five.
const STALENESS_S_MIN: u32 = 30;

/// Looks whether the REST API may listen where it is to.
///
/// # Errors
/// [`CannotStart`]: its address is open to others without TLS, or tokens would count for too short.
pub fn check_control(settings: &Settings) -> anyhow::Result<()> {
    if settings.control.auth_max_staleness_s < STALENESS_S_MIN {
        let why = "`control.auth_max_staleness_s` must be at least 30: a region that follows home \
                   knows every ten seconds that it does";
        return Err(CannotStart(why.into()).into());
    }
    let address = settings.control.listen;
    let encrypted = settings.control.tls.cert_file.is_some();
    if address.ip().is_loopback() || encrypted || settings.control.insecure {
        return Ok(());
    }
    Err(CannotStart(format!(
        "the control address {address} is not loopback and has no TLS; give it a certificate \
         (`control.tls`), put a TLS proxy before a loopback address, or accept it with \
         `control.insecure` (--insecure-control of `standalone` and `control`)"
    ))
    .into())
}

/// A listener: that of the process that this one replaces, or a new one.
fn open(place: &mut Place, address: SocketAddr, what: &str) -> anyhow::Result<TcpListener> {
    match place.listener(what, address) {
        Some(taken) => Ok(taken),
        None => bind(address, what),
    }
}

/// The same where the settings give an address.
fn open_where(
    place: &mut Place,
    address: Option<SocketAddr>,
    what: &str,
) -> anyhow::Result<Option<TcpListener>> {
    let opened = address.map(|address| open(place, address, what));
    opened.transpose()
}

fn bind(address: SocketAddr, what: &str) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind(address).map_err(|error| {
        let flag = match what {
            "gateway" | "control" => format!("; --{what} of `dev`"),
            _ => String::new(),
        };
        CannotStart(format!(
            "the {what} address {address} cannot be used: {error}; choose one \
             (`{what}.listen`{flag}), port 0 takes a free one"
        ))
    })?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}
