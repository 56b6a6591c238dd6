//! The authority of the links between nodes and control planes, and of those between regions, is
//! exchanged while everything runs.

use std::path::Path;

use rustls::pki_types::ServerName;
use tokio::net::TcpStream;

use crate::cluster::wait_status;
use crate::harness::gateway::{Gateway, binary};
use crate::harness::upstream::Upstream;
use crate::harness::wait_for;
use crate::links::{block_on, frame, tls};
use crate::regions::Two;

const NAMES: [&str; 3] = ["127.0.0.1", "gw-us", "gw-eu"];

fn made(folder: &Path, arguments: &[&str]) {
    let made = binary().arg("link").args(arguments).arg(folder).status();
    assert!(made.expect("the binary runs").success());
}

/// Copies the certificates of all processes.
fn copy(from: &Path, to: &Path) {
    for name in NAMES {
        for file in [format!("{name}.pem"), format!("{name}-key.pem")] {
            std::fs::copy(from.join(&file), to.join(&file)).expect("a file");
        }
    }
}

/// Waits until processes have said this so often: once for each side of links that they are.
fn wait_said(processes: &[(&Gateway, usize)], text: &str) {
    for (process, times) in processes {
        wait_for(text, || {
            (process.log().matches(text).count() >= *times).then_some(())
        });
    }
}

/// Whether a listener of links hears out whoever has this certificate.
fn is_refused(address: &str, authority: &Path, own: &Path) -> bool {
    let mut refused = true;
    block_on(async {
        let tcp = TcpStream::connect(address).await.expect("a connection");
        let name = ServerName::try_from("127.0.0.1").expect("an address");
        let connector = tls(authority, Some((own, "gw-us")));
        if let Ok(mut stream) = connector.connect(name, tcp).await {
            // A client learns in the handshake or when it reads.
            refused = frame(&mut stream).await.is_none();
        }
    });
    refused
}

#[test]
fn an_authority_is_exchanged_while_all_processes_run() {
    let two = Two::new();
    let (us, eu) = two.controls();
    let [of_us, of_eu] = [two.node(&two.us), two.node(&two.eu)];
    let upstream = Upstream::json("{}");
    let proxy = us.proxy(&upstream.url());
    for node in [&of_us, &of_eu] {
        wait_status(node, &proxy, "GET", 200);
    }
    let (first, second) = (two.file("first"), two.file("second"));
    std::fs::create_dir(&first).expect("a folder");
    copy(two.folder(), &first);
    made(&second, &["authority", "--dir"]);
    for name in NAMES {
        made(&second, &["issue", name, "--dir"]);
    }
    let trusted = two.file("ca.pem");
    let read = |path: &Path| std::fs::read_to_string(path).expect("a file");
    let (old, new) = (read(&trusted), read(&second.join("ca.pem")));
    // A control plane listens and dials, a node dials.
    let all = [(&us, 2), (&eu, 2), (&of_us, 1), (&of_eu, 1)];

    std::fs::write(&trusted, "nothing").expect("a file");
    wait_said(&all, "those of before count");
    std::fs::write(&trusted, format!("{old}{new}")).expect("a file");
    wait_said(&all, "`link.ca_file` that count from now on: 2");
    copy(&second, two.folder());
    wait_said(&all, "the new certificate of `link` is shown");
    std::fs::write(&trusted, new).expect("a file");
    wait_said(&all, "`link.ca_file` that count from now on: 1");

    // Whatever is connected anew goes by the new authority alone, on both sides.
    for way in [&two.way, &two.back] {
        way.cut();
        way.heal();
    }
    us.patch(
        &format!("/proxies/{}", proxy.id),
        serde_json::json!({"name": "renamed"}),
    );
    two.wait_equal();
    assert!(is_refused(two.us.link_address(), &trusted, &first));
    let token = eu.token.clone();
    let mut eu = Gateway::inside(eu.kill(), &two.eu_start());
    eu.token = token;
    let answer = proxy.request("GET", "/").send(&of_eu.url);
    let id = answer.field("requestrocket-request-id").expect("an id");
    assert_eq!(eu.record(id)["node"], "gw-eu");
    two.wait_equal();
}
