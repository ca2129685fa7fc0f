//! Services and their endpoints, as connect() resolves them.

use crate::addr::Endpoint;

/// Value of `SERVICES`, keyed by [`Endpoint`] (cluster IP and port).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ServiceEntry {
    /// Node-local number of the service, never 0.
    pub service: u32,
    /// Key of its endpoint list in `BACKENDS`; a new list gets a new one, so a reader never mixes two lists.
    pub list: u32,
    /// Number of endpoints; 0 means that a connect is refused, unless the agent is to answer it.
    pub count: u32,
    /// `SERVICE_*` bits.
    pub flags: u32,
}

/// [`ServiceEntry::flags`]: some object asks for more than the kernel can do (routes, a DestinationRule), so the agent takes the
/// connections of every client.
pub const SERVICE_VIA_AGENT: u32 = 1;
/// It is a host of a ServiceEntry: which one a client means, and whether it knows it at all, is the agent's to say. Comes with
/// [`SERVICE_VIA_AGENT`].
pub const SERVICE_OUTSIDE: u32 = 1 << 1;

/// Key of `BACKENDS`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct BackendKey {
    /// [`ServiceEntry::list`].
    pub list: u32,
    /// 0-based.
    pub index: u32,
}

/// Value of `BACKENDS`.
pub type Backend = Endpoint;

/// Key of `EXCLUDED_CIDRS` (a longest-prefix trie counts the prefix over the mapped 128 bits).
pub type CidrData = [u8; 16];
