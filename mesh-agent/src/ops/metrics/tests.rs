use std::time::{Duration, Instant, UNIX_EPOCH};

use mesh_common::event::counter;
use mesh_common::flow::{Stats, StatsKey};

use super::agent::CertificateResult;
use super::kernel::{FlowPeers, KernelCounters};
use super::labels::{PeerInfo, Reporter, Security, ServiceRef};
use super::*;
use crate::ops::fixtures::{labels, named, peer, workload};
use crate::outcome::ResponseFlag;

pub(crate) mod strict;

const OPENED: &str = "istio_tcp_connections_opened_total";
const CLOSED: &str = "istio_tcp_connections_closed_total";
const SENT: &str = "istio_tcp_sent_bytes_total";
const RECEIVED: &str = "istio_tcp_received_bytes_total";

fn small(max_pairs: usize) -> Metrics {
    Metrics::new(MetricsConfig { max_pairs, ..MetricsConfig::default() })
}

fn scrape(metrics: &Metrics, now: Instant) -> strict::Exposition {
    strict::open_metrics(&metrics.expose(Format::OpenMetrics, now).unwrap())
}

#[test]
fn labels_stand_in_istios_order() {
    let metrics = small(10);
    metrics.series(&labels(peer("web", "a"), peer("cart", "b"))).add_opened(1);
    let text = scrape(&metrics, Instant::now());
    let sample = text.all(OPENED, &[]).next().unwrap();
    let expected = [
        ("reporter", "source"),
        ("source_workload", "web"),
        ("source_canonical_service", "web"),
        ("source_canonical_revision", "v1"),
        ("source_workload_namespace", "shop"),
        ("source_principal", "spiffe://cluster.local/ns/shop/sa/web"),
        ("source_app", "web"),
        ("source_version", "unknown"),
        ("source_cluster", "Kubernetes"),
        ("destination_service", "cart.shop.svc.cluster.local"),
        ("destination_service_namespace", "shop"),
        ("destination_service_name", "cart"),
        ("destination_workload", "cart"),
        ("destination_canonical_service", "cart"),
        ("destination_canonical_revision", "v1"),
        ("destination_workload_namespace", "shop"),
        ("destination_principal", "spiffe://cluster.local/ns/shop/sa/cart"),
        ("destination_app", "cart"),
        ("destination_version", "unknown"),
        ("destination_cluster", "Kubernetes"),
        ("request_protocol", "tcp"),
        ("response_flags", "-"),
        ("connection_security_policy", "mutual_tls"),
    ];
    assert_eq!(sample.labels, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
}

#[test]
fn what_is_not_known_is_unknown() {
    let metrics = small(10);
    let mut labels = labels(PeerInfo::default(), PeerInfo::default());
    labels.service = None;
    labels.security = Security::None;
    labels.reporter = Reporter::Destination;
    metrics.series(&labels).add_opened(1);
    let text = scrape(&metrics, Instant::now());
    let sample = text.all(OPENED, &[]).next().unwrap();
    for (name, value) in &sample.labels {
        let expected = match name.as_str() {
            "reporter" => "destination",
            "request_protocol" => "tcp",
            "response_flags" => "-",
            "connection_security_policy" => "none",
            _ => "unknown",
        };
        assert_eq!(value, expected, "{name}");
    }
}

#[test]
fn received_is_the_request_and_sent_the_response() {
    let metrics = small(10);
    metrics.series(&labels(peer("web", "a"), peer("cart", "b"))).add_bytes(7, 4000);
    let text = scrape(&metrics, Instant::now());
    assert_eq!(text.sum(RECEIVED, &[]), 7.0);
    assert_eq!(text.sum(SENT, &[]), 4000.0);
}

#[test]
fn both_formats_are_strictly_right() {
    let metrics = small(10);
    let series = metrics.series(&labels(peer("web", "a"), peer("cart", "b")));
    series.add_opened(2);
    series.add_closed(ResponseFlag::Deny, 1);
    metrics.agent.denied("policy_denied");
    metrics.agent.certificate(CertificateResult::Issued);
    metrics.agent.config_applied.set(1_700_000_000.5);
    KernelCounters::register(&metrics).set(counter::DIRECT, 9);
    metrics.collect_certificates(|| {
        let workload = workload("web", "a");
        vec![CertificateSample { identity: workload.identity.clone(), not_after: UNIX_EPOCH + Duration::from_secs(10) }]
    });
    metrics
        .collect_maps(|| vec![MapSample { map: "PODS", entries: 3, capacity: 1024 }, MapSample { map: "FLOWS", entries: 0, capacity: 9 }]);
    metrics.collect(|samples| {
        samples.family("nodemesh_odd", "Odd values.", Kind::Gauge).sample(&[("a", "say \"hi\"\\\n"), ("b", "")], -1.5);
    });
    let now = Instant::now();
    let open = scrape(&metrics, now);
    let plain = strict::prometheus(&metrics.expose(Format::Prometheus, now).unwrap());
    assert_eq!(open.samples, plain.samples, "both formats tell the same");
    assert_eq!(open.families.len(), plain.families.len());
    assert_eq!(open.families["istio_tcp_sent_bytes"], "counter");
    assert_eq!(plain.families["istio_tcp_sent_bytes_total"], "counter");
    assert_eq!(plain.families["nodemesh_build_info"], "gauge");
    assert_eq!(open.all("nodemesh_odd", &[]).next().unwrap().label("a"), Some("say \"hi\"\\\n"));
    assert_eq!(open.sum("nodemesh_kernel_verdicts_total", &[("verdict", "direct")]), 9.0);
    assert_eq!(open.sum("nodemesh_ebpf_map_capacity", &[("map", "PODS")]), 1024.0);
    assert_eq!(open.sum("nodemesh_certificate_expiration_timestamp_seconds", &[]), 10.0);
    assert_eq!(open.sum("nodemesh_policy_decisions_total", &[("decision", "deny"), ("reason", "policy_denied")]), 1.0);
    assert_eq!(open.sum("nodemesh_build_info", &[("version", env!("CARGO_PKG_VERSION"))]), 1.0);
    assert_eq!(open.sum("nodemesh_certificate_renewals_total", &[("result", "failed")]), 0.0);
}

#[test]
fn an_empty_registry_is_right_too() {
    let text = scrape(&small(1), Instant::now());
    assert!(!text.families.contains_key("istio_tcp_sent_bytes"));
}

#[test]
fn the_format_is_the_one_asked_for() {
    use Format::*;
    let prometheus_server = "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,\
                             text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
    assert_eq!(Format::negotiate(Some(prometheus_server)), OpenMetrics);
    assert_eq!(Format::negotiate(Some("application/openmetrics-text; version=1.0.0")), OpenMetrics);
    assert_eq!(Format::negotiate(Some("application/openmetrics-text;version=2.0.0,text/plain;q=0.1")), Prometheus);
    assert_eq!(Format::negotiate(Some("text/plain;q=1,application/openmetrics-text;q=0.5")), Prometheus);
    assert_eq!(Format::negotiate(Some("application/openmetrics-text;q=0")), Prometheus);
    assert_eq!(Format::negotiate(Some("*/*")), Prometheus);
    assert_eq!(Format::negotiate(Some(";;q=,=,")), Prometheus);
    assert_eq!(Format::negotiate(None), Prometheus);
}

#[test]
fn pods_of_one_deployment_share_a_series() {
    let metrics = small(10);
    let first = metrics.series(&labels(peer("web", "a"), peer("cart", "b")));
    let again = metrics.series(&labels(peer("web", "a"), peer("cart", "b")));
    let other_pod = metrics.series(&labels(peer("web", "c"), peer("cart", "b")));
    let other_side = metrics.series(&labels(peer("cart", "b"), peer("web", "a")));
    assert!(Arc::ptr_eq(&first, &again) && Arc::ptr_eq(&first, &other_pod));
    assert!(!Arc::ptr_eq(&first, &other_side));
}

#[test]
fn series_go_with_the_last_of_their_workloads_and_not_at_once() {
    let metrics = small(10);
    let start = Instant::now();
    metrics.series(&labels(peer("web", "a"), peer("cart", "b"))).add_opened(1);
    metrics.series(&labels(peer("web", "c"), peer("cart", "b"))).add_opened(1);
    metrics.forget(&workload("web", "a").uid, start);
    assert_eq!(scrape(&metrics, start + 2 * series::GRACE).sum(OPENED, &[]), 2.0, "another pod has the same names");
    metrics.forget(&workload("web", "c").uid, start);
    assert_eq!(scrape(&metrics, start + series::GRACE / 2).sum(OPENED, &[]), 2.0, "the last scrape must still see it");
    assert_eq!(metrics.opened().mutual_tls, 2);
    assert_eq!(scrape(&metrics, start + series::GRACE).all(OPENED, &[]).count(), 0);
    assert_eq!(metrics.opened().mutual_tls, 2, "what was, was");
}

#[test]
fn a_series_in_use_is_kept_until_its_connection_ends() {
    let metrics = small(10);
    let start = Instant::now();
    let series = metrics.series(&labels(peer("web", "a"), peer("cart", "b")));
    metrics.forget(&workload("cart", "b").uid, start);
    series.add_closed(ResponseFlag::UpstreamConnectionTermination, 1);
    let later = scrape(&metrics, start + 2 * series::GRACE);
    assert_eq!(later.sum(CLOSED, &[("response_flags", "UC")]), 1.0);
    drop(series);
    assert_eq!(scrape(&metrics, start + 2 * series::GRACE).all(CLOSED, &[]).count(), 0);
}

#[test]
fn a_workload_that_returns_keeps_its_series() {
    let metrics = small(10);
    let start = Instant::now();
    metrics.series(&labels(peer("web", "a"), peer("cart", "b"))).add_opened(1);
    metrics.forget(&workload("web", "a").uid, start);
    metrics.series(&labels(peer("web", "d"), peer("cart", "b"))).add_opened(1);
    assert_eq!(scrape(&metrics, start + 2 * series::GRACE).sum(OPENED, &[]), 2.0);
}

#[test]
fn a_service_can_be_forgotten() {
    let metrics = small(10);
    let start = Instant::now();
    metrics.series(&labels(peer("web", "a"), peer("cart", "b"))).add_opened(1);
    metrics.forget_service(&named("shop/other"), start);
    assert_eq!(scrape(&metrics, start + series::GRACE).sum(OPENED, &[]), 1.0);
    metrics.forget_service(&named("shop/cart"), start);
    assert_eq!(scrape(&metrics, start + series::GRACE).all(OPENED, &[]).count(), 0);
}

#[test]
fn the_number_of_series_is_bounded_and_nothing_is_left_uncounted() {
    let metrics = small(5);
    for pod in 0..100 {
        let mut labels = labels(peer(&format!("web{pod}"), "a"), peer("cart", "b"));
        labels.service = None;
        metrics.series(&labels).add_opened(1);
    }
    let text = scrape(&metrics, Instant::now());
    assert_eq!(text.sum(OPENED, &[]), 100.0);
    assert_eq!(text.all(OPENED, &[]).count(), 6);
    assert_eq!(text.sum(OPENED, &[("source_workload", "unknown"), ("reporter", "source")]), 95.0);
    assert_eq!(text.sum("nodemesh_metrics_overflow_total", &[]), 95.0);
    // Room that is given back is used.
    metrics.forget(&workload("web0", "a").uid, Instant::now());
    metrics.series(&labels(peer("web100", "a"), peer("cart", "b"))).add_opened(1);
    assert_eq!(scrape(&metrics, Instant::now()).sum(OPENED, &[("source_workload", "web100")]), 1.0);
}

#[test]
fn many_threads_count_as_one() {
    let metrics = small(1000);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for round in 0..2000 {
                    let series = metrics.series(&labels(peer(&format!("web{}", round % 50), "a"), peer("cart", "b")));
                    series.add_opened(1);
                    if round % 97 == 0 {
                        metrics.forget(&workload(&format!("web{}", round % 50), "a").uid, Instant::now());
                        scrape(&metrics, Instant::now());
                    }
                }
            });
        }
    });
    assert_eq!(scrape(&metrics, Instant::now()).sum(OPENED, &[]), 8000.0);
}

#[test]
fn before_a_scrape_the_hooks_run() {
    let metrics = small(10);
    let series = metrics.series(&labels(peer("web", "a"), peer("cart", "b")));
    metrics.before_scrape(move |_| series.add_bytes(5, 6));
    assert_eq!(scrape(&metrics, Instant::now()).sum(SENT, &[]), 6.0);
    assert_eq!(scrape(&metrics, Instant::now()).sum(SENT, &[]), 12.0);
}

fn totals(opened: u64, closed: u64, from_client: u64, to_client: u64) -> FlowTotals {
    FlowTotals { opened, closed, from_client, to_client }
}

const KEY: StatsKey = StatsKey { source: 1, destination: 2, service: 3, kind: mesh_common::flow::KIND_DIRECT };

fn flow_peers(_: &StatsKey) -> FlowPeers {
    let service = ServiceRef { name: named("shop/cart"), host: "cart.shop.svc.cluster.local".into() };
    FlowPeers { source: peer("web", "a"), destination: peer("cart", "b"), service: Some(service) }
}

#[test]
fn connections_inside_the_kernel_are_counted_for_both_sides() {
    let metrics = Arc::new(small(10));
    let mut flows = KernelFlows::new(metrics.clone(), false);
    let now = Instant::now();
    flows.pass([(KEY, totals(2, 1, 100, 2000))], flow_peers);
    flows.pass([(KEY, totals(3, 3, 150, 2500))], flow_peers);
    flows.pass([(KEY, totals(3, 3, 150, 2500))], flow_peers);
    let text = scrape(&metrics, now);
    for reporter in ["source", "destination"] {
        let labels = [("reporter", reporter), ("source_workload", "web"), ("connection_security_policy", "none")];
        assert_eq!(text.sum(OPENED, &labels), 3.0);
        assert_eq!(text.sum(CLOSED, &labels), 3.0);
        assert_eq!(text.sum(RECEIVED, &labels), 150.0);
        assert_eq!(text.sum(SENT, &labels), 2500.0);
    }
}

#[test]
fn what_the_agent_ended_bears_its_flag_and_is_counted_once() {
    let metrics = Arc::new(small(10));
    let mut flows = KernelFlows::new(metrics.clone(), false);
    // It may be noted before anything of its key was counted.
    flows.ended(KEY, ResponseFlag::Deny);
    flows.pass([(KEY, totals(3, 2, 100, 2000))], flow_peers);
    flows.ended(KEY, ResponseFlag::Deny);
    flows.pass([(KEY, totals(3, 2, 100, 2000))], flow_peers);
    flows.pass([(KEY, totals(3, 3, 150, 2500))], flow_peers);
    let closed = |flag: &str, reporter: &str| {
        scrape(&metrics, Instant::now()).sum(CLOSED, &[("reporter", reporter), ("source_workload", "web"), ("response_flags", flag)])
    };
    for reporter in ["source", "destination"] {
        assert_eq!((closed("DENY", reporter), closed("-", reporter)), (2.0, 1.0));
    }
    // An end that the kernel does not count lends its flag to no other.
    flows.ended(KEY, ResponseFlag::Deny);
    for _ in 0..20 {
        flows.pass([(KEY, totals(4, 3, 150, 2500))], flow_peers);
    }
    flows.pass([(KEY, totals(4, 4, 150, 2500))], flow_peers);
    assert_eq!((closed("DENY", "source"), closed("-", "source")), (2.0, 2.0));
}

#[test]
fn what_an_earlier_agent_reported_is_not_counted_again() {
    let metrics = Arc::new(small(10));
    let mut flows = KernelFlows::new(metrics.clone(), true);
    let other = StatsKey { source: 9, ..KEY };
    flows.pass([(KEY, totals(1000, 990, 5, 5))], flow_peers);
    assert_eq!(scrape(&metrics, Instant::now()).all(OPENED, &[]).count(), 0);
    flows.pass([(KEY, totals(1001, 991, 5, 5)), (other, totals(4, 0, 0, 0))], flow_peers);
    assert_eq!(scrape(&metrics, Instant::now()).sum(OPENED, &[("reporter", "source")]), 5.0);
}

#[test]
fn an_entry_that_was_made_anew_counts_from_nothing() {
    let metrics = Arc::new(small(10));
    let mut flows = KernelFlows::new(metrics.clone(), false);
    flows.pass([(KEY, totals(10, 10, 500, 500))], flow_peers);
    flows.pass([(KEY, totals(2, 1, 30, 600))], flow_peers);
    // Missed by one walk, and found again: nothing new.
    flows.pass([], flow_peers);
    flows.pass([(KEY, totals(2, 1, 30, 600))], flow_peers);
    // Gone from the map for long, and back.
    for _ in 0..20 {
        flows.pass([], flow_peers);
    }
    flows.pass([(KEY, totals(1, 0, 0, 0))], flow_peers);
    let text = scrape(&metrics, Instant::now());
    assert_eq!(text.sum(OPENED, &[("reporter", "source")]), 13.0);
    assert_eq!(text.sum(SENT, &[("reporter", "source")]), 1100.0);
}

#[test]
fn totals_are_summed_over_cpus() {
    let cpu = Stats { opened: 1, closed: 2, sent: 3, received: 4 };
    assert_eq!(FlowTotals::sum(&[cpu, cpu]), totals(2, 4, 6, 8));
}

#[test]
fn what_nobody_will_count_into_any_more_can_be_dropped() {
    let metrics = Arc::new(small(10));
    let mut flows = KernelFlows::new(metrics.clone(), false);
    let pass = |flows: &mut KernelFlows, opened, closed| flows.pass([(KEY, totals(opened, closed, 0, 0))], flow_peers);
    pass(&mut flows, 2, 1);
    for _ in 0..100 {
        pass(&mut flows, 2, 1);
    }
    assert_eq!(flows.settled(|_| true), [], "one lives");
    pass(&mut flows, 2, 2);
    assert_eq!(flows.settled(|_| true), [], "it has just ended");
    for _ in 0..100 {
        pass(&mut flows, 2, 2);
    }
    assert_eq!((flows.settled(|_| true), flows.settled(|_| false)), (vec![KEY], vec![]));
    flows.pass([], flow_peers);
    assert_eq!(flows.settled(|_| true), [], "it is dropped already");
    pass(&mut flows, 1, 0);
    assert_eq!(scrape(&metrics, Instant::now()).sum(OPENED, &[("reporter", "source")]), 3.0);
}
