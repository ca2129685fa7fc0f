//! What rules need between requests: whose turn it is. One for all workers, so that weights hold for the node as a whole.

use std::collections::HashMap;
use std::sync::Arc;

use mesh_model::route::{Backend, HttpRule, RouteTable, TcpRule, TlsRule};
use mesh_model::service::NamespacedName;
use mesh_model::snapshot::Snapshot;
use parking_lot::RwLock;

use super::sequence::Sequence;

/// A table with the turns of its rules.
pub struct Turns {
    /// The table.
    pub table: Arc<RouteTable>,
    turns: Vec<Sequence>,
    /// What the access log calls each rule of HTTP.
    origins: Vec<Arc<str>>,
}

impl Turns {
    fn new(table: Arc<RouteTable>) -> Turns {
        let of = |backends: &[Backend]| Sequence::new(&backends.iter().map(|backend| backend.weight).collect::<Vec<_>>());
        let turns = match &*table {
            RouteTable::Http { rules, .. } => rules.iter().map(|rule| of(&rule.backends)).collect(),
            RouteTable::Tls(rules) => rules.iter().map(|rule| of(&rule.backends)).collect(),
            RouteTable::Tcp(rules) => rules.iter().map(|rule| of(&rule.backends)).collect(),
        };
        let origins = match &*table {
            RouteTable::Http { rules, .. } => rules.iter().map(|rule| rule.origin.to_string().into()).collect(),
            RouteTable::Tls(_) | RouteTable::Tcp(_) => Vec::new(),
        };
        Turns { table, turns, origins }
    }

    fn backend<'b>(&self, rule: usize, backends: &'b [Backend]) -> Option<&'b Backend> {
        backends.get(self.turns.get(rule)?.next()?)
    }

    /// What the access log calls a rule of HTTP, by its number.
    pub fn origin(&self, number: usize) -> Option<Arc<str>> {
        self.origins.get(number).cloned()
    }

    /// Whose turn it is under a rule of the table; `None` if it is nobody's.
    pub fn http<'b>(&self, number: usize, rule: &'b HttpRule) -> Option<&'b Backend> {
        self.backend(number, &rule.backends)
    }

    /// As [`Turns::http`].
    pub fn tls<'b>(&self, number: usize, rule: &'b TlsRule) -> Option<&'b Backend> {
        self.backend(number, &rule.backends)
    }

    /// As [`Turns::http`].
    pub fn tcp<'b>(&self, number: usize, rule: &'b TcpRule) -> Option<&'b Backend> {
        self.backend(number, &rule.backends)
    }
}

/// The Service's port, and the namespace of the clients if they have a table of their own.
type Key = (NamespacedName, u16, Option<Arc<str>>);

/// The tables in use.
#[derive(Default)]
pub struct Tables(RwLock<HashMap<Key, Arc<Turns>>>);

impl Tables {
    /// The table that a Service's port has for the clients of a namespace. The turns go on while the table is the same.
    pub fn get(&self, snapshot: &Snapshot, service: &NamespacedName, port: u16, client_namespace: &str) -> Option<Arc<Turns>> {
        let routes = snapshot.routes(service, port)?;
        let (own, table) = match routes.consumers.get_key_value(client_namespace) {
            Some((namespace, table)) => (Some(namespace.clone()), table),
            None => (None, routes.producer.as_ref()?),
        };
        let key = (service.clone(), port, own);
        let same = |turns: &&Arc<Turns>| Arc::ptr_eq(&turns.table, table) || *turns.table == **table;
        if let Some(turns) = self.0.read().get(&key).filter(same) {
            return Some(turns.clone());
        }
        let mut all = self.0.write();
        if let Some(turns) = all.get(&key).filter(same) {
            return Some(turns.clone());
        }
        let turns = Arc::new(Turns::new(table.clone()));
        all.insert(key, turns.clone());
        Some(turns)
    }

    /// Lets go of the tables of what has no routes any more.
    pub fn sweep(&self, snapshot: &Snapshot) {
        self.0.write().retain(|(service, port, _), _| snapshot.routes(service, *port).is_some());
    }
}
