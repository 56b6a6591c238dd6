//! Hosts of a test: network namespaces around a bridge, so that a cut loses packets as a broken
//! link does.
//!
//! The machine's own network is not touched, the bridge has a namespace too, and so any number of
//! networks can have the same addresses. A thread enters a host to listen, connect or start a
//! process there.

use std::fs::File;
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// What the names of all namespaces begin with; the id of the process that made them follows.
const PREFIX: &str = "rr-chaos-";

/// A hardware address that nobody has: what is sent to it is lost without a word.
const NOBODY: &str = "02:00:00:00:00:ff";

/// A bridge and the hosts on it; taken away, with all that still runs there, when dropped.
pub struct Network {
    name: String,
    hosts: Vec<Host>,
}

/// One host.
#[derive(Clone, Debug)]
pub struct Host {
    namespace: String,
    /// Its address.
    pub address: Ipv4Addr,
}

/// What there is of a cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Neither hears the other.
    Both,
    /// The second one does not hear the first one.
    Forth,
}

impl Network {
    /// A network of hosts with these names, in this order.
    ///
    /// # Panics
    /// Namespaces cannot be made here.
    pub fn new(names: &[&str]) -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        sweep();
        let made = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{made}", std::process::id());
        let mut network = Self {
            name: name.clone(),
            hosts: Vec::new(),
        };
        let bridge = network.bridge();
        ip("", &format!("netns add {bridge}"));
        ip(
            &bridge,
            "link set lo up\nlink add hub type bridge\nlink set hub up",
        );
        for (at, host) in names.iter().enumerate() {
            let last = u8::try_from(at + 1).expect("few hosts");
            let host = Host {
                namespace: format!("{name}-{host}"),
                address: Ipv4Addr::new(10, 0, 0, last),
            };
            ip("", &format!("netns add {}", host.namespace));
            ip(
                &host.namespace,
                &format!(
                    "link set lo up\nlink add eth0 type veth peer name port{at} netns {bridge}\n\
                     address add {}/24 dev eth0\nlink set eth0 up",
                    host.address
                ),
            );
            let join = format!("link set port{at} master hub\nlink set port{at} up");
            ip(&bridge, &join);
            network.hosts.push(host);
        }
        network
    }

    /// The host at this place.
    pub fn host(&self, at: usize) -> Host {
        self.hosts[at].clone()
    }

    fn bridge(&self) -> String {
        format!("{}-hub", self.name)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for host in &self.hosts {
            remove(&host.namespace);
        }
        remove(&self.bridge());
    }
}

impl Host {
    /// Runs something on this host.
    pub fn inside<T: Send>(&self, run: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let running = scope.spawn(|| {
                self.enter();
                run()
            });
            match running.join() {
                Ok(value) => value,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Moves this thread, and the threads and processes that it starts from here on, to this host.
    fn enter(&self) {
        let file = File::open(Path::new("/run/netns").join(&self.namespace))
            .expect("the namespace was made");
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
            .expect("root may enter a namespace");
    }

    /// Cuts the link to another host: what is sent is lost, nobody is told.
    pub fn cut(&self, other: &Self, cut: Cut) {
        self.lose(other);
        if cut == Cut::Both {
            other.lose(self);
        }
    }

    /// Mends the link.
    pub fn heal(&self, other: &Self) {
        for (from, to) in [(self, other), (other, self)] {
            let known = format!("neighbour show {} nud permanent dev eth0", to.address);
            if !ip(&from.namespace, &known).is_empty() {
                let forget = format!("neighbour del {} dev eth0", to.address);
                ip(&from.namespace, &forget);
            }
        }
    }

    fn lose(&self, other: &Self) {
        let lost = format!(
            "neighbour replace {} lladdr {NOBODY} nud permanent dev eth0",
            other.address
        );
        ip(&self.namespace, &lost);
    }
}

/// Runs `ip` with these commands, one a line, in a namespace, and gives what it says.
pub fn ip(namespace: &str, commands: &str) -> String {
    let mut ip = Command::new("ip");
    if !namespace.is_empty() {
        ip.args(["-n", namespace]);
    }
    let mut child = ip
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("`ip` runs (`make test` installs iproute2)");
    let mut stdin = child.stdin.take().expect("its input");
    stdin.write_all(commands.as_bytes()).expect("it reads");
    stdin.write_all(b"\n").expect("it reads");
    drop(stdin);
    let output = child.wait_with_output().expect("a child");
    assert!(
        output.status.success(),
        "`ip` cannot do this: {commands}\n{}\nThese tests need root, who may make network \
         namespaces. REQUESTROCKET_CHAOS=skip leaves them out.",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Takes away what a run of these tests left that was killed itself.
fn sweep() {
    for line in ip("", "netns list").lines() {
        let name = line.split(' ').next().unwrap_or_default();
        let maker = name.strip_prefix(PREFIX).and_then(|n| n.split('-').next());
        let gone = |pid: &str| !Path::new("/proc").join(pid).exists();
        if maker.is_some_and(gone) {
            remove(name);
        }
    }
}

/// Removes a namespace and ends what runs in it.
fn remove(namespace: &str) {
    let command = format!(
        "for pid in $(ip netns pids {namespace}); do kill -KILL $pid; done; \
         ip netns del {namespace}"
    );
    let _ = Command::new("sh").args(["-c", &command]).status();
}
