//! Measures what the limit stage's decision costs a request while tokens are at hand.
//!
//!   cargo bench -p node --bench limit -- [ADMISSIONS]
//!
//! Which meters count the request, and a token of each: with the tokens given back, as by a request
//! that ends early, and with the tokens spent, as by the first write to the target. 21 rounds of
//! 100,000 admissions unless told otherwise, in CPU time of the thread; the tokens come from a
//! store on this machine. `tests/perf/counts --by stage` counts the instructions of the stage.

#![allow(clippy::print_stdout, reason = "a benchmark prints what it measured")]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use node::limits::{
    Clock, DrawAll, Limits, MeterKey, Opener, Settings, SystemClock, Tokens, WaitingAll,
};
use node::metering::{Applied, Counted, Metering, Row, RowKey, Subject};
use proto::meter::{Limit, MeterSpec, Window};
use proto::store::embedded::Embedded;
use tokio::runtime::{Builder, Runtime};

const ROUNDS: usize = 21;
/// Far more than is drawn.
const PER_MINUTE: u64 = 100_000_000_000;

fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|a| a.parse().ok());
    let admissions = numbers.next().unwrap_or(100_000);
    let dir = tempfile::tempdir().expect("a folder");
    let store = Embedded::open(&dir.path().join("store.sqlite")).expect("a store");
    let mut settings = Settings::single_node(Opener { node: 1, boot: 1 });
    // On a busy machine the broker may be late.
    settings.store_grace = Duration::from_secs(60);
    let (limits, broker) = Limits::new(store, &settings, Arc::new(SystemClock));
    let mut runtime = Builder::new_multi_thread();
    let runtime = runtime.worker_threads(1).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let served = runtime.spawn(broker);
    println!(
        "ns of CPU for each admission, given back and spent: median and least of {ROUNDS} rounds"
    );
    let header = || RowKey::Header(HeaderName::from_static("x-customer"));
    let whole = |name: &'static str| RowKey::Fixed(counted(&limits, name));
    let cases = [
        ("no meter", vec![]),
        ("one meter", vec![row("one", whole("one"))]),
        (
            "two meters",
            vec![row("one", whole("one")), row("two", whole("two"))],
        ),
        ("keyed by a header", vec![row("each", header())]),
        (
            "two meters and a keyed one",
            vec![
                row("one", whole("one")),
                row("two", whole("two")),
                row("each", header()),
            ],
        ),
    ];
    for (name, rows) in cases {
        let metering = Metering::new(rows, 0, Arc::clone(&limits), limits.newcomers(1));
        let metering = metering.expect("few meters");
        Case {
            metering,
            runtime: &runtime,
        }
        .measure(name, admissions);
    }
    limits.stop();
    runtime.block_on(served).expect("the broker ends");
}

/// Two limits, as of a proxy with `per_minute` and `per_day`.
fn spec() -> Arc<MeterSpec> {
    let limits = [Window::Minute, Window::Day];
    let limits = limits.map(|window| Limit::new(PER_MINUTE, window).expect("a limit"));
    Arc::new(MeterSpec::new("", 1, limits.into()).expect("a meter"))
}

fn counted(limits: &Limits, name: &str) -> Counted {
    Counted::of(limits, &MeterKey::whole(name), Some(&spec()), None)
}

fn row(name: &str, key: RowKey) -> Row {
    Row {
        name: name.into(),
        spec: Some(spec()),
        slots: None,
        value: None,
        when: None,
        key,
        learn: None,
        priority: None,
        each_attempt: false,
    }
}

struct Case<'r> {
    metering: Metering,
    runtime: &'r Runtime,
}

impl Case<'_> {
    fn measure(&self, name: &str, admissions: usize) {
        let mut headers = HeaderMap::new();
        for (field, value) in [
            ("host", "gateway"),
            ("accept", "*/*"),
            ("x-customer", "c-1234"),
        ] {
            headers.insert(
                HeaderName::from_static(field),
                HeaderValue::from_static(value),
            );
        }
        let subject = Subject {
            headers: &headers,
            source: IpAddr::V4(Ipv4Addr::LOCALHOST),
            jwt: None,
        };
        let mut waited = 0;
        let mut rounds = |spends: bool| -> Vec<Duration> {
            let round = |_| {
                let mut waits = Duration::ZERO;
                let begun = cpu_time();
                for _ in 0..admissions {
                    let (applied, drawn) = self.admit(black_box(&subject));
                    let tokens = match drawn {
                        DrawAll::Drawn(tokens) => tokens,
                        DrawAll::Wait(waiting) => {
                            waited += 1;
                            let begun = cpu_time();
                            let tokens = self.granted(*waiting);
                            waits += cpu_time() - begun;
                            tokens
                        }
                        DrawAll::Refused(refusal) => panic!("{refusal:?}"),
                    };
                    if spends {
                        // Tokens may end right now; they are drawn again then, which is rare.
                        let _ = black_box(tokens.send(SystemClock.boot_ns()));
                    }
                    drop(black_box(applied));
                }
                cpu_time() - begun - waits
            };
            (0..ROUNDS).map(round).collect()
        };
        let (given_back, spent) = (rounds(false), rounds(true));
        println!(
            "  {name}: {}, {}; {waited} of all waited for tokens",
            told(given_back, admissions),
            told(spent, admissions),
        );
    }

    /// What the stage does for a request.
    fn admit(&self, subject: &Subject<'_>) -> (Arc<Applied>, DrawAll) {
        let applied = match self.metering.fixed() {
            Some(applied) => applied.clone(),
            None => Arc::new(self.metering.of(None, subject).expect("no body decides")),
        };
        let drawn = applied.first.draw(SystemClock.boot_ns());
        (applied, drawn)
    }

    fn granted(&self, waiting: WaitingAll) -> Tokens {
        self.runtime
            .block_on(waiting.granted(0, |_, _| ()))
            .expect("a token")
    }
}

fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    let (seconds, nanos) = (u64::try_from(time.tv_sec), u32::try_from(time.tv_nsec));
    Duration::new(seconds.unwrap_or(0), nanos.unwrap_or(0))
}

fn told(mut rounds: Vec<Duration>, admissions: usize) -> String {
    rounds.sort();
    let each = |round: Option<&Duration>| {
        round.map_or(0.0, |round| round.as_nanos() as f64 / admissions as f64)
    };
    let (median, least) = (each(rounds.get(rounds.len() / 2)), each(rounds.first()));
    format!("{median:.0} ({least:.0})")
}
