//! Asks name servers for what [`super::table`] says is due.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolverConfig};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::RecordType;
use tokio::task::JoinSet;

use super::Names;
use super::table::{Family, Reply, Table};

/// Lookups at once.
const AT_ONCE: usize = 32;
/// How long a name's having no address holds.
const NEGATIVE: Duration = Duration::from_secs(30);

/// A resolver that asks these name servers, or those of the system's resolv.conf if there are none.
///
/// # Errors
/// The system's configuration cannot be read, or names nobody.
pub fn resolver(servers: &[SocketAddr]) -> Result<TokioResolver, NetError> {
    let mut builder = match servers {
        [] => TokioResolver::builder_tokio()?,
        servers => {
            let of = |server: &SocketAddr| {
                let at = |mut connection: ConnectionConfig| {
                    connection.port = server.port();
                    connection
                };
                NameServerConfig::new(server.ip(), true, vec![at(ConnectionConfig::udp()), at(ConnectionConfig::tcp())])
            };
            let config = ResolverConfig::from_parts(None, Vec::new(), servers.iter().map(of).collect());
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        }
    };
    let options = builder.options_mut();
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    // How long an answer counts is decided in one place.
    options.cache_size = 0;
    builder.build()
}

/// Starts looking names up. Nothing else needs them: without a name server the agent serves all the same.
pub fn start(tasks: &mut JoinSet<&'static str>, servers: &[SocketAddr], names: Arc<Names>) {
    let resolver = resolver(servers);
    if let Err(error) = &resolver {
        tracing::error!(%error, "hosts of ServiceEntries cannot be looked up, and have no endpoints (--dns-server names other servers)");
    }
    tasks.spawn_local(async move {
        run(names, resolver.ok()).await;
        "name lookups"
    });
}

/// Looks names up for as long as the agent runs. Without a resolver nothing is ever known.
pub async fn run(names: Arc<Names>, resolver: Option<TokioResolver>) {
    let (mut wanted, mut table) = (names.wanted.subscribe(), Table::default());
    let mut asked: JoinSet<(Arc<str>, Reply)> = JoinSet::new();
    loop {
        let now = Instant::now();
        table.want(now, &wanted.borrow_and_update().clone());
        if let Some(resolver) = &resolver {
            for name in table.due(now, AT_ONCE.saturating_sub(asked.len())) {
                let resolver = resolver.clone();
                asked.spawn(async move {
                    let reply = ask(&resolver, &name).await;
                    (name, reply)
                });
            }
        }
        names.publish(table.known(), table.asked());
        // Whoever is due and has no place waits for one.
        let next = table.next().filter(|_| asked.len() < AT_ONCE && resolver.is_some());
        tokio::select! {
            Some(heard) = asked.join_next(), if !asked.is_empty() => {
                if let Ok((name, reply)) = heard {
                    let counter = if matches!(reply, Reply::Failed | Reply::Half { .. }) { &names.failed } else { &names.answered };
                    counter.fetch_add(1, Ordering::Relaxed);
                    table.heard(Instant::now(), &name, reply);
                }
            }
            changed = wanted.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = reached(next) => {}
        }
    }
}

async fn reached(next: Option<Instant>) {
    match next {
        Some(next) => tokio::time::sleep_until(next.into()).await,
        None => std::future::pending().await,
    }
}

/// Asks for both families, each by itself: that one of them cannot be had says nothing of the other.
async fn ask(resolver: &TokioResolver, name: &str) -> Reply {
    let (v4, v6) = tokio::join!(family(resolver, name, RecordType::A), family(resolver, name, RecordType::AAAA));
    match (v4, v6) {
        (Some((v4, of_v4)), Some((v6, of_v6))) => {
            if v4.is_empty() && v6.is_empty() {
                tracing::debug!(name, "the name has no address");
            }
            // That a family has none does not hold for shorter than the addresses of the other.
            let left = if v4.is_empty() == v6.is_empty() {
                of_v4.min(of_v6)
            } else if v6.is_empty() {
                of_v4
            } else {
                of_v6
            };
            Reply::Addresses([v4, v6].concat(), left)
        }
        (Some((addresses, _)), None) => Reply::Half { addresses, failed: Family::V6 },
        (None, Some((addresses, _))) => Reply::Half { addresses, failed: Family::V4 },
        (None, None) => Reply::Failed,
    }
}

/// The addresses of a family, maybe none, and for how long they hold; `None` if nobody can say.
async fn family(resolver: &TokioResolver, name: &str, family: RecordType) -> Option<(Vec<IpAddr>, Duration)> {
    // The dot at the end: it is in full, whatever the search list has.
    match resolver.lookup(format!("{name}."), family).await {
        Ok(found) => {
            let left = found.valid_until().saturating_duration_since(Instant::now());
            Some((found.answers().iter().filter_map(|record| Some(record.data.ip_addr()?.to_canonical())).collect(), left))
        }
        Err(error) if error.is_no_records_found() => Some((Vec::new(), NEGATIVE)),
        Err(error) => {
            tracing::warn!(name, %family, %error, "no name server says where the host of a ServiceEntry is; what is known of it stays in force");
            None
        }
    }
}
