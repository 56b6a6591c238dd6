//! The way back: versions, diff and rollback on the command line, and what they do to callers.

use serde_json::{Value, json};

use crate::harness::gateway::{Gateway, Start, binary};
use crate::harness::upstream::Upstream;

/// Runs a client command; gives what it said, and whether it succeeded.
pub fn run(gateway: &Gateway, arguments: &[&str]) -> (bool, String) {
    let output = gateway.command(arguments);
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    (output.status.success(), said)
}

#[test]
fn lists_of_the_past_go_on_where_their_last_line_says() {
    let gateway = Gateway::start();
    for name in ["one", "two", "three"] {
        let target = json!({"name": name, "base_url": format!("https://{name}.example")});
        gateway.create("/targets", target);
    }
    for list in ["versions", "audit"] {
        let whole = run(&gateway, &[list]).1;
        let (mut pages, mut cursor) = (String::new(), None::<String>);
        for _ in 0..100 {
            let mut arguments = vec![list, "--limit", "1"];
            arguments.extend(
                cursor
                    .iter()
                    .flat_map(|cursor| ["--cursor", cursor.as_str()]),
            );
            let (good, page) = run(&gateway, &arguments);
            assert!(good, "{page}");
            let (shown, next) = match page.trim_end().rsplit_once("more follow: --cursor ") {
                Some((shown, next)) => (shown.to_owned(), Some(next.to_owned())),
                None => (page, None),
            };
            pages.push_str(&shown);
            cursor = next;
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!(cursor, None, "{list} ends");
        assert!(whole.lines().count() >= 4, "{whole}");
        assert_eq!(pages.trim_end(), whole.trim_end(), "{list}");
    }
}

#[test]
fn a_bad_change_is_found_and_taken_back() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let versions = |limit: &str| -> Value {
        let (good, said) = run(
            &gateway,
            &["versions", "--limit", limit, "--output", "json"],
        );
        assert!(good, "{said}");
        serde_json::from_str(&said).expect("JSON")
    };
    let good = versions("1")["items"][0]["n"].as_u64().expect("a number");
    let rule = json!({"effect": "deny", "message": "oops"});
    gateway.create(&format!("/proxies/{}/rules", proxy.id), rule);
    let bad = (good + 1).to_string();
    assert_eq!(proxy.get("/").status(), 400);

    let (_, listed) = run(&gateway, &["versions"]);
    assert!(listed.trim_start().starts_with(&bad), "{listed}");
    let (_, diff) = run(&gateway, &["diff", &bad]);
    assert!(diff.starts_with("+ rul_"), "{diff}");
    let good = good.to_string();
    let (done, said) = run(&gateway, &["rollback", &good, "--dry-run"]);
    assert!(
        done && said.starts_with("- rul_") && said.contains("dry-run"),
        "{said}"
    );
    assert_eq!(proxy.get("/").status(), 400);
    let (done, said) = run(&gateway, &["rollback", &good]);
    assert!(done, "{said}");
    assert_eq!(
        proxy.get("/").status(),
        200,
        "in effect when the command ends"
    );
    let (done, said) = run(&gateway, &["rollback", "4711"]);
    assert!(!done && said.contains("4711"), "{said}");
}

/// Behind one address may stand several control planes, which the next command may find in another
/// order: it waits for what the last one wrote.
#[test]
fn a_command_asks_for_what_the_one_before_it_wrote() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    gateway.proxy(&upstream.url());
    let dir = tempfile::tempdir().expect("a folder");
    let state = dir.path().join("requestrocket/written.json");
    let run = |arguments: &[&str]| {
        let mut command = gateway.client(arguments);
        let output = command.env("XDG_STATE_HOME", dir.path()).output();
        let output = output.expect("the binary runs");
        let said = [output.stdout, output.stderr].concat();
        (
            output.status.success(),
            String::from_utf8_lossy(&said).into_owned(),
        )
    };
    assert!(run(&["export"]).0);
    assert!(!state.exists(), "nothing was written");
    let newest = |(good, said): (bool, String)| -> u64 {
        assert!(good, "{said}");
        let versions: Value = serde_json::from_str(&said).expect("JSON");
        versions["items"][0]["n"].as_u64().expect("a number")
    };
    let listing = ["versions", "--limit", "1", "--output", "json"];
    let n = newest(run(&listing));
    let back = (n - 1).to_string();
    let (good, said) = run(&["rollback", &back]);
    assert!(good, "{said}");
    let kept = std::fs::read_to_string(&state).expect("what is remembered");
    assert!(kept.contains(&format!("={}\"", n + 1)), "{kept}");
    assert_eq!(newest(run(&listing)), n + 1);
    // As if another control plane had published that.
    let ahead = kept.replace(&format!("={}\"", n + 1), &format!("={}\"", n + 9));
    std::fs::write(&state, ahead).expect("a file");
    let (good, said) = run(&listing);
    assert!(!good && said.contains("has not arrived here yet"), "{said}");
    // What is of this place alone does not wait.
    let (good, said) = run(&["telemetry"]);
    assert!(good, "{said}");
}

#[test]
fn a_file_of_operations_is_one_version_or_none() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("changes.yaml");
    let path = file.to_str().expect("a path");
    let write = |second: &str| {
        let first = format!("  - create: rules\n    parent: {}\n", proxy.id);
        let rule = format!("operations:\n{first}    object: {{effect: deny}}\n{second}");
        std::fs::write(&file, rule).expect("a file");
    };
    write("  - delete: tgt_01h00000000000000000000000\n");
    let (done, said) = run(&gateway, &["changes", path]);
    assert!(!done, "{said}");
    assert_eq!(proxy.get("/").status(), 200, "all or none");
    write("");
    let (done, said) = run(&gateway, &["changes", path, "--dry-run"]);
    assert!(done && said.starts_with("+ (new rule) "), "{said}");
    assert_eq!(proxy.get("/").status(), 200);
    let (done, said) = run(&gateway, &["changes", path]);
    assert!(done && said.starts_with("+ rul_"), "{said}");
    assert_eq!(
        proxy.get("/").status(),
        400,
        "in effect when the command ends"
    );
}

#[test]
fn a_rollback_past_a_rotation_revives_no_key() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let newest = gateway.get("/versions?limit=1")["items"][0]["n"].clone();
    let rotate = format!("/credentials/{}/rotate", proxy.proxy_credential);
    let rotated = gateway.api("POST", &rotate, Some(&json!({}))).json();
    let key = rotated["secret"]["key"].as_str().expect("a key").to_owned();
    let rollback = gateway.api("POST", &format!("/versions/{newest}/rollback"), None);
    assert_eq!(rollback.status(), 200, "{}", rollback.text());
    let renewed = proxy
        .request("GET", "/")
        .without("authorization")
        .field("x-api-key", &key);
    assert_eq!(proxy.get("/").status(), 401, "the old key is over");
    assert_eq!(proxy.send(&renewed).status(), 200);
    let (_, folder) = gateway.stop();
    let gateway = Gateway::inside(folder, &Start::default());
    assert_eq!(proxy.request("GET", "/").send(&gateway.url).status(), 401);
    assert_eq!(renewed.send(&gateway.url).status(), 200);
}

/// A configuration that never touched the API by hand: a file, a key from the environment, a call.
#[test]
fn a_file_is_applied_called_through_changed_and_audited() {
    let gateway = Gateway::start();
    let upstream = Upstream::json(r#"{"id": 1, "secret": "x"}"#);
    let (origin, folder) = (upstream.url(), tempfile::tempdir().expect("a folder"));
    let file = folder.path().join("gateway.yaml");
    let write = |methods: &str| {
        let text = format!(
            "format: requestrocket/1\n\
             targets:\n  - name: upstream\n    base_url: {origin}\n    allow_http: true\n    \
             allow_networks: [127.0.0.0/8]\n\
             credentials:\n  - {{name: team, kind: proxy, auth_type: api_key}}\n  - name: key\n    \
             kind: target\n    auth_type: bearer\n    hosts: ['{origin}']\n    \
             secret: {{token: {{env: UPSTREAM_KEY}}}}\n\
             proxies:\n  - alias: api\n    target: upstream\n    target_credential: key\n    \
             proxy_credentials: [team]\n    \
             rules:\n      - {{effect: deny, methods: [{methods}]}}\n    \
             filters:\n      - {{op: destroy, paths: ['$.secret']}}\n"
        );
        std::fs::write(&file, text).expect("a file");
    };
    write("DELETE");
    let path = file.to_str().expect("a path");
    let apply = |arguments: &[&str], key: Option<&str>| {
        let mut command = binary();
        command.args(["apply", path, "--control", &gateway.control]);
        command
            .args(arguments)
            .env("REQUESTROCKET_TOKEN", &gateway.token);
        if let Some(key) = key {
            command.env("UPSTREAM_KEY", key);
        }
        let output = command.output().expect("the binary runs");
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        (output.status.success(), said)
    };
    let (done, said) = apply(&[], None);
    assert!(!done && said.contains("no variable UPSTREAM_KEY"), "{said}");
    let (done, said) = apply(&["--output", "json"], Some("sk_upstream_1"));
    assert!(done, "{said}");
    let applied: Value = serde_json::from_str(&said).expect("JSON");
    let key = applied["generated"][0]["secret"]["key"]
        .as_str()
        .expect("a key")
        .to_owned();
    let call = |method: &str| {
        let request = crate::harness::http::Request::new(method, "/api/api/things");
        request.field("authorization", &key).send(&gateway.url)
    };
    let answer = call("GET");
    assert_eq!(
        (answer.status(), answer.text()),
        (200, r#"{"id": 1}"#.to_owned())
    );
    assert_eq!(call("DELETE").status(), 400);
    assert_eq!(call("PUT").status(), 200);

    let (done, said) = apply(&[], Some("sk_upstream_1"));
    assert!(done && said.contains("nothing was to be changed"), "{said}");
    write("PUT");
    let (done, said) = apply(&["--dry-run"], Some("sk_upstream_1"));
    assert!(
        done && said.contains("~ rul_") && said.contains("dry-run"),
        "{said}"
    );
    assert_eq!(call("DELETE").status(), 400);
    let (done, said) = apply(&[], Some("sk_upstream_1"));
    assert!(done && said.contains("is published"), "{said}");
    assert_eq!((call("DELETE").status(), call("PUT").status()), (200, 400));

    let (done, exported) = run(&gateway, &["export"]);
    assert!(
        done && exported.starts_with("format: requestrocket/1"),
        "{exported}"
    );
    assert!(
        !exported.contains("sk_upstream_1") && !exported.contains(&key),
        "{exported}"
    );
    std::fs::write(&file, &exported).expect("a file");
    let (done, said) = apply(&[], None);
    assert!(done && said.contains("nothing was to be changed"), "{said}");
    let (done, audit) = run(&gateway, &["audit", "--limit", "2"]);
    assert!(done && audit.contains("from 127.0.0.1"), "{audit}");
    assert!(
        audit.contains("+ rul_") && audit.contains("~ rul_"),
        "{audit}"
    );
    std::fs::write(&file, "targets: [{base_ulr: x}]").expect("a file");
    let (done, said) = apply(&[], None);
    assert!(
        !done && said.contains("/targets/0/base_ulr") && said.contains("/format"),
        "{said}"
    );
}
