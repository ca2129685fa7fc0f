use std::sync::Arc;

use mesh_model::object::{Kind, ObjectKey};
use mesh_model::route::{ConnectionScope, RuleOrigin};

use super::*;

fn asked(declared: Declared, table: Option<RouteTable>) -> Asked {
    let service = NamespacedName { namespace: "shop".into(), name: "web".into() };
    Asked { service, port: 80, declared, table: table.map(Arc::new), of_others: false }
}

fn origin() -> RuleOrigin {
    RuleOrigin { object: ObjectKey { kind: Kind::TlsRoute, namespace: "shop".into(), name: "r".into() }, rule: 0, name: None }
}

fn tcp_rule(scope: ConnectionScope) -> Arc<TcpRule> {
    Arc::new(TcpRule { origin: origin(), scope, backends: Vec::new() })
}

#[test]
fn only_what_routes_for_requests_or_none_leave_open_is_taken_apart() {
    let http = || Some(RouteTable::Http { rules: Vec::new(), grpc: false });
    let tcp = || Some(RouteTable::Tcp(vec![tcp_rule(ConnectionScope::default())]));
    let tls = || Some(RouteTable::Tls(Vec::new()));
    assert!(asked(Declared::Unknown, http()).is_looked_into() && asked(Declared::Unknown, None).is_looked_into());
    assert!(!asked(Declared::Tcp, http()).is_looked_into() && !asked(Declared::Http, tcp()).is_looked_into());
    assert!(asked(Declared::Http, None).is_taken_apart(Protocol::Http2) && asked(Declared::Tls, http()).is_taken_apart(Protocol::Http1));
    assert!(!asked(Declared::Http, tls()).is_taken_apart(Protocol::Http1) && !asked(Declared::Http, http()).is_taken_apart(Protocol::Tls));
}

#[test]
fn a_whole_connection_goes_by_its_server_name_or_to_what_was_dialled() {
    let rule = |host: &str| {
        Arc::new(TlsRule { origin: origin(), scope: ConnectionScope::default(), hosts: vec![host.into()], backends: Vec::new() })
    };
    let tls = asked(Declared::Tls, Some(RouteTable::Tls(vec![rule("a.example"), rule("*.example")])));
    let client = crate::ops::fixtures::workload("web", "a");
    let dialled: IpAddr = "10.96.0.1".parse().unwrap();
    assert!(matches!(tls.whole(&client, dialled, Some("a.example")), Ok(Whole::Tls(0, _))));
    assert!(matches!(tls.whole(&client, dialled, Some("b.example")), Ok(Whole::Tls(1, _))));
    assert_eq!(tls.whole(&client, dialled, None), Err(Outcome::Request(RequestFailure::NoRoute)));
    let plain = asked(Declared::Unknown, None);
    assert_eq!(plain.whole(&client, dialled, None), Ok(Whole::Own(plain.own())));
    let away = ConnectionScope { source_namespace: Some("away".into()), ..ConnectionScope::default() };
    let near = ConnectionScope { destinations: vec!["10.96.0.0/24".parse().unwrap()], ..ConnectionScope::default() };
    let tcp = asked(Declared::Tcp, Some(RouteTable::Tcp(vec![tcp_rule(away), tcp_rule(near)])));
    assert!(matches!(tcp.whole(&client, dialled, None), Ok(Whole::Tcp(1, _))), "the first that holds");
    assert_eq!(tcp.whole(&client, "10.97.0.1".parse().unwrap(), None), Ok(Whole::Own(tcp.own())), "as if there were none");
}

#[test]
fn server_names_match_whole_or_by_what_follows_a_star() {
    assert!(names("a.example", "a.example") && !names("a.example", "b.example"));
    assert!(names("*.example", "a.b.example") && !names("*.example", ".example") && !names("*.example", "example"));
    assert!(names("*", "") && names("*", "a"));
}
