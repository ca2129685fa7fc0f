use super::super::access::{AccessConfig, AccessFormat, AccessLevel};
use super::super::fixtures::{World, connection, named, world};
use super::super::metrics::tests::strict::{Exposition, open_metrics};
use super::*;
use crate::outcome::DenyReason;

fn all_lines() -> World {
    world(AccessConfig { level: AccessLevel::All, format: AccessFormat::Json, ..AccessConfig::default() })
}

fn line(world: &World) -> serde_json::Value {
    let lines = world.lines();
    assert_eq!(lines.len(), 1, "{lines:?}");
    serde_json::from_str(&lines[0]).unwrap()
}

fn scrape(world: &World) -> Exposition {
    open_metrics(&world.scrape())
}

#[test]
fn bytes_are_seen_while_the_connection_lives_and_counted_once() {
    let world = all_lines();
    let recorder = world.telemetry.open(connection());
    recorder.meter().add_from_client(10);
    let text = scrape(&world);
    assert_eq!(text.sum("istio_tcp_received_bytes_total", &[]), 10.0);
    assert_eq!(text.sum("istio_tcp_connections_opened_total", &[]), 1.0);
    assert_eq!(text.sum("istio_tcp_connections_closed_total", &[]), 0.0);
    recorder.meter().add_from_client(5);
    recorder.meter().add_to_client(7);
    scrape(&world);
    recorder.finish(Outcome::Completed);
    let text = scrape(&world);
    assert_eq!(text.sum("istio_tcp_received_bytes_total", &[]), 15.0);
    assert_eq!(text.sum("istio_tcp_sent_bytes_total", &[]), 7.0);
    assert_eq!(text.sum("istio_tcp_connections_closed_total", &[("response_flags", "-")]), 1.0);
    assert!(world.telemetry.live().is_empty());
}

#[test]
fn metrics_and_log_tell_the_same() {
    let world = all_lines();
    let recorder = world.telemetry.open(connection());
    recorder.meter().add_from_client(3);
    recorder.meter().add_to_client(4);
    world.clock.advance(Duration::from_millis(1500));
    recorder.finish(Outcome::ServerReset);
    let line = line(&world);
    let text = scrape(&world);
    assert_eq!(text.sum("istio_tcp_connections_closed_total", &[("response_flags", line["flags"].as_str().unwrap())]), 1.0);
    assert_eq!(text.sum("istio_tcp_received_bytes_total", &[]), line["bytes_received"].as_f64().unwrap());
    assert_eq!(text.sum("istio_tcp_sent_bytes_total", &[]), line["bytes_sent"].as_f64().unwrap());
    assert_eq!(line["duration_ms"], 1500);
    assert_eq!(line["time"], "2026-11-23T12:00:01.500Z");
    assert_eq!(line["outcome"], "server_reset");
}

#[test]
fn a_denial_is_counted_with_its_reason_and_logged_with_its_policy() {
    let world = world(AccessConfig { format: AccessFormat::Json, ..AccessConfig::default() });
    world.telemetry.open(connection()).finish(Outcome::Completed);
    let denied = Outcome::PolicyDenied { reason: DenyReason::DenyPolicy, policy: Some(named("shop/no-web")) };
    world.telemetry.refused(connection(), denied);
    let line = line(&world);
    assert_eq!(line["policy"], "shop/no-web");
    assert_eq!(line["source_workload"], "shop/web-a");
    assert_eq!(line["outcome"], "policy_denied");
    let text = scrape(&world);
    assert_eq!(text.sum("nodemesh_policy_decisions_total", &[("decision", "deny"), ("reason", "policy_denied")]), 1.0);
    assert_eq!(text.sum("istio_tcp_connections_closed_total", &[("response_flags", "DENY")]), 1.0);
    assert_eq!(text.sum("istio_tcp_connections_opened_total", &[]), 2.0);
}

#[test]
fn a_record_that_nobody_finished_is_still_written_once() {
    let world = all_lines();
    drop(world.telemetry.open(connection()));
    assert_eq!(line(&world)["outcome"], "internal");
    assert_eq!(scrape(&world).sum("istio_tcp_connections_closed_total", &[]), 1.0);
}

#[test]
fn a_task_that_was_told_to_end_and_dropped_records_why() {
    let world = all_lines();
    let recorder = world.telemetry.open(connection());
    recorder.live().close(Outcome::Drained);
    recorder.live().close(Outcome::ClosedByOperator);
    drop(recorder);
    assert_eq!(line(&world)["outcome"], "drained", "the first word holds");
}

#[test]
fn dry_run_is_logged_and_counted_though_the_connection_passed() {
    let world = world(AccessConfig { format: AccessFormat::Json, ..AccessConfig::default() });
    let mut recorder = world.telemetry.open(connection());
    recorder.allowed(Some(DryRun::Policy(named("shop/planned"))));
    recorder.finish(Outcome::Completed);
    let line = line(&world);
    assert_eq!(line["dry_run"], "shop/planned");
    assert_eq!(line["outcome"], "completed");
    let text = scrape(&world);
    assert_eq!(text.sum("nodemesh_policy_dry_run_denials_total", &[]), 1.0);
    assert_eq!(text.sum("nodemesh_policy_decisions_total", &[("decision", "allow")]), 1.0);
}

#[test]
fn the_kernels_reports_are_logged_and_only_refusals_counted() {
    let world = all_lines();
    let report = |outcome| KernelReport { outcome, from_client: 100, to_client: 200, duration: Duration::from_millis(3), dry_run: None };
    world.telemetry.kernel(Connection { direction: Direction::Local, ..connection() }, report(Outcome::Completed));
    assert_eq!(scrape(&world).sum("istio_tcp_connections_opened_total", &[]), 0.0);
    world.telemetry.kernel(connection(), report(Outcome::from_kernel_refusal(mesh_common::event::REASON_POLICY, Some(named("shop/p")))));
    let text = scrape(&world);
    assert_eq!(text.sum("istio_tcp_connections_closed_total", &[("reporter", "source"), ("response_flags", "DENY")]), 1.0);
    assert_eq!(text.sum("istio_tcp_connections_closed_total", &[("reporter", "destination"), ("response_flags", "DENY")]), 1.0);
    assert_eq!(text.sum("istio_tcp_received_bytes_total", &[]), 0.0);
    let lines = world.lines();
    let [closed, denied] = &lines[..] else { panic!("{lines:?}") };
    assert!(closed.contains("\"direction\":\"local\"") && closed.contains("\"bytes_received\":100"));
    assert!(denied.contains("\"policy\":\"shop/p\""));
}

#[test]
fn what_the_agent_ended_is_logged_and_left_to_the_kernel_to_count() {
    let world = world(AccessConfig { format: AccessFormat::Json, ..AccessConfig::default() });
    let outcome = Outcome::PolicyRevoked { reason: DenyReason::DenyPolicy, policy: Some(named("shop/p")) };
    let report = KernelReport { outcome, from_client: 100, to_client: 200, duration: Duration::from_millis(3), dry_run: None };
    world.telemetry.ended(connection(), report);
    let line = line(&world);
    assert_eq!((&line["outcome"], &line["policy"]), (&"policy_revoked".into(), &"shop/p".into()));
    assert_eq!((&line["bytes_received"], &line["bytes_sent"]), (&100.into(), &200.into()));
    let text = scrape(&world);
    for name in ["istio_tcp_connections_opened_total", "istio_tcp_connections_closed_total", "istio_tcp_received_bytes_total"] {
        assert_eq!(text.sum(name, &[]), 0.0, "{name}");
    }
    assert_eq!(text.sum("nodemesh_policy_decisions_total", &[("decision", "deny"), ("reason", "policy_revoked")]), 1.0);
}
