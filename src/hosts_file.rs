//! The operator's `dial_guard.hosts_file`: names that are not asked of DNS.

use std::net::IpAddr;
use std::path::Path;

use node::upstream::Hosts;

use crate::serve::CannotStart;

/// Reads the file: an address and its names on each line, `#` begins a comment.
///
/// # Errors
/// The file cannot be read, or a line does not begin with an address.
pub fn read(path: &Path) -> anyhow::Result<Hosts> {
    let unusable = |reason: String| {
        let name = path.display();
        CannotStart(format!("dial_guard.hosts_file {name}: {reason}"))
    };
    let text = std::fs::read_to_string(path).map_err(|error| unusable(error.to_string()))?;
    let mut hosts = Hosts::default();
    for (at, line) in text.lines().enumerate() {
        let mut words = line
            .split('#')
            .next()
            .unwrap_or_default()
            .split_whitespace();
        let Some(address) = words.next() else {
            continue;
        };
        let address: IpAddr = address
            .parse()
            .map_err(|_| unusable(format!("line {}: `{address}` is no address", at + 1)))?;
        for name in words {
            let name = name.trim_end_matches('.').to_ascii_lowercase();
            hosts.entry(name).or_default().push(address);
        }
    }
    Ok(hosts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_name_addresses_and_mistakes_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hosts");
        std::fs::write(
            &path,
            "# all\n10.0.0.1 A.example. b.example # two\n\n::1 b.example\n",
        )
        .unwrap();
        let hosts = read(&path).unwrap();
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(hosts["a.example"], [address("10.0.0.1")]);
        assert_eq!(hosts["b.example"], [address("10.0.0.1"), address("::1")]);
        std::fs::write(&path, "10.0.0.1 a\nnonsense b\n").unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("line 2: `nonsense`"), "{error}");
    }
}
