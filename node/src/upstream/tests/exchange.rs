//! What leaves for a target, bodies in both directions, and every timeout.

use tokio::sync::mpsc;

use super::*;
use crate::body::BodyError;

/// Sends one request to a peer that reads `expect.len()` bytes and answers.
fn check_wire(method: Method, fields: &[(&'static str, &str)], body: RequestBody, expect: &str) {
    let expect = expect.to_owned();
    let mut request = head(method, "/a%2Fb/../c?x=1&&y=%zz");
    for (name, value) in fields {
        request.headers.append(*name, value.parse().unwrap());
    }
    on_worker(async move {
        let (seen, mut wire) = mpsc::channel(1);
        let length = expect.len();
        let peer = Peer::start(move |_, mut stream| {
            let seen = seen.clone();
            async move {
                let mut bytes = vec![0; length];
                stream.read_exact(&mut bytes).await.unwrap();
                write(&mut stream, &ok("done")).await;
                // Anything that follows would be a body that nobody announced.
                while let Ok(byte) = stream.read_u8().await {
                    bytes.push(byte);
                }
                seen.send(String::from_utf8(bytes).unwrap()).await.unwrap();
            }
        })
        .await;
        let destination = peer.destination();
        let upstream = upstream();
        let mut answer = send(&upstream, &destination, request, body).await.unwrap();
        assert_eq!(read(&mut answer.body).await, ("done".to_owned(), None));
        drop(upstream);
        let host = format!("host: 127.0.0.1:{}", peer.port);
        assert_eq!(
            wire.recv()
                .await
                .unwrap()
                .replace(&host, "host: 127.0.0.1:00000"),
            expect
        );
    });
}

#[test]
fn what_leaves_is_strict_http() {
    let line = |method: &str| format!("{method} /a%2Fb/../c?x=1&&y=%zz HTTP/1.1\r\n");
    let host = "host: 127.0.0.1:00000\r\n";
    let streamed = |length| {
        let pieces = [Ok(Bytes::from_static(b"ab")), Ok(Bytes::from_static(b"c"))];
        RequestBody::Stream {
            stream: Box::pin(futures_util::stream::iter(pieces)),
            length,
        }
    };
    let end = "\r\n";
    check_wire(
        Method::GET,
        &[],
        RequestBody::Empty,
        &format!("{}{host}{end}", line("GET")),
    );
    let order = [("b", "1"), ("a", "2"), ("b", "3")];
    let fields = "b: 1\r\nb: 3\r\na: 2\r\n";
    let expect = format!("{}{fields}{host}{end}", line("DELETE"));
    check_wire(Method::DELETE, &order, RequestBody::Empty, &expect);
    let lies = [
        ("host", "evil.example"),
        ("content-length", "99"),
        ("transfer-encoding", "chunked"),
        ("expect", "100-continue"),
        ("connection", "x-hop, content-length"),
        ("x-hop", "1"),
        ("upgrade", "h2c"),
        ("te", "trailers"),
    ];
    check_wire(
        Method::GET,
        &lies,
        RequestBody::Empty,
        &format!("{}{host}{end}", line("GET")),
    );
    let expect = format!("{}content-length: 0\r\n{host}{end}", line("POST"));
    check_wire(Method::POST, &[], RequestBody::Empty, &expect);
    let expect = format!("{}{host}content-length: 3\r\n{end}abc", line("POST"));
    check_wire(
        Method::POST,
        &lies,
        RequestBody::Full("abc".into()),
        &expect,
    );
    check_wire(Method::POST, &[], streamed(Some(3)), &expect);
    let chunks = "2\r\nab\r\n1\r\nc\r\n0\r\n\r\n";
    for method in [Method::POST, Method::GET] {
        let line = line(method.as_str());
        let expect = format!("{line}transfer-encoding: chunked\r\n{host}{end}{chunks}");
        check_wire(method, &[], streamed(None), &expect);
    }
}

/// A target that reads a head, answers with `script`'s bytes, and then does nothing.
async fn silent_after(script: &'static str) -> Peer {
    Peer::start(move |_, mut stream| async move {
        read_head(&mut stream).await;
        write(&mut stream, script).await;
        std::future::pending().await
    })
    .await
}

#[test]
fn an_answer_may_come_before_the_upload_ends() {
    let check = |answer: &'static str, closes: bool, status: u16, text: &'static str| {
        on_worker(async move {
            let peer = Peer::start(move |number, mut stream| async move {
                read_head(&mut stream).await;
                if number > 0 {
                    return write(&mut stream, &ok("second")).await;
                }
                write(&mut stream, answer).await;
                if !closes {
                    std::future::pending().await
                }
            })
            .await;
            let (upstream, destination) = (upstream(), peer.destination());
            // 5 MiB that the target never reads, in pieces, and no end.
            let pieces = std::iter::repeat_n(Ok(Bytes::from(vec![b'x'; 64 * 1024])), 80);
            let endless = futures_util::stream::iter(pieces).chain(futures_util::stream::pending());
            let body = RequestBody::Stream {
                stream: Box::pin(endless),
                length: Some(1 << 40),
            };
            let request = head(Method::POST, "/");
            let mut answer = send(&upstream, &destination, request, body).await.unwrap();
            assert_eq!(answer.status.as_u16(), status);
            assert_eq!(read(&mut answer.body).await, (text.to_owned(), None));
            assert_eq!(
                upstream.connections(),
                0,
                "half a request is on the connection"
            );
            assert_eq!(get_text(&upstream, &destination).await.0, "second");
        });
    };
    let large = "HTTP/1.1 413 Content Too Large\r\ncontent-length: 3\r\n\r\nbig";
    check(large, false, 413, "big");
    check(large, true, 413, "big"); // with a reset, since bytes of ours were unread
    check(
        "HTTP/1.1 417 Expectation Failed\r\ncontent-length: 0\r\n\r\n",
        false,
        417,
        "",
    );
    check(
        "HTTP/1.1 413 Content Too Large\r\n\r\nbig",
        true,
        413,
        "big",
    );
}

#[test]
fn the_callers_body_fails_for_the_callers_reason() {
    let check = |length, error, expect: &'static str| {
        on_worker(async move {
            let peer = silent_after("").await;
            let pieces = [Ok(Bytes::from_static(b"ab"))].into_iter().chain(error);
            let stream = Box::pin(futures_util::stream::iter(pieces));
            let (upstream, destination) = (upstream(), peer.destination());
            let body = RequestBody::Stream { stream, length };
            let request = head(Method::POST, "/");
            let failure = send(&upstream, &destination, request, body)
                .await
                .unwrap_err();
            assert_eq!(
                failure.kind.to_string(),
                format!("the body of the request failed: {expect}")
            );
            assert_eq!(failure.kind.fault(), Fault::Caller);
            assert_eq!(upstream.connections(), 0);
        });
    };
    let cut = || Some(Err(BodyError::Disconnected));
    check(
        None,
        cut(),
        "the caller closed the connection before the body ended",
    );
    check(
        Some(9),
        cut(),
        "the caller closed the connection before the body ended",
    );
    check(Some(9), None, "the body ended before its announced length");
    check(
        Some(1),
        None,
        "the body is longer than its announced length",
    );
}

#[test]
fn ten_mebibytes_pass_both_ways() {
    on_worker(async {
        const SIZE: usize = 10 << 20;
        let peer = Peer::start(|_, mut stream| async move {
            read_head(&mut stream).await;
            write(
                &mut stream,
                &format!("HTTP/1.1 200 OK\r\ncontent-length: {SIZE}\r\n\r\n"),
            )
            .await;
            let (mut from, mut to) = stream.split();
            tokio::io::copy(&mut (&mut from).take(SIZE as u64), &mut to)
                .await
                .unwrap();
            std::future::pending().await
        })
        .await;
        let (upstream, destination) = (upstream(), peer.destination());
        let pieces = (0..160_u8).map(|n| Ok(Bytes::from(vec![n; 64 * 1024])));
        let stream = Box::pin(futures_util::stream::iter(pieces));
        let body = RequestBody::Stream {
            stream,
            length: Some(SIZE as u64),
        };
        let mut answer = send(&upstream, &destination, head(Method::POST, "/"), body)
            .await
            .unwrap();
        assert_eq!(answer.body.remaining(), Some(SIZE as u64));
        let mut count = 0;
        while let Some(piece) = answer.body.next().await {
            for byte in piece.unwrap() {
                assert_eq!(usize::from(byte), count / (64 * 1024));
                count += 1;
            }
        }
        assert_eq!(count, SIZE);
        assert_eq!(upstream.connections(), 1, "the connection is kept");
    });
}

#[test]
fn who_does_not_read_holds_back_who_writes() {
    on_worker(async {
        let (sent, to_caller) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        // Towards the target: it reads nothing after the head.
        let peer = silent_after("").await;
        let (upstream, destination) = (upstream(), peer.destination());
        let counter = sent.clone();
        let stream = futures_util::stream::repeat_with(move || {
            counter.set(counter.get() + 64 * 1024);
            Ok(Bytes::from(vec![0; 64 * 1024]))
        });
        let body = RequestBody::Stream {
            stream: Box::pin(stream),
            length: None,
        };
        let upload = send(&upstream, &destination, head(Method::POST, "/"), body);
        tokio::select! {
            _ = upload => panic!("an endless upload without an answer has no end"),
            () = stands_still(&sent) => {}
        }
        // Socket buffers of both sides (at most 6 + 4 MiB by default) and our own 400 KiB.
        assert!(
            sent.get() < 16 << 20,
            "{} bytes were taken from the caller",
            sent.get()
        );

        // Towards the caller: it reads one piece and no more.
        let counter = to_caller.clone();
        let peer = Peer::start(move |_, mut stream| {
            let counter = counter.clone();
            async move {
                read_head(&mut stream).await;
                write(&mut stream, "HTTP/1.1 200 OK\r\n\r\n").await;
                while stream.write_all(&[0; 64 * 1024]).await.is_ok() {
                    counter.set(counter.get() + 64 * 1024);
                }
            }
        })
        .await;
        let mut answer = get(&upstream, &peer.destination()).await.unwrap();
        answer.body.next().await.unwrap().unwrap();
        stands_still(&to_caller).await;
        assert!(
            to_caller.get() < 16 << 20,
            "{} bytes were taken",
            to_caller.get()
        );
    });
}

/// Waits until a count has moved and stands still: who counts is held back.
async fn stands_still(count: &Cell<usize>) {
    let mut before = 0;
    while count.get() == 0 || std::mem::replace(&mut before, count.get()) != count.get() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Time for what has to come to pass before a timeout ends it, on a machine that does much else.
const ENOUGH: Duration = Duration::from_secs(1);

/// Timeouts of 40 ms for what is named, none to speak of for the rest.
fn timeouts(change: impl FnOnce(&mut Timeouts, Duration)) -> impl FnOnce(&mut DestinationParts) {
    let mut timeouts = Timeouts::default();
    change(&mut timeouts, Duration::from_millis(40));
    move |parts| parts.timeouts = timeouts
}

#[test]
fn a_target_that_never_answers_is_given_up() {
    on_worker(async {
        let peer = silent_after("").await;
        let upstream = upstream();
        let destination = peer.destination_with(timeouts(|t, short| t.first_byte = short));
        let failure = get(&upstream, &destination).await.unwrap_err();
        assert_eq!(name(&failure), "first-byte-timeout, maybe carried out");
        assert_eq!(failure.kind.code(), Some("upstream-timeout"));
        let destination = peer.destination_with(timeouts(|t, _| t.total = Some(ENOUGH)));
        let failure = get(&upstream, &destination).await.unwrap_err();
        assert_eq!(name(&failure), "total-timeout, maybe carried out");
        let hints = silent_after("HTTP/1.1 103 Early Hints\r\n\r\n").await;
        let destination = hints.destination_with(timeouts(|t, short| t.first_byte = short));
        let failure = get(&upstream, &destination).await.unwrap_err();
        assert_eq!(name(&failure), "first-byte-timeout, maybe carried out");
        assert_eq!(upstream.connections(), 0);
    });
}

#[test]
fn nothing_is_sent_or_counted_once_the_time_is_over() {
    on_worker(async {
        let seen = Rc::new(Cell::new(0));
        let counted = seen.clone();
        let peer = Peer::start(move |_, mut stream| {
            let seen = counted.clone();
            async move {
                while read_head(&mut stream).await.is_some() {
                    seen.set(seen.get() + 1);
                    write(&mut stream, &ok("first")).await;
                }
            }
        })
        .await;
        let (upstream, unhurried) = (upstream(), peer.destination());
        let destination = peer.destination_with(timeouts(|t, _| t.total = Some(ENOUGH)));
        let mut answer = get(&upstream, &unhurried).await.unwrap();
        assert_eq!(read(&mut answer.body).await.0, "first");
        let asked = Cell::new(0);
        let ask = |late: Duration| {
            let mut request = head(Method::GET, "/");
            let asked_at = request.terms.asked_at.checked_sub(late);
            request.terms.asked_at = asked_at.expect("the machine runs for longer");
            let (upstream, destination, asked) = (&upstream, &destination, &asked);
            async move {
                let mut gate = |_, _: &mut RequestHead| {
                    asked.set(asked.get() + 1);
                    Err(Hold::<()>::Until(Box::pin(std::future::pending())))
                };
                let mut body = RequestBody::Empty;
                let sent = upstream.send(destination, &mut request, &mut body, &mut gate);
                match sent.await {
                    Err(SendError::Failed(failure)) => name(&failure),
                    other => panic!("{other:?}"),
                }
            }
        };
        // The target was not asked: it is no failure of its.
        let expected = "held, never carried out";
        assert_eq!((ask(2 * ENOUGH).await.as_str(), asked.get()), (expected, 0));
        // A wait at the gate ends with the time too.
        assert_eq!(
            (ask(Duration::ZERO).await.as_str(), asked.get()),
            (expected, 1)
        );
        // What had been written before is seen before this.
        let mut answer = get(&upstream, &unhurried).await.unwrap();
        assert_eq!(read(&mut answer.body).await.0, "first");
        assert_eq!(seen.get(), 2, "and nothing between");
    });
}

#[test]
fn an_upload_under_way_is_not_silence() {
    on_worker(async {
        let peer = Peer::start(|_, mut stream| async move {
            read_head(&mut stream).await;
            let mut body = [0; 10];
            stream.read_exact(&mut body).await.unwrap();
            write(&mut stream, &ok("got it")).await;
        })
        .await;
        let destination = peer.destination_with(timeouts(|t, _| t.first_byte = ENOUGH));
        let (feed, body) = fed_body(Some(10));
        tokio::task::spawn_local(async move {
            for _ in 0..10 {
                tokio::time::sleep(ENOUGH / 5).await;
                feed.send(Bytes::from_static(b"x")).await.unwrap();
            }
        });
        let mut answer = send(&upstream(), &destination, head(Method::POST, "/"), body)
            .await
            .unwrap();
        assert_eq!(read(&mut answer.body).await.0, "got it");
    });
}

/// The target reads more slowly than the first byte's time allows, and has less to read each time.
#[test]
fn a_body_in_memory_under_way_is_not_silence() {
    on_worker(async {
        const SIZE: usize = 40 << 20;
        const PIECE: usize = 1 << 20;
        let peer = Peer::start(|_, mut stream| async move {
            read_head(&mut stream).await;
            let mut piece = vec![0; PIECE];
            for at in 0..SIZE / PIECE {
                // What the kernel holds at the end is read at once.
                if at < 30 {
                    tokio::time::sleep(ENOUGH / 15).await;
                }
                stream.read_exact(&mut piece).await.unwrap();
            }
            write(&mut stream, &ok("got it")).await;
        })
        .await;
        let destination = peer.destination_with(timeouts(|t, _| t.first_byte = ENOUGH));
        let body = RequestBody::Full(vec![b'x'; SIZE].into());
        let mut answer = send(&upstream(), &destination, head(Method::PUT, "/"), body)
            .await
            .unwrap();
        assert_eq!(read(&mut answer.body).await.0, "got it");
    });
}

/// The target has nothing to answer while the caller keeps a part of the body.
#[test]
fn a_caller_that_stalls_is_not_the_targets_silence() {
    on_worker(async {
        let peer = Peer::start(|_, mut stream| async move {
            read_head(&mut stream).await;
            let mut body = [0; 2];
            if stream.read_exact(&mut body).await.is_ok() {
                write(&mut stream, &ok("got it")).await;
            }
        })
        .await;
        let destination = peer.destination_with(timeouts(|t, _| t.first_byte = ENOUGH));
        let (feed, body) = fed_body(Some(2));
        let slow = tokio::task::spawn_local(async move {
            for _ in 0..2 {
                tokio::time::sleep(ENOUGH * 3 / 2).await;
                feed.send(Bytes::from_static(b"x")).await.unwrap();
            }
        });
        let mut answer = send(&upstream(), &destination, head(Method::POST, "/"), body)
            .await
            .unwrap();
        assert_eq!(read(&mut answer.body).await.0, "got it");
        slow.await.unwrap();

        let destination = peer.destination_with(timeouts(|t, _| t.total = Some(ENOUGH)));
        let (_feed, body) = fed_body(Some(2));
        let failure = send(&upstream(), &destination, head(Method::POST, "/"), body).await;
        let failure = failure.unwrap_err();
        assert_eq!(name(&failure), "caller-stalled, maybe carried out");
        assert_eq!(failure.kind.fault(), Fault::Caller);
        assert_eq!(failure.kind.code(), Some("upstream-timeout"));
    });
}

#[test]
fn a_drip_passes_and_a_stall_does_not() {
    let check = |pause: Duration, change: fn(&mut Timeouts), expect: Option<AnswerError>| {
        on_worker(async move {
            let peer = Peer::start(move |_, mut stream| async move {
                read_head(&mut stream).await;
                write(&mut stream, "HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\n").await;
                for _ in 0..8 {
                    tokio::time::sleep(pause).await;
                    write(&mut stream, "x").await;
                }
                std::future::pending().await
            })
            .await;
            let destination = peer.destination_with(|parts| change(&mut parts.timeouts));
            let upstream = upstream();
            let mut answer = get(&upstream, &destination).await.unwrap();
            let (text, error) = read(&mut answer.body).await;
            assert_eq!(error, expect, "{pause:?}");
            assert_eq!(text == "xxxxxxxx", expect.is_none());
            assert_eq!(upstream.connections(), usize::from(expect.is_none()));
        });
    };
    let never = Duration::from_secs(3_600);
    // 1.6 s in all.
    check(ENOUGH / 5, |t| t.idle = ENOUGH, None);
    let idle: fn(&mut Timeouts) = |t| t.idle = Duration::from_millis(40);
    check(never, idle, Some(AnswerError::IdleTimeout));
    let total: fn(&mut Timeouts) = |t| t.total = Some(ENOUGH);
    check(ENOUGH / 5, total, Some(AnswerError::TotalTimeout));
    check(never, total, Some(AnswerError::TotalTimeout));
}

#[test]
fn a_target_that_cannot_be_reached_is_no_mystery() {
    on_worker(async {
        let upstream = upstream();
        let closed = {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            listener.local_addr().unwrap().port()
        };
        let failure = get(&upstream, &destination("127.0.0.1", closed, |_| {}))
            .await
            .unwrap_err();
        assert_eq!(name(&failure), "connect, never carried out");
        assert_eq!(failure.kind.code(), Some("upstream-unreachable"));
        assert_eq!((failure.attempts, upstream.connections()), (0, 0));
        // TLS towards something that never speaks it.
        let peer = Peer::start(|_, stream| async move {
            std::future::pending::<()>().await;
            drop(stream);
        })
        .await;
        let silent = peer.destination_with(|parts| {
            parts.scheme = Scheme::Https;
            parts.timeouts.connect = Duration::from_millis(40);
        });
        let failure = get(&upstream, &silent).await.unwrap_err();
        assert_eq!(name(&failure), "connect-timeout, never carried out");
        assert_eq!(upstream.connections(), 0);
    });
}

#[test]
fn who_leaves_closes_the_connection() {
    on_worker(async {
        let (ended, mut ends) = mpsc::channel(8);
        let peer = Peer::start(move |_, mut stream| {
            let ended = ended.clone();
            async move {
                read_head(&mut stream).await;
                write(
                    &mut stream,
                    "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc",
                )
                .await;
                let _ = stream.read_u8().await;
                ended.send(()).await.unwrap();
            }
        })
        .await;
        let (upstream, destination) = (upstream(), peer.destination());
        let mut answer = get(&upstream, &destination).await.unwrap();
        assert_eq!(answer.body.next().await.unwrap().unwrap(), "abc");
        drop(answer);
        ends.recv().await.unwrap();
        assert_eq!(upstream.connections(), 0);
        // The same in the middle of an upload, before any answer.
        let peer = silent_after("").await;
        let (_feed, body) = fed_body(None);
        let destination = peer.destination();
        let upload = send(&upstream, &destination, head(Method::POST, "/"), body);
        assert!(
            tokio::time::timeout(Duration::from_millis(40), upload)
                .await
                .is_err()
        );
        assert_eq!(upstream.connections(), 0);
    });
}

#[test]
fn only_paths_are_asked_for() {
    let check = |method: Method, target: &'static str, expect: bool| {
        on_worker(async move {
            let peer = Peer::start(|_, mut stream| async move {
                read_head(&mut stream).await;
                write(&mut stream, &ok("")).await;
            })
            .await;
            let request = head(method.clone(), target);
            let outcome = send(
                &upstream(),
                &peer.destination(),
                request,
                RequestBody::Empty,
            )
            .await;
            match outcome {
                Ok(_) => assert!(expect, "{method} {target}"),
                Err(failure) => {
                    assert!(!expect, "{method} {target}: {failure}");
                    assert_eq!(name(&failure), "bad-target, never carried out");
                }
            }
        });
    };
    check(Method::GET, "/", true);
    check(Method::GET, "//evil.example/", true);
    check(Method::OPTIONS, "*", true);
    check(Method::GET, "*", false);
    check(Method::CONNECT, "/", false);
}

#[test]
fn an_exchange_in_flight_is_small() {
    let (upstream, peer) = (upstream(), destination("127.0.0.1", 1, |_| {}));
    let mut gate = open_gate;
    let (mut request, mut body) = (head(Method::GET, "/"), RequestBody::Empty);
    let exchange = upstream.send(&peer, &mut request, &mut body, &mut gate);
    // One per request in flight, moved when it is spawned: what is rare is boxed.
    let size = std::mem::size_of_val(&exchange);
    assert!(size <= 3072, "{size} bytes");
}
