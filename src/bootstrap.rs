//! The first token: made once, or given by the operator.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use control::publish::{Author, Publish, PublishError, Publisher};
use jiff::Timestamp;
use proto::id::TokenId;
use proto::object::{Body, ObjectId, StoredToken};
use proto::org::{ApiToken, Role};
use proto::seal::{self, Purpose};
use proto::tree::{Operation, OrgConfig, SYSTEM_ORG};
use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::control_settings::ControlSettings;
use crate::own_secrets;
use crate::private_file;
use crate::serve::CannotStart;

/// The name of the bootstrap token's object in the organisation `system`.
const NAME: &str = "bootstrap";
/// The id of an installation's first token: of control planes that start at once one makes it.
const FIRST: TokenId = TokenId::from_bits(1);
/// Starts at once of which each may be the one that is a moment later.
const TRIES: usize = 5;
/// Shortest token that an operator may give, in characters.
const GIVEN_CHARS_MIN: usize = 32;

/// What is known of the admin token after a start.
pub struct AdminToken {
    /// The token; absent when only its digest is left.
    pub text: Option<Zeroizing<String>>,
    /// Where it comes from.
    pub origin: Origin,
}

impl AdminToken {
    /// Whether the file of made tokens holds it.
    pub fn is_in_file(&self) -> bool {
        self.text.is_some() && self.origin != Origin::Given
    }
}

/// Where the admin token in force comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It was made just now.
    Made,
    /// The file of an earlier start.
    Kept,
    /// The operator gives it.
    Given,
    /// It was made or given at an earlier start, or elsewhere; a file here may hold it.
    Unknown,
}

/// The token that the operator gives, if one is given.
///
/// # Errors
/// It is too short, or its file cannot be read.
pub fn given(settings: &ControlSettings) -> anyhow::Result<Option<Zeroizing<String>>> {
    let from_file = |path: &Path| from_file("admin", path);
    let token = if let Ok(text) = std::env::var("REQUESTROCKET_ADMIN_TOKEN") {
        Zeroizing::new(text)
    } else if let Ok(path) = std::env::var("REQUESTROCKET_ADMIN_TOKEN_FILE") {
        from_file(Path::new(&path))?
    } else if let Some(text) = &settings.admin_token {
        Zeroizing::new(text.clone())
    } else if let Some(path) = &settings.admin_token_file {
        from_file(path)?
    } else {
        return Ok(None);
    };
    long_enough("admin", &token)?;
    own_secrets::keep(&token);
    Ok(Some(token))
}

/// The operator's own token of this region, if there is one.
///
/// # Errors
/// It is too short, or its file cannot be read.
pub fn operator_token(settings: &ControlSettings) -> anyhow::Result<Option<Zeroizing<String>>> {
    let Some(path) = &settings.operator_token_file else {
        return Ok(None);
    };
    let token = from_file("operator", path)?;
    long_enough("operator", &token)?;
    own_secrets::keep(&token);
    Ok(Some(token))
}

fn from_file(whose: &str, path: &Path) -> anyhow::Result<Zeroizing<String>> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("reading the {whose} token from {}", path.display()))
        .map_err(|error| CannotStart(format!("{error:#}")))?;
    Ok(Zeroizing::new(text.trim().to_owned()))
}

fn long_enough(whose: &str, token: &str) -> Result<(), CannotStart> {
    match token.chars().count() >= GIVEN_CHARS_MIN {
        true => Ok(()),
        false => Err(CannotStart(format!(
            "the given {whose} token has fewer than {GIVEN_CHARS_MIN} characters; use a longer one"
        ))),
    }
}

/// Makes sure that there is a bootstrap token, or another owner's, and that a given one is the one
/// in force: who deletes the first token after having made better ones does not get it back, and
/// who has none left is let in by a start.
///
/// `file` keeps a made one, so that a later start still knows it.
///
/// # Errors
/// The store or the file cannot be written.
pub async fn admin_token(
    publisher: &Publisher,
    given: Option<Zeroizing<String>>,
    file: &Path,
) -> anyhow::Result<AdminToken> {
    let mut tries = 1;
    loop {
        let tried = once(publisher, given.clone(), file).await;
        match tried {
            // Another control plane starts too: what it made is there now.
            Err(error) if tries < TRIES && is_refused(&error) => tries += 1,
            tried => return tried,
        }
    }
}

fn is_refused(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(PublishError::Refused(_)))
}

async fn once(
    publisher: &Publisher,
    given: Option<Zeroizing<String>>,
    file: &Path,
) -> anyhow::Result<AdminToken> {
    let system = publisher.load(SYSTEM_ORG).await?;
    let mut tokens = system.objects.tokens();
    let known = tokens.find(|(_, stored)| stored.token.name == NAME);
    let known = known.map(|(id, stored)| (id, stored.digest.clone()));
    let kept = private_file::read(file)?.map(|text| Zeroizing::new(text.trim().to_owned()));
    let digest = |token: &str| hex::encode(publisher.digest(Purpose::ApiToken, token.as_bytes()));
    let (token, origin) = match (given, kept, &known) {
        (Some(given), _, _) => (given, Origin::Given),
        (None, Some(kept), Some((_, known))) if digest(&kept) == *known => (kept, Origin::Kept),
        (None, _, known) if known.is_some() || has_owner(&system) => {
            return Ok(AdminToken {
                text: None,
                origin: Origin::Unknown,
            });
        }
        (None, _, _) => (seal::issue_api_token(), Origin::Made),
    };
    own_secrets::keep(&token);
    let wanted = digest(&token);
    if origin == Origin::Made {
        // First: nobody can make a token again that is in force and was not written down.
        private_file::write(file, token.as_bytes())
            .with_context(|| format!("writing {}", file.display()))?;
    }
    let published = match known {
        Some((_, known)) if known == wanted => Ok(()),
        Some((id, _)) => publish(publisher, replace(id, wanted)).await,
        None => publish(publisher, vec![create(FIRST, wanted)]).await,
    };
    if let Err(error) = published {
        if origin == Origin::Made && is_refused(&error) {
            let _ = std::fs::remove_file(file);
        }
        return Err(error);
    }
    Ok(AdminToken {
        text: Some(token),
        origin,
    })
}

/// The token of an earlier start, for one that makes and sets none: its file is all that is known.
///
/// # Errors
/// The file cannot be read.
pub fn of_before(file: &Path) -> anyhow::Result<AdminToken> {
    let kept = private_file::read(file)?;
    let text = kept.map(|text| Zeroizing::new(text.trim().to_owned()));
    if let Some(text) = &text {
        own_secrets::keep(text);
    }
    Ok(AdminToken {
        text,
        origin: Origin::Unknown,
    })
}

/// Sets a given token as soon as the store takes it, for a start that served what was kept without
/// the store, or one that a person has to help first.
pub async fn set_later(
    (publisher, file): (Arc<Publisher>, PathBuf),
    given: Zeroizing<String>,
    every: Duration,
) {
    tracing::warn!("the given admin token is not in force yet: the store does not take it");
    loop {
        tokio::time::sleep(every).await;
        let setting = async {
            publisher
                .bootstrap(Instant::now() + Duration::from_secs(10))
                .await?;
            publisher.settle_homes().await?;
            admin_token(&publisher, Some(given.clone()), &file).await
        };
        let Err(error) = setting.await else {
            tracing::info!("the given admin token is in force");
            return;
        };
        match error.downcast_ref() {
            Some(PublishError::NotHome { home, .. }) => {
                tracing::warn!(
                    "the given admin token is not set: tokens come from home region {home}"
                );
                return;
            }
            // Who waits for the store, and for whom the store waits, is told elsewhere.
            _ => tracing::debug!("the given admin token is not set yet: {error:#}"),
        }
    }
}

/// Whether somebody holds a token that may do everything.
fn has_owner(system: &OrgConfig) -> bool {
    let now = Timestamp::now();
    let in_force = |end: Option<Timestamp>| end.is_none_or(|end| end > now);
    let mut tokens = system.objects.tokens();
    tokens.any(|(_, stored)| stored.token.role == Role::Owner && in_force(stored.token.expires_at))
}

/// The creation of a bootstrap token with this digest.
fn create(id: TokenId, digest: String) -> Operation {
    let token = ApiToken {
        name: NAME.into(),
        role: Role::Owner,
        expires_at: None,
    };
    Operation::Create {
        id: ObjectId::Token(id),
        body: Body::Token(StoredToken { token, digest }),
        secret: None,
    }
}

/// A token that the operator gives retires the one before it, in the same version.
fn replace(old: TokenId, digest: String) -> Vec<Operation> {
    let retire = Operation::Delete {
        id: ObjectId::Token(old),
        precondition: None,
    };
    vec![retire, create(TokenId::new(), digest)]
}

async fn publish(publisher: &Publisher, operations: Vec<Operation>) -> anyhow::Result<()> {
    let publish = Publish {
        org: SYSTEM_ORG,
        operations,
        author: author(),
        deadline: Instant::now() + Duration::from_secs(10),
        idempotency: None,
    };
    publisher.publish(publish).await?;
    Ok(())
}

/// Who makes what a start makes.
pub fn author() -> Author {
    Author {
        name: "bootstrap".to_owned(),
        role: Role::Owner,
        source: None,
    }
}

#[cfg(test)]
mod tests {
    use control::publish::PublisherOptions;
    use node::credentials::live::{LiveSecrets, Whose};
    use proto::policy::Policy;
    use proto::seal::Keyring;
    use proto::store::embedded::Embedded;
    use proto::store::{Op, Store, Txn};
    use proto::version::Epoch;

    use super::*;

    const OLD: &str = "Old-Admin-Token-0123456789-abcdefgh";
    const NEW: &str = "New-Admin-Token-0123456789-abcdefgh";

    /// Whether exactly this token is in force as the first one.
    async fn is_in_force(publisher: &Publisher, token: &str) -> bool {
        let wanted = hex::encode(publisher.digest(Purpose::ApiToken, token.as_bytes()));
        let Ok(system) = publisher.load(SYSTEM_ORG).await else {
            return false;
        };
        let of = system.objects.tokens();
        of.filter(|(_, stored)| stored.token.name == NAME)
            .all(|(_, stored)| stored.digest == wanted)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_token_that_could_not_be_set_at_the_start_is_set_when_the_store_takes_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("admin-token");
        let store = Embedded::open(&dir.path().join("store")).unwrap();
        let ring = Keyring::generate("local");
        let publisher = Arc::new(Publisher::new(PublisherOptions {
            store: store.clone(),
            public: ring.public().unwrap(),
            digest_key: ring.digest_key.clone(),
            policy: Policy::default(),
            epoch: Epoch {
                counter: 1,
                region: "local".into(),
            },
            clock: Arc::new(Timestamp::now),
        }));
        let until = Instant::now() + Duration::from_secs(10);
        publisher.bootstrap(until).await.unwrap();
        let old = Zeroizing::new(OLD.to_owned());
        let set = admin_token(&publisher, Some(old), &file).await.unwrap();
        assert_eq!(set.origin, Origin::Given);
        assert!(is_in_force(&publisher, OLD).await);
        // A store whose head cannot be read takes nothing.
        let head = proto::keys::head(SYSTEM_ORG);
        let good = store.get(&head).await.unwrap().value.unwrap().value;
        let put = async |value: Vec<u8>| {
            let txn = Txn {
                ops: vec![Op::put(head.clone(), value)],
                ..Txn::default()
            };
            store.txn(txn).await.unwrap();
        };
        put(b"{".to_vec()).await;
        let new = Zeroizing::new(NEW.to_owned());
        let every = Duration::from_millis(10);
        let setting = tokio::spawn(set_later((publisher.clone(), file), new, every));
        put(good.to_vec()).await;
        setting.await.unwrap();
        assert!(is_in_force(&publisher, NEW).await);
    }

    #[test]
    fn a_token_of_before_is_one_of_this_process_s_secrets() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("admin-token");
        assert!(of_before(&file).unwrap().text.is_none());
        private_file::write(&file, b"Kept-Admin-Token-0123456789-abcdefg\n").unwrap();
        let found = of_before(&file).unwrap();
        assert_eq!(found.origin, Origin::Unknown);
        let text = found.text.unwrap();
        assert_eq!(text.as_str(), "Kept-Admin-Token-0123456789-abcdefg");
        let line = format!("with {}", text.as_str());
        let clean = LiveSecrets::of_process().overwritten(Whose::Everybodys, line.as_bytes());
        assert!(!String::from_utf8_lossy(&clean).contains("Token"));
    }
}
