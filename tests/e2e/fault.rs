//! A defect of the gateway costs one request, whichever stage it is in.

use proto::record::Stage;

use crate::harness::gateway::Gateway;
use crate::harness::upstream::Upstream;

#[test]
fn a_panic_in_any_stage_is_one_500_and_is_counted() {
    let gateway = Gateway::configured("[gateway]\nworkers = 1\nfault_injection = true");
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    for stage in Stage::ALL {
        let name = stage.name();
        let fault = proxy
            .request("GET", "/")
            .field("requestrocket-fault", &format!("panic@{name}"));
        let answer = proxy.send(&fault);
        assert_eq!(answer.outcome(), (500, "internal-error"), "{name}");
        assert_eq!(answer.json()["code"], "internal-error", "{name}");
        assert!(!answer.text().contains(name), "{}", answer.text());
        let series = format!("requestrocket_stage_panics_total{{stage=\"{name}\"}}");
        assert_eq!(gateway.metric(&series), 1.0, "{name}");
        assert_eq!(proxy.get("/").status(), 200, "after a panic in {name}");
    }
    assert_eq!(gateway.metric("requestrocket_requests_in_flight"), 0.0);
}

#[test]
fn nobody_injects_faults_into_a_gateway_that_does_not_test_itself() {
    let gateway = Gateway::start();
    let upstream = Upstream::json("{}");
    let proxy = gateway.proxy(&upstream.url());
    let fault = proxy
        .request("GET", "/")
        .field("requestrocket-fault", "panic@forward");
    assert_eq!(proxy.send(&fault).status(), 200);
    assert_eq!(upstream.last().field("requestrocket-fault"), None);
}
