//! Follows one kind of object for as long as the source lives.
//!
//! ```text
//!  find the version that is served ─► list and watch ─► events
//!        ▲     │ none: the kind is absent, asked again    │ cannot be resumed
//!        └─────┴──────────────── wait ◄───────────────────┘
//! ```

use std::ops::ControlFlow;
use std::pin::pin;
use std::sync::Arc;

use futures_util::StreamExt;
use kube::Client;
use kube::api::{Api, ListParams};
use kube::core::ApiResource;
use kube::runtime::watcher;
use mesh_model::object::Kind;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep};

use super::Timing;
use super::board::Board;
use super::failure::{self, Failed, GoOn};
use super::object::{Bookkeeping, OfNode, OfPod, Raw, Trim};
use super::pace::Backoff;
use super::resource::{Listing, listing, parameters, resources};
use super::store::Event;
use crate::status::Reason;

/// How often a kind that was there must be found missing before its objects go.
const CONFIRMATIONS: u32 = 3;

/// How often a streamed list may end before it is complete: a server of before 1.27 sends the objects and never says that it has done so.
const STREAMS: u32 = 3;

/// How long one watch may last, seconds: less than the API server's own limit, and not the same for all.
const WATCH_SECONDS: std::ops::Range<u32> = 240..290;

/// What a follower needs.
pub(super) struct Follower {
    pub(super) kind: Kind,
    pub(super) client: Client,
    pub(super) timing: Timing,
    pub(super) board: Board,
    pub(super) events: mpsc::Sender<(Kind, Event)>,
    /// The store asks for a new list.
    pub(super) relist: Arc<Notify>,
}

/// Nobody takes events any more.
struct Over;

impl Follower {
    /// Follows until nobody takes events any more.
    pub(super) async fn run(self) {
        let done = match self.kind {
            Kind::Pod => self.follow::<OfPod>().await,
            Kind::Node => self.follow::<OfNode>().await,
            _ => self.follow::<Bookkeeping>().await,
        };
        let Err(Over) = done;
    }

    async fn follow<T: Trim>(&self) -> Result<std::convert::Infallible, Over> {
        let mut backoff = Backoff::new(self.timing.backoff);
        let mut asking = Backoff::new(self.timing.absent);
        let mut way = listing(self.kind);
        let (mut was_there, mut missing) = (false, 0);
        loop {
            let resource = match self.find::<T>().await {
                Ok(Some(resource)) => resource,
                Ok(None) => {
                    missing += 1;
                    // A server that has just started, or one of several that lags behind, may not know a kind that there is. Policies
                    // do not go on the word of one answer.
                    if !was_there || missing >= CONFIRMATIONS {
                        self.send(Event::Absent).await?;
                        self.board.absent(self.kind);
                        was_there = false;
                    }
                    sleep(asking.failed(Instant::now(), rand::random())).await;
                    continue;
                }
                Err(failed) => {
                    self.board.failed(self.kind, &failed);
                    sleep(backoff.failed(Instant::now(), rand::random())).await;
                    continue;
                }
            };
            missing = 0;
            asking.reset();
            let mut listed = false;
            let go_on = self.watch::<T>(&resource, way, &mut backoff, &mut listed).await?;
            was_there |= listed;
            if go_on == GoOn::RelistPaged {
                tracing::debug!(kind = self.kind.name(), "the API server does not stream lists; they come in pages");
                way = Listing::Paged;
            }
            sleep(backoff.failed(Instant::now(), rand::random())).await;
        }
    }

    /// The preferred version of the kind that the server has. `None` if it has none: only the server's clear word counts, and it does not
    /// give it to those who may not list the kind.
    async fn find<T: Trim>(&self) -> Result<Option<ApiResource>, Failed> {
        let resources = resources(self.kind);
        if self.kind.is_builtin() {
            return Ok(resources.into_iter().next());
        }
        for resource in resources {
            let api: Api<Raw<T>> = Api::all_with(self.client.clone(), &resource);
            match api.list(&ListParams::default().limit(1)).await {
                Ok(_) => return Ok(Some(resource)),
                Err(error) => {
                    let failed = failure::of_request(self.kind, &error);
                    if failed.reason != Reason::NotFound {
                        return Err(failed);
                    }
                }
            }
        }
        Ok(None)
    }

    /// Lists and watches until that cannot be resumed.
    async fn watch<T: Trim>(&self, resource: &ApiResource, way: Listing, backoff: &mut Backoff, listed: &mut bool) -> Result<GoOn, Over> {
        let api: Api<Raw<T>> = Api::all_with(self.client.clone(), resource);
        let seconds = rand::random_range(WATCH_SECONDS);
        let mut stream = pin!(watcher(api, parameters(self.kind, way, seconds)));
        let mut begun = 0;
        loop {
            let event = tokio::select! {
                event = stream.next() => event,
                () = self.relist.notified() => return Ok(GoOn::Relist),
            };
            match event {
                Some(Ok(event)) => {
                    match event {
                        watcher::Event::Init => begun += 1,
                        watcher::Event::InitDone => {
                            (*listed, begun) = (true, 0);
                            backoff.reset();
                        }
                        _ => {}
                    }
                    if way == Listing::Streamed && begun > STREAMS {
                        return Ok(GoOn::RelistPaged);
                    }
                    self.pass(event).await?;
                }
                Some(Err(error)) => {
                    let failed = failure::of_watch(self.kind, &error, way == Listing::Streamed && !*listed);
                    if let ControlFlow::Break(go_on) = self.fail(&failed, backoff).await {
                        return Ok(go_on);
                    }
                }
                None => return Ok(GoOn::Relist),
            }
        }
    }

    async fn fail(&self, failed: &Failed, backoff: &mut Backoff) -> ControlFlow<GoOn> {
        // That this server streams no lists is found out once and is no failure.
        if failed.go_on != GoOn::RelistPaged {
            self.board.failed(self.kind, failed);
        }
        if failed.go_on != GoOn::Resume {
            return ControlFlow::Break(failed.go_on);
        }
        sleep(backoff.failed(Instant::now(), rand::random())).await;
        ControlFlow::Continue(())
    }

    async fn pass<T>(&self, event: watcher::Event<Raw<T>>) -> Result<(), Over> {
        let event = match event {
            watcher::Event::Init => Event::ListBegins,
            watcher::Event::InitApply(object) => Event::Listed(object.value),
            watcher::Event::InitDone => {
                self.board.listed(self.kind);
                Event::ListEnds
            }
            watcher::Event::Apply(object) => Event::Applied(object.value),
            watcher::Event::Delete(object) => Event::Deleted(object.value),
        };
        self.send(event).await
    }

    async fn send(&self, event: Event) -> Result<(), Over> {
        self.events.send((self.kind, event)).await.map_err(|_| Over)
    }
}
