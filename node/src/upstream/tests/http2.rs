//! HTTP/2 over TLS against actix's own server: streams share a connection, and bounds hold.
//!
//! The server speaks HTTP/2 when the workspace is built as a whole, because awc, elsewhere in it,
//! switches on `actix-http/http2`.

use std::net::IpAddr;

use actix_http::{HttpMessage, HttpService, Request, Response};
use actix_service::{Service, ServiceFactory};
use tokio_rustls::TlsAcceptor;

use super::tls::{resolving, server, tls};
use super::*;

/// Echoes bodies; says on which connection it was, and by what name it was called.
async fn echo_peer() -> Peer {
    let config = server("target.test", None, &[]);
    Peer::start(move |number, stream| {
        let config = config.clone();
        async move {
            let echo = move |mut request: Request| async move {
                let authority = request
                    .uri()
                    .authority()
                    .map_or("none", |name| name.as_str());
                let names = format!("{number} {authority} {}", request.headers().len());
                let mut payload = request.take_payload();
                let mut body = BytesMut::new();
                while let Some(piece) = payload.next().await {
                    body.extend_from_slice(&piece.unwrap());
                }
                let mut answer = Response::ok();
                answer
                    .headers_mut()
                    .insert("x-names".parse().unwrap(), names.parse().unwrap());
                Ok::<_, actix_http::Error>(answer.set_body(body.freeze()))
            };
            let service = HttpService::build().finish(echo).rustls_0_23(config);
            let service = service.new_service(()).await.unwrap();
            let _ = service.call(stream).await;
        }
    })
    .await
}

fn allowing_http2(peer: &Peer) -> Arc<Destination> {
    tls(
        peer,
        "target.test",
        TlsSpec {
            roots: Roots::Unchecked,
            ..TlsSpec::default()
        },
        true,
    )
}

#[test]
fn streams_share_one_connection() {
    on_worker(async {
        let peer = echo_peer().await;
        let (upstream, destination) = (resolving("target.test"), allowing_http2(&peer));
        // All at once and cold: one dial finds out for all.
        let all = (0..20).map(|_| get(&upstream, &destination));
        let mut answers = futures_util::future::join_all(all).await;
        for answer in &mut answers {
            let answer = answer.as_mut().unwrap();
            assert_eq!(answer.version, http::Version::HTTP_2);
            let names = format!("0 target.test:{} 0", peer.port);
            assert_eq!(answer.headers["x-names"], names.as_str());
            assert_eq!(read(&mut answer.body).await, (String::new(), None));
        }
        assert_eq!((upstream.connections(), peer.connections.get()), (1, 1));
    });
}

#[test]
fn bodies_pass_both_ways_and_a_dropped_one_harms_nobody() {
    on_worker(async {
        let peer = echo_peer().await;
        let (upstream, destination) = (resolving("target.test"), allowing_http2(&peer));
        let text = "0123456789abcdef".repeat(1 << 16);
        for length in [None, Some(text.len() as u64)] {
            let pieces: Vec<_> = text
                .as_bytes()
                .chunks(10_000)
                .map(|piece| Ok(Bytes::copy_from_slice(piece)))
                .collect();
            let stream = Box::pin(futures_util::stream::iter(pieces));
            let body = RequestBody::Stream { stream, length };
            let mut answer = send(&upstream, &destination, head(Method::POST, "/"), body)
                .await
                .unwrap();
            assert_eq!(answer.body.remaining(), Some(text.len() as u64));
            assert!(
                read(&mut answer.body).await == (text.clone(), None),
                "{length:?}"
            );
        }
        let body = RequestBody::Full(text.clone().into());
        let mut answer = send(&upstream, &destination, head(Method::POST, "/"), body)
            .await
            .unwrap();
        answer.body.next().await.unwrap().unwrap();
        drop(answer);
        let body = RequestBody::Full("still here".into());
        let mut answer = send(&upstream, &destination, head(Method::PUT, "/"), body)
            .await
            .unwrap();
        assert_eq!(read(&mut answer.body).await.0, "still here");
        assert!(answer.reused);
        assert_eq!(peer.connections.get(), 1);
    });
}

#[test]
fn a_full_connection_makes_room_or_makes_wait() {
    on_worker(async {
        let peer = echo_peer().await;
        let pool = PoolSettings {
            streams_max: 1,
            ..Default::default()
        };
        let hosts = [("target.test".to_owned(), vec![IpAddr::from([127, 0, 0, 1])])].into();
        let upstream = Upstream::new(UpstreamSettings {
            hosts,
            pool,
            ..UpstreamSettings::default()
        });
        let mut parts = allowing_http2(&peer).parts().clone();
        parts.connections_max = 2;
        parts.timeouts.connect = Duration::from_millis(500);
        let destination = Arc::new(Destination::new(parts).unwrap());
        let large = || RequestBody::Full(vec![b'x'; 1 << 20].into());
        let post = || head(Method::POST, "/");
        let first = send(&upstream, &destination, post(), large())
            .await
            .unwrap();
        let second = send(&upstream, &destination, post(), large())
            .await
            .unwrap();
        assert_eq!(upstream.connections(), 2);
        let failure = send(&upstream, &destination, post(), large())
            .await
            .unwrap_err();
        assert_eq!(name(&failure), "pool-exhausted, never carried out");
        // One that waits gets the place of one that ends.
        let third = send(&upstream, &destination, post(), RequestBody::Empty);
        let (third, ()) = tokio::join!(third, async { drop(first) });
        assert_eq!(read(&mut third.unwrap().body).await, (String::new(), None));
        drop(second);
        assert_eq!(peer.connections.get(), 2);
    });
}

/// A connection that ends fails all of its streams at once; one dial serves what is sent again.
#[test]
fn what_is_sent_again_shares_a_new_connection() {
    on_worker(async {
        const STREAMS: usize = 10;
        let config = server("target.test", None, &[]);
        let seen = Rc::new(Cell::new(0));
        let counter = seen.clone();
        let peer = Peer::start(move |number, stream| {
            let (config, seen) = (config.clone(), counter.clone());
            async move {
                let counter = seen.clone();
                let answer = move |_: Request| {
                    counter.set(counter.get() + 1);
                    let is_held = number == 0 && counter.get() > 1;
                    async move {
                        if is_held {
                            std::future::pending::<()>().await;
                        }
                        Ok::<_, actix_http::Error>(Response::ok().set_body(number.to_string()))
                    }
                };
                let service = HttpService::build().finish(answer).rustls_0_23(config);
                let service = service.new_service(()).await.unwrap();
                let serving = service.call(stream);
                if number > 0 {
                    let _ = serving.await;
                    return;
                }
                // The first one answers once, and ends with all that it was asked besides.
                tokio::select! {
                    _ = serving => {}
                    () = until(|| seen.get() > STREAMS) => {}
                }
            }
        })
        .await;
        let (upstream, destination) = (resolving("target.test"), allowing_http2(&peer));
        assert_eq!(get_text(&upstream, &destination).await.0, "0");
        let all = (0..STREAMS).map(|_| get(&upstream, &destination));
        for answer in futures_util::future::join_all(all).await {
            let mut answer = answer.unwrap();
            assert_eq!(answer.attempts, 2);
            assert_eq!(read(&mut answer.body).await, ("1".to_owned(), None));
        }
        assert_eq!(peer.connections.get(), 2);
    });
}

/// Nobody answers the dial: that is the target's fault also for who waited for its outcome.
#[test]
fn who_waits_for_a_dial_is_kept_waiting_by_the_target() {
    on_worker(async {
        let peer = Peer::start(|_, stream| async move {
            std::future::pending::<()>().await;
            drop(stream);
        })
        .await;
        let upstream = resolving("target.test");
        let dials = allowing_http2(&peer);
        let mut parts = dials.parts().clone();
        parts.timeouts.connect = Duration::from_millis(50);
        let waits = Arc::new(Destination::new(parts).unwrap());
        let waited = async {
            until(|| peer.connections.get() == 1).await;
            get(&upstream, &waits).await.unwrap_err()
        };
        let failure = tokio::select! {
            _ = get(&upstream, &dials) => panic!("nobody answers"),
            failure = waited => failure,
        };
        assert_eq!(name(&failure), "connect-timeout, never carried out");
        assert_eq!(failure.kind.fault(), Fault::Target);
        assert_eq!(peer.connections.get(), 1, "it waited");
    });
}

/// A target that takes one stream at a time: the next one would wait on the connection, with its
/// first byte's time running.
#[test]
fn no_more_streams_than_the_target_takes_share_a_connection() {
    on_worker(async {
        let acceptor = TlsAcceptor::from(Arc::new(server("target.test", None, &["h2"])));
        let seen = Rc::new(Cell::new(0));
        let counter = seen.clone();
        let peer = Peer::start(move |number, stream| {
            let (acceptor, seen) = (acceptor.clone(), counter.clone());
            async move {
                let stream = acceptor.accept(stream).await.unwrap();
                let mut builder = h2::server::Builder::new();
                let mut connection = builder
                    .max_concurrent_streams(1)
                    .handshake::<_, Bytes>(stream)
                    .await
                    .unwrap();
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    seen.set(seen.get() + 1);
                    let seen = seen.clone();
                    tokio::task::spawn_local(async move {
                        // All but the first are answered when both are there.
                        until(|| seen.get() != 2).await;
                        let answer = http::Response::new(());
                        let mut body = respond.send_response(answer, false).unwrap();
                        body.send_data(number.to_string().into(), true).unwrap();
                    });
                }
            }
        })
        .await;
        let (upstream, destination) = (resolving("target.test"), allowing_http2(&peer));
        assert_eq!(get_text(&upstream, &destination).await.0, "0");
        let (one, two) = tokio::join!(
            get_text(&upstream, &destination),
            get_text(&upstream, &destination)
        );
        assert_eq!((one.0.as_str(), two.0.as_str()), ("0", "1"));
        assert_eq!((seen.get(), peer.connections.get()), (3, 2));
    });
}

/// hyper takes requests for a connection for as long as it is held, though nobody drives it.
#[test]
fn a_connection_that_the_target_has_closed_takes_no_more_requests() {
    on_worker(async {
        let acceptor = TlsAcceptor::from(Arc::new(server("target.test", None, &["h2"])));
        let peer = Peer::start(move |number, stream| {
            let acceptor = acceptor.clone();
            async move {
                let stream = acceptor.accept(stream).await.unwrap();
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    let answer = http::Response::new(());
                    let mut body = respond.send_response(answer, false).unwrap();
                    body.send_data(number.to_string().into(), true).unwrap();
                    connection.graceful_shutdown();
                }
            }
        })
        .await;
        let (upstream, destination) = (resolving("target.test"), allowing_http2(&peer));
        for turn in ["0", "1", "2"] {
            assert_eq!(get_text(&upstream, &destination).await.0, turn);
            until(|| upstream.connections() == 0).await;
        }
    });
}
