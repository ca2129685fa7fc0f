//! Towards the server: choosing whom to reach, connecting, copying.

pub mod balance;
pub mod bounds;
pub mod circuit;
pub mod cluster;
pub mod connect;
pub mod copy;
pub mod health;
pub mod http;
pub mod members;
pub mod originate;
pub mod resolve;
