//! Two agents over loopback, in both protocols; what each hostile or broken peer comes to.

mod streams;
mod world;
