//! The system calls that no library offers safely, and what must be done inside another network namespace.

pub mod bpf_link;
pub mod netns;
pub mod route;
pub mod sockdiag;
pub mod sockopt;
