//! What a target may answer: each row is right or a clean error, and the exchange after it gets
//! its own answer.

use super::*;

/// What the target does after its bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Then {
    Keep,
    Close,
    /// Sends a reset instead of an end.
    Reset,
}
use Then::*;

/// Answers the first request with `raw`, all others with `second`; gives the outcome of the first
/// and whether the second came over the same connection.
async fn outcome(method: Method, raw: Vec<u8>, then: Then) -> (String, bool) {
    let served = Rc::new(Cell::new(0));
    let peer = Peer::start(move |_, mut stream| {
        let (served, raw) = (served.clone(), raw.clone());
        async move {
            while read_head(&mut stream).await.is_some() {
                served.set(served.get() + 1);
                if served.get() > 1 {
                    write(&mut stream, &ok("second")).await;
                    continue;
                }
                let _ = stream.write_all(&raw).await;
                match then {
                    Keep => {}
                    Close => return,
                    Reset => {
                        socket2::SockRef::from(&stream)
                            .set_linger(Some(Duration::ZERO))
                            .unwrap();
                        return;
                    }
                }
            }
        }
    })
    .await;
    let (upstream, destination) = (upstream(), peer.destination());
    let first = match send(
        &upstream,
        &destination,
        head(method, "/"),
        RequestBody::Empty,
    )
    .await
    {
        Err(failure) => name(&failure),
        Ok(mut answer) => {
            let (text, error) = read(&mut answer.body).await;
            let tail = match error {
                None => "",
                Some(AnswerError::Broken(_)) => " broken",
                Some(error) => panic!("{error}"),
            };
            format!("{} {text}{tail}", answer.status.as_u16())
        }
    };
    let (text, answer) = get_text(&upstream, &destination).await;
    assert_eq!(text, "second");
    (first, answer.reused && peer.connections.get() == 1)
}

fn check(method: Method, raw: impl AsRef<[u8]>, then: Then, expect: &str, reused: bool) {
    let raw = raw.as_ref().to_vec();
    let shown = String::from_utf8_lossy(&raw)
        .chars()
        .take(120)
        .collect::<String>();
    on_worker(async move {
        let got = outcome(method.clone(), raw, then).await;
        assert_eq!(
            got,
            (expect.to_owned(), reused),
            "{method} {shown:?} then {then:?}"
        );
    });
}

const REFUSED: &str = "bad-http, maybe carried out";

#[test]
fn interim_answers_are_not_the_answer() {
    let early = "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n";
    let goon = "HTTP/1.1 100 Continue\r\n\r\n";
    check(
        Method::GET,
        format!("{goon}{}", ok("body")),
        Keep,
        "200 body",
        true,
    );
    check(
        Method::GET,
        format!("{goon}{early}{early}{}", ok("body")),
        Keep,
        "200 body",
        true,
    );
    check(Method::GET, early, Close, "reset, maybe carried out", false);
    let switch = "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n";
    check(Method::GET, switch, Keep, REFUSED, false);
}

#[test]
fn the_end_of_a_body_is_found_or_missed_aloud() {
    let until_close = "HTTP/1.1 200 OK\r\n\r\nall of it";
    check(Method::GET, until_close, Close, "200 all of it", false);
    check(
        Method::GET,
        until_close,
        Reset,
        "200 all of it broken",
        false,
    );
    let old = "HTTP/1.0 200 OK\r\n\r\nall of it";
    check(Method::GET, old, Close, "200 all of it", false);
    let old_kept = "HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 3\r\n\r\nabc";
    check(Method::GET, old_kept, Keep, "200 abc", true);
    let old_chunked = "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    check(Method::GET, old_chunked, Close, REFUSED, false);
    let short = "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc";
    check(Method::GET, short, Close, "200 abc broken", false);
    check(Method::GET, short, Reset, "200 abc broken", false);
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n";
    check(
        Method::GET,
        format!("{chunked}0\r\n\r\n"),
        Keep,
        "200 abc",
        true,
    );
    check(
        Method::GET,
        format!("{chunked}0\r\nx-sum: 1\r\n\r\n"),
        Keep,
        "200 abc",
        true,
    );
    check(Method::GET, chunked, Close, "200 abc broken", false);
    check(
        Method::GET,
        format!("{chunked}zz\r\nabc"),
        Keep,
        "200 abc broken",
        false,
    );
    check(
        Method::GET,
        format!("{chunked}5\r\nab"),
        Close,
        "200 abcab broken",
        false,
    );
}

#[test]
fn what_has_no_body_has_none() {
    let empty = "HTTP/1.1 204 No Content\r\n\r\n";
    check(Method::GET, empty, Keep, "204 ", true);
    check(
        Method::GET,
        "HTTP/1.1 204 No Content\r\ncontent-length: 3\r\n\r\n",
        Keep,
        "204 ",
        true,
    );
    check(
        Method::GET,
        "HTTP/1.1 304 Not Modified\r\ncontent-length: 3\r\n\r\n",
        Keep,
        "304 ",
        true,
    );
    check(
        Method::GET,
        "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
        Keep,
        "200 ",
        true,
    );
    check(
        Method::HEAD,
        "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n",
        Keep,
        "200 ",
        true,
    );
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    check(Method::HEAD, chunked, Keep, "200 ", true);
    // A body where none can be is not taken for the next answer.
    check(Method::HEAD, ok("evil"), Keep, "200 ", false);
    check(Method::GET, format!("{empty}evil"), Keep, "204 ", false);
}

#[test]
fn two_lengths_are_one_or_an_error() {
    let with = |fields: &str| format!("HTTP/1.1 200 OK\r\n{fields}\r\n3\r\nabc\r\n0\r\n\r\n");
    let both = with("content-length: 2\r\ntransfer-encoding: chunked\r\n");
    check(Method::GET, both, Keep, "200 abc", false);
    let turned = with("transfer-encoding: chunked\r\ncontent-length: 2\r\n");
    check(Method::GET, turned, Keep, "200 abc", false);
    check(
        Method::GET,
        with("transfer-encoding: gzip\r\n"),
        Close,
        REFUSED,
        false,
    );
    check(
        Method::GET,
        with("transfer-encoding: chunked, gzip\r\n"),
        Close,
        REFUSED,
        false,
    );
    let two = |a: &str, b: &str| {
        format!("HTTP/1.1 200 OK\r\ncontent-length: {a}\r\ncontent-length: {b}\r\n\r\nabcd")
    };
    check(Method::GET, two("4", "4"), Keep, "200 abcd", true);
    check(Method::GET, two("4", "2"), Keep, REFUSED, false);
    check(Method::HEAD, two("4", "2"), Keep, REFUSED, false);
    check(
        Method::GET,
        "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        Keep,
        REFUSED,
        false,
    );
}

#[test]
fn what_is_not_http_is_not_passed_on() {
    check(
        Method::GET,
        "SSH-2.0-OpenSSH_9.6\r\n\r\n",
        Keep,
        REFUSED,
        false,
    );
    check(
        Method::GET,
        "HTTP/1.1 2000 OK\r\n\r\n",
        Keep,
        REFUSED,
        false,
    );
    check(
        Method::GET,
        "HTTP/1.1 099 Odd\r\n\r\n",
        Keep,
        REFUSED,
        false,
    );
    check(Method::GET, "HTTP/3.0 200 OK\r\n\r\n", Keep, REFUSED, false);
    check(
        Method::GET,
        "HTTP/1.1 200 OK\r\nbad name: x\r\n\r\n",
        Keep,
        REFUSED,
        false,
    );
    check(
        Method::GET,
        "HTTP/1.1 200 OK\r\na: b\r\n c\r\n\r\n",
        Keep,
        REFUSED,
        false,
    );
    check(
        Method::GET,
        "HTTP/1.1 200 OK\r\na: b\0c\r\n\r\n",
        Keep,
        REFUSED,
        false,
    );
    check(
        Method::GET,
        "HTTP/1.1 200 OK\r\nhalf",
        Close,
        "reset, maybe carried out",
        false,
    );
    check(Method::GET, "", Close, "reset, maybe carried out", false);
    check(Method::GET, "", Reset, "reset, maybe carried out", false);
}

#[test]
fn heads_are_large_up_to_a_bound() {
    let sized = |fields: usize, bytes: usize| {
        let field = format!("x-large: {}\r\n", "a".repeat(bytes));
        format!(
            "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n{}\r\nbody",
            field.repeat(fields)
        )
    };
    check(Method::GET, sized(1, 60 * 1024), Keep, "200 body", true);
    check(Method::GET, sized(50, 4 * 1024), Keep, "200 body", true); // 200 KiB
    check(Method::GET, sized(99, 10), Keep, "200 body", true);
    check(Method::GET, sized(75, 4 * 1024), Keep, REFUSED, false); // 300 KiB
    check(Method::GET, sized(100, 10), Keep, REFUSED, false);
}

#[test]
fn bytes_after_the_answer_reach_nobody() {
    let twice = |end: &str| format!("{}{end}", ok("first"));
    check(Method::GET, twice(&ok("evil")), Keep, "200 first", false);
    check(Method::GET, twice("\r\n"), Keep, "200 first", false);
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    check(
        Method::GET,
        format!("{chunked}{}", ok("evil")),
        Keep,
        "200 abc",
        false,
    );
    let closing = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 3\r\n\r\nabc";
    check(Method::GET, closing, Keep, "200 abc", false);
}

#[test]
fn bytes_that_come_late_reach_nobody_either() {
    on_worker(async {
        let (send_evil, evil) = tokio::sync::oneshot::channel::<()>();
        let evil = Cell::new(Some(evil));
        let peer = Peer::start(move |_, mut stream| {
            let evil = evil.take();
            async move {
                while read_head(&mut stream).await.is_some() {
                    write(&mut stream, &ok("own")).await;
                    if let Some(evil) = evil {
                        evil.await.unwrap();
                        write(&mut stream, &ok("evil")).await;
                        // Stays open: only the bytes tell that something is wrong.
                        return std::future::pending().await;
                    }
                }
            }
        })
        .await;
        let (upstream, destination) = (upstream(), peer.destination());
        assert_eq!(get_text(&upstream, &destination).await.0, "own");
        assert_eq!(upstream.connections(), 1);
        send_evil.send(()).unwrap();
        until(|| upstream.connections() == 0).await;
        assert_eq!(get_text(&upstream, &destination).await.0, "own");
    });
}

#[test]
fn trailers_are_kept_aside_and_connection_fields_are_dropped() {
    on_worker(async {
        let peer = Peer::start(|_, mut stream| async move {
            read_head(&mut stream).await;
            let fields = "connection: x-hop\r\nx-hop: 1\r\nkeep-alive: timeout=9\r\nx-end: 1\r\n";
            let body = "transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx-sum: 42\r\n\r\n";
            write(&mut stream, &format!("HTTP/1.1 200 OK\r\n{fields}{body}")).await;
        })
        .await;
        let mut answer = get(&upstream(), &peer.destination()).await.unwrap();
        assert_eq!(answer.headers.len(), 1);
        assert_eq!(answer.headers["x-end"], "1");
        assert_eq!(answer.body.remaining(), None);
        assert_eq!(read(&mut answer.body).await, ("abc".to_owned(), None));
        assert_eq!(answer.body.trailers().unwrap()["x-sum"], "42");
        assert!(answer.body.is_ended());
    });
}
