//! An HTTP server that tells what it was asked and does as the query says: HTTP/1.1 and HTTP/2 with prior knowledge, gRPC's trailers,
//! protocol switches.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::{BodyExt as _, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue, UPGRADE};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use mesh_lab::peer::HttpSeen;
use tokio::net::TcpListener;

/// An HTTP server.
#[derive(clap::Args)]
pub struct Arguments {
    /// Where; `[::]:PORT` serves both families.
    #[arg(long)]
    listen: SocketAddr,
    /// By which name it tells who answers.
    #[arg(long)]
    name: String,
}

struct State {
    name: String,
    /// Requests so far.
    total: Mutex<u64>,
    /// The same by path.
    paths: Mutex<HashMap<String, u64>>,
    /// Failures so far, by the key that a query names.
    failed: Mutex<HashMap<String, u32>>,
}

type Body = BoxBody<Bytes, Infallible>;

pub fn run(arguments: &Arguments) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("a runtime")?;
    runtime.block_on(serve(arguments))
}

async fn serve(arguments: &Arguments) -> Result<()> {
    let listener = TcpListener::bind(arguments.listen).await.with_context(|| format!("bind {}", arguments.listen))?;
    println!("listening on {}", arguments.listen);
    let state =
        Arc::new(State { name: arguments.name.clone(), total: Mutex::default(), paths: Mutex::default(), failed: Mutex::default() });
    loop {
        let (stream, peer) = listener.accept().await.context("accept")?;
        println!("connection from {peer}");
        let state = state.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(state.clone(), request));
            // A client that breaks off is no matter of the server's.
            let _ = auto::Builder::new(TokioExecutor::new()).serve_connection_with_upgrades(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(state: Arc<State>, mut request: Request<Incoming>) -> Result<Response<Body>, std::io::Error> {
    let query: HashMap<String, String> = request
        .uri()
        .query()
        .unwrap_or_default()
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    let number = |key: &str| query.get(key).and_then(|value| value.parse::<u64>().ok());
    // What goes wrong may be one server's matter.
    let meant = query.get("only").is_none_or(|name| *name == state.name);
    let about = {
        let mut paths = state.paths.lock().unwrap_or_else(PoisonError::into_inner);
        *paths.entry(request.uri().path().to_owned()).or_default() += 1;
        query.get("about").and_then(|path| paths.get(path)).copied().unwrap_or(0)
    };
    let total = {
        let mut total = state.total.lock().unwrap_or_else(PoisonError::into_inner);
        *total += 1;
        *total
    };
    let willing = query.get("upgrade").is_none_or(|upgrade| upgrade != "no");
    if let Some(upgrade) = request.headers().get(UPGRADE).cloned().filter(|_| willing) {
        let switched = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let Ok(stream) = switched.await else { return };
            let (mut read, mut write) = tokio::io::split(TokioIo::new(stream));
            let _ = tokio::io::copy(&mut read, &mut write).await;
            let _ = tokio::io::AsyncWriteExt::shutdown(&mut write).await;
        });
        let mut response = Response::new(whole(Bytes::new()));
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        // Another than was asked for, or none.
        let protocol = match query.get("switch") {
            Some(other) => HeaderValue::from_str(other).ok().filter(|other| !other.is_empty()),
            None => Some(upgrade),
        };
        if let Some(protocol) = protocol {
            response.headers_mut().insert(UPGRADE, protocol);
        }
        response.headers_mut().insert("connection", HeaderValue::from_static("upgrade"));
        return Ok(response);
    }
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map_err(std::io::Error::other)?;
    let trailers: Vec<(String, String)> = body.trailers().map(pairs).unwrap_or_default();
    let body = body.to_bytes();
    if let Some(delay) = number("delay").filter(|_| meant) {
        tokio::time::sleep(Duration::from_millis(delay)).await;
    }
    if meant && query.contains_key("break") {
        // Without a word.
        return Err(std::io::Error::other("told to break off"));
    }
    let mut status = number("status").filter(|_| meant).and_then(|status| u16::try_from(status).ok()).unwrap_or(200);
    if let (Some(fails), Some(key)) = (number("fails").filter(|_| meant), query.get("key")) {
        let mut failed = state.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let so_far = failed.entry(key.clone()).or_default();
        if u64::from(*so_far) < fails {
            *so_far += 1;
            status = number("with").and_then(|status| u16::try_from(status).ok()).unwrap_or(503);
        }
    }
    let seen = HttpSeen {
        name: state.name.clone(),
        method: parts.method.to_string(),
        target: parts.uri.path_and_query().map_or_else(|| parts.uri.to_string(), ToString::to_string),
        host: parts
            .uri
            .authority()
            .map(ToString::to_string)
            .or_else(|| parts.headers.get("host").and_then(|host| host.to_str().ok()).map(str::to_owned))
            .unwrap_or_default(),
        version: format!("{:?}", parts.version),
        headers: pairs(&parts.headers),
        trailers,
        body: body.len(),
        total,
        about,
    };
    let grpc = parts.headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    let mut response = if grpc {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from(number("grpc").unwrap_or(0)));
        // One message out for what came in.
        let text = serde_json::to_vec(&seen)?;
        let mut message = vec![0];
        message.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes());
        message.extend_from_slice(&text);
        let mut frames = vec![Ok(Frame::data(Bytes::from(message)))];
        if query.get("trailers").is_none_or(|trailers| trailers != "none") {
            frames.push(Ok(Frame::trailers(trailers)));
        }
        let mut response = Response::new(StreamBody::new(futures_util::stream::iter(frames)).boxed());
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        response
    } else if let Some(size) = number("size") {
        Response::new(whole(Bytes::from(vec![b'x'; usize::try_from(size).unwrap_or(0)])))
    } else {
        Response::new(whole(Bytes::from(serde_json::to_vec(&seen)?)))
    };
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
    response.headers_mut().insert("x-served-by", HeaderValue::from_str(&state.name).map_err(std::io::Error::other)?);
    if let Some(named) = query.get("connection") {
        response.headers_mut().insert("connection", HeaderValue::from_str(named).map_err(std::io::Error::other)?);
    }
    Ok(response)
}

fn whole(bytes: Bytes) -> Body {
    http_body_util::Full::new(bytes).boxed()
}

fn pairs(headers: &HeaderMap) -> Vec<(String, String)> {
    headers.iter().map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())).collect()
}
