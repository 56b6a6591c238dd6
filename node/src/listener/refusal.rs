//! Why the listener ends a request or a connection by itself, and the answer that says so.
//!
//! A refusal is a value without text of the caller, so that its answer can be written without
//! any fear of reflection. Codes are those of the gateway's early ends; the status may differ
//! from the code's usual one (431, 501, 505, 417).

use std::borrow::Cow;

use jiff::fmt::rfc2822;
use proto::id::RequestId;
use proto::outcome::{Code, EarlyEnd};

/// One reason to end a request before, or while, the pipeline sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The first byte cannot begin an HTTP/1 request.
    NotHttp,
    /// More than one empty line in front of the request line.
    EmptyLines,
    /// LF without CR before it.
    BareLf,
    /// CR without LF behind it.
    BareCr,
    /// The head is larger than `head_bytes_max`.
    HeadTooLarge,
    /// More fields than `headers_max`.
    TooManyHeaders,
    /// The request line is not `method SP target SP version`.
    RequestLine,
    /// An HTTP version other than 1.0 and 1.1.
    Version,
    /// `TRACE`.
    Trace,
    /// `CONNECT`.
    Connect,
    /// A method that is not served; methods are case-sensitive.
    Method,
    /// `http://host/path` as target, where `Host` does not name the same.
    AbsoluteForm,
    /// A target that does not begin with `/`: `*`, `host:port`.
    TargetForm,
    /// A byte that a target cannot have, `#` included.
    TargetByte,
    /// A target longer than can be handled.
    TargetTooLong,
    /// A line that begins with white space.
    ObsFold,
    /// A field without a name, or with a byte that a name cannot have.
    FieldName,
    /// White space between name and colon.
    SpaceBeforeColon,
    /// A control byte in a value.
    FieldValue,
    /// Bytes above 0x7f in a field that frames or routes the message.
    FieldNotAscii,
    /// No `Host` in HTTP/1.1.
    HostMissing,
    /// Two `Host` fields.
    HostTwice,
    /// `Host` is not a name or address with an optional port.
    HostInvalid,
    /// Both `Content-Length` and `Transfer-Encoding`.
    LengthAndEncoding,
    /// Two `Content-Length` fields, equal or not.
    LengthTwice,
    /// `Content-Length` is not one number.
    LengthInvalid,
    /// `Content-Length` is missing where HTTP/1.0 needs it.
    LengthMissing,
    /// Two `Transfer-Encoding` fields.
    EncodingTwice,
    /// A transfer coding other than exactly `chunked`.
    EncodingUnknown,
    /// `Transfer-Encoding` in HTTP/1.0.
    EncodingVersion,
    /// A websocket upgrade that is not a bare `GET` with `Connection: upgrade`.
    Upgrade,
    /// An expectation other than `100-continue`.
    Expectation,
    /// A chunk size that is not a hexadecimal number on a line of its own.
    ChunkSize,
    /// A chunk extension with a control byte.
    ChunkExtension,
    /// More bytes in chunk extensions than a body may have.
    ChunkExtensionsTooLarge,
    /// Chunk data that is not followed by CRLF.
    ChunkEnd,
    /// A trailer line that is not a field.
    Trailer,
    /// More trailers than a body may have.
    TrailersTooLarge,
    /// The head did not come in time.
    HeadTimeout,
    /// No byte of the body came in time.
    BodyTimeout,
    /// `connections_max` is reached.
    Connections,
    /// `connections_per_ip_max` is reached.
    ConnectionsPerIp,
}

/// What is fixed for a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefusalFacts {
    /// The status it is answered with.
    pub status: u16,
    /// The stable code, as in `requestrocket-proxy-code`.
    pub code: Code,
    /// What was wrong and what to do next.
    pub detail: &'static str,
}

const fn facts(status: u16, code: Code, detail: &'static str) -> RefusalFacts {
    RefusalFacts {
        status,
        code,
        detail,
    }
}

const fn malformed(detail: &'static str) -> RefusalFacts {
    facts(400, Code::MalformedRequest, detail)
}

impl Refusal {
    /// Every refusal, for tests and registries.
    pub const ALL: &'static [Self] = &[
        Self::NotHttp,
        Self::EmptyLines,
        Self::BareLf,
        Self::BareCr,
        Self::HeadTooLarge,
        Self::TooManyHeaders,
        Self::RequestLine,
        Self::Version,
        Self::Trace,
        Self::Connect,
        Self::Method,
        Self::AbsoluteForm,
        Self::TargetForm,
        Self::TargetByte,
        Self::TargetTooLong,
        Self::ObsFold,
        Self::FieldName,
        Self::SpaceBeforeColon,
        Self::FieldValue,
        Self::FieldNotAscii,
        Self::HostMissing,
        Self::HostTwice,
        Self::HostInvalid,
        Self::LengthAndEncoding,
        Self::LengthTwice,
        Self::LengthInvalid,
        Self::LengthMissing,
        Self::EncodingTwice,
        Self::EncodingUnknown,
        Self::EncodingVersion,
        Self::Upgrade,
        Self::Expectation,
        Self::ChunkSize,
        Self::ChunkExtension,
        Self::ChunkExtensionsTooLarge,
        Self::ChunkEnd,
        Self::Trailer,
        Self::TrailersTooLarge,
        Self::HeadTimeout,
        Self::BodyTimeout,
        Self::Connections,
        Self::ConnectionsPerIp,
    ];

    /// Status, code and text.
    pub const fn facts(self) -> RefusalFacts {
        match self {
            Self::NotHttp
            | Self::EmptyLines
            | Self::BareLf
            | Self::BareCr
            | Self::RequestLine
            | Self::Version
            | Self::HeadTooLarge
            | Self::TooManyHeaders => self.head_facts(),
            Self::Trace
            | Self::Connect
            | Self::Method
            | Self::AbsoluteForm
            | Self::TargetForm
            | Self::TargetByte
            | Self::TargetTooLong => self.request_line_facts(),
            Self::ObsFold
            | Self::FieldName
            | Self::SpaceBeforeColon
            | Self::FieldValue
            | Self::FieldNotAscii
            | Self::HostMissing
            | Self::HostTwice
            | Self::HostInvalid
            | Self::Upgrade
            | Self::Expectation => self.field_facts(),
            _ => self.body_facts(),
        }
    }

    const fn head_facts(self) -> RefusalFacts {
        match self {
            Self::NotHttp => malformed(
                "the first byte cannot begin an HTTP/1.1 request; is this TLS on a plain port?",
            ),
            Self::EmptyLines => malformed("more than one empty line precedes the request line"),
            Self::BareLf => {
                malformed("a line of the head ends in LF without CR; end lines in CRLF")
            }
            Self::BareCr => malformed("the head has a CR that no LF follows; end lines in CRLF"),
            Self::HeadTooLarge => facts(
                431,
                Code::RequestTooLarge,
                "the head is larger than this listener takes (`gateway.head_bytes_max`); \
                 send fewer or shorter fields",
            ),
            Self::TooManyHeaders => facts(
                431,
                Code::RequestTooLarge,
                "the head has more fields than this listener takes (at most 96)",
            ),
            Self::Version => facts(
                505,
                Code::MalformedRequest,
                "this listener speaks HTTP/1.1 and HTTP/1.0; turn off HTTP/2 with prior knowledge",
            ),
            _ => malformed(
                "the request line is not `METHOD /target HTTP/1.1` with single spaces between",
            ),
        }
    }

    const fn request_line_facts(self) -> RefusalFacts {
        match self {
            Self::Trace => facts(
                405,
                Code::MethodNotAllowed,
                "TRACE is not served; use another method",
            ),
            Self::Connect => facts(
                405,
                Code::MethodNotAllowed,
                "this is a gateway, not a forward proxy: do not set it as HTTPS_PROXY, \
                 call the `url` of a proxy instead",
            ),
            Self::Method => facts(
                501,
                Code::MethodNotAllowed,
                "the method is not one that this gateway knows; methods are case-sensitive",
            ),
            Self::AbsoluteForm => malformed(
                "the target is a whole URL of another host than `Host` names, as sent to a forward \
                 proxy; this is a gateway: do not set it as HTTP_PROXY, call the `url` of a proxy \
                 instead",
            ),
            Self::TargetForm => malformed("the target must begin with `/`"),
            Self::TargetByte => malformed(
                "the target has a byte that must be percent-encoded (space, control, non-ASCII, \
                 `#`, `<`, `>`, a backtick in the path or a quote in the query)",
            ),
            _ => facts(
                414,
                Code::RequestTooLarge,
                "the target is longer than 65,534 bytes",
            ),
        }
    }

    const fn field_facts(self) -> RefusalFacts {
        match self {
            Self::ObsFold => malformed(
                "a header line begins with white space (obsolete line folding, RFC 9112 5.2)",
            ),
            Self::FieldName => malformed("a header name is empty or has a byte that is no token"),
            Self::SpaceBeforeColon => malformed("a header name is followed by white space"),
            Self::FieldValue => malformed("a header value has a control byte"),
            Self::FieldNotAscii => malformed(
                "Host, Connection, Upgrade, Expect, Content-Length or Transfer-Encoding has a \
                 non-ASCII byte",
            ),
            Self::HostMissing => malformed("HTTP/1.1 needs a Host header"),
            Self::HostTwice => malformed("there is more than one Host header"),
            Self::HostInvalid => malformed(
                "Host must be a name, an IPv4 address or an [IPv6] address, with an optional port",
            ),
            Self::Upgrade => malformed(
                "a websocket upgrade must be an HTTP/1.1 GET without a body, with one \
                 `Upgrade: websocket` and `Connection: upgrade`",
            ),
            _ => facts(
                417,
                Code::MalformedRequest,
                "the only expectation that can be met is `100-continue`; leave out Expect",
            ),
        }
    }

    const fn body_facts(self) -> RefusalFacts {
        match self {
            Self::LengthAndEncoding => {
                malformed("the request has both Content-Length and Transfer-Encoding")
            }
            Self::LengthTwice => malformed("there is more than one Content-Length header"),
            Self::LengthInvalid => malformed("Content-Length is not one decimal number"),
            Self::LengthMissing => malformed("an HTTP/1.0 POST needs a Content-Length header"),
            Self::EncodingTwice => malformed("there is more than one Transfer-Encoding header"),
            Self::EncodingUnknown => malformed("Transfer-Encoding must be exactly `chunked`"),
            Self::EncodingVersion => malformed("HTTP/1.0 has no Transfer-Encoding"),
            Self::ChunkSize => malformed("a chunk size is not 1 to 16 hexadecimal digits and CRLF"),
            Self::ChunkExtension => malformed("a chunk extension has a control byte"),
            Self::ChunkExtensionsTooLarge => facts(
                413,
                Code::RequestTooLarge,
                "the body has more than 16 KiB of chunk extensions",
            ),
            Self::ChunkEnd => malformed("the data of a chunk is not followed by CRLF"),
            Self::Trailer => malformed("a trailer line is not a valid field"),
            Self::TrailersTooLarge => facts(
                431,
                Code::RequestTooLarge,
                "the body has more than 16 KiB or 96 fields of trailers",
            ),
            Self::HeadTimeout => facts(
                408,
                Code::RequestTimeout,
                "the head did not come within `gateway.head_timeout_ms`; send it at once",
            ),
            Self::BodyTimeout => facts(
                408,
                Code::RequestTimeout,
                "no byte of the body came within `gateway.body_idle_timeout_ms`; send faster",
            ),
            Self::ConnectionsPerIp => facts(
                503,
                Code::Overloaded,
                "your address has as many connections as one may have \
                 (`gateway.connections_per_ip_max`); reuse connections",
            ),
            _ => facts(
                503,
                Code::Overloaded,
                "this node has as many connections as it takes (`gateway.connections_max`); \
                 try again",
            ),
        }
    }

    /// The whole answer: head and problem document (RFC 9457), after which the connection ends.
    pub fn answer(self) -> Vec<u8> {
        let RefusalFacts {
            status,
            code,
            detail,
        } = self.facts();
        let id = RequestId::new().text();
        let request_id = id.as_str();
        let end = EarlyEnd::new(code, detail).with_status(status);
        let document = end.document(request_id).to_string();
        // RFC 9110 15.5.6: a 405 names the methods that are allowed.
        let allow = if status == 405 {
            "allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS\r\n"
        } else {
            ""
        };
        format!(
            "HTTP/1.1 {status} {reason}\r\n\
             content-type: application/problem+json\r\n\
             content-length: {length}\r\n\
             connection: close\r\n\
             date: {date}\r\n\
             {allow}\
             requestrocket-proxy-code: {code}\r\n\
             requestrocket-request-id: {request_id}\r\n\r\n\
             {document}",
            reason = reason(status),
            length = document.len(),
            date = date(),
        )
        .into_bytes()
    }
}

fn date() -> Cow<'static, str> {
    let now = jiff::Timestamp::now();
    match rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&now) {
        Ok(text) => text.into(),
        // Only years outside of 0 to 9999 fail; a clock that wrong is the same as no clock.
        Err(_) => "Thu, 01 Jan 1970 00:00:00 GMT".into(),
    }
}

fn reason(status: u16) -> &'static str {
    let known = http::StatusCode::from_u16(status).ok();
    known
        .and_then(|status| status.canonical_reason())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_has_a_whole_answer() {
        for refusal in Refusal::ALL {
            let facts = refusal.facts();
            let answer = String::from_utf8(refusal.answer()).unwrap();
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            assert!(
                head.starts_with(&format!("HTTP/1.1 {} ", facts.status)),
                "{refusal:?}"
            );
            assert!(head.contains("connection: close"), "{refusal:?}");
            assert!(
                head.contains(&format!("content-length: {}\r\n", body.len())),
                "{refusal:?}"
            );
            assert_eq!(
                head.contains("\r\nallow: "),
                facts.status == 405,
                "{refusal:?}"
            );
            let document: serde_json::Value = serde_json::from_str(body).unwrap();
            assert_eq!(document["status"], facts.status);
            assert_eq!(document["code"], facts.code.as_str());
            assert_eq!(document["detail"], facts.detail);
            assert!(document["request_id"].as_str().unwrap().starts_with("req_"));
            assert_ne!(
                reason(facts.status) == "Bad Request",
                facts.status != 400,
                "{refusal:?}"
            );
        }
    }

    #[test]
    fn every_refusal_says_something_of_its_own() {
        for (at, refusal) in Refusal::ALL.iter().enumerate() {
            let same = Refusal::ALL[..at]
                .iter()
                .find(|r| r.facts().detail == refusal.facts().detail);
            assert_eq!(same, None, "{refusal:?}");
        }
    }
}
