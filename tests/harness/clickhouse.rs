//! A real ClickHouse engine for tests, on a free port of the loopback interface; see
//! `tests/records/clickhouse.py`.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

/// The user that it knows.
pub const USER: &str = "gateway";
/// The user's password.
pub const PASSWORD: &str = "click-house-password-7c1d";

/// A server; killed when dropped, and by itself when this process ends.
pub struct ClickHouse {
    dir: TempDir,
    port: u16,
    child: Option<Child>,
}

impl ClickHouse {
    /// One that answers.
    pub fn start() -> Self {
        let dir = tempfile::tempdir().expect("a folder for ClickHouse");
        let mut server = Self {
            dir,
            port: 0,
            child: None,
        };
        server.run();
        server
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where its data is.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Ends as if its machine had lost power.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts it again on the same port with the same data.
    pub fn restart(&mut self) {
        self.kill();
        self.run();
    }

    /// The next inserts are carried out, and their answers lost.
    pub fn lose_answers(&self, inserts: u32) {
        self.put(&format!("/lose/{inserts}"));
    }

    /// What the engine itself answers to a query.
    pub fn query(&self, text: &str) -> String {
        let fields = format!("X-ClickHouse-User: {USER}\r\nX-ClickHouse-Key: {PASSWORD}\r\n");
        self.call("POST", "/", &fields, text)
    }

    fn put(&self, path: &str) {
        self.call("PUT", path, "", "");
    }

    fn call(&self, method: &str, path: &str, fields: &str, body: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("it listens");
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{fields}\
             Content-Length: {length}\r\n\r\n{body}"
        )
        .expect("it is sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
        assert!(head.starts_with("HTTP/1.1 200"), "{head}\n{body}");
        body.trim_end().to_owned()
    }

    fn run(&mut self) {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let root = root
            .ancestors()
            .find(|dir| dir.join("tests/records/clickhouse.py").exists())
            .expect("the workspace");
        let python = root.join(".venv/bin/python");
        let mut child = Command::new(&python)
            .arg(root.join("tests/records/clickhouse.py"))
            .arg(self.dir.path())
            .args([&self.port.to_string(), USER, PASSWORD])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| {
                let python = python.display();
                panic!("{python}: {error}; run tests/install-test-deps")
            });
        let stdout = child.stdout.take().expect("it is piped");
        let mut line = String::new();
        BufReader::new(stdout)
            .read_line(&mut line)
            .expect("it says its port");
        let port = line.trim().parse();
        self.port = port.expect("its port; run tests/install-test-deps if a module is missing");
        self.child = Some(child);
    }
}

impl Drop for ClickHouse {
    fn drop(&mut self) {
        self.kill();
    }
}
