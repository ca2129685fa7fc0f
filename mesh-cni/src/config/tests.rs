#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use super::*;

fn conf(text: &str) -> NetConf {
    NetConf::parse(text.as_bytes()).unwrap()
}

const BRIDGE: &str = r#"{"cniVersion":"1.0.0","name":"k","type":"mesh-cni","socket":"/run/nodemesh/default/cni.sock","prevResult":{
 "cniVersion":"1.0.0","interfaces":[{"name":"cni0","mac":"aa"},{"name":"veth1","mac":"bb"},{"name":"eth0","mac":"cc","sandbox":"/run/netns/cni-1"}],
 "ips":[{"interface":2,"address":"10.244.1.5/24","gateway":"10.244.1.1"},{"interface":2,"address":"fd00:1::5/64"},
        {"interface":0,"address":"10.244.1.1/24"}],"dns":{}}}"#;

#[test]
fn addresses_are_the_pods_own() {
    let addresses: Vec<IpAddr> = vec!["10.244.1.5".parse().unwrap(), "fd00:1::5".parse().unwrap()];
    assert_eq!(conf(BRIDGE).addresses("eth0").unwrap(), addresses);
}

/// As Calico and older plug-ins give them: no interfaces at all, `version` instead.
#[test]
fn addresses_without_interfaces_are_taken() {
    let old =
        conf(r#"{"cniVersion":"0.3.1","prevResult":{"cniVersion":"0.3.1","ips":[{"version":"4","address":"192.168.9.3/32"}],"dns":{}}}"#);
    assert_eq!(old.addresses("eth0").unwrap(), vec!["192.168.9.3".parse::<IpAddr>().unwrap()]);
}

#[test]
fn the_result_is_kept_byte_for_byte() {
    assert!(BRIDGE.contains(conf(BRIDGE).prev_result().unwrap().get()));
}

#[test]
fn what_is_not_understood_is_said() {
    let error = |text: &str| NetConf::parse(text.as_bytes()).unwrap_err();
    assert_eq!(error("{").code, CniError::DECODE);
    assert_eq!(error(r#"{"cniVersion":"0.2.0"}"#).code, CniError::INCOMPATIBLE_VERSION);
    assert_eq!(error("{}").code, CniError::INCOMPATIBLE_VERSION);
    assert_eq!(error(r#"{"cniVersion":"1.0.0","onUnreachable":"ignore"}"#).code, CniError::DECODE);
    let alone = conf(r#"{"cniVersion":"1.0.0"}"#);
    assert_eq!(alone.addresses("eth0").unwrap_err().code, CniError::CONFIGURATION);
    assert_eq!(alone.socket().unwrap_err().code, CniError::CONFIGURATION);
    let bad = conf(r#"{"cniVersion":"1.0.0","prevResult":{"ips":[{"address":"nonsense"}]}}"#);
    assert!(bad.addresses("eth0").unwrap_err().message.contains("nonsense"));
}

#[test]
fn the_wait_has_bounds() {
    assert_eq!(conf(r#"{"cniVersion":"1.0.0"}"#).wait(), Duration::from_secs(WAIT));
    assert_eq!(conf(r#"{"cniVersion":"1.0.0","timeoutSeconds":0}"#).wait(), Duration::from_secs(1));
    assert_eq!(conf(r#"{"cniVersion":"1.0.0","timeoutSeconds":99999}"#).wait(), Duration::from_secs(MAX_WAIT));
}

#[test]
fn the_pod_is_in_the_arguments() {
    let read = |arguments: &'static str| {
        Call::read(|name| match name {
            "CNI_CONTAINERID" => Some("c1".into()),
            "CNI_IFNAME" => Some("eth0".into()),
            "CNI_ARGS" => Some(arguments.into()),
            _ => None,
        })
        .unwrap()
        .pod
    };
    // As containerd sends them.
    let pod = read("K8S_POD_UID=7f1b;IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart-0;K8S_POD_INFRA_CONTAINER_ID=c1").unwrap();
    assert_eq!((&*pod.namespace, &*pod.name, pod.uid.as_deref()), ("shop", "cart-0", Some("7f1b")));
    assert_eq!(read("K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart-0").unwrap().uid, None);
    assert_eq!(read("IgnoreUnknown=1"), None);
    assert_eq!(read(""), None);
    assert_eq!(Call::read(|_| None).unwrap_err().code, CniError::ENVIRONMENT);
}
