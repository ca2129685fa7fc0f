//! The dialling side: a stream to an application behind a peer's agent.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use super::error::TunnelError;
use super::fast::relay::{self, ClientEnd, Prefix};
use super::hbone;
use super::hbone::client::HboneStream;
use super::pool::{Connected, OwnConnection, PoolKey, Pools};
use super::tls::handshake::Protocol;
use super::trust::Trust;
use super::wire::Open;
use crate::conn::{ClientAddr, Meter};
use crate::outcome::Side;
use crate::upstream::copy::socket::Socket;
use crate::upstream::copy::{Ended, How};

/// What is asked of the peer's agent. Everything but `target` is information.
#[derive(Debug, Clone)]
pub struct OpenRequest {
    /// The application: the destination pod's address and port (to a waypoint: the service's).
    pub target: SocketAddr,
    /// The client application's own end.
    pub client: Option<ClientAddr>,
    /// The name of the service that was dialled.
    pub host: Option<Arc<str>>,
    /// Describes the client, as HBONE's header of that name.
    pub baggage: Option<Arc<str>>,
    /// W3C Trace Context.
    pub traceparent: Option<Arc<str>>,
}

/// A stream to the application. In our own protocol it is asked for when [`relay`](Self::relay) begins, together with the
/// application's first bytes.
pub struct TunnelStream {
    pools: Pools,
    key: PoolKey,
    request: OpenRequest,
    kind: Kind,
    /// Of the connection that carries it, which may be exchanged for another while it is not open yet.
    trust: Rc<RefCell<Trust>>,
}

/// Whether more may begin on a stream, to be asked for as long as it is open: whoever sends one request after another over it would go on
/// for ever on certificates that have expired, or of an authority that is trusted no more.
pub struct Validity {
    pools: Pools,
    key: PoolKey,
    trust: Rc<RefCell<Trust>>,
}

impl Validity {
    /// Whether a stream could still be opened on the connection below.
    pub fn holds(&self) -> bool {
        self.pools.trusts(&self.key, &self.trust.borrow())
    }
}

enum Kind {
    Own(OwnConnection),
    Hbone(HboneStream),
}

impl Pools {
    /// A stream to the application that `request` names, over a connection of the pool or a new one. Fails if there is no certificate, no
    /// connection, or (HBONE) a refusal. May be dropped at any time.
    pub async fn open(&self, key: PoolKey, request: OpenRequest) -> Result<TunnelStream, TunnelError> {
        self.counters().client.streams.add();
        let (kind, trust) = self.stream(&key, &request, false).await?;
        Ok(TunnelStream { pools: self.clone(), key, request, kind, trust: Rc::new(RefCell::new(trust)) })
    }

    /// `fresh`: only a connection that is dialled for this will do.
    async fn stream(&self, key: &PoolKey, request: &OpenRequest, mut fresh: bool) -> Result<(Kind, Trust), TunnelError> {
        let mut retried = false;
        loop {
            match self.acquire(key, fresh).await? {
                Connected::Own(connection) => {
                    let trust = connection.terms.trust.clone();
                    return Ok((Kind::Own(connection), trust));
                }
                Connected::Hbone(connection, place, trust) => match connection.open(place, request, self.settings()).await {
                    Ok(stream) => return Ok((Kind::Hbone(stream), trust)),
                    Err(failed) if failed.retry && !retried => {
                        self.counters().retried.add();
                        retried = true;
                        fresh = true;
                    }
                    Err(failed) => {
                        if matches!(failed.error, TunnelError::Refused(_)) {
                            self.counters().client.refused.add();
                        }
                        return Err(failed.error);
                    }
                },
            }
        }
    }
}

impl TunnelStream {
    /// What is spoken with the peer.
    pub fn protocol(&self) -> Protocol {
        match self.kind {
            Kind::Own(_) => Protocol::Own,
            Kind::Hbone(_) => Protocol::Hbone,
        }
    }

    /// Tells, also while it is relayed, whether what it rests on still holds.
    pub fn validity(&self) -> Validity {
        Validity { pools: self.pools.clone(), key: self.key.clone(), trust: self.trust.clone() }
    }

    /// Relays until both directions have ended. An error means that the stream was never open; the application's connection has been aborted
    /// then. `cancel` aborts both sides. Bytes are counted in `meter`, and no byte of the application was lost or sent twice if it ends
    /// with [`How::Eof`].
    pub async fn relay(self, app: impl Into<Socket>, meter: &Meter, cancel: impl Future<Output = ()>) -> Result<Ended, TunnelError> {
        let TunnelStream { pools, key, request, mut kind, trust } = self;
        let mut cancel = pin!(cancel);
        let mut app: Socket = app.into();
        let mut prefix = Prefix::default();
        let mut retried = false;
        loop {
            let connection = match kind {
                Kind::Own(connection) => connection,
                Kind::Hbone(stream) => {
                    let HboneStream { send, recv, place, .. } = stream;
                    let idle = pools.settings().stream_idle_timeout;
                    let how = hbone::relay::relay(app, Side::Client, send, recv, prefix, meter, cancel.as_mut(), idle).await;
                    drop(place);
                    return Ok(Ended::new(meter, how));
                }
            };
            let OwnConnection { link, terms, doubtful } = connection;
            match relay::client(link, app, open(&request), prefix, doubtful, meter, cancel.as_mut(), pools.settings()).await {
                ClientEnd::Ended(how, link) => {
                    if let Some(link) = link {
                        pools.put_back(&key, link, terms);
                    }
                    return Ok(Ended::new(meter, how));
                }
                ClientEnd::NotOpened { error, app: stream, retry, link } => {
                    if let Some(link) = link {
                        pools.put_back(&key, link, terms);
                    }
                    if let (Some(again), false) = (retry, retried) {
                        retried = true;
                        pools.counters().retried.add();
                        let fresh = {
                            let mut fresh = pin!(pools.stream(&key, &request, true));
                            poll_fn(|cx| match cancel.as_mut().poll(cx) {
                                Poll::Ready(()) => Poll::Ready(None),
                                Poll::Pending => fresh.as_mut().poll(cx).map(Some),
                            })
                            .await
                        };
                        match fresh {
                            Some(Ok((another, its))) => {
                                *trust.borrow_mut() = its;
                                (kind, app, prefix) = (another, stream, again);
                                continue;
                            }
                            Some(Err(error)) => {
                                stream.abort();
                                return Err(error);
                            }
                            None => {
                                stream.abort();
                                return Ok(Ended::new(meter, How::Cancelled));
                            }
                        }
                    }
                    if matches!(error, TunnelError::Refused(_)) {
                        pools.counters().client.refused.add();
                    }
                    stream.abort();
                    return Err(error);
                }
            }
        }
    }
}

fn open(request: &OpenRequest) -> Open {
    Open {
        port: request.target.port(),
        accept_at_once: false,
        client: request.client.map(|client| client.0),
        host: request.host.as_deref().map(str::to_owned),
        baggage: request.baggage.as_deref().map(str::to_owned),
        traceparent: request.traceparent.as_deref().map(str::to_owned),
    }
}
