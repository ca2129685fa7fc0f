//! The TLS handshake over a socket. It reads ahead, yet feeds the library one record at a time, so that bytes which follow the handshake
//! stay with the [`TlsChannel`].

use std::future::poll_fn;
use std::io::{IoSlice, IoSliceMut};
use std::net::IpAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use mesh_model::identity::Identity;
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::pki_types::ServerName;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus};
use rustls::{ClientConfig, CommonState, RootCertStore, ServerConfig};
use tokio::net::TcpStream;
use webpki::KeyUsage;

use super::channel::{Keys, TlsChannel};
use super::{ALPN_HBONE, ALPN_OWN};
use crate::tunnel::error::HandshakeError;
use crate::tunnel::trust::Proof;
use crate::upstream::copy::socket::Socket;

/// A peer's certificates and signatures fit well below; more is an attack.
const MAX_INCOMING: usize = 64 << 10;
/// How much is read at once.
const CHUNK: usize = 4096;
/// How long a refused peer's bytes are thrown away, so that closing does not overtake the alert that tells it why.
const LINGER: Duration = Duration::from_millis(500);

/// The protocol that was agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Our own.
    Own,
    /// HBONE.
    Hbone,
}

/// A connection whose peer is known.
pub struct Secured {
    /// The records.
    pub channel: TlsChannel,
    /// What is to be spoken in them.
    pub protocol: Protocol,
    /// Who the peer is.
    pub peer: Identity,
    /// What its certificate proves.
    pub proof: Proof,
}

/// The handshake of the dialling side. `destination` is not sent: it only stands in for a server's name, of which there is none.
/// The roots are those of the configuration.
pub async fn connect(
    tcp: TcpStream,
    config: Arc<ClientConfig>,
    roots: &Arc<RootCertStore>,
    destination: IpAddr,
) -> Result<Secured, HandshakeError> {
    let mut engine = UnbufferedClientConnection::new(config, ServerName::from(destination)).map_err(|e| HandshakeError::from_tls(&e))?;
    let mut socket = Socket::new(tcp);
    let leftover = drive(&mut engine, &mut socket).await?;
    let (protocol, peer, proof) = result(&engine, roots, KeyUsage::server_auth())?;
    let (secrets, keys) = engine.dangerous_into_kernel_connection().map_err(|e| HandshakeError::from_tls(&e))?;
    let channel =
        TlsChannel::new(socket, &secrets, Keys::Client(keys), &leftover).map_err(|e| HandshakeError::Protocol(e.to_string().into()))?;
    Ok(Secured { channel, protocol, peer, proof })
}

/// The handshake of the serving side. The roots are those of the configuration.
pub async fn accept(tcp: TcpStream, config: Arc<ServerConfig>, roots: &Arc<RootCertStore>) -> Result<Secured, HandshakeError> {
    let mut engine = UnbufferedServerConnection::new(config).map_err(|e| HandshakeError::from_tls(&e))?;
    let mut socket = Socket::new(tcp);
    let leftover = drive(&mut engine, &mut socket).await?;
    let (protocol, peer, proof) = result(&engine, roots, KeyUsage::client_auth())?;
    let (secrets, keys) = engine.dangerous_into_kernel_connection().map_err(|e| HandshakeError::from_tls(&e))?;
    let channel =
        TlsChannel::new(socket, &secrets, Keys::Server(keys), &leftover).map_err(|e| HandshakeError::Protocol(e.to_string().into()))?;
    Ok(Secured { channel, protocol, peer, proof })
}

/// What was agreed on. The certificate has been judged already; this only reads it again.
fn result(state: &CommonState, roots: &Arc<RootCertStore>, usage: KeyUsage) -> Result<(Protocol, Identity, Proof), HandshakeError> {
    let protocol = match state.alpn_protocol() {
        Some(ALPN_OWN) => Protocol::Own,
        // A client of HTTP/2 with prior knowledge may name no protocol.
        Some(ALPN_HBONE) | None => Protocol::Hbone,
        Some(other) => return Err(HandshakeError::Protocol(format!("the peer chose the protocol {other:?}").into())),
    };
    let (peer, proof) = Proof::read(roots, state.peer_certificates().unwrap_or_default(), usage)?;
    Ok((protocol, peer, proof))
}

/// Either role's engine.
trait Engine {
    type Data;
    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
}

impl Engine for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, ClientConnectionData> {
        self.process_tls_records(incoming)
    }
}

impl Engine for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, ServerConnectionData> {
        self.process_tls_records(incoming)
    }
}

enum Step {
    Again,
    Send,
    Read,
    Done,
    Closed,
    Failed(HandshakeError),
}

/// Runs the handshake to its end and returns the bytes that came behind it.
async fn drive<E: Engine>(engine: &mut E, socket: &mut Socket) -> Result<Vec<u8>, HandshakeError> {
    let mut incoming: Vec<u8> = Vec::new();
    let mut outgoing: Vec<u8> = Vec::new();
    // How much of `incoming` the engine may see.
    let mut shown = 0;
    loop {
        let window = incoming.get_mut(..shown).unwrap_or_default();
        let UnbufferedStatus { discard, state, .. } = engine.process(window);
        let step = match state {
            Ok(ConnectionState::EncodeTlsData(encode)) => match append(encode, &mut outgoing) {
                Ok(()) => Step::Again,
                Err(error) => Step::Failed(error),
            },
            Ok(ConnectionState::TransmitTlsData(transmit)) => {
                transmit.done();
                Step::Send
            }
            Ok(ConnectionState::BlockedHandshake) => Step::Read,
            Ok(ConnectionState::WriteTraffic(_)) => Step::Done,
            Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => Step::Closed,
            Ok(_) => Step::Failed(HandshakeError::Protocol("application data in the handshake".into())),
            Err(error) => Step::Failed(HandshakeError::from_tls(&error)),
        };
        incoming.drain(..discard);
        shown = shown.saturating_sub(discard);
        match step {
            Step::Again => {}
            Step::Send => {
                send(socket, &outgoing).await?;
                outgoing.clear();
            }
            Step::Read => shown = next_record(socket, &mut incoming, shown).await?,
            Step::Done => {
                incoming.drain(..shown);
                return Ok(incoming);
            }
            Step::Closed => return Err(HandshakeError::Closed("it closed in the middle of the handshake".into())),
            Step::Failed(error) => {
                // Who has sent an alert is not waiting for one.
                if !matches!(error, HandshakeError::Alert { .. }) {
                    incoming.truncate(shown);
                    farewell(engine, socket, incoming, outgoing).await;
                }
                return Err(error);
            }
        }
    }
}

fn append<Data>(mut encode: EncodeTlsData<'_, Data>, outgoing: &mut Vec<u8>) -> Result<(), HandshakeError> {
    let at = outgoing.len();
    loop {
        match encode.encode(outgoing.get_mut(at..).unwrap_or_default()) {
            Ok(written) => {
                outgoing.truncate(at + written);
                return Ok(());
            }
            Err(EncodeError::InsufficientSize(size)) => outgoing.resize(at + size.required_size, 0),
            Err(error) => return Err(HandshakeError::Protocol(error.to_string().into())),
        }
    }
}

/// Makes one more record visible, reading until it is whole.
async fn next_record(socket: &mut Socket, incoming: &mut Vec<u8>, shown: usize) -> Result<usize, HandshakeError> {
    loop {
        if let Some(end) = record_end(incoming, shown) {
            return Ok(end);
        }
        if incoming.len() >= MAX_INCOMING {
            return Err(HandshakeError::Protocol("the peer's handshake is too large".into()));
        }
        let at = incoming.len();
        incoming.resize(at + CHUNK, 0);
        let space = incoming.get_mut(at..).unwrap_or_default();
        let got = poll_fn(|cx| socket.poll_recv(cx, &mut [IoSliceMut::new(space)])).await.map_err(|e| HandshakeError::from_io(&e))?;
        incoming.truncate(at + got);
        if got == 0 {
            return Err(HandshakeError::Closed("it closed in the middle of the handshake".into()));
        }
    }
}

/// Where the record ends that begins at `at`, if it is there whole. What cannot be a record is shown at once, to be refused.
fn record_end(incoming: &[u8], at: usize) -> Option<usize> {
    let rest = incoming.get(at..)?;
    let [kind, major, _, high, low] = rest.first_chunk::<5>()?;
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    if !(20..=23).contains(kind) || *major != 3 || length > (1 << 14) + 256 {
        return Some(incoming.len());
    }
    (rest.len() >= 5 + length).then_some(at + 5 + length)
}

async fn send(socket: &Socket, mut bytes: &[u8]) -> Result<(), HandshakeError> {
    while !bytes.is_empty() {
        let sent = poll_fn(|cx| socket.poll_send(cx, &[IoSlice::new(bytes)])).await.map_err(|e| HandshakeError::from_io(&e))?;
        bytes = bytes.get(sent..).unwrap_or_default();
    }
    Ok(())
}

/// Whether a record is an alert: by its type, or, where that is encrypted, by its length, which nothing else of a handshake has.
fn is_alert(record: &[u8]) -> bool {
    matches!(record, [21, ..] | [23, _, _, 0, 19, ..])
}

/// Sends the alert that says why, and sees to it that it arrives. `incoming` is what the engine has seen and not discarded.
///
/// The engine gives what it has to send before it looks at what came, and must not be asked again after that: it would judge the same
/// bytes a second time, or miss those that it remembers, and both are panics. An alert is the last that it has to send.
async fn farewell<E: Engine>(engine: &mut E, socket: &mut Socket, mut incoming: Vec<u8>, mut outgoing: Vec<u8>) {
    for _ in 0..4 {
        let at = outgoing.len();
        let UnbufferedStatus { discard, state, .. } = engine.process(&mut incoming);
        match state {
            Ok(ConnectionState::EncodeTlsData(encode)) => {
                if append(encode, &mut outgoing).is_err() {
                    return;
                }
            }
            _ => break,
        }
        incoming.drain(..discard);
        if outgoing.get(at..).is_some_and(is_alert) {
            break;
        }
    }
    let goodbye = async {
        if send(socket, &outgoing).await.is_err() || socket.shutdown().is_err() {
            return;
        }
        let mut thrown_away = [0; 1024];
        let mut left = MAX_INCOMING;
        poll_fn(|cx| {
            loop {
                match socket.poll_recv(cx, &mut [IoSliceMut::new(&mut thrown_away)]) {
                    Poll::Ready(Ok(n)) if n > 0 && left > n => left -= n,
                    Poll::Ready(_) => return Poll::Ready(()),
                    Poll::Pending => return Poll::Pending,
                }
            }
        })
        .await;
    };
    // Whether the peer takes the time to listen is its own affair.
    let _ = tokio::time::timeout(LINGER, goodbye).await;
}
