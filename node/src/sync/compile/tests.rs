//! What a change compiles anew, and what it leaves as it was.

use proto::credential::Credential;
use proto::object::{Attached, Body, StoredCredential};
use proto::org::Role;
use proto::policy::Policy;
use proto::seal;
use proto::store::embedded::Embedded;
use proto::tree::{Change, Context, Operation, OrgConfig, SecretChange, apply};
use proto::version::Epoch;
use serde_json::{Value, json};

use proto::id::{CredentialId, TargetId};
use proto::proxy::Proxy;

use super::hanging::Hanging;
use super::*;

use crate::config::DialGuardSettings;
use crate::limits::{Opener, Settings, SystemClock};
use crate::snapshot::CompiledProxy;

const ORG: u128 = 7;

/// A compiler, and the newest version of one organisation.
struct Bench {
    compiler: Compiler,
    config: OrgConfig,
    gateways: Gateways,
    revision: i64,
    snapshot: Option<Snapshot>,
    _dir: tempfile::TempDir,
}

fn target(bits: u128) -> ObjectId {
    ObjectId::Target(TargetId::from_bits(bits))
}

fn proxy(bits: u128) -> ObjectId {
    ObjectId::Proxy(ProxyId::from_bits(bits))
}

fn caller() -> CredentialId {
    CredentialId::from_bits(1)
}

fn create(id: ObjectId, body: Body) -> Operation {
    Operation::Create {
        id,
        body,
        secret: None,
    }
}

fn parsed<T: serde::de::DeserializeOwned>(fields: Value) -> T {
    serde_json::from_value(fields).unwrap()
}

fn update(id: ObjectId, change: impl Fn(&mut Body) + Send + Sync + 'static) -> Operation {
    let change: Change = Arc::new(move |body| {
        let mut body = body.clone();
        change(&mut body);
        Ok(body)
    });
    Operation::Update {
        id,
        precondition: None,
        change,
        secret: SecretChange::Keep,
    }
}

fn rule(bits: u128, parent: ObjectId) -> Operation {
    let spec = parsed(json!({"effect": "deny", "methods": ["DELETE"]}));
    let id = ObjectId::Rule(proto::id::RuleId::from_bits(bits));
    create(id, Body::Rule(Attached { parent, spec }))
}

impl Bench {
    /// Two proxies with a target each and one credential for both.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(&dir.path().join("store.sqlite")).unwrap();
        let settings = Settings::single_node(Opener { node: 1, boot: 1 });
        let (limits, _) = Limits::new(store, &settings, Arc::new(SystemClock));
        let guard = Guard::new(&DialGuardSettings::default(), Vec::new()).unwrap();
        let keyring = Arc::new(Keyring::generate("local"));
        let epoch = Epoch {
            counter: 1,
            region: "local".into(),
        };
        let credential: Credential =
            parsed(json!({"name": "c", "kind": "proxy", "auth_type": "none"}));
        let mut operations = vec![create(
            ObjectId::Credential(caller()),
            Body::Credential(StoredCredential {
                credential,
                secret: None,
                previous: vec![],
            }),
        )];
        for bits in [1, 2] {
            let fields = json!({"base_url": format!("http://h{bits}.example"), "allow_http": true});
            operations.push(create(target(bits), Body::Target(parsed(fields))));
            let fields = json!({
                "target_id": TargetId::from_bits(bits).to_string(),
                "proxy_credential_ids": [caller().to_string()], "acknowledge_open": true,
                "limits": {"per_minute": 10},
            });
            operations.push(create(proxy(bits), Body::Proxy(parsed(fields))));
        }
        let mut bench = Self {
            compiler: Compiler::new(CompilerParts {
                keyring,
                limits,
                guard,
                policy: Policy {
                    allow_http: true,
                    ..Policy::default()
                },
                default_org: "acme".into(),
                metrics: Metrics::default(),
                health_checks: HealthChecks::new(Default::default()),
                hosts: Hosts::default(),
            }),
            config: OrgConfig::genesis(OrgId::from_bits(ORG), epoch),
            gateways: Gateways::default(),
            revision: 0,
            snapshot: None,
            _dir: dir,
        };
        bench.publish(operations);
        bench
    }

    /// Publishes and compiles; gives the forms of both proxies.
    fn publish(&mut self, operations: Vec<Operation>) -> [Option<Arc<CompiledProxy>>; 2] {
        let policy = Policy {
            allow_http: true,
            ..Policy::default()
        };
        let context = Context {
            now: jiff::Timestamp::now(),
            policy: &policy,
            role: Role::Owner,
        };
        let draft = apply(&self.config, &operations, &context).unwrap();
        let packed = draft.commit(&self.config, 0, seal::random_name()).unwrap();
        self.config = packed.config;
        let org = self.config.org;
        let compiled = self.compile(self.config.clone());
        assert!(compiled.faults.is_empty(), "{:?}", compiled.faults);
        let now = &self.compiler.before[&org];
        assert_eq!(now.hanging, Hanging::of(&self.config.objects));
        let forms = &now.proxies;
        // Each answers to what it is called now, and nothing else is known.
        let mut names = 0;
        for form in forms.values() {
            let alias = form.alias.iter();
            let aliases = alias.flat_map(|alias| [alias.to_string(), format!("acme.{alias}")]);
            for name in aliases.chain([form.id_text.to_string()]) {
                let found = compiled.snapshot.find(&name, jiff::Timestamp::now());
                assert!(
                    found.is_some_and(|found| Arc::ptr_eq(&found, form)),
                    "{name}"
                );
                names += 1;
            }
        }
        assert_eq!(compiled.snapshot.names(), names);
        self.snapshot = Some(compiled.snapshot);
        [1, 2].map(|bits| forms.get(&ProxyId::from_bits(bits)).cloned())
    }

    /// Compiles the next world, which has this one organisation.
    fn compile(&mut self, config: OrgConfig) -> Outcome {
        self.revision += 1;
        let org = config.org;
        let state = OrgState {
            config: Arc::new(config),
            sealed: Arc::default(),
            sealed_whole: true,
            retired: Arc::default(),
        };
        self.compiler.compile(&World {
            revision: proto::store::Revision(self.revision),
            orgs: [(org, Arc::new(state))].into(),
            slugs: [("acme".to_owned(), org)].into(),
            gateways: Arc::new(self.gateways.clone()),
            ..World::default()
        })
    }

    /// Compiles a version in which the first proxy is changed and cannot be compiled; says whether
    /// its last good form is still in effect.
    fn break_one(&mut self, change: fn(&mut Proxy)) -> bool {
        let mut config = self.config.clone();
        let object = Arc::make_mut(config.objects.get_mut(&proxy(1)).unwrap());
        let Body::Proxy(broken) = &mut object.body else {
            panic!("it is a proxy");
        };
        change(broken);
        let missing = CredentialId::from_bits(99);
        broken.proxy_credential_ids.push(missing);
        let org = self.config.org;
        let compiled = self.compile(config);
        let [fault] = &compiled.faults[..] else {
            panic!("{:?}", compiled.faults);
        };
        assert_eq!(fault.object, Some(proxy(1)));
        let id = ProxyId::from_bits(1);
        let found = compiled
            .snapshot
            .find(&id.to_string(), jiff::Timestamp::now());
        let stays = self.compiler.before[&org].proxies.contains_key(&id);
        assert_eq!(found.is_some(), stays);
        stays
    }
}

/// A proxy as requests meet it, for tests of what is done with one.
pub fn compiled() -> Arc<CompiledProxy> {
    let [form, _] = Bench::new().publish(vec![]);
    form.unwrap()
}

#[actix_rt::test]
async fn limits_of_a_later_home_count_whatever_the_number_of_their_version() {
    let per_minute = |form: &Option<Arc<CompiledProxy>>| {
        let metering = &form.as_ref().unwrap().credentials[0].metering;
        let meters = metering.fixed().unwrap().first.meters();
        meters[0].configured().limits()[0].limit()
    };
    let set = |limit: u64| {
        update(
            ObjectId::Proxy(ProxyId::from_bits(1)),
            move |body| match body {
                Body::Proxy(proxy) => proxy.limits.per_minute = Some(limit),
                _ => panic!("it is a proxy"),
            },
        )
    };
    let mut bench = Bench::new();
    let [form, _] = bench.publish(vec![set(20)]);
    assert_eq!(per_minute(&form), 20);
    let backup = bench.config.clone();
    for limit in [30, 40, 50] {
        let [form, _] = bench.publish(vec![set(limit)]);
        assert_eq!(per_minute(&form), limit);
    }
    // What was saved before these is in force again, under an epoch of its own.
    let epoch = Epoch {
        counter: 2,
        region: "local".into(),
    };
    let n = bench.config.head.n + 1;
    bench.config = backup;
    bench.config.head = bench.config.head.reopened(epoch, n, seal::random_name());
    let [form, _] = bench.publish(vec![]);
    assert_eq!(per_minute(&form), 20);
}

#[actix_rt::test]
async fn a_change_compiles_what_it_touches_and_nothing_else() {
    let mut bench = Bench::new();
    let both = [true, true];
    let rename = |name: &'static str| {
        move |body: &mut Body| match body {
            Body::Target(target) => target.name = name.into(),
            Body::Proxy(proxy) => proxy.name = name.into(),
            Body::Credential(stored) => stored.credential.name = name.into(),
            _ => panic!("it has no name"),
        }
    };
    let rule_id = ObjectId::Rule(proto::id::RuleId::from_bits(1));
    let credential = ObjectId::Credential(caller());
    let mut before = bench.publish(vec![]);
    for (what, operations, touched) in [
        (
            "a proxy",
            vec![update(proxy(1), rename("a"))],
            [true, false],
        ),
        (
            "a target",
            vec![update(target(2), rename("b"))],
            [false, true],
        ),
        ("a credential", vec![update(credential, rename("d"))], both),
        ("a rule of a proxy", vec![rule(1, proxy(2))], [false, true]),
        (
            "a rule that goes",
            vec![Operation::Delete {
                id: rule_id,
                precondition: None,
            }],
            [false, true],
        ),
        (
            "a rule of a target",
            vec![rule(2, target(1))],
            [true, false],
        ),
        ("a rule of a credential", vec![rule(3, credential)], both),
        (
            "a target that nothing names",
            vec![create(
                target(3),
                Body::Target(parsed(json!({"base_url": "https://h3.example"}))),
            )],
            [false, false],
        ),
        (
            "a proxy that goes to a new target",
            vec![
                create(
                    target(4),
                    Body::Target(parsed(json!({"base_url": "https://h4.example"}))),
                ),
                update(proxy(2), |body| match body {
                    Body::Proxy(proxy) => proxy.target_id = TargetId::from_bits(4),
                    _ => panic!("it has no target"),
                }),
            ],
            [false, true],
        ),
        (
            "a target that one was new of",
            vec![update(target(4), rename("e"))],
            [false, true],
        ),
    ] {
        let after = bench.publish(operations);
        for (at, touched) in touched.into_iter().enumerate() {
            let (before, after) = (before[at].as_ref().unwrap(), after[at].as_ref().unwrap());
            assert_eq!(!Arc::ptr_eq(before, after), touched, "{what}: proxy {at}");
            let newest = bench.config.head.n;
            assert_eq!(after.version.newest(), newest, "{what}: proxy {at}");
            let stood = newest - u64::from(touched);
            assert_eq!(before.version.newest(), stood, "{what}: proxy {at}");
        }
        before = after;
    }
    let gone = Operation::Delete {
        id: proxy(1),
        precondition: None,
    };
    let after = bench.publish(vec![gone]);
    assert!(after[0].is_none() && after[1].is_some());
}

/// The endpoints that requests of both proxies may go to, as they are near.
fn endpoints_of(forms: &[Option<Arc<CompiledProxy>>; 2]) -> [Vec<(String, u8)>; 2] {
    [0, 1].map(|at| {
        let form = forms[at].as_ref().unwrap();
        let endpoints = form.target.endpoints.iter();
        let found: Vec<_> = endpoints
            .map(|one| (one.label.to_string(), one.distance))
            .collect();
        assert_eq!(form.destinations.len(), found.len());
        found
    })
}

#[actix_rt::test]
async fn nobody_is_redirected_to_a_region_that_is_gone() {
    let listen = |port| std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    let (ap, eu) = (listen(0), listen(0));
    let port = |listener: &std::net::TcpListener| listener.local_addr().unwrap().port();
    let ports = [port(&ap), port(&eu)];
    let mut bench = Bench::new();
    let url = |port| format!("http://127.0.0.1:{port}");
    bench.gateways.urls = [("ap".into(), url(ports[0])), ("eu".into(), url(ports[1]))].into();
    let pin = update(proxy(1), |body| {
        if let Body::Proxy(proxy) = body {
            proxy.regions = ["ap", "eu"].map(String::from).to_vec();
            proxy.cross_region = proto::proxy::CrossRegion::Redirect;
        }
    });
    let [pinned, _] = bench.publish(vec![pin]).map(Option::unwrap);
    let elsewhere = pinned.elsewhere.as_ref().unwrap();
    let leads_to = |wanted: Option<&'static str>| async move {
        while elsewhere.leads_to().map(|to| &*to.region) != wanted {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    // As far as eu is near, it stays farther than ap.
    elsewhere.gateways[1].gateway.measured(u32::MAX / 4);
    leads_to(Some("ap")).await;
    drop(ap);
    leads_to(Some("eu")).await;
    drop(eu);
    leads_to(None).await;
    let _ap = listen(ports[0]);
    leads_to(Some("ap")).await;
}

#[actix_rt::test]
async fn calls_of_a_pinned_proxy_know_no_endpoint_of_other_regions() {
    let mut bench = Bench::new();
    let several = update(target(1), |body| {
        if let Body::Target(target) = body {
            target.endpoints = parsed(json!([
                {"region": "us", "base_url": "http://us.example"},
                {"region": "eu", "base_url": "http://eu.example"},
                {"region": "local", "base_url": "http://h1.example"},
                {"base_url": "http://near.example"},
            ]));
        }
    });
    // Both proxies have the same target; only one of them is pinned.
    let same = update(proxy(2), |body| {
        if let Body::Proxy(proxy) = body {
            proxy.target_id = TargetId::from_bits(1);
        }
    });
    let pin = |regions: &'static [&'static str]| {
        update(proxy(1), move |body| {
            if let Body::Proxy(proxy) = body {
                proxy.regions = regions.iter().map(ToString::to_string).collect();
            }
        })
    };
    let all = [("us", 1), ("eu", 2), ("h1", 0), ("near", 0)];
    let named = |listed: &[(&str, u8)]| -> Vec<(String, u8)> {
        let host = |(name, distance): &(&str, u8)| (format!("{name}.example"), *distance);
        listed.iter().map(host).collect()
    };
    let forms = bench.publish(vec![several, same, pin(&["local"])]);
    let [pinned, open] = endpoints_of(&forms);
    assert_eq!((pinned, open), (named(&all[2..]), named(&all)));
    // What leads to the others is still led back through the proxy.
    let target = &forms[0].as_ref().unwrap().target;
    assert_eq!(target.origins.len(), 4);
    let forms = bench.publish(vec![pin(&["local", "eu"])]);
    assert_eq!(endpoints_of(&forms)[0], named(&all[1..]));
    let forms = bench.publish(vec![pin(&["*"])]);
    assert_eq!(endpoints_of(&forms)[0], named(&all));
}

#[actix_rt::test]
async fn names_follow_their_proxies() {
    let mut bench = Bench::new();
    let called = |bits, alias: Option<&'static str>| {
        update(proxy(bits), move |body| {
            if let Body::Proxy(proxy) = body {
                proxy.alias = alias.map(Into::into);
            }
        })
    };
    bench.publish(vec![called(1, Some("a")), called(2, Some("b"))]);
    // One takes what the other gives up.
    let [one, two] = bench.publish(vec![called(1, Some("b")), called(2, Some("a"))]);
    let find = |bench: &Bench, name: &str| {
        let snapshot = bench.snapshot.as_ref().unwrap();
        snapshot.find(name, jiff::Timestamp::now())
    };
    let is = |found: Option<Arc<CompiledProxy>>, form: &Option<Arc<CompiledProxy>>| {
        found
            .zip(form.clone())
            .is_some_and(|(found, form)| Arc::ptr_eq(&found, &form))
    };
    assert!(is(find(&bench, "b"), &one) && is(find(&bench, "a"), &two));
    // What a proxy was called before leads to it as long as no other is called so.
    let [one, _] = bench.publish(vec![called(1, Some("c")), called(2, None)]);
    assert!(is(find(&bench, "acme.c"), &one) && is(find(&bench, "b"), &one));
    let delete = |bits| Operation::Delete {
        id: proxy(bits),
        precondition: None,
    };
    bench.publish(vec![delete(1)]);
    assert!(
        ["a", "b", "c"].map(|name| find(&bench, name).map(|form| form.id))
            == [
                Some(ProxyId::from_bits(2)),
                Some(ProxyId::from_bits(2)),
                None
            ]
    );
    // An organisation that is gone takes all of its names along.
    let nothing = bench.compiler.compile(&World::default()).snapshot;
    assert_eq!(nothing.names(), 0);
    assert!(nothing.find("a", jiff::Timestamp::now()).is_none());
}

#[actix_rt::test]
async fn an_id_of_two_organisations_leads_to_the_older_one() {
    let mut bench = Bench::new();
    let state = |org: u128| {
        let mut config = bench.config.clone();
        config.org = OrgId::from_bits(org);
        Arc::new(OrgState {
            config: Arc::new(config),
            sealed: Arc::default(),
            sealed_whole: true,
            retired: Arc::default(),
        })
    };
    let states = [ORG - 1, ORG, ORG + 1].map(|org| (OrgId::from_bits(org), state(org)));
    let world = |at: &[usize]| World {
        orgs: at.iter().map(|at| states[*at].clone()).collect(),
        slugs: at
            .iter()
            .map(|at| (format!("org-{at}"), states[*at].0))
            .collect(),
        ..World::default()
    };
    let mut check = |at: &[usize], first: usize| {
        let snapshot = bench.compiler.compile(&world(at)).snapshot;
        for bits in [1, 2].into_iter().filter(|_| !at.is_empty()) {
            let id = ProxyId::from_bits(bits).to_string();
            let found = snapshot.find(&id, jiff::Timestamp::now()).unwrap();
            assert_eq!(found.org, states[first].0, "{at:?}");
        }
        assert_eq!(snapshot.names(), 2 * usize::from(!at.is_empty()), "{at:?}");
    };
    check(&[1], 1);
    // A later organisation takes nothing away, whether it comes or stays; an older one does.
    check(&[1, 2], 1);
    check(&[0, 1, 2], 0);
    check(&[1, 2], 1);
    check(&[2], 2);
    check(&[0, 2], 0);
    // A node that starts with all of them says the same.
    check(&[], 0);
    check(&[0, 1, 2], 0);
}

#[actix_rt::test]
async fn a_proxy_of_other_regions_is_known_with_their_gateways() {
    let mut bench = Bench::new();
    let known = |urls: &[(&str, &str)]| Gateways {
        urls: urls
            .iter()
            .map(|(region, url)| ((*region).to_owned(), (*url).to_owned()))
            .collect(),
    };
    bench.gateways = known(&[
        ("local", "https://here.invalid"),
        ("ap", "https://ap.invalid/base"),
        ("eu", "http://eu.invalid:81"),
        ("mars", "https://mars.invalid:port"),
        ("one", "https://HERE.invalid:443"),
    ]);
    let pin = update(proxy(1), |body| {
        if let Body::Proxy(proxy) = body {
            proxy.regions = ["ap", "eu", "mars", "one"].map(String::from).to_vec();
            proxy.alias = Some("pinned".into());
        }
    });
    let [pinned, other] = bench.publish(vec![pin]).map(Option::unwrap);
    assert!(other.elsewhere.is_none());
    let elsewhere = pinned.elsewhere.as_ref().unwrap();
    assert_eq!(
        (&*elsewhere.own, &*elsewhere.regions),
        ("local", "ap, eu, mars, one")
    );
    let gateways = &elsewhere.gateways;
    let id = ProxyId::from_bits(1);
    let urls: Vec<(&str, &str)> = gateways.iter().map(|to| (&*to.url, &*to.path)).collect();
    let (ap, eu) = (
        format!("https://ap.invalid/base/api/{id}"),
        format!("/base/api/{id}"),
    );
    assert_eq!(urls[0], (ap.as_str(), eu.as_str()));
    let (eu, path) = (
        format!("http://eu.invalid:81/api/{id}"),
        format!("/api/{id}"),
    );
    assert_eq!(urls[1..], [(eu.as_str(), path.as_str())]);
    // Callers are told from strangers here; what else there is applies where it is served.
    assert_eq!(pinned.credentials.len(), 1);
    assert!(pinned.target_credential.is_none() && pinned.destinations.is_empty());

    assert_eq!(elsewhere.nearest(), [0, 1], "unmeasured: as listed");
    gateways[1].gateway.measured(90_000);
    assert_eq!(elsewhere.nearest(), [1, 0]);
    gateways[0].gateway.measured(40_000);
    assert_eq!(elsewhere.nearest(), [0, 1]);

    // A region that moves is dialled where it is now; what stays is measured already.
    bench.gateways = known(&[("eu", "http://eu2.invalid"), ("ap", "https://ap.invalid")]);
    let [moved, same] = bench.publish(vec![]).map(Option::unwrap);
    assert!(Arc::ptr_eq(&same, &other), "it is not made of gateways");
    let moved = moved.elsewhere.as_ref().unwrap();
    assert!(moved.gateways[1].url.starts_with("http://eu2.invalid/"));
    assert!(Arc::ptr_eq(
        &moved.gateways[0].gateway,
        &gateways[0].gateway
    ));
    let back = update(proxy(1), |body| {
        if let Body::Proxy(proxy) = body {
            proxy.regions = proto::regions::everywhere();
        }
    });
    let [served, _] = bench.publish(vec![back]).map(Option::unwrap);
    assert!(served.elsewhere.is_none() && served.destinations.len() == 1);
}

type Row = (&'static str, fn(&mut Proxy), bool);

#[actix_rt::test]
async fn a_last_good_form_gives_nothing_that_was_taken_away_since() {
    let here: [Row; 5] = [
        ("nothing", |_| {}, true),
        (
            "its place",
            |proxy| proxy.regions = vec!["eu".into()],
            false,
        ),
        ("its being active", |proxy| proxy.active = false, false),
        (
            "a caller",
            |proxy| proxy.proxy_credential_ids.clear(),
            false,
        ),
        (
            "what it sends on",
            |proxy| proxy.target_credential_id = Some(CredentialId::from_bits(9)),
            false,
        ),
    ];
    for (taken, change, expected) in here {
        assert_eq!(Bench::new().break_one(change), expected, "{taken}");
    }
    let elsewhere: [Row; 2] = [
        ("nothing", |_| {}, true),
        (
            "its place",
            |proxy| proxy.regions = vec!["ap".into()],
            false,
        ),
    ];
    for (taken, change, expected) in elsewhere {
        let mut bench = Bench::new();
        let gateways =
            ["ap", "eu"].map(|name| (name.to_owned(), format!("https://{name}.invalid")));
        bench.gateways.urls = gateways.into();
        bench.publish(vec![update(proxy(1), |body| {
            if let Body::Proxy(proxy) = body {
                proxy.regions = vec!["eu".into()];
            }
        })]);
        assert_eq!(bench.break_one(change), expected, "elsewhere: {taken}");
    }
}

#[actix_rt::test]
async fn last_good_forms_stay_when_gateways_move() {
    let mut bench = Bench::new();
    assert!(bench.break_one(|_| {}));
    bench.gateways.urls = [("eu".into(), "https://eu.invalid".into())].into();
    assert!(bench.break_one(|_| {}));
}

#[tokio::test]
async fn what_requests_have_pinned_is_over_with_its_organisation_and_not_with_its_name() {
    let mut bench = Bench::new();
    let rename = |name: &'static str| {
        update(proxy(1), move |body| {
            let Body::Proxy(proxy) = body else {
                panic!("a proxy");
            };
            proxy.name = name.into();
        })
    };
    let [before, other] = bench.publish(vec![rename("one")]).map(Option::unwrap);
    let [now, _] = bench.publish(vec![rename("two")]).map(Option::unwrap);
    assert!(!Arc::ptr_eq(&before, &now));
    let pinned = [before, now, other];
    let org = bench.config.org;
    let state = bench.compiler.before[&org].state.clone();
    let world = |revision, slug: Option<&str>| World {
        revision: proto::store::Revision(revision),
        orgs: slug.iter().map(|_| (org, state.clone())).collect(),
        slugs: slug.iter().map(|slug| ((*slug).to_owned(), org)).collect(),
        ..World::default()
    };
    bench.compiler.compile(&world(10, Some("renamed")));
    assert!(pinned.iter().all(|form| !form.end.is_known()));
    bench.compiler.compile(&world(11, None));
    let now = jiff::Timestamp::now();
    assert!(pinned.iter().all(|form| form.end.is_over(now)));
}

/// Forty proxies of two targets, one of which cannot be compiled.
#[tokio::test]
async fn forms_are_the_same_however_many_threads_make_them() {
    let mut bench = Bench::new();
    let more = (3..=40).map(|bits| {
        let fields = json!({
            "target_id": TargetId::from_bits(bits % 2 + 1).to_string(),
            "proxy_credential_ids": [caller().to_string()], "acknowledge_open": true,
        });
        create(proxy(bits), Body::Proxy(parsed(fields)))
    });
    bench.publish(more.collect());
    let org = bench.config.org;
    let state = Arc::clone(&bench.compiler.before[&org].state);
    let mut state = OrgState::clone(&state);
    let objects = &mut Arc::make_mut(&mut state.config).objects;
    let object = Arc::make_mut(objects.get_mut(&proxy(7)).unwrap());
    let Body::Proxy(broken) = &mut object.body else {
        panic!("it is a proxy");
    };
    broken
        .proxy_credential_ids
        .push(CredentialId::from_bits(99));
    let state = Arc::new(state);
    let compiled = |threads: usize| {
        let nothing = (None, false);
        let compiler = &bench.compiler;
        let due = [compiler.due("acme", &state, nothing, &mut Replaced::default())];
        let made = forms::by_threads(compiler, &due, threads);
        let [(due, made)] = <[_; 1]>::try_from(Vec::from_iter(due.into_iter().zip(made)))
            .unwrap_or_else(|_| panic!("one organisation"));
        due.taking(made, "local", &mut Replaced::default())
    };
    let one = compiled(1);
    assert_eq!((one.proxies.len(), one.faults.len()), (39, 1));
    for threads in [0, 2, 3, 64] {
        let several = compiled(threads);
        assert!(several.proxies.keys().eq(one.proxies.keys()), "{threads}");
        assert_eq!(several.faults, one.faults);
        assert_eq!(several.faulty, one.faulty);
        for form in several.proxies.values() {
            let first = several.proxies.values();
            let mut first = first.filter(|other| other.target.id == form.target.id);
            let first = first.next().expect("at least itself");
            assert!(Arc::ptr_eq(&first.target, &form.target), "compiled once");
        }
    }
}
