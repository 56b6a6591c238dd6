//! How versions of an organisation's configuration are named and ordered.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Which history a version belongs to: raised when another region becomes home or a regression is
/// recovered from. Ordered by counter, then by region.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Epoch {
    /// Rises with every change of home.
    pub counter: u64,
    /// The region that opened it.
    pub region: String,
}

/// The version that set a secret: (epoch, n). Unique over all branches of a history, ordered.
///
/// Written `{counter}.{region}.{n}`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation {
    /// The history.
    pub epoch: Epoch,
    /// The version's number in it.
    pub n: u64,
}

impl Generation {
    /// The one after it in its history: no version that set a secret before has it.
    pub fn next(&self) -> Self {
        Self {
            epoch: self.epoch.clone(),
            n: self.n.saturating_add(1),
        }
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.epoch.counter, self.epoch.region, self.n)
    }
}

/// A text that is not `{counter}.{region}.{n}`.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a generation: expected counter.region.n")]
pub struct GenerationError(String);

impl FromStr for Generation {
    type Err = GenerationError;

    fn from_str(text: &str) -> Result<Self, GenerationError> {
        let parse = || {
            let (counter, rest) = text.split_once('.')?;
            let (region, n) = rest.rsplit_once('.')?;
            let epoch = Epoch {
                counter: counter.parse().ok()?,
                region: region.to_owned(),
            };
            (!region.is_empty()).then_some(Self {
                epoch,
                n: n.parse().ok()?,
            })
        };
        parse().ok_or_else(|| GenerationError(crate::checks::printable(text)))
    }
}

impl Serialize for Generation {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Generation {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}
