//! The operator's dial guard settings, reduced to what holds for one target.

use std::net::SocketAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;

use crate::config::DialGuardSettings;
use crate::upstream::address::{GuardPolicy, Learned, Never, PermitEntry};

/// The dial guard of a node.
#[derive(Clone, Debug, Default)]
pub struct Guard {
    permits: Vec<(PermitEntry, Vec<String>)>,
    never: Never,
}

/// A `dial_guard.permit` entry that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GuardError {
    /// A port or range that is not one.
    #[error("dial_guard.permit {network}: `{port}` is not a port; write \"443\" or \"8000-8999\"")]
    Port {
        /// The entry's network.
        network: IpNet,
        /// The text.
        port: String,
    },
    /// Nobody is named.
    #[error("dial_guard.permit {network}: `orgs` is empty; name organisations, or [\"*\"] for all")]
    NoOrgs {
        /// The entry's network.
        network: IpNet,
    },
}

impl Guard {
    /// Checks the settings. `own` are sockets that no setting may permit: our own listeners.
    ///
    /// # Errors
    /// The entry that cannot be used, and why.
    pub fn new(settings: &DialGuardSettings, own: Vec<SocketAddr>) -> Result<Self, GuardError> {
        let mut permits = Vec::with_capacity(settings.permit.len());
        for entry in &settings.permit {
            if entry.orgs.is_empty() {
                return Err(GuardError::NoOrgs {
                    network: entry.network,
                });
            }
            let mut ports = Vec::with_capacity(entry.ports.len());
            for text in &entry.ports {
                ports.push(range(text).ok_or_else(|| GuardError::Port {
                    network: entry.network,
                    port: text.clone(),
                })?);
            }
            permits.push((
                PermitEntry {
                    network: entry.network,
                    ports,
                },
                entry.orgs.clone(),
            ));
        }
        Ok(Self {
            permits,
            never: Never {
                sockets: own,
                networks: Vec::new(),
                learned: Learned::default(),
            },
        })
    }

    /// What is told of sockets that nothing may permit either, while the process runs.
    pub fn learned(&self) -> Learned {
        self.never.learned.clone()
    }

    /// What holds for the gateways of other regions, which the operator's directory names: all but
    /// what is never dialled.
    pub fn of_gateways(&self) -> GuardPolicy {
        let permit = PermitEntry::all();
        GuardPolicy {
            allow_networks: permit.iter().map(|entry| entry.network).collect(),
            permit,
            never: self.never.clone(),
        }
    }

    /// What holds for a target of the organisation with this slug.
    pub fn policy(&self, slug: &str, allow_networks: &[IpNet]) -> GuardPolicy {
        let permit = self
            .permits
            .iter()
            .filter(|(_, orgs)| orgs.iter().any(|org| org == "*" || org == slug))
            .map(|(entry, _)| entry.clone())
            .collect();
        GuardPolicy {
            permit,
            allow_networks: allow_networks.to_vec(),
            never: self.never.clone(),
        }
    }
}

fn range(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let range = first.trim().parse().ok()?..=last.trim().parse().ok()?;
    (!range.is_empty()).then_some(range)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Permission;

    fn settings(ports: &[&str], orgs: &[&str]) -> DialGuardSettings {
        let text = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        DialGuardSettings {
            permit: vec![Permission {
                network: "10.0.0.0/8".parse().unwrap(),
                ports: text(ports),
                orgs: text(orgs),
            }],
            hosts_file: None,
        }
    }

    #[test]
    fn an_entry_holds_for_its_organisations_only() {
        let guard = Guard::new(&settings(&["443", "8000-8999"], &["a"]), Vec::new()).unwrap();
        assert_eq!(
            guard.policy("a", &[]).permit[0].ports,
            [443..=443, 8000..=8999]
        );
        assert!(guard.policy("b", &[]).permit.is_empty());
        let all = Guard::new(&settings(&["443"], &["*"]), Vec::new()).unwrap();
        assert_eq!(all.policy("b", &[]).permit.len(), 1);
    }

    #[test]
    fn mistakes_are_named() {
        for (ports, orgs) in [
            (vec!["x"], vec!["a"]),
            (vec!["9-8"], vec!["a"]),
            (vec![], vec![]),
        ] {
            let error = Guard::new(&settings(&ports, &orgs), Vec::new()).unwrap_err();
            assert!(
                error
                    .to_string()
                    .starts_with("dial_guard.permit 10.0.0.0/8: "),
                "{error}"
            );
        }
    }
}
