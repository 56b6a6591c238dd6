//! The framer against streams whose boundaries are known because they were put there, and
//! against itself under every cut.

use proptest::prelude::*;

use super::*;

const LIMITS: HeadLimits = HeadLimits {
    bytes_max: 4_096,
    headers_max: 96,
};

/// What became of a stream of bytes: the requests that passed, and how it ended.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    requests: Vec<Vec<u8>>,
    /// What passed of a request that did not end.
    open: Vec<u8>,
    refusal: Option<Refusal>,
}

/// Feeds `pieces` as the socket does: what does not pass is kept and comes again.
fn run<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Outcome {
    let mut framer = Framer::new(LIMITS);
    let mut held = Vec::new();
    let mut outcome = Outcome {
        requests: Vec::new(),
        open: Vec::new(),
        refusal: None,
    };
    for piece in pieces {
        held.extend_from_slice(piece);
        loop {
            let judgement = framer.judge(&mut held);
            assert!(judgement.pass <= held.len());
            outcome.open.extend(held.drain(..judgement.pass));
            match judgement.next {
                Next::Read => break,
                Next::Ended => {
                    outcome.requests.push(std::mem::take(&mut outcome.open));
                    framer.begin_next();
                    if held.is_empty() {
                        break;
                    }
                }
                Next::Refused(refusal) => {
                    outcome.refusal = Some(refusal);
                    return outcome;
                }
            }
        }
    }
    outcome
}

/// The requests in `stream`, whole, in two pieces cut anywhere, and byte by byte.
fn check(stream: &[u8], requests: &[&str], open: &str, refusal: Option<Refusal>) {
    let expected = Outcome {
        requests: requests
            .iter()
            .map(|request| request.as_bytes().to_vec())
            .collect(),
        open: open.as_bytes().to_vec(),
        refusal,
    };
    let text = String::from_utf8_lossy(stream);
    assert_eq!(run([stream]), expected, "{text:?}");
    assert_eq!(run(stream.chunks(1)), expected, "{text:?} byte by byte");
    for cut in 0..stream.len() {
        let (first, second) = stream.split_at(cut);
        assert_eq!(run([first, second]), expected, "{text:?} cut at {cut}");
    }
}

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc";
const CHUNKED: &str =
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n";

#[test]
fn requests_follow_each_other() {
    check(b"", &[], "", None);
    check(GET.as_bytes(), &[GET], "", None);
    check(format!("{GET}{GET}").as_bytes(), &[GET, GET], "", None);
    check(
        format!("{POST}{CHUNKED}{GET}").as_bytes(),
        &[POST, CHUNKED, GET],
        "",
        None,
    );
    check(format!("{POST}GET / HT").as_bytes(), &[POST], "", None);
    let cut = &POST[..POST.len() - 1];
    check(cut.as_bytes(), &[], cut, None);
    let cut = &CHUNKED[..CHUNKED.len() - 2];
    check(cut.as_bytes(), &[], cut, None);
}

#[test]
fn one_empty_line_before_a_request_is_ignored() {
    let lead = format!("\r\n{GET}");
    check(lead.as_bytes(), &[&lead], "", None);
    check(
        format!("{POST}{lead}{GET}").as_bytes(),
        &[POST, &lead, GET],
        "",
        None,
    );
    check(
        format!("\r\n\r\n{GET}").as_bytes(),
        &[],
        "",
        Some(Refusal::EmptyLines),
    );
}

#[test]
fn line_ends_are_crlf() {
    for stream in [
        "GET / HTTP/1.1\nHost: a\n\n",
        "GET / HTTP/1.1\r\nHost: a\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n\n",
        "\nGET / HTTP/1.1\r\n",
    ] {
        check(stream.as_bytes(), &[], "", Some(Refusal::BareLf));
        check(
            format!("{GET}{stream}").as_bytes(),
            &[GET],
            "",
            Some(Refusal::BareLf),
        );
    }
}

#[test]
fn what_cannot_be_http_is_refused_at_its_first_byte() {
    for first in [0x16, 0x80, 0, b' ', b'<', b'{', b':', b'"'] {
        check(&[first], &[], "", Some(Refusal::NotHttp));
    }
}

#[test]
fn a_refused_head_does_not_pass_at_all() {
    let both =
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nabc";
    check(
        format!("{GET}{both}{GET}").as_bytes(),
        &[GET],
        "",
        Some(Refusal::LengthAndEncoding),
    );
}

#[test]
fn a_refused_body_passes_up_to_its_fault() {
    let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let stream = format!("{head}1\r\nabc\r\n0\r\n\r\n{GET}");
    check(
        stream.as_bytes(),
        &[],
        &format!("{head}1\r\na"),
        Some(Refusal::ChunkEnd),
    );
}

#[test]
fn a_head_has_a_largest_size() {
    let head = |bytes: usize| {
        let frame = "GET / HTTP/1.1\r\nHost: a\r\nx: \r\n\r\n".len();
        format!(
            "GET / HTTP/1.1\r\nHost: a\r\nx: {}\r\n\r\n",
            "y".repeat(bytes - frame)
        )
    };
    let largest = head(LIMITS.bytes_max);
    check(largest.as_bytes(), &[&largest], "", None);
    let larger = head(LIMITS.bytes_max + 1);
    check(larger.as_bytes(), &[], "", Some(Refusal::HeadTooLarge));
    let endless = format!("GET /{}", "a".repeat(LIMITS.bytes_max));
    check(endless.as_bytes(), &[], "", Some(Refusal::HeadTooLarge));
}

#[test]
fn a_tunnel_passes_everything() {
    let head = "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n";
    let stream = format!("{head}\0\n\n{GET}");
    check(stream.as_bytes(), &[], &stream, None);
}

#[test]
fn a_refusal_stays() {
    let mut framer = Framer::new(LIMITS);
    let refused = Judgement {
        pass: 0,
        head: false,
        next: Next::Refused(Refusal::NotHttp),
    };
    assert_eq!(framer.judge(&mut [0]), refused);
    framer.begin_next();
    assert_eq!(framer.judge(&mut GET.as_bytes().to_vec()), refused);
}

/// A request and nothing else, by construction.
fn request() -> impl Strategy<Value = Vec<u8>> {
    let body = proptest::collection::vec(any::<u8>(), 0..80);
    let fields = proptest::collection::vec(("x-[a-z]{1,8}", "[ -~]{0,20}"), 0..4);
    let pieces = proptest::collection::vec(1..20_usize, 1..5);
    (body, fields, pieces, 0..3_u8, any::<bool>()).prop_map(
        |(body, fields, pieces, kind, trailer)| {
            let mut request = b"PUT /p?q HTTP/1.1\r\nHost: a.b:1\r\n".to_vec();
            for (name, value) in fields {
                request.extend(format!("{name}: {value}\r\n").into_bytes());
            }
            match kind {
                0 => request.extend(b"\r\n"),
                1 => {
                    request.extend(format!("Content-Length: {}\r\n\r\n", body.len()).into_bytes());
                    request.extend(body);
                }
                _ => {
                    request.extend(b"Transfer-Encoding: chunked\r\n\r\n");
                    let mut rest = &body[..];
                    for size in pieces.into_iter().cycle() {
                        let (chunk, after) = rest.split_at(size.min(rest.len()));
                        request.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
                        if chunk.is_empty() {
                            break;
                        }
                        request.extend([chunk, b"\r\n"].concat());
                        rest = after;
                    }
                    request.extend(if trailer {
                        &b"x: y\r\n\r\n"[..]
                    } else {
                        b"\r\n"
                    });
                }
            }
            request
        },
    )
}

/// `stream` cut at these places.
fn pieces(stream: &[u8], mut cuts: Vec<usize>) -> Vec<&[u8]> {
    cuts.iter_mut().for_each(|cut| *cut %= stream.len() + 1);
    cuts.extend([0, stream.len()]);
    cuts.sort_unstable();
    cuts.windows(2)
        .map(|ends| &stream[ends[0]..ends[1]])
        .collect()
}

proptest! {
    #[test]
    fn well_formed_requests_pass_as_they_were_made(
        requests in proptest::collection::vec(request(), 1..6),
        cuts in proptest::collection::vec(any::<usize>(), 0..8),
    ) {
        let stream = requests.concat();
        let outcome = run(pieces(&stream, cuts));
        prop_assert_eq!(outcome, Outcome { requests, open: Vec::new(), refusal: None });
    }

    #[test]
    fn damage_is_judged_the_same_however_it_is_cut(
        requests in proptest::collection::vec(request(), 1..4),
        damage in proptest::collection::vec(
            (any::<usize>(), prop_oneof![any::<u8>(), Just(b'\r'), Just(b'\n'), Just(b' ')]),
            1..4,
        ),
        cuts in proptest::collection::vec(any::<usize>(), 0..8),
    ) {
        let mut stream = requests.concat();
        for (at, byte) in damage {
            let at = at % stream.len();
            stream[at] = byte;
        }
        prop_assert_eq!(run(pieces(&stream, cuts)), run([&stream[..]]));
    }

    #[test]
    fn any_bytes_are_judged_the_same_however_they_are_cut(
        stream in proptest::collection::vec(any::<u8>(), 0..200),
        cuts in proptest::collection::vec(any::<usize>(), 0..4),
    ) {
        prop_assert_eq!(run(pieces(&stream, cuts)), run([&stream[..]]));
    }
}
