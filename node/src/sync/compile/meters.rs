//! Compiles meters: those of one caller's credential of a proxy, from all that hangs on its way.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use proto::id::{CredentialId, ProxyId};
use proto::meter::value::ValueSet;
use proto::meter::{KeySource, Meter, MeterKind, MeterSpec, Share, share};
use proto::object::ObjectId;
use proto::proxy::Proxy;
use proto::tree::Head;

use super::{OrgCompiler, joined};
use crate::limits::{MeterKey, SlotSpec};
use crate::metering::{Counted, Metering, Row, RowKey};

/// What of answers a meter counts, compiled.
fn value(meter: &Meter) -> Result<Option<Arc<ValueSet>>, String> {
    let value = meter.value.as_ref();
    let value = value.filter(|_| meter.kind == MeterKind::ResponseValue);
    let set = value.map(|value| value.compile().map_err(|error| error.to_string()));
    Ok(set.transpose()?.map(Arc::new))
}

/// The calls in flight that a meter lets be, of which the region has this part.
fn slots(meter: &Meter, spec: &MeterSpec, (version, millionths): (u64, u64)) -> Option<SlotSpec> {
    meter.concurrency().map(|limit| SlotSpec {
        name: meter.name.clone(),
        version,
        limit: share::part(limit, millionths),
        on_store_loss: spec.store_loss(),
        cancels_lost: meter.cancels_lost(),
        answer: spec.answer(),
    })
}

/// A meter with what this region has of its limits: a share that moves where it can.
fn shared(spec: MeterSpec, share: Option<Share>, alone: bool) -> MeterSpec {
    match share {
        None => spec,
        Some(share) if alone && share.can_move(spec.limits()) => spec.sharing(Some(share)),
        Some(share) => spec.shared(share.initial),
    }
}

impl OrgCompiler<'_> {
    /// The meters that may count requests of a caller with this credential through this proxy.
    pub(super) fn metering(
        &self,
        (caller, priority): (CredentialId, u8),
        id: ProxyId,
        proxy: &Proxy,
    ) -> Result<Metering, String> {
        let injected = proxy.target_credential_id.map(ObjectId::Credential);
        let scopes = [
            (Some(ObjectId::Org(self.state.config.org)), false),
            (Some(ObjectId::Target(proxy.target_id)), true),
            (injected, true),
            (Some(ObjectId::Credential(caller)), false),
            (Some(ObjectId::Proxy(id)), false),
        ];
        let mut rows = Vec::new();
        rows.extend(self.own_limits(id, proxy)?);
        for (scope, each_attempt) in scopes {
            for (version, meter) in self.policies.meters(scope) {
                let row = self.row(caller, id, proxy, meter, *version, each_attempt)?;
                rows.push(row);
            }
        }
        let limits = Arc::clone(&self.compiler.parts.limits);
        let newcomers = limits.newcomers(self.state.config.org.bits());
        Metering::new(rows, priority, limits, newcomers).map_err(|error| error.to_string())
    }

    fn row(
        &self,
        caller: CredentialId,
        id: ProxyId,
        proxy: &Proxy,
        meter: &Meter,
        version: u64,
        each_attempt: bool,
    ) -> Result<Row, String> {
        let spec = meter.spec(version).map_err(|error| error.to_string())?;
        let region = &self.compiler.parts.keyring.region;
        let share = Share::of(&meter.shared_by, meter.resets, region);
        let millionths = share.map_or(share::WHOLE, |share| share.initial);
        let spec = shared(spec, share, meter.concurrency().is_none());
        let slots = slots(meter, &spec, (version, millionths));
        let learn = meter.learning(each_attempt);
        let learn = learn.map(|learn| (learn.from, Duration::from_millis(learn.pause_max_ms)));
        // What pauses needs a meter, even one without limits per window.
        let windows = !spec.limits().is_empty() || slots.is_none() || learn.is_some();
        let spec = windows.then(|| Arc::new(spec));
        let value = self::value(meter)?;
        let when = meter.when.as_ref().filter(|when| !when.is_empty());
        let when = when.map(|when| when.compile().map_err(|problems| joined(&problems)));
        let fixed = |key: MeterKey| {
            let limits = &self.compiler.parts.limits;
            RowKey::Fixed(Counted::of(limits, &key, spec.as_ref(), slots.as_ref()))
        };
        let counted = meter.count_name();
        let of = |value: String| fixed(MeterKey::of(counted.as_str(), value));
        let name = || {
            let name = meter.key.name.as_deref();
            name.ok_or_else(|| format!("meter {}: `key.name` is missing", meter.id))
        };
        let key = match meter.key.by {
            KeySource::None => fixed(MeterKey::whole(counted.as_str())),
            KeySource::Proxy => of(id.to_string()),
            KeySource::Caller => of(caller.to_string()),
            KeySource::TargetCredential => {
                let injected = proxy.target_credential_id;
                of(injected.map(|id| id.to_string()).unwrap_or_default())
            }
            KeySource::Header => RowKey::Header(
                HeaderName::from_bytes(name()?.as_bytes())
                    .map_err(|_| format!("meter {}: `key.name` is no header name", meter.id))?,
            ),
            KeySource::Claim => RowKey::Claim(name()?.into()),
            KeySource::Source => RowKey::Source,
        };
        let hold = meter.at_limit.hold.as_ref();
        let priority = hold.and_then(|hold| hold.priority_header.as_deref());
        let priority = priority.and_then(|name| HeaderName::from_bytes(name.as_bytes()).ok());
        let by_target = meter.key.by == KeySource::TargetCredential;
        Ok(Row {
            name: counted.as_str().into(),
            slots: slots.clone(),
            spec: spec.clone(),
            value,
            when: when.transpose()?,
            key,
            learn,
            priority,
            each_attempt: each_attempt || by_target,
        })
    }

    /// `limits` of a proxy: one meter with two limits.
    fn own_limits(&self, id: ProxyId, proxy: &Proxy) -> Result<Option<Row>, String> {
        let limits = proxy.limits.compile().map_err(|error| error.to_string())?;
        if limits.is_empty() {
            return Ok(None);
        }
        let version = self.version_of(ObjectId::Proxy(id));
        let spec = MeterSpec::new("", version, limits).map_err(|error| error.to_string())?;
        let region = &self.compiler.parts.keyring.region;
        let spec = shared(spec, Share::of(&proxy.limits.shared_by, 0, region), true);
        let (key, spec) = (MeterKey::whole(id.to_string()), Arc::new(spec));
        let counted = Counted::of(&self.compiler.parts.limits, &key, Some(&spec), None);
        Ok(Some(Row {
            name: id.to_string().into(),
            spec: Some(spec),
            slots: None,
            value: None,
            when: None,
            key: RowKey::Fixed(counted),
            learn: None,
            priority: None,
            each_attempt: false,
        }))
    }

    /// The version that last changed an object: limits that did not change keep their tokens.
    fn version_of(&self, id: ObjectId) -> u64 {
        let config = &self.state.config;
        let n = config.object(id).map_or(config.head.n, |o| o.version);
        over_homes(&config.head, n)
    }
}

/// A version of limits that is higher than all of earlier homes, whatever their numbers: what was
/// published under one that is no more may have a higher number than what is in force.
pub(super) fn over_homes(head: &Head, n: u64) -> u64 {
    const N_BITS: u32 = 40;
    let counter = head.epoch.counter.min(u64::MAX >> N_BITS);
    (counter << N_BITS) | n.min((1 << N_BITS) - 1)
}
