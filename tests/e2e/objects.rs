//! `requestrocket get`, `create`, `set` and `delete`: one object of any kind, found by what a
//! person calls it.

use std::io::Write;
use std::process::{Output, Stdio};

use serde_json::{Value, json};

use crate::harness::gateway::Gateway;
use crate::harness::http::Request;
use crate::harness::upstream::Upstream;
use crate::harness::wait_for;

/// Runs a command with this on its standard input.
fn fed(gateway: &Gateway, arguments: &[&str], input: &str) -> Output {
    let mut child = gateway
        .client(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let mut stdin = child.stdin.take().expect("its input");
    // It may end before it reads.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    child.wait_with_output().expect("it ends")
}

/// What a command says that succeeds.
pub fn done(gateway: &Gateway, arguments: &[&str], input: &str) -> String {
    let output = fed(gateway, arguments, input);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    String::from_utf8(output.stdout).expect("text")
}

/// The JSON of one that succeeds.
pub fn told(gateway: &Gateway, arguments: &[&str], input: &str) -> Value {
    let arguments = [arguments, &["--output", "json"]].concat();
    serde_json::from_str(&done(gateway, &arguments, input)).expect("one JSON text")
}

/// What one says that fails.
pub fn refused(gateway: &Gateway, arguments: &[&str]) -> String {
    let output = fed(gateway, arguments, "");
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {output:?}");
    assert_eq!(output.stdout, b"", "{arguments:?}");
    String::from_utf8(output.stderr).expect("text")
}

fn id(object: &Value) -> &str {
    object["id"].as_str().expect("an id")
}

#[test]
fn what_a_proxy_needs_is_made_object_by_object_and_called_by_name() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let url = format!("base_url={}", upstream.url());
    let target = told(
        &gateway,
        &[
            "create",
            "target",
            "name=crm",
            &url,
            "allow_http=true",
            "allow_networks=127.0.0.0/8",
        ],
        "",
    );
    let host = format!("hosts={}", upstream.url());
    let arguments = [
        "create",
        "credential",
        "name=crm key",
        "kind=target",
        "auth_type=bearer",
        &host,
        "--secret-stdin",
    ];
    let injected = told(&gateway, &arguments, "sk-live-of-the-crm-1\n");
    assert!(!injected.to_string().contains("sk-live"), "{injected}");
    let caller = [
        "create",
        "credentials",
        "name=team",
        "kind=proxy",
        "auth_type=api_key",
    ];
    let said = done(&gateway, &caller, "");
    let (made, key) = said.split_once('\n').expect("two lines");
    assert!(
        made.starts_with("made credential crd_") && made.ends_with("(team)"),
        "{said}"
    );
    assert!(key.trim_end().ends_with("(shown only now)"), "{said}");
    let key = key.split_whitespace().nth(1).expect("a key").to_owned();
    let caller = told(&gateway, &["get", "credential", "team"], "");
    assert!(!caller.to_string().contains(&key), "{caller}");
    let of = |field: &str, object: &Value| format!("{field}={}", id(object));
    let said = done(
        &gateway,
        &[
            "create",
            "proxy",
            "alias=crm",
            &of("target_id", &target),
            &of("target_credential_id", &injected),
            &of("proxy_credential_ids", &caller),
            "limits.per_minute=600",
        ],
        "",
    );
    assert!(
        said.contains("\nurl http") && said.contains("/crm\n"),
        "{said}"
    );
    let call = |method: &str| {
        let request = Request::new(method, "/api/crm/x");
        let request = request.field("authorization", &format!("Bearer {key}"));
        request.send(&gateway.url).status()
    };
    wait_for("the proxy", || (call("DELETE") == 200).then_some(()));
    let authorization = upstream.last().field("authorization").map(str::to_owned);
    assert_eq!(
        authorization.as_deref(),
        Some("Bearer sk-live-of-the-crm-1")
    );

    // A rule hangs on it, and is found without saying on what.
    let rule = [
        "create",
        "rule",
        "--on",
        "proxies/crm",
        "effect=deny",
        "methods=DELETE",
    ];
    let rule = told(&gateway, &rule, "");
    wait_for("the rule", || (call("DELETE") == 400).then_some(()));
    let got = told(&gateway, &["get", "rules", id(&rule)], "");
    assert_eq!(got["methods"], json!(["DELETE"]));
    let set = [
        "set",
        "rule",
        id(&rule),
        "methods=GET,PUT",
        "--on",
        "proxy/crm",
    ];
    assert!(done(&gateway, &set, "").contains("methods: [\"DELETE\"] -> [\"GET\",\"PUT\"]"));
    wait_for("the change", || (call("DELETE") == 200).then_some(()));

    let said = done(
        &gateway,
        &["set", "proxy", "crm", "active=false", "name=CRM"],
        "",
    );
    assert!(said.contains("    active: true -> false\n"), "{said}");
    wait_for("the end of calls", || (call("POST") == 403).then_some(()));
    let again = done(&gateway, &["set", "proxy", "CRM", "active=false"], "");
    assert_eq!(again, "nothing was to be changed\n");
    let limits = told(&gateway, &["set", "proxy", "crm", "limits=null"], "")["limits"].clone();
    assert_eq!(limits, json!({}));

    let said = done(&gateway, &["get", "proxy", "crm"], "");
    assert!(said.contains("\nalias: crm\n"), "YAML: {said}");
}

#[test]
fn a_file_holds_what_is_made_and_where_its_secrets_are() {
    let gateway = Gateway::start();
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(at("key"), "sk-live-of-a-file\n").expect("a file");
    let document = format!(
        "alias: whole\ntarget: {{base_url: https://api.example.com}}\ncredentials:\n\
         - {{kind: target, auth_type: bearer, secret: {{token: {{file: {}}}}}}}\n\
         - {{kind: proxy, auth_type: api_key}}\n",
        at("key")
    );
    std::fs::write(at("proxy.yaml"), &document).expect("a file");
    let file = at("proxy.yaml");
    let made = ["create", "proxies", "--file", &file, "active=false"];
    let said = done(&gateway, &made, "");
    assert!(
        said.contains("(shown only now)") && !said.contains("sk-live"),
        "{said}"
    );
    let whole = told(&gateway, &["get", "proxy", "whole"], "");
    assert_eq!(whole["active"], false);
    let twice = ["create", "proxies", "--file", &file, "alias=other"];
    assert!(refused(&gateway, &twice).contains("alias stands in the file and in an argument"));
    let own = |secret: Value| {
        json!({"kind": "target", "auth_type": "api_key", "hosts": ["a.example"],
               "secret": {"key": secret}})
        .to_string()
    };
    let create = ["create", "credential", "--file", "-"];
    let made = told(&gateway, &create, &own(json!({"file": at("key")})));
    assert_eq!(made["secret"]["state"], "active");
    let output = fed(&gateway, &create, &own(json!("hush")));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("/secret/key holds a secret in clear") && !said.contains("hush"),
        "{said}"
    );
}

#[test]
fn tokens_and_organisations_are_made_used_listed_and_ended() {
    let gateway = Gateway::start();
    let team = done(
        &gateway,
        &["create", "org", "slug=team-a", "name=Team A"],
        "",
    );
    assert!(
        team.starts_with("made organisation org_") && team.ends_with("(team-a)\n"),
        "{team}"
    );
    let of = ["--org", "team-a"];
    let token = told(
        &gateway,
        &[&["create", "token", "name=ci", "role=admin"][..], &of].concat(),
        "",
    );
    let secret = token["secret"]["token"]
        .as_str()
        .expect("a token")
        .to_owned();
    assert!(secret.starts_with("rr_api_"), "{token}");
    let as_team = |arguments: &[&str]| {
        let mut command = gateway.client(&[arguments, &of].concat());
        command
            .env("REQUESTROCKET_TOKEN", &secret)
            .output()
            .expect("the binary runs")
    };
    wait_for("the token", || {
        as_team(&["list", "targets"]).status.success().then_some(())
    });
    // It may see its own organisation although it may not list them.
    let own = as_team(&["get", "org", "team-a", "--output", "json"]);
    assert!(own.status.success(), "{own:?}");
    for (arguments, words) in [
        (&["list", "orgs"][..], "operators"),
        (&["get", "org", "team-b"], "Not found"),
        (&["set", "org", "team-a", "name=X"], "operators"),
    ] {
        let output = as_team(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && said.contains(words),
            "{arguments:?}: {said}"
        );
    }
    let listed = done(&gateway, &[&["list", "tokens"][..], &of].concat(), "");
    assert!(
        listed.contains("ci") && !listed.contains(&secret),
        "{listed}"
    );
    let revoke = [&["delete", "token", "ci", "--yes"][..], &of].concat();
    let said = done(&gateway, &revoke, "");
    assert_eq!(said, format!("deleted token {} (ci)\n", id(&token)));
    let after = as_team(&["list", "targets"]);
    assert!(!after.status.success());
    let renamed = ["set", "org", "team-a", "name=Team B"];
    assert!(done(&gateway, &renamed, "").contains("\"Team A\" -> \"Team B\""));
    assert_eq!(
        told(&gateway, &["delete", "org", "team-a", "-y"], ""),
        json!({"deleted": team.split_whitespace().nth(2)})
    );
    let gone = wait_for("its end", || {
        let output = gateway.command(&["list", "targets", "--org", "team-a"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (!output.status.success()).then_some(said)
    });
    assert!(gone.contains("organisation team-a is not"), "{gone}");
}

#[test]
fn a_deletion_needs_a_yes_and_is_refused_while_others_need_the_object() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let version = || gateway.get("/versions")["items"][0]["n"].clone();
    let before = version();
    let unasked = refused(&gateway, &["delete", "proxies", &proxy.id]);
    assert!(
        unasked.contains("takes effect at once") && unasked.contains("--yes"),
        "{unasked}"
    );
    let used = refused(&gateway, &["delete", "targets", &proxy.target, "--yes"]);
    assert!(used.contains("is used by"), "{used}");
    let user = format!("`requestrocket get proxies {}`", proxy.id);
    assert!(used.contains(&user), "{used}");
    let json = [
        "delete",
        "targets",
        &proxy.target,
        "--yes",
        "--output",
        "json",
    ];
    let told: Value = serde_json::from_str(&refused(&gateway, &json)).expect("JSON");
    assert_eq!(
        (&told["status"], &told["code"]),
        (&json!(409), &json!("conflict"))
    );
    assert_eq!(told["used_by"], json!([proxy.id]));
    // Somebody changed it since.
    let read = gateway.get(&format!("/proxies/{}", proxy.id))["version"].to_string();
    gateway.patch(&format!("/proxies/{}", proxy.id), json!({"name": "other"}));
    for command in [
        &[
            "delete",
            "proxies",
            &proxy.id,
            "--yes",
            "--if-version",
            &read,
        ][..],
        &["set", "proxies", &proxy.id, "name=x", "--if-version", &read],
    ] {
        let stale = refused(&gateway, command);
        assert!(stale.contains("read it again"), "{stale}");
    }
    assert_ne!(version(), before, "the change alone");
    done(&gateway, &["delete", "proxies", &proxy.id, "--yes"], "");
    done(&gateway, &["delete", "targets", &proxy.target, "--yes"], "");
    let gone = refused(&gateway, &["get", "targets", &proxy.target]);
    assert!(
        gone.starts_with("requestrocket: Not found: no target of organisation default"),
        "{gone}"
    );
}

#[test]
fn what_cannot_be_meant_is_told_with_what_can() {
    let gateway = Gateway::start();
    for (arguments, words) in [
        (&["get", "proxy", "dmo"][..], "did you mean `demo`?"),
        (&["get", "filter", "x"], "there are no filters"),
        (&["get", "proxy", "demo", "--on", "x"], "hang on nothing"),
        (
            &["get", "rule", "x", "--on", "rul_1"],
            "--on rul_1 names no proxy",
        ),
        (&["create", "rule", "effect=deny"], "name it with --on"),
        (&["create", "proxy"], "FIELD=VALUE, or --file FILE"),
        (&["create", "token", "name"], "write FIELD=VALUE"),
        (&["create", "token", "name=a", "role=chief"], "/role"),
        (
            &["create", "token", "name=a", "--secret-stdin"],
            "have no secret that is given",
        ),
        (
            &["create", "credential", "secret.key=hush"],
            "no secret stands in them",
        ),
        (
            &["set", "proxy", "demo", "aktive=false"],
            "did you mean `active`?",
        ),
        (
            &["set", "credential", "crd_1", "secret=hush"],
            "no secret stands in them",
        ),
        (
            &["list", "proxies", "--org", "nosuch"],
            "organisation nosuch is not",
        ),
        (
            &[
                "create",
                "target",
                "base_url=https://a.example",
                "--org",
                "nosuch",
            ],
            "--org",
        ),
    ] {
        let said = refused(&gateway, arguments);
        assert!(said.contains(words), "{arguments:?}: {said}");
        assert!(!said.contains("hush"), "{said}");
    }
    let both = ["create", "credential", "--file", "-", "--secret-stdin"];
    assert!(refused(&gateway, &both).contains("either the fields or the secret"));
    let json = ["get", "proxy", "dmo", "--output", "json"];
    let told: Value = serde_json::from_str(&refused(&gateway, &json)).expect("JSON");
    assert_eq!(
        (&told["status"], &told["code"]),
        (&json!(404), &json!("not-found"))
    );
}
