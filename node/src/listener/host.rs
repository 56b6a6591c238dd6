//! The grammar of `Host` (RFC 9112 3.2), narrowed to what can name a server.
//!
//! RFC 3986 lets a reg-name hold nearly anything (`a,b`, `a%2fb`, `a;b`). Whatever is later used
//! to route or to compare must mean one thing to everybody, so a host is here a DNS-like name
//! (letters, digits, `-`, `_`, `.`), an IPv4 address or a bracketed IPv6 address, with an
//! optional port.

use std::net::Ipv6Addr;

/// The longest name that DNS knows, with room for a final dot.
const NAME_BYTES_MAX: usize = 254;

/// Whether `value` is a host with an optional port. Surrounding white space is not expected.
pub fn is_host(value: &[u8]) -> bool {
    if let Some(bracketed) = value.strip_prefix(b"[") {
        let Some(end) = bracketed.iter().position(|byte| *byte == b']') else {
            return false;
        };
        let (address, rest) = bracketed.split_at(end);
        return is_ipv6(address) && is_port_part(&rest[1..]);
    }
    let end = value
        .iter()
        .position(|byte| *byte == b':')
        .unwrap_or(value.len());
    let (name, port) = value.split_at(end);
    is_name(name) && is_port_part(port)
}

fn is_ipv6(address: &[u8]) -> bool {
    std::str::from_utf8(address).is_ok_and(|text| text.parse::<Ipv6Addr>().is_ok())
}

/// Labels of letters, digits, `-` and `_`; one final dot may be there (a fully qualified name).
fn is_name(name: &[u8]) -> bool {
    if name.len() > NAME_BYTES_MAX {
        return false;
    }
    let mut label_bytes = 0_usize;
    let mut labels = 0_usize;
    for byte in name {
        match byte {
            b'.' if label_bytes == 0 => return false,
            b'.' => label_bytes = 0,
            b'-' | b'_' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => {
                labels += usize::from(label_bytes == 0);
                label_bytes += 1;
            }
            _ => return false,
        }
    }
    labels > 0
}

/// Nothing, or `:` and a port from 1 to 65535.
fn is_port_part(part: &[u8]) -> bool {
    let Some((colon, digits)) = part.split_first() else {
        return true;
    };
    let number = digits.iter().try_fold(0_u32, |number, digit| {
        let value = digit.checked_sub(b'0').filter(|value| *value <= 9)?;
        number.checked_mul(10)?.checked_add(u32::from(value))
    });
    *colon == b':'
        && !digits.is_empty()
        && digits.len() <= 5
        && number.is_some_and(|number| (1..=65_535).contains(&number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        for (value, good) in [
            ("example.com", true),
            ("example.com.", true),
            ("EXAMPLE.com:8080", true),
            ("localhost", true),
            ("my_service:80", true),
            ("xn--bcher-kva.example", true),
            ("127.0.0.1", true),
            ("127.0.0.1:65535", true),
            ("[::1]", true),
            ("[2001:db8::1]:443", true),
            ("[::ffff:1.2.3.4]", true),
            ("", false),
            (":80", false),
            (".", false),
            (".example.com", false),
            ("example..com", false),
            ("example.com:", false),
            ("example.com:0", false),
            ("example.com:65536", false),
            ("example.com:080000", false),
            ("example.com:+80", false),
            ("example.com:80:80", false),
            ("example.com:80 ", false),
            ("a b/c@d", false),
            ("user@example.com", false),
            ("a,b", false),
            ("a;b", false),
            ("a%2fb", false),
            ("a/b", false),
            ("a?b", false),
            ("a#b", false),
            ("a\\b", false),
            ("*", false),
            ("[::1", false),
            ("::1", false),
            ("[]", false),
            ("[::1]80", false),
            ("[::1]:", false),
            ("[fe80::1%25eth0]", false),
            ("[v1.a]", false),
            ("[::1]x:80", false),
        ] {
            assert_eq!(is_host(value.as_bytes()), good, "{value:?}");
        }
        assert!(is_host("a".repeat(254).as_bytes()));
        assert!(!is_host("a".repeat(255).as_bytes()));
        assert!(!is_host(b"caf\xe9"));
    }
}
