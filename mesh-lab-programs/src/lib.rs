//! Programs that a cluster on one machine needs and that would otherwise come from a registry: the process that holds a pod's
//! namespaces (`pause`), a server of one text (`http-echo`), and a registry of images (`registry`).

pub mod echo;
pub mod registry;
pub mod server;
