//! The record protection of TLS 1.3 (RFC 8446 5), applied where the bytes lie.
//!
//! The TLS library hands the keys over when the handshake is done, as it does for the kernel's TLS; it copies every byte twice a
//! direction and allocates for each record, which is most of a proxy's work beside the system calls. Updates of the keys stay with it.

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use rustls::ConnectionTrafficSecrets;

/// Bytes before the content: outer type, version, length.
pub const HEADER: usize = 5;
/// Bytes behind the content: its type and the tag.
pub const TRAILER: usize = 1 + TAG;
/// The largest content.
pub const MAX_CONTENT: usize = 1 << 14;

const TAG: usize = 16;
/// Content, type and padding together may not be longer than the largest content and its type (RFC 8446 5.4).
const MAX_CIPHERTEXT: usize = MAX_CONTENT + TRAILER;
/// Records under one key before it is renewed; AES-GCM allows 2^24.5 (RFC 8446 5.5).
const MAX_RECORDS: u64 = 1 << 23;

/// What a record carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContentType {
    /// `alert`.
    Alert,
    /// `handshake`: tickets and key updates, once the handshake is over.
    Handshake,
    /// `application_data`.
    Data,
}

/// Why a record is not acceptable. Each ends the connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The header is not one of an encrypted record.
    #[error("not an encrypted TLS 1.3 record")]
    Header,
    /// Longer or shorter than a record may be.
    #[error("a TLS record of impossible length")]
    Length,
    /// The tag does not match.
    #[error("a TLS record that was forged, damaged or out of order")]
    Forged,
    /// A content type that has no place here, or none at all.
    #[error("a TLS record of unexpected type")]
    Type,
    /// A sequence number or key has run out, or the key could not be used.
    #[error("the TLS keys cannot be used any further")]
    Exhausted,
}

/// One direction's key.
pub struct Key {
    key: LessSafeKey,
    iv: [u8; NONCE_LEN],
    sequence: u64,
}

impl Key {
    /// From what the handshake agreed on, and the number of the next record.
    pub fn new(sequence: u64, secrets: &ConnectionTrafficSecrets) -> Result<Self, RecordError> {
        let (algorithm, key, iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
            _ => return Err(RecordError::Exhausted),
        };
        let unbound = UnboundKey::new(algorithm, key.as_ref()).map_err(|_| RecordError::Exhausted)?;
        let iv = iv.as_ref().try_into().map_err(|_| RecordError::Exhausted)?;
        Ok(Key { key: LessSafeKey::new(unbound), iv, sequence })
    }

    /// Whether it has protected so many records that it should be renewed.
    pub fn is_worn(&self) -> bool {
        self.sequence >= MAX_RECORDS
    }

    /// Per-record nonce: the sequence number, padded on the left, XOR the IV (RFC 8446 5.3).
    fn next_nonce(&mut self) -> Result<Nonce, RecordError> {
        let next = self.sequence.checked_add(1).ok_or(RecordError::Exhausted)?;
        let mut nonce = self.iv;
        for (byte, number) in nonce.iter_mut().rev().zip(self.sequence.to_be_bytes().iter().rev()) {
            *byte ^= number;
        }
        self.sequence = next;
        Ok(Nonce::assume_unique_for_key(nonce))
    }

    /// Seals the record that begins at the front of `record`: its content lies after [`HEADER`] bytes and is `content` long. Returns how
    /// long the record is.
    pub fn seal(&mut self, kind: ContentType, record: &mut [u8], content: usize) -> Result<usize, RecordError> {
        if content > MAX_CONTENT {
            return Err(RecordError::Length);
        }
        let ciphertext = content + TRAILER;
        let total = HEADER + ciphertext;
        let (header, rest) = record.split_first_chunk_mut::<HEADER>().ok_or(RecordError::Length)?;
        let (inner, rest) = rest.split_at_mut_checked(content + 1).ok_or(RecordError::Length)?;
        let tag_space = rest.first_chunk_mut::<TAG>().ok_or(RecordError::Length)?;
        let [high, low] = (ciphertext as u16).to_be_bytes();
        *header = [23, 3, 3, high, low];
        if let Some(last) = inner.last_mut() {
            *last = match kind {
                ContentType::Alert => 21,
                ContentType::Handshake => 22,
                ContentType::Data => 23,
            };
        }
        let nonce = self.next_nonce()?;
        let tag = self.key.seal_in_place_separate_tag(nonce, Aad::from(*header), inner).map_err(|_| RecordError::Exhausted)?;
        tag_space.copy_from_slice(tag.as_ref());
        Ok(total)
    }

    /// Opens the complete record at the front of `record`, whose length [`length`] gave. The content then lies after [`HEADER`] bytes; its
    /// type and length are returned.
    pub fn open(&mut self, record: &mut [u8], total: usize) -> Result<(ContentType, usize), RecordError> {
        let record = record.get_mut(..total).ok_or(RecordError::Length)?;
        let (header, ciphertext) = record.split_first_chunk_mut::<HEADER>().ok_or(RecordError::Length)?;
        let nonce = self.next_nonce()?;
        let inner = self.key.open_in_place(nonce, Aad::from(*header), ciphertext).map_err(|_| RecordError::Forged)?;
        // The type is the last byte that is not padding.
        let last = inner.iter().rposition(|byte| *byte != 0).ok_or(RecordError::Type)?;
        if last > MAX_CONTENT {
            return Err(RecordError::Length);
        }
        let kind = match inner.get(last) {
            Some(21) => ContentType::Alert,
            Some(22) => ContentType::Handshake,
            Some(23) => ContentType::Data,
            _ => return Err(RecordError::Type),
        };
        Ok((kind, last))
    }
}

/// How long the encrypted record is that `bytes` begin with; `None` as long as its header is not there.
pub fn length(bytes: &[u8]) -> Result<Option<usize>, RecordError> {
    let Some([kind, major, _, high, low]) = bytes.first_chunk::<HEADER>() else { return Ok(None) };
    if *kind != 23 || *major != 3 {
        return Err(RecordError::Header);
    }
    let ciphertext = usize::from(u16::from_be_bytes([*high, *low]));
    if !(TRAILER..=MAX_CIPHERTEXT).contains(&ciphertext) {
        return Err(RecordError::Length);
    }
    Ok(Some(HEADER + ciphertext))
}

#[cfg(test)]
mod tests;
