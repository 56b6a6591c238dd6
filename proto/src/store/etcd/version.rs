//! Which releases of etcd the store works with.

/// The first release that was tried; those before it have had no fixes for years.
const OLDEST: (u64, u64) = (3, 4);

/// Why a server of this version cannot be used, and what to do; `None` when it can.
///
/// A text that is no version is let pass: it says nothing about what the server can do.
pub(super) fn refusal(version: &str) -> Option<String> {
    let mut numbers = version.trim_start_matches('v').split('.');
    let mut next = || numbers.next()?.parse::<u64>().ok();
    let found = (next()?, next()?);
    (found < OLDEST).then(|| {
        let (major, minor) = OLDEST;
        format!(
            "etcd {version} is not supported: upgrade it to {major}.{minor} or later, or name \
             another cluster in `store.endpoints`"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_before_the_oldest_are_refused_by_name() {
        for (version, refused) in [
            ("3.4.0", false),
            ("3.4.23", false),
            ("3.5.21", false),
            ("3.10.1", false),
            ("4.0.0-rc.1", false),
            ("v3.6.1", false),
            ("", false),
            ("not a version", false),
            ("3.3.27", true),
            ("2.3.8", true),
            ("3.0.0", true),
        ] {
            let why = refusal(version);
            assert_eq!(why.is_some(), refused, "{version}: {why:?}");
            assert!(why.is_none_or(|why| why.contains(version) && why.contains("3.4")));
        }
    }
}
