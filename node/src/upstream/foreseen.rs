//! Pure: what the dial guard will say of an address, as far as that is known before it is dialled.
//! The same judgement as the dialler's, for who explains a request without sending it.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use proto::hosts::Origin;

use super::address::{GuardPolicy, PermitEntry, judge};
use super::destination::Host;
use super::resolve::{Hosts, known};

/// What a caller is told whose target the guard refuses.
pub const BLOCKED: &str = "the target's address may not be dialled; a target in a private network \
                           needs `allow_networks` and the operator's `dial_guard.permit`";

/// By which settings an address is judged.
pub enum Permits<'p> {
    /// Those of the node that dials.
    Known(&'p GuardPolicy),
    /// Those of nodes elsewhere, of which nothing is known here; the target's own
    /// `allow_networks` are.
    Elsewhere(&'p [IpNet]),
}

/// What is known of an address before it is dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Foreseen {
    /// It may be dialled.
    Passes,
    /// It may not.
    Refused,
    /// It is a name that DNS is asked for.
    Name,
    /// It may be where the operator permits it.
    IfPermitted,
}

/// Judges the address of a URL.
pub fn foresee(
    origin: &Origin,
    permits: &Permits<'_>,
    hosts: &Hosts,
    is_ours: &dyn Fn(IpAddr) -> bool,
) -> Foreseen {
    let addresses = match Host::of(origin) {
        Ok(Host::Literal(ip)) => vec![ip],
        Ok(Host::Name(name)) => known(&name, hosts).unwrap_or_default(),
        Err(_) => Vec::new(),
    };
    let each = addresses.into_iter().map(|ip| {
        let address = SocketAddr::new(ip, origin.port);
        match permits {
            Permits::Known(policy) => match judge(address, policy, is_ours) {
                Ok(_) => Foreseen::Passes,
                Err(_) => Foreseen::Refused,
            },
            Permits::Elsewhere(networks) => judge_elsewhere(address, networks),
        }
    });
    // As in a dial one refused address refuses the whole name.
    each.max_by_key(|foreseen| match foreseen {
        Foreseen::Refused => 2,
        Foreseen::IfPermitted => 1,
        Foreseen::Passes | Foreseen::Name => 0,
    })
    .unwrap_or(Foreseen::Name)
}

/// What holds whatever the settings of a node are, or depends on them.
fn judge_elsewhere(address: SocketAddr, allow_networks: &[IpNet]) -> Foreseen {
    let passes = |permit: Vec<PermitEntry>| {
        let policy = GuardPolicy {
            permit,
            allow_networks: allow_networks.to_vec(),
            ..GuardPolicy::default()
        };
        judge(address, &policy, &|_| false).is_ok()
    };
    match (passes(Vec::new()), passes(PermitEntry::all())) {
        (true, _) => Foreseen::Passes,
        (false, true) => Foreseen::IfPermitted,
        (false, false) => Foreseen::Refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_foreseen_is_what_the_dial_says() {
        use Foreseen::{IfPermitted, Name, Passes, Refused};
        let network: IpNet = "10.0.0.0/8".parse().unwrap();
        let permit = PermitEntry {
            network,
            ports: vec![443..=443],
        };
        let policy = |permit: Vec<PermitEntry>, allow_networks: Vec<IpNet>| GuardPolicy {
            permit,
            allow_networks,
            ..GuardPolicy::default()
        };
        let hosts = Hosts::from([
            ("one.corp".to_owned(), vec!["10.0.0.1".parse().unwrap()]),
            (
                "two.corp".to_owned(),
                vec!["8.8.8.8".parse().unwrap(), "10.0.0.1".parse().unwrap()],
            ),
        ]);
        let check = |host: &str, port: u16, allowed: bool, expected: [Foreseen; 3]| {
            let networks: &[IpNet] = if allowed { &[network] } else { &[] };
            let (permitted, not) = (
                policy(vec![permit.clone()], networks.to_vec()),
                policy(Vec::new(), networks.to_vec()),
            );
            let by = [
                Permits::Known(&permitted),
                Permits::Known(&not),
                Permits::Elsewhere(networks),
            ];
            let url = url::Url::parse(&format!("https://{host}:{port}")).unwrap();
            let origin = Origin::of(&url).unwrap();
            let said = by.map(|by| foresee(&origin, &by, &hosts, &|_| false));
            assert_eq!(said, expected, "{host}:{port} {allowed}");
        };
        check("8.8.8.8", 443, false, [Passes; 3]);
        check("[2001:4860:4860::8888]", 443, false, [Passes; 3]);
        check("10.0.0.1", 443, true, [Passes, Refused, IfPermitted]);
        check("0xa.1", 443, true, [Passes, Refused, IfPermitted]);
        check("10.0.0.1", 80, true, [Refused, Refused, IfPermitted]);
        check("10.0.0.1", 443, false, [Refused; 3]);
        check("8.8.8.8", 22, false, [Refused, Refused, IfPermitted]);
        check("169.254.169.254", 443, true, [Refused; 3]);
        check("[::1]", 443, true, [Refused; 3]);
        check("localhost", 443, false, [Refused; 3]);
        check("api.localhost", 443, false, [Refused; 3]);
        check("one.corp", 443, true, [Passes, Refused, IfPermitted]);
        check("two.corp", 443, true, [Passes, Refused, IfPermitted]);
        check("two.corp", 443, false, [Refused; 3]);
        check("api.example", 443, false, [Name; 3]);
    }
}
