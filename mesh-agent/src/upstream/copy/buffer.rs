//! Buffers of a worker: taken when bytes are there, given back when they are gone, so that an idle connection holds none.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

/// A TLS 1.3 record at its largest: 5 bytes of header, 16 384 of content, the content type and a 16-byte tag (RFC 8446 5.2).
pub const RECORD: usize = 5 + 16_384 + 1 + 16;
/// A small buffer: one record.
pub const SMALL: usize = RECORD;
/// A large buffer, for streams that fill small ones: sixteen records.
pub const LARGE: usize = 16 * RECORD;

/// How many of each a worker keeps for the next to need them; more go back to the allocator.
const KEEP: [usize; 2] = [64, 4];
/// How many large ones may be out at once on a worker; who asks for more gets small ones. Bounds what stalled bulk streams can hold.
const LARGE_OUT: usize = 128;

#[derive(Default)]
struct Store {
    free: [Vec<Box<[u8]>>; 2],
    large_out: usize,
}

thread_local! {
    static STORE: RefCell<Store> = RefCell::default();
}

/// A buffer of [`SMALL`] or [`LARGE`] bytes, given back to its worker when dropped. Its content is whatever was last written to it.
#[derive(Debug)]
pub struct Buffer(Box<[u8]>);

impl Buffer {
    /// One for a stream that moves in bulk, or for one that does not.
    pub fn take(bulk: bool) -> Buffer {
        STORE.with_borrow_mut(|store| {
            let bulk = bulk && store.large_out < LARGE_OUT;
            let [small, large] = &mut store.free;
            if bulk {
                store.large_out += 1;
                return Buffer(large.pop().unwrap_or_else(|| vec![0; LARGE].into()));
            }
            Buffer(small.pop().unwrap_or_else(|| vec![0; SMALL].into()))
        })
    }

    /// Whether it is a large one.
    pub fn is_large(&self) -> bool {
        self.0.len() == LARGE
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.0);
        // At the end of a thread the store may be gone before the last buffer; the allocator takes it then.
        let _ = STORE.try_with(|store| {
            let mut store = store.borrow_mut();
            let [small, large] = &mut store.free;
            let [keep_small, keep_large] = KEEP;
            if bytes.len() == LARGE {
                if large.len() < keep_large {
                    large.push(bytes);
                }
                store.large_out = store.large_out.saturating_sub(1);
            } else if small.len() < keep_small {
                small.push(bytes);
            }
        });
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}
