//! The contract on a real etcd, and what only a store behind a network has: restarts, dead, hung
//! and wrong endpoints, users and certificates.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use proto::store::etcd::{Etcd, EtcdOptions, EtcdTls, EtcdUser};
use proto::store::{Op, Range, Store, StoreError, Txn};
use tempfile::TempDir;

use crate::etcd_server::{EtcdServer, ServerTls, ask_for_password, etcdctl, write_file};
use crate::runner::{Case, Trial, block_on};
use crate::steps::{apply, check_refused, end, expect, get, next, put, revision, watch};
use crate::{address, applied};

/// The contract's cases on one server, each under a prefix of its own, then this store's own cases
/// on servers of their own.
pub fn trials(contract: Vec<Case>) -> Vec<Trial> {
    let server: Arc<OnceLock<EtcdServer>> = Arc::default();
    let mut trials: Vec<Trial> = contract
        .into_iter()
        .map(|case| {
            let server = Arc::clone(&server);
            Trial::new(format!("etcd::{}", case.name), move || {
                let server = server.get_or_init(EtcdServer::start);
                let mut options = EtcdOptions::new([server.endpoint()]);
                options.prefix = format!("/{}/", case.name);
                case.try_on(open(options));
            })
        })
        .collect();
    let own = |name: &str, run: fn()| Trial::new(format!("etcd::{name}"), run);
    trials.extend([
        own(
            "a_watch_ends_when_its_server_does_and_calls_work_again",
            restart,
        ),
        own("a_dead_endpoint_among_two_is_invisible", dead_endpoint),
        own("a_hung_endpoint_is_left", hung_endpoint),
        own("a_hung_server_leaves_a_write_unknown", hung_server),
        own("a_member_that_dies_is_left_for_another", dead_member),
        own("a_wrong_address_is_named", wrong_address),
        own("a_wrong_password_is_named", wrong_password),
        own("a_token_that_is_over_is_asked_for_again", token_over),
        own("an_expired_certificate_is_named", expired),
        own("a_connection_is_encrypted_and_the_server_known", encrypted),
        own("a_full_server_is_full", full),
        own("two_prefixes_do_not_meet", prefixes),
        own("what_a_region_tells_twice_is_kept_once", applied_twice),
    ]);
    trials
}

fn applied_twice() {
    let server = EtcdServer::start();
    applied::told_twice(open_at(&[&server.endpoint()]));
}

fn open(options: EtcdOptions) -> Arc<Etcd> {
    Etcd::open(options).expect("the options can work")
}

fn open_at(endpoints: &[&str]) -> Arc<Etcd> {
    open(EtcdOptions::new(endpoints.iter().copied()))
}

/// An address at which nothing listens.
fn dead_address() -> String {
    format!("http://{}", address::reserved())
}

fn write() -> Txn {
    Txn {
        ops: vec![Op::put("a", "1")],
        ..Txn::default()
    }
}

/// Waits for the server to answer again.
async fn wait_until_answering(store: &dyn Store) {
    while store.get("a").await.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn restart() {
    let mut server = EtcdServer::start();
    block_on(async {
        let store = open_at(&[&server.endpoint()]);
        let at = put(&*store, "w/a", "1").await;
        let mut broken = watch(&*store, "w/", at).await;
        expect(&mut broken, at, &["w/a=1"]).await;
        server.kill();
        assert!(matches!(end(&mut broken).await, StoreError::Unavailable(_)));
        check_refused(
            "a read without a server",
            "Unavailable",
            store.get("w/a").await,
        );
        let write = store.txn(write()).await;
        check_refused("a write that could not be sent", "Unavailable", write);
        server.restart();
        wait_until_answering(&*store).await;
        assert_eq!(get(&*store, "w/a").await.mod_revision, at);
        let mut again = watch(&*store, "w/", at.next()).await;
        let next = put(&*store, "w/a", "2").await;
        expect(&mut again, next, &["w/a=2"]).await;
    });
}

fn dead_endpoint() {
    let server = EtcdServer::start();
    let (dead, alive) = (dead_address(), server.endpoint());
    for endpoints in [[&*dead, &alive], [&*alive, &dead]] {
        let store = open_at(&endpoints);
        block_on(async {
            for n in 0..20 {
                put(&*store, "a", n.to_string()).await;
                get(&*store, "a").await;
                // Every call is made to begin at the other endpoint.
                store.leave(store.place());
            }
            store.leave(store.place());
            let from = revision(&*store).await;
            next(&mut watch(&*store, "a", from).await).await;
        });
    }
}

fn hung_endpoint() {
    let server = EtcdServer::start();
    // Connections are taken by the kernel and never served.
    let hung = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let address = hung.local_addr().expect("a bound socket has an address");
    let endpoints = [format!("http://{address}"), server.endpoint()];
    block_on(async {
        let store = open(EtcdOptions::new(endpoints.clone()));
        store
            .get("a")
            .await
            .expect("a read is repeated at the other endpoint");
        put(&*store, "a", "1").await;
        let store = open(EtcdOptions::new(endpoints));
        let written = store.txn(write()).await;
        written.expect("nothing was sent to the first, so the other may have it");
        put(&*store, "a", "2").await;
    });
}

fn hung_server() {
    let server = EtcdServer::start();
    block_on(async {
        let store = open_at(&[&server.endpoint()]);
        let at = put(&*store, "a", "1").await;
        let mut broken = watch(&*store, "a", at.next()).await;
        let granted = store.grant_lease(Duration::from_secs(60)).await;
        let lease = granted.expect("a lease").id;
        server.signal("STOP");
        let write = store.txn(write()).await;
        check_refused("a write", "OutcomeUnknown", write);
        check_refused("a read", "Unavailable", store.get("a").await);
        let error = end(&mut broken).await;
        assert!(
            matches!(error, StoreError::Unavailable(_)),
            "the silence is noticed: {error:?}"
        );
        // No other call waits for ever either.
        let range = Range {
            prefix: "a".into(),
            after: None,
            limit: 10,
            at: None,
        };
        let refused = |what: &str, result: Result<(), StoreError>| {
            let error = result.expect_err(what);
            let is_meant = matches!(
                error,
                StoreError::Unavailable(_) | StoreError::OutcomeUnknown(_)
            );
            assert!(is_meant, "{what}: {error:?}");
        };
        refused("a range", store.range(range).await.map(drop));
        refused("a watch", store.watch("a", at.next()).await.map(drop));
        let granted = store.grant_lease(Duration::from_secs(60)).await;
        refused("a lease", granted.map(drop));
        refused("its renewal", store.keep_alive(lease).await);
        refused("its end", store.revoke_lease(lease).await);
        refused("a compaction", store.compact(at).await);
        refused("a defragmentation", store.reclaim_space().await);
        let sizes = store.sizes().await.expect("none is an answer");
        assert!(sizes.is_empty(), "{sizes:?}");
        server.signal("CONT");
        wait_until_answering(&*store).await;
        get(&*store, "a").await;
    });
}

fn dead_member() {
    let mut members = EtcdServer::start_cluster(3);
    block_on(async {
        let store = open(EtcdOptions::new(members.iter().map(EtcdServer::endpoint)));
        put(&*store, "a", "1").await;
        members[0].kill();
        wait_until_answering(&*store).await;
        let at = apply(&*store, vec![]).await;
        assert_eq!(get(&*store, "a").await.mod_revision, at);
        // No quorum: the last member refuses instead of being silent.
        members[1].kill();
        check_refused("a read without quorum", "Unavailable", store.get("a").await);
    });
}

fn wrong_address() {
    let address = dead_address();
    block_on(async {
        let error = open_at(&[&address])
            .get("a")
            .await
            .expect_err("nobody is there");
        assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
        assert!(error.to_string().contains(&address), "{error}");
        let error = open_at(&["http://no-such-host.invalid:2379"])
            .get("a")
            .await;
        check_refused("a name that does not exist", "Unavailable", error);
    });
    let refused = Etcd::open(EtcdOptions::new(["127.0.0.1:2379"])).map(|_| ());
    check_refused("an address that is no URL", "Unusable", refused);
    let refused = Etcd::open(EtcdOptions::new([""; 0])).map(|_| ());
    check_refused("no address", "Unusable", refused);
}

fn open_as(server: &EtcdServer, password: Option<&str>) -> Arc<Etcd> {
    let mut options = EtcdOptions::new([server.endpoint()]);
    options.user = password.map(|password| EtcdUser {
        name: "root".into(),
        password: password.into(),
    });
    open(options)
}

/// Each kind of call is the first one with a token that counts no more, since users were changed
/// (a signed one) or the server has forgotten it; none of them fails for it.
fn token_over() {
    let dir = TempDir::new().expect("a temporary directory can be made");
    let key = write_file(dir.path(), "key", "of-thirty-two-bytes-for-this-test");
    let signed = format!("jwt,sign-method=HS256,ttl=10m,priv-key={}", key.display());
    let signing = EtcdServer::start_with(None, &["--auth-token", &signed]);
    ask_for_password(&signing);
    let changed = AtomicUsize::new(0);
    every_call_works_after(&signing, &|| {
        let changed = changed.fetch_add(1, Ordering::Relaxed);
        let user = format!("user-{changed}:word");
        etcdctl(&signing, &["--user", "root:right", "user", "add", &user]);
    });
    let simple = EtcdServer::start();
    ask_for_password(&simple);
    every_call_works_after(&simple, &|| {
        etcdctl(&simple, &["--user", "root:right", "auth", "disable"]);
        etcdctl(&simple, &["auth", "enable"]);
    });
}

fn every_call_works_after(server: &EtcdServer, spoil: &dyn Fn()) {
    let store = open_as(server, Some("right"));
    block_on(async {
        let at = put(&*store, "a", "1").await;
        let lease = store.grant_lease(Duration::from_secs(60)).await;
        let lease = lease.expect("a lease").id;
        let mut open = watch(&*store, "a", at).await;
        expect(&mut open, at, &["a=1"]).await;
        spoil();
        get(&*store, "a").await;
        spoil();
        let at = put(&*store, "a", "2").await;
        spoil();
        let mut again = watch(&*store, "a", at).await;
        expect(&mut again, at, &["a=2"]).await;
        spoil();
        store.keep_alive(lease).await.expect("it is renewed");
        spoil();
        store.revoke_lease(lease).await.expect("it ends");
        spoil();
        let range = Range {
            prefix: "a".into(),
            after: None,
            limit: 10,
            at: None,
        };
        assert_eq!(store.range(range).await.expect("a page").items.len(), 1);
        // Many at a time ask for one token together.
        spoil();
        let calls = (0..64).map(|_| store.get("a"));
        for read in futures_util::future::join_all(calls).await {
            read.expect("each of them is answered");
        }
    });
}

fn wrong_password() {
    let server = EtcdServer::start();
    ask_for_password(&server);
    let open_as = |password: Option<&str>| open_as(&server, password);
    block_on(async {
        put(&*open_as(Some("right")), "a", "1").await;
        let check = async |password: Option<&str>, part: &str| {
            let store = open_as(password);
            for error in [
                store
                    .get("a")
                    .await
                    .map(|_| ())
                    .expect_err("a read is refused"),
                store
                    .txn(write())
                    .await
                    .map(|_| ())
                    .expect_err("a write is refused"),
            ] {
                assert!(matches!(error, StoreError::Unusable(_)), "{error:?}");
                assert!(error.to_string().contains(part), "{error}");
            }
        };
        check(Some("wrong"), "`store.password_file`").await;
        check(None, "password").await;
    });
}

fn encrypted() {
    let dir = TempDir::new().expect("a temporary directory can be made");
    let made = rcgen::generate_simple_self_signed(["localhost".into(), "127.0.0.1".into()]);
    let made = made.expect("a certificate is made");
    let cert = write_file(dir.path(), "cert.pem", &made.cert.pem());
    let key = write_file(dir.path(), "key.pem", &made.signing_key.serialize_pem());
    let server = EtcdServer::start_with(Some(ServerTls { cert, key }), &[]);
    let stranger = rcgen::generate_simple_self_signed(["127.0.0.1".into()]);
    let stranger = stranger.expect("a certificate is made").cert.pem();
    let open_trusting = |ca_pem: String| {
        let mut options = EtcdOptions::new([server.endpoint()]);
        options.tls = Some(EtcdTls {
            ca_pem,
            identity_pem: None,
            server_name: None,
        });
        open(options)
    };
    block_on(async {
        put(&*open_trusting(made.cert.pem()), "a", "1").await;
        let error = open_trusting(stranger)
            .get("a")
            .await
            .expect_err("a stranger is not trusted");
        assert!(matches!(error, StoreError::Unusable(_)), "{error:?}");
        assert!(error.to_string().contains("`store.ca_file`"), "{error}");
    });
}

fn expired() {
    let dir = TempDir::new().expect("a temporary directory can be made");
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::new(vec!["127.0.0.1".into()]).expect("a name");
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2021, 1, 1);
    let made = params.self_signed(&key).expect("a certificate is made");
    let ca_pem = made.pem();
    let cert = write_file(dir.path(), "cert.pem", &ca_pem);
    let key = write_file(dir.path(), "key.pem", &key.serialize_pem());
    let server = EtcdServer::start_with(Some(ServerTls { cert, key }), &[]);
    let mut options = EtcdOptions::new([server.endpoint()]);
    options.tls = Some(EtcdTls {
        ca_pem,
        identity_pem: None,
        server_name: None,
    });
    block_on(async {
        let error = open(options).get("a").await.expect_err("it has expired");
        assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
        let text = error.to_string();
        for part in [server.endpoint().as_str(), "expired", "renew"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    });
}

fn full() {
    let server = EtcdServer::start_with(None, &["--quota-backend-bytes", "2097152"]);
    block_on(async {
        let store = open_at(&[&server.endpoint()]);
        let large = |n: i32| {
            let ops = vec![Op::put(format!("large/{n}"), vec![7; 500_000])];
            Txn {
                ops,
                ..Txn::default()
            }
        };
        let mut n = 0;
        let refused = loop {
            n += 1;
            match store.txn(large(n)).await {
                Ok(_) => assert!(n < 100, "the server never is full"),
                Err(error) => break error,
            }
        };
        assert!(matches!(refused, StoreError::Full(_)), "{refused:?}");
        get(&*store, "large/1").await;
        // What is deleted takes its space until it is given back.
        let gone = (1..n).map(|n| Op::Delete(format!("large/{n}")));
        let txn = Txn {
            ops: gone.collect(),
            ..Txn::default()
        };
        store.txn(txn).await.expect("deleting is possible");
        assert!(matches!(
            store.txn(large(0)).await,
            Err(StoreError::Full(_))
        ));
        store.reclaim_space().await.expect("space");
        store
            .txn(large(0))
            .await
            .expect("writes are possible again");
    });
}

fn prefixes() {
    let server = EtcdServer::start();
    let open_under = |prefix: &str| {
        let mut options = EtcdOptions::new([server.endpoint()]);
        options.prefix = prefix.into();
        open(options)
    };
    block_on(async {
        let (one, other) = (open_under("/one/"), open_under("/one0/"));
        let at = put(&*one, "a", "1").await;
        assert!(crate::steps::is_absent(&*other, "a").await);
        let mut watch = watch(&*other, "", at).await;
        put(&*one, "a", "2").await;
        let seen = put(&*other, "b", "1").await;
        expect(&mut watch, seen, &["b=1"]).await;
        etcdctl(&server, &["put", "/one0/c", "from outside"]);
        assert_eq!(&get(&*other, "c").await.value[..], b"from outside");
    });
}
