//! Where the secret of a target credential may go, and what it does to a request there.

use super::{Objects, credential_in, target_in};
use crate::credential::{AuthType, Credential};
use crate::hosts::Origin;
use crate::id::CredentialId;
use crate::object::{Body, ObjectId};
use crate::proxy::Proxy;
use crate::regions;
use crate::residence::Residence;
use crate::target::Target;

/// Whether the credential's secret may be sent to every address of the targets that proxies use it
/// for, and is in every region that they are served in.
pub(super) fn may_be_sent(objects: &Objects, id: CredentialId, credential: &Credential) -> bool {
    objects.values().all(|object| match &object.body {
        Body::Proxy(proxy) if proxy.target_credential_id == Some(id) => {
            let target = objects.get(&ObjectId::Target(proxy.target_id));
            let reaches = match target.map(|object| &object.body) {
                Some(Body::Target(target)) => outside_hosts(target, credential).is_none(),
                _ => true,
            };
            reaches && !outside_regions(proxy, credential)
        }
        _ => true,
    })
}

/// The first of the target's addresses to which the credential's secret may not be sent, with its
/// pointer.
pub(super) fn outside_hosts(target: &Target, credential: &Credential) -> Option<(String, Origin)> {
    if !credential.has_secret() {
        return None;
    }
    // A base URL that cannot be read is a problem of the target itself.
    let origins = target.bases().map(|(pointer, base)| (pointer, base.origin));
    let covered = |origin: &Origin| credential.hosts.iter().any(|host| host.matches(origin));
    origins.into_iter().find(|(_, origin)| !covered(origin))
}

/// Whether a proxy is served where the credential's secret is not.
pub(super) fn outside_regions(proxy: &Proxy, credential: &Credential) -> bool {
    credential.has_secret() && !regions::are_within(&proxy.regions, &credential.regions)
}

/// What is wrong where a proxy's target has endpoints, but none that its calls may go to.
pub(super) fn outside_endpoints(objects: &Objects, proxy: &Proxy) -> Option<String> {
    let target = target_in(objects, proxy.target_id)?;
    let stored = proxy
        .target_credential_id
        .and_then(|id| credential_in(objects, id));
    let residence = Residence::of(proxy, stored.map(|stored| &stored.credential));
    residence.is_outside(target).then(|| {
        format!(
            "{} has no endpoint in {}, where the proxy's calls stay, and none without `region`",
            proxy.target_id,
            residence.words()
        )
    })
}

pub(super) fn hosts(credential: &Credential) -> String {
    let hosts: Vec<String> = credential.hosts.iter().map(ToString::to_string).collect();
    hosts.join(", ")
}

/// The header that a target credential puts its secret into. Headers of type `custom` are part
/// of its sealed secret; `inject` overwrites them whatever a proxy says.
pub(super) fn injected_header(credential: &Credential) -> Option<&str> {
    let settings = &credential.settings;
    match credential.auth_type {
        AuthType::ApiKey if settings.query.is_some() || settings.path.is_some() => None,
        AuthType::ApiKey => Some(settings.header.as_deref().unwrap_or("x-api-key")),
        AuthType::Bearer | AuthType::Basic | AuthType::Jwt => Some("authorization"),
        AuthType::Custom | AuthType::None => None,
    }
}

/// Which of the proxy's forwarded headers the credential sets too; `_` and `-` are one, as many
/// upstreams read them.
pub(super) fn set_by_both(proxy: &Proxy, credential: &Credential) -> Vec<usize> {
    let plain = |name: &str| name.to_ascii_lowercase().replace('_', "-");
    let Some(injected) = injected_header(credential).map(plain) else {
        return Vec::new();
    };
    let names = proxy.forward_caller_headers.iter().enumerate();
    names
        .filter(|(_, name)| plain(name) == injected)
        .map(|(at, _)| at)
        .collect()
}
