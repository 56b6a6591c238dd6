//! Which exchanges share a connection, and the bounds on how many there are.

use super::super::address::Never;
use super::*;

/// Answers every request with the number of its connection, each when it is told to.
async fn numbered() -> Peer {
    Peer::start(|number, mut stream| async move {
        while read_head(&mut stream).await.is_some() {
            write(&mut stream, &ok(&number.to_string())).await;
        }
    })
    .await
}

#[test]
fn only_equal_identities_share_a_connection() {
    let check = |what: &str, shared: bool, change: fn(&mut DestinationParts)| {
        let what = what.to_owned();
        on_worker(async move {
            let (peer, upstream) = (numbered().await, upstream());
            assert_eq!(get_text(&upstream, &peer.destination()).await.0, "0");
            let (text, answer) = get_text(&upstream, &peer.destination_with(change)).await;
            assert_eq!((answer.reused, text == "0"), (shared, shared), "{what}");
        });
    };
    check("the same", true, |_| {});
    check("other timeouts", true, |parts| {
        parts.timeouts.idle = Duration::from_secs(1)
    });
    check("another bound", true, |parts| parts.connections_max = 3);
    check("another name", false, |parts| {
        parts.host = Host::parse("localhost").unwrap()
    });
    check("HTTP/2 allowed", false, |parts| parts.http2 = true);
    check("another organisation", false, |parts| parts.tenant = 1);
    check("another permit", false, |parts| {
        Arc::make_mut(&mut parts.guard).permit.pop();
    });
    check("another allowed network", false, |parts| {
        Arc::make_mut(&mut parts.guard).allow_networks.pop();
    });
    check("another forbidden network", false, |parts| {
        Arc::make_mut(&mut parts.guard).never = Never {
            networks: vec!["10.0.0.0/8".parse().unwrap()],
            ..Never::default()
        };
    });
}

/// Servers of NTLM and Negotiate take all that comes on a connection for the client that proved
/// itself on it once.
#[test]
fn a_connection_that_a_caller_has_authenticated_is_nobody_elses() {
    let check = |scheme: &'static str, reused: bool| {
        on_worker(async move {
            let (peer, upstream) = (numbered().await, upstream());
            let destination = peer.destination();
            let mut request = head(Method::GET, "/");
            let value = format!("{scheme} TlRMTVNTUAAD");
            request
                .headers
                .insert("authorization", value.parse().unwrap());
            let first = send(&upstream, &destination, request, RequestBody::Empty).await;
            read(&mut first.unwrap().body).await;
            let (_, answer) = get_text(&upstream, &destination).await;
            assert_eq!(answer.reused, reused, "{scheme}");
        });
    };
    check("NTLM", false);
    check("Negotiate", false);
    check("Bearer", true);
}

#[test]
fn the_connection_used_last_is_used_next() {
    on_worker(async {
        let (peer, upstream) = (numbered().await, upstream());
        let destination = peer.destination();
        let (first, second) =
            tokio::join!(get(&upstream, &destination), get(&upstream, &destination));
        let (mut first, mut second) = (first.unwrap(), second.unwrap());
        read(&mut second.body).await;
        let last = read(&mut first.body).await.0;
        assert_eq!(upstream.connections(), 2);
        for _ in 0..3 {
            assert_eq!(get_text(&upstream, &destination).await.0, last);
        }
    });
}

#[test]
fn idle_connections_age_and_close() {
    let check = |fields: &'static str, change: fn(&mut PoolSettings), kept: bool| {
        on_worker(async move {
            let peer = Peer::start(move |_, mut stream| async move {
                while read_head(&mut stream).await.is_some() {
                    let text = format!("HTTP/1.1 200 OK\r\n{fields}content-length: 0\r\n\r\n");
                    write(&mut stream, &text).await;
                }
            })
            .await;
            let mut pool = PoolSettings {
                reap_interval: Duration::from_millis(10),
                ..Default::default()
            };
            change(&mut pool);
            let upstream = Upstream::new(UpstreamSettings {
                pool,
                ..Default::default()
            });
            get_text(&upstream, &peer.destination()).await;
            if kept {
                assert_eq!(upstream.connections(), 1, "{fields}");
                assert!(
                    get_text(&upstream, &peer.destination()).await.1.reused,
                    "{fields}"
                );
            } else {
                until(|| upstream.connections() == 0).await;
            }
        });
    };
    check("", |_| {}, true);
    check("keep-alive: timeout=5\r\n", |_| {}, true);
    check("keep-alive: timeout=1\r\n", |_| {}, false);
    check("keep-alive: timeout=0\r\n", |_| {}, false);
    check("connection: close\r\n", |_| {}, false);
    check("www-authenticate: NTLM\r\n", |_| {}, false);
    check(
        "",
        |pool| pool.idle_age_max = Duration::from_millis(30),
        false,
    );
    check("", |pool| pool.age_max = Duration::from_millis(30), false);
    check("", |pool| pool.idle_max = 0, false);
}

#[test]
fn a_dropped_client_leaves_no_connection() {
    on_worker(async {
        let ended = Rc::new(Cell::new(0));
        let counter = ended.clone();
        let peer = Peer::start(move |_, mut stream| {
            let counter = counter.clone();
            async move {
                while read_head(&mut stream).await.is_some() {
                    write(&mut stream, &ok("x")).await;
                }
                counter.set(counter.get() + 1);
            }
        })
        .await;
        let (upstream, destination) = (upstream(), peer.destination());
        get_text(&upstream, &destination).await;
        let answer = get(&upstream, &destination).await.unwrap();
        get_text(&upstream, &destination).await;
        drop((upstream, answer));
        until(|| ended.get() == peer.connections.get()).await;
    });
}

#[test]
fn the_bound_on_connections_holds_and_who_waits_is_served_in_order() {
    on_worker(async {
        let open = Rc::new(Cell::new(0_usize));
        let most = Rc::new(Cell::new(0_usize));
        let (now, peak) = (open.clone(), most.clone());
        let peer = Peer::start(move |_, mut stream| {
            let (now, peak) = (now.clone(), peak.clone());
            async move {
                now.set(now.get() + 1);
                peak.set(peak.get().max(now.get()));
                let mut requests = 0;
                while read_head(&mut stream).await.is_some() {
                    requests += 1;
                    // Every third answer ends the connection, so that places move on, too.
                    let close = if requests == 3 {
                        "connection: close\r\n"
                    } else {
                        ""
                    };
                    let text = format!("HTTP/1.1 200 OK\r\n{close}content-length: 1\r\n\r\nx");
                    write(&mut stream, &text).await;
                    if requests == 3 {
                        break;
                    }
                }
                now.set(now.get() - 1);
            }
        })
        .await;
        let upstream = Rc::new(upstream());
        let destination = peer.destination_with(|parts| parts.connections_max = 2);
        let order = Rc::new(std::cell::RefCell::new(Vec::new()));
        let tasks: Vec<_> = (0..40)
            .map(|number| {
                let (upstream, destination) = (upstream.clone(), destination.clone());
                let order = order.clone();
                tokio::task::spawn_local(async move {
                    let answer = get_text(&upstream, &destination).await;
                    order.borrow_mut().push(number);
                    assert!(upstream.connections() <= 2);
                    answer.0
                })
            })
            .collect();
        for task in tasks {
            assert_eq!(task.await.unwrap(), "x");
        }
        assert_eq!(order.borrow().len(), 40);
        // Two connections may finish in either order; nobody is overtaken by more than that.
        let worst = order
            .borrow()
            .iter()
            .enumerate()
            .map(|(at, number)| at.abs_diff(*number))
            .max();
        assert!(worst.unwrap() <= 4, "{:?}", order.borrow());
    });
}

#[test]
fn who_waits_too_long_or_in_too_long_a_line_is_told() {
    on_worker(async {
        let peer = Peer::start(|_, mut stream| async move {
            while read_head(&mut stream).await.is_some() {
                write(&mut stream, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nx").await;
            }
        })
        .await;
        let pool = PoolSettings {
            waiters_max: 1,
            ..Default::default()
        };
        let upstream = Upstream::new(UpstreamSettings {
            pool,
            ..Default::default()
        });
        let destination = peer.destination_with(|parts| {
            parts.connections_max = 1;
            parts.timeouts.connect = Duration::from_millis(50);
        });
        let held = get(&upstream, &destination).await.unwrap();
        let (waited, refused) =
            tokio::join!(get(&upstream, &destination), get(&upstream, &destination));
        for failure in [waited.unwrap_err(), refused.unwrap_err()] {
            assert_eq!(name(&failure), "pool-exhausted, never carried out");
            assert_eq!(failure.kind.fault(), Fault::Gateway);
        }
        // The place is free again when the answer is dropped, though its body never ended.
        drop(held);
        get(&upstream, &destination).await.unwrap();
    });
}

/// Who waits for a connection until the total time is over was not kept waiting by the target.
#[test]
fn the_total_time_ends_a_wait_for_a_connection_as_ours() {
    on_worker(async {
        let peer = Peer::start(|_, mut stream| async move {
            while read_head(&mut stream).await.is_some() {
                write(&mut stream, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nx").await;
            }
        })
        .await;
        let upstream = upstream();
        let destination = peer.destination_with(|parts| {
            parts.connections_max = 1;
            parts.timeouts.total = Some(Duration::from_millis(500));
        });
        let _held = get(&upstream, &destination).await.unwrap();
        let failure = get(&upstream, &destination).await.unwrap_err();
        assert_eq!(name(&failure), "held, never carried out");
        assert_eq!(failure.kind.fault(), Fault::Gateway);
    });
}

#[test]
fn the_worker_has_a_bound_as_well() {
    on_worker(async {
        let (one, two) = (numbered().await, numbered().await);
        let pool = PoolSettings {
            connections_max: 1,
            ..Default::default()
        };
        let upstream = Upstream::new(UpstreamSettings {
            pool,
            ..Default::default()
        });
        get_text(&upstream, &one.destination()).await;
        // The idle connection of another target makes room ...
        let held = get(&upstream, &two.destination()).await.unwrap();
        assert_eq!(upstream.connections(), 1);
        drop(held);
        let peer = Peer::start(|_, mut stream| async move {
            read_head(&mut stream).await;
            write(&mut stream, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nx").await;
            std::future::pending().await
        })
        .await;
        let busy = get(&upstream, &peer.destination()).await.unwrap();
        // ... a busy one does not.
        let failure = get(&upstream, &one.destination()).await.unwrap_err();
        assert_eq!(name(&failure), "pool-exhausted, never carried out");
        drop(busy);
        get_text(&upstream, &one.destination()).await;
    });
}
