//! Several regions on this machine, as `deploy/local-cluster --regions` starts them: packets
//! between them take 80 ms ± 20 each way, and one in a hundred is lost.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::cluster::alone;
use super::load::Load;
use super::network::ip;
use crate::harness::gateway::binary;
use crate::harness::http::{Message, Request};
use crate::harness::stores::{self, LIVE, part};
use crate::harness::wait_for;

/// The regions, which end when this is dropped.
pub struct Wide {
    /// Home first.
    pub regions: Vec<Place>,
    script: Child,
    _dir: TempDir,
}

/// One region.
pub struct Place {
    /// Its name.
    pub name: String,
    /// Its nodes, for callers.
    pub nodes: Vec<String>,
    /// This machine's address beside it.
    pub host: Ipv4Addr,
    namespace: String,
    address: String,
    control: String,
    etcd: String,
    token: String,
}

/// A proxy, and the key to it.
pub struct Called {
    /// Its id.
    pub id: String,
    /// Its target's id.
    pub target: String,
    key: String,
}

impl Called {
    /// A request with the key; the path is behind the proxy's.
    pub fn request(&self, method: &str, path: &str) -> Request {
        Request::new(method, &format!("/api/{}{path}", self.id))
            .field("authorization", &format!("Bearer {}", self.key))
    }
}

/// Tells what was measured beside what is promised: `tests/perf/regions` reads it.
pub fn figure(what: &str, took: Duration) {
    eprintln!("figure: {what}: {} ms, goal 1000 ms", took.as_millis());
}

/// Runs a test on three fresh regions `us`, `eu`, `ap`; packets that leave one of `far` take so
/// many milliseconds more. One at a time.
pub fn run(far: &[(&str, u32)], test: impl FnOnce(&Wide)) {
    if let Some(_one) = alone() {
        test(&Wide::start(far));
    }
}

impl Wide {
    fn start(far: &[(&str, u32)]) -> Self {
        // Three stores on one disk would wait for each other.
        let dir = tempfile::tempdir_in("/dev/shm").expect("a tmpfs");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/local-cluster");
        let mut command = Command::new(script);
        command
            .args(["--regions", "3", "--output", "json", "--delay-ms", "80"])
            .args(["--jitter-ms", "20", "--loss-percent", "1", "--dir"])
            .arg(dir.path());
        for (region, ms) in far {
            command.args(["--far", &format!("{region}={ms}")]);
        }
        let mut script = command
            .env("REQUESTROCKET_BIN", env!("CARGO_BIN_EXE_requestrocket"))
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 runs the script");
        let mut line = String::new();
        let stdout = script.stdout.take().expect("its output");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        let ready: Value = serde_json::from_str(&line).unwrap_or_else(|_| {
            panic!(
                "deploy/local-cluster --regions did not start, and has said why. \
                 REQUESTROCKET_CHAOS=skip leaves these tests out."
            )
        });
        eprintln!("packets are delayed by {}", ready["link"]);
        let token = text(&ready["admin_token"]);
        let regions = ready["regions"].as_array().expect("a list").iter();
        let wide = Self {
            regions: regions.map(|region| Place::of(region, &token)).collect(),
            script,
            _dir: dir,
        };
        wide.wait_equal();
        for place in &wide.regions[1..] {
            wait_for("home's token everywhere", || {
                (place.call("GET", "", &Value::Null).status() == 200).then_some(())
            });
        }
        wide
    }

    /// Home.
    pub fn home(&self) -> &Place {
        &self.regions[0]
    }

    /// A proxy for an upstream, with further fields; every node knows it.
    pub fn proxy(&self, base_url: &str, fields: Value) -> Called {
        let home = self.home();
        let target = home.create(
            "/targets",
            &json!({"base_url": base_url, "allow_http": true, "allow_networks": ["10.0.0.0/8"]}),
        );
        let caller = home.create(
            "/credentials",
            &json!({"kind": "proxy", "auth_type": "api_key"}),
        );
        let mut proxy = json!({"target_id": target["id"], "proxy_credential_ids": [caller["id"]]});
        let all = proxy.as_object_mut().expect("an object");
        all.extend(fields.as_object().expect("an object").clone());
        let called = Called {
            id: text(&home.create("/proxies", &proxy)["id"]),
            target: text(&target["id"]),
            key: text(&caller["secret"]["key"]),
        };
        for node in self.regions.iter().flat_map(|region| &region.nodes) {
            wait_for("the proxy on every node", || {
                let answer = called.request("GET", "/").send(node);
                (answer.status() == 200).then_some(())
            });
        }
        called
    }

    /// A steady load on the nodes of each region.
    pub fn loads(&self, called: &Called, per_second: u32) -> Vec<Load> {
        let regions = self.regions.iter();
        let load = |place: &Place| {
            let request = called.request("GET", "/");
            Load::start(place.nodes.clone(), request, per_second)
        };
        regions.map(load).collect()
    }

    /// Waits until all regions have the same heads and facts.
    pub fn wait_equal(&self) {
        wait_for("equal heads", || {
            let mut all = self
                .regions
                .iter()
                .map(|place| part(&stores::dump(&place.etcd), &LIVE));
            let first = all.next().expect("a region");
            all.all(|other| other == first).then_some(())
        });
    }

    /// Asserts that all regions have the same versions, without a gap, and the same leaves; gives
    /// how many versions there are.
    pub fn is_whole(&self) -> usize {
        let versions = self.home().versions();
        let numbers: Vec<u64> = versions
            .iter()
            .map(|v| v["n"].as_u64().expect("a number"))
            .collect();
        let last = *numbers.first().expect("a version");
        let all: Vec<u64> = (1..=last).rev().collect();
        let from = all.len() - numbers.len();
        assert_eq!(
            numbers,
            all[..all.len() - from],
            "without a gap, newest first"
        );
        for place in &self.regions[1..] {
            // A control plane sees what its store has a moment later.
            let newest = versions.first();
            let theirs = wait_for("the newest version", || {
                let theirs = place.versions();
                (theirs.first() == newest).then_some(theirs)
            });
            let known: BTreeSet<String> = theirs.iter().map(Value::to_string).collect();
            let lacks = |version: &&Value| !known.contains(&version.to_string());
            let missing: Vec<_> = versions.iter().filter(lacks).map(|v| &v["n"]).collect();
            assert!(missing.is_empty(), "{} lacks {missing:?}", place.name);
            for (ours, theirs) in versions.iter().zip(&theirs) {
                assert_eq!(ours, theirs, "{}", place.name);
            }
            let home = part(&stores::dump(&self.home().etcd), &["leaf/", "versions/"]);
            for (key, value) in part(&stores::dump(&place.etcd), &["leaf/", "versions/"]) {
                if let Some(known) = home.get(&key) {
                    assert_eq!(*known, value, "{}: {key}", place.name);
                }
            }
        }
        versions.len()
    }

    /// Asserts that every region has these targets by name, and each once.
    pub fn has_targets(&self, expected: &BTreeSet<String>) {
        for place in &self.regions {
            let names = place.targets();
            let once: BTreeSet<String> = names.iter().cloned().collect();
            assert_eq!(once.len(), names.len(), "{}: one twice", place.name);
            let missing: Vec<_> = expected.difference(&once).collect();
            assert!(missing.is_empty(), "{} lacks {missing:?}", place.name);
        }
    }
}

impl Drop for Wide {
    fn drop(&mut self) {
        let stop = format!("kill -TERM {}", self.script.id());
        let _ = Command::new("sh").args(["-c", &stop]).status();
        let _ = self.script.wait();
    }
}

impl Place {
    fn of(ready: &Value, token: &str) -> Self {
        let nodes = ready["nodes"].as_array().expect("a list");
        Self {
            name: text(&ready["name"]),
            nodes: nodes.iter().map(text).collect(),
            host: text(&ready["host"]).parse().expect("an address"),
            namespace: text(&ready["namespace"]),
            address: text(&ready["address"]),
            control: text(&ready["control"]),
            etcd: text(&ready["etcd"]),
            token: token.to_owned(),
        }
    }

    /// Another region hears nothing from this one any more, and nobody is told.
    pub fn lose(&self, other: &Self) {
        let way = format!(
            "route replace {}/32 dev void0 src {}",
            other.address, self.address
        );
        ip(&self.namespace, &way);
    }

    /// It does again.
    pub fn find(&self, other: &Self) {
        ip(
            &self.namespace,
            &format!("route del {}/32 dev void0", other.address),
        );
    }

    /// Makes it home by the command line, with further arguments; gives what was said.
    pub fn promote(&self, arguments: &[&str]) -> String {
        let output = binary()
            .args(["regions", "promote", &self.name])
            .args(arguments)
            .args(["--control", &self.control])
            .env("REQUESTROCKET_TOKEN", &self.token)
            .output()
            .expect("the binary runs");
        let said = [&output.stdout[..], &output.stderr[..]].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(output.status.success(), "{}: {said}", self.name);
        said
    }

    /// The region that its control plane takes for home.
    pub fn home(&self) -> Option<String> {
        let listed = self.operator("/regions");
        let mut items = listed["items"].as_array()?.iter();
        let home = items.find(|region| region["home"] == true)?;
        Some(text(&home["name"]))
    }

    /// Reads what belongs to no organisation.
    pub fn operator(&self, path: &str) -> Value {
        let request = Request::new("GET", &format!("/api/v1{path}"))
            .field("authorization", &format!("Bearer {}", self.token));
        let answer = request.send(&self.control);
        assert_eq!(answer.status(), 200, "{path}: {}", answer.text());
        answer.json()
    }

    /// Calls the REST API of its control plane as the owner of the organisation `default`.
    pub fn call(&self, method: &str, path: &str, body: &Value) -> Message {
        self.call_as(method, path, body, None)
    }

    fn call_as(&self, method: &str, path: &str, body: &Value, key: Option<&str>) -> Message {
        let mut request = Request::new(method, &format!("/api/v1/orgs/default{path}"))
            .field("authorization", &format!("Bearer {}", self.token));
        if let Some(key) = key {
            request = request.field("idempotency-key", key);
        }
        if !body.is_null() {
            request = request.json(&body.to_string());
        }
        request.send(&self.control)
    }

    /// Creates something and gives what was answered.
    pub fn create(&self, path: &str, body: &Value) -> Value {
        let answer = self.call("POST", path, body);
        assert_eq!(answer.status(), 201, "{path} {body}: {}", answer.text());
        answer.json()
    }

    /// Creates a target with this name; the same name is never created twice.
    pub fn create_target(&self, name: &str) -> Message {
        let body = json!({"name": name, "base_url": "https://api.example.com"});
        self.call_as("POST", "/targets", &body, Some(name))
    }

    /// The record of a request.
    pub fn record(&self, request_id: &str) -> Value {
        wait_for("a record", || {
            let answer = self.call("GET", &format!("/records/{request_id}"), &Value::Null);
            (answer.status() == 200).then(|| answer.json())
        })
    }

    /// All versions that it has, newest first, wherever it has them.
    fn versions(&self) -> Vec<Value> {
        let mut all = self.all("/versions");
        for version in &mut all {
            let fields = version.as_object_mut().expect("an object");
            fields.remove("kept_in").expect("a word");
        }
        all
    }

    /// The names of its targets.
    pub fn targets(&self) -> Vec<String> {
        let all = self.all("/targets");
        all.iter().map(|target| text(&target["name"])).collect()
    }

    /// All pages of a list.
    fn all(&self, path: &str) -> Vec<Value> {
        let (mut all, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = self.call("GET", &format!("{path}?limit=100{cursor}"), &Value::Null);
            assert_eq!(page.status(), 200, "{path}: {}", page.text());
            let page = page.json();
            all.extend(page["items"].as_array().expect("a list").iter().cloned());
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return all,
            }
        }
    }
}

fn text(value: &Value) -> String {
    value.as_str().expect("a text").to_owned()
}
