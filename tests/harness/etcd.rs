//! Real etcd servers for tests: on free ports of the loopback interface, with data that goes away.
//!
//! A server is waited for by its health, stopped by its process id, and stopped when dropped.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::disk::Disk;
use super::{address, folder, signals};

/// Longest wait for a server to become healthy, on a busy machine.
const HEALTHY_WITHIN: Duration = Duration::from_secs(60);

/// The certificate files of a server that speaks TLS to its clients.
#[derive(Clone, Debug)]
pub struct ServerTls {
    /// PEM file of the server's certificate.
    pub cert: PathBuf,
    /// PEM file of its key.
    pub key: PathBuf,
}

/// One member of a cluster; killed when dropped.
pub struct EtcdServer {
    name: String,
    address: Ipv4Addr,
    ports: Ports,
    cluster: String,
    tls: Option<ServerTls>,
    extra: Vec<String>,
    /// Goes before the folder that it is mounted in.
    disk: Option<Disk>,
    dir: TempDir,
    child: Option<Child>,
}

#[derive(Clone, Copy, Debug)]
struct Ports {
    client: u16,
    peer: u16,
    health: u16,
}

/// Of a member that has a host of its own.
const OWN_HOST: Ports = Ports {
    client: 2379,
    peer: 2380,
    health: 2381,
};

impl EtcdServer {
    /// A cluster of one, healthy.
    pub fn start() -> Self {
        Self::start_with(None, &[])
    }

    /// A cluster of one with TLS or further command line arguments.
    pub fn start_with(tls: Option<ServerTls>, extra: &[&str]) -> Self {
        let mut servers = start_members(1, tls, extra);
        servers.pop().expect("one member was started")
    }

    /// A healthy cluster.
    pub fn start_cluster(members: usize) -> Vec<Self> {
        Self::start_cluster_with(members, &[])
    }

    /// A healthy cluster with further command line arguments.
    pub fn start_cluster_with(members: usize, extra: &[&str]) -> Vec<Self> {
        start_members(members, None, extra)
    }

    /// A cluster whose members have a host each; nothing is started. Who starts one, or waits for
    /// it, does so on its host: its health is asked on that host's loopback interface.
    pub fn on_hosts(addresses: &[Ipv4Addr], flags: &[&str]) -> Vec<Self> {
        let places: Vec<Place> = addresses.iter().map(|at| (*at, OWN_HOST)).collect();
        members_at(&places, None, flags, folder::on_disk)
    }

    /// Where clients connect: `http://127.0.0.1:port`.
    pub fn endpoint(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        url(scheme, self.address, self.ports.client)
    }

    /// Where its metrics are, on its host.
    pub fn metrics(&self) -> String {
        url("http", Ipv4Addr::LOCALHOST, self.ports.health)
    }

    /// The server's process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Kills the server without notice; its data stays.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("a child can be killed");
            child.wait().expect("a killed child ends");
        }
    }

    /// Asks the server to end, and waits until it has; its data stays.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            signals::send("TERM", child.id());
            child.wait().expect("a child that was asked to end does");
        }
    }

    /// Sends the server a signal: one that is stopped answers nothing until it goes on.
    pub fn signal(&self, name: &str) {
        signals::send(name, self.pid().expect("the server runs"));
    }

    /// Gives the data a disk of its own, which takes root.
    pub fn mount_disk(&mut self, mib: usize) {
        self.disk = Some(Disk::mount(self.dir.path().join("data"), mib));
    }

    /// Takes all the room that there is on the disk.
    pub fn fill_disk(&mut self) {
        self.disk.as_ref().expect("a disk").fill();
    }

    /// Gives it back.
    pub fn empty_disk(&mut self) {
        self.disk.as_ref().expect("a disk").empty();
    }

    /// Whether the server has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        let child = self.child.as_mut().expect("the server was spawned");
        child.try_wait().expect("a child can be asked").is_some()
    }

    /// Starts the server again on the same ports and data, and waits until it is healthy.
    pub fn restart(&mut self) {
        self.kill();
        self.spawn();
        self.wait();
    }

    /// Waits until it is healthy, which takes a quorum.
    pub fn wait(&mut self) {
        let healthy = self.wait_healthy();
        assert!(healthy, "etcd does not come back, its log:\n{}", self.log());
    }

    /// Kills the server, copies its data, and starts it again.
    pub fn backup(&mut self) -> TempDir {
        self.kill();
        let copy = self.copied();
        self.restart();
        copy
    }

    /// Kills the server, puts copied data in the place of its own, and starts it again: the same
    /// cluster, as it was. Without a copy it is a new one.
    pub fn restore(&mut self, copy: Option<&TempDir>) {
        self.kill();
        self.put_back(copy);
        self.restart();
    }

    /// A copy of the data of a server that does not run.
    fn copied(&self) -> TempDir {
        let copy = TempDir::new().expect("a temporary directory can be made");
        copy_folder(&self.dir.path().join("data"), &copy.path().join("data"));
        copy
    }

    /// Puts copied data, or none, in the place of those of a server that does not run.
    fn put_back(&self, copy: Option<&TempDir>) {
        let data = self.dir.path().join("data");
        std::fs::remove_dir_all(&data).expect("its data can be removed");
        if let Some(copy) = copy {
            copy_folder(&copy.path().join("data"), &data);
        }
    }

    /// What the server has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Starts the server, and waits for nothing.
    pub fn spawn(&mut self) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir.path().join("log"))
            .expect("the log can be opened");
        let spawned = self
            .command()
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file handle can be doubled"))
            .stderr(log)
            .spawn();
        self.child = Some(spawned.unwrap_or_else(|error| {
            panic!("etcd cannot be started ({error}): run `make test`, which installs it")
        }));
    }

    fn command(&self) -> Command {
        let peer = url("http", self.address, self.ports.peer);
        let client = self.endpoint();
        let mut command = Command::new("etcd");
        command
            .arg("--data-dir")
            .arg(self.dir.path().join("data"))
            .args(["--name", &self.name])
            .args(["--listen-client-urls", &client])
            .args(["--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer])
            .args(["--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &self.cluster])
            .args(["--listen-metrics-urls", &self.metrics()])
            .args(["--logger", "zap"])
            .args(&self.extra);
        if let Some(tls) = &self.tls {
            command
                .arg("--cert-file")
                .arg(&tls.cert)
                .arg("--key-file")
                .arg(&tls.key);
        }
        command
    }

    /// False when the server has ended instead.
    fn wait_healthy(&mut self) -> bool {
        let end = Instant::now() + HEALTHY_WITHIN;
        while Instant::now() < end {
            if is_healthy(self.ports.health) {
                return true;
            }
            let child = self.child.as_mut().expect("the server was spawned");
            if child.try_wait().expect("a child can be asked").is_some() {
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!(
            "etcd is not healthy within {HEALTHY_WITHIN:?}, its log:\n{}",
            self.log()
        );
    }
}

/// Kills all members of a cluster, copies their data, and starts them again.
pub fn backup_all(members: &mut [EtcdServer]) -> Vec<TempDir> {
    members.iter_mut().for_each(EtcdServer::kill);
    let copies = members.iter().map(EtcdServer::copied).collect();
    start_all(members);
    copies
}

/// Kills all members of a cluster, puts copied data in the place of their own, and starts them
/// again: the same cluster, as it was.
pub fn restore_all(members: &mut [EtcdServer], copies: &[TempDir]) {
    members.iter_mut().for_each(EtcdServer::kill);
    for (member, copy) in members.iter().zip(copies) {
        member.put_back(Some(copy));
    }
    start_all(members);
}

fn start_all(members: &mut [EtcdServer]) {
    members.iter_mut().for_each(EtcdServer::spawn);
    members.iter_mut().for_each(EtcdServer::wait);
}

impl Drop for EtcdServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Runs `etcdctl` against a server, for what the store itself never does (users and roles).
pub fn etcdctl(server: &EtcdServer, args: &[&str]) {
    let output = Command::new("etcdctl")
        .env("ETCDCTL_API", "3")
        .args(["--endpoints", &server.endpoint()])
        .args(args)
        .output()
        .unwrap_or_else(|error| panic!("etcdctl cannot be started ({error}): run `make test`"));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "etcdctl {args:?}: {text}");
}

/// From now on the server wants to know who asks: `root`, whose password is `right`.
pub fn ask_for_password(server: &EtcdServer) {
    etcdctl(server, &["user", "add", "root:right"]);
    etcdctl(server, &["user", "grant-role", "root", "root"]);
    etcdctl(server, &["auth", "enable"]);
}

/// The path of a file written into a directory.
pub fn write_file(dir: &Path, name: &str, content: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, content).expect("a file can be written");
    path
}

/// Copies all files of a folder, and those of folders in it; sockets are made anew.
pub fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder can be made");
    std::fs::set_permissions(to, std::os::unix::fs::PermissionsExt::from_mode(0o700))
        .expect("a folder's mode can be set");
    for entry in std::fs::read_dir(from).expect("a folder can be read") {
        let entry = entry.expect("a folder can be read");
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy_folder(&path, &to);
        } else if path.is_file() {
            std::fs::copy(&path, &to).expect("a file can be copied");
        }
    }
}

fn start_members(members: usize, tls: Option<ServerTls>, extra: &[&str]) -> Vec<EtcdServer> {
    let places: Vec<Place> = (0..members).map(|_| free_place()).collect();
    let mut servers = members_at(&places, tls.as_ref(), extra, folder::fresh);
    servers.iter_mut().for_each(EtcdServer::spawn);
    for server in &mut servers {
        assert!(server.wait_healthy(), "etcd ended:\n{}", server.log());
    }
    servers
}

type Place = (Ipv4Addr, Ports);

/// The members of a cluster with a new folder each, none of them started.
fn members_at(
    places: &[Place],
    tls: Option<&ServerTls>,
    extra: &[&str],
    folder: fn() -> TempDir,
) -> Vec<EtcdServer> {
    let name = |number: usize| format!("member{number}");
    let member = |(number, (address, ports)): (usize, &Place)| {
        let peer = url("http", *address, ports.peer);
        format!("{}={peer}", name(number))
    };
    let cluster: Vec<String> = places.iter().enumerate().map(member).collect();
    let server = |(number, (address, ports)): (usize, &Place)| EtcdServer {
        name: name(number),
        address: *address,
        ports: *ports,
        cluster: cluster.join(","),
        tls: tls.cloned(),
        extra: extra.iter().map(ToString::to_string).collect(),
        disk: None,
        dir: folder(),
        child: None,
    };
    places.iter().enumerate().map(server).collect()
}

fn free_place() -> Place {
    let [client, peer, health] = std::array::from_fn(|_| address::reserved().port());
    let ports = Ports {
        client,
        peer,
        health,
    };
    (Ipv4Addr::LOCALHOST, ports)
}

fn url(scheme: &str, address: Ipv4Addr, port: u16) -> String {
    format!("{scheme}://{address}:{port}")
}

fn is_healthy(port: u16) -> bool {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(b"GET /health HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.contains("\"health\":\"true\""))
}
