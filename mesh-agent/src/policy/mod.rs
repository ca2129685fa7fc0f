//! Whether a connection may go on: the only place where that is decided outside the kernel, by the code that the kernel runs.

pub mod carried;
pub mod decide;
pub mod keys;
pub mod lending;
pub mod limits;
pub mod live;
pub mod tokens;
pub mod towards;

pub use decide::{Denial, DenialReason, DryRun, Peer, Permit, Transport, WorkloadPolicy, decide};
pub use keys::KeyStore;
pub use limits::Limits;
pub use live::Live;
pub use towards::Towards;
