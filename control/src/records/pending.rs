//! Tallies of records that have just come, on their way to the kept ones. Pure.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use proto::id::{CredentialId, OrgId, ProxyId};

use super::counted::Counted;
use super::tally::{Dimension, HOUR_S, MINUTE_S, Tally, span_start};

/// One group in one minute.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Cell {
    pub org: OrgId,
    pub dimension: Dimension,
    /// Seconds since the Unix epoch.
    pub start_s: i64,
    pub value: String,
}

/// All that tells a record apart in a kept dimension.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Alike {
    /// The minute, in seconds since the Unix epoch.
    start_s: i64,
    proxy: u128,
    proxy_credential: Option<u128>,
    target_credential: Option<u128>,
    status: Option<u16>,
    version: u64,
    /// Places among the texts of [`Groups`].
    code: usize,
    node: usize,
}

/// Records of a block, those together that no kept dimension tells apart: most of a block are
/// alike, and all but the first step is then done for few groups and not for each record.
#[derive(Debug, Default)]
pub(super) struct Groups {
    records: usize,
    groups: Vec<(Alike, Tally)>,
    places: BTreeMap<Alike, usize>,
    /// The group of the last record.
    last: usize,
    /// Codes and nodes: a block has few of them.
    texts: Vec<Box<str>>,
}

impl Groups {
    /// Counts a record.
    pub(super) fn add(&mut self, record: &Counted<'_>) {
        self.records += 1;
        let alike = Alike {
            start_s: span_start(record.started_at_us, MINUTE_S),
            proxy: record.proxy_id,
            proxy_credential: record.proxy_credential_id,
            target_credential: record.target_credential_id,
            status: record.status,
            version: record.config_version,
            code: self.text(record.code),
            node: self.text(record.node),
        };
        if self
            .groups
            .get(self.last)
            .is_none_or(|(last, _)| *last != alike)
        {
            self.last = *self.places.entry(alike).or_insert(self.groups.len());
        }
        if self.last == self.groups.len() {
            self.groups.push((alike, Tally::default()));
        }
        if let Some((_, tally)) = self.groups.get_mut(self.last) {
            tally.add(record);
        }
    }

    /// The place of a text.
    fn text(&mut self, text: &str) -> usize {
        let known = self.texts.iter().position(|known| **known == *text);
        known.unwrap_or_else(|| {
            self.texts.push(text.into());
            self.texts.len() - 1
        })
    }

    /// A number that tells the values of a dimension apart.
    fn number(dimension: Dimension, alike: &Alike) -> u128 {
        match dimension {
            Dimension::Proxy => alike.proxy,
            Dimension::ProxyCredential => alike.proxy_credential.unwrap_or_default(),
            Dimension::TargetCredential => alike.target_credential.unwrap_or_default(),
            Dimension::Status => alike.status.unwrap_or_default().into(),
            Dimension::Code => alike.code as u128,
            Dimension::Node => alike.node as u128,
            Dimension::Version => alike.version.into(),
            // Of the others no tallies are kept.
            _ => 0,
        }
    }

    /// The value itself, as [`Dimension::value`] gives it.
    fn value(&self, dimension: Dimension, alike: &Alike) -> String {
        let credential = |id: Option<u128>| {
            id.map_or_else(String::new, |id| CredentialId::from_bits(id).to_string())
        };
        let text = |at: usize| self.texts.get(at).map(|text| text.to_string());
        match dimension {
            Dimension::Proxy => ProxyId::from_bits(alike.proxy).to_string(),
            Dimension::ProxyCredential => credential(alike.proxy_credential),
            Dimension::TargetCredential => credential(alike.target_credential),
            Dimension::Status => alike.status.map_or_else(String::new, |s| s.to_string()),
            Dimension::Code => text(alike.code).unwrap_or_default(),
            Dimension::Node => text(alike.node).unwrap_or_default(),
            Dimension::Version => alike.version.to_string(),
            _ => String::new(),
        }
    }
}

/// Tallies by minute of records that came since they were last written to the file.
#[derive(Clone, Debug, Default)]
pub(super) struct Pending {
    cells: BTreeMap<Cell, Tally>,
    records: usize,
}

impl Pending {
    /// Counts the records of groups, all of one organisation.
    pub(super) fn add(&mut self, org: OrgId, groups: &Groups) {
        self.records += groups.records;
        for dimension in Dimension::KEPT {
            let mut merged: BTreeMap<(i64, u128), (Tally, &Alike)> = BTreeMap::new();
            for (alike, tally) in &groups.groups {
                let key = (alike.start_s, Groups::number(dimension, alike));
                match merged.entry(key) {
                    Entry::Occupied(mut known) => known.get_mut().0.merge(tally),
                    Entry::Vacant(place) => {
                        place.insert((tally.clone(), alike));
                    }
                }
            }
            for ((start_s, _), (tally, alike)) in merged {
                let value = groups.value(dimension, alike);
                let cell = Cell {
                    org,
                    dimension,
                    start_s,
                    value,
                };
                match self.cells.entry(cell) {
                    Entry::Occupied(mut known) => known.get_mut().merge(&tally),
                    Entry::Vacant(place) => {
                        place.insert(tally);
                    }
                }
            }
        }
    }

    /// How many records are counted here.
    pub(super) fn records(&self) -> usize {
        self.records
    }

    /// The tallies by minute.
    pub(super) fn minutes(&self) -> impl Iterator<Item = (&Cell, &Tally)> {
        self.cells.iter()
    }

    /// The same by hour.
    pub(super) fn hours(&self) -> BTreeMap<Cell, Tally> {
        let mut hours: BTreeMap<Cell, Tally> = BTreeMap::new();
        for (cell, tally) in &self.cells {
            let start_s = cell.start_s.div_euclid(HOUR_S) * HOUR_S;
            let cell = Cell {
                start_s,
                ..cell.clone()
            };
            hours.entry(cell).or_default().merge(tally);
        }
        hours
    }
}

#[cfg(test)]
mod tests {
    use proto::wire::StoredRecord;

    use super::*;

    /// Each record counted by itself in each dimension.
    fn one_by_one(records: &[proto::record::Record]) -> BTreeMap<(Dimension, i64, String), Tally> {
        let mut cells = BTreeMap::new();
        for record in records {
            let stored = StoredRecord::of(record);
            for dimension in Dimension::KEPT {
                let start_s = span_start(record.started_at_us, MINUTE_S);
                let key = (dimension, start_s, dimension.value(&stored));
                let tally: &mut Tally = cells.entry(key).or_default();
                tally.add(&Counted::from(&stored));
            }
        }
        cells
    }

    fn records(numbers: &[[u8; 4]]) -> Vec<proto::record::Record> {
        let json = serde_json::json!({
            "request_id": proto::id::RequestId::from_bits(1), "org_id": OrgId::from_bits(1),
            "proxy_id": ProxyId::from_bits(1), "config_version": 1, "node": "n",
            "region": "local", "method": "GET", "path": "/", "query": [], "code": "x",
            "started_at_us": 0, "total_us": 5, "stages": [], "request_bytes": 0,
            "response_bytes": 7, "upstream_request_bytes": 0, "upstream_response_bytes": 0,
            "attempts": 1, "denials": [], "shadow_rule_ids": [], "filter_ids": [],
            "upstream_ids": [], "client_aborted": false, "scrubbed": 0
        });
        let plain: proto::record::Record = serde_json::from_value(json).unwrap();
        let of = |[a, b, c, d]: &[u8; 4]| {
            let mut record = plain.clone();
            let credential = |n: u8| (n > 0).then(|| CredentialId::from_bits(n.into()));
            record.proxy_id = ProxyId::from_bits((a % 3).into());
            record.proxy_credential_id = credential(a / 3 % 3);
            record.target_credential_id = credential(a / 9 % 2);
            record.status = (b % 4 > 0).then_some(u16::from(b % 4) * 200);
            record.code =
                ["proxy-access-granted", "rate-limited", "n"][usize::from(b / 4 % 3)].into();
            record.node = ["n", "m"][usize::from(b / 12 % 2)].into();
            record.config_version = u64::from(b / 24 % 3);
            record.started_at_us = i64::from(c % 4) * 30_000_000;
            record.total_us = u64::from(*d) * 1_000;
            record.client_aborted = d % 2 == 0;
            record
        };
        numbers.iter().map(of).collect()
    }

    proptest::proptest! {
        #[test]
        fn counted_in_groups_is_counted_one_by_one(numbers: Vec<[u8; 4]>, cut: usize) {
            let records = records(&numbers);
            let mut pending = Pending::default();
            let (first, second) = records.split_at(cut % (records.len() + 1));
            for block in [first, second] {
                let mut groups = Groups::default();
                block.iter().for_each(|record| groups.add(&Counted::from(record)));
                pending.add(OrgId::from_bits(1), &groups);
            }
            let found: BTreeMap<_, _> = pending
                .minutes()
                .map(|(cell, tally)| {
                    ((cell.dimension, cell.start_s, cell.value.clone()), tally.clone())
                })
                .collect();
            proptest::prop_assert_eq!(found, one_by_one(&records));
            proptest::prop_assert_eq!(pending.records(), records.len());
        }
    }
}
