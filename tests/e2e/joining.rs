//! A further region joins an installation that had one, by an invitation.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::cluster::wait_status;
use crate::harness::address;
use crate::harness::etcd::EtcdServer;
use crate::harness::gateway::{Gateway, Start, binary};
use crate::harness::secrets::{Secret, check, check_files, forms};
use crate::harness::stores;
use crate::harness::upstream::Upstream;
use crate::harness::wait_for;
use crate::regions::keyring;
use crate::secrecy::pem_parts;

/// Everything that can be told is told.
const EVERY_LINE: [&str; 2] = ["REQUESTROCKET_LOG__FILTER", "trace"];

/// Where a region's parts listen.
struct Place {
    etcd: EtcdServer,
    control: String,
    link: String,
}

impl Place {
    fn new() -> Self {
        Self {
            etcd: EtcdServer::start(),
            control: address::reserved().to_string(),
            link: address::reserved().to_string(),
        }
    }

    /// What settings of nodes and control planes have in common.
    fn parts(&self, files: &Path, certificate: &str) -> String {
        let file = |end: &str| files.join(format!("{certificate}{end}"));
        format!(
            "[store]\nkind = \"etcd\"\nendpoints = [{:?}]\n[policy]\nallow_http = true\n\
             [[dial_guard.permit]]\nnetwork = \"127.0.0.0/8\"\nports = [\"1-65535\"]\n\
             orgs = [\"*\"]\n[link]\ncert_file = {:?}\nkey_file = {:?}\nca_file = {:?}\n",
            self.etcd.endpoint(),
            file(".pem"),
            file("-key.pem"),
            files.join("ca.pem"),
        )
    }

    /// A control plane; `first` stands before all tables of its settings, `last` behind them.
    fn control(&self, files: &Path, first: &str, last: &str) -> Start {
        let parts = self.parts(files, "127.0.0.1");
        let gateway = "[gateway]\npublic_url = \"https://gw.example\"\n";
        let listen = self.control.clone();
        Start {
            mode: "control",
            config: format!("{first}{parts}listen = {:?}\n{gateway}{last}", self.link),
            environment: vec![
                ("REQUESTROCKET_CONTROL__LISTEN".into(), listen),
                EVERY_LINE.map(str::to_owned).into(),
            ],
        }
    }

    fn node(&self, files: &Path, region: &str, ring: &Value) -> Gateway {
        let name = format!("gw-{region}");
        let config = format!(
            "region = {region:?}\nnode_name = {name:?}\n{}endpoints = [{:?}]\n[keys]\n\
             ring_file = {ring}\n",
            self.parts(files, &name),
            self.link,
        );
        Gateway::with(Start {
            mode: "node",
            config,
            environment: vec![EVERY_LINE.map(str::to_owned).into()],
        })
    }
}

fn regions(place: &Place, token: &str) -> Command {
    let mut command = binary();
    command
        .arg("regions")
        .env(
            "REQUESTROCKET_CONTROL_URL",
            format!("http://{}", place.control),
        )
        .env("REQUESTROCKET_TOKEN", token);
    command
}

/// What a command that works has printed as JSON.
fn done(command: &mut Command) -> Value {
    let ran = command
        .args(["--output", "json"])
        .output()
        .expect("the binary runs");
    let words = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{words}");
    serde_json::from_slice(&ran.stdout).expect("JSON")
}

fn join(at: &Place, token: &str, (address, link): (&str, &str), dir: &Path) -> Command {
    let mut command = binary();
    command
        .args(["regions", "join", "--at"])
        .arg(format!("http://{}", at.control))
        .args(["--address", address, "--replication", link, "--dir"])
        .arg(dir)
        .env("REQUESTROCKET_INVITATION", token);
    command
}

/// The invitation, and what is private in files that were made for two regions, with every form.
fn private(invitation: &str, files: &Path, ap_files: &Path) -> Vec<Secret> {
    let mut secrets = vec![invitation.to_owned()];
    let listed = [files, ap_files].map(|folder| std::fs::read_dir(folder).expect("a folder"));
    let mut rings = 0;
    for file in listed.into_iter().flatten().flatten() {
        let name = file.file_name().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(file.path()).unwrap_or_default();
        if name.ends_with("key.pem") {
            let parts = pem_parts(&text);
            assert!(!parts.is_empty(), "{name}");
            secrets.extend(parts);
        } else if let Ok(ring) = serde_json::from_str::<Value>(&text) {
            let before = secrets.len();
            private_keys(&ring, &mut secrets);
            rings += usize::from(secrets.len() > before);
        }
    }
    assert!(rings >= 4, "rings and signing keys of two regions: {rings}");
    let forms = |secret: String| {
        let forms = forms(&secret);
        (secret, forms)
    };
    secrets.into_iter().map(forms).collect()
}

/// What the files of keys have under names that say that it is private.
fn private_keys(value: &Value, out: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::String(text) if ["private", "digest_key", "seed"].contains(&&**name) => {
                        out.push(text.clone());
                    }
                    value => private_keys(value, out),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| private_keys(item, out)),
        _ => {}
    }
}

/// Not one secret of a join is where somebody reads: logs, API, metrics, the stores of both
/// regions, and the folders of their processes.
fn nowhere(secrets: &[Secret], regions: &[&Place; 2], processes: &[&Gateway]) {
    for (name, region) in ["us", "ap"].iter().zip(regions) {
        for (key, value) in stores::dump(&region.etcd.endpoint()) {
            check(&format!("{name}: {key}"), &value, secrets);
        }
    }
    for process in processes {
        check("a log", process.log().as_bytes(), secrets);
        check_files(&process.data_dir(), secrets);
    }
    for control in &processes[..2] {
        let mut answered = 0;
        for path in [
            "/api/v1/regions",
            "/api/v1/regions/invitations",
            "/api/v1/audit",
            "/api/v1/nodes",
            "/api/v1/orgs/default/audit",
            "/api/v1/orgs/default/config",
            "/metrics",
        ] {
            let answer = control.control_call("GET", path, Some(&control.token), None);
            check(path, &answer.body, secrets);
            answered += usize::from(answer.status() == 200);
        }
        assert!(answered >= 5, "{answered}");
    }
}

fn words(ran: &Output) -> String {
    String::from_utf8_lossy(&ran.stderr).into_owned()
}

#[test]
fn a_region_that_is_invited_joins_and_serves() {
    let files = tempfile::tempdir().expect("a folder");
    let (files, ap_files) = (files.path(), files.path().join("ap"));
    let run = |command: &mut Command| {
        assert!(command.status().expect("the binary runs").success());
    };
    keyring(files, "us", "us", None);
    let public = files.join("us.public.json");
    let signing = files.join("us.signing.json");
    let mut signer = binary();
    signer.args(["keyring", "signer", "--control"]).arg(&public);
    run(signer.arg("--signing").arg(&signing));
    run(binary().args(["link", "authority", "--dir"]).arg(files));
    for name in ["127.0.0.1", "gw-us", "gw-ap"] {
        run(binary().args(["link", "issue", name, "--dir"]).arg(files));
    }
    let (us, ap) = (Place::new(), Place::new());
    let keys = format!("[keys]\npublic_file = {public:?}\nsigning_file = {signing:?}\n");
    let alone = us.control(files, "region = \"us\"\n", &keys);
    let home = Gateway::with(alone);
    let token = home.token.clone();
    let upstream = Upstream::json("{}");
    let before = home.proxy(&upstream.url());

    let address = format!("http://{}", us.control);
    let invite = ["invite", "ap", "--replication", &us.link];
    let unsaid = regions(&us, &token).args(invite).output();
    let unsaid = words(&unsaid.expect("it runs"));
    assert!(unsaid.contains("--address"), "{unsaid}");
    let made = done(
        regions(&us, &token)
            .args(invite)
            .args(["--address", &address]),
    );
    let invitation = made["token"].as_str().expect("a token");
    let addresses = (&*format!("http://{}", ap.control), &*ap.link);
    let joined = done(&mut join(&us, invitation, addresses, &ap_files));
    assert_eq!(
        (&joined["home"], &joined["others"]),
        (&json!("us"), &json!(["us"]))
    );
    // Nothing is overwritten, and nobody joins in its place.
    let again = join(&us, invitation, addresses, &ap_files)
        .output()
        .expect("it runs");
    assert!(
        !again.status.success() && words(&again).contains("is there already"),
        "{again:?}"
    );
    let other = files.join("other");
    let thief = join(&us, invitation, addresses, &other)
        .output()
        .expect("it runs");
    assert!(
        !thief.status.success() && words(&thief).contains("was used"),
        "{}",
        words(&thief)
    );
    let fingerprint = joined["fingerprint"].as_str().expect("a text");
    assert!(words(&thief).contains(fingerprint), "{}", words(&thief));

    let listed = done(regions(&us, &token).arg("invitations"));
    assert_eq!(listed["items"][0]["joined"]["fingerprint"], fingerprint);
    let mut command = regions(&us, &token);
    command
        .args(["joined", "ap", "--own"])
        .arg(&public)
        .arg("--dir")
        .arg(files);
    let peer = done(&mut command);
    let table = peer["settings"].as_str().expect("a text");

    let (_, folder) = home.stop();
    let several = format!("{keys}[regions]\nhome = \"us\"\n{table}");
    let mut home = Gateway::inside(folder, &us.control(files, "region = \"us\"\n", &several));
    home.token.clone_from(&token);
    let settings = joined["settings"].as_str().expect("a path");
    let settings = std::fs::read_to_string(settings).expect("settings");
    let mut follower = Gateway::with(ap.control(files, &settings, ""));
    follower.token = token;
    let node = ap.node(files, "ap", &joined["nodes"]);
    // Callers' keys hold there: of a proxy from before, too, whose target's secret is not there.
    wait_status(&node, &before, "GET", 502);
    // What is made from now on has everything in both.
    let proxy = home.proxy(&upstream.url());
    wait_status(&node, &proxy, "GET", 200);
    let seen = wait_for("the regions in ap", || {
        let listed = follower.operator("/regions");
        let items = listed.json()["items"].as_array().cloned()?;
        let own = items.into_iter().find(|one| one["name"] == "ap")?;
        (own["replication"]["lag_versions"] == 0).then_some(own)
    });
    assert_eq!(
        (&seen["own"], &seen["home"]),
        (&json!(true), &json!(false)),
        "{seen}"
    );
    assert_eq!(
        seen["verified"],
        json!(true),
        "its versions would be signed"
    );
    let secrets = private(invitation, files, &ap_files);
    check(
        "what the joining region is told",
        words(&thief).as_bytes(),
        &secrets,
    );
    check("what it printed", joined.to_string().as_bytes(), &secrets);
    nowhere(&secrets, &[&us, &ap], &[&home, &follower, &node]);
}
