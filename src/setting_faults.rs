//! What is wrong with settings that were read, in one line that names the file or the setting.

use std::net::{IpAddr, SocketAddr};

use config::ConfigError;
use serde_json::Value;

use crate::settings::Settings;

/// What is wrong, of settings that are read or compared; `given` are all of them, as far as they
/// could be read.
pub fn told(error: &ConfigError, given: Option<&Value>) -> String {
    let told = fault(error, given);
    match told.contains("`dial_guard.permit") && !told.contains(": write ") {
        true => with_permit(&told),
        false => told,
    }
}

fn fault(error: &ConfigError, given: Option<&Value>) -> String {
    match error {
        ConfigError::FileParse { uri, cause } => {
            let file = uri.as_deref().unwrap_or("the file");
            format!("{file} is not valid: {}", in_one_line(&cause.to_string()))
        }
        ConfigError::NotFound(key) => format!("`{}` is missing", dotted(key)),
        ConfigError::At {
            error,
            key: Some(key),
            ..
        } => {
            let key = dotted(key);
            let value = given.and_then(|given| given.pointer(&pointer(&key)));
            let shown = match value {
                Some(Value::Number(number)) => number.to_string(),
                value => value.and_then(Value::as_str).unwrap_or_default().to_owned(),
            };
            match value {
                Some(value) => format!("`{key}` is {value}: {}", why(error, &shown, given)),
                None => format!("`{key}`: {}", why(error, &shown, given)),
            }
        }
        other => dotted(&other.to_string()),
    }
}

/// What a value may be, where that can be told, or else what is wrong with it.
fn why(error: &ConfigError, value: &str, given: Option<&Value>) -> String {
    let text = error.to_string();
    if text.contains("does not have variant constructor") {
        // The other reader of the same types lists the words.
        let listed = given.map(|given| serde_json::from_value::<Settings>(given.clone()));
        if let Some(Err(error)) = listed
            && error.to_string().starts_with("unknown variant")
        {
            return error.to_string();
        }
    }
    if text.contains("socket address") {
        return no_socket(value);
    }
    match value.parse::<IpAddr>() {
        Ok(address) if text.contains("IP address") => whole(address),
        _ => text,
    }
}

/// An address to listen on, of the command line.
///
/// # Errors
/// What to write instead.
pub fn socket(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| no_socket(text))
}

/// What is wrong with what is no address and port, and what to write.
fn no_socket(text: &str) -> String {
    let (host, port) = text.rsplit_once(':').unwrap_or(("", text));
    let what = match host {
        "" | "*" => "an address is missing".to_owned(),
        name if name.parse::<IpAddr>().is_ok() || name.contains([':', '[']) => {
            "it is no address with a port".to_owned()
        }
        name => format!("`{name}` is a name, and an address is needed"),
    };
    let port = port.parse().unwrap_or(8080_u16);
    format!(
        "{what}: write 127.0.0.1:{port} for this machine alone, or 0.0.0.0:{port} for all of its \
         addresses"
    )
}

/// What is wrong with an entry of `dial_guard.permit`, and how one is written.
fn with_permit(told: &str) -> String {
    let told = told.split(": invalid type:").next().unwrap_or(told);
    format!(
        "{told}: write permit = [{{ network = \"10.1.0.0/16\", ports = [\"443\", \"8000-8999\"], \
         orgs = [\"team-a\"] }}], with [\"*\"] for all organisations"
    )
}

/// How the network of one address is written.
pub fn whole(address: IpAddr) -> String {
    let bits = if address.is_ipv4() { 32 } else { 128 };
    format!("a network has a length: write {address}/{bits} for this address alone")
}

/// Without the picture of the place, which is named anyhow.
fn in_one_line(text: &str) -> String {
    let lines = text.lines().map(str::trim);
    let words = lines.filter(|line| {
        let number = line.trim_start_matches(|c: char| c.is_ascii_digit());
        !line.is_empty() && !number.trim_start().starts_with('|')
    });
    words.collect::<Vec<_>>().join(": ")
}

/// A key with the dot that is left out behind an index: `permit[0].orgs`.
fn dotted(key: &str) -> String {
    let mut out = String::with_capacity(key.len() + 1);
    for c in key.chars() {
        if out.ends_with(']') && (c.is_alphanumeric() || c == '_') {
            out.push('.');
        }
        out.push(c);
    }
    out
}

/// The place of a key in the settings, as JSON points to it.
fn pointer(key: &str) -> String {
    let plain = key.replace('[', ".").replace(']', "");
    plain.split('.').map(|part| format!("/{part}")).collect()
}
