use std::collections::BTreeMap;

use super::super::load::{Load, Sample};
use super::super::many::Memory;
use super::super::path::PathId;
use super::{Cell, PathReport, Report, Settings, cpu_per_request, median};

fn sample(value: f64) -> Cell {
    Cell::Measured(Sample {
        value,
        requests: 1000,
        bytes: 10,
        p50_micros: Some(1.0),
        p99_micros: Some(2.0),
        failures: 0,
        cpu_seconds: Some(0.5),
        rss_bytes: Some(7),
        others_share: 0.0,
    })
}

fn path(id: PathId, values: &[f64]) -> PathReport {
    let rounds = values.iter().map(|value| Load::ALL.iter().map(|load| (load.key(), sample(*value))).collect()).collect();
    PathReport { id, rounds }
}

fn report(paths: Vec<PathReport>, busy: u64) -> Report {
    let settings = Settings { rounds: 3, seconds: 1, build: "profile release".to_owned() };
    let memory = Memory { pods: 100, idle_rss_bytes: 5_000_000, busy_rss_bytes: busy, ready_seconds: 1.0 };
    Report::new(settings, paths, Some(Ok(memory)))
}

#[test]
fn medians_of_odd_and_even_counts() {
    assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
    assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
    assert_eq!(median(Vec::new()), None);
}

#[test]
fn disturbed_measurements_count_only_where_there_are_no_others() {
    let mut one = path(PathId::Direct, &[100.0, 90.0, 50.0]);
    let disturb = |round: &mut BTreeMap<&'static str, Cell>| {
        for cell in round.values_mut() {
            if let Cell::Measured(sample) = cell {
                sample.others_share = 0.5;
            }
        }
    };
    one.rounds.iter_mut().skip(1).for_each(disturb);
    assert_eq!(one.value(Load::One), Some(100.0));
    one.rounds.iter_mut().for_each(disturb);
    assert_eq!(one.value(Load::One), Some(90.0));
}

#[test]
fn ratios_refer_to_the_path_over_the_same_wires() {
    let paths = vec![
        path(PathId::Direct, &[100.0, 90.0, 110.0]),
        path(PathId::DirectLocal, &[200.0; 3]),
        path(PathId::SameNode, &[190.0; 3]),
        path(PathId::CrossNode, &[25.0, 26.0, 24.0]),
    ];
    let report = report(paths, 31_000_000);
    assert_eq!(report.ratio(PathId::SameNode, Load::Bulk), Some(0.95));
    assert_eq!(report.ratio(PathId::CrossNode, Load::One), Some(0.25));
    let met: Vec<bool> = report.goals.iter().map(|goal| goal.met).collect();
    assert_eq!(met, [true, true, true, true, false, true, true, false, false]);
    assert!(report.is_complete() && !report.meets_goals());
}

#[test]
fn what_could_not_be_measured_is_told_and_misses_its_goal() {
    let mut broken = path(PathId::CrossNode, &[80.0; 3]);
    broken.rounds = vec![BTreeMap::from([(Load::One.key(), Cell::Failed { error: "no answer".to_owned() })])];
    let report = report(vec![path(PathId::Direct, &[100.0; 3]), broken], 1);
    assert!(!report.is_complete() && !report.meets_goals());
    assert_eq!(report.goals.len(), 2);
    assert!(report.notes.iter().any(|note| note.contains("no answer")), "{:?}", report.notes);
}

#[test]
fn calls_are_held_to_their_own_baseline_and_to_the_envoys() {
    let paths = vec![
        path(PathId::Direct, &[1000.0; 3]),
        path(PathId::DirectGrpc, &[100.0; 3]),
        path(PathId::CrossNodeGrpc, &[12.0; 3]),
        path(PathId::EnvoyGrpc, &[13.0; 3]),
    ];
    let report = report(paths, 1);
    assert_eq!(report.ratio(PathId::CrossNodeGrpc, Load::Many), Some(0.12));
    let goal = |path: &str| report.goals.iter().find(|goal| goal.path == path && goal.figure == Load::Many.key()).map(|goal| goal.met);
    assert_eq!((goal("cross-node-grpc"), goal("cross-node-grpc beside envoy-grpc")), (Some(true), Some(false)));
}

#[test]
fn nothing_measured_is_not_complete() {
    assert!(!report(Vec::new(), 1).is_complete());
}

#[test]
fn cpu_is_shared_among_requests() {
    let Cell::Measured(mut sample) = sample(1.0) else { panic!("measured") };
    assert_eq!(cpu_per_request(&sample), Some(0.0005));
    sample.requests = 0;
    assert_eq!(cpu_per_request(&sample), None);
}
