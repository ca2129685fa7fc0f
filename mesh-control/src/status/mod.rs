//! What became of the users' objects, said in their status.

pub mod backends;
pub mod conditions;
pub mod features;
pub mod keys;
pub mod routes;
pub mod writer;

pub use writer::Statuses;
