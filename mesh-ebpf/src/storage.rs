//! Values that belong to a socket and die with it (`BPF_MAP_TYPE_SK_STORAGE`). The library's own type cannot be pinned and reads one
//! context only; what pinning is for is that a later agent's programs find what an earlier one's noted.

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_map_type, bpf_sock};
use aya_ebpf::helpers::generated::bpf_sk_storage_get;

/// `LIBBPF_PIN_BY_NAME`.
const BY_NAME: usize = 1;

/// A map's definition as loaders read it from BTF: the types tell, the pointers stay null.
#[repr(C)]
pub struct SkStorage<T, const FLAGS: usize> {
    r#type: *const [i32; bpf_map_type::BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; FLAGS],
    pinning: *const [i32; BY_NAME],
}

// SAFETY: nothing is behind the pointers, and nobody follows them; the kernel guards what the map holds.
unsafe impl<T, const FLAGS: usize> Sync for SkStorage<T, FLAGS> {}

impl<T: 'static, const FLAGS: usize> SkStorage<T, FLAGS> {
    /// The definition.
    pub const fn pinned() -> Self {
        SkStorage {
            r#type: ptr::null(),
            key: ptr::null(),
            value: ptr::null(),
            max_entries: ptr::null(),
            map_flags: ptr::null(),
            pinning: ptr::null(),
        }
    }

    #[inline(always)]
    fn find(&self, sk: *mut bpf_sock, value: *mut T, flags: u64) -> Option<&'static mut T> {
        if sk.is_null() {
            return None;
        }
        let map = ptr::from_ref(self).cast_mut().cast::<c_void>();
        // SAFETY: `sk` is the context's own socket and not null, which the verifier demands too. What is found lives as long as the socket,
        // which outlives the program's run. Its writers hold the socket's lock; getpeername() does not, and copies words that another
        // thread's connect() may be writing: to that application either address is an answer.
        unsafe { bpf_sk_storage_get(map, sk.cast(), value.cast(), flags).cast::<T>().as_mut() }
    }

    /// The socket's value.
    #[inline(always)]
    pub fn get(&self, sk: *mut bpf_sock) -> Option<&'static mut T> {
        self.find(sk, ptr::null_mut(), 0)
    }

    /// Gives the socket a value; false if there is no memory for it.
    #[inline(always)]
    pub fn set(&self, sk: *mut bpf_sock, value: &mut T) -> bool
    where
        T: Copy,
    {
        let copy = *value;
        match self.find(sk, ptr::from_mut(value), BPF_SK_STORAGE_GET_F_CREATE as u64) {
            // It may have had one.
            Some(place) => {
                *place = copy;
                true
            }
            None => false,
        }
    }
}
