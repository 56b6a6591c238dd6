//! One request as a file in the JSON form of OTLP, which trace viewers open. Pure.
//!
//! Made from the record alone, so it is there for every request that is recorded, whatever traces
//! were exported. Format: "OTLP/JSON" of the OpenTelemetry Protocol.

use control::trace_file::Told as OfRecord;
use node::telemetry::TraceContext;
use opentelemetry::KeyValue;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_sdk::Resource;
use prost::Message as _;
use proto::target::{BaseUrl, Target};
use serde_json::Value;

use super::spans::{Spans, Told};
use crate::otlp::SERVICE_NAME;

/// The spans of a recorded request, as one `ExportTraceServiceRequest`.
pub fn of(told: &OfRecord<'_>) -> Value {
    let record = told.record;
    let node = |name: &'static str, value: &str| KeyValue::new(name, value.to_owned());
    let resource = Resource::builder_empty()
        .with_service_name(SERVICE_NAME)
        .with_attributes([
            node("service.instance.id", &record.node),
            node("cloud.region", &record.region),
        ])
        .build();
    let target_id = told.target.map(|(id, _)| id.to_string());
    let bases = Bases::of(told.target.map(|(_, target)| target));
    let asked = |at: usize| bases.asked(record.endpoints.get(at).map(|label| &**label));
    let spans = Spans::new(&resource, told.scheme).export_one(&Told {
        record,
        context: &TraceContext::recorded(record),
        target_id: target_id.as_deref(),
        asked: &asked,
    });
    // What was just written is read, and has plain fields.
    let request = ExportTraceServiceRequest::decode(&*spans).unwrap_or_default();
    serde_json::to_value(request).unwrap_or_default()
}

/// The addresses of a target, its own first.
struct Bases(Vec<BaseUrl>);

impl Bases {
    fn of(target: Option<&Target>) -> Self {
        let urls = target.into_iter().flat_map(|target| {
            let further = target.endpoints.iter().map(|one| &one.base_url);
            std::iter::once(&target.base_url).chain(further)
        });
        Self(urls.filter_map(|url| BaseUrl::parse(url).ok()).collect())
    }

    /// The one with this host and port; the target's own where the record names none.
    fn asked(&self, label: Option<&str>) -> Option<&BaseUrl> {
        match label {
            None => self.0.first(),
            Some(label) => self.0.iter().find(|base| base.origin.authority() == label),
        }
    }
}
