//! Which meters count a request, and under which keys.
//!
//! Made once per configuration for each caller's credential of a proxy: the meters of its
//! organisation, target, credentials and the proxy. Where none of them looks at the request, the
//! set is ready beforehand and costs a request nothing but a counted reference.

mod gathered;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName};
use proto::meter::value::ValueSet;
use proto::meter::{Applies, LearnFrom, MeterSpec, WhenSet, Window};
use proto::rule::Facts;

use self::gathered::{Always, Gathered};
use crate::learner::Learner;
use crate::limits::{
    Limits, METERS_MAX, Meter, MeterKey, MeterSet, Newcomers, SlotSpec, Slots, TooManyMeters,
};

/// The meters that may count requests of one caller's credential through one proxy.
#[derive(Debug)]
pub struct Metering {
    /// Those with the slowest window first, which is the order in which they are drawn.
    rows: Box<[Row]>,
    /// What is the same whichever of them count.
    always: Always,
    /// What applies to every request, where none has to be looked at.
    fixed: Option<Arc<Applied>>,
    /// How urgent its caller is where no header says so.
    priority: u8,
    limits: Arc<Limits>,
    newcomers: Arc<Newcomers>,
}

/// One meter of a proxy.
#[derive(Debug)]
pub struct Row {
    /// What its counts are kept under.
    pub name: Box<str>,
    /// Its limits per window; none where it only counts calls in flight.
    pub spec: Option<Arc<MeterSpec>>,
    /// Its limit of calls in flight.
    pub slots: Option<SlotSpec>,
    /// What of answers it counts; none: requests.
    pub value: Option<Arc<ValueSet>>,
    /// The requests that it counts; none: all.
    pub when: Option<WhenSet>,
    /// What it counts by.
    pub key: RowKey,
    /// From which answers it learns, and its longest pause.
    pub learn: Option<(LearnFrom, Duration)>,
    /// The header that says how urgent a held caller is.
    pub priority: Option<HeaderName>,
    /// Whether every attempt towards the target spends, or only the first: of what hangs on the
    /// target's side, each counts.
    pub each_attempt: bool,
}

/// What a row counts by.
#[derive(Debug)]
pub enum RowKey {
    /// The same for every request.
    Fixed(Counted),
    /// All values of a header.
    Header(HeaderName),
    /// A claim of the caller's JWT.
    Claim(Box<str>),
    /// The caller's address.
    Source,
}

/// What one key of a row spends at.
#[derive(Clone, Debug)]
pub struct Counted {
    meter: Option<Arc<Meter>>,
    slots: Option<Arc<Slots>>,
}

/// The meters that count a request.
#[derive(Clone, Debug, Default)]
pub struct Applied {
    /// Those of its first attempt: all. It knows which of them each further attempt spends.
    pub first: MeterSet,
    /// Where it takes a slot until its answer has ended.
    pub slots: Arc<[Arc<Slots>]>,
    /// What is read of its answer, and for which meter.
    pub values: Arc<[(Arc<Meter>, Arc<ValueSet>)]>,
    /// Those that learn from the target's answers.
    pub learning: Arc<[Learner]>,
    /// How urgent it is where it is held, 0 to 9.
    pub priority: u8,
}

/// What a request tells of its key.
pub struct Subject<'r> {
    /// Its fields.
    pub headers: &'r HeaderMap,
    /// Who sent it.
    pub source: IpAddr,
    /// The payload of the JWT that its caller presented.
    pub jwt: Option<&'r [u8]>,
}

/// Why it is not known which meters count a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Unresolved {
    /// The body decides, and has not been read.
    NeedsBody,
    /// More than a request can spend at.
    TooMany(TooManyMeters),
}

impl Metering {
    /// The meters of a credential's requests, and how urgent that makes them, 0 to 9.
    ///
    /// # Errors
    /// There are more than can apply to one request.
    pub fn new(
        mut rows: Vec<Row>,
        priority: u8,
        limits: Arc<Limits>,
        newcomers: Arc<Newcomers>,
    ) -> Result<Self, TooManyMeters> {
        if rows.len() > METERS_MAX {
            return Err(TooManyMeters(rows.len()));
        }
        rows.sort_by_key(|row| std::cmp::Reverse(row.slowest()));
        let nothing = Always::default();
        let mut all = Some(Gathered::default());
        for row in &rows {
            match row.always() {
                Some(counted) if row.priority.is_none() => {
                    if let Some(all) = &mut all {
                        all.add(counted.clone(), row, &nothing);
                    }
                }
                _ => all = None,
            }
        }
        let fixed = all.map(|all| all.applied(priority, &nothing)).transpose()?;
        Ok(Self {
            always: Always::of(&rows),
            rows: rows.into(),
            fixed: fixed.map(Arc::new),
            priority,
            limits,
            newcomers,
        })
    }

    /// The meters of the process.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The meters of every request, where no request has to be looked at.
    pub fn fixed(&self) -> Option<&Arc<Applied>> {
        self.fixed.as_ref()
    }

    /// Whether a claim of the caller's JWT is asked for.
    pub fn needs_claims(&self) -> bool {
        let claims = |row: &Row| matches!(row.key, RowKey::Claim(_));
        self.rows.iter().any(claims)
    }

    /// Whether the request itself decides, beyond its key, which meters count it.
    pub fn needs_facts(&self) -> bool {
        self.rows.iter().any(|row| row.when.is_some())
    }

    /// The meters of one request. `facts` are there if [`Metering::needs_facts`].
    ///
    /// # Errors
    /// What is not known yet.
    pub fn of(
        &self,
        facts: Option<&Facts<'_>>,
        subject: &Subject<'_>,
    ) -> Result<Applied, Unresolved> {
        let (mut gathered, mut said) = (Gathered::of_up_to(self.rows.len()), None);
        for row in &self.rows {
            match (&row.when, facts) {
                (Some(when), Some(facts)) => match when.applies(facts) {
                    Applies::No => continue,
                    Applies::Yes => {}
                    Applies::NeedsBody => return Err(Unresolved::NeedsBody),
                },
                (Some(_), None) => return Err(Unresolved::NeedsBody),
                (None, _) => {}
            }
            gathered.add(self.counted(row, subject), row, &self.always);
            let header = row.priority.as_ref();
            said = said.max(header.and_then(|name| priority(subject.headers, name)));
        }
        let priority = said.unwrap_or(self.priority);
        let applied = gathered.applied(priority, &self.always);
        applied.map_err(Unresolved::TooMany)
    }

    fn counted(&self, row: &Row, subject: &Subject<'_>) -> Counted {
        let (limits, newcomers) = (&self.limits, &self.newcomers);
        let keyed = |value: &[u8]| Counted {
            meter: (row.spec.as_ref()).map(|spec| limits.keyed(&row.name, value, spec, newcomers)),
            slots: (row.slots.as_ref())
                .map(|spec| limits.keyed_slots(&row.name, value, spec, newcomers)),
        };
        match &row.key {
            RowKey::Fixed(counted) => counted.clone(),
            RowKey::Source => keyed(source_prefix(subject.source).to_string().as_bytes()),
            RowKey::Claim(name) => keyed(&claim(subject.jwt, name)),
            RowKey::Header(name) => {
                let mut values = subject.headers.get_all(name).iter();
                let first = values.next().map(http::HeaderValue::as_bytes);
                match values.next() {
                    None => keyed(first.unwrap_or_default()),
                    Some(second) => {
                        let both = [first.unwrap_or_default(), second.as_bytes()];
                        let all = both.into_iter().chain(values.map(|value| value.as_bytes()));
                        keyed(&all.collect::<Vec<_>>().join(&b", "[..]))
                    }
                }
            }
        }
    }
}

impl Counted {
    /// A key that is the same for every request.
    pub fn of(
        limits: &Limits,
        key: &MeterKey,
        spec: Option<&Arc<MeterSpec>>,
        slots: Option<&SlotSpec>,
    ) -> Self {
        Self {
            meter: spec.map(|spec| limits.meter(key.clone(), Arc::clone(spec))),
            slots: slots.map(|spec| limits.slots(key.clone(), spec)),
        }
    }
}

impl Row {
    fn slowest(&self) -> Option<Window> {
        self.spec.as_ref().and_then(|spec| spec.slowest())
    }

    /// What it spends at, where it counts every request under one key.
    fn always(&self) -> Option<&Counted> {
        match &self.key {
            RowKey::Fixed(counted) if self.when.is_none() => Some(counted),
            _ => None,
        }
    }
}

impl Applied {
    /// Whether the request's body says how much is set aside for it, or is changed.
    pub fn reads_request(&self) -> bool {
        self.values.iter().any(|(_, values)| values.reads_request())
    }

    /// Whether the answer's body is read.
    pub fn reads_answer(&self) -> bool {
        self.values.iter().any(|(_, values)| values.reads_body())
    }

    /// Whether the target is asked for its usage.
    pub fn asks_for_usage(&self) -> bool {
        self.values.iter().any(|(_, values)| values.injects())
    }

    /// The same for a request with this body.
    #[must_use]
    pub fn reserving(&self, body: &[u8]) -> Self {
        let least = |meter: &Arc<Meter>| {
            let mut values = self.values.iter();
            let own = values.find(|(of, _)| Arc::ptr_eq(of, meter));
            own.map_or(0, |(_, values)| values.reserve(body))
        };
        let first = self.first.reserving(least);
        Self {
            first,
            ..self.clone()
        }
    }

    /// Whether nothing counts the request.
    pub fn is_empty(&self) -> bool {
        self.first.is_empty() && self.slots.is_empty()
    }
}

/// One digit; anything else says nothing.
fn priority(headers: &HeaderMap, name: &HeaderName) -> Option<u8> {
    match headers.get(name).map(http::HeaderValue::as_bytes) {
        Some([digit @ b'0'..=b'9']) => Some(digit - b'0'),
        _ => None,
    }
}

/// The address that a caller counts under: who has one of an IPv6 network has all of it.
fn source_prefix(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V6(address) => {
            let bits = address.to_bits() & (u128::MAX << 64);
            IpAddr::V6(bits.into())
        }
        v4 => v4,
    }
}

/// A claim as text; empty where there is none.
fn claim(payload: Option<&[u8]>, name: &str) -> Vec<u8> {
    let claims: Option<serde_json::Value> =
        payload.and_then(|payload| serde_json::from_slice(payload).ok());
    match claims.as_ref().and_then(|claims| claims.get(name)) {
        None | Some(serde_json::Value::Null) => Vec::new(),
        Some(serde_json::Value::String(text)) => text.clone().into_bytes(),
        Some(other) => other.to_string().into_bytes(),
    }
}

/// The payload of a JWT (RFC 7519 §3), which has been proved as a whole.
pub fn jwt_payload(token: &[u8]) -> Option<Box<[u8]>> {
    use base64::Engine as _;
    let payload = token.split(|byte| *byte == b'.').nth(1)?;
    let engine = base64::engine::general_purpose::URL_SAFE_NO_PAD;
    engine.decode(payload).ok().map(Vec::into_boxed_slice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_one_network_are_one_caller() {
        let prefix = |text: &str| source_prefix(text.parse().unwrap()).to_string();
        assert_eq!(prefix("10.1.2.3"), "10.1.2.3");
        assert_eq!(prefix("::ffff:10.1.2.3"), "10.1.2.3");
        assert_eq!(prefix("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(prefix("2001:db8:1:2::9"), "2001:db8:1:2::");
    }

    #[test]
    fn claims_are_text_and_missing_ones_are_one_key() {
        let payload = jwt_payload(b"e30.eyJzdWIiOiJhIiwibiI6NywieCI6bnVsbH0.c2ln").unwrap();
        for (name, text) in [("sub", "a"), ("n", "7"), ("x", ""), ("y", "")] {
            assert_eq!(claim(Some(&payload), name), text.as_bytes(), "{name}");
        }
        assert_eq!(claim(None, "sub"), b"");
        assert_eq!(claim(Some(b"no json"), "sub"), b"");
        assert_eq!(jwt_payload(b"no token"), None);
    }
}
