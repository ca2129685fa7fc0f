//! Records against the TLS library's own, and forged ones.

use proptest::prelude::*;
use rustls::crypto::cipher::{AeadKey, Iv};

use super::*;

fn keys(sequence: u64) -> (Key, Key) {
    let secrets = || ConnectionTrafficSecrets::Aes256Gcm { key: AeadKey::from([9; 32]), iv: Iv::from([3; 12]) };
    (Key::new(sequence, &secrets()).unwrap(), Key::new(sequence, &secrets()).unwrap())
}

fn sealed(key: &mut Key, kind: ContentType, content: &[u8]) -> Vec<u8> {
    let mut record = vec![0; HEADER + content.len() + TRAILER];
    record[HEADER..HEADER + content.len()].copy_from_slice(content);
    let total = key.seal(kind, &mut record, content.len()).unwrap();
    assert_eq!(total, record.len());
    record
}

#[test]
fn what_is_sealed_is_opened_in_order_only() {
    let (mut sealer, mut opener) = keys(0);
    let first = sealed(&mut sealer, ContentType::Data, b"first");
    let second = sealed(&mut sealer, ContentType::Alert, b"\x01\x00");
    let mut early = second.clone();
    assert_eq!(length(&first), Ok(Some(first.len())));
    assert_eq!(keys(0).1.open(&mut early, second.len()), Err(RecordError::Forged));
    let (mut first, mut second) = (first, second);
    let total = first.len();
    assert_eq!(opener.open(&mut first, total), Ok((ContentType::Data, 5)));
    assert_eq!(&first[HEADER..HEADER + 5], b"first");
    let total = second.len();
    assert_eq!(opener.open(&mut second, total), Ok((ContentType::Alert, 2)));
}

#[test]
fn the_library_opens_what_is_sealed_here() {
    // The same secrets in the library's own AEAD, through its public cipher interface.
    let suite = rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384.tls13().unwrap();
    let mut theirs = suite.aead_alg.decrypter(AeadKey::from([9; 32]), Iv::from([3; 12]));
    let (mut sealer, _) = keys(77);
    let mut record = sealed(&mut sealer, ContentType::Data, &[42; 16_384]);
    let message = rustls::crypto::cipher::InboundOpaqueMessage::new(
        rustls::ContentType::ApplicationData,
        rustls::ProtocolVersion::TLSv1_2,
        &mut record[HEADER..],
    );
    let plain = theirs.decrypt(message, 77).unwrap();
    assert_eq!(plain.typ, rustls::ContentType::ApplicationData);
    assert_eq!(plain.payload, &[42; 16_384]);
}

#[test]
fn lengths_that_cannot_be_are_refused_before_anything_is_read() {
    assert_eq!(length(&[23, 3, 3, 0]), Ok(None));
    assert_eq!(length(&[22, 3, 3, 0, 50]), Err(RecordError::Header));
    assert_eq!(length(&[23, 2, 3, 0, 50]), Err(RecordError::Header));
    assert_eq!(length(&[23, 3, 3, 0, 16]), Err(RecordError::Length));
    assert_eq!(length(&[23, 3, 3, 0x40, 18]), Err(RecordError::Length));
    assert_eq!(length(&[23, 3, 3, 0x40, 17]), Ok(Some(crate::upstream::copy::buffer::RECORD)));
}

#[test]
fn padding_is_taken_off_and_a_record_of_padding_alone_refused() {
    let (mut sealer, mut opener) = keys(0);
    // "Content" that ends in a type and zeros is a padded record.
    let mut padded = sealed_padded(&mut sealer, b"abc\x17\0\0\0\0");
    let total = padded.len();
    assert_eq!(opener.open(&mut padded, total), Ok((ContentType::Data, 3)));
    let mut nothing = sealed_padded(&mut sealer, &[0; 9]);
    let total = nothing.len();
    assert_eq!(opener.open(&mut nothing, total), Err(RecordError::Type));
}

/// Seals an inner plaintext as it is.
fn sealed_padded(key: &mut Key, inner: &[u8]) -> Vec<u8> {
    let ciphertext = inner.len() + TAG;
    let [high, low] = (ciphertext as u16).to_be_bytes();
    let mut record = vec![23, 3, 3, high, low];
    record.extend(inner);
    let header: [u8; HEADER] = record[..HEADER].try_into().unwrap();
    let nonce = key.next_nonce().unwrap();
    let tag = key.key.seal_in_place_separate_tag(nonce, Aad::from(header), &mut record[HEADER..]).unwrap();
    record.extend(tag.as_ref());
    record
}

#[test]
fn worn_and_exhausted_keys_say_so() {
    assert!(!keys(MAX_RECORDS - 1).0.is_worn());
    assert!(keys(MAX_RECORDS).0.is_worn());
    let mut record = vec![0; 64];
    assert_eq!(keys(u64::MAX).0.seal(ContentType::Data, &mut record, 1), Err(RecordError::Exhausted));
}

proptest! {
    #[test]
    fn a_changed_byte_is_noticed(content in proptest::collection::vec(any::<u8>(), 0..300), at in any::<usize>(), flip in 1u8..) {
        let (mut sealer, mut opener) = keys(5);
        let mut record = sealed(&mut sealer, ContentType::Data, &content);
        let at = at % record.len();
        record[at] ^= flip;
        let total = record.len();
        prop_assert!(opener.open(&mut record, total).is_err());
    }

    #[test]
    fn arbitrary_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let (_, mut opener) = keys(0);
        let mut bytes = bytes;
        if let Ok(Some(total)) = length(&bytes) {
            prop_assert!(opener.open(&mut bytes, total).is_err());
        }
    }
}

#[test]
fn every_suite_is_known() {
    for secrets in [
        ConnectionTrafficSecrets::Aes128Gcm { key: AeadKey::from([1; 32]), iv: Iv::from([0; 12]) },
        ConnectionTrafficSecrets::Chacha20Poly1305 { key: AeadKey::from([1; 32]), iv: Iv::from([0; 12]) },
    ] {
        // AES-128 takes sixteen bytes; a key of another length is refused instead of being cut.
        let made = Key::new(0, &secrets);
        assert_eq!(made.is_ok(), matches!(secrets, ConnectionTrafficSecrets::Chacha20Poly1305 { .. }));
    }
}
