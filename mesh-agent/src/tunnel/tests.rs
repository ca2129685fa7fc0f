//! Two agents over loopback, in both protocols; foreign peers; what each hostile or broken peer comes to.

mod hostile;
mod interop;
mod pooling;
mod streams;
mod trust;
mod world;
