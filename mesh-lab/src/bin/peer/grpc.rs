//! gRPC by tonic, which real applications use: a server that does as its calls ask, and a client that reports how they ended.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures_util::{Stream, StreamExt as _, stream};
use mesh_lab::peer::CallReport;
use tonic::metadata::{Ascii, KeyAndValueRef, MetadataKey, MetadataMap, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status, Streaming};

use generated::calls_client::CallsClient;
use generated::calls_server::{Calls, CallsServer};
use generated::{Answer, Ask};

#[allow(missing_docs, clippy::all, clippy::pedantic)]
mod generated {
    tonic::include_proto!("nodemesh.lab.v1");
}

/// A gRPC server. A line `cancelled TEXT` for each call that its client gave up before it was answered.
#[derive(clap::Args)]
pub struct ServeArguments {
    /// Where; `[::]:PORT` serves both families.
    #[arg(long)]
    listen: SocketAddr,
    /// By which name it tells who answers.
    #[arg(long)]
    name: String,
}

/// Which of gRPC's kinds of calls.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Kind {
    Unary,
    Collect,
    Spread,
    Chat,
}

/// gRPC calls, one after the other or at once, on one connection.
#[derive(clap::Args)]
pub struct CallArguments {
    /// `http://ADDRESS:PORT`.
    url: String,
    /// Of which kind.
    #[arg(long, value_enum, default_value = "unary")]
    kind: Kind,
    /// How many calls.
    #[arg(long, default_value_t = 1)]
    calls: u32,
    /// All at once instead of one after the other.
    #[arg(long)]
    at_once: bool,
    /// Messages that a stream of the client's has.
    #[arg(long, default_value_t = 1)]
    messages: u32,
    /// Answers that a Spread is asked for.
    #[arg(long, default_value_t = 1)]
    answers: u32,
    /// What each message says.
    #[arg(long, default_value = "hello")]
    text: String,
    /// Milliseconds that the server waits before each answer.
    #[arg(long, default_value_t = 0)]
    delay: u32,
    /// The status that the server is to end with.
    #[arg(long, default_value_t = 0)]
    code: u32,
    /// Its message.
    #[arg(long, default_value = "")]
    message: String,
    /// Its details.
    #[arg(long, default_value = "")]
    details: String,
    /// So many calls are first answered with UNAVAILABLE, by each server.
    #[arg(long, default_value_t = 0)]
    fails: u32,
    /// The key that those are counted by.
    #[arg(long, default_value = "")]
    key: String,
    /// Metadata, `name=value`.
    #[arg(long)]
    metadata: Vec<String>,
    /// The deadline of each call, in milliseconds.
    #[arg(long)]
    timeout: Option<u64>,
    /// Gives each call up after so many milliseconds, which is reported as CANCELLED.
    #[arg(long)]
    cancel: Option<u64>,
}

pub fn serve(arguments: &ServeArguments) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("a runtime")?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(arguments.listen).await.with_context(|| format!("bind {}", arguments.listen))?;
        println!("listening on {}", arguments.listen);
        let server = Named { name: arguments.name.clone(), failed: Arc::default() };
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        tonic::transport::Server::builder().serve_with_incoming(CallsServer::new(server), incoming).await.context("serving")
    })
}

struct Named {
    name: String,
    /// Failures so far, by the key that a call names.
    failed: Arc<Mutex<HashMap<String, u32>>>,
}

/// Says so if it is dropped before the call was answered.
struct Unanswered(Option<String>);

impl Unanswered {
    fn answered(mut self) {
        self.0 = None;
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        if let Some(text) = &self.0 {
            println!("cancelled {text}");
        }
    }
}

type Answers = Pin<Box<dyn Stream<Item = Result<Answer, Status>> + Send>>;

impl Named {
    fn answer(&self, text: String, messages: u32) -> Answer {
        Answer { server: self.name.clone(), text, messages }
    }

    /// Waits as long as is asked, and fails if that is asked.
    async fn consider(&self, ask: &Ask) -> Result<(), Status> {
        consider(&self.failed, ask).await
    }
}

async fn consider(failed: &Mutex<HashMap<String, u32>>, ask: &Ask) -> Result<(), Status> {
    tokio::time::sleep(Duration::from_millis(ask.delay.into())).await;
    if ask.fails > 0 {
        let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
        let so_far = failed.entry(ask.key.clone()).or_default();
        if *so_far < ask.fails {
            *so_far += 1;
            return Err(Status::unavailable("told to be unavailable"));
        }
    }
    if ask.code == 0 {
        return Ok(());
    }
    let code = Code::from(i32::try_from(ask.code).unwrap_or_default());
    let mut metadata = MetadataMap::new();
    metadata.insert("x-served-by", MetadataValue::from_static("peer"));
    Err(Status::with_details_and_metadata(code, ask.message.clone(), ask.details.clone().into(), metadata))
}

#[tonic::async_trait]
impl Calls for Named {
    type SpreadStream = Answers;
    type ChatStream = Answers;

    async fn unary(&self, request: Request<Ask>) -> Result<Response<Answer>, Status> {
        let ask = request.into_inner();
        let unanswered = Unanswered(Some(ask.text.clone()));
        let result = self.consider(&ask).await;
        unanswered.answered();
        result.map(|()| Response::new(self.answer(ask.text, 1)))
    }

    async fn collect(&self, request: Request<Streaming<Ask>>) -> Result<Response<Answer>, Status> {
        let mut asks = request.into_inner();
        let (mut count, mut last) = (0, Ask::default());
        while let Some(ask) = asks.message().await? {
            count += 1;
            last = ask;
        }
        self.consider(&last).await?;
        Ok(Response::new(self.answer(last.text, count)))
    }

    async fn spread(&self, request: Request<Ask>) -> Result<Response<Answers>, Status> {
        let ask = request.into_inner();
        let (name, failed) = (self.name.clone(), self.failed.clone());
        let unanswered = Unanswered(Some(ask.text.clone()));
        let all = stream::unfold((0, ask, Some(unanswered)), move |(sent, ask, mut unanswered)| {
            let (name, failed) = (name.clone(), failed.clone());
            async move {
                if sent == ask.answers {
                    // The status, if one is asked for, comes after the last answer: in trailers.
                    unanswered.take()?.answered();
                    let status = consider(&failed, &ask).await.err()?;
                    return Some((Err(status), (sent, ask, None)));
                }
                unanswered.as_ref()?;
                tokio::time::sleep(Duration::from_millis(ask.delay.into())).await;
                let answer = Answer { server: name, text: ask.text.clone(), messages: 1 };
                Some((Ok(answer), (sent + 1, ask, unanswered)))
            }
        });
        Ok(Response::new(Box::pin(all)))
    }

    async fn chat(&self, request: Request<Streaming<Ask>>) -> Result<Response<Answers>, Status> {
        let (name, failed) = (self.name.clone(), self.failed.clone());
        let mut count = 0;
        let all = request.into_inner().then(move |ask| {
            let (name, failed) = (name.clone(), failed.clone());
            count += 1;
            async move {
                let ask = ask?;
                consider(&failed, &ask).await?;
                Ok(Answer { server: name, text: ask.text, messages: count })
            }
        });
        Ok(Response::new(Box::pin(all)))
    }
}

pub fn call(arguments: &CallArguments) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("a runtime")?;
    let reports = runtime.block_on(async {
        let endpoint = Endpoint::from_shared(arguments.url.clone()).with_context(|| arguments.url.clone())?;
        let channel = endpoint.connect_timeout(Duration::from_secs(5)).connect_lazy();
        let mut reports = Vec::new();
        if arguments.at_once {
            let calls = (0..arguments.calls).map(|_| report(&channel, arguments));
            reports = futures_util::future::join_all(calls).await;
        } else {
            for _ in 0..arguments.calls {
                reports.push(report(&channel, arguments).await);
            }
        }
        anyhow::Ok(reports)
    })?;
    println!("{}", serde_json::to_string(&reports)?);
    Ok(())
}

async fn report(channel: &Channel, arguments: &CallArguments) -> CallReport {
    let mut report = CallReport::default();
    let made = make(channel, arguments, &mut report);
    let ended = match arguments.cancel {
        Some(millis) => tokio::time::timeout(Duration::from_millis(millis), made).await,
        None => Ok(made.await),
    };
    let status = match ended {
        Ok(Ok(())) => return report,
        Ok(Err(status)) => status,
        Err(_) => Status::cancelled("given up"),
    };
    report.code = status.code().into();
    status.message().clone_into(&mut report.message);
    report.details = String::from_utf8_lossy(status.details()).into_owned();
    report.metadata = pairs(status.metadata());
    report
}

fn pairs(metadata: &MetadataMap) -> Vec<(String, String)> {
    let text = |pair: KeyAndValueRef<'_>| match pair {
        KeyAndValueRef::Ascii(key, value) => Some((key.to_string(), value.to_str().ok()?.to_owned())),
        KeyAndValueRef::Binary(..) => None,
    };
    metadata.iter().filter_map(text).collect()
}

/// Makes a call and notes each answer as it comes.
async fn make(channel: &Channel, arguments: &CallArguments, report: &mut CallReport) -> Result<(), Status> {
    let ask = Ask {
        text: arguments.text.clone(),
        delay: arguments.delay,
        answers: arguments.answers,
        code: arguments.code,
        message: arguments.message.clone(),
        details: arguments.details.clone().into_bytes(),
        key: arguments.key.clone(),
        fails: arguments.fails,
    };
    let mut client = CallsClient::new(channel.clone());
    match arguments.kind {
        Kind::Unary => {
            let response = client.unary(with_metadata(Request::new(ask), arguments)?).await?;
            note(report, response.into_inner());
        }
        Kind::Collect => {
            let asks = stream::iter(std::iter::repeat_n(ask, arguments.messages as usize));
            let response = client.collect(with_metadata(Request::new(asks), arguments)?).await?;
            note(report, response.into_inner());
        }
        Kind::Spread => {
            let response = client.spread(with_metadata(Request::new(ask), arguments)?).await?;
            drain(response.into_inner(), report).await?;
        }
        Kind::Chat => {
            // The next message goes out once the last was answered: neither side may wait for the end of the other's.
            let (send, receive) = tokio::sync::mpsc::channel(1);
            let asks = tokio_stream::wrappers::ReceiverStream::new(receive);
            let lost = |_| Status::internal("the call's messages are not taken");
            send.send(ask.clone()).await.map_err(lost)?;
            let mut answers = client.chat(with_metadata(Request::new(asks), arguments)?).await?.into_inner();
            for _ in 1..arguments.messages {
                let answer = answers.message().await?.ok_or_else(|| Status::internal("the answers ended early"))?;
                note(report, answer);
                send.send(ask.clone()).await.map_err(lost)?;
            }
            drop(send);
            drain(answers, report).await?;
        }
    }
    Ok(())
}

async fn drain(mut answers: Streaming<Answer>, report: &mut CallReport) -> Result<(), Status> {
    while let Some(answer) = answers.message().await? {
        note(report, answer);
    }
    Ok(())
}

fn note(report: &mut CallReport, answer: Answer) {
    report.servers.push(answer.server);
    report.texts.push(answer.text);
    report.messages = answer.messages;
}

fn with_metadata<T>(mut request: Request<T>, arguments: &CallArguments) -> Result<Request<T>, Status> {
    for pair in &arguments.metadata {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let wrong = |_| Status::invalid_argument(format!("{pair:?} is no metadata"));
        let name: MetadataKey<Ascii> = name.parse().map_err(|_| Status::invalid_argument(format!("{pair:?} is no metadata")))?;
        request.metadata_mut().insert(name, value.parse().map_err(wrong)?);
    }
    if let Some(millis) = arguments.timeout {
        request.set_timeout(Duration::from_millis(millis));
    }
    Ok(request)
}
