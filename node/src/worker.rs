//! One worker thread's part of the pipeline: its chain of stage actors and its upstream client.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use arc_swap::ArcSwap;
use http::HeaderMap;
use proto::forwarded::TrustedProxies;
use proto::health::Health;
use proto::id::RequestId;
use proto::outcome::{Code, EarlyEnd};

use crate::actor::{Chain, ChainBuilder};
use crate::config::GatewaySettings;
use crate::flow::Exchange;
use crate::metrics::{Metrics, Permit};
use crate::records::allowance::Allowances;
use crate::records::{RecordBuffer, RecordSender};
use crate::snapshot::Snapshot;
use crate::stages::authenticate::Authenticate;
use crate::stages::authorize::Authorize;
use crate::stages::filter::Filter;
use crate::stages::forward::Forward;
use crate::stages::inject::Inject;
use crate::stages::limit::Limit;
use crate::stages::prepare::Prepare;
use crate::stages::receive::Receive;
use crate::stages::record::{Origin, Recorder};
use crate::stages::respond::Respond;
use crate::telemetry::{self, TraceContext};
use crate::test_run::{self, TestQueue};
use crate::traces::TraceSender;
use crate::upstream::{Upstream, UpstreamSettings};

/// What every worker of a node shares.
#[derive(Clone)]
pub struct Shared {
    /// The configuration in force.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// Boot settings of the listener.
    pub settings: Arc<GatewaySettings>,
    /// Settings of the upstream client.
    pub upstream: UpstreamSettings,
    /// Counters.
    pub metrics: Metrics,
    /// Where records go.
    pub records: RecordSender,
    /// Where finished requests go, while traces are exported.
    pub traces: Option<TraceSender>,
    /// What this node's records say.
    pub origin: Arc<Origin>,
    /// Test requests for whichever worker is free.
    pub tests: TestQueue,
    /// What is known of the store.
    pub health: Health,
}

/// One worker thread.
pub struct Worker {
    shared: Shared,
    upstream: Rc<Upstream>,
    proxies: TrustedProxies,
    records: RecordBuffer,
    chain: RefCell<Option<Rc<Chain>>>,
}

impl Worker {
    /// A worker on the current thread, which must run an actix system or arbiter.
    pub fn start(shared: Shared) -> Rc<Self> {
        let upstream = Rc::new(Upstream::new(shared.upstream.clone()));
        let records = RecordBuffer::new(shared.records.clone(), shared.metrics.clone());
        let worker = Self {
            proxies: shared.settings.proxies(),
            shared,
            upstream,
            records,
            chain: RefCell::new(None),
        };
        worker.chain.replace(worker.build().map(Rc::new));
        let worker = Rc::new(worker);
        actix_rt::spawn(test_run::serve(Rc::downgrade(&worker)));
        worker
    }

    /// The pipeline, from its end to its beginning.
    fn build(&self) -> Option<Chain> {
        let Shared {
            settings,
            metrics,
            origin,
            traces,
            health,
            ..
        } = &self.shared;
        ChainBuilder::new(settings.mailbox_capacity, metrics.clone())
            .before(Respond)
            .before(Recorder {
                records: self.records.clone(),
                metrics: metrics.clone(),
                origin: origin.clone(),
                allowances: Allowances::new(std::time::Instant::now()),
                traces: traces.clone(),
            })
            .before(Filter {
                metrics: metrics.clone(),
            })
            .before(Forward {
                upstream: self.upstream.clone(),
                metrics: metrics.clone(),
            })
            .before(Inject {
                metrics: metrics.clone(),
                health: health.clone(),
            })
            .before(Prepare)
            .before(Limit)
            .before(Authorize)
            .before(Authenticate {
                explain: settings.explain_unauthorized,
                allowed_hosts: settings.allowed_hosts.clone(),
                basic_challenge: settings.basic_challenge,
                health: health.clone(),
            })
            .before(Receive)
            .build()
    }

    /// Who is believed about where requests come from.
    pub fn proxies(&self) -> &TrustedProxies {
        &self.proxies
    }

    /// Takes a place for a request in flight; none when there is no room.
    pub fn enter(&self) -> Option<Permit> {
        self.shared
            .metrics
            .enter(self.shared.settings.requests_in_flight_max)
    }

    /// Where test requests come from.
    pub fn tests(&self) -> &TestQueue {
        &self.shared.tests
    }

    /// The name of this node.
    pub fn node(&self) -> &str {
        &self.shared.origin.node
    }

    /// The region that this node is in.
    pub fn region(&self) -> &str {
        &self.shared.origin.region
    }

    /// The counters.
    pub fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// The configuration in force now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.shared.snapshot.load_full()
    }

    /// The state of this process's tasks.
    pub fn health(&self) -> &Health {
        &self.shared.health
    }

    /// Whether requests may ask for a fault.
    pub fn fault_injection(&self) -> bool {
        self.shared.settings.fault_injection
    }

    /// The place of a request in its trace; none while traces are not exported. One that another
    /// region passed on is in that one's trace.
    pub fn trace(
        &self,
        headers: &HeaderMap,
        id: RequestId,
        is_passed_on: bool,
    ) -> Option<TraceContext> {
        let traces = self.shared.traces.as_ref()?;
        let (caller, sampling) = (telemetry::callers(headers), traces.sampling());
        Some(match is_passed_on {
            true => TraceContext::passed_on(id.bits(), caller, sampling),
            false => TraceContext::new(id.bits(), caller, sampling),
        })
    }

    /// Gives an exchange to the pipeline, after replacing a chain that lost an actor.
    ///
    /// # Errors
    /// The exchange and why it was not taken.
    pub fn submit(&self, exchange: Box<Exchange>) -> Result<(), (Box<Exchange>, Box<EarlyEnd>)> {
        let mut chain = self.chain.borrow().clone();
        if chain.as_ref().is_none_or(|chain| chain.is_broken()) {
            chain = self.build().map(Rc::new);
            self.chain.replace(chain.clone());
        }
        match chain {
            Some(chain) => chain.submit(exchange),
            None => {
                let end = EarlyEnd::new(Code::InternalError, "the pipeline has no stages");
                Err((exchange, Box::new(end)))
            }
        }
    }
}
