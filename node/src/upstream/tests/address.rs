//! Which addresses may be dialled: rows of the IANA registries, spellings, permits.

use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};

use super::super::address::{Never, Range, Refused, judge};
use super::*;

fn ip(text: &str) -> IpAddr {
    match Host::parse(text).unwrap() {
        Host::Literal(ip) => ip,
        Host::Name(name) => panic!("{name} is a name"),
    }
}

fn permit(network: &str, ports: std::ops::RangeInclusive<u16>) -> PermitEntry {
    PermitEntry {
        network: network.parse().unwrap(),
        ports: vec![ports],
    }
}

fn verdict(host: &str, port: u16, policy: &GuardPolicy) -> Result<(), Refused> {
    judge(SocketAddr::new(ip(host), port), policy, &|_| false).map(|_| ())
}

#[test]
fn only_global_unicast_passes() {
    use Range::*;
    let check = |host: &str, expect: Option<Range>| {
        let expect = expect.map_or(Ok(()), |range| Err(Refused::NotGlobal(range)));
        assert_eq!(
            verdict(host, 443, &GuardPolicy::default()),
            expect,
            "{host}"
        );
    };
    for host in [
        "8.8.8.8",
        "1.1.1.1",
        "100.63.255.255",
        "100.128.0.0",
        "172.15.0.1",
        "172.32.0.1",
    ] {
        check(host, None);
    }
    for host in [
        "223.255.255.255",
        "[2606:4700::1111]",
        "[2a00:1450::1]",
        "[2001:200::1]",
    ] {
        check(host, None);
    }
    check("0.0.0.0", Some(ThisNetwork));
    check("0.1.2.3", Some(ThisNetwork));
    check("10.0.0.1", Some(Private));
    check("100.64.0.1", Some(CarrierNat));
    check("100.127.255.255", Some(CarrierNat));
    check("127.0.0.1", Some(Loopback));
    check("127.255.255.254", Some(Loopback));
    check("169.254.1.1", Some(LinkLocal));
    check("172.16.0.1", Some(Private));
    check("172.31.255.255", Some(Private));
    check("192.0.0.8", Some(Protocol));
    check("192.0.2.1", Some(Documentation));
    check("192.31.196.1", Some(Protocol));
    check("192.52.193.1", Some(Protocol));
    check("192.88.99.1", Some(Embedded));
    check("192.168.1.1", Some(Private));
    check("192.175.48.1", Some(Protocol));
    check("198.18.0.1", Some(Benchmarking));
    check("198.19.255.255", Some(Benchmarking));
    check("198.51.100.1", Some(Documentation));
    check("203.0.113.1", Some(Documentation));
    check("224.0.0.1", Some(Multicast));
    check("239.255.255.255", Some(Multicast));
    check("240.0.0.1", Some(Reserved));
    check("255.255.255.255", Some(Reserved));
    check("[::]", Some(ThisNetwork));
    check("[::1]", Some(Loopback));
    check("[::ffff:8.8.8.8]", Some(Embedded));
    check("[::ffff:0:8.8.8.8]", Some(Embedded));
    check("[::8.8.8.8]", Some(Embedded));
    check("[64:ff9b::808:808]", Some(Embedded));
    check("[64:ff9b:1::808:808]", Some(Embedded));
    check("[100::1]", Some(Reserved));
    check("[2001::1]", Some(Embedded));
    check("[2001:2::1]", Some(Benchmarking));
    check("[2001:20::1]", Some(Protocol));
    check("[2001:db8::1]", Some(Documentation));
    check("[2002:808:808::1]", Some(Embedded));
    check("[2620:4f:8000::1]", Some(Protocol));
    check("[3fff::1]", Some(Documentation));
    check("[4000::1]", Some(Reserved));
    check("[5f00::1]", Some(Reserved));
    check("[fc00::1]", Some(Private));
    check("[fd12::1]", Some(Private));
    check("[fe80::1]", Some(LinkLocal));
    check("[fec0::1]", Some(Private));
    check("[ff02::1]", Some(Multicast));
    check("[2606:4700::5efe:808:808]", Some(Embedded)); // ISATAP below a global prefix
    check("[2606:4700::200:5efe:808:808]", Some(Embedded));
}

#[test]
fn every_spelling_of_an_address_is_that_address() {
    let check = |text: &str, expect: &str| {
        assert_eq!(Host::parse(text).unwrap().to_string(), expect, "{text}");
    };
    for text in [
        "0x7f.1",
        "2130706433",
        "127.1",
        "0177.0.0.1",
        "127.0.0.1.",
        "0x7f000001",
    ] {
        check(text, "127.0.0.1");
    }
    check("①②⑦.0.0.1", "127.0.0.1");
    check("[::ffff:127.0.0.1]", "[::ffff:127.0.0.1]");
    check("[0:0:0:0:0:0:0:1]", "[::1]");
    check("localhost.", "localhost");
    check("LOCALHOST", "localhost");
    check("Bücher.example", "xn--bcher-kva.example");
    check("a.example.", "a.example");
    let refuse = |text: &str| assert!(Host::parse(text).is_err(), "{text}");
    for text in [
        "",
        ".",
        "a..b",
        "a b",
        "a/b",
        "a@b",
        "a:1",
        "[::1",
        "[fe80::1%25eth0]",
        "1.2.3.4.5",
    ] {
        refuse(text);
    }
    refuse(&"a".repeat(64));
    refuse(&format!("{}example", "a.".repeat(124)));
}

#[test]
fn a_special_address_needs_the_operator_and_the_target() {
    let policy = |permits: &[(&str, u16)], allow: &[&str]| GuardPolicy {
        permit: permits
            .iter()
            .map(|(network, port)| permit(network, *port..=*port))
            .collect(),
        allow_networks: allow
            .iter()
            .map(|network| network.parse().unwrap())
            .collect(),
        never: Never::default(),
    };
    let check = |host: &str, port: u16, policy: GuardPolicy, expect: bool| {
        assert_eq!(
            verdict(host, port, &policy).is_ok(),
            expect,
            "{host} {port} {policy:?}"
        );
    };
    check(
        "10.0.0.5",
        443,
        policy(&[("10.0.0.0/8", 443)], &["10.0.0.0/8"]),
        true,
    );
    check("10.0.0.5", 443, policy(&[("10.0.0.0/8", 443)], &[]), false);
    check("10.0.0.5", 443, policy(&[], &["10.0.0.0/8"]), false);
    check(
        "10.0.0.5",
        80,
        policy(&[("10.0.0.0/8", 443)], &["10.0.0.0/8"]),
        false,
    );
    check(
        "10.1.0.5",
        443,
        policy(&[("10.0.0.0/16", 443)], &["10.0.0.0/8"]),
        false,
    );
    // An address within an address is judged as well.
    let nat64 = ("64:ff9b::/96", 443);
    check(
        "[64:ff9b::808:808]",
        443,
        policy(&[nat64], &["64:ff9b::/96"]),
        true,
    );
    check(
        "[64:ff9b::a00:1]",
        443,
        policy(&[nat64], &["64:ff9b::/96"]),
        false,
    );
    let both = policy(
        &[nat64, ("10.0.0.0/8", 443)],
        &["64:ff9b::/96", "10.0.0.0/8"],
    );
    check("[64:ff9b::a00:1]", 443, both, true);
    // Ports that no HTTP target has.
    for port in [0, 22, 25, 2379, 2380] {
        check("8.8.8.8", port, policy(&[], &[]), false);
        check("8.8.8.8", port, policy(&[("8.8.8.0/24", port)], &[]), true);
        check("8.8.8.8", port, policy(&[("8.8.8.0/24", 443)], &[]), false);
    }
    check("8.8.8.8", 8443, policy(&[], &[]), true);
}

#[test]
fn some_addresses_no_setting_permits() {
    let everything = |sockets: &[&str], networks: &[&str]| GuardPolicy {
        permit: vec![
            permit("0.0.0.0/0", 0..=u16::MAX),
            permit("::/0", 0..=u16::MAX),
        ],
        allow_networks: vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()],
        never: Never {
            sockets: sockets
                .iter()
                .map(|socket| socket.parse().unwrap())
                .collect(),
            networks: networks
                .iter()
                .map(|network| network.parse().unwrap())
                .collect(),
            ..Never::default()
        },
    };
    let ours = ip("10.0.0.7");
    let check = |host: &str, port, policy: GuardPolicy, expect: Result<(), Refused>| {
        let address = SocketAddr::new(ip(host), port);
        let verdict = judge(address, &policy, &|ip| ip == ours).map(|_| ());
        assert_eq!(verdict, expect, "{host} {port}");
    };
    let never = Err(Refused::Never);
    for host in [
        "169.254.169.254",
        "[fd00:ec2::254]",
        "168.63.129.16",
        "100.100.100.200",
    ] {
        check(host, 80, everything(&[], &[]), never);
    }
    for host in [
        "0xa9fea9fe",
        "[::ffff:169.254.169.254]",
        "[::169.254.169.254]",
        "[::ffff:0:169.254.169.254]",
        "[64:ff9b::a9fe:a9fe]",
        "[64:ff9b:1::a9fe:a9fe]",
        "[64:ff9b:1:a9fe:a9:fe00::]",
        "[64:ff9b:1:a9:fe:a9fe::]",
        "[64:ff9b:1::a9:fea9:fe00:0]",
        "[2002:a9fe:a9fe::1]",
        "[2001:0:a9fe:a9fe::1]",
        "[2001:0:808:808::5601:5601]", // Teredo keeps the client's address inverted
        "[fe80::5efe:a9fe:a9fe]",
    ] {
        check(host, 80, everything(&[], &[]), never);
    }
    // A listener on one address, and one on all of them.
    check("10.0.0.7", 8080, everything(&["10.0.0.7:8080"], &[]), never);
    check(
        "10.0.0.7",
        8081,
        everything(&["10.0.0.7:8080"], &[]),
        Ok(()),
    );
    check(
        "10.0.0.8",
        8080,
        everything(&["10.0.0.7:8080"], &[]),
        Ok(()),
    );
    check("0.0.0.0", 8080, everything(&["10.0.0.7:8080"], &[]), never);
    for wildcard in ["0.0.0.0:8080", "[::]:8080"] {
        for host in [
            "127.0.0.1",
            "127.9.9.9",
            "[::1]",
            "10.0.0.7",
            "0.0.0.0",
            "[::]",
        ] {
            check(host, 8080, everything(&[wildcard], &[]), never);
            check(host, 8081, everything(&[wildcard], &[]), Ok(()));
        }
        check("10.0.0.8", 8080, everything(&[wildcard], &[]), Ok(()));
        check(
            "[::ffff:10.0.0.7]",
            8080,
            everything(&[wildcard], &[]),
            never,
        );
    }
    check("10.0.0.9", 2379, everything(&["10.0.0.9:2379"], &[]), never);
    check("10.9.0.1", 443, everything(&[], &["10.9.0.0/16"]), never);
}

#[test]
fn whose_address_it_is_is_asked_only_where_it_matters() {
    let asked = Cell::new(0);
    let policy = GuardPolicy {
        never: Never {
            sockets: vec!["0.0.0.0:8080".parse().unwrap()],
            ..Never::default()
        },
        ..GuardPolicy::default()
    };
    let ask = |_| {
        asked.set(asked.get() + 1);
        false
    };
    assert!(judge("8.8.8.8:443".parse().unwrap(), &policy, &ask).is_ok());
    assert_eq!(asked.get(), 0);
    assert!(judge("8.8.8.8:8080".parse().unwrap(), &policy, &ask).is_ok());
    assert_eq!(asked.get(), 1);
}

#[test]
fn the_dialler_asks_the_guard_about_every_address_of_a_name() {
    let check = |host: &'static str, addresses: &'static [&'static str], expect: &'static str| {
        on_worker(async move {
            let peer = Peer::start(|_, mut stream| async move {
                read_head(&mut stream).await;
                write(&mut stream, &ok("here")).await;
            })
            .await;
            let hosts = [(
                host.to_owned(),
                addresses.iter().map(|a| a.parse().unwrap()).collect(),
            )];
            let settings = UpstreamSettings {
                hosts: hosts.into(),
                ..Default::default()
            };
            let upstream = Upstream::new(settings);
            let destination = destination(host, peer.port, |_| {});
            let outcome = match get(&upstream, &destination).await {
                Ok(answer) => answer.remote.ip().to_string(),
                Err(failure) => name(&failure),
            };
            assert_eq!(outcome, expect, "{host} {addresses:?}");
            let dialled = usize::from(expect.starts_with("127"));
            assert_eq!(peer.connections.get(), dialled, "{host} {addresses:?}");
        });
    };
    check("good.test", &["127.0.0.1"], "127.0.0.1");
    check(
        "rebind.test",
        &["127.0.0.1", "10.0.0.1"],
        "refused, never carried out",
    );
    check(
        "rebind.test",
        &["10.0.0.1", "127.0.0.1"],
        "refused, never carried out",
    );
    check(
        "meta.test",
        &["169.254.169.254"],
        "refused, never carried out",
    );
    check("nothing.test", &[], "resolve, never carried out");
    // The second address takes over where the first does not answer.
    check("two.test", &["127.0.0.2", "127.0.0.1"], "127.0.0.1");
}

#[test]
fn loopback_by_name_is_loopback() {
    on_worker(async {
        let peer = Peer::start(|_, mut stream| async move {
            read_head(&mut stream).await;
            write(&mut stream, &ok("here")).await;
        })
        .await;
        for (host, guarded, expect) in [
            ("localhost.", false, true),
            ("a.localhost", false, true),
            ("localhost", true, false),
            ("2130706433", true, false),
            ("[::ffff:127.0.0.1]", false, false),
        ] {
            let destination = destination(host, peer.port, |parts| {
                if guarded {
                    parts.guard = Arc::default();
                }
            });
            let outcome = get(&upstream(), &destination).await;
            assert_eq!(outcome.is_ok(), expect, "{host}: {outcome:?}");
            if let Err(failure) = outcome {
                assert_eq!(failure.kind.code(), Some("upstream-blocked"), "{host}");
            }
        }
    });
}

#[test]
fn our_own_wildcard_listener_is_found_out_by_the_system() {
    on_worker(async {
        let peer = Peer::start(|_, _| async {}).await;
        let own = format!("0.0.0.0:{}", peer.port).parse().unwrap();
        let destination = peer.destination_with(|parts| {
            Arc::make_mut(&mut parts.guard).never.sockets = vec![own];
        });
        let failure = get(&upstream(), &destination).await.unwrap_err();
        assert_eq!(name(&failure), "refused, never carried out");
        assert_eq!(peer.connections.get(), 0);
    });
}
