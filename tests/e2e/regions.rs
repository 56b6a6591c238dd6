//! Two regions of real processes, each with an etcd, a control plane and a node of its own.

use std::collections::BTreeMap;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use proto::hosts::HostPattern;
use proto::seal::{self, Binding, Keyring, SealError, Sealed};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::cluster::{refused, wait_status};
use crate::harness::address;
use crate::harness::etcd::EtcdServer;
use crate::harness::gateway::{Gateway, Start, TARGET_SECRET, binary};
use crate::harness::stores::{self, LIVE, part};
use crate::harness::upstream::Upstream;
use crate::harness::wait_for;

/// A connection between regions that a test cuts and heals.
pub struct Cut {
    pub address: String,
    is_cut: Arc<AtomicBool>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Cut {
    /// A way to `target`, for as long as the test runs.
    pub fn new(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address").to_string();
        let (is_cut, open) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let way = Self {
            address,
            is_cut: Arc::clone(&is_cut),
            open: Arc::clone(&open),
        };
        let target = target.to_owned();
        std::thread::spawn(move || {
            for near in listener.incoming().flatten() {
                if is_cut.load(Ordering::SeqCst) {
                    continue;
                }
                if let Ok(far) = TcpStream::connect(&target) {
                    carry(&near, &far, &open);
                }
            }
        });
        way
    }

    pub fn cut(&self) {
        self.is_cut.store(true, Ordering::SeqCst);
        for stream in self.open.lock().expect("no panic").drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }

    pub fn heal(&self) {
        self.is_cut.store(false, Ordering::SeqCst);
    }
}

fn carry(near: &TcpStream, far: &TcpStream, open: &Arc<Mutex<Vec<TcpStream>>>) {
    let double = |stream: &TcpStream| stream.try_clone().expect("a handle can be doubled");
    open.lock()
        .expect("no panic")
        .extend([double(near), double(far)]);
    for (mut from, mut to) in [(double(near), double(far)), (double(far), double(near))] {
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut from, &mut to);
            let _ = to.shutdown(std::net::Shutdown::Both);
        });
    }
}

/// One region.
pub struct Region {
    name: &'static str,
    etcd: EtcdServer,
    /// Where its REST API and its link listen.
    control: String,
    link: String,
    /// Where its node listens.
    listen: String,
    /// Under which URL all regions are told that callers reach it.
    pub gateway: String,
}

impl Region {
    fn new(name: &'static str) -> Self {
        Self {
            name,
            etcd: EtcdServer::start(),
            control: address::reserved().to_string(),
            link: address::reserved().to_string(),
            listen: address::reserved().to_string(),
            gateway: format!("http://gw.{name}.example"),
        }
    }

    /// Where its node really listens.
    pub fn node_url(&self) -> String {
        format!("http://{}", self.listen)
    }

    /// Where its REST API listens.
    pub fn control_address(&self) -> &str {
        &self.control
    }

    /// Where its control plane takes links.
    pub fn link_address(&self) -> &str {
        &self.link
    }

    /// Its etcd.
    pub fn etcd(&self) -> &EtcdServer {
        &self.etcd
    }

    /// Another way to its node.
    pub fn way_to_node(&self) -> String {
        format!("http://{}", Cut::new(&self.listen).address)
    }

    /// The same, to be put back.
    pub fn etcd_mut(&mut self) -> &mut EtcdServer {
        &mut self.etcd
    }

    /// Ends its etcd.
    pub fn stop_etcd(&mut self) {
        self.etcd.stop();
    }

    /// Everything that its store holds.
    pub fn dump(&self) -> BTreeMap<String, Vec<u8>> {
        stores::dump(&self.etcd.endpoint())
    }
}

/// Home `us` and a follower `eu`.
pub struct Two {
    files: TempDir,
    pub us: Region,
    pub eu: Region,
    /// The way from eu to us.
    pub way: Cut,
    /// The way from us to eu.
    pub back: Cut,
    /// Whether what is pinned to a region is kept there and at home alone.
    pub content_by_region: bool,
}

/// Makes a key ring of a region, of this name, and its public part.
pub fn keyring(folder: &Path, region: &str, name: &str, join: Option<&str>) {
    let mut command = binary();
    command
        .args(["keyring", "new", "--region", region, "--nodes"])
        .arg(folder.join(format!("{name}.json")))
        .arg("--control")
        .arg(folder.join(format!("{name}.public.json")));
    if let Some(join) = join {
        command.arg("--join").arg(folder.join(join));
    }
    assert!(command.status().expect("the binary runs").success());
}

impl Two {
    pub fn new() -> Self {
        let files = tempfile::tempdir().expect("a folder");
        let (us, eu) = (Region::new("us"), Region::new("eu"));
        let run = |command: &mut std::process::Command| {
            assert!(command.status().expect("the binary runs").success());
        };
        let file = |name: String| files.path().join(name);
        for (region, join) in [("us", None), ("eu", Some("us.public.json"))] {
            keyring(files.path(), region, region, join);
            run(binary()
                .args(["keyring", "signer", "--control"])
                .arg(file(format!("{region}.public.json")))
                .arg("--signing")
                .arg(file(format!("{region}.signing.json"))));
        }
        run(binary()
            .args(["link", "authority", "--dir"])
            .arg(files.path()));
        for name in ["127.0.0.1", "gw-us", "gw-eu"] {
            run(binary()
                .args(["link", "issue", name, "--dir"])
                .arg(files.path()));
        }
        let (way, back) = (Cut::new(&us.link), Cut::new(&eu.link));
        for region in ["us", "eu"] {
            let token = format!("{region}-operator-token-of-at-least-32-characters");
            std::fs::write(file(format!("{region}.operator")), token).expect("a file");
        }
        Self {
            files,
            us,
            eu,
            way,
            back,
            content_by_region: false,
        }
    }

    /// Where the files of both are.
    pub fn folder(&self) -> &Path {
        self.files.path()
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    fn config(&self, region: &Region, certificate: &str) -> String {
        format!(
            "[store]\nkind = \"etcd\"\nendpoints = [{:?}]\n\
             [policy]\nallow_http = true\n\
             [[dial_guard.permit]]\nnetwork = \"127.0.0.0/8\"\n\
             ports = [\"1-65535\"]\norgs = [\"*\"]\n\
             [link]\ncert_file = {:?}\nkey_file = {:?}\nca_file = {:?}\n",
            region.etcd.endpoint(),
            self.file(&format!("{certificate}.pem")),
            self.file(&format!("{certificate}-key.pem")),
            self.file("ca.pem"),
        )
    }

    fn control_start(&self, region: &Region, peer: &Region, replication: &str) -> Start {
        let config = format!(
            "region = {:?}\n{}listen = {:?}\n[keys]\npublic_file = {:?}\n\
             signing_file = {:?}\n[control]\noperator_token_file = {:?}\n\
             [gateway]\npublic_url = {:?}\n\
             [regions]\nhome = \"us\"\ncontent_by_region = {}\n[[regions.peers]]\nname = {:?}\ncontrol = \"http://{}\"\n\
             insecure = true\ngateway = {:?}\nreplication = [{replication:?}]\n\
             public_file = {:?}\n",
            region.name,
            self.config(region, "127.0.0.1"),
            region.link,
            self.file(&format!("{}.public.json", region.name)),
            self.file(&format!("{}.signing.json", region.name)),
            self.file(&format!("{}.operator", region.name)),
            region.gateway,
            self.content_by_region,
            peer.name,
            peer.control,
            peer.gateway,
            self.file(&format!("{}.public.json", peer.name)),
        );
        let listen = (
            "REQUESTROCKET_CONTROL__LISTEN".into(),
            region.control.clone(),
        );
        Start {
            mode: "control",
            config,
            environment: vec![listen],
        }
    }

    pub fn us_start(&self) -> Start {
        self.control_start(&self.us, &self.eu, &self.back.address)
    }

    pub fn eu_start(&self) -> Start {
        self.control_start(&self.eu, &self.us, &self.way.address)
    }

    /// The control planes, home first.
    pub fn controls(&self) -> (Gateway, Gateway) {
        self.controls_with("")
    }

    /// The same with further lines of their table `control`.
    pub fn controls_with(&self, lines: &str) -> (Gateway, Gateway) {
        let table = format!("[control]\n{lines}");
        self.controls_of(|config| config.replace("[control]\n", &table))
    }

    /// The same with these tables besides.
    pub fn controls_and(&self, tables: &str) -> (Gateway, Gateway) {
        self.controls_of(|config| format!("{config}{tables}"))
    }

    fn controls_of(&self, config: impl Fn(&str) -> String) -> (Gateway, Gateway) {
        let start = |mut start: Start| {
            start.config = config(&start.config);
            Gateway::with(start)
        };
        let us = start(self.us_start());
        let mut eu = start(self.eu_start());
        eu.token.clone_from(&us.token);
        // Asked for with a token that is not known yet, eu would take it for a guess.
        self.wait_equal();
        wait_for("home's token in eu", || {
            (eu.operator("/me").status() == 200).then_some(())
        });
        (us, eu)
    }

    pub fn node(&self, region: &Region) -> Gateway {
        Gateway::with(self.node_start(region))
    }

    pub fn node_start(&self, region: &Region) -> Start {
        let name = format!("gw-{}", region.name);
        let config = format!(
            "region = {:?}\nnode_name = {name:?}\n{}endpoints = [{:?}]\n[keys]\nring_file = {:?}\n",
            region.name,
            self.config(region, &name),
            region.link,
            self.file(&format!("{}.json", region.name)),
        );
        let listen = (
            "REQUESTROCKET_GATEWAY__LISTEN".into(),
            region.listen.clone(),
        );
        Start {
            mode: "node",
            config,
            environment: vec![listen],
        }
    }

    /// Waits until both regions have the same heads and facts; then every version of eu, and all
    /// content that it has, is one of us, without a gap. Gives how many eu has of the organisation
    /// that has most.
    pub fn wait_equal(&self) -> usize {
        let (us, eu) = wait_for("equal heads", || {
            let (us, eu) = (self.us.dump(), self.eu.dump());
            (part(&us, &LIVE) == part(&eu, &LIVE)).then_some((us, eu))
        });
        let mut numbers: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        let lives = |key: &String| {
            // The rest of a deleted organisation goes a moment after its head.
            let org = key.split('/').nth(1).unwrap_or_default();
            eu.contains_key(&format!("live/head/{org}"))
        };
        let all = part(&eu, &["versions/", "leaf/"]);
        for (key, value) in all.into_iter().filter(|(key, _)| lives(key)) {
            assert_eq!(us.get(&key), Some(&value), "{key}");
            if let Some((org, n)) = proto::keys::parse_version(&key) {
                numbers.entry(org.to_string()).or_default().push(n);
            }
        }
        for (org, numbers) in &numbers {
            let key = format!("live/head/{org}");
            let head: Value = serde_json::from_slice(&eu[&key]).expect("a head");
            let last = head["n"].as_u64().expect("a number");
            let all: Vec<u64> = (numbers[0]..=last).collect();
            assert_eq!(*numbers, all, "{org}");
        }
        numbers.values().map(Vec::len).max().unwrap_or(0)
    }

    pub fn ring(&self, region: &str) -> Keyring {
        let json = std::fs::read(self.file(&format!("{region}.json"))).expect("a file");
        Keyring::parse(&json).expect("a key ring")
    }
}

/// The sealed secrets of a region in a dump: key and value.
pub fn sealed(dump: &BTreeMap<String, Vec<u8>>, region: &str) -> Vec<(String, Sealed)> {
    let of = |key: &String| key.starts_with("secrets/") && key.ends_with(&format!("/{region}"));
    let found = dump.iter().filter(|(key, _)| of(key));
    found
        .map(|(key, value)| (key.clone(), serde_json::from_slice(value).expect("sealed")))
        .collect()
}

/// Opens a sealed secret under the binding that its key and `host` name.
pub fn open(
    ring: &Keyring,
    (key, value): &(String, Sealed),
    host: &str,
) -> Result<String, SealError> {
    let parts: Vec<&str> = key.split('/').collect();
    let hosts: Vec<HostPattern> = vec![host.parse().expect("a host")];
    let binding = Binding {
        org: parts[1].parse().expect("an id"),
        credential: parts[2].parse().expect("an id"),
        hosts: &hosts,
        seal_id: parts[3],
    };
    let secret = seal::open(ring, &binding, value)?;
    Ok(secret.token.clone().unwrap_or_default())
}

#[test]
fn what_is_made_at_home_serves_in_the_other_region_with_a_secret_of_its_own() {
    let two = Two::new();
    let (us, eu) = two.controls();
    let nodes = [two.node(&two.us), two.node(&two.eu)];
    let upstream = Upstream::json("{}");
    let proxy = us.proxy(&upstream.url());
    for node in &nodes {
        wait_status(node, &proxy, "GET", 200);
        let injected = format!("Bearer {TARGET_SECRET}");
        let seen = upstream.last();
        assert_eq!(seen.field("authorization"), Some(injected.as_str()));
    }
    two.wait_equal();

    // Each region's value opens with its own key ring only, and both hold both.
    let (at_us, at_eu) = (two.us.dump(), two.eu.dump());
    for (dump, region) in [
        (&at_us, "us"),
        (&at_us, "eu"),
        (&at_eu, "us"),
        (&at_eu, "eu"),
    ] {
        let found = sealed(dump, region);
        assert_eq!(found.len(), 1, "{region}");
        let other = if region == "us" { "eu" } else { "us" };
        let opened = open(&two.ring(region), &found[0], &upstream.url());
        assert_eq!(opened.as_deref(), Ok(TARGET_SECRET));
        let refused = open(&two.ring(other), &found[0], &upstream.url());
        assert!(matches!(refused, Err(SealError::UnknownKey { .. })));
    }
    for (key, value) in at_us.iter().chain(&at_eu) {
        let found = value.windows(TARGET_SECRET.len());
        let mut found = found.filter(|part| *part == TARGET_SECRET.as_bytes());
        assert_eq!(found.next(), None, "the secret stands in {key}");
    }

    // A new secret takes the place of the old one everywhere; the old value is destroyed.
    let path = format!("/credentials/{}/rotate", proxy.target_credential);
    let next = json!({"secret": {"token": "another-one"}});
    let rotated = us.api("POST", &path, Some(&next));
    assert_eq!(rotated.status(), 200, "{}", rotated.text());
    wait_for("the new secret in eu", || {
        assert_eq!(proxy.request("GET", "/").send(&nodes[1].url).status(), 200);
        (upstream.last().field("authorization") == Some("Bearer another-one")).then_some(())
    });
    wait_for("the end of the old values", || {
        let count = |region: &Region, of| sealed(&region.dump(), of).len();
        let counts = (
            count(&two.us, "us"),
            count(&two.us, "eu"),
            count(&two.eu, "us") + count(&two.eu, "eu"),
        );
        (counts == (1, 1, 2)).then_some(())
    });

    // An organisation comes and goes.
    let made = json!({"slug": "acme", "name": "Acme"});
    let answer = us.control_call("POST", "/api/v1/orgs", Some(&us.token), Some(&made));
    assert_eq!(answer.status(), 201, "{}", answer.text());
    let id = answer.json()["id"].as_str().expect("an id").to_owned();
    let acme = |control: &Gateway| control.operator("/orgs/acme").status();
    wait_for("the organisation in eu", || {
        (acme(&eu) == 200).then_some(())
    });
    let gone = us.control_call("DELETE", "/api/v1/orgs/acme", Some(&us.token), None);
    assert_eq!(gone.status(), 204, "{}", gone.text());
    wait_for("its end in eu", || (acme(&eu) == 404).then_some(()));
    wait_for("the end of all that was its own", || {
        let left = two.eu.dump().keys().any(|key| key.contains(&id));
        (!left).then_some(())
    });
    two.wait_equal();
}

#[test]
fn a_write_in_the_other_region_goes_home_and_is_read_where_it_was_made() {
    let two = Two::new();
    let (us, eu) = two.controls();
    let nodes = [two.node(&two.us), two.node(&two.eu)];
    let upstream = Upstream::json("{}");
    let proxy = eu.proxy(&upstream.url());
    for node in &nodes {
        wait_status(node, &proxy, "GET", 200);
    }
    let path = format!("/proxies/{}", proxy.id);
    for at in 0..20 {
        let name = format!("name-{at}");
        let patched = eu.patch(&path, json!({"name": name}));
        assert_eq!(
            patched["url"],
            format!("http://gw.eu.example/api/{}", proxy.id)
        );
        assert_eq!(eu.get(&path)["name"], name.as_str(), "its own write");
        assert_eq!(us.get(&path)["name"], name.as_str());
    }
    let durable = eu.api(
        "PATCH",
        &format!("{path}?durability=1"),
        Some(&json!({"name": "z"})),
    );
    assert_eq!(durable.status(), 200, "{}", durable.text());
    assert_eq!(durable.field("requestrocket-replicated-to"), Some("eu"));
    let urls = us.get(&path)["urls"].clone();
    assert_eq!(urls["eu"], format!("http://gw.eu.example/api/{}", proxy.id));
    // Home judges: an unknown object, a stale precondition, a fault.
    let missing = eu.api("PATCH", "/proxies/prx_0", Some(&json!({"name": "x"})));
    assert_eq!(missing.status(), 404, "{}", missing.text());
    let faulty = eu.api("PATCH", &path, Some(&json!({"nmae": "x"})));
    assert_eq!(faulty.status(), 422, "{}", faulty.text());
    // An unknown token gets nowhere.
    let unknown = eu.control_call("POST", "/api/v1/orgs", Some("rr_api_no"), Some(&json!({})));
    assert!([401, 429].contains(&unknown.status()), "{}", unknown.text());
    // What was forwarded is not forwarded again.
    let looped =
        crate::harness::http::Request::new("DELETE", &format!("/api/v1/orgs/default{path}"))
            .field("authorization", &format!("Bearer {}", eu.token))
            .field("requestrocket-forwarded-by", "ap")
            .send(&eu.control);
    assert_eq!(
        (looped.status(), &looped.json()["code"]),
        (503, &json!("home-moved"))
    );

    let folder = us.kill();
    let refused = eu.api("PATCH", &path, Some(&json!({"name": "y"})));
    assert_eq!(refused.status(), 503, "{}", refused.text());
    assert_eq!(refused.json()["code"], "home-unavailable");
    assert_eq!(eu.get(&path)["name"], "z", "reads go on");
    for node in &nodes {
        assert_eq!(proxy.request("GET", "/").send(&node.url).status(), 200);
    }
    let _us = Gateway::inside(folder, &two.us_start());
    wait_for("home again", || {
        let answer = eu.api("PATCH", &path, Some(&json!({"active": false})));
        (answer.status() == 200).then_some(())
    });
    for node in &nodes {
        wait_status(node, &proxy, "GET", 403);
    }
}

#[test]
fn cuts_and_kills_in_the_middle_of_many_changes_lose_and_double_nothing() {
    const CHANGES: usize = 150;
    let two = Two::new();
    let (us, eu) = two.controls();
    let mut running = Some(eu);
    let node = two.node(&two.eu);
    let upstream = Upstream::json("{}");
    let proxy = us.proxy(&upstream.url());
    wait_status(&node, &proxy, "GET", 200);
    let path = format!("/proxies/{}", proxy.id);
    let first = us.get("/versions?limit=1")["items"][0]["n"].as_u64();
    let first = first.expect("a number");
    let (served, done) = (AtomicBool::new(true), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| {
            for at in 0..CHANGES {
                us.patch(&path, json!({"name": format!("name-{at}")}));
            }
        });
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                if proxy.request("GET", "/").send(&node.url).status() != 200 {
                    served.store(false, Ordering::SeqCst);
                }
            }
        });
        for at in 0..4 {
            let reached = |n: u64| {
                wait_for("some versions", || {
                    let newest = us.get("/versions?limit=1")["items"][0]["n"].as_u64();
                    (newest >= Some(first + n)).then_some(())
                });
            };
            reached(at * 35 + 5);
            two.way.cut();
            reached(at * 35 + 25);
            two.way.heal();
            if at % 2 == 1 {
                let old = running.take().expect("it runs");
                let token = old.token.clone();
                let mut eu = Gateway::inside(old.kill(), &two.eu_start());
                eu.token = token;
                running = Some(eu);
            }
        }
        writing.join().expect("every change is made");
        done.store(true, Ordering::SeqCst);
    });
    assert!(served.load(Ordering::SeqCst), "eu served all the time");
    let eu = running.expect("it runs");
    let stored = two.wait_equal();
    assert!(stored > CHANGES, "{stored} versions");
    let last = format!("name-{}", CHANGES - 1);
    wait_for("the last change, seen by eu's control plane", || {
        (eu.get(&path)["name"] == last.as_str()).then_some(())
    });
    let own = wait_for("no lag", || {
        let listed = eu.operator("/regions").json();
        let own = listed["items"][0].clone();
        (own["replication"]["lag_versions"] == 0).then_some(own)
    });
    assert_eq!(
        (&own["name"], &own["own"], &own["home"]),
        (&json!("eu"), &json!(true), &json!(false))
    );
    wait_for("home's view of eu", || {
        let listed = us.operator("/regions").json();
        let eu = &listed["items"][0]["replication"];
        (eu["connected"] == true && eu["lag_versions"] == 0).then_some(())
    });
    let shown = eu.command(&["regions"]);
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(
        shown.contains("* eu") && shown.contains("connected, 0 versions behind"),
        "{shown}"
    );
    let metrics = eu.operator("/metrics").text();
    assert!(
        metrics.contains("requestrocket_replication_lag_versions{peer=\"us\"} 0"),
        "{metrics}"
    );
    shows_replication([&us, &eu]);
}

/// Both say that eu is current with the organisation `default`, of which us is home.
fn shows_replication(controls: [&Gateway; 2]) {
    for control in controls {
        let listed = control.operator("/replication?org=default&region=eu");
        let items = listed.json()["items"].clone();
        assert_eq!(items.as_array().map(Vec::len), Some(1), "{items}");
        let row = (
            &items[0]["home"],
            &items[0]["state"],
            &items[0]["lag_versions"],
        );
        assert_eq!(row, (&json!("us"), &json!("current"), &json!(0)), "{items}");
        let shown = control.command(&["replication", "default", "--region", "eu"]);
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        assert!(shown.contains("current with us"), "{shown}");
        let unknown = control.operator("/replication?region=mars");
        assert_eq!(unknown.status(), 400, "{}", unknown.text());
    }
}

#[test]
fn keys_of_another_installation_are_refused_at_the_start() {
    let two = Two::new();
    keyring(two.folder(), "eu", "foreign", None);
    let start = two.us_start();
    let config = start
        .config
        .replace("eu.public.json", "foreign.public.json");
    let (code, said) = refused("control", &config, two.folder());
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("it is of another installation"), "{said}");
}

#[test]
fn another_control_plane_of_the_region_takes_over() {
    let two = Two::new();
    let (us, eu) = two.controls();
    let mut start = two.eu_start();
    let (old, new) = (two.eu.link.clone(), address::reserved().to_string());
    start.config = start.config.replace(
        &format!("listen = {old:?}\n[keys]"),
        &format!("listen = {new:?}\n[keys]"),
    );
    start.environment = vec![(
        "REQUESTROCKET_CONTROL__LISTEN".into(),
        address::reserved().to_string(),
    )];
    let mut second = Gateway::with(start);
    second.token.clone_from(&us.token);
    let leads = |control: &Gateway| {
        let listed = control.operator("/regions").json();
        listed["items"][0]["replication"]["leads"].clone()
    };
    wait_for("one that leads and one that does not", || {
        ((leads(&eu), leads(&second)) == (json!(true), json!(false))).then_some(())
    });
    eu.kill();
    let made = us.create("/targets", json!({"base_url": "https://api.example.com"}));
    let path = format!("/targets/{}", made["id"].as_str().expect("an id"));
    wait_for("what was made after the first one's end", || {
        (second.api("GET", &path, None).status() == 200).then_some(())
    });
    assert_eq!(leads(&second), json!(true));
    two.wait_equal();
}
