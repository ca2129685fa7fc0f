//! Towards the server: choosing whom to reach, connecting, copying.

pub mod connect;
pub mod copy;
pub mod resolve;
