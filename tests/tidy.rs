//! The rules of the layout that a program can check.
//!
//! Sizes, module docs, names, the directions of dependencies, one page per error code, one line
//! per metric. Where a rule makes the code worse, change the rule here in the same commit and say
//! why.

use std::fs;
use std::path::{Path, PathBuf};

/// Longest source file without its tests, in lines.
const FILE_LINES_MAX: usize = 400;
/// Longest function, in lines.
const FUNCTION_LINES_MAX: usize = 70;
/// Longest line, in columns.
const LINE_COLUMNS_MAX: usize = 100;

struct Source {
    path: String,
    text: String,
}

impl Source {
    /// The lines before the tests that stand at the end of the file.
    fn code(&self) -> &str {
        self.text
            .split("\n#[cfg(test)]\nmod tests {")
            .next()
            .unwrap_or_default()
    }

    fn is_test(&self) -> bool {
        self.path.contains("/tests/")
            || self.path.starts_with("tests/")
            || self.path.ends_with("/tests.rs")
            || self.path.ends_with("/properties.rs")
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn sources() -> Vec<Source> {
    let mut sources = Vec::new();
    for folder in ["src", "proto/src", "node/src", "control/src", "tests"] {
        collect(&root().join(folder), &mut sources);
    }
    assert!(sources.len() > 50, "the sources were not found");
    sources
}

fn collect(folder: &Path, sources: &mut Vec<Source>) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, sources);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("a source file can be read");
            let path = path
                .strip_prefix(root())
                .expect("below the root")
                .to_string_lossy()
                .into_owned();
            sources.push(Source { path, text });
        }
    }
}

fn check(what: &str, breaches: Vec<String>) {
    assert!(breaches.is_empty(), "{what}:\n  {}", breaches.join("\n  "));
}

#[test]
fn every_file_says_what_it_is_for() {
    let breaches = sources()
        .into_iter()
        .filter(|source| !source.text.starts_with("//! "))
        .map(|source| source.path);
    check("files without a `//!` line", breaches.collect());
}

#[test]
fn files_functions_and_lines_are_short() {
    let mut breaches = Vec::new();
    for source in sources() {
        let lines = source.code().lines().count();
        if lines > FILE_LINES_MAX && !source.is_test() {
            breaches.push(format!("{}: {lines} lines", source.path));
        }
        for (at, line) in source.text.lines().enumerate() {
            let columns = line.chars().count();
            if columns > LINE_COLUMNS_MAX && !line.contains("http") {
                breaches.push(format!("{}:{}: {columns} columns", source.path, at + 1));
            }
        }
        // A table of rows may be as long as it has rows.
        if !source.is_test() {
            breaches.extend(long_functions(&source));
        }
    }
    check("too long", breaches);
}

/// Functions, told by rustfmt's indentation, that are longer than allowed.
fn long_functions(source: &Source) -> Vec<String> {
    let mut long = Vec::new();
    let mut open: Option<(usize, String)> = None;
    for (at, line) in source.code().lines().enumerate() {
        let trimmed = line.trim_start();
        let indent = &line[..line.len() - trimmed.len()];
        let begins = [
            "fn ",
            "pub fn ",
            "async fn ",
            "pub async fn ",
            "const fn ",
            "pub const fn ",
            "pub(super) fn ",
            "pub(crate) fn ",
            "pub(super) async fn ",
        ]
        .iter()
        .any(|start| trimmed.starts_with(start));
        match &open {
            None if begins && !trimmed.ends_with(';') && !trimmed.ends_with('}') => {
                open = Some((at, format!("{indent}}}")));
            }
            Some((start, end)) if line == end => {
                let lines = at - start + 1;
                if lines > FUNCTION_LINES_MAX {
                    long.push(format!("{}:{}: {lines} lines", source.path, start + 1));
                }
                open = None;
            }
            _ => {}
        }
    }
    long
}

#[test]
fn names_say_what_is_inside() {
    let bad = ["util", "utils", "common", "helpers", "misc"];
    let breaches = sources()
        .into_iter()
        .filter(|source| {
            Path::new(&source.path)
                .iter()
                .any(|part| bad.contains(&part.to_string_lossy().trim_end_matches(".rs")))
        })
        .map(|source| source.path);
    check("names that say nothing", breaches.collect());
}

#[test]
fn nothing_is_left_undone_or_switched_off() {
    let mut breaches = Vec::new();
    for source in sources()
        .iter()
        .filter(|source| source.path != "tests/tidy.rs")
    {
        for (at, line) in source.text.lines().enumerate() {
            let undone = ["TODO", "FIXME", "todo!(", "unimplemented!("];
            if undone.iter().any(|mark| line.contains(mark)) || line.trim() == "#[ignore]" {
                breaches.push(format!("{}:{}: {}", source.path, at + 1, line.trim()));
            }
        }
    }
    check("undone, or switched off without a reason", breaches);
}

/// Who may name what. Each row: a word in a `use` or path, and where it may stand.
#[test]
fn dependencies_point_one_way() {
    let rows: &[(&str, &[&str])] = &[
        ("node::", &["src/", "node/src/", "tests/"]),
        ("control::", &["src/", "control/src/", "tests/"]),
        ("bincode::", &["proto/src/wire"]),
        ("etcd_client::", &["proto/src/store/etcd", "tests/"]),
        (
            "rusqlite::",
            &[
                "proto/src/store/embedded",
                "control/src/records",
                "control/src/archive",
                "control/src/private_sqlite.rs",
                "tests/",
            ],
        ),
        ("actix::", &["node/src/actor.rs"]),
        (
            "hyper::",
            &[
                "node/src/upstream/",
                "src/otlp/http.rs",
                "tests/harness/etcd_relay.rs",
            ],
        ),
        (
            "awc::",
            &[
                "src/client/",
                "control/src/regions/ask.rs",
                "control/src/regions/forward.rs",
                "tests/",
            ],
        ),
        (
            "actix_web::",
            &[
                "node/src/stages/receive.rs",
                "node/src/admin.rs",
                "node/src/answer.rs",
                "node/src/reply_body.rs",
                "node/src/listener",
                "node/src/gateway.rs",
                "control/src/",
                "src/",
                "tests/",
            ],
        ),
    ];
    let mut breaches = Vec::new();
    for source in sources() {
        for (word, places) in rows.iter().filter(|_| source.path != "tests/tidy.rs") {
            if places.iter().any(|place| source.path.starts_with(place)) {
                continue;
            }
            for (at, line) in source.code().lines().enumerate() {
                let code = line.split("//").next().unwrap_or_default();
                if names(code, word) {
                    breaches.push(format!("{}:{}: {word}", source.path, at + 1));
                }
            }
        }
    }
    check("named where it may not be", breaches);
}

/// Whether a line names a crate: the word at the start of a path, not inside another one.
fn names(code: &str, word: &str) -> bool {
    code.match_indices(word).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        before.is_none_or(|c| !(c.is_alphanumeric() || c == '_' || c == ':'))
    })
}

#[test]
fn no_stage_names_another() {
    // What a stage must have of another one: a type that only that stage can make, and the answer
    // to one question that both ask.
    let allowed = [
        ("filter", "prepare::response_filters"),
        ("forward", "inject::Armed"),
    ];
    let mut breaches = Vec::new();
    for source in sources() {
        let Some(file) = source.path.strip_prefix("node/src/stages/") else {
            continue;
        };
        let stage = file.trim_end_matches(".rs");
        for line in source.code().lines().filter(|_| stage != "mod") {
            for path in ["crate::stages::", "super::"] {
                let Some(named) = line.split(path).nth(1) else {
                    continue;
                };
                let is_allowed = |(from, what): &(&str, &str)| {
                    stage == *from && named.trim_end_matches(';') == *what
                };
                if !allowed.iter().any(is_allowed) {
                    breaches.push(format!("{}: {}", source.path, line.trim()));
                }
            }
        }
    }
    check("stages that name each other", breaches);
}

#[test]
fn every_error_code_has_its_page() {
    let missing = proto::outcome::Code::ALL
        .iter()
        .map(|code| format!("docs/errors/{code}.md"))
        .chain(["docs/errors/error-body-withheld.md".to_owned()])
        .filter(|page| !root().join(page).exists());
    check("error codes without a page", missing.collect());
}

#[test]
fn every_metric_has_its_line() {
    let docs = fs::read_to_string(root().join("docs/metrics.md")).unwrap();
    let text = node::metrics::Metrics::default()
        .families(&node::limits::Stats::default())
        .text(proto::exposition::text::Form::Prometheus);
    let missing = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .filter_map(|line| line.split(' ').next())
        .filter(|name| !docs.contains(&format!("`{name}`")))
        .map(str::to_owned);
    check(
        "metrics without a line in docs/metrics.md",
        missing.collect(),
    );
}

#[test]
fn no_two_kinds_of_messages_have_one_schema() {
    let mut known = std::collections::BTreeMap::new();
    let mut breaches = Vec::new();
    for source in sources() {
        for line in source.code().lines() {
            let rest = line.trim_start().trim_start_matches("pub ");
            let Some(rest) = rest.strip_prefix("const SCHEMA_") else {
                continue;
            };
            let Some((name, number)) = rest.split_once(": u16 = ") else {
                continue;
            };
            if let Some(other) = known.insert(number.to_owned(), name.to_owned()) {
                breaches.push(format!("{other} and {name} both are {number}"));
            }
        }
    }
    assert!(known.len() > 20, "the schemas were not found: {known:?}");
    check("a number of its own for each schema", breaches);
}
