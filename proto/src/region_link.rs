//! What one region's gateway tells another's with a request that it passes on: in one header field
//! that only gateways of the installation can make.
//!
//! It says from where to where the request goes, so that a region that does not serve the proxy
//! either refuses it instead of passing it on; under which id; and who called. A keyed digest over
//! it and the request line proves it: the key is that of callers' secrets, which all regions of an
//! installation share and nobody else has. A field that proves nothing says nothing.

use std::net::IpAddr;

use crate::id::RequestId;
use crate::seal::{DigestKey, Purpose};

/// The name of the field.
pub const FIELD: &str = "requestrocket-passed-on";

/// Longest text that is looked at, in bytes.
const TEXT_BYTES_MAX: usize = 512;

/// A request that was passed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassedOn {
    /// The region that the caller called.
    pub from: String,
    /// The region that is to serve it.
    pub to: String,
    /// The request's id, the same in both.
    pub id: RequestId,
    /// The caller's address.
    pub source: IpAddr,
}

impl PassedOn {
    /// The field's value for a request with this method and target (path and query).
    pub fn seal(&self, key: &DigestKey, method: &str, target: &[u8]) -> String {
        let Self {
            from,
            to,
            id,
            source,
        } = self;
        let said = format!("from={from};to={to};id={id};source={source}");
        let proof = hex::encode(proof(key, &said, method, target));
        format!("{said};proof={proof}")
    }

    /// What a field's value says, where it is proven.
    pub fn open(key: &DigestKey, value: &[u8], method: &str, target: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(value).ok()?;
        if text.len() > TEXT_BYTES_MAX {
            return None;
        }
        let (said, given) = text.rsplit_once(";proof=")?;
        let mut digest = [0; 32];
        hex::decode_to_slice(given, &mut digest).ok()?;
        let expected = blake3::Hash::from_bytes(proof(key, said, method, target));
        // Takes the same time for every digest.
        if expected != digest {
            return None;
        }
        let mut parts = said.split(';');
        let mut part = |name: &str| parts.next()?.strip_prefix(name)?.strip_prefix('=');
        Some(Self {
            from: part("from")?.to_owned(),
            to: part("to")?.to_owned(),
            id: part("id")?.parse().ok()?,
            source: part("source")?.parse().ok()?,
        })
    }
}

fn proof(key: &DigestKey, said: &str, method: &str, target: &[u8]) -> [u8; 32] {
    // No part but the last can hold a line's end.
    let text = [said.as_bytes(), method.as_bytes(), target].join(&b'\n');
    key.digest(Purpose::RegionLink, &text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_key_opens_it_and_for_this_request_only() {
        let key = DigestKey::generate();
        let passed = PassedOn {
            from: "us".into(),
            to: "eu".into(),
            id: RequestId::from_bits(7),
            source: "2001:db8::1".parse().unwrap(),
        };
        let value = passed.seal(&key, "GET", b"/api/prx_1/a?b=1");
        let open = |key: &DigestKey, value: &str, method: &str, target: &[u8]| {
            PassedOn::open(key, value.as_bytes(), method, target)
        };
        assert_eq!(open(&key, &value, "GET", b"/api/prx_1/a?b=1"), Some(passed));
        assert_eq!(open(&key, &value, "POST", b"/api/prx_1/a?b=1"), None);
        assert_eq!(open(&key, &value, "GET", b"/api/prx_1/a?b=2"), None);
        let other = DigestKey::generate();
        assert_eq!(open(&other, &value, "GET", b"/api/prx_1/a?b=1"), None);
        let forged = value.replace("source=2001:db8::1", "source=::1");
        assert_eq!(open(&key, &forged, "GET", b"/api/prx_1/a?b=1"), None);
        for odd in ["", "from=us", "from=us;to=eu;proof=00", &"x".repeat(1_000)] {
            assert_eq!(open(&key, odd, "GET", b"/"), None, "{odd}");
        }
    }
}
