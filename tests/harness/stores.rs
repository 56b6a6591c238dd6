//! What the stores of regions hold.

use std::collections::BTreeMap;

use proto::store::etcd::{Etcd, EtcdOptions};
use proto::store::{KeyValue, load};

use super::http::SILENCE_MAX;

/// What is the same in all regions.
pub const LIVE: [&str; 2] = ["live/head/", "live/retired/"];

/// Everything that the store at an etcd holds.
pub fn dump(endpoint: &str) -> BTreeMap<String, Vec<u8>> {
    listed(endpoint, "", |pair| pair.value.to_vec())
}

/// How often each key with this prefix was written since it was made.
pub fn writes(endpoint: &str, prefix: &str) -> BTreeMap<String, u64> {
    listed(endpoint, prefix, |pair| pair.version.unsigned_abs())
}

fn listed<T>(endpoint: &str, prefix: &str, of: impl Fn(&KeyValue) -> T) -> BTreeMap<String, T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let mut options = EtcdOptions::new(&[endpoint.to_owned()]);
        options.timeout = SILENCE_MAX;
        let store = Etcd::open(options).expect("a store");
        let mut found = BTreeMap::new();
        let listed = load::list(&*store, prefix, None, |pair| {
            let value = of(&pair);
            found.insert(pair.key, value);
        });
        listed.await.expect("etcd answers");
        found
    })
}

/// The part of a dump with these prefixes.
pub fn part(dump: &BTreeMap<String, Vec<u8>>, prefixes: &[&str]) -> BTreeMap<String, Vec<u8>> {
    let of = |key: &String| prefixes.iter().any(|prefix| key.starts_with(prefix));
    let found = dump.iter().filter(|(key, _)| of(key));
    found
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}
