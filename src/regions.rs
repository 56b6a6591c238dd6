//! The settings of several regions, and the directory that they make.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use control::regions::{Peer, Regions, base_url, is_endpoint, is_plain};
use node::upstream::Host;
use proto::seal::{PublicKeyring, is_region_name};
use proto::target::BaseUrl;
use serde::{Deserialize, Serialize};

use crate::keyrings;
use crate::serve::CannotStart;
use crate::settings::Settings;

/// The regions of the installation.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegionsSettings {
    /// The region in which configuration is changed until home is moved; from then on the stores
    /// tell.
    pub home: Option<String>,
    /// Whether a region keeps what is pinned to others. Once it does not, it stays so.
    pub content_by_region: bool,
    /// The other regions.
    pub peers: Vec<PeerSettings>,
}

impl RegionsSettings {
    /// Whether any of it is given.
    pub fn given(&self) -> bool {
        self.home.is_some() || !self.peers.is_empty()
    }
}

/// Another region.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerSettings {
    /// Its name.
    pub name: String,
    /// Base URL of its REST API.
    pub control: String,
    /// Call its REST API with callers' tokens, and its gateway with their keys, although one of
    /// them is `http://` and not loopback.
    #[serde(default)]
    pub insecure: bool,
    /// Base URL of its gateway.
    pub gateway: Option<String>,
    /// The link listeners of its control planes, `host:port` each.
    pub replication: Vec<String>,
    /// A file with what secrets for it are sealed to and what its versions are signed with: its
    /// `keys.public_file`.
    pub public_file: PathBuf,
}

/// The regions of the installation; none where there is one.
///
/// # Errors
/// [`CannotStart`]: the settings contradict each other, or a file of keys cannot be used.
pub fn open(settings: &Settings, own: &PublicKeyring) -> anyhow::Result<Option<Arc<Regions>>> {
    if !settings.regions.given() {
        return Ok(None);
    }
    check(settings)?;
    let mut peers = Vec::new();
    for peer in &settings.regions.peers {
        let (public, signers) = keyrings::of_peer(&peer.public_file, &peer.name, own)?;
        peers.push(Peer {
            name: peer.name.clone(),
            control: peer.control.trim_end_matches('/').to_owned(),
            gateway: peer
                .gateway
                .as_ref()
                .map(|url| url.trim_end_matches('/').to_owned()),
            replication: peer.replication.clone(),
            public,
            signers,
        });
    }
    let home = settings.regions.home.clone().unwrap_or_default();
    Ok(Some(Arc::new(Regions {
        own: settings.region.clone(),
        home,
        signers: own.signers.clone(),
        peers,
    })))
}

/// Whom control planes of other regions are to be certified by, where one is called over `https`.
///
/// # Errors
/// The system's certificates cannot be used.
pub fn trust(regions: &Regions) -> anyhow::Result<Option<Arc<rustls::ClientConfig>>> {
    let mut peers = regions.peers.iter();
    let https = peers.any(|peer| peer.control.starts_with("https:"));
    https.then(system_trust).transpose()
}

fn system_trust() -> anyhow::Result<Arc<rustls::ClientConfig>> {
    use rustls_platform_verifier::ConfigVerifierExt;
    let config = rustls::ClientConfig::with_platform_verifier();
    Ok(Arc::new(config.context("the system's certificates")?))
}

/// What can be told from the settings alone.
fn check(settings: &Settings) -> Result<(), CannotStart> {
    let no = |why: String| Err(CannotStart(why));
    let (own, regions) = (&settings.region, &settings.regions);
    let Some(home) = &regions.home else {
        return no(
            "`regions.peers` needs `regions.home`: the region where configuration is \
                   changed"
                .into(),
        );
    };
    for (at, peer) in regions.peers.iter().enumerate() {
        let name = &peer.name;
        if !is_region_name(name) {
            return no(format!(
                "`regions.peers` has `{name}`: a name is 1 to 40 characters of a-z, 0-9 and `-`"
            ));
        }
        if name == own {
            return no(format!(
                "`regions.peers` has `{name}`, which is this region (`region`); it lists the others"
            ));
        }
        if regions.peers[..at].iter().any(|other| other.name == *name) {
            return no(format!("`regions.peers` has two regions `{name}`"));
        }
        let parsed = called(peer, "control", &peer.control).map_err(CannotStart)?;
        if is_plain(&parsed) && !peer.insecure {
            return no(format!(
                "`control` of region {name} is `{}`, without TLS: what callers prove themselves \
                 by goes there; make it https://, or accept it with `insecure = true` beside it",
                peer.control
            ));
        }
        if let Some(gateway) = &peer.gateway {
            called(peer, "gateway", gateway).map_err(CannotStart)?;
        }
        let listed = &peer.replication;
        if listed.is_empty() || !listed.iter().all(|text| is_endpoint(text)) {
            return no(format!(
                "`replication` of region {name} must list the link listeners of its control \
                 planes, host:port each"
            ));
        }
    }
    if home != own && regions.peers.iter().all(|peer| peer.name != *home) {
        let known: Vec<&str> = std::iter::once(own.as_str())
            .chain(regions.peers.iter().map(|peer| peer.name.as_str()))
            .collect();
        return no(format!(
            "`regions.home` `{home}` is no region; known are {}",
            known.join(", ")
        ));
    }
    if settings.link.listen.is_none() {
        return no("regions need `link.listen`: where control planes of the others call".into());
    }
    Ok(())
}

/// What the next release does not start with: earlier ones took such a gateway, and `regions join`
/// wrote it, without a word that accepts it.
pub fn warnings(settings: &Settings) -> impl Iterator<Item = String> + '_ {
    settings.regions.peers.iter().filter_map(|peer| {
        let (name, gateway) = (&peer.name, peer.gateway.as_ref()?);
        let is_plain = base_url(gateway).is_some_and(|url| is_plain(&url));
        (is_plain && !peer.insecure).then(|| {
            format!(
                "`gateway` of region {name} is `{gateway}`, without TLS: callers' keys go there; \
                 make it https://, or accept it with the line `insecure = true` in its \
                 `[[regions.peers]]`; the next release does not start without"
            )
        })
    })
}

/// Looks at a URL under which a region is called.
fn called(peer: &PeerSettings, key: &str, url: &str) -> Result<url::Url, String> {
    let name = &peer.name;
    let (Some(parsed), Ok(base)) = (base_url(url), BaseUrl::parse(url)) else {
        return Err(format!(
            "`{key}` of region {name} must be a URL, as https://{key}.example.com"
        ));
    };
    if let Err(error) = Host::of(&base.origin) {
        return Err(format!(
            "`{key}` of region {name} is `{url}`, which nothing can be sent to: {error}"
        ));
    }
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(name: &str) -> PeerSettings {
        PeerSettings {
            name: name.into(),
            control: "https://control.example".into(),
            insecure: false,
            gateway: None,
            replication: vec!["control.example:8082".into()],
            public_file: "peer.json".into(),
        }
    }

    #[test]
    fn contradictions_are_named() {
        let with = |home: Option<&str>, peers: Vec<PeerSettings>| {
            let mut settings = Settings {
                region: "us".into(),
                ..Settings::default()
            };
            settings.link.listen = "127.0.0.1:1".parse().ok();
            settings.regions.home = home.map(str::to_owned);
            settings.regions.peers = peers;
            settings
        };
        let bad = |change: fn(&mut PeerSettings)| {
            let mut peer = peer("eu");
            change(&mut peer);
            with(Some("us"), vec![peer])
        };
        let mut unheard = with(Some("us"), vec![peer("eu")]);
        unheard.link.listen = None;
        for (settings, expected) in [
            (with(None, vec![peer("eu")]), "needs `regions.home`"),
            (with(Some("ap"), vec![peer("eu")]), "known are us, eu"),
            (
                with(Some("us"), vec![peer("eu"), peer("eu")]),
                "two regions `eu`",
            ),
            (with(Some("us"), vec![peer("us")]), "which is this region"),
            (with(Some("us"), vec![peer("E U")]), "1 to 40 characters"),
            (
                bad(|peer| peer.control = "control.eu".into()),
                "must be a URL",
            ),
            (
                bad(|peer| peer.control = "http://control.eu".into()),
                "without TLS",
            ),
            (
                bad(|peer| peer.gateway = Some("https:/gw.eu:x".into())),
                "`gateway` of region eu must be a URL",
            ),
            (
                bad(|peer| peer.gateway = Some(format!("https://{}.eu", "g".repeat(64)))),
                "which nothing can be sent to",
            ),
            (bad(|peer| peer.replication.clear()), "must list"),
            (
                bad(|peer| peer.replication = vec!["x".into()]),
                "host:port each",
            ),
            (unheard, "`link.listen`"),
        ] {
            let error = check(&settings).unwrap_err().to_string();
            assert!(error.contains(expected), "{expected}: {error}");
        }
        for home in ["us", "eu"] {
            assert!(check(&with(Some(home), vec![peer("eu")])).is_ok());
        }
        for good in [
            bad(|peer| (peer.control, peer.insecure) = ("http://control.eu".into(), true)),
            bad(|peer| (peer.gateway, peer.insecure) = (Some("http://gw.eu".into()), true)),
            bad(|peer| peer.gateway = Some("https://gw.eu/base/".into())),
            bad(|peer| peer.gateway = Some("http://127.0.0.1:8080".into())),
            bad(|peer| peer.gateway = Some("http://[::1]:8080".into())),
            bad(|peer| peer.gateway = Some("https://[2001:db8::1]".into())),
            bad(|peer| peer.control = "http://127.0.0.1:8081".into()),
            bad(|peer| peer.control = "http://[::1]:8081/".into()),
            bad(|peer| peer.control = "http://localhost".into()),
        ] {
            assert!(check(&good).is_ok());
            assert_eq!(warnings(&good).count(), 0);
        }
        let plain = bad(|peer| peer.gateway = Some("http://gw.eu".into()));
        assert!(check(&plain).is_ok());
        let warned: Vec<String> = warnings(&plain).collect();
        let expected = "`gateway` of region eu is `http://gw.eu`, without TLS";
        assert!(warned[0].contains(expected), "{warned:?}");
    }
}
