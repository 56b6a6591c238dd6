//! What `deploy/` starts: every argument is one that the command line knows, every setting one that
//! is read, and what belongs together in manifests does.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Parser;
use serde_json::Value;

use crate::cli::{Cli, Command};
use crate::settings::{self, Settings};

fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("deploy")
        .join(path)
}

fn documents(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    let read = serde_saphyr::from_multiple(&text);
    read.unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every manifest for Kubernetes.
fn manifests() -> Vec<Value> {
    let entries = std::fs::read_dir(deploy("kubernetes")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let yaml = paths.filter(|path| path.extension().is_some_and(|end| end == "yaml"));
    let all: Vec<Value> = yaml.flat_map(|path| documents(&path)).collect();
    assert!(all.len() > 10, "the manifests were not found");
    all
}

fn text<'v>(value: &'v Value, pointer: &str) -> &'v str {
    let found = value.pointer(pointer).and_then(Value::as_str);
    found.unwrap_or_else(|| panic!("{pointer} is missing in {value}"))
}

fn number(value: &Value, pointer: &str) -> u64 {
    let found = value.pointer(pointer).and_then(Value::as_u64);
    found.unwrap_or_else(|| panic!("{pointer} is missing in {value}"))
}

fn list<'v>(value: &'v Value, pointer: &str) -> impl Iterator<Item = &'v Value> {
    let found = value.pointer(pointer).and_then(Value::as_array);
    found.into_iter().flatten()
}

fn of_kind<'m>(manifests: &'m [Value], kind: &str) -> Vec<&'m Value> {
    let found = manifests.iter().filter(|manifest| manifest["kind"] == kind);
    found.collect()
}

/// The command that these arguments give.
fn parsed<'a>(arguments: impl Iterator<Item = &'a Value>) -> Command {
    let arguments = arguments.map(|argument| argument.as_str().unwrap());
    let words = std::iter::once("requestrocket").chain(arguments);
    let cli = Cli::try_parse_from(words);
    cli.unwrap_or_else(|error| panic!("{error}")).command
}

/// The settings of a file and an environment.
fn settings(toml: &str, environment: BTreeMap<String, String>) -> Settings {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("settings.toml");
    std::fs::write(&file, toml).unwrap();
    let ours = |(name, _): &(String, String)| name.starts_with("REQUESTROCKET_");
    let environment = environment.into_iter().filter(ours);
    let settings = settings::load(&Settings::default(), Some(&file), environment);
    settings.unwrap_or_else(|error| panic!("{error}"))
}

/// A pod of a set, and its container.
struct Pod<'m> {
    set: &'m Value,
    name: String,
    container: &'m Value,
}

impl<'m> Pod<'m> {
    /// Those of every set.
    fn all(manifests: &'m [Value]) -> Vec<Self> {
        let mut pods = Vec::new();
        for set in of_kind(manifests, "StatefulSet") {
            for at in 0..number(set, "/spec/replicas") {
                for container in list(set, "/spec/template/spec/containers") {
                    let name = format!("{}-{at}", text(set, "/metadata/name"));
                    pods.push(Self {
                        set,
                        name,
                        container,
                    });
                }
            }
        }
        pods
    }

    /// Of those that run the gateway's image: the role, and what it is started with.
    fn role(&self) -> Option<(&'static str, &'m str)> {
        let image = text(self.container, "/image");
        (!image.ends_with("-etcd")).then(|| {
            let role = match parsed(list(self.container, "/args")) {
                Command::Node(_) => "node",
                Command::Control(_) => "control",
                other => panic!("{other:?}"),
            };
            let file = list(self.container, "/args").last().unwrap();
            (role, file.as_str().unwrap())
        })
    }

    fn environment(&self) -> BTreeMap<String, String> {
        let own = list(self.container, "/env").map(|variable| {
            let value = variable["value"].as_str().unwrap_or_default();
            let value = value.replace("$(POD_NAME)", &self.name);
            (text(variable, "/name").to_owned(), value)
        });
        own.collect()
    }

    /// How others call it.
    fn host(&self) -> String {
        format!("{}.{}", self.name, text(self.set, "/spec/serviceName"))
    }

    fn port(&self, name: &str) -> Option<u64> {
        let mut ports = list(self.container, "/ports");
        let port = ports.find(|port| port["name"] == name)?;
        Some(number(port, "/containerPort"))
    }

    /// The key of a volume of which a file is, and the name of what fills the volume.
    fn source(&self, path: &str) -> (&'m Value, String) {
        let mut mounts = list(self.container, "/volumeMounts");
        let mount = mounts.find(|mount| Path::new(path).starts_with(text(mount, "/mountPath")));
        let mount = mount.unwrap_or_else(|| panic!("{path} is on no volume of {}", self.name));
        let mut volumes = list(self.set, "/spec/template/spec/volumes");
        let volume = volumes.find(|volume| volume["name"] == mount["name"]);
        let below = Path::new(path)
            .strip_prefix(text(mount, "/mountPath"))
            .unwrap();
        let key = match mount["subPath"].as_str() {
            Some(key) => key.to_owned(),
            None => below.display().to_string(),
        };
        (
            volume.unwrap_or_else(|| panic!("{mount} has no volume")),
            key,
        )
    }
}

#[test]
fn what_containers_of_compose_run_is_known() {
    let compose = documents(&deploy("compose.yaml")).remove(0);
    for (service, role, toml) in [
        ("x-control", "control", "compose/control.toml"),
        ("x-node", "node", "compose/node.toml"),
    ] {
        let command = parsed(list(&compose, &format!("/{service}/command")));
        assert_eq!(matches!(command, Command::Node(_)), role == "node");
        let toml = std::fs::read_to_string(deploy(toml)).unwrap();
        let services = compose["services"].as_object().unwrap();
        for (name, service) in services.iter().filter(|(name, _)| name.starts_with(role)) {
            let fields = service["environment"].as_object().unwrap().iter();
            let fields = fields.map(|(name, value)| (name.clone(), value.as_str().unwrap().into()));
            let settings = settings(&toml, fields.collect());
            let cert = settings.link.cert_file.unwrap();
            assert!(cert.ends_with(format!("{name}.pem")), "{cert:?}");
        }
    }
    let mut probe = list(&compose, "/x-ready/test").skip(1);
    assert_eq!(probe.next().unwrap(), "requestrocket");
    assert!(matches!(parsed(probe), Command::Health(_)));
}

#[test]
fn what_units_run_is_known() {
    for role in ["node", "control", "standalone"] {
        let unit = deploy("systemd").join(format!("requestrocket-{role}.service"));
        let unit = std::fs::read_to_string(unit).unwrap();
        let told = |name: &str| -> Vec<&str> {
            let lines = unit.lines().filter_map(|line| line.split_once('='));
            lines
                .filter(|(key, _)| *key == name)
                .map(|(_, value)| value)
                .collect()
        };
        let [start] = told("ExecStart")[..] else {
            panic!("{role} is not started once");
        };
        let words: Vec<Value> = start.split(' ').skip(1).map(Value::from).collect();
        let takes_over = match parsed(words.iter()) {
            Command::Node(args) if role == "node" => args.node.take_over,
            Command::Control(args) if role == "control" => args.node.take_over,
            Command::Standalone(args) if role == "standalone" => args.node.take_over,
            _ => panic!("{start}"),
        };
        assert!(takes_over, "{start}");
        let environment = told("Environment").into_iter();
        let environment = environment.map(|line| line.split_once('=').unwrap());
        let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let settings = settings("", environment.collect());
        assert_eq!(settings.data_dir, Path::new("/var/lib/requestrocket"));
        let stop_s: u64 = told("TimeoutStopSec")[0].parse().unwrap();
        let drain_ms = settings.gateway.drain_ms + settings.gateway.drain_idle_ms;
        assert!(stop_s * 1_000 > drain_ms + 10_000, "{role}");
        // What cannot be used is not tried again: see `CannotStart`.
        assert_eq!(told("RestartPreventExitStatus"), ["2"], "{role}");
    }
}

#[test]
fn what_pods_run_is_known_and_on_their_volumes() {
    let manifests = manifests();
    let config = of_kind(&manifests, "ConfigMap")[0];
    let pods = Pod::all(&manifests);
    let hosts: Vec<String> = pods.iter().map(Pod::host).collect();
    let mut seen = Vec::new();
    for pod in &pods {
        let Some((role, file)) = pod.role() else {
            continue;
        };
        seen.push(role);
        let (volume, key) = pod.source(file);
        assert_eq!(volume["configMap"]["name"], config["metadata"]["name"]);
        let toml = text(config, &format!("/data/{key}"));
        let settings = settings(toml, pod.environment());
        for (listen, port) in [
            (settings.admin.listen, "admin"),
            (settings.link.listen, "link"),
            (settings.peers.listen, "peers"),
        ] {
            assert_eq!(
                listen.map(|at| u64::from(at.port())),
                pod.port(port),
                "{port}"
            );
        }
        let (callers, api) = match role {
            "node" => (Some(settings.gateway.listen.port()), None),
            _ => (None, Some(settings.control.listen.port())),
        };
        assert_eq!(callers.map(u64::from), pod.port("gateway"));
        assert_eq!(api.map(u64::from), pod.port("api"));
        for endpoint in &settings.store.endpoints {
            let host = endpoint
                .trim_start_matches("http://")
                .trim_end_matches(":2379");
            assert!(hosts.iter().any(|known| known == host), "{endpoint}");
        }
        for endpoint in &settings.link.endpoints {
            let host = endpoint.trim_end_matches(":8082");
            assert!(hosts.iter().any(|known| known == host), "{endpoint}");
        }
        let secrets = [
            settings.link.cert_file,
            settings.link.key_file,
            settings.link.ca_file,
            settings.keys.ring_file,
            settings.keys.public_file,
            settings.control.admin_token_file,
            pod.environment()
                .get("REQUESTROCKET_ADMIN_TOKEN_FILE")
                .map(PathBuf::from),
        ];
        for secret in secrets.into_iter().flatten() {
            let (volume, _) = pod.source(secret.to_str().unwrap());
            let name = format!("requestrocket-{role}");
            assert_eq!(volume["secret"]["secretName"], name, "{secret:?}");
        }
        if role == "node" {
            let replicas = number(pod.set, "/spec/replicas");
            assert_eq!(u64::from(settings.limits.nodes), replicas);
            assert_eq!(settings.node_name.as_deref(), Some(pod.name.as_str()));
            let advertised = settings.peers.advertise.unwrap();
            assert_eq!(advertised, format!("{}:8083", pod.host()));
        }
    }
    seen.dedup();
    seen.sort_unstable();
    assert_eq!(seen, ["control", "node"]);
}

#[test]
fn pods_are_probed_where_they_answer_and_have_the_time_that_they_need_to_end() {
    let manifests = manifests();
    let config = of_kind(&manifests, "ConfigMap")[0];
    for pod in Pod::all(&manifests) {
        let Some((role, file)) = pod.role() else {
            continue;
        };
        for (probe, path) in [
            ("startupProbe", "/readyz"),
            ("readinessProbe", "/readyz"),
            ("livenessProbe", "/healthz"),
        ] {
            let asked = &pod.container[probe]["httpGet"];
            assert_eq!(
                (&asked["path"], &asked["port"]),
                (&path.into(), &"admin".into())
            );
        }
        let key = Path::new(file).file_name().unwrap().to_str().unwrap();
        let toml = text(config, &format!("/data/{key}"));
        let settings = settings(toml, pod.environment());
        let sleeps = list(pod.container, "/lifecycle/preStop/exec/command");
        let sleeps: Vec<&str> = sleeps.filter_map(Value::as_str).collect();
        let ["sleep", seconds] = sleeps.as_slice() else {
            panic!("{sleeps:?}");
        };
        let sleep_ms = seconds.parse::<u64>().unwrap() * 1_000;
        let drain_ms = match role {
            "node" => settings.gateway.drain_idle_ms + settings.gateway.drain_ms,
            // Calls in hand, after a second.
            _ => 11_000,
        };
        let grace = number(pod.set, "/spec/template/spec/terminationGracePeriodSeconds");
        // Records are delivered after that.
        assert!(grace * 1_000 >= sleep_ms + drain_ms + 20_000, "{role}");
    }
}

#[test]
fn pods_have_no_rights_that_they_do_not_need() {
    let manifests = manifests();
    for pod in Pod::all(&manifests) {
        let spec = &pod.set["spec"]["template"]["spec"];
        assert_eq!(spec["automountServiceAccountToken"], false, "{}", pod.name);
        // `REQUESTROCKET_CONTROL_PORT` of a service would be taken for a setting.
        assert_eq!(spec["enableServiceLinks"], false, "{}", pod.name);
        assert_eq!(
            spec["securityContext"]["runAsNonRoot"], true,
            "{}",
            pod.name
        );
        assert_ne!(number(spec, "/securityContext/runAsUser"), 0);
        let own = &pod.container["securityContext"];
        assert_eq!(own["readOnlyRootFilesystem"], true, "{}", pod.name);
        assert_eq!(own["allowPrivilegeEscalation"], false, "{}", pod.name);
        assert_eq!(own["capabilities"]["drop"], serde_json::json!(["ALL"]));
        // What is secret comes from a file.
        for (name, value) in pod.environment() {
            let is_secret = name.contains("TOKEN") || name.contains("PASSWORD");
            assert!(!is_secret || name.ends_with("_FILE"), "{name}={value}");
        }
        for volume in list(spec, "/volumes").filter(|volume| volume["secret"].is_object()) {
            assert_eq!(number(volume, "/secret/defaultMode"), 0o440);
        }
    }
}

#[test]
fn services_and_budgets_are_of_pods_that_there_are() {
    let manifests = manifests();
    let sets = of_kind(&manifests, "StatefulSet");
    let pods = Pod::all(&manifests);
    for set in &sets {
        let labels = &set["spec"]["template"]["metadata"]["labels"];
        assert_eq!(&set["spec"]["selector"]["matchLabels"], labels);
        let of_set = |budget: &&&Value| &budget["spec"]["selector"]["matchLabels"] == labels;
        let budgets = of_kind(&manifests, "PodDisruptionBudget");
        let budget = budgets.iter().find(of_set).expect("a budget");
        assert_eq!(number(budget, "/spec/maxUnavailable"), 1);
        let named = text(set, "/spec/serviceName");
        let services = of_kind(&manifests, "Service");
        let service = services
            .iter()
            .find(|service| service["metadata"]["name"] == named);
        assert_eq!(service.expect("its service")["spec"]["clusterIP"], "None");
    }
    for service in of_kind(&manifests, "Service") {
        let selector = &service["spec"]["selector"];
        let of_service =
            |pod: &&Pod<'_>| &pod.set["spec"]["template"]["metadata"]["labels"] == selector;
        let pod = pods.iter().find(of_service).expect("pods of the service");
        for port in list(service, "/spec/ports") {
            let target = pod.port(text(port, "/targetPort"));
            assert_eq!(target, Some(number(port, "/port")), "{port}");
        }
    }
}
