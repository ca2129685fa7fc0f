use serde_json::json;

use super::*;

#[test]
fn clocks_that_agree_to_the_second_are_not_apart() {
    let at = |millis: u64| SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
    assert_eq!(ahead(at(10_000), at(10_200), at(10_900)), 0);
    assert_eq!(ahead(at(10_000), at(9_900), at(10_100)), 0);
    assert_eq!(ahead(at(30_000), at(10_000), at(10_100)), 19);
    assert_eq!(ahead(at(10_000), at(31_500), at(31_600)), -20);
}

#[test]
fn answers_of_the_admin_endpoint_are_read() {
    let opened = json!({"mutual_tls": 5, "within_node": 4, "plaintext": 1});
    let value = json!({"total": 3, "shown": 1, "connections": [{"security": "mutual_tls"}], "opened": opened});
    let read = Connections::deserialize(value).unwrap();
    assert_eq!((read.total, read.opened), (3, Opened { mutual_tls: 5, within_node: 4, plaintext: 1 }));
    let workloads = json!([{"name": "shop/web", "identity": "spiffe://…", "addresses": [], "state": "held", "awaited": "a certificate"}]);
    let workloads: Vec<Workload> = list(workloads, "/workloads").unwrap();
    assert_eq!(workloads[0].awaited.as_deref(), Some("a certificate"));
    let certificates: Vec<Certificate> =
        list(json!([{"identity": "spiffe://a", "state": "ready", "serial": "1", "notAfter": 7, "failures": 0}]), "/certs").unwrap();
    assert_eq!(certificates[0].not_after, Some(7));
    assert_eq!(list::<Certificate>(Value::Null, "/certs").unwrap(), []);
    assert!(list::<Certificate>(json!([{"x": 1}]), "/certs").unwrap_err().to_string().contains("version"));
}
