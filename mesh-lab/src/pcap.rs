//! Reading a capture: which connections crossed, what they carried, and whether that was TLS.
//!
//! Classic pcap files with Ethernet, "cooked" (SLL) and "cooked v2" (SLL2) link types, as tcpdump writes them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use anyhow::{Context, Result, bail};

const TCP: u8 = 6;
const UDP: u8 = 17;
/// No TLS record's payload is longer (RFC 8446, section 5.2; RFC 5246 allows 2048 bytes of expansion).
const LONGEST_RECORD: usize = 16384 + 2048;

/// A capture in memory.
#[derive(Debug, Default)]
pub struct Trace {
    packets: Vec<Vec<u8>>,
    streams: BTreeMap<(SocketAddr, SocketAddr), Stream>,
    datagrams: BTreeSet<(SocketAddr, SocketAddr)>,
}

/// One direction of one TCP connection, put together in order.
#[derive(Debug, Default)]
pub struct Stream {
    segments: BTreeMap<u64, Vec<u8>>,
    first: Option<u32>,
    reset: bool,
    opener: bool,
}

/// One direction of a connection that is not made of TLS records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plaintext {
    /// The sender.
    pub from: SocketAddr,
    /// The receiver.
    pub to: SocketAddr,
    /// The first bytes that are no TLS record.
    pub sample: Vec<u8>,
}

impl Trace {
    /// Reads a file.
    ///
    /// # Errors
    /// It is missing, or no classic pcap of a known link type. A last packet that is cut off is left out.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        Self::parse(&bytes).with_context(|| format!("reading {}", path.display()))
    }

    /// As [`Self::read`], from memory.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let (magic, little) = match bytes.get(..4) {
            Some([0xd4, 0xc3, 0xb2, 0xa1] | [0x4d, 0x3c, 0xb2, 0xa1]) => (true, true),
            Some([0xa1, 0xb2, 0xc3, 0xd4] | [0xa1, 0xb2, 0x3c, 0x4d]) => (true, false),
            _ => (false, false),
        };
        if !magic {
            bail!("no classic pcap file");
        }
        let number = |at: usize| {
            let word: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
            Some(if little { u32::from_le_bytes(word) } else { u32::from_be_bytes(word) })
        };
        let link = number(20).context("header cut off")? & 0x0fff_ffff;
        let header = match link {
            1 => 14,
            113 => 16,
            276 => 20,
            other => bail!("link type {other} is not known"),
        };
        let mut trace = Self::default();
        let mut at = 24;
        while let Some(length) = number(at + 8) {
            let start = at + 16;
            let Some(frame) = bytes.get(start..start + length as usize) else { break };
            trace.packets.push(frame.to_vec());
            let protocol = match link {
                1 => frame.get(12..14),
                113 => frame.get(14..16),
                _ => frame.get(0..2),
            };
            if let (Some(&[high, low]), Some(packet)) =
                (protocol.map(|bytes| bytes.first_chunk::<2>()).unwrap_or_default(), frame.get(header..))
            {
                trace.network(u16::from_be_bytes([high, low]), packet);
            }
            at = start + length as usize;
        }
        Ok(trace)
    }

    fn network(&mut self, protocol: u16, packet: &[u8]) -> Option<()> {
        match protocol {
            0x0800 => {
                let header = usize::from(packet.first()? & 15) * 4;
                let length = usize::from(u16::from_be_bytes(*packet.get(2..4)?.first_chunk()?));
                let from = Ipv4Addr::from(*packet.get(12..16)?.first_chunk::<4>()?);
                let to = Ipv4Addr::from(*packet.get(16..20)?.first_chunk::<4>()?);
                // A length of zero is how a segmented-later packet is seen: the frame's end counts.
                let end = if length == 0 { packet.len() } else { length.min(packet.len()) };
                self.transport(*packet.get(9)?, from.into(), to.into(), packet.get(header..end)?)
            }
            0x86dd => {
                let length = usize::from(u16::from_be_bytes(*packet.get(4..6)?.first_chunk()?));
                let from = Ipv6Addr::from(*packet.get(8..24)?.first_chunk::<16>()?);
                let to = Ipv6Addr::from(*packet.get(24..40)?.first_chunk::<16>()?);
                let end = if length == 0 { packet.len() } else { (40 + length).min(packet.len()) };
                self.transport(*packet.get(6)?, from.into(), to.into(), packet.get(40..end)?)
            }
            _ => None,
        }
    }

    fn transport(&mut self, protocol: u8, from: IpAddr, to: IpAddr, segment: &[u8]) -> Option<()> {
        let port = |at: usize| Some(u16::from_be_bytes(*segment.get(at..at + 2)?.first_chunk()?));
        let key = (SocketAddr::new(from, port(0)?), SocketAddr::new(to, port(2)?));
        match protocol {
            UDP => {
                self.datagrams.insert(key);
            }
            TCP => {
                let sequence = u32::from_be_bytes(*segment.get(4..8)?.first_chunk()?);
                let header = usize::from(segment.get(12)? >> 4) * 4;
                let flags = *segment.get(13)?;
                self.streams.entry(key).or_default().add(sequence, flags, segment.get(header..)?);
            }
            _ => {}
        }
        Some(())
    }

    /// How many packets it holds; one that crosses a bridge is seen on each of its ports.
    pub fn packets(&self) -> usize {
        self.packets.len()
    }

    /// The bytes occur, in a packet or across packets of one connection.
    pub fn contains(&self, needle: &[u8]) -> bool {
        let finder = memchr::memmem::Finder::new(needle);
        let inside = |bytes: &[u8]| !needle.is_empty() && finder.find(bytes).is_some();
        self.packets.iter().any(|packet| inside(packet)) || self.streams.values().any(|stream| inside(&stream.bytes()))
    }

    /// The directions of TCP connections that carried bytes.
    pub fn streams(&self) -> impl Iterator<Item = (SocketAddr, SocketAddr, &Stream)> {
        self.streams.iter().filter(|(_, stream)| !stream.segments.is_empty()).map(|((from, to), stream)| (*from, *to, stream))
    }

    /// Who opened TCP connections to whom: a SYN was seen.
    pub fn opened(&self) -> impl Iterator<Item = (SocketAddr, SocketAddr)> {
        self.streams.iter().filter(|(_, stream)| stream.opener).map(|((from, to), _)| (*from, *to))
    }

    /// The ports that TCP connections were opened to.
    pub fn ports(&self) -> BTreeSet<u16> {
        self.opened().map(|(_, to)| to.port()).collect()
    }

    /// Pairs of addresses that exchanged datagrams.
    pub fn datagrams(&self) -> &BTreeSet<(SocketAddr, SocketAddr)> {
        &self.datagrams
    }

    /// Every direction whose bytes are not TLS records from beginning to end. Empty means: only TLS crossed over TCP.
    pub fn plaintext(&self) -> Vec<Plaintext> {
        self.streams().filter_map(|(from, to, stream)| not_tls(&stream.bytes()).map(|sample| Plaintext { from, to, sample })).collect()
    }
}

impl Stream {
    fn add(&mut self, sequence: u32, flags: u8, payload: &[u8]) {
        let syn = flags & 2 != 0;
        self.reset |= flags & 4 != 0;
        self.opener |= syn && flags & 16 == 0;
        let first = *self.first.get_or_insert(if syn { sequence.wrapping_add(1) } else { sequence });
        if payload.is_empty() {
            return;
        }
        let sequence = if syn { sequence.wrapping_add(1) } else { sequence };
        // Distance from the first byte; a segment from before it (a keep-alive probe) carries nothing new.
        let offset = u64::from(sequence.wrapping_sub(first));
        if offset > u64::from(u32::MAX / 2) && self.length() < u64::from(u32::MAX / 4) {
            return;
        }
        let known = self.segments.entry(offset).or_default();
        if known.len() < payload.len() {
            *known = payload.to_vec();
        }
    }

    /// Bytes seen, counted without repetitions that begin at the same place.
    pub fn length(&self) -> u64 {
        self.segments.last_key_value().map_or(0, |(offset, bytes)| offset + bytes.len() as u64)
    }

    /// It was ended by a RST of this sender.
    pub fn was_reset(&self) -> bool {
        self.reset
    }

    /// Its bytes in order; a gap in the capture is left out.
    pub fn bytes(&self) -> Vec<u8> {
        let mut all = Vec::new();
        let mut next = 0;
        for (offset, bytes) in &self.segments {
            let known = usize::try_from(next - (*offset).min(next)).unwrap_or(usize::MAX);
            if let Some(fresh) = bytes.get(known..) {
                all.extend_from_slice(fresh);
            }
            next = next.max(offset + bytes.len() as u64);
        }
        all
    }
}

/// None if the bytes are TLS records (the last may be cut off); else the first bytes that are none.
fn not_tls(mut bytes: &[u8]) -> Option<Vec<u8>> {
    while let Some(&kind) = bytes.first() {
        let version = bytes.get(1).is_none_or(|major| *major == 3) && bytes.get(2).is_none_or(|minor| *minor <= 4);
        let length = match (bytes.get(3), bytes.get(4)) {
            (Some(&high), Some(&low)) => usize::from(u16::from_be_bytes([high, low])),
            _ => 0,
        };
        if !(20..=23).contains(&kind) || !version || length > LONGEST_RECORD {
            return Some(bytes.iter().take(64).copied().collect());
        }
        bytes = bytes.get(5 + length..).unwrap_or_default();
    }
    None
}

#[cfg(test)]
mod tests;
