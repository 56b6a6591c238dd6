//! The gateway's HTTP/1.1 listener: actix-web behind a socket of ours that enforces what
//! actix-web does not.
//!
//! ```text
//! accept ─ admission ─ (TLS) ─ GuardedSocket ─ actix-http h1 ─ service ─ App
//!          places      h1 only framing, timers                 Answering
//! ```
//!
//! - [`class`], [`host`], [`target`], [`head`], [`chunked`], [`framing`]: pure; which bytes are one
//!   request.
//! - [`timers`], [`socket`], [`farewell`](self): effects around them.
//! - [`connection`]: what socket, service and handlers know in common.
//! - [`refusal`]: every reason and its answer.
//!
//! What a handler may rely on: the target is a path, or an http URL of the authority that `Host`
//! names; there is one valid `Host` (none at most in HTTP/1.0); the method is a known one and
//! neither `TRACE` nor `CONNECT`; the body is framed in one way; `Upgrade: websocket` comes only
//! with `GET`, without a body, and its payload is the tunnel. Any other `Upgrade` field is to be
//! dropped. `Expect` is `100-continue` or absent; actix-web has then written `100 Continue` before
//! the handler is called.
//!
//! When the client goes away while its request is in hand, the handler's future is dropped
//! ([`socket`] says how). One case is seen late: while actix-web holds 128 KiB of body that the
//! handler does not read, nobody reads the socket.

pub mod admission;
mod chunked;
mod class;
pub mod connection;
mod drain;
mod farewell;
pub mod framing;
pub mod head;
mod host;
pub mod refusal;
pub mod socket;
mod target;
mod timers;
pub mod transport;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use actix_http::body::{BoxBody, MessageBody};
use actix_http::error::DispatchError;
use actix_http::{Extensions, HttpService, KeepAlive, Request, Response};
use actix_server::Server;
use actix_service::{
    IntoServiceFactory, Service as _, ServiceFactory, ServiceFactoryExt as _, apply_fn_factory,
    fn_service, map_config,
};
use actix_web::dev::AppConfig;
use rustls::ServerConfig;
use tokio::net::TcpStream;

pub use self::drain::{ListenerHandle, QUIET_LOOKS, Queue, none_left};

use self::admission::{Admission, Place};
use self::connection::{Answering, Connection};
use self::drain::{DrainTimes, IdleEnd};
use self::framing::HeadLimits;
use self::socket::{GuardedSocket, LINGER, SocketTimeouts};
use self::transport::Transport;
use crate::metrics::Metrics;

/// A head cannot be larger, so that names and targets stay within what actix-web can hold.
const HEAD_BYTES_CEILING: usize = 65_535;
/// actix-web has room for as many fields.
const HEADERS_CEILING: usize = 96;
/// actix-server has room for as many workers.
const WORKERS_CEILING: usize = 512;
/// Connections beyond the limit that each worker takes only to say that there is no room.
const REFUSING_PER_WORKER: usize = 64;

/// How the listener works.
#[derive(Clone, Debug)]
pub struct ListenerSettings {
    /// Worker threads, 1 to 512; the app is made once on each.
    pub workers: usize,
    /// Longest time for a head, from its first byte; also for a TLS handshake, and for the first
    /// byte of a connection.
    pub head_timeout: Duration,
    /// Longest time between two reads of a body.
    pub body_read_timeout: Duration,
    /// Longest time in which a client takes no byte of its answer.
    pub write_timeout: Duration,
    /// Longest time between an answer and the next request.
    pub keep_alive: Duration,
    /// Largest head, 1 KiB to 65,535 bytes. A head that is not yet whole is held in memory.
    pub head_bytes_max: usize,
    /// Most fields in a head, 1 to 96.
    pub headers_max: usize,
    /// Most connections of all workers together.
    pub connections_max: usize,
    /// Most connections of one IPv4 address or IPv6 /64; `None` is no such limit.
    pub connections_per_ip_max: Option<usize>,
    /// TLS, if it is spoken; its ALPN is replaced by `http/1.1`.
    pub tls: Option<Arc<ServerConfig>>,
    /// How long a connection without a request is kept when the listener drains.
    pub drain_idle: Duration,
    /// How long a graceful stop waits for requests in hand, in whole seconds.
    pub shutdown_timeout: Duration,
}

impl Default for ListenerSettings {
    fn default() -> Self {
        Self {
            workers: std::thread::available_parallelism().map_or(1, usize::from),
            head_timeout: Duration::from_secs(10),
            body_read_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(60),
            keep_alive: Duration::from_secs(75),
            head_bytes_max: 64 * 1024 - 1,
            headers_max: HEADERS_CEILING,
            connections_max: 20_000,
            connections_per_ip_max: None,
            tls: None,
            drain_idle: Duration::from_secs(1),
            shutdown_timeout: Duration::from_secs(30),
        }
    }
}

impl ListenerSettings {
    /// Whether all values are within their bounds.
    ///
    /// # Errors
    /// `InvalidInput` with the value, its bound and its name.
    pub fn check(&self) -> io::Result<()> {
        let within = |name: &str, value: usize, min: usize, max: usize| {
            if (min..=max).contains(&value) {
                return Ok(());
            }
            Err(invalid(format!(
                "listener.{name} is {value}, must be {min} to {max}"
            )))
        };
        within("workers", self.workers, 1, WORKERS_CEILING)?;
        within(
            "head_bytes_max",
            self.head_bytes_max,
            1_024,
            HEAD_BYTES_CEILING,
        )?;
        within("headers_max", self.headers_max, 1, HEADERS_CEILING)?;
        within("connections_max", self.connections_max, 1, 10_000_000)?;
        if let Some(max) = self.connections_per_ip_max {
            within("connections_per_ip_max", max, 1, self.connections_max)?;
        }
        for (name, value) in [
            ("head_timeout", self.head_timeout),
            ("body_read_timeout", self.body_read_timeout),
            ("write_timeout", self.write_timeout),
            ("keep_alive", self.keep_alive),
        ] {
            if value.is_zero() {
                return Err(invalid(format!("listener.{name} is 0, must be longer")));
            }
        }
        Ok(())
    }

    fn timeouts(&self) -> SocketTimeouts {
        SocketTimeouts {
            head: self.head_timeout,
            body_read: self.body_read_timeout,
            write: self.write_timeout,
            keep_alive: self.keep_alive,
        }
    }

    fn head_limits(&self) -> HeadLimits {
        HeadLimits {
            bytes_max: self.head_bytes_max,
            headers_max: self.headers_max,
        }
    }
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text)
}

/// A guarded client connection.
type ClientSocket = GuardedSocket<Transport, Option<Place>>;

/// What a worker needs for each accepted connection.
#[derive(Clone)]
struct Door {
    settings: Arc<ListenerSettings>,
    admission: Arc<Admission>,
    tls: Option<Arc<ServerConfig>>,
    metrics: Metrics,
}

impl Door {
    /// Lets a connection in. One for which there is no room is told so, if that takes no
    /// handshake.
    async fn enter(
        self,
        tcp: TcpStream,
    ) -> Result<(ClientSocket, Option<std::net::SocketAddr>), DispatchError> {
        let peer = transport::prepare(&tcp);
        let (limits, timeouts) = (self.settings.head_limits(), self.settings.timeouts());
        let fresh = self.admission.enter();
        let place = match self.admission.admit(peer.map(|peer| peer.ip())) {
            Ok(place) => Some(place),
            Err(refusal) if self.tls.is_none() => {
                let io = Transport::Plain(tcp);
                let socket = GuardedSocket::new(io, limits, timeouts, None)
                    .with_connection(Connection::new(None, fresh, self.metrics))
                    .refusing(refusal);
                return Ok((socket, peer));
            }
            Err(_) => return Err(DispatchError::Io(io::ErrorKind::ConnectionRefused.into())),
        };
        let (io, facts) = match self.tls {
            None => (Transport::Plain(tcp), None),
            Some(tls) => transport::handshake(tcp, tls, timeouts.head)
                .await
                .map(|(io, facts)| (io, Some(facts)))
                .map_err(DispatchError::Io)?,
        };
        let socket = GuardedSocket::new(io, limits, timeouts, place)
            .with_connection(Connection::new(facts, fresh, self.metrics));
        Ok((socket, peer))
    }
}

/// At least as long in whole seconds, which is what the server counts in: a drain of less than a
/// second is none otherwise.
fn whole_seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

/// Serves an actix-web `App` on a bound listener. Await the server to run it; stop it through the
/// handle: signals are the caller's. `app` is called once on each worker thread. `metrics` counts
/// what is refused.
///
/// Must be called within a Tokio runtime; within an actix system the workers are its arbiters.
///
/// # Errors
/// A setting out of bounds, or a listener that cannot be used.
pub fn serve<F, I, S, B>(
    listener: std::net::TcpListener,
    settings: ListenerSettings,
    metrics: Metrics,
    app: F,
) -> io::Result<(Server, ListenerHandle)>
where
    F: Fn() -> I + Send + Clone + 'static,
    I: IntoServiceFactory<S, Request>,
    S: ServiceFactory<Request, Config = AppConfig> + 'static,
    S::Error: Into<actix_web::Error> + 'static,
    S::InitError: fmt::Debug,
    S::Response: Into<Response<B>> + 'static,
    S::Service: 'static,
    S::Future: 'static,
    B: MessageBody + 'static,
{
    settings.check()?;
    let times = DrainTimes {
        idle: settings.drain_idle,
        in_hand: Duration::from_secs(whole_seconds(settings.shutdown_timeout)),
    };
    let admission = Arc::new(Admission::new(
        settings.connections_max,
        settings.connections_per_ip_max,
    ));
    let door = Door {
        tls: settings.tls.as_deref().map(transport::http1_only),
        admission: Arc::clone(&admission),
        settings: Arc::new(settings.clone()),
        metrics: metrics.clone(),
    };
    let builder = Server::build()
        .workers(settings.workers)
        .max_concurrent_connections(settings.connections_max.saturating_add(REFUSING_PER_WORKER))
        .shutdown_timeout(times.in_hand.as_secs())
        .disable_signals();
    let ends = (times, IdleEnd::new());
    let told = ends.1.clone();
    let socket = listener.try_clone()?;
    let server = builder
        .listen("gateway", listener, move || {
            let (door, idle_end) = (door.clone(), told.clone());
            let app = map_config(app(), |()| AppConfig::default()).map_err(Into::into);
            let http = HttpService::build()
                // Both are the socket's business, for every request and not only the first.
                .client_request_timeout(Duration::ZERO)
                .keep_alive(KeepAlive::Os)
                .client_disconnect_timeout(LINGER)
                // See `socket`: the end of a client's stream is judged there.
                .h1_allow_half_closed(true)
                .graceful_shutdown_signal(move || idle_end.clone().come())
                .on_connect_ext(|socket: &ClientSocket, data: &mut Extensions| {
                    data.insert(socket.connection().clone());
                })
                .h1(apply_fn_factory(app, |request: Request, app| {
                    let connection = request.conn_data::<Connection>().cloned();
                    let answering = Answering::new(connection, request.version());
                    answered(answering, app.call(request))
                }));
            fn_service(move |tcp: TcpStream| door.clone().enter(tcp)).and_then(http)
        })?
        .run();
    let handle = ListenerHandle::new(server.handle(), admission, socket, ends, metrics);
    Ok((server, handle))
}

/// Follows an answer to its end; an error is an answer too, and has to be followed like one.
async fn answered<R, E, B>(
    answering: Answering,
    answer: impl Future<Output = Result<R, E>>,
) -> Result<Response<connection::AnswerBody>, actix_web::Error>
where
    R: Into<Response<B>>,
    E: Into<Response<BoxBody>>,
    B: MessageBody + 'static,
{
    let response: Response<BoxBody> = match answer.await {
        Ok(response) => response.into().map_into_boxed_body(),
        Err(error) => error.into(),
    };
    Ok(answering.finish(response))
}

#[cfg(test)]
mod tests;
