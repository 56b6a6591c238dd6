//! Versions that leave something out of this region which it had: what it keeps of earlier ones is
//! to go.

use std::borrow::Cow;
use std::collections::BTreeMap;

use bytes::Bytes;
use proto::store::{Op, Store};
use proto::tree::{Hash, OrgConfig, VersionRecord, changes_elsewhere, narrows};

use super::apply::{ApplyError, Local};
use super::content::kept;
use crate::publish::writes::kept_from;

impl Local {
    /// What says from which version on something is kept here, where one of an answer leaves
    /// something out. Content of every one of them is stored, so that every step counts.
    pub(super) async fn narrowing(
        &self,
        (store, region): (&dyn Store, &str),
        records: &[VersionRecord],
        last: &OrgConfig,
        content: &BTreeMap<Hash, Bytes>,
    ) -> Result<Option<Op>, ApplyError> {
        let put = |n| kept_from(self.org, n);
        let Some(here) = self.config() else {
            // What a branch that is left had is not known any more.
            let is_cut = last.head.is_cut() && self.branch.is_left();
            return Ok(is_cut.then(|| put(last.head.n)));
        };
        let made = async |record: &VersionRecord| {
            let head = &record.head;
            Ok::<_, ApplyError>(match *head == last.head {
                true => Cow::Borrowed(last),
                false => {
                    let roots = kept(head, region);
                    Cow::Owned(self.assemble(store, (head, roots), content).await?)
                }
            })
        };
        let mut narrowed = None;
        for (at, record) in records.iter().enumerate() {
            let parent = at.checked_sub(1).and_then(|at| records.get(at));
            let parent_head = parent.map_or(&here.head, |parent| &parent.head);
            if !changes_elsewhere(parent_head, &record.head, region) {
                continue;
            }
            let old = match parent {
                None => Cow::Borrowed(&**here),
                Some(parent) => made(parent).await?,
            };
            if narrows(&old, &*made(record).await?, region) {
                narrowed = Some(put(record.head.n));
            }
        }
        Ok(narrowed)
    }
}
