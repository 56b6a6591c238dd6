//! Starts the data plane: listener, workers, and the task that swaps snapshots in.

use std::convert::Infallible;
use std::future::ready;
use std::io;
use std::net::TcpListener;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use actix_http::{Request, Response};
use actix_server::Server;
use actix_service::{Service, fn_factory_with_config};
use actix_web::dev::AppConfig;
use arc_swap::ArcSwap;
use futures_util::poll;

use crate::config::GatewaySettings;
use crate::listener::{self, ListenerHandle, ListenerSettings};
use crate::reply_body::ReplyBody;
use crate::stages::receive;
use crate::turn::after_others;
use crate::worker::{Shared, Worker};

/// Serves callers on a bound listener, over TLS where a configuration of it is given. The caller
/// awaits the server and stops it by its handle.
///
/// # Errors
/// A setting of the listener is out of its range, or the listener cannot be used.
pub fn serve(
    listener: TcpListener,
    tls: Option<Arc<rustls::ServerConfig>>,
    shared: Shared,
) -> io::Result<(Server, ListenerHandle)> {
    let settings = ListenerSettings {
        tls,
        ..listener_settings(&shared.settings)
    };
    let metrics = shared.metrics.clone();
    listener::serve(listener, settings, metrics, move || {
        let shared = shared.clone();
        fn_factory_with_config(move |_: AppConfig| {
            let worker = Worker::start(shared.clone());
            ready(Ok::<_, Infallible>(Pipeline { worker }))
        })
    })
}

/// Whether the settings of the listener are within their bounds.
///
/// # Errors
/// One is not: which, and between what it must be.
pub fn check(settings: &GatewaySettings) -> io::Result<()> {
    listener_settings(settings).check()
}

/// Everything goes to the pipeline: there are no routes, so it stands without the parts of
/// actix-web's `App` that would look for one.
struct Pipeline {
    worker: Rc<Worker>,
}

impl Service<Request> for Pipeline {
    type Response = Response<ReplyBody>;
    type Error = Infallible;
    // Boxed, or every idle connection would have room for it.
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>>>>;

    actix_service::always_ready!();

    fn call(&self, request: Request) -> Self::Future {
        let worker = self.worker.clone();
        Box::pin(async move {
            let mut serving = std::pin::pin!(receive::serve(worker, request));
            Ok(match poll!(serving.as_mut()) {
                // What waits for a target is answered in turn by itself.
                Poll::Ready(answer) => {
                    after_others().await;
                    answer
                }
                Poll::Pending => serving.await,
            })
        })
    }
}

fn listener_settings(settings: &GatewaySettings) -> ListenerSettings {
    let defaults = ListenerSettings::default();
    let ms = Duration::from_millis;
    ListenerSettings {
        workers: match settings.workers {
            0 => defaults.workers,
            workers => workers,
        },
        head_timeout: ms(settings.head_timeout_ms),
        body_read_timeout: ms(settings.body_idle_timeout_ms),
        keep_alive: ms(settings.keep_alive_ms),
        head_bytes_max: settings.head_bytes_max,
        connections_max: settings.connections_max,
        connections_per_ip_max: Some(settings.connections_per_ip_max).filter(|max| *max > 0),
        drain_idle: ms(settings.drain_idle_ms),
        shutdown_timeout: ms(settings.drain_ms),
        ..defaults
    }
}

/// The cell in which the configuration in force is kept, empty at first.
pub fn empty_snapshot(key: proto::seal::DigestKey) -> Arc<ArcSwap<crate::snapshot::Snapshot>> {
    let snapshot = crate::snapshot::Snapshot::new(Default::default(), Default::default(), key);
    Arc::new(ArcSwap::from_pointee(snapshot))
}
