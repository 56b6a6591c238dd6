//! Measures the records store: what a record costs to keep, and how long searches take.
//!
//!   cargo bench -p control --bench records -- [RECORDS [BATCH [ORGANISATIONS]]]
//!
//! 1,000,000 records in batches of 512 for one organisation unless told otherwise. CPU is that of
//! the inserting thread, checkpoints included, from `/proc` (Linux). At the end each goal stands
//! beside what was measured; ends with 1 where one is missed. The goals are meant for 10,000,000
//! records, as many as SQLite keeps.

#![allow(clippy::print_stdout, reason = "a benchmark prints what it measured")]

use std::hint::black_box;
use std::time::Instant;

use control::records::aggregate::{Order, Question};
use control::records::tally::Dimension;
use control::records::{RecordFilter, Records};
use proto::id::{CredentialId, OrgId, ProxyId, RequestId};
use proto::record::{Attempt, Record, Stage, StageTime, UpstreamId};

/// Proxies of an organisation; each has a proxy credential and a target credential.
const PROXIES: u64 = 20;
/// Requests per second of the clock that the records come from.
const RATE: u64 = 5_000;
/// 2026-11-18: when the first request ends, in microseconds since the Unix epoch.
const BEGIN_US: i64 = 1_795_000_000_000_000;

/// Records that are kept in a second, at least.
const KEPT_PER_S_MIN: f64 = 20_000.0;
/// Milliseconds that a search or sums over the last hour take, at most.
const LAST_HOUR_MS_MAX: f64 = 200.0;

/// What was measured beside its goal.
struct Goal {
    name: String,
    figure: String,
    reached: bool,
}

impl Goal {
    /// Of something that is asked about the last hour.
    fn last_hour(name: &str, ms: f64) -> Self {
        Self {
            name: name.to_owned(),
            figure: format!("{ms:.1} ms, at most {LAST_HOUR_MS_MAX} ms"),
            reached: ms <= LAST_HOUR_MS_MAX,
        }
    }
}

/// Xorshift: the same records in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// An id as UUIDv7 makes it: milliseconds, then random bits.
    fn id(&mut self, us: i64) -> u128 {
        let ms = us.cast_unsigned() / 1_000;
        let random = (u128::from(self.next()) << 64) | u128::from(self.next());
        (u128::from(ms) << 80) | (random >> 48) & !(0xf << 76) | (7 << 76)
    }

    /// The id of a thing: the same for the same number.
    fn thing(kind: u64, n: u64) -> u128 {
        let mut random = Self((kind << 32 | n) * 0x9e37_79b9_7f4a_7c15 + 1);
        random.next();
        random.id(BEGIN_US - 86_400_000_000)
    }

    /// The `n`th request: nine in ten end within 200 ms, the rest within 10 s.
    fn record(&mut self, n: u64, orgs: u64) -> Record {
        let long = self.below(10) == 0;
        let total_us = 2_000 + self.below(if long { 10_000_000 } else { 200_000 });
        let ended_us = BEGIN_US + (n * 1_000_000 / RATE).cast_signed();
        let started_us = ended_us - total_us.cast_signed();
        let (org, which) = (self.below(orgs), self.below(PROXIES));
        let thing = org * PROXIES + which;
        let (status, code) = match self.below(1_000) {
            0 => (502, "upstream-unreachable"),
            1..30 => (429, "rate-limited"),
            30..60 => (404, "proxy-access-granted"),
            _ => (200, "proxy-access-granted"),
        };
        Record {
            request_id: RequestId::from_bits(self.id(started_us)),
            org_id: OrgId::from_bits(Self::thing(1, org)),
            proxy_id: ProxyId::from_bits(Self::thing(2, thing)),
            proxy_credential_id: Some(CredentialId::from_bits(Self::thing(3, thing))),
            proxy_credential_generation: Some("1.local.1".into()),
            target_credential_id: Some(CredentialId::from_bits(Self::thing(4, thing))),
            target_credential_generation: Some("1.local.1".into()),
            config_version: 42,
            node: "gateway-7f9c".into(),
            region: "local".into(),
            method: if self.below(3) == 0 { "GET" } else { "POST" }.into(),
            path: format!("/v1/charges/{}", self.below(100_000)),
            query: Vec::new(),
            status: Some(status),
            upstream_status: Some(status),
            code: code.into(),
            auth_failure: None,
            started_at_us: started_us,
            total_us,
            stages: self.stages(),
            request_bytes: self.below(2_000),
            response_bytes: self.below(20_000),
            upstream_request_bytes: self.below(2_000),
            upstream_response_bytes: self.below(20_000),
            attempts: 1,
            denials: Vec::new(),
            shadow_rule_ids: Vec::new(),
            filter_ids: Vec::new(),
            source_address: Some(format!("192.0.2.{}", self.below(200))),
            user_agent: Some("OpenAI/Python 1.99.1".into()),
            upstream_ids: vec![UpstreamId {
                header: "x-request-id".into(),
                value: format!("req_{:016x}", self.next()),
            }],
            trace_id: Some(format!("{:016x}{:016x}", self.next(), self.next())),
            left_gateway: None,
            client_aborted: false,
            scrubbed: 0,
            sends: vec![Attempt {
                started_us: 120,
                connect_us: 0,
                wait_us: u32::try_from(total_us)
                    .unwrap_or(u32::MAX)
                    .saturating_sub(200),
                reused: true,
                status: Some(status),
                failure: None,
            }],
            limited_by: Vec::new(),
            scrub: Default::default(),
            endpoints: Vec::new(),
            forwarded_to: None,
            forwarded_from: None,
            payload: None,
            meters: Vec::new(),
            presented: None,
            refused_by: Vec::new(),
            method_overridden: Some(false),
            events: Vec::new(),
            events_dropped: 0,
            value_missing: Vec::new(),
        }
    }

    fn stages(&mut self) -> Vec<StageTime> {
        let time = |stage| StageTime {
            stage,
            us: u32::try_from(self.below(60)).unwrap_or_default(),
        };
        Stage::ALL.into_iter().map(time).collect()
    }
}

/// Nanoseconds that this thread has been on a core.
fn cpu_ns() -> u64 {
    std::fs::read_to_string("/proc/thread-self/schedstat")
        .ok()
        .and_then(|text| text.split(' ').next()?.parse().ok())
        .expect("Linux says how long a thread ran")
}

fn main() {
    let mut arguments = std::env::args()
        .skip(1)
        .filter_map(|text| text.parse().ok());
    let count: u64 = arguments.next().unwrap_or(1_000_000);
    let batch: u64 = arguments.next().unwrap_or(512);
    let orgs: u64 = arguments.next().unwrap_or(1);
    let dir = tempfile::tempdir().expect("a folder for the file");
    let path = dir.path().join("records.db");
    let records = Records::open(&path).expect("a fresh file opens");
    let (mut random, mut cpu, mut slowest, mut sample) = (Random(88_172_645), 0, 0, Vec::new());
    let mut inserting = std::time::Duration::ZERO;
    for first in (0..count).step_by(usize::try_from(batch).expect("a small number")) {
        let until = count.min(first + batch);
        let made: Vec<_> = (first..until).map(|n| random.record(n, orgs)).collect();
        let (before, begun) = (cpu_ns(), Instant::now());
        assert_eq!(records.insert(&made).expect("records are kept"), made.len());
        cpu += cpu_ns() - before;
        inserting += begun.elapsed();
        slowest = slowest.max(begun.elapsed().as_micros());
        sample.extend(made.into_iter().next());
    }
    let files = std::fs::read_dir(dir.path()).expect("the folder is there");
    let bytes: u64 = files
        .flatten()
        .filter_map(|file| Some(file.metadata().ok()?.len()))
        .sum();
    println!("{count} records in batches of {batch} for {orgs} organisations");
    println!(
        "  cpu per record   {:8.2} µs",
        cpu as f64 / count as f64 / 1_000.0
    );
    let kept_per_s = count as f64 / inserting.as_secs_f64();
    println!("  records per second {kept_per_s:8.0}");
    let mut goals = vec![Goal {
        name: "kept".into(),
        figure: format!("{kept_per_s:.0} records/s, at least {KEPT_PER_S_MIN}"),
        reached: kept_per_s >= KEPT_PER_S_MIN,
    }];
    println!("  bytes per record {:8.1}", bytes as f64 / count as f64);
    println!("  slowest batch    {:8.1} ms", slowest as f64 / 1_000.0);
    goals.extend(search(&records, &sample));
    goals.extend(sums(&records, &sample));
    println!();
    for Goal {
        name,
        figure,
        reached,
    } in &goals
    {
        let word = if *reached { "reached" } else { "MISSED" };
        println!("{name:<26} {figure}: {word}");
    }
    if goals.iter().any(|goal| !goal.reached) {
        std::process::exit(1);
    }
}

/// Times sums over the last hour of the records' clock.
fn sums(records: &Records, sample: &[Record]) -> Vec<Goal> {
    let goals = std::cell::RefCell::new(Vec::new());
    let last = &sample[sample.len() - 1];
    let to_s = (last.started_at_us / 60_000_000 + 2) * 60;
    let ask = |name: &str, by: Dimension, set: &dyn Fn(&mut Question)| {
        let mut question = Question {
            org: last.org_id,
            by,
            from_s: to_s - 3_600,
            to_s,
            bucket_s: None,
            filter: RecordFilter::default(),
            order: Order::Count,
            limit: 10,
        };
        set(&mut question);
        let mut count = 0;
        let ms = median(9, &mut |_| {
            let found = records.aggregate(&question).expect("sums are read");
            count = found
                .groups
                .iter()
                .map(|group| group.total.count)
                .sum::<u64>();
        });
        println!("  {name:<24} {ms:8.3} ms ({count} counted)");
        if name.contains("minute") {
            goals.borrow_mut().push(Goal::last_hour(name, ms));
        }
    };
    ask("last hour by minute", Dimension::All, &|q| {
        q.bucket_s = Some(60)
    });
    ask("by proxy and minute", Dimension::Proxy, &|q| {
        q.bucket_s = Some(60)
    });
    ask("one proxy by minute", Dimension::All, &|q| {
        q.bucket_s = Some(60);
        q.filter.proxy = Some(last.proxy_id);
    });
    ask("top by code", Dimension::Code, &|_| {});
    ask("top paths of one proxy", Dimension::Path, &|q| {
        q.filter.proxy = Some(last.proxy_id);
        q.from_s = to_s - 120;
    });
    goals.into_inner()
}

/// Times searches: the median of some runs.
fn search(records: &Records, sample: &[Record]) -> Vec<Goal> {
    let goals = std::cell::RefCell::new(Vec::new());
    let middle = &sample[sample.len() / 2];
    let org = middle.org_id;
    let list = |name: &str, set: &dyn Fn(&mut RecordFilter)| {
        let mut filter = RecordFilter::default();
        set(&mut filter);
        let mut found = 0;
        let ms = median(9, &mut |_| {
            found = records
                .list(org, &filter, 50)
                .expect("records are listed")
                .0
                .len();
        });
        println!("  {name:<24} {ms:8.3} ms ({found} found)");
        if name.starts_with("last hour") {
            goals.borrow_mut().push(Goal::last_hour(name, ms));
        }
    };
    list("first page", &|_| {});
    list("page from the middle", &|filter| {
        filter.to_us = Some(middle.started_at_us)
    });
    list("by proxy", &|filter| filter.proxy = Some(middle.proxy_id));
    list("by status 5xx", &|filter| {
        filter.status = "5xx".parse().ok()
    });
    let hour_us = sample[sample.len() - 1].started_at_us - 3_600_000_000;
    list("last hour, 5xx of a proxy", &|filter| {
        filter.from_us = Some(hour_us);
        filter.proxy = Some(middle.proxy_id);
        filter.status = "5xx".parse().ok();
    });
    list("last hour, an absent code", &|filter| {
        filter.from_us = Some(hour_us);
        filter.code = Some("internal-error".into());
    });
    list("by an absent status", &|filter| {
        filter.status = "418".parse().ok()
    });
    list("by an absent code", &|filter| {
        filter.code = Some("internal-error".into())
    });
    list("by proxy and status 5xx", &|filter| {
        filter.proxy = Some(middle.proxy_id);
        filter.status = "5xx".parse().ok();
    });
    let ms = median(99, &mut |run| {
        let wanted = &sample[run * sample.len() / 99];
        let found = records
            .get(wanted.org_id, wanted.request_id)
            .expect("a record is read");
        assert_eq!(found.as_ref(), Some(wanted));
    });
    println!("  {:<24} {ms:8.3} ms", "get by id");
    let ms = median(9, &mut |run| {
        let absent = RequestId::from_bits(sample[run].request_id.bits() ^ 1);
        black_box(
            records
                .get(org, absent)
                .expect("an unknown id is no failure"),
        );
    });
    println!("  {:<24} {ms:8.3} ms", "get by an unknown id");
    goals.into_inner()
}

fn median(runs: usize, run: &mut dyn FnMut(usize)) -> f64 {
    let mut times: Vec<_> = (0..runs)
        .map(|at| {
            let begun = Instant::now();
            run(at);
            begun.elapsed().as_secs_f64() * 1_000.0
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[runs / 2]
}
