//! Which releases of etcd the store works with.

/// The first release that was tried; those before it have had no fixes for years.
const OLDEST: (u64, u64) = (3, 4);

/// Releases of 3.5 up to this patch can leave members with different data after a crash, which
/// etcd's own project advises against using; they also refuse reads and deletes once they are full.
const UNSOUND_3_5: u64 = 2;

/// Why a server of this version cannot be used, and what to do; `None` when it can.
///
/// A text that is no version is let pass: it says nothing about what the server can do.
pub(super) fn refusal(version: &str) -> Option<String> {
    let (found, _) = numbers(version)?;
    (found < OLDEST).then(|| {
        let (major, minor) = OLDEST;
        format!(
            "etcd {version} is not supported: upgrade it to {major}.{minor} or later, or name \
             another cluster in `store.endpoints`"
        )
    })
}

/// What a person should know of a server of this version, which is used all the same.
pub(super) fn warning(version: &str) -> Option<String> {
    let ((3, 5), Some(patch)) = numbers(version)? else {
        return None;
    };
    (patch <= UNSOUND_3_5).then(|| {
        format!(
            "etcd {version} can leave its members with different data after a crash: upgrade it \
             to the newest 3.5"
        )
    })
}

/// The release, and its patch where it is a plain number.
fn numbers(version: &str) -> Option<((u64, u64), Option<u64>)> {
    let mut numbers = version.trim_start_matches('v').split('.');
    let mut next = || numbers.next()?.parse::<u64>().ok();
    Some(((next()?, next()?), next()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_that_lose_data_are_used_with_a_warning() {
        for (version, warned) in [
            ("3.5.0", true),
            ("v3.5.2", true),
            ("3.5.3", false),
            ("3.5.30", false),
            ("3.5.0-rc.1", false),
            ("3.4.1", false),
            ("3.6.0", false),
            ("", false),
        ] {
            let why = warning(version);
            assert_eq!(why.is_some(), warned, "{version}: {why:?}");
            assert!(why.is_none_or(|why| why.contains(version)));
            assert_eq!(refusal(version), None);
        }
    }

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
