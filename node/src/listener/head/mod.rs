//! A whole request head, read once: is it HTTP/1 in exactly one reading, and what follows it.
//!
//! actix-web parses the same bytes again behind us. It takes more than we do (bare LF, any
//! method, any Host, a URL beside another Host, `Upgrade: websocket` over `Content-Length`), so
//! everything it could read in another way than the next server is refused here (RFC 9112,
//! CWE-444).

use std::ops::Range;

use crate::listener::class::{TOKEN, is, span, span_value};
use crate::listener::host::is_host;
use crate::listener::refusal::Refusal;
use crate::listener::target::read_target;

/// The methods that are served: those of the IANA registry that a resource can answer, and three
/// that are widely used without being there (LIST of Vault, PURGE of caches, QUERY).
const METHODS: &[&[u8]] = &[
    b"GET",
    b"POST",
    b"HEAD",
    b"PUT",
    b"PATCH",
    b"DELETE",
    b"OPTIONS",
    b"ACL",
    b"BASELINE-CONTROL",
    b"BIND",
    b"CHECKIN",
    b"CHECKOUT",
    b"COPY",
    b"LABEL",
    b"LINK",
    b"LIST",
    b"LOCK",
    b"MERGE",
    b"MKACTIVITY",
    b"MKCALENDAR",
    b"MKCOL",
    b"MKREDIRECTREF",
    b"MKWORKSPACE",
    b"MOVE",
    b"ORDERPATCH",
    b"PROPFIND",
    b"PROPPATCH",
    b"PURGE",
    b"QUERY",
    b"REBIND",
    b"REPORT",
    b"SEARCH",
    b"UNBIND",
    b"UNCHECKOUT",
    b"UNLINK",
    b"UNLOCK",
    b"UPDATE",
    b"UPDATEREDIRECTREF",
    b"VERSION-CONTROL",
];

/// What follows a head on the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// The next request.
    None,
    /// As many bytes of body, at least one.
    Length(u64),
    /// A chunked body.
    Chunked,
    /// Bytes of another protocol, without end.
    Tunnel,
}

/// What the socket has to know of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// What follows it.
    pub body: Body,
    /// Whether this is the last request of the connection.
    pub closes: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    Http10,
    Http11,
}

struct RequestLine<'a> {
    method: &'a [u8],
    /// Of a target that is a whole URL.
    authority: Option<&'a [u8]>,
    version: Version,
}

/// What the fields say about framing and the connection.
#[derive(Default)]
struct Fields {
    /// Where the value of `Host` is.
    host: Option<Range<usize>>,
    length: Option<u64>,
    chunked: bool,
    close: bool,
    keep_alive: bool,
    /// Where `Connection` says `upgrade`.
    upgrade_tokens: Vec<Range<usize>>,
    upgrades: u32,
    websocket: bool,
    /// `websocket` beside other protocols: neither an upgrade nor clearly none.
    websocket_among: bool,
    expects_other: bool,
}

/// Reads a head from its first byte through its empty line; every LF in it has CR before it.
///
/// An upgrade that is not to a websocket is ignored, as RFC 9110 7.8 permits (h2c is offered by
/// some clients on every request). For that the option `upgrade` in `Connection` is overwritten
/// with spaces, since actix-web would close the connection and answer `connection: upgrade`; the
/// field `Upgrade` itself stays and is dropped with the other hop-by-hop fields.
///
/// # Errors
/// The first reason, in the order of the bytes, why this is not one well-formed request that we
/// serve.
pub fn read_head(head: &mut [u8], headers_max: usize) -> Result<Head, Refusal> {
    let line_end = line_end(head, 0)?;
    let line = read_request_line(&head[..line_end])?;
    let fields = read_fields(head, line_end + 2, headers_max)?;
    let host = fields.host.clone().and_then(|host| head.get(host));
    // Judged and sent on by its path, a URL may name nobody else.
    let named = |authority: &[u8]| host.is_some_and(|host| host.eq_ignore_ascii_case(authority));
    if !line.authority.is_none_or(named) {
        return Err(Refusal::AbsoluteForm);
    }
    let verdict = judge(&line, &fields)?;
    if verdict.body != Body::Tunnel {
        for token in fields.upgrade_tokens {
            if let Some(bytes) = head.get_mut(token) {
                bytes.fill(b' ');
            }
        }
    }
    Ok(verdict)
}

/// Where the CR of the line that begins at `from` is.
fn line_end(head: &[u8], from: usize) -> Result<usize, Refusal> {
    let line = head.get(from..).unwrap_or_default();
    let end = line
        .iter()
        .position(|byte| *byte == b'\r')
        .ok_or(Refusal::BareLf)?;
    match line.get(end + 1) {
        Some(b'\n') => Ok(from + end),
        _ => Err(Refusal::BareCr),
    }
}

fn read_request_line(line: &[u8]) -> Result<RequestLine<'_>, Refusal> {
    let method_end = span(line, TOKEN);
    let (method, rest) = line.split_at(method_end);
    let Some((b' ', rest)) = rest.split_first() else {
        return Err(Refusal::RequestLine);
    };
    // The version is whatever stands behind the last space, so that a space in the target is
    // told as such.
    let Some(space) = rest.iter().rposition(|byte| *byte == b' ') else {
        return Err(Refusal::RequestLine);
    };
    let (target, version) = (&rest[..space], &rest[space + 1..]);
    let version = read_version(version)?;
    check_method(method)?;
    let authority = read_target(target)?;
    Ok(RequestLine {
        method,
        authority,
        version,
    })
}

fn read_version(version: &[u8]) -> Result<Version, Refusal> {
    match version {
        b"HTTP/1.1" => Ok(Version::Http11),
        b"HTTP/1.0" => Ok(Version::Http10),
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            Err(Refusal::Version)
        }
        _ => Err(Refusal::RequestLine),
    }
}

fn check_method(method: &[u8]) -> Result<(), Refusal> {
    match method {
        b"TRACE" => Err(Refusal::Trace),
        b"CONNECT" => Err(Refusal::Connect),
        b"" => Err(Refusal::RequestLine),
        method if METHODS.contains(&method) => Ok(()),
        _ => Err(Refusal::Method),
    }
}

fn read_fields(head: &[u8], start: usize, headers_max: usize) -> Result<Fields, Refusal> {
    let mut fields = Fields::default();
    let mut at = start;
    let mut count = 0;
    loop {
        let rest = head.get(at..).unwrap_or_default();
        match rest {
            [b'\r', b'\n', ..] | [] => return Ok(fields),
            [b' ' | b'\t', ..] => return Err(Refusal::ObsFold),
            _ => {}
        }
        count += 1;
        if count > headers_max {
            return Err(Refusal::TooManyHeaders);
        }
        let name = &rest[..span(rest, TOKEN)];
        match rest.get(name.len()) {
            Some(b':') if !name.is_empty() => {}
            Some(b' ' | b'\t') if !name.is_empty() => return Err(Refusal::SpaceBeforeColon),
            _ => return Err(Refusal::FieldName),
        }
        let value_start = name.len() + 1;
        let value = &rest[value_start..];
        let value = &value[..span_value(value)];
        match rest.get(value_start + value.len()..) {
            Some([b'\r', b'\n', ..]) => {}
            Some([b'\r', ..]) => return Err(Refusal::BareCr),
            _ => return Err(Refusal::FieldValue),
        }
        fields.take(name, value, at + value_start)?;
        at += value_start + value.len() + 2;
    }
}

impl Fields {
    /// Notes one field; `value_at` is where its value begins in the head.
    fn take(&mut self, name: &[u8], value: &[u8], value_at: usize) -> Result<(), Refusal> {
        // The length decides nearly always, so that most names are compared with nothing.
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => self.take_host(ascii(value)?, {
                value_at + (value.len() - value.trim_ascii_start().len())
            }),
            6 if name.eq_ignore_ascii_case(b"expect") => {
                self.expects_other |= !ascii(value)?.eq_ignore_ascii_case(b"100-continue");
                Ok(())
            }
            7 if name.eq_ignore_ascii_case(b"upgrade") => {
                self.take_upgrade(ascii(value)?);
                Ok(())
            }
            10 if name.eq_ignore_ascii_case(b"connection") => {
                ascii(value)?;
                self.take_connection(value, value_at);
                Ok(())
            }
            14 if name.eq_ignore_ascii_case(b"content-length") => self.take_length(ascii(value)?),
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                self.take_encoding(ascii(value)?)
            }
            _ => Ok(()),
        }
    }

    fn take_host(&mut self, value: &[u8], at: usize) -> Result<(), Refusal> {
        if self.host.is_some() {
            return Err(Refusal::HostTwice);
        }
        self.host = Some(at..at + value.len());
        if is_host(value) {
            Ok(())
        } else {
            Err(Refusal::HostInvalid)
        }
    }

    fn take_length(&mut self, value: &[u8]) -> Result<(), Refusal> {
        if self.length.is_some() {
            return Err(Refusal::LengthTwice);
        }
        if value.is_empty() {
            return Err(Refusal::LengthInvalid);
        }
        let number = value.iter().try_fold(0_u64, |number, digit| {
            let digit = digit.checked_sub(b'0').filter(|digit| *digit <= 9)?;
            number.checked_mul(10)?.checked_add(u64::from(digit))
        });
        self.length = Some(number.ok_or(Refusal::LengthInvalid)?);
        Ok(())
    }

    fn take_encoding(&mut self, value: &[u8]) -> Result<(), Refusal> {
        if self.chunked {
            return Err(Refusal::EncodingTwice);
        }
        if !value.eq_ignore_ascii_case(b"chunked") {
            return Err(Refusal::EncodingUnknown);
        }
        self.chunked = true;
        Ok(())
    }

    fn take_upgrade(&mut self, value: &[u8]) {
        self.upgrades += 1;
        if value.eq_ignore_ascii_case(b"websocket") {
            self.websocket = true;
        } else {
            self.websocket_among |= value
                .split(|byte| matches!(byte, b',' | b'/' | b' ' | b'\t'))
                .any(|part| part.eq_ignore_ascii_case(b"websocket"));
        }
    }

    fn take_connection(&mut self, value: &[u8], value_at: usize) {
        let mut at = value_at;
        for option in value.split(|byte| *byte == b',') {
            let leading = option.len() - option.trim_ascii_start().len();
            let name = option.trim_ascii();
            if name.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if name.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            } else if name.eq_ignore_ascii_case(b"upgrade") {
                let start = at + leading;
                self.upgrade_tokens.push(start..start + name.len());
            }
            at += option.len() + 1;
        }
    }
}

/// The value without white space around it, refused when it is not ASCII: such a value is read by
/// some and ignored by others (actix-web among them).
fn ascii(value: &[u8]) -> Result<&[u8], Refusal> {
    if value.is_ascii() {
        Ok(value.trim_ascii())
    } else {
        Err(Refusal::FieldNotAscii)
    }
}

/// The rules that need more than one field.
fn judge(line: &RequestLine<'_>, fields: &Fields) -> Result<Head, Refusal> {
    let http10 = line.version == Version::Http10;
    if fields.host.is_none() && !http10 {
        return Err(Refusal::HostMissing);
    }
    if fields.chunked && fields.length.is_some() {
        return Err(Refusal::LengthAndEncoding);
    }
    if fields.chunked && http10 {
        return Err(Refusal::EncodingVersion);
    }
    if http10 && line.method == b"POST" && fields.length.is_none() {
        return Err(Refusal::LengthMissing);
    }
    // RFC 9110 10.1.1: an expectation in HTTP/1.0 is ignored.
    if fields.expects_other && !http10 {
        return Err(Refusal::Expectation);
    }
    let closes = fields.close || (http10 && !fields.keep_alive);
    if fields.websocket || fields.websocket_among {
        let clean = fields.websocket
            && fields.upgrades == 1
            && !http10
            && !closes
            && line.method == b"GET"
            && !fields.upgrade_tokens.is_empty()
            && !fields.chunked
            && fields.length.is_none();
        return if clean {
            Ok(Head {
                body: Body::Tunnel,
                closes: true,
            })
        } else {
            Err(Refusal::Upgrade)
        };
    }
    let body = match fields.length {
        _ if fields.chunked => Body::Chunked,
        None | Some(0) => Body::None,
        Some(length) => Body::Length(length),
    };
    Ok(Head { body, closes })
}

/// Whether a byte can begin a request: a method, or the CR of an empty line before one.
pub fn begins_request(byte: u8) -> bool {
    byte == b'\r' || byte == b'\n' || is(byte, TOKEN)
}

#[cfg(test)]
mod tests;
