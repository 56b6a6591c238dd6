//! `requestrocket completions`: the script of a shell completes commands, options and kinds.

use std::process::Command;

use crate::harness::gateway::binary;

fn script(shell: &str) -> String {
    let output = binary().args(["completions", shell]).output();
    let output = output.expect("the binary runs");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text")
}

/// What bash offers for the last of these words.
fn offered(words: &[&str]) -> Vec<String> {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("completion");
    std::fs::write(&file, script("bash")).expect("a file");
    let last = words.len() - 1;
    let asks = format!(
        "source \"$1\"; shift; COMP_WORDS=(\"$@\"); COMP_CWORD={last}; \
         _requestrocket requestrocket \"${{COMP_WORDS[{last}]}}\" \"${{COMP_WORDS[{}]}}\"; \
         printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        last - 1
    );
    let output = Command::new("bash")
        .args(["--norc", "-c", &asks, "bash"])
        .arg(&file)
        .args(words)
        .output()
        .expect("bash runs");
    assert!(output.status.success(), "{output:?}");
    let offered = String::from_utf8(output.stdout).expect("text");
    let mut offered: Vec<String> = offered.lines().map(str::to_owned).collect();
    offered.sort();
    offered
}

#[test]
fn bash_completes_commands_kinds_and_options() {
    let of_commands = offered(&["requestrocket", "ro"]);
    assert_eq!(of_commands, ["rollback", "rotate"]);
    let of_kinds = offered(&["requestrocket", "get", "t"]);
    assert_eq!(of_kinds, ["targets", "tokens"]);
    let of_options = offered(&["requestrocket", "delete", "--y"]);
    assert_eq!(of_options, ["--yes"]);
}

#[test]
fn every_shell_has_a_script_and_no_other_word_is_one() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(script(shell).contains("requestrocket"), "{shell}");
    }
    let output = binary().args(["completions", "csh"]).output();
    assert_eq!(output.expect("the binary runs").status.code(), Some(2));
}
