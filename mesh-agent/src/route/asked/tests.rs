use std::sync::Arc;

use mesh_model::object::{Kind, ObjectKey};
use mesh_model::route::RuleOrigin;

use super::*;

fn asked(declared: Declared, table: Option<RouteTable>) -> Asked {
    let service = NamespacedName { namespace: "shop".into(), name: "web".into() };
    Asked { service, port: 80, declared, table: table.map(Arc::new), of_others: false }
}

fn origin() -> RuleOrigin {
    RuleOrigin { object: ObjectKey { kind: Kind::TlsRoute, namespace: "shop".into(), name: "r".into() }, rule: 0, name: None }
}

#[test]
fn only_what_routes_for_requests_or_none_leave_open_is_taken_apart() {
    let http = || Some(RouteTable::Http { rules: Vec::new(), grpc: false });
    let tcp = || Some(RouteTable::Tcp(Arc::new(TcpRule { origin: origin(), backends: Vec::new() })));
    let tls = || Some(RouteTable::Tls(Vec::new()));
    assert!(asked(Declared::Unknown, http()).is_looked_into() && asked(Declared::Unknown, None).is_looked_into());
    assert!(!asked(Declared::Tcp, http()).is_looked_into() && !asked(Declared::Http, tcp()).is_looked_into());
    assert!(asked(Declared::Http, None).is_taken_apart(Protocol::Http2) && asked(Declared::Tls, http()).is_taken_apart(Protocol::Http1));
    assert!(!asked(Declared::Http, tls()).is_taken_apart(Protocol::Http1) && !asked(Declared::Http, http()).is_taken_apart(Protocol::Tls));
}

#[test]
fn a_whole_connection_goes_by_its_server_name_or_to_what_was_dialled() {
    let rule = |host: &str| Arc::new(TlsRule { origin: origin(), hosts: vec![host.into()], backends: Vec::new() });
    let tls = asked(Declared::Tls, Some(RouteTable::Tls(vec![rule("a.example"), rule("*.example")])));
    assert!(matches!(tls.whole(Some("a.example")), Ok(Whole::Tls(0, _))));
    assert!(matches!(tls.whole(Some("b.example")), Ok(Whole::Tls(1, _))));
    assert_eq!(tls.whole(None), Err(Outcome::Request(RequestFailure::NoRoute)));
    let plain = asked(Declared::Unknown, None);
    assert_eq!(plain.whole(None), Ok(Whole::Own(plain.own())));
}

#[test]
fn server_names_match_whole_or_by_what_follows_a_star() {
    assert!(names("a.example", "a.example") && !names("a.example", "b.example"));
    assert!(names("*.example", "a.b.example") && !names("*.example", ".example") && !names("*.example", "example"));
    assert!(names("*", "") && names("*", "a"));
}
