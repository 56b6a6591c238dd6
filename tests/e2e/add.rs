//! `requestrocket add`: an API behind the gateway in one command.

use std::io::Write;
use std::process::{Output, Stdio};

use serde_json::{Value, json};

use crate::harness::gateway::{Gateway, binary};
use crate::harness::http::Request;
use crate::harness::upstream::Upstream;

fn add(gateway: &Gateway, arguments: &[&str], secret: &str) -> Output {
    let given = if secret.is_empty() {
        None
    } else {
        Some("--secret-stdin")
    };
    let mut child = binary()
        .args(["add", "--control", &gateway.control])
        .args(given)
        .args(arguments)
        .env("REQUESTROCKET_TOKEN", &gateway.token)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let mut stdin = child.stdin.take().expect("its input");
    // It may end before it reads.
    let _ = stdin.write_all(secret.as_bytes());
    drop(stdin);
    child.wait_with_output().expect("it ends")
}

/// Adds an upstream, with these options; the path of its URL, and what a caller authorises with.
fn added(
    gateway: &Gateway,
    upstream: &Upstream,
    options: &[&str],
    secret: &str,
) -> (String, String) {
    let url = upstream.url();
    let arguments = [&[url.as_str(), "--output", "json"], options, &LOCAL].concat();
    let output = add(gateway, &arguments, secret);
    assert!(output.status.success(), "{output:?}");
    let made: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let path = made["url"].as_str().expect("a URL")[gateway.url.len()..].to_owned();
    let bearer = format!("Bearer {}", made["api_key"].as_str().expect("a key"));
    (path, bearer)
}

const LOCAL: [&str; 3] = ["--allow-http", "--allow-network", "127.0.0.0/8"];

#[test]
fn what_is_added_is_narrow_limited_and_works() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let allow = "POST /v1/chat/completions";
    let options = ["--alias", "llm", "--allow", allow, "--limit", "2/min"];
    let (path, bearer) = added(&gateway, &upstream, &options, "sk-live-1\n");
    assert!(path.ends_with("/llm"), "{path}");
    let call = |method: &str, behind: &str| {
        Request::new(method, &format!("{path}{behind}"))
            .field("authorization", &bearer)
            .json("{}")
            .send(&gateway.url)
            .status()
    };
    assert_eq!(call("POST", "/v1/chat/completions"), 200);
    assert_eq!(
        upstream.last().field("authorization"),
        Some("Bearer sk-live-1")
    );
    for (method, behind) in [
        ("GET", "/v1/chat/completions"),
        ("POST", "/v1/files"),
        ("POST", "/v1/chat/completions/x"),
    ] {
        assert_eq!(call(method, behind), 400, "{method} {behind}");
    }
    assert_eq!(call("POST", "/v1/chat/completions"), 200);
    assert_eq!(call("POST", "/v1/chat/completions"), 429);
}

#[test]
fn what_is_added_without_a_limit_has_the_one_of_its_organisation() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let (org, limits) = (
        "/api/v1/orgs/default",
        json!({"default_limits": {"per_minute": 2}}),
    );
    let set = gateway.control_call("PATCH", org, Some(&gateway.token), Some(&limits));
    assert_eq!(set.status(), 200, "{}", set.text());
    let (path, bearer) = added(&gateway, &upstream, &[], "sk");
    for status in [200, 200, 429] {
        let request = Request::new("GET", &path).field("authorization", &bearer);
        assert_eq!(request.send(&gateway.url).status(), status);
    }
}

#[test]
fn read_only_is_get_and_head() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let (path, bearer) = added(&gateway, &upstream, &["--read-only"], "sk");
    for (method, status) in [("GET", 200), ("HEAD", 200), ("POST", 400), ("DELETE", 400)] {
        let request = Request::new(method, &path).field("authorization", &bearer);
        assert_eq!(request.send(&gateway.url).status(), status, "{method}");
    }
}

#[test]
fn what_fails_leaves_nothing_behind_and_what_works_is_one_version() {
    let gateway = Gateway::start();
    let count = || {
        ["/targets", "/credentials", "/proxies"]
            .map(|path| gateway.get(path)["items"].as_array().expect("a list").len())
    };
    let version = || {
        gateway.get("/versions")["items"][0]["n"]
            .as_u64()
            .expect("n")
    };
    let before = (count(), version());
    let mut arguments = vec!["http://127.0.0.1:9", "--alias", "demo", "--read-only"];
    arguments.extend(LOCAL);
    let output = add(&gateway, &arguments, "sk-live-secret");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("demo"), "{said}");
    assert!(!said.contains("sk-live-secret"), "{said}");
    assert_eq!((count(), version()), before);
    arguments[2] = "demo-2";
    let output = add(&gateway, &arguments, "sk-live-secret");
    assert!(output.status.success(), "{output:?}");
    let ([targets, credentials, proxies], n) = before;
    let after = ([targets + 1, credentials + 2, proxies + 1], n + 1);
    assert_eq!((count(), version()), after);
    // What the control plane has against one object is told of that object.
    arguments[0] = "http://10.9.8.7:9";
    arguments[2] = "Demo_3";
    let output = add(&gateway, &arguments, "sk-live-secret");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("the proxy's /alias"), "{said}");
    assert_eq!((count(), version()), after);
}

#[test]
fn faults_are_told_before_anything_is_made() {
    let gateway = Gateway::start();
    for arguments in [
        vec!["http://127.0.0.1:9", "--limit", "60/hour"],
        vec!["http://127.0.0.1:9", "--allow", "everything"],
        vec!["not-a-url"],
        vec!["http://127.0.0.1:9", "--token", "wrong"],
    ] {
        let output = add(&gateway, &arguments, "sk");
        assert!(!output.status.success(), "{arguments:?}");
        assert!(!output.stderr.is_empty(), "{arguments:?}");
    }
    assert_eq!(
        gateway.get("/targets")["items"]
            .as_array()
            .expect("a list")
            .len(),
        1
    );
}

#[test]
fn what_cannot_be_called_is_told_in_the_words_of_the_command() {
    let gateway = Gateway::start();
    let none = ["--auth", "none", "--output", "json"];
    let run = |options: &[&str]| {
        let output = add(&gateway, &[options, &none].concat(), "");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output, said)
    };
    let (output, said) = run(&["not-a-url"]);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("not-a-url is not a URL"), "{said}");
    assert!(
        !said.contains("the proxy's"),
        "one fault is told once: {said}"
    );
    let (output, said) = run(&["http://127.0.0.1:9"]);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("--allow-http"), "{said}");
    // What is made is not called before its network is named.
    let (output, said) = run(&["http://127.0.0.1:9", "--allow-http"]);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("warning: the target's /base_url"), "{said}");
    assert!(said.contains("--allow-network"), "{said}");
    let made: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(made["warnings"][0]["code"], "not-dialled");
    let path = &made["url"].as_str().expect("a URL")[gateway.url.len()..];
    let bearer = format!("Bearer {}", made["api_key"].as_str().expect("a key"));
    let call = Request::new("GET", path).field("authorization", &bearer);
    assert_eq!(call.send(&gateway.url).outcome(), (502, "upstream-blocked"));
    let (output, said) = run(&["https://api.example.com"]);
    assert!(output.status.success() && said.is_empty(), "{said}");
}

/// The SDK appends `/v1` to its base URL, which so has none.
#[test]
fn an_sdk_gets_the_base_url_that_it_appends_to() {
    let gateway = Gateway::start();
    let said = |url: &str, alias: &str| {
        let of = [url, "--auth", "api-key", "--alias", alias];
        let output = add(&gateway, &of, "sk-ant-0001-of-this-test");
        assert!(output.status.success(), "{output:?}");
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        (told, String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (told, warned) = said("https://api.anthropic.com", "ant");
    let line = format!("export ANTHROPIC_BASE_URL={}/api/ant\n", gateway.url);
    assert!(told.contains(&line) && warned.is_empty(), "{told}{warned}");
    let (told, warned) = said("https://api.anthropic.com/v1", "ant-1");
    assert!(!told.contains("ANTHROPIC_BASE_URL"), "{told}");
    assert!(
        warned.contains("add https://api.anthropic.com "),
        "{warned}"
    );
    let (told, _) = said("https://api.openai.com", "oai");
    let line = format!("export OPENAI_BASE_URL={}/api/oai/v1\n", gateway.url);
    assert!(told.contains(&line), "{told}");
}

/// An API without a credential has nothing that rules could hang on but its target.
#[test]
fn what_is_added_without_a_credential_is_as_narrow() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    for (narrowing, allowed, denied) in [
        (vec!["--read-only"], ("GET", "/any"), ("DELETE", "/any")),
        (vec!["--allow", "GET /ok"], ("GET", "/ok"), ("GET", "/else")),
        (
            vec!["--allow", "GET /v1/*"],
            ("GET", "/v1/a/b"),
            ("POST", "/v1/a/b"),
        ),
    ] {
        let options = [vec!["--auth", "none"], narrowing.clone()].concat();
        let (path, bearer) = added(&gateway, &upstream, &options, "");
        let call = |(method, behind): (&str, &str)| {
            let request = Request::new(method, &format!("{path}{behind}"));
            request
                .field("authorization", &bearer)
                .send(&gateway.url)
                .status()
        };
        assert_eq!((call(allowed), call(denied)), (200, 400), "{narrowing:?}");
    }
}

#[test]
fn an_option_that_would_do_nothing_is_refused() {
    let gateway = Gateway::start();
    let none = ["http://127.0.0.1:9", "--auth", "none"];
    for (options, secret, words) in [
        (&none[..], "sk", "--secret-stdin"),
        (&[&none[..], &["--header", "x-a"]].concat(), "", "--header"),
        (&["http://127.0.0.1:9", "--header", "x-a"], "sk", "--header"),
    ] {
        let output = add(&gateway, &[options, &LOCAL].concat(), secret);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(words), "{said}");
    }
}

#[test]
fn what_is_probably_not_meant_is_said_on_standard_error() {
    let gateway = Gateway::start();
    let url = ["https://api.example.com", "--alias", "short"];
    let output = add(&gateway, &[&url[..], &["--output", "json"]].concat(), "ab");
    let said = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{output:?}");
    let of_secret = "warning: the target credential's /secret/token";
    assert!(said(&output).contains(of_secret), "{output:?}");
    let made: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(made["warnings"][0]["pointer"], "/secret/token");

    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("a file");
        path.to_str().expect("a path").to_owned()
    };
    let proxy = made["proxy"]["id"].as_str().expect("an id");
    // The list alone, as `explain --change` takes it.
    let rule = format!(
        "- create: rules\n  parent: {proxy}\n  object: {{effect: allow, path: {{pattern: /v1}}}}\n"
    );
    file("key", "abc");
    let document = "format: requestrocket/1\ncredentials:\n  - name: c\n    kind: target\n    \
                    auth_type: bearer\n    hosts: [a.example]\n    secret: {token: {file: KEY}}\n";
    let document = document.replace("KEY", folder.path().join("key").to_str().expect("a path"));
    for (command, path, words) in [
        ("changes", file("rule.yaml", &rule), "/path/pattern"),
        ("apply", file("all.yaml", &document), " /secret/token "),
    ] {
        for form in ["text", "json"] {
            let arguments = [command, &path, "--dry-run", "--output", form];
            let output = gateway.command(&arguments);
            assert!(output.status.success(), "{output:?}");
            let told = said(&output);
            assert!(told.starts_with("requestrocket: warning: "), "{told}");
            assert!(told.contains(words), "{told}");
            // What is not made yet has no id.
            assert!(!told.contains("(("), "{told}");
            assert!(form == "json" || !told.contains("crd_"), "{told}");
            let shown = String::from_utf8_lossy(&output.stdout);
            assert_eq!(shown.contains("\"warnings\""), form == "json", "{shown}");
        }
    }
}
