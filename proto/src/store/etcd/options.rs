//! How to reach an etcd cluster.

use std::time::Duration;

use etcd_client::{Certificate, ConnectOptions, Identity, TlsOptions};
use url::Url;

use crate::store::StoreError;

/// Longest key prefix; with [`crate::store::limits`] every transaction still fits etcd's request.
const PREFIX_BYTES_MAX: usize = 64;

/// A connection that was silent for so long is asked whether it lives, not more often than every
/// 5 s: etcd closes the connection of who does (`--grpc-keepalive-min-time`),
const PING_AFTER: Duration = Duration::from_secs(6);

/// and is given up when it does not answer for so long.
const PING_TIMEOUT: Duration = Duration::from_secs(1);

/// What an operator chooses about the etcd store. Holds secrets, so it cannot be printed.
#[derive(Clone)]
pub struct EtcdOptions {
    /// Client URLs of the members, `http://host:port` or, with [`EtcdOptions::tls`], `https://`.
    pub endpoints: Vec<String>,
    /// Prefix of all our keys in the cluster; ends in a slash. Default `/requestrocket/`.
    pub prefix: String,
    /// Longest time that a call may take, attempts at other endpoints included. Default 2 s.
    pub timeout: Duration,
    /// Longest time that connecting may take. Default 1 s.
    pub connect_timeout: Duration,
    /// Who we are, where the cluster asks for it.
    pub user: Option<EtcdUser>,
    /// Encryption towards the cluster.
    pub tls: Option<EtcdTls>,
}

/// A user of the cluster's role-based access control.
#[derive(Clone)]
pub struct EtcdUser {
    /// The user's name.
    pub name: String,
    /// The user's password.
    pub password: String,
}

/// Whom to trust, and who we are, in TLS.
#[derive(Clone)]
pub struct EtcdTls {
    /// PEM certificates of the authorities that sign the members' certificates.
    pub ca_pem: String,
    /// Our PEM certificate chain and private key, where the cluster asks for one.
    pub identity_pem: Option<(String, String)>,
    /// The name expected in the members' certificates; that of the endpoint when absent.
    pub server_name: Option<String>,
}

impl EtcdOptions {
    /// The defaults for these endpoints.
    pub fn new(endpoints: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            prefix: "/requestrocket/".into(),
            timeout: Duration::from_secs(2),
            connect_timeout: Duration::from_secs(1),
            user: None,
            tls: None,
        }
    }

    /// Refuses what could never work.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        let refuse = |text: String| Err(StoreError::Unusable(text));
        if self.endpoints.is_empty() {
            return refuse("`store.endpoints` names no etcd endpoint".into());
        }
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        for endpoint in &self.endpoints {
            let url = Url::parse(endpoint);
            if !url.is_ok_and(|url| url.scheme() == scheme && url.has_host()) {
                return refuse(format!(
                    "`store.endpoints`: {endpoint:?} is not of the form {scheme}://host:port{}",
                    if self.tls.is_some() {
                        ""
                    } else {
                        " (https needs `store.ca_file`)"
                    }
                ));
            }
        }
        if !self.prefix.ends_with('/') || self.prefix.len() > PREFIX_BYTES_MAX {
            return refuse(format!(
                "`store.prefix` {:?} does not end in a slash or is longer than \
                 {PREFIX_BYTES_MAX} bytes",
                self.prefix
            ));
        }
        Ok(())
    }

    /// The same for the client library.
    pub(super) fn connect_options(&self) -> ConnectOptions {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(self.connect_timeout)
            .with_timeout(self.timeout)
            .with_keep_alive(PING_AFTER, PING_TIMEOUT)
            .with_keep_alive_while_idle(true)
            // A member without a leader refuses at once, and ends watches, instead of being silent.
            .with_require_leader(true);
        if let Some(user) = &self.user {
            options = options.with_user(&user.name, &user.password);
        }
        if let Some(tls) = &self.tls {
            options = options.with_tls(tls.client_options());
        }
        options
    }
}

impl EtcdTls {
    fn client_options(&self) -> TlsOptions {
        let mut options = TlsOptions::new().ca_certificate(Certificate::from_pem(&self.ca_pem));
        if let Some((certificate, key)) = &self.identity_pem {
            options = options.identity(Identity::from_pem(certificate, key));
        }
        if let Some(name) = &self.server_name {
            options = options.domain_name(name);
        }
        options
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_work_is_refused_by_name() {
        let check = |what: &str, change: fn(&mut EtcdOptions), refused: Option<&str>| {
            let mut options = EtcdOptions::new(["http://127.0.0.1:2379"]);
            change(&mut options);
            match (options.check(), refused) {
                (Ok(()), None) => {}
                (Err(StoreError::Unusable(text)), Some(part)) => {
                    assert!(text.contains(part), "{what}: {text}");
                }
                (found, _) => panic!("{what}: {found:?}"),
            }
        };
        check("the defaults", |_| {}, None);
        check(
            "no endpoint",
            |o| o.endpoints.clear(),
            Some("no etcd endpoint"),
        );
        check(
            "no scheme",
            |o| o.endpoints = vec!["etcd:2379".into()],
            Some("etcd:2379"),
        );
        check(
            "https without TLS",
            |o| o.endpoints = vec!["https://a:1".into()],
            Some("https://a"),
        );
        check(
            "http with TLS",
            |o| {
                o.tls = Some(EtcdTls {
                    ca_pem: "".into(),
                    identity_pem: None,
                    server_name: None,
                });
            },
            Some("https://host:port"),
        );
        check(
            "an IPv6 endpoint",
            |o| o.endpoints = vec!["http://[::1]:2379".into()],
            None,
        );
        check(
            "a prefix without slash",
            |o| o.prefix = "/rr".into(),
            Some("slash"),
        );
        check("an empty prefix", |o| o.prefix.clear(), Some("slash"));
        check(
            "a long prefix",
            |o| o.prefix = "/".repeat(65),
            Some("64 bytes"),
        );
    }
}
