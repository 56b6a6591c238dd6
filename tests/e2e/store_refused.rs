//! What a process says when it cannot use the etcd that its settings name: one line with the
//! setting and what to do. Exit code 2 where only a person can mend it; where etcd may come by
//! itself the process waits, says so, and ends with 1, so that its service manager starts it again.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;

use crate::cluster::{Cluster, process, refused, wait_status};
use crate::harness::etcd::{EtcdServer, ServerTls, ask_for_password};
use crate::harness::gateway::{Gateway, Start};
use crate::harness::upstream::Upstream;
use crate::tls::{authority, certificate, write};

/// A process that does not start: whose settings, what they have of the store, how it ends, and
/// what it says at its end.
struct Row {
    what: &'static str,
    mode: &'static str,
    store: String,
    code: i32,
    says: Vec<String>,
}

fn row(what: &'static str, store: String, code: i32, says: &[&str]) -> Row {
    let says = says.iter().map(ToString::to_string).collect();
    let mode = "node";
    Row {
        what,
        mode,
        store,
        code,
        says,
    }
}

/// Its settings, with another store.
fn config(cluster: &Cluster, mode: &str, store: &str) -> String {
    let start = match mode {
        "node" => cluster.node_start("gw-1", "gw-1"),
        _ => cluster.control_start(),
    };
    let endpoints = format!("endpoints = {:?}\n", [cluster.etcd[0].endpoint()]);
    assert!(start.config.contains(&endpoints), "{}", start.config);
    start.config.replacen(&endpoints, store, 1)
}

fn check(cluster: &Cluster, row: &Row) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let config = config(cluster, row.mode, &row.store);
    let mut process = process(row.mode, &config, folder.path());
    if row.mode == "control" {
        process.env("REQUESTROCKET_LINK__LISTEN", "127.0.0.1:0");
    }
    let output = process.output().expect("the binary runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(row.code), "{}: {said}", row.what);
    assert!(
        output.stdout.is_empty(),
        "{}: nothing was started",
        row.what
    );
    let ends = said
        .lines()
        .filter(|line| line.starts_with("requestrocket: "));
    let ends: Vec<&str> = ends.collect();
    assert_eq!(ends.len(), 1, "{}: {said}", row.what);
    for part in &row.says {
        assert!(ends[0].contains(part), "{}: {part} in {said}", row.what);
    }
    let waits = said.contains("waiting 10 s at most for the store");
    assert_eq!(waits, row.code == 1, "{}: {said}", row.what);
    said
}

/// All at once: some of them wait.
fn check_all(cluster: &Cluster, rows: &[Row]) -> Vec<String> {
    // Made once, before all of them look for their certificates.
    for mode in ["node", "control"] {
        config(cluster, mode, "");
    }
    std::thread::scope(|scope| {
        let begin = |row| scope.spawn(move || check(cluster, row));
        let running: Vec<_> = rows.iter().map(begin).collect();
        let ended = running
            .into_iter()
            .map(|check| check.join().expect("a check"));
        ended.collect()
    })
}

fn endpoints(of: &str) -> String {
    format!("endpoints = [{of:?}]\n")
}

#[test]
fn an_etcd_that_is_not_there_or_does_not_know_us() {
    let cluster = Cluster::new();
    let own = EtcdServer::start();
    ask_for_password(&own);
    let password = cluster.file("password");
    std::fs::write(&password, "wrong").expect("a file");
    let wrong = format!("username = \"root\"\npassword_file = {password:?}\n");
    let at = endpoints(&own.endpoint());
    let nobody = "http://127.0.0.1:1";
    let mut rows = Vec::new();
    for mode in ["node", "control"] {
        let of = |row: Row| Row { mode, ..row };
        rows.extend([
            of(row(
                "nobody listens",
                endpoints(nobody),
                1,
                &[nobody, "start again"],
            )),
            of(row(
                "a wrong password",
                format!("{at}{wrong}"),
                2,
                &[
                    &own.endpoint(),
                    "authentication failed",
                    "`store.password_file`",
                ],
            )),
            of(row(
                "no user",
                at.clone(),
                2,
                &["user name is empty", "`store.username`"],
            )),
            of(row(
                "a file as endpoint",
                endpoints("etcd:2379"),
                2,
                &["`store.endpoints`"],
            )),
        ]);
    }
    check_all(&cluster, &rows);
}

#[test]
fn certificates_that_one_side_does_not_take() {
    let cluster = Cluster::new();
    let (known, other) = (authority(), authority());
    let file = |name: &str| cluster.file(name);
    std::fs::write(file("etcd-ca.pem"), known.pem()).expect("a file");
    std::fs::write(file("other-ca.pem"), other.pem()).expect("a file");
    let made = |name: &str, of: &str, until: i32| -> [PathBuf; 2] {
        let files = [
            file(&format!("etcd-{name}.pem")),
            file(&format!("etcd-{name}-key.pem")),
        ];
        write(certificate(&known, of, until), files.clone());
        files
    };
    let server = |[cert, key]: [PathBuf; 2], extra: &[&str]| {
        EtcdServer::start_with(Some(ServerTls { cert, key }), extra)
    };
    let ca = file("etcd-ca.pem");
    let asking = [
        "--client-cert-auth",
        "--trusted-ca-file",
        &ca.to_string_lossy(),
    ];
    let asks = server(made("asks", "127.0.0.1", 2050), &asking);
    let named = server(made("named", "other.example", 2050), &[]);
    let over = server(made("over", "127.0.0.1", 2021), &[]);
    let store = |of: &EtcdServer, ca: &str| {
        format!("{}ca_file = {:?}\n", endpoints(&of.endpoint()), file(ca))
    };
    let shown = |[cert, key]: &[PathBuf; 2]| format!("cert_file = {cert:?}\nkey_file = {key:?}\n");
    let (ours, ended) = (made("ours", "gw", 2050), made("ended", "gw", 2021));
    let of_asks = store(&asks, "etcd-ca.pem");
    let plain = cluster.etcd[0].endpoint();
    let crossed = [ours[0].clone(), ended[1].clone()];
    let rows = [
        row(
            "another authority",
            store(&asks, "other-ca.pem"),
            2,
            &["`store.ca_file`"],
        ),
        row(
            "another name",
            store(&named, "etcd-ca.pem"),
            2,
            &["`store.server_name`"],
        ),
        row(
            "a member's certificate that ended",
            store(&over, "etcd-ca.pem"),
            1,
            &[&over.endpoint(), "renew this member's certificate"],
        ),
        row(
            "no certificate of ours",
            of_asks.clone(),
            1,
            &["`store.cert_file`", "set both"],
        ),
        row(
            "one of ours that ended",
            format!("{of_asks}{}", shown(&ended)),
            1,
            &["`store.cert_file`", "renew"],
        ),
        row(
            "a key of another",
            format!("{of_asks}{}", shown(&crossed)),
            2,
            &["`store.key_file`", "not the key"],
        ),
        row(
            "no authority in the file",
            store(&asks, "nodes.json"),
            2,
            &["`store.ca_file`", "holds no certificate"],
        ),
        row(
            "no TLS towards TLS",
            endpoints(&asks.endpoint().replace("https", "http")),
            1,
            &["`store.ca_file`", "https://"],
        ),
        row(
            "TLS towards none",
            endpoints(&plain.replace("http", "https")) + &format!("ca_file = {ca:?}\n"),
            1,
            &["speaks no TLS", "http://"],
        ),
    ];
    let said = check_all(&cluster, &rows);
    let word = "has ended at 2021-01-01T00:00:00Z";
    assert!(said[4].contains(word), "{}", said[4]);
    // And with what is right it starts.
    let right = config(&cluster, "control", &format!("{of_asks}{}", shown(&ours)));
    let start = Start {
        config: right,
        ..cluster.control_start()
    };
    assert_eq!(Gateway::with(start).stop().0.code(), Some(0));
}

/// Stands before an etcd and lets it seem to be a release of the series before: Debian has no such
/// binary. Everything else that passes is the real server's.
fn older(etcd: &EtcdServer) -> String {
    let version = version();
    let (own, old) = (
        version.clone().into_bytes(),
        format!("2{}", &version[1..]).into_bytes(),
    );
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let server = etcd.endpoint().replace("http://", "");
    std::thread::spawn(move || {
        for caller in listener.incoming() {
            let Ok(mut caller) = caller else { continue };
            let Ok(mut server) = TcpStream::connect(&server) else {
                continue;
            };
            let mut asked = (
                caller.try_clone().expect("it"),
                server.try_clone().expect("it"),
            );
            std::thread::spawn(move || std::io::copy(&mut asked.0, &mut asked.1));
            let (own, old) = (own.clone(), old.clone());
            std::thread::spawn(move || {
                let mut bytes = [0; 16_384];
                while let Ok(read @ 1..) = server.read(&mut bytes) {
                    let answer = &mut bytes[..read];
                    for at in 0..read.saturating_sub(own.len() - 1) {
                        if answer[at..].starts_with(&own) {
                            answer[at..at + own.len()].copy_from_slice(&old);
                        }
                    }
                    if caller.write_all(answer).is_err() {
                        break;
                    }
                }
            });
        }
    });
    url
}

/// Of the etcd of this machine.
fn version() -> String {
    let output = std::process::Command::new("etcd").arg("--version").output();
    let told = String::from_utf8(output.expect("etcd runs").stdout).expect("a text");
    let line = told
        .lines()
        .find_map(|line| line.strip_prefix("etcd Version: "));
    line.expect("a version").trim().to_owned()
}

#[test]
fn an_etcd_of_a_release_that_is_too_old_and_a_region_that_is_not_the_keys() {
    let cluster = Cluster::new();
    let old = older(&cluster.etcd[0]);
    let words = format!(
        "etcd 2{} is not supported: upgrade it to 3.4",
        &version()[1..]
    );
    let mut rows = vec![row(
        "an old etcd",
        endpoints(&old),
        2,
        &[&words, "`store.endpoints`"],
    )];
    rows.push(Row {
        mode: "control",
        ..row("an old etcd", endpoints(&old), 2, &[&words])
    });
    check_all(&cluster, &rows);
    let mut start = cluster.node_start("gw-1", "gw-1");
    start.config.insert_str(0, "region = \"atlantis\"\n");
    let folder = tempfile::tempdir().expect("a folder");
    let (code, said) = refused("node", &start.config, folder.path());
    assert_eq!(code, Some(2), "{said}");
    for part in ["`region`", "atlantis", "of region local"] {
        assert!(said.contains(part), "{part} in {said}");
    }
}

/// What would end a start of nothing is no reason to serve nobody.
#[test]
fn who_has_a_copy_serves_although_etcd_refuses_it_and_its_certificate_has_ended() {
    let cluster = Cluster::new();
    let link = authority();
    std::fs::write(cluster.file("ca.pem"), link.pem()).expect("a file");
    for (name, until) in [("127.0.0.1", 2050), ("gw-1", 2050)] {
        let files = [
            cluster.file(&format!("{name}.pem")),
            cluster.file(&format!("{name}-key.pem")),
        ];
        write(certificate(&link, name, until), files);
    }
    let control = Gateway::with(cluster.control_start());
    let node = cluster.node("gw-1", "gw-1");
    let upstream = Upstream::json("{}");
    let proxy = control.proxy(&upstream.url());
    wait_status(&node, &proxy, "GET", 200);
    let (status, folder) = node.stop();
    assert_eq!(status.code(), Some(0));
    ask_for_password(&cluster.etcd[0]);
    let files = [cluster.file("gw-1.pem"), cluster.file("gw-1-key.pem")];
    write(certificate(&link, "gw-1", 2021), files);
    let node = Gateway::inside(folder, &cluster.node_start("gw-1", "gw-1"));
    let answer = proxy.request("GET", "/").send(&node.url);
    assert_eq!(answer.status(), 200);
    let id = answer
        .field("requestrocket-request-id")
        .expect("an id")
        .to_owned();
    let log = node.log();
    for part in [
        "serving the configuration kept on disk",
        "`store.username`",
        "`link.cert_file`",
        "has ended at 2021-01-01T00:00:00Z",
    ] {
        assert!(log.contains(part), "{part} in {log}");
    }
    // A new certificate counts without a restart: the records get through.
    let files = [cluster.file("gw-1.pem"), cluster.file("gw-1-key.pem")];
    write(certificate(&link, "gw-1", 2050), files);
    control.record(&id);
}
