//! WebSockets (RFC 6455) by tungstenite: a server that sends back what it gets and closes as it is told, and a client.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use futures_util::{SinkExt as _, StreamExt as _};
use mesh_lab::peer::WebSocketReport;
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::{accept_async, client_async};

/// A WebSocket server. `close CODE REASON` has it close with those.
#[derive(clap::Args)]
pub struct ServeArguments {
    /// Where; `[::]:PORT` serves both families.
    #[arg(long)]
    listen: SocketAddr,
}

/// One WebSocket.
#[derive(clap::Args)]
pub struct CallArguments {
    /// Where.
    to: SocketAddr,
    /// Path and query.
    #[arg(long, default_value = "/")]
    path: String,
    /// Texts to send, each after the last came back.
    #[arg(long)]
    text: Vec<String>,
    /// Bytes of binary messages to send, 64 KiB each, all before they are read.
    #[arg(long, default_value_t = 0)]
    binary: usize,
    /// Closes with this code at the end; without it the server is awaited to close.
    #[arg(long)]
    close: Option<u16>,
    /// Milliseconds of silence before it is closed.
    #[arg(long, default_value_t = 0)]
    idle: u64,
}

pub fn serve(arguments: &ServeArguments) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("a runtime")?;
    runtime.block_on(async {
        let listener = TcpListener::bind(arguments.listen).await.with_context(|| format!("bind {}", arguments.listen))?;
        println!("listening on {}", arguments.listen);
        loop {
            let (stream, peer) = listener.accept().await.context("accept")?;
            tokio::spawn(async move {
                match echo(stream).await {
                    Ok(said) => println!("closed {peer} {said}"),
                    Err(error) => println!("broken {peer} {error:#}"),
                }
            });
        }
    })
}

/// Sends back what comes until the client closes; says with which code and reason.
async fn echo(stream: TcpStream) -> Result<String> {
    let mut socket = accept_async(stream).await.context("the handshake")?;
    let mut said = None;
    while let Some(message) = socket.next().await {
        match message.context("a message")? {
            Message::Text(text) if text.starts_with("close ") => {
                let mut words = text.splitn(3, ' ').skip(1);
                let code: u16 = words.next().unwrap_or_default().parse().context("a code")?;
                let reason = words.next().unwrap_or_default().to_owned();
                socket.close(Some(CloseFrame { code: code.into(), reason: reason.into() })).await.context("closing")?;
            }
            message @ (Message::Text(_) | Message::Binary(_)) => socket.send(message).await.context("sending")?,
            Message::Close(frame) => {
                // The answer to it goes out when the socket is read to its end.
                said = Some(frame.map(|frame| format!("{} {}", u16::from(frame.code), frame.reason)).unwrap_or_default());
            }
            _ => {}
        }
    }
    said.context("it ended without a close")
}

pub fn call(arguments: &CallArguments) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("a runtime")?;
    let report = runtime.block_on(converse(arguments))?;
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

const PART: usize = 64 << 10;

async fn converse(arguments: &CallArguments) -> Result<WebSocketReport> {
    let mut report = WebSocketReport::default();
    let stream = TcpStream::connect(arguments.to).await.context("connecting")?;
    let url = format!("ws://{}{}", arguments.to, arguments.path);
    let (mut socket, _) = client_async(url, stream).await.context("the handshake")?;
    for text in &arguments.text {
        socket.send(Message::text(text.clone())).await.context("sending")?;
        match socket.next().await.context("the end")?.context("a message")? {
            Message::Text(text) => report.texts.push(text.to_string()),
            Message::Close(frame) => {
                // So that the answer to it goes out.
                while socket.next().await.is_some_and(|message| message.is_ok()) {}
                return Ok(closed(report, frame));
            }
            other => bail!("for a text came back {other:?}"),
        }
    }
    // For whoever waits for it; the report is the last line.
    println!("texts came back");
    let parts = arguments.binary / PART;
    let part = |number: usize| vec![(number % 251) as u8; PART];
    let (mut out, mut back) = socket.split();
    let send = async {
        for number in 0..parts {
            out.send(Message::binary(part(number))).await.context("sending")?;
        }
        anyhow::Ok(out)
    };
    let receive = async {
        for number in 0..parts {
            match back.next().await.context("the end")?.context("a message")? {
                Message::Binary(bytes) => ensure!(*bytes == part(number), "part {number} came back changed"),
                other => bail!("for a binary message came back {other:?}"),
            }
        }
        anyhow::Ok(back)
    };
    let (out, back) = tokio::try_join!(send, receive)?;
    report.binary_bytes = (parts * PART) as u64;
    let mut socket = out.reunite(back).map_err(|_| anyhow!("the halves are of two sockets"))?;
    tokio::time::sleep(Duration::from_millis(arguments.idle)).await;
    if let Some(code) = arguments.close {
        socket.close(Some(CloseFrame { code: code.into(), reason: "enough".into() })).await.context("closing")?;
    }
    match socket.next().await.context("it ended without a close")?.context("a message")? {
        Message::Close(frame) => Ok(closed(report, frame)),
        other => bail!("instead of a close came {other:?}"),
    }
}

fn closed(mut report: WebSocketReport, frame: Option<CloseFrame>) -> WebSocketReport {
    if let Some(frame) = frame {
        report.close_code = Some(frame.code.into());
        report.close_reason = frame.reason.to_string();
    }
    report
}
