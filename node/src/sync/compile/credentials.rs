//! Compiles credentials of both sides: secrets in force, places, the filters and
//! meters of their scopes.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use jiff::Timestamp;
use proto::credential::{AuthType, Credential, CredentialKind, SecretState};
use proto::filter::{Direction, FilterSet};
use proto::id::{CredentialId, ProxyId};
use proto::object::{ObjectId, StoredCredential};
use proto::proxy::Proxy;
use proto::retired::Retired;
use proto::rule::RuleSet;
use proto::seal::Keyring;
use proto::store::follow::OrgState;

use super::OrgCompiler;
use crate::credentials::vault::{self, Bound, Sealing};
use crate::presented::Extra;
use crate::snapshot::{End, ProxyCredential, ProxySecret, Successor, TargetCredential, validity};

fn missing(id: CredentialId) -> String {
    format!("credential {id} is missing or of the other kind")
}

/// A target's credential as an organisation has it now, with these rules; none where there is none.
pub(super) fn target_credential(
    state: &OrgState,
    id: CredentialId,
    keyring: &Arc<Keyring>,
    rules: Arc<RuleSet>,
) -> Option<TargetCredential> {
    let stored = state.config.credential(id)?;
    let credential = &stored.credential;
    if credential.kind != CredentialKind::Target {
        return None;
    }
    let end = |secret: &SecretState| validity(state.retired.get(&id), &secret.generation);
    let secret = stored
        .secret
        .as_ref()
        .filter(|secret| end(secret).is_none_or(|end| end > Timestamp::now()));
    let seal_id = secret.and_then(|secret| secret.seal_id.clone());
    let seal_id = seal_id.unwrap_or_default();
    let sealed = state.sealed.get(&(id, seal_id.clone())).cloned();
    let bound = Bound {
        org: state.config.org,
        credential: id,
        hosts: credential.hosts.clone(),
        seal_id,
    };
    let (auth_type, settings) = (credential.auth_type, credential.settings.clone());
    Some(TargetCredential {
        id,
        id_text: id.to_string().into(),
        generation: secret.map(|secret| secret.generation.to_string().into()),
        end: End::new(stored.secret.as_ref().and_then(end)),
        successor: Successor::default(),
        auth_type,
        hosts: credential.hosts.clone(),
        secret: Sealing::new(sealed, bound, Arc::clone(keyring), auth_type, settings),
        max_fact_age: max_fact_age(credential),
        rules,
    })
}

fn max_fact_age(credential: &Credential) -> Option<Duration> {
    let age_s = credential.max_fact_age_s?;
    Some(Duration::from_secs(age_s.into()))
}

impl<'a> OrgCompiler<'a> {
    pub(super) fn target_credential(
        &mut self,
        id: CredentialId,
    ) -> Result<Arc<TargetCredential>, String> {
        if let Some(known) = self.target_credentials.get(&id) {
            return Ok(known.clone());
        }
        let effect = {
            let stored = self.credential(id, CredentialKind::Target)?;
            stored.credential.default_rule_effect
        };
        let rules = self.rules(ObjectId::Credential(id), effect)?;
        let keyring = &self.compiler.parts.keyring;
        let compiled = target_credential(self.state, id, keyring, rules);
        let compiled = compiled.ok_or_else(|| missing(id)).map(Arc::new)?;
        self.target_credentials.insert(id, compiled.clone());
        Ok(compiled)
    }

    pub(super) fn proxy_credential(
        &mut self,
        id: CredentialId,
        proxy_id: ProxyId,
        proxy: &Proxy,
    ) -> Result<ProxyCredential, String> {
        let stored = self.credential(id, CredentialKind::Proxy)?;
        let credential = &stored.credential;
        let retired = self.state.retired.get(&id);
        let secrets: Vec<ProxySecret> = stored
            .secret
            .iter()
            .chain(&stored.previous)
            .filter_map(|secret| proxy_secret(retired, secret))
            .collect();
        let header = credential
            .settings
            .header
            .as_deref()
            .unwrap_or("authorization");
        let rules = self.rules(ObjectId::Credential(id), credential.default_rule_effect)?;
        let filters = |direction| self.filters(id, proxy_id, proxy, direction);
        Ok(ProxyCredential {
            id,
            id_text: id.to_string().into(),
            auth_type: credential.auth_type,
            secrets,
            header: HeaderName::from_bytes(header.as_bytes())
                .map_err(|_| format!("credential {id}: `{header}` is not a header name"))?,
            query: credential.settings.query.as_deref().map(Into::into),
            explain: credential.explain,
            expires_at: credential.expires_at,
            max_fact_age: max_fact_age(credential),
            response_filters: filters(Direction::Response)?,
            request_filters: filters(Direction::Request)?,
            rules,
            metering: self.metering((id, credential.priority), proxy_id, proxy)?,
        })
    }

    fn credential(
        &self,
        id: CredentialId,
        kind: CredentialKind,
    ) -> Result<&'a StoredCredential, String> {
        self.state
            .config
            .credential(id)
            .filter(|stored| stored.credential.kind == kind)
            .ok_or_else(|| missing(id))
    }

    /// The filters of the four scopes, earlier scopes first.
    fn filters(
        &self,
        caller: CredentialId,
        proxy_id: ProxyId,
        proxy: &Proxy,
        direction: Direction,
    ) -> Result<Option<Arc<FilterSet>>, String> {
        let scopes = [
            proxy.target_credential_id.map(ObjectId::Credential),
            Some(ObjectId::Target(proxy.target_id)),
            Some(ObjectId::Credential(caller)),
            Some(ObjectId::Proxy(proxy_id)),
        ]
        .map(|parent| self.policies.filters(parent, direction));
        let [first, second, third, fourth] = scopes;
        let scopes = [first?, second?, third?, fourth?];
        if scopes.iter().all(Vec::is_empty) {
            return Ok(None);
        }
        let set = FilterSet::new(std::array::from_fn(|at| scopes[at].as_slice()));
        Ok(Some(Arc::new(set)))
    }
}

fn proxy_secret(retired: Option<&Retired>, secret: &SecretState) -> Option<ProxySecret> {
    let mut digest = [0; 32];
    hex::decode_to_slice(&secret.digest, &mut digest).ok()?;
    Some(ProxySecret {
        digest,
        end: End::new(validity(retired, &secret.generation)),
        generation: secret.generation.to_string().into(),
        issued: secret.issued,
    })
}

/// Query parameters that may hold a key: those of the places, and those of given keys.
pub(super) fn key_queries(places: &Extra, credentials: &[ProxyCredential]) -> Vec<Box<str>> {
    let given = credentials
        .iter()
        .filter_map(|credential| credential.query.clone());
    places.queries.iter().cloned().chain(given).collect()
}

/// Where callers may put a key of ours beyond the usual places.
pub(super) fn places(state: &OrgState, proxy: &Proxy, credentials: &[ProxyCredential]) -> Extra {
    let mut extra = Extra::default();
    if let Some(stored) = proxy
        .target_credential_id
        .and_then(|id| state.config.credential(id))
    {
        let credential = &stored.credential;
        let (header, query) = vault::places(credential.auth_type, &credential.settings);
        extra.headers.extend(header);
        extra.queries.extend(query);
    }
    for credential in credentials.iter().filter(|one| one.has_issued()) {
        if credential.auth_type == AuthType::ApiKey {
            extra.headers.push(credential.header.clone());
            extra.queries.extend(credential.query.clone());
        }
    }
    extra
}
