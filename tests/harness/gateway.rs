//! The real binary, its REST API, and proxies made through it.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::http::{Message, Request};
use super::{folder, metrics, signals};

/// How a gateway is started.
#[derive(Clone)]
pub struct Start {
    /// `dev` or `standalone`.
    pub mode: &'static str,
    /// TOML that becomes its configuration file.
    pub config: String,
    /// Further variables of its environment.
    pub environment: Vec<(String, String)>,
}

impl Default for Start {
    fn default() -> Self {
        Self {
            mode: "dev",
            config: String::new(),
            environment: Vec::new(),
        }
    }
}

/// A running gateway; killed when dropped.
pub struct Gateway {
    /// Base URL for callers.
    pub url: String,
    /// Base URL of the REST API.
    pub control: String,
    /// The admin token.
    pub token: String,
    /// What it said at its start.
    pub ready: Value,
    process: Child,
    /// Keeps what it writes to standard output behind that.
    output: Option<JoinHandle<()>>,
    folder: Arc<TempDir>,
}

impl Gateway {
    /// `dev` with defaults.
    pub fn start() -> Self {
        Self::with(Start::default())
    }

    /// `dev` with this configuration.
    pub fn configured(config: &str) -> Self {
        Self::with(Start {
            config: config.into(),
            ..Start::default()
        })
    }

    /// A gateway in a fresh folder.
    pub fn with(start: Start) -> Self {
        Self::inside(folder::fresh(), &start)
    }

    /// A gateway in a folder that may hold the data of an earlier one.
    pub fn inside(folder: impl Into<Arc<TempDir>>, start: &Start) -> Self {
        Self::run(folder.into(), start, &[])
    }

    /// A node that takes over from this one, in the same folder.
    pub fn successor(&self, start: &Start) -> Self {
        Self::run(self.folder.clone(), start, &["--take-over"])
    }

    fn run(folder: Arc<TempDir>, start: &Start, arguments: &[&str]) -> Self {
        let mut command = command(&folder, start);
        let spawned = command.args(arguments).spawn();
        let mut process = spawned.expect("the binary starts");
        let stdout = process.stdout.take().expect("its output");
        let mut line = String::new();
        let mut stdout = BufReader::new(stdout);
        stdout.read_line(&mut line).expect("a line");
        if line.is_empty() {
            let status = process.wait().expect("a child");
            let log = std::fs::read_to_string(folder.path().join("log")).unwrap_or_default();
            panic!("the gateway did not start: {status}\n{log}");
        }
        let ready: Value = serde_json::from_str(&line).expect("one line of JSON");
        let text = |key: &str| ready[key].as_str().unwrap_or_default().to_owned();
        Self {
            url: text("gateway"),
            control: text("control"),
            token: admin_token(&ready, start),
            ready,
            process,
            output: Some(kept(stdout, &folder)),
            folder,
        }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// KiB that it has in memory.
    pub fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id()));
        let status = status.expect("a process that runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let text = line.expect("its size").trim_end_matches("kB").trim();
        text.parse().expect("a number")
    }

    /// Its data folder.
    pub fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// What it logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Asks it to stop, as a service manager does, and waits for its end. Its folder stays.
    pub fn stop(self) -> (ExitStatus, Arc<TempDir>) {
        self.signal("TERM");
        self.ended()
    }

    /// Waits for its end. Its folder stays.
    pub fn ended(mut self) -> (ExitStatus, Arc<TempDir>) {
        let status = self.process.wait().expect("a child");
        if let Some(output) = self.output.take() {
            output.join().expect("its output is kept");
        }
        (status, self.folder.clone())
    }

    /// Kills it as a power cut does. Its folder stays.
    pub fn kill(mut self) -> Arc<TempDir> {
        self.process.kill().expect("a child can be killed");
        self.process.wait().expect("a child");
        self.folder.clone()
    }

    /// Sends a signal.
    pub fn signal(&self, name: &str) {
        signals::send(name, self.process.id());
    }

    /// Calls the REST API as the owner of the organisation `default`; the path is behind it.
    pub fn api(&self, method: &str, path: &str, body: Option<&Value>) -> Message {
        self.api_of("default", method, path, body)
    }

    /// The same of another organisation, by its slug.
    pub fn api_of(&self, org: &str, method: &str, path: &str, body: Option<&Value>) -> Message {
        let path = format!("/api/v1/orgs/{org}{path}");
        self.control_call(method, &path, Some(&self.token), body)
    }

    /// Creates an organisation.
    pub fn organisation(&self, slug: &str) {
        let body = json!({"slug": slug});
        let made = self.control_call("POST", "/api/v1/orgs", Some(&self.token), Some(&body));
        assert_eq!(made.status(), 201, "{}", made.text());
    }

    /// Runs a command of the binary against the control plane, with the operator's token.
    pub fn command(&self, arguments: &[&str]) -> Output {
        self.client(arguments).output().expect("the binary runs")
    }

    /// The same, to be run.
    pub fn client(&self, arguments: &[&str]) -> Command {
        let mut command = binary();
        command
            .args(arguments)
            .args(["--control", &self.control])
            .env("REQUESTROCKET_TOKEN", &self.token);
        command
    }

    /// Calls the control listener.
    pub fn control_call(
        &self,
        method: &str,
        path: &str,
        token: Option<&str>,
        body: Option<&Value>,
    ) -> Message {
        let body = body.map(Value::to_string).unwrap_or_default();
        let mut request = Request::new(method, path).field("content-type", "application/json");
        if let Some(token) = token {
            request = request.field("authorization", &format!("Bearer {token}"));
        }
        if !body.is_empty() {
            request = request.body(&body);
        }
        request.send(&self.control)
    }

    /// Reads what belongs to no organisation.
    pub fn operator(&self, path: &str) -> Message {
        let path = format!("/api/v1{path}");
        self.control_call("GET", &path, Some(&self.token), None)
    }

    /// Creates something and gives what was answered.
    pub fn create(&self, path: &str, body: Value) -> Value {
        self.create_in("default", path, body)
    }

    fn create_in(&self, org: &str, path: &str, body: Value) -> Value {
        let answer = self.api_of(org, "POST", path, Some(&body));
        assert_eq!(answer.status(), 201, "{path} {body}: {}", answer.text());
        answer.json()
    }

    /// Changes fields of something.
    pub fn patch(&self, path: &str, body: Value) -> Value {
        let answer = self.api("PATCH", path, Some(&body));
        assert_eq!(answer.status(), 200, "{path} {body}: {}", answer.text());
        answer.json()
    }

    /// Reads something.
    pub fn get(&self, path: &str) -> Value {
        let answer = self.api("GET", path, None);
        assert_eq!(answer.status(), 200, "{path}: {}", answer.text());
        answer.json()
    }

    /// A proxy for an upstream, with a bearer credential and a key.
    pub fn proxy(&self, base_url: &str) -> Proxy {
        self.proxy_with(base_url, json!({}), json!({}))
    }

    /// The same, with further fields of target and proxy.
    pub fn proxy_with(&self, base_url: &str, target: Value, proxy: Value) -> Proxy {
        self.proxy_in("default", base_url, target, proxy)
    }

    /// The same in another organisation, by its slug.
    pub fn proxy_in(&self, org: &str, base_url: &str, target: Value, proxy: Value) -> Proxy {
        let fields = json!({
            "base_url": base_url, "allow_http": base_url.starts_with("http:"),
            "allow_networks": ["127.0.0.0/8"],
        });
        let target = self.create_in(org, "/targets", merged(fields, target));
        let origin: Vec<&str> = base_url.splitn(4, '/').collect();
        let secret = self.create_in(
            org,
            "/credentials",
            json!({
                "kind": "target", "auth_type": "bearer", "secret": {"token": TARGET_SECRET},
                "hosts": [origin[..3].join("/")],
            }),
        );
        let caller = json!({"kind": "proxy", "auth_type": "api_key"});
        let caller = self.create_in(org, "/credentials", caller);
        let fields = json!({
            "target_id": target["id"], "target_credential_id": secret["id"],
            "proxy_credential_ids": [caller["id"]],
        });
        let proxy = self.create_in(org, "/proxies", merged(fields, proxy));
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        let url = text(&proxy["url"]);
        Proxy {
            gateway: self.url.clone(),
            path: url[self.url.len()..].to_owned(),
            key: text(&caller["secret"]["key"]),
            id: text(&proxy["id"]),
            target: text(&target["id"]),
            target_credential: text(&secret["id"]),
            proxy_credential: text(&caller["id"]),
        }
    }

    /// The demo's proxy.
    pub fn demo(&self) -> (String, String) {
        let text = |key: &str| self.ready["demo"][key].as_str().expect("a text").to_owned();
        (text("url")[self.url.len()..].to_owned(), text("api_key"))
    }

    /// A metric's value with exactly these labels, or 0 when it is not there.
    pub fn metric(&self, series: &str) -> f64 {
        let answer = self.control_call("GET", "/metrics", Some(&self.token), None);
        assert_eq!(answer.status(), 200);
        metrics::value(&answer.text(), series).unwrap_or_default()
    }

    /// Waits for the record of a request.
    pub fn record(&self, request_id: &str) -> Value {
        super::wait_for("a record", || {
            let answer = self.api("GET", &format!("/records/{request_id}"), None);
            (answer.status() == 200).then(|| answer.json())
        })
    }
}

/// The end of a log that a test which fails shows.
const LOG_LINES: usize = 40;

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let from = lines.len().saturating_sub(LOG_LINES);
            eprintln!("the log of {}:\n{}", self.url, lines[from..].join("\n"));
        }
    }
}

/// The admin token: what was told, what the named file holds, or what the start gives.
fn admin_token(ready: &Value, start: &Start) -> String {
    if let Some(told) = ready["admin_token"].as_str() {
        return told.to_owned();
    }
    if let Some(file) = ready["admin_token_file"].as_str() {
        let token = std::fs::read_to_string(file).expect("the file that is named");
        return token.trim().to_owned();
    }
    let mut given = start.environment.iter();
    let given = given.find(|(name, _)| name == "REQUESTROCKET_ADMIN_TOKEN");
    given.map(|(_, token)| token.clone()).unwrap_or_default()
}

/// What a gateway in this folder wrote to standard output behind what it said at its start; whole
/// once it has ended.
pub fn output(folder: &Path) -> Vec<u8> {
    std::fs::read(folder.join("output")).expect("what is kept of its output")
}

/// Writes what comes into a file of the folder, until the process ends.
fn kept(mut stdout: BufReader<ChildStdout>, folder: &Arc<TempDir>) -> JoinHandle<()> {
    let file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(folder.path().join("output"));
    let mut file = file.expect("a file");
    std::thread::spawn(move || {
        std::io::copy(&mut stdout, &mut file).expect("a file can be written");
    })
}

/// The secret that [`Gateway::proxy`] injects.
pub const TARGET_SECRET: &str = "target-secret-7f3a";

/// A command of the real binary, without variables of ours that the machine may have set.
pub fn binary() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_requestrocket"));
    // What a command remembers for the next one.
    command.env("XDG_STATE_HOME", env!("CARGO_TARGET_TMPDIR"));
    for (name, _) in std::env::vars() {
        if name.starts_with("REQUESTROCKET_") || name.starts_with("OTEL_") {
            command.env_remove(name);
        }
    }
    command
}

fn command(folder: &TempDir, start: &Start) -> Command {
    let config = folder.path().join("config.toml");
    let data = folder.path().join("data");
    let own = format!("data_dir = {data:?}\n{}", start.config);
    std::fs::write(&config, own).expect("a file");
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(folder.path().join("log"));
    let mut command = binary();
    command
        .args([start.mode, "--output", "json", "--config"])
        .arg(config)
        .env("REQUESTROCKET_GATEWAY__LISTEN", "127.0.0.1:0")
        .env("REQUESTROCKET_CONTROL__LISTEN", "127.0.0.1:0")
        .envs(start.environment.iter().cloned())
        // Of a terminal it would end with it.
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log.expect("a file"));
    command
}

/// One object's fields over another's.
fn merged(mut fields: Value, over: Value) -> Value {
    if let (Some(fields), Value::Object(over)) = (fields.as_object_mut(), over) {
        fields.extend(over);
    }
    fields
}

/// A proxy and the key to it.
pub struct Proxy {
    gateway: String,
    /// Its path on the gateway.
    pub path: String,
    /// The caller's key.
    pub key: String,
    /// Its id.
    pub id: String,
    /// Its target's id.
    pub target: String,
    /// The id of the credential that is injected.
    pub target_credential: String,
    /// The id of the caller's credential.
    pub proxy_credential: String,
}

impl Proxy {
    /// A request through it, with the key; the path is behind the proxy's.
    pub fn request(&self, method: &str, path: &str) -> Request {
        Request::new(method, &format!("{}{path}", self.path))
            .field("authorization", &format!("Bearer {}", self.key))
    }

    /// Sends a request on a connection of its own.
    pub fn send(&self, request: &Request) -> Message {
        request.send(&self.gateway)
    }

    /// `GET` on a connection of its own.
    pub fn get(&self, path: &str) -> Message {
        self.send(&self.request("GET", path))
    }
}
