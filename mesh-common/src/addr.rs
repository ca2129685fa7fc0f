//! Addresses and ports as map keys carry them.

/// An IP address: 16 bytes, IPv4 as `::ffff:a.b.c.d` (RFC 4291, 2.5.5.2), so one map serves both families.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Addr(pub [u8; 16]);

impl Addr {
    /// The unset address (`::`).
    pub const UNSPECIFIED: Addr = Addr([0; 16]);

    /// From an IPv4 address in network byte order.
    #[inline(always)]
    pub const fn v4(octets: [u8; 4]) -> Self {
        let [a, b, c, d] = octets;
        Addr([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d])
    }

    /// From the kernel's `u32` in network byte order, as `bpf_sock_addr::user_ip4` holds it.
    #[inline(always)]
    pub const fn from_be_v4(ip: u32) -> Self {
        Self::v4(ip.to_ne_bytes())
    }

    /// From the kernel's four `u32` in network byte order.
    #[inline(always)]
    pub const fn from_be_v6(words: [u32; 4]) -> Self {
        let [a, b, c, d] = words;
        let ([a0, a1, a2, a3], [b0, b1, b2, b3]) = (a.to_ne_bytes(), b.to_ne_bytes());
        let ([c0, c1, c2, c3], [d0, d1, d2, d3]) = (c.to_ne_bytes(), d.to_ne_bytes());
        Addr([a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3])
    }

    /// Whether this is an IPv4 address.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        let [a, b, c, d, e, f, g, h, i, j, k, l, ..] = self.0;
        (a | b | c | d | e | f | g | h | i | j) == 0 && k == 0xff && l == 0xff
    }

    /// The IPv4 part as the kernel's `u32` in network byte order; meaningless unless [`Addr::is_v4`].
    #[inline(always)]
    pub const fn to_be_v4(&self) -> u32 {
        let [.., a, b, c, d] = self.0;
        u32::from_ne_bytes([a, b, c, d])
    }

    /// The four words in network byte order.
    #[inline(always)]
    pub const fn to_be_v6(&self) -> [u32; 4] {
        let [a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3] = self.0;
        [
            u32::from_ne_bytes([a0, a1, a2, a3]),
            u32::from_ne_bytes([b0, b1, b2, b3]),
            u32::from_ne_bytes([c0, c1, c2, c3]),
            u32::from_ne_bytes([d0, d1, d2, d3]),
        ]
    }

    /// The mask of a prefix length over the mapped 128 bits (an IPv4 prefix counts from 96); more than 128 is 128.
    pub const fn mask(prefix: u8) -> Self {
        if prefix == 0 {
            return Addr([0; 16]);
        }
        let bits = if prefix > 128 { 128 } else { prefix };
        Addr((u128::MAX << (128 - bits as u32)).to_be_bytes())
    }

    /// 127.0.0.0/8 or `::1`.
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = self.0;
        if self.is_v4() {
            return m == 127;
        }
        (a | b | c | d | e | f | g | h | i | j | k | l | m | n | o) == 0 && p == 1
    }

    /// `0.0.0.0` or `::`: connecting there means connecting to oneself.
    #[inline(always)]
    pub const fn is_unspecified(&self) -> bool {
        let [a, b, c, d] = self.to_be_v6();
        (a | b) == 0 && (c == 0 || self.is_v4()) && d == 0
    }
}

#[cfg(feature = "user")]
impl From<core::net::IpAddr> for Addr {
    fn from(ip: core::net::IpAddr) -> Self {
        match ip {
            core::net::IpAddr::V4(v4) => Addr::v4(v4.octets()),
            core::net::IpAddr::V6(v6) => Addr(v6.octets()),
        }
    }
}

#[cfg(feature = "user")]
impl From<Addr> for core::net::IpAddr {
    fn from(a: Addr) -> Self {
        let v6 = core::net::Ipv6Addr::from(a.0);
        v6.to_ipv4_mapped().map_or(core::net::IpAddr::V6(v6), core::net::IpAddr::V4)
    }
}

/// A port in network byte order.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Port(pub [u8; 2]);

impl Port {
    /// From a number in host order.
    #[inline(always)]
    pub const fn new(port: u16) -> Self {
        Port(port.to_be_bytes())
    }

    /// The number in host order.
    #[inline(always)]
    pub const fn get(self) -> u16 {
        u16::from_be_bytes(self.0)
    }
}

/// An address and a port, 20 bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Endpoint {
    /// The address.
    pub addr: Addr,
    /// The port.
    pub port: Port,
    /// Zero.
    pub pad: [u8; 2],
}

impl Endpoint {
    /// An endpoint of an address and a port in host order.
    #[inline(always)]
    pub const fn new(addr: Addr, port: u16) -> Self {
        Endpoint { addr, port: Port::new(port), pad: [0; 2] }
    }
}

#[cfg(feature = "user")]
impl From<core::net::SocketAddr> for Endpoint {
    fn from(s: core::net::SocketAddr) -> Self {
        Endpoint::new(s.ip().into(), s.port())
    }
}

#[cfg(feature = "user")]
impl From<Endpoint> for core::net::SocketAddr {
    fn from(e: Endpoint) -> Self {
        core::net::SocketAddr::new(e.addr.into(), e.port.get())
    }
}
