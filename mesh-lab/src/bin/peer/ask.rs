//! An HTTP client that makes the requests of a list and tells what came of each (`mesh_lab::ask`).

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, TE};
use hyper::{Request, Response, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_lab::ask::{Answered, Asked};
use tokio::net::TcpStream;

/// Bytes of a body that are read.
const MOST: usize = 64 << 10;
/// An empty message of gRPC.
const NOTHING: &[u8] = &[0; 5];

/// Makes HTTP requests one after the other: a JSON list on standard input, lists of answers on standard output.
#[derive(clap::Args)]
pub struct Arguments {}

pub fn run(_: &Arguments) -> Result<()> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).context("reading the list")?;
    let list: Vec<Asked> = serde_json::from_str(&text).context("a list of requests")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("a runtime")?;
    let answers = runtime.block_on(all(&list));
    let text = serde_json::to_string(&answers).context("writing JSON")?;
    writeln!(std::io::stdout(), "{text}").context("writing the answers")
}

async fn all(list: &[Asked]) -> Vec<Vec<Answered>> {
    let mut client = Client::default();
    let mut answers = Vec::with_capacity(list.len());
    for asked in list {
        let mut own = Vec::new();
        for _ in 0..asked.times {
            let start = Instant::now();
            let answered = tokio::time::timeout(Duration::from_millis(asked.limit), client.ask(asked)).await;
            let mut answered = match answered {
                Ok(Ok(answered)) => answered,
                Ok(Err(error)) => Answered { error: Some(format!("{error:#}")), ..Answered::default() },
                Err(_) => Answered { error: Some(format!("no answer within {} ms", asked.limit)), ..Answered::default() },
            };
            answered.millis = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
            own.push(answered);
        }
        // What the last one said holds for those that follow.
        client.said.extend(own.iter().flat_map(|answered| answered.headers.iter().cloned()));
        answers.push(own);
    }
    answers
}

#[derive(Default)]
struct Client {
    /// Addresses by host and port.
    addresses: HashMap<String, SocketAddr>,
    /// Headers of answers, the last of each name.
    said: HashMap<String, String>,
}

impl Client {
    async fn ask(&mut self, asked: &Asked) -> Result<Answered> {
        let uri: Uri = asked.url.parse().with_context(|| format!("{} is no URL", asked.url))?;
        if uri.scheme_str() != Some("http") {
            bail!("{}: only http:// is spoken here", asked.url);
        }
        let address = self.address(&uri).await?;
        let request = self.request(asked, &uri)?;
        let stream = TcpStream::connect(address).await.with_context(|| format!("connecting to {address}"))?;
        let io = TokioIo::new(stream);
        let (response, connection) = if asked.http2 || asked.grpc {
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.context("an HTTP/2 connection")?;
            let connection = tokio::spawn(async move { drop(connection.await) });
            (sender.send_request(request).await, connection)
        } else {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.context("an HTTP connection")?;
            let connection = tokio::spawn(async move { drop(connection.await) });
            (sender.send_request(request).await, connection)
        };
        let answered = read(response.context("sending the request")?).await;
        connection.abort();
        answered
    }

    async fn address(&mut self, uri: &Uri) -> Result<SocketAddr> {
        let host = uri.host().context("a URL without a host")?;
        let name = format!("{host}:{}", uri.port_u16().unwrap_or(80));
        if let Some(address) = self.addresses.get(&name) {
            return Ok(*address);
        }
        let found = tokio::net::lookup_host(&name).await.with_context(|| format!("looking up {name}"))?.next();
        let address = found.with_context(|| format!("{name} has no address"))?;
        self.addresses.insert(name, address);
        Ok(address)
    }

    fn request(&self, asked: &Asked, uri: &Uri) -> Result<Request<Full<Bytes>>> {
        let mut headers = HeaderMap::new();
        for (name, value) in &asked.headers {
            headers.append(HeaderName::from_bytes(name.as_bytes())?, HeaderValue::from_str(value)?);
        }
        for (from, to) in &asked.carry {
            let Some(value) = self.said.get(from) else { bail!("no answer before this one had a header {from}") };
            let value = if from == "set-cookie" { value.split(';').next().unwrap_or_default() } else { value };
            headers.append(HeaderName::from_bytes(to.as_bytes())?, HeaderValue::from_str(value)?);
        }
        let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
        let host = match headers.get(HOST) {
            Some(host) => host.to_str()?.to_owned(),
            None => authority,
        };
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let mut body = Bytes::from(asked.body.clone());
        let target = if asked.http2 || asked.grpc {
            // HTTP/2 names the host in the target alone.
            headers.remove(HOST);
            format!("http://{host}{path}")
        } else {
            headers.entry(HOST).or_insert(HeaderValue::from_str(&host)?);
            path.to_owned()
        };
        if asked.grpc {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            headers.insert(TE, HeaderValue::from_static("trailers"));
            body = Bytes::from_static(NOTHING);
        }
        let mut request = Request::builder().method(asked.method.as_str()).uri(target).body(Full::new(body))?;
        *request.headers_mut() = headers;
        Ok(request)
    }
}

async fn read(response: Response<Incoming>) -> Result<Answered> {
    let (parts, body) = response.into_parts();
    let body = Limited::new(body, MOST).collect().await.map_err(|error| anyhow::anyhow!("reading the body: {error}"))?;
    let trailers = body.trailers().map(pairs).unwrap_or_default();
    let body = String::from_utf8_lossy(&body.to_bytes()).into_owned();
    Ok(Answered { status: parts.status.as_u16(), headers: pairs(&parts.headers), body, trailers, millis: 0, error: None })
}

fn pairs(headers: &HeaderMap) -> Vec<(String, String)> {
    headers.iter().map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())).collect()
}
