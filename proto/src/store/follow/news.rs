//! What one answer of the store says: its keys under `live/`, sorted by what they are of.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::FAULTS_MAX;
use crate::id::{CredentialId, OrgId, RequestId};
use crate::keys::{self, Live};
use crate::object::ObjectId;
use crate::regions::Gateways;
use crate::retired::Retired;
use crate::store::load::Fault;
use crate::store::{Event, KeyValue};
use crate::test_request::Posted;
use crate::tree::Head;

/// What a list or a revision says of one organisation.
#[derive(Default)]
pub(super) struct News {
    pub head: Option<Heard>,
    pub delta: Option<KeyValue>,
    pub retired: BTreeMap<CredentialId, Option<Retired>>,
}

pub(super) enum Heard {
    Head(Head),
    Unreadable(String),
    Gone,
}

/// Codes of earlier faults that news of this kind leave as they are.
pub(super) fn standing(head: Option<&Heard>) -> &'static [&'static str] {
    match head {
        None => &[
            "object-unreadable",
            "leaf-missing",
            "leaf-unreadable",
            "version-unreadable",
            "store-regressed",
        ],
        Some(Heard::Head(_)) => &[],
        Some(_) => &["object-unreadable", "leaf-missing", "leaf-unreadable"],
    }
}

/// Whether what could not be read may be there later, in the store that lacks it now.
pub(super) fn may_come(code: &str) -> bool {
    matches!(
        code,
        "version-unreadable"
            | "leaf-missing"
            | "leaf-unreadable"
            | "secret-missing"
            | "secret-unreadable"
    )
}

/// Whether an event is the beat of control.
pub(super) fn is_beat(event: &mut Event) -> bool {
    let (Event::Put(KeyValue { key, .. }) | Event::Delete { key, .. }) = event;
    key == keys::BEAT
}

/// Sorts one key of `live/` into the news.
pub(super) fn collect(news: &mut BTreeMap<OrgId, News>, stray: &mut Vec<Fault>, pair: KeyValue) {
    match Live::parse(&pair.key) {
        Some(Live::Head(org)) => {
            let heard = match Head::parse(&pair.value) {
                Ok(head) => Heard::Head(head),
                Err(error) => Heard::Unreadable(error.to_string()),
            };
            news.entry(org).or_default().head = Some(heard);
        }
        Some(Live::Delta(org)) => news.entry(org).or_default().delta = Some(pair),
        Some(Live::Retired(org, credential)) => match serde_json::from_slice(&pair.value) {
            Ok(fact) => {
                news.entry(org)
                    .or_default()
                    .retired
                    .insert(credential, Some(fact));
            }
            Err(error) if stray.len() < FAULTS_MAX => stray.push(Fault {
                org: Some(org),
                object: Some(ObjectId::Credential(credential)),
                code: "fact-unreadable",
                detail: error.to_string(),
            }),
            Err(_) => {}
        },
        Some(Live::Test(_) | Live::Regions | Live::RecoveryAsk | Live::Beat | Live::Resealed)
        | None => {}
    }
}

/// What stands below `live/` besides the organisations.
#[derive(Default)]
pub(super) struct Notices {
    pub tests: BTreeMap<RequestId, Arc<Posted>>,
    pub gateways: Arc<Gateways>,
    /// A person's request to write back what the store has lost.
    pub asked: Option<Arc<KeyValue>>,
    /// The key that sealed values were sealed to anew.
    pub resealed: Option<String>,
}

impl Notices {
    /// Takes in a key. Gateways that this release cannot read change nothing; a test request that
    /// it cannot read is another's to send.
    pub fn put(&mut self, pair: &KeyValue) {
        match Live::parse(&pair.key) {
            Some(Live::Test(id)) => {
                if let Ok(request) = serde_json::from_slice(&pair.value) {
                    let lease = pair.lease;
                    self.tests.insert(id, Arc::new(Posted { request, lease }));
                }
            }
            Some(Live::Regions) => {
                if let Ok(gateways) = serde_json::from_slice(&pair.value) {
                    self.gateways = Arc::new(gateways);
                }
            }
            Some(Live::RecoveryAsk) => self.asked = Some(Arc::new(pair.clone())),
            Some(Live::Resealed) => {
                self.resealed = std::str::from_utf8(&pair.value).ok().map(str::to_owned);
            }
            Some(Live::Head(_) | Live::Delta(_) | Live::Retired(..) | Live::Beat) | None => {}
        }
    }

    /// A key is gone.
    pub fn delete(&mut self, key: Live) {
        match key {
            Live::Test(id) => drop(self.tests.remove(&id)),
            Live::Regions => self.gateways = Arc::default(),
            Live::RecoveryAsk => self.asked = None,
            Live::Resealed => self.resealed = None,
            Live::Head(_) | Live::Delta(_) | Live::Retired(..) | Live::Beat => {}
        }
    }
}
