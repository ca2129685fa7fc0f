use prost::Message;

use super::ca::{IstioCertificateRequest, IstioCertificateResponse};
use super::*;

const ID: &str = "spiffe://cluster.local/ns/shop/sa/cart";

#[test]
fn field_numbers_are_istios() {
    let request = IstioCertificateRequest { csr: "c".into(), validity_duration: 5, metadata: None };
    assert_eq!(request.encode_to_vec(), [0x0a, 1, b'c', 0x18, 5]);
    let response = IstioCertificateResponse { cert_chain: vec!["a".into(), "b".into()] };
    assert_eq!(response.encode_to_vec(), [0x0a, 1, b'a', 0x0a, 1, b'b']);
    let whole = IstioCertificateRequest::for_workload(String::new(), 0, ID.into()).encode_to_vec();
    assert_eq!(whole.first(), Some(&0x22), "metadata is field 4");
    assert!(whole.windows(20).any(|w| w == b"ImpersonatedIdentity"));
}

#[test]
fn reads_what_it_writes() {
    let bytes = IstioCertificateRequest::for_workload("csr".into(), 7, ID.into()).encode_to_vec();
    let request = IstioCertificateRequest::decode(&*bytes).unwrap();
    assert_eq!((request.csr.as_str(), request.validity_duration), ("csr", 7));
    assert_eq!(request.impersonated_identity(), Ok(Some(ID)));
}

#[test]
fn impersonated_identity_is_absent_or_text() {
    let with = |kind| {
        let mut request = IstioCertificateRequest::for_workload(String::new(), 0, String::new());
        request.metadata.as_mut().unwrap().fields.insert(IMPERSONATED_IDENTITY.into(), Value { kind });
        request.impersonated_identity().map(|id| id.map(str::to_owned))
    };
    assert_eq!(IstioCertificateRequest::default().impersonated_identity(), Ok(None));
    assert_eq!(with(None), Ok(None));
    assert_eq!(with(Some(Kind::NullValue(0))), Ok(None));
    assert_eq!(with(Some(Kind::StringValue("".into()))), Ok(None));
    assert_eq!(with(Some(Kind::StringValue(ID.into()))), Ok(Some(ID.into())));
    assert_eq!(with(Some(Kind::NumberValue(1.0))), Err(NotText));
}

#[test]
fn the_call_has_istios_name() {
    assert_eq!(ca::istio_certificate_service_server::SERVICE_NAME, "istio.v1.auth.IstioCertificateService");
}
