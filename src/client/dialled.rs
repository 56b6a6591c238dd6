//! Whether an API that `add` is given can be called at all, as far as its address says so.

use anyhow::ensure;
use ipnet::IpNet;
use node::upstream::Hosts;
use node::upstream::foreseen::{Foreseen, Permits, foresee};
use proto::hosts::Scheme;
use proto::target::BaseUrl;
use serde_json::{Value, json};

/// Where the API is.
///
/// # Errors
/// It is no URL, or a plain one, which has to be said.
pub fn base(url: &str, allow_http: bool) -> anyhow::Result<BaseUrl> {
    let base = BaseUrl::parse(url).map_err(|detail| anyhow::anyhow!("{url} {detail}"))?;
    ensure!(
        allow_http || base.origin.scheme != Scheme::Http,
        "{url} is plain http; use https, or say that it may be with --allow-http"
    );
    Ok(base)
}

/// A warning where the address is one that no node dials for this target, whatever its operator
/// permits.
pub fn not_dialled(base: &BaseUrl, networks: &[String]) -> Option<Value> {
    let networks: Vec<IpNet> = networks
        .iter()
        .filter_map(|text| text.parse().ok())
        .collect();
    let permits = Permits::Elsewhere(&networks);
    let foreseen = foresee(&base.origin, &permits, &Hosts::default(), &|_| false);
    (foreseen == Foreseen::Refused).then(|| {
        let host = &base.origin.host;
        let detail = format!(
            "names {host}, which is no public address: every call will be answered 502 \
             upstream-blocked. Name its network with --allow-network; the operator has to permit \
             it too (`dial_guard.permit`)"
        );
        json!({"pointer": "/base_url", "code": "not-dialled", "detail": detail})
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_no_node_dials_is_warned_of() {
        for (url, networks, warned) in [
            ("http://127.0.0.1:9", &[][..], true),
            ("https://10.1.2.3", &["192.168.0.0/16"], true),
            ("http://[::1]:9", &["127.0.0.0/8"], true),
            ("http://localhost:9", &[], true),
            ("https://10.1.2.3", &["10.0.0.0/8"], false),
            ("http://localhost", &["127.0.0.0/8", "::1/128"], false),
            ("https://1.1.1.1", &[], false),
            ("https://api.example.com", &[], false),
        ] {
            let networks: Vec<String> = networks.iter().map(|text| (*text).to_owned()).collect();
            let base = BaseUrl::parse(url).unwrap();
            let said = not_dialled(&base, &networks);
            assert_eq!(said.is_some(), warned, "{url} {networks:?}: {said:?}");
        }
    }
}
