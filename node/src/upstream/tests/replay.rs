//! What is sent a second time, and what never is.

use super::*;

/// How the first connection ends when the second request comes over it.
#[derive(Clone, Copy, Debug)]
enum Stale {
    /// The target reads the request and closes.
    OnReceipt,
    /// The same with a reset.
    ResetOnReceipt,
    /// It answers half a head first.
    HalfAnswered,
    /// It sends an interim answer first.
    Interim,
}

/// The first connection serves one request and fails the next; all others serve all.
async fn stale_peer(stale: Stale) -> (Peer, Rc<Cell<usize>>) {
    let requests = Rc::new(Cell::new(0));
    let seen = requests.clone();
    let peer = Peer::start(move |number, mut stream| {
        let seen = seen.clone();
        async move {
            let mut served = 0;
            while let Some(head) = read_head(&mut stream).await {
                let length: usize = head
                    .lines()
                    .find_map(|line| line.strip_prefix("content-length: ")?.parse().ok())
                    .unwrap_or(0);
                stream.read_exact(&mut vec![0; length]).await.unwrap();
                seen.set(seen.get() + 1);
                served += 1;
                if number > 0 || served == 1 {
                    write(&mut stream, &ok(&format!("from {number}"))).await;
                    continue;
                }
                match stale {
                    Stale::OnReceipt => {}
                    Stale::ResetOnReceipt => {
                        socket2::SockRef::from(&stream)
                            .set_linger(Some(Duration::ZERO))
                            .unwrap();
                    }
                    Stale::HalfAnswered => write(&mut stream, "HTTP/1.1 200 OK\r\nx").await,
                    Stale::Interim => write(&mut stream, "HTTP/1.1 100 Continue\r\n\r\n").await,
                }
                return;
            }
        }
    })
    .await;
    (peer, requests)
}

#[test]
fn an_idempotent_request_is_sent_again_once_if_nothing_answered() {
    let sent = |stale, method: Method, body: fn() -> RequestBody, key: bool, expect: &str| {
        let expect = expect.to_owned();
        on_worker(async move {
            let (peer, requests) = stale_peer(stale).await;
            let (upstream, destination) = (upstream(), peer.destination());
            assert_eq!(get_text(&upstream, &destination).await.0, "from 0");
            let gates = Cell::new(0);
            let mut gate = |attempt, _: &mut RequestHead| {
                gates.set(gates.get() + 1);
                assert_eq!(attempt, gates.get());
                Ok::<_, Hold<()>>(None)
            };
            let mut request = head(method.clone(), "/");
            request.terms.has_idempotency_key = key;
            let outcome = upstream
                .send(&destination, &mut request, &mut body(), &mut gate)
                .await;
            let (got, attempts) = match outcome {
                Ok(mut answer) => (read(&mut answer.body).await.0, answer.attempts),
                Err(SendError::Failed(failure)) => (name(&failure), failure.attempts),
                Err(SendError::Gate(_)) => panic!("the gate is open"),
            };
            assert_eq!(got, expect, "{stale:?} {method}");
            assert_eq!(
                (attempts, requests.get()),
                (gates.get(), 1 + gates.get() as usize)
            );
        });
    };
    let check = |stale, method, body, expect: &str| sent(stale, method, body, false, expect);
    let empty: fn() -> RequestBody = || RequestBody::Empty;
    let full: fn() -> RequestBody = || RequestBody::Full("abc".into());
    let large: fn() -> RequestBody = || RequestBody::Full(vec![0; 65 * 1024].into());
    let stream: fn() -> RequestBody = || {
        let pieces = [Ok(Bytes::from_static(b"abc"))];
        RequestBody::Stream {
            stream: Box::pin(futures_util::stream::iter(pieces)),
            length: Some(3),
        }
    };
    let lost = "reset, maybe carried out";
    for stale in [Stale::OnReceipt, Stale::ResetOnReceipt] {
        check(stale, Method::GET, empty, "from 1");
        check(stale, Method::DELETE, empty, "from 1");
        check(stale, Method::PUT, full, "from 1");
        check(stale, Method::PUT, large, lost);
        check(stale, Method::PUT, stream, lost);
        check(stale, Method::POST, empty, lost);
        check(stale, Method::POST, full, lost);
        check(stale, Method::PATCH, full, lost);
        // The field that the target's `retry.idempotency_header` names.
        sent(stale, Method::POST, full, true, "from 1");
        sent(stale, Method::POST, stream, true, lost);
    }
    check(Stale::HalfAnswered, Method::GET, empty, lost);
    check(Stale::Interim, Method::GET, empty, lost);
}

#[test]
fn a_new_connection_that_fails_is_not_tried_again() {
    on_worker(async {
        let peer = Peer::start(|_, mut stream| async move {
            read_head(&mut stream).await;
        })
        .await;
        let failure = get(&upstream(), &peer.destination()).await.unwrap_err();
        assert_eq!(name(&failure), "reset, maybe carried out");
        assert_eq!((failure.attempts, peer.connections.get()), (1, 1));
    });
}

#[test]
fn a_replay_that_fails_as_well_is_the_end() {
    on_worker(async {
        let peer = Peer::start(|number, mut stream| async move {
            read_head(&mut stream).await;
            if number == 0 {
                write(&mut stream, &ok("first")).await;
                read_head(&mut stream).await;
            }
        })
        .await;
        let (upstream, destination) = (upstream(), peer.destination());
        assert_eq!(get_text(&upstream, &destination).await.0, "first");
        let failure = get(&upstream, &destination).await.unwrap_err();
        assert_eq!(name(&failure), "reset, maybe carried out");
        assert_eq!((failure.attempts, peer.connections.get()), (2, 2));
    });
}

#[test]
fn a_connection_that_closed_while_idle_is_not_used() {
    for half in [false, true] {
        on_worker(async move {
            let peer = Peer::start(move |number, mut stream| async move {
                read_head(&mut stream).await;
                write(&mut stream, &ok(&format!("from {number}"))).await;
                if half {
                    // Only its own direction: it could still read, and never answer.
                    stream.shutdown().await.unwrap();
                    std::future::pending().await
                }
            })
            .await;
            let (upstream, destination) = (upstream(), peer.destination());
            assert_eq!(get_text(&upstream, &destination).await.0, "from 0");
            until(|| upstream.connections() == 0).await;
            // A POST, which would not be replayed.
            let body = RequestBody::Full("abc".into());
            let mut answer = send(&upstream, &destination, head(Method::POST, "/"), body)
                .await
                .unwrap();
            assert_eq!(read(&mut answer.body).await.0, "from 1");
            assert_eq!((answer.attempts, answer.reused), (1, false));
        });
    }
}

#[test]
fn a_request_that_was_not_written_is_sent_again_whatever_its_method() {
    on_worker(async {
        let (ended, mut ends) = tokio::sync::mpsc::channel(1);
        let peer = Peer::start(move |number, mut stream| {
            let ended = ended.clone();
            async move {
                read_head(&mut stream).await;
                write(&mut stream, &ok(&format!("from {number}"))).await;
                // Gone, while the worker is too busy to notice.
                drop(stream);
                ended.send(()).await.unwrap();
            }
        })
        .await;
        let (upstream, destination) = (upstream(), peer.destination());
        let mut answer = get(&upstream, &destination).await.unwrap();
        let connection = peer.connections.get();
        assert_eq!(
            (read(&mut answer.body).await.0.as_str(), connection),
            ("from 0", 1)
        );
        ends.recv().await.unwrap();
        let body = RequestBody::Full("abc".into());
        let request = head(Method::POST, "/");
        // Either the close was noticed before (one attempt) or hyper gave the request back (two).
        let mut answer = send(&upstream, &destination, request, body).await.unwrap();
        assert_eq!(read(&mut answer.body).await.0, "from 1");
        assert!(!answer.reused);
    });
}

#[test]
fn the_gate_is_asked_for_every_attempt_and_can_refuse() {
    let check = |refuse_at: u32, expect: u32, requests_expected: usize| {
        on_worker(async move {
            let (peer, requests) = stale_peer(Stale::OnReceipt).await;
            let (upstream, destination) = (upstream(), peer.destination());
            assert_eq!(get_text(&upstream, &destination).await.0, "from 0");
            let mut gate = |attempt, _: &mut RequestHead| {
                if attempt == refuse_at {
                    Err(Hold::Refused(attempt))
                } else {
                    Ok(None)
                }
            };
            let mut request = head(Method::GET, "/");
            let outcome = upstream
                .send(
                    &destination,
                    &mut request,
                    &mut RequestBody::Empty,
                    &mut gate,
                )
                .await;
            match outcome {
                Err(SendError::Gate(stopped)) => {
                    assert_eq!(stopped.why, expect);
                    let sent = expect - 1;
                    assert_eq!(
                        (stopped.attempts, stopped.earlier.len()),
                        (sent, sent as usize)
                    );
                }
                outcome => panic!("{outcome:?}"),
            }
            assert_eq!(requests.get(), requests_expected);
        });
    };
    check(1, 1, 1); // nothing was sent
    check(2, 2, 2); // the first attempt was
}

#[test]
fn a_gate_may_make_an_attempt_wait() {
    on_worker(async move {
        let (peer, requests) = stale_peer(Stale::OnReceipt).await;
        let (upstream, destination) = (upstream(), peer.destination());
        let asked = Cell::new(0);
        let mut gate = |attempt, _: &mut RequestHead| {
            asked.set(asked.get() + 1);
            match asked.get() {
                1 => Err(Hold::Until(Box::pin(async {
                    tokio::task::yield_now().await;
                    Ok(())
                }))),
                2 => Ok(None),
                _ => Err(Hold::Refused(attempt)),
            }
        };
        let (mut request, mut body) = (head(Method::GET, "/"), RequestBody::Empty);
        let sent = upstream.send(&destination, &mut request, &mut body, &mut gate);
        let mut answer = sent.await.unwrap();
        assert_eq!(read(&mut answer.body).await.0, "from 0");
        assert_eq!((answer.attempts, asked.get(), requests.get()), (1, 2, 1));
        let mut gate =
            |_, _: &mut RequestHead| Err(Hold::Until(Box::pin(async { Err("refused") })));
        let (mut request, mut body) = (head(Method::GET, "/"), RequestBody::Empty);
        let sent = upstream.send(&destination, &mut request, &mut body, &mut gate);
        let Err(SendError::Gate(stopped)) = sent.await else {
            panic!("the gate refuses");
        };
        assert_eq!((stopped.why, stopped.attempts), ("refused", 0));
        assert_eq!(requests.get(), 1);
    });
}

#[test]
fn a_gate_may_change_what_is_sent_and_finds_it_so_in_the_next_attempt() {
    on_worker(async move {
        let (peer, requests) = stale_peer(Stale::OnReceipt).await;
        let (upstream, destination) = (upstream(), peer.destination());
        assert_eq!(get_text(&upstream, &destination).await.0, "from 0");
        let found = Cell::new(None);
        let mut gate = |attempt: u32, head: &mut RequestHead| {
            found.set(head.headers.insert("x-attempt", attempt.into()));
            Ok::<_, Hold<Infallible>>(None)
        };
        let (mut request, mut body) = (head(Method::GET, "/"), RequestBody::Empty);
        let sent = upstream.send(&destination, &mut request, &mut body, &mut gate);
        let mut answer = sent.await.unwrap();
        assert_eq!(read(&mut answer.body).await.0, "from 1");
        assert_eq!((answer.attempts, requests.get()), (2, 3));
        assert_eq!(found.take(), Some(1.into()));
    });
}
