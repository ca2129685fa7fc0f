use std::io;
use std::sync::mpsc;

use super::super::fixtures::{World, address, connection, named, world};
use super::super::metrics::tests::strict::open_metrics;
use super::super::metrics::{Metrics, MetricsConfig};
use super::*;
use crate::ops::clock::Clock as _;
use crate::outcome::DenyReason;

fn denied() -> Outcome {
    Outcome::PolicyDenied { reason: DenyReason::NoAllowPolicy, policy: None }
}

fn with(level: AccessLevel, format: AccessFormat) -> World {
    world(AccessConfig { level, format, ..AccessConfig::default() })
}

#[test]
fn a_text_line_in_full() {
    let world = with(AccessLevel::All, AccessFormat::Text);
    let mut connection = connection();
    connection.trace_id = Some("0af7651916cd43dd8448eb211c80319c".into());
    world.telemetry.refused(connection, Outcome::PolicyDenied { reason: DenyReason::DenyPolicy, policy: Some(named("shop/no-web")) });
    assert_eq!(
        world.lines(),
        ["2026-11-23T12:00:00.000Z direction=outbound client=10.1.0.5:40000 server=10.2.0.7:8080 dialled=10.96.0.9:80 \
          source_workload=shop/web-a source_identity=spiffe://cluster.local/ns/shop/sa/web destination_workload=shop/cart-b \
          destination_identity=spiffe://cluster.local/ns/shop/sa/cart service=cart.shop.svc.cluster.local bytes_received=0 bytes_sent=0 \
          duration_ms=0 security=mutual_tls outcome=policy_denied flags=DENY reason=\"denied by policy shop/no-web\" policy=shop/no-web \
          trace_id=0af7651916cd43dd8448eb211c80319c"]
    );
}

#[test]
fn what_a_peer_says_stays_in_its_field() {
    let hostile = "\u{1b}[2Jend\" outcome=completed\n2026 forged \\ \u{202e}\u{9b}\r\u{0}";
    for format in [AccessFormat::Json, AccessFormat::Text] {
        let world = with(AccessLevel::All, format);
        world.telemetry.refused(connection(), Outcome::PeerProtocol { detail: hostile.into() });
        let lines = world.lines();
        assert_eq!(lines.len(), 1);
        assert!(!lines[0].chars().any(|c| c.is_control() || c == '\u{202e}'), "{lines:?}");
        let reason = match format {
            AccessFormat::Json => serde_json::from_str::<serde_json::Value>(&lines[0]).unwrap()["reason"].clone(),
            // A quoted value is a JSON string.
            AccessFormat::Text => {
                let at = lines[0].find("reason=").unwrap() + "reason=".len();
                serde_json::Deserializer::from_str(&lines[0][at..]).into_iter::<serde_json::Value>().next().unwrap().unwrap()
            }
        };
        assert_eq!(reason, format!("protocol error of the peer: {hostile}"));
    }
}

#[test]
fn long_words_are_cut() {
    let world = with(AccessLevel::All, AccessFormat::Json);
    world.telemetry.refused(connection(), Outcome::PeerProtocol { detail: "é".repeat(100_000).into() });
    let lines = world.lines();
    assert!(lines[0].len() < 3000);
    assert!(serde_json::from_str::<serde_json::Value>(&lines[0]).unwrap()["reason"].as_str().unwrap().ends_with('…'));
}

#[test]
fn what_is_absent_is_left_out() {
    let world = with(AccessLevel::All, AccessFormat::Json);
    let mut connection = connection();
    connection.labels.source = PeerInfo::default();
    connection.labels.service = None;
    connection.dialled = connection.server;
    connection.client = address("[fd00::1]:9");
    world.telemetry.refused(connection, Outcome::MtlsRequired { policy: None });
    let line: serde_json::Value = serde_json::from_str(&world.lines()[0]).unwrap();
    for name in ["source_workload", "source_identity", "service", "dialled", "policy", "dry_run", "trace_id"] {
        assert!(line.get(name).is_none(), "{name}");
    }
    assert_eq!(line["client"], "[fd00::1]:9");
}

#[test]
fn levels_pick() {
    let world = with(AccessLevel::Denied, AccessFormat::Text);
    let log = world.telemetry.access();
    world.telemetry.refused(connection(), Outcome::Completed);
    assert_eq!(world.lines().len(), 0);
    world.telemetry.refused(connection(), denied());
    assert_eq!(world.lines().len(), 1);
    log.set_level(AccessLevel::All);
    world.telemetry.refused(connection(), Outcome::Completed);
    assert_eq!(world.lines().len(), 2);
    log.set_level(AccessLevel::Off);
    world.telemetry.refused(connection(), denied());
    assert_eq!(world.lines().len(), 2);
}

#[test]
fn a_workload_may_have_a_level_of_its_own() {
    let world = with(AccessLevel::Off, AccessFormat::Text);
    let log = world.telemetry.access();
    log.set_override(named("shop/web-a"), Some(AccessLevel::All)).unwrap();
    world.telemetry.refused(connection(), Outcome::Completed);
    assert_eq!(world.lines().len(), 1, "by the pod's name");
    log.set_override(named("shop/web-a"), None).unwrap();
    log.set_override(named("shop/cart"), Some(AccessLevel::Denied)).unwrap();
    world.telemetry.refused(connection(), Outcome::Completed);
    world.telemetry.refused(connection(), denied());
    assert_eq!(world.lines().len(), 2, "by the Deployment's name, on the other side");
    log.set_level(AccessLevel::All);
    log.set_override(named("shop/cart"), Some(AccessLevel::Off)).unwrap();
    world.telemetry.refused(connection(), denied());
    assert_eq!(world.lines().len(), 2, "a noisy one can be silenced");
}

#[test]
fn whether_anybody_reads_of_all_connections_follows_the_levels() {
    let world = with(AccessLevel::Denied, AccessFormat::Text);
    let log = world.telemetry.access();
    let mut read = log.reads_all();
    assert!(!*read.borrow_and_update());
    log.set_override(named("shop/cart"), Some(AccessLevel::Denied)).unwrap();
    assert!(!read.has_changed().unwrap());
    log.set_override(named("shop/web-a"), Some(AccessLevel::All)).unwrap();
    assert!(*read.borrow_and_update());
    log.set_level(AccessLevel::All);
    log.set_override(named("shop/web-a"), None).unwrap();
    assert!(!read.has_changed().unwrap() && *read.borrow());
    log.set_level(AccessLevel::Off);
    assert!(!*read.borrow_and_update());
}

#[test]
fn overrides_are_bounded() {
    let world = with(AccessLevel::Off, AccessFormat::Text);
    let log = world.telemetry.access();
    for number in 0..MAX_OVERRIDES {
        log.set_override(named(&format!("shop/w{number}")), Some(AccessLevel::All)).unwrap();
    }
    assert_eq!(log.set_override(named("shop/more"), Some(AccessLevel::All)), Err(TooManyOverrides));
    log.set_override(named("shop/w1"), Some(AccessLevel::Off)).unwrap();
    log.set_override(named("shop/w1"), None).unwrap();
    log.set_override(named("shop/more"), Some(AccessLevel::All)).unwrap();
}

#[test]
fn what_would_be_left_out_can_be_asked_beforehand_and_is_told_later() {
    let world = world(AccessConfig { level: AccessLevel::All, format: AccessFormat::Json, rate: 2.0, burst: 1.0 });
    let (log, clock) = (world.telemetry.access(), &world.clock);
    assert!(!log.leaves_out(clock.now()), "asking takes nothing");
    world.telemetry.refused(connection(), Outcome::Completed);
    assert!(log.leaves_out(clock.now()) && log.leaves_out(clock.now()));
    clock.advance(Duration::from_millis(500));
    world.telemetry.refused(connection(), Outcome::Completed);
    let lines = world.lines();
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(lines[1].contains('2'), "{lines:?}");
    log.set_level(AccessLevel::Denied);
    assert!(log.leaves_out(clock.now()));
    log.set_override(named("shop/web-a"), Some(AccessLevel::All)).unwrap();
    assert!(!log.leaves_out(clock.now()), "whose line it is must be known");
}

#[test]
fn the_rate_is_limited_and_what_is_left_out_is_told() {
    let world = world(AccessConfig { level: AccessLevel::All, format: AccessFormat::Json, rate: 2.0, burst: 3.0 });
    for _ in 0..10 {
        world.telemetry.refused(connection(), Outcome::Completed);
    }
    assert_eq!(world.lines().len(), 3);
    // Denials have a bucket of their own.
    world.telemetry.refused(connection(), denied());
    assert_eq!(world.lines().len(), 4);
    world.clock.advance(Duration::from_millis(500));
    world.telemetry.refused(connection(), Outcome::Completed);
    world.telemetry.refused(connection(), Outcome::Completed);
    let lines = world.lines();
    assert_eq!(lines.len(), 6);
    let notice: serde_json::Value = serde_json::from_str(&lines[4]).unwrap();
    assert_eq!((&notice["suppressed"], &notice["of"]), (&7.into(), &"others".into()));
    let text = open_metrics(&world.scrape());
    assert_eq!(text.sum("nodemesh_access_log_lines_total", &[("result", "suppressed")]), 8.0);
    assert_eq!(text.sum("nodemesh_access_log_lines_total", &[("result", "written")]), 6.0);
}

#[test]
fn a_bucket_fills_with_time_and_not_beyond() {
    let start = Instant::now();
    let mut bucket = TokenBucket::new(10.0, 2.0, start);
    assert!(bucket.take(start) && bucket.take(start) && !bucket.take(start));
    assert!(!bucket.take(start + Duration::from_millis(99)));
    assert!(bucket.take(start + Duration::from_millis(101)));
    assert!(!bucket.take(start), "time that goes back fills nothing");
    let later = start + Duration::from_secs(3600);
    assert!(bucket.take(later) && bucket.take(later) && !bucket.take(later));
}

/// Blocks in its first write until told to go on.
struct Stuck {
    entered: mpsc::Sender<()>,
    go: Option<mpsc::Receiver<()>>,
}

impl io::Write for Stuck {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(go) = self.go.take() {
            self.entered.send(()).unwrap();
            let _ = go.recv();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_stuck_terminal_costs_lines_and_no_time() {
    let metrics = Metrics::new(MetricsConfig::default());
    let ((entered, wait_entered), (go, wait_go)) = (mpsc::channel(), mpsc::channel());
    let config = AccessConfig { level: AccessLevel::All, rate: 1e9, burst: 1e9, ..AccessConfig::default() };
    let log = AccessLog::start(config, Stuck { entered, go: Some(wait_go) }, &metrics.agent, Instant::now()).unwrap();
    let connection = connection();
    let line = AccessLine {
        time: SystemTime::UNIX_EPOCH,
        connection: &connection,
        bytes: (1, 2),
        duration: Duration::ZERO,
        outcome: &Outcome::Completed,
        dry_run: None,
        request: None,
    };
    log.record(&line, Instant::now());
    wait_entered.recv().unwrap();
    for _ in 0..10_000 {
        log.record(&line, Instant::now());
    }
    assert!(log.lost() >= 5000, "{}", log.lost());
    assert!(!log.flush(Duration::ZERO));
    go.send(()).unwrap();
}

struct Broken;

impl io::Write for Broken {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn lines_that_cannot_be_written_are_counted_as_lost() {
    let metrics = Metrics::new(MetricsConfig::default());
    let config = AccessConfig { level: AccessLevel::All, ..AccessConfig::default() };
    let log = AccessLog::start(config, Broken, &metrics.agent, Instant::now()).unwrap();
    let connection = connection();
    let line = AccessLine {
        time: SystemTime::UNIX_EPOCH,
        connection: &connection,
        bytes: (1, 2),
        duration: Duration::ZERO,
        outcome: &Outcome::Completed,
        dry_run: None,
        request: None,
    };
    log.record(&line, Instant::now());
    assert!(log.flush(Duration::from_secs(10)));
    assert_eq!(log.lost(), 1);
}

#[test]
fn bad_words_name_the_good_ones() {
    assert_eq!("loud".parse::<AccessLevel>().unwrap_err().to_string(), "\"loud\" is not one of: off, denied, all");
    assert_eq!("xml".parse::<AccessFormat>().unwrap_err().to_string(), "\"xml\" is not one of: text, json");
    assert_eq!("denied".parse::<AccessLevel>().unwrap().to_string(), "denied");
}
