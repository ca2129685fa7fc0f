//! Consistent hashing: the same key reaches the same endpoint from every agent and after every restart, and where an endpoint comes or goes
//! few other keys move.
//!
//! The hash is fixed here, since the standard library's may change with a release and its keys differ by process. It is not secret: clients
//! can find keys that collide, which gains them no more than sending one key again and again would.

use std::net::{IpAddr, SocketAddr};

#[cfg(test)]
mod tests;

/// Most places a ring is made with on demand. Envoy allows eight times as many; an agent has a ring for each such host.
const LARGEST_RING: u64 = 1 << 20;
/// Uneven weights make a ring larger than it was asked to be, up to this.
const LARGEST_GROWTH: u64 = 1 << 17;
/// Envoy's largest Maglev table.
const LARGEST_TABLE: u64 = 5_000_011;
/// Places of a Maglev table that are tried before the endpoints are gone through one by one.
const PROBES: u64 = 64;
/// 2^64 divided by the golden ratio: steps of it visit all numbers evenly (splitmix64).
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// Hash of a key: FNV-1a of the bytes, then splitmix64's finalizer, so that every bit depends on all bytes. The same for ever and everywhere.
pub fn hash(bytes: &[u8]) -> u64 {
    mix(bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)))
}

/// Hash of an address, e.g. a client's ([`mesh_model::traffic::HashKey::SourceIp`]). An IPv4 address written as an IPv6 one is the same.
pub fn hash_ip(address: IpAddr) -> u64 {
    match address.to_canonical() {
        IpAddr::V4(address) => hash(&address.octets()),
        IpAddr::V6(address) => hash(&address.octets()),
    }
}

/// Another number that depends on all bits of `value`.
pub(super) fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

fn hash_endpoint(address: SocketAddr) -> u64 {
    mix(hash_ip(address.ip()).wrapping_add(u64::from(address.port()).wrapping_mul(STEP)))
}

/// An endpoint that has places in a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Member {
    /// Its number in the list.
    pub(super) index: usize,
    /// Its address, which alone decides its places.
    pub(super) address: SocketAddr,
    /// Its share, above 0.
    pub(super) weight: u32,
}

/// Ketama's ring: an endpoint has many places on it, and a key belongs to the next place clockwise.
#[derive(Debug)]
pub(super) struct Ring {
    /// By position.
    places: Vec<(u64, usize)>,
}

impl Ring {
    /// A ring of at least `minimum` places. The endpoint of the least weight has a power of two of them: a number that followed each change
    /// of the endpoints' count (as Envoy's does) would move keys between those that stay.
    pub(super) fn new(members: &[Member], minimum: u32) -> Ring {
        let least = u64::from(members.iter().map(|member| member.weight).min().unwrap_or(1)).max(1);
        let total: u64 = members.iter().map(|member| u64::from(member.weight)).sum();
        let minimum = u64::from(minimum).clamp(1, LARGEST_RING);
        let bound = minimum.max(LARGEST_GROWTH);
        let unit = minimum.saturating_mul(least).div_ceil(total.max(1)).max(1).next_power_of_two();
        let places = |weight: u32| {
            let wanted = u128::from(unit) * u128::from(weight) / u128::from(least);
            let share = u128::from(bound) * 2 * u128::from(weight) / u128::from(total.max(1));
            u64::try_from(wanted.min(share)).unwrap_or(bound).max(1)
        };
        let mut ring: Vec<(u64, SocketAddr, usize)> = members
            .iter()
            .flat_map(|member| {
                let start = hash_endpoint(member.address);
                (0..places(member.weight))
                    .map(move |place| (mix(start.wrapping_add(place.wrapping_mul(STEP))), member.address, member.index))
            })
            .collect();
        // Of two at one position all agents must take the same.
        ring.sort_unstable();
        Ring { places: ring.into_iter().map(|(position, _, index)| (position, index)).collect() }
    }

    /// The key's endpoint: the first acceptable one clockwise.
    pub(super) fn get(&self, key: u64, eligible: &dyn Fn(usize) -> bool) -> Option<usize> {
        let start = self.places.partition_point(|(position, _)| *position < key);
        let (before, after) = self.places.split_at_checked(start)?;
        let mut refused = None;
        for (_, index) in after.iter().chain(before) {
            // Neighbours are often the same one's: asking is dearer than comparing.
            if refused != Some(*index) {
                if eligible(*index) {
                    return Some(*index);
                }
                refused = Some(*index);
            }
        }
        None
    }
}

/// Maglev's table (Eisenbud et al., 2016): endpoints take turns in claiming the next free place of an order of their own, as often as their
/// weight says.
#[derive(Debug)]
pub(super) struct Maglev {
    table: Vec<u32>,
    members: Vec<usize>,
}

impl Maglev {
    /// A table of the next prime number of places from `size` on.
    pub(super) fn new(members: &[Member], size: u32) -> Maglev {
        let size = next_prime(u64::from(size).clamp(2, LARGEST_TABLE));
        let mut members = members.to_vec();
        // Whose turn is first must not depend on the order in which an agent got to know them.
        members.sort_unstable_by_key(|member| member.address);
        let most = members.iter().map(|member| u64::from(member.weight)).max().unwrap_or(1).max(1);
        let mut walks: Vec<Walk> = members
            .iter()
            .map(|member| {
                let hash = hash_endpoint(member.address);
                let (at, step) = (hash % size, mix(hash.wrapping_add(STEP)) % (size - 1) + 1);
                Walk { at, step, weight: u64::from(member.weight), credit: 0 }
            })
            .collect();
        let mut table = vec![u32::MAX; usize::try_from(size).unwrap_or(0)];
        let mut free = if walks.is_empty() { 0 } else { table.len() };
        while free > 0 {
            for (number, walk) in (0u32..).zip(&mut walks) {
                walk.credit += walk.weight;
                if walk.credit < most || free == 0 {
                    continue;
                }
                walk.credit -= most;
                while let Some(place) = usize::try_from(walk.at).ok().and_then(|at| table.get_mut(at)) {
                    walk.at = (walk.at + walk.step) % size;
                    if *place == u32::MAX {
                        *place = number;
                        free -= 1;
                        break;
                    }
                }
            }
        }
        Maglev { table, members: members.into_iter().map(|member| member.index).collect() }
    }

    /// The key's endpoint. While that is not acceptable its keys spread over the others, as evenly as over the table.
    pub(super) fn get(&self, key: u64, eligible: &dyn Fn(usize) -> bool) -> Option<usize> {
        let size = u64::try_from(self.table.len()).ok()?;
        for probe in 0..PROBES {
            let key = if probe == 0 { key } else { mix(key.wrapping_add(probe.wrapping_mul(STEP))) };
            let place = *self.table.get(usize::try_from(key.checked_rem(size)?).ok()?)?;
            let index = *self.members.get(usize::try_from(place).ok()?)?;
            if eligible(index) {
                return Some(index);
            }
        }
        let start = usize::try_from(key.checked_rem(u64::try_from(self.members.len()).ok()?)?).ok()?;
        let (before, after) = self.members.split_at_checked(start)?;
        after.iter().chain(before).copied().find(|index| eligible(*index))
    }
}

/// How an endpoint claims its places.
struct Walk {
    at: u64,
    step: u64,
    weight: u64,
    credit: u64,
}

fn next_prime(from: u64) -> u64 {
    (from..)
        .find(|number| *number >= 2 && (2..).take_while(|divisor| divisor * divisor <= *number).all(|divisor| number % divisor != 0))
        .unwrap_or(2)
}
