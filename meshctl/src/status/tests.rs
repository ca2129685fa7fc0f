use super::*;
use crate::agent::{Connections, Opened, Workload};

fn workload(name: &str, state: &str) -> Workload {
    Workload { name: name.into(), state: state.into(), awaited: None }
}

#[test]
fn the_table_shows_a_line_a_node() {
    let well = Report {
        node: "n1".into(),
        ready: true,
        version: Some("0.1.0".into()),
        config_version: Some(12),
        workloads: vec![workload("shop/web", "ready"), workload("shop/db", "held")],
        connections: Some(Connections { total: 7, opened: Opened { mutual_tls: 5, within_node: 31, plaintext: 2 } }),
        problems: vec!["x".into()],
        ..Report::default()
    };
    let silent = Report { node: "n2".into(), awaited: Some("ImagePullBackOff: no such image".into()), ..Report::default() };
    let status = Status { control: Some((1, 2)), agents: vec![well, silent] };
    let expected = "\
control plane: 1/2 ready
NODE  AGENT  READY  PODS  HELD  OPEN  MTLS  LOCAL  CLEAR  CONFIG  PROBLEMS  WAITING FOR
n1    0.1.0  yes    2     1     7     5     31     2      12      1
n2    -      no     -     -     -     -     -      -      -       -         ImagePullBackOff: no such image
";
    assert_eq!(render(&status, false), expected);
    assert_eq!(render(&Status { control: None, agents: vec![] }, false), "control plane: not installed\nno agents\n");
}
