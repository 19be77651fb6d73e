//! The server's end: each call becomes a [`Call`] for the daemon's loop.

use std::pin::Pin;

use futures::{Stream, StreamExt as _};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};
use tonic::{Request as Rpc, Response, Status, Streaming};

use super::api;
use super::incoming::{Caller, MAX_CONNECTIONS, incoming};
use super::web::{WebReply, WebRequest};

/// How many revocations one message of a stream may hold, and how many such messages may be on their way.
pub const MAX_BATCH: usize = 1_024;
const BATCHES: usize = 16;
/// How many errors of a stream are told.
pub const MAX_ERRORS: usize = 100;

/// A request as it came, still unread.
#[derive(Debug)]
pub enum Request {
    Disconnect(api::DisconnectRequest),
    Revoke(api::RevokeRequest),
    /// One message of a stream of revocations.
    RevokeMany(Vec<api::RevokeRequest>),
    Lift(api::LiftRequest),
    Lock(api::LockRequest),
    Unlock(api::UnlockRequest),
    Status(api::ShowRequest),
    Users(api::ShowRequest),
    Sessions(api::ShowRequest),
    /// A part of the list of revocations.
    Revocations(Page),
    CountRevocations(api::ShowRequest),
    Events(api::ShowRequest),
    Check(api::ShowRequest),
    Look(api::GateLook),
    Left(api::GateLook),
    Web(WebRequest),
}

/// Which part of a list is asked for; how much of it is told at once is the daemon's to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    /// The number of the last revocation that was told; 0: from the first one on.
    pub after: u64,
    /// The number up to which the list goes, from its second part on: what is made meanwhile does not prolong it.
    pub up_to: Option<u64>,
}

#[derive(Debug)]
pub enum Reply {
    Disconnect(api::DisconnectReply),
    Receipt(Box<api::Receipt>),
    Bulk(api::BulkReceipt),
    Status(Box<api::Status>),
    Users(api::Users),
    Sessions(api::Sessions),
    /// Some of them, and where to go on if there are more.
    Revocations(api::Revocations, Option<Page>),
    Count(api::RevocationCount),
    Events(api::Events),
    Findings(api::Findings),
    Verdict(api::GateVerdict),
    Web(WebReply),
}

#[derive(Debug)]
pub struct Call {
    pub request: Request,
    pub caller: Caller,
    pub reply: oneshot::Sender<Result<Reply, Status>>,
}

/// Serves the control socket until the listener fails.
pub async fn serve_control(
    listener: UnixListener,
    calls: mpsc::Sender<Call>,
) -> Result<(), tonic::transport::Error> {
    let service = api::control_server::ControlServer::new(Front { calls });
    tonic::transport::Server::builder()
        .concurrency_limit_per_connection(64)
        .add_service(service)
        .serve_with_incoming(incoming(listener, None, MAX_CONNECTIONS))
        .await
}

/// Serves the gate's socket: questions about logins, and nothing else.
pub async fn serve_gate(
    listener: UnixListener,
    calls: mpsc::Sender<Call>,
) -> Result<(), tonic::transport::Error> {
    let service = api::gate_server::GateServer::new(Front { calls });
    tonic::transport::Server::builder()
        .concurrency_limit_per_connection(4)
        .add_service(service)
        .serve_with_incoming(incoming(listener, None, MAX_CONNECTIONS))
        .await
}

#[derive(Clone)]
pub(super) struct Front {
    pub(super) calls: mpsc::Sender<Call>,
}

impl Front {
    pub(super) async fn call(&self, caller: Option<Caller>, request: Request) -> Result<Reply, Status> {
        let caller = caller.ok_or_else(|| Status::permission_denied("who is asking cannot be told"))?;
        let (reply, answer) = oneshot::channel();
        let stopping = || Status::unavailable("the daemon is stopping");
        self.calls.send(Call { request, caller, reply }).await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())?
    }

    /// A part of the list, and where to go on if there is more.
    async fn revocations(
        &self,
        caller: Option<Caller>,
        page: Page,
    ) -> Result<(api::Revocations, Option<Page>), Status> {
        match self.call(caller, Request::Revocations(page)).await? {
            Reply::Revocations(part, next) => Ok((part, next)),
            _ => Err(mixed_up()),
        }
    }
}

pub(super) fn caller<T>(rpc: &Rpc<T>) -> Option<Caller> {
    rpc.extensions().get::<Caller>().copied()
}

pub(super) fn mixed_up() -> Status {
    Status::internal("the daemon answered another question: this is a bug")
}

/// A service of methods that are alike: the request's record in, the reply's record out. The whole block, since
/// async_trait has to see the methods written out.
macro_rules! service {
    ($service:path; $($name:ident($input:ty) as $wrap:expr => $variant:ident($output:ty);)* { $($more:tt)* }) => {
        #[tonic::async_trait]
        impl $service for Front {
            $(async fn $name(&self, rpc: Rpc<$input>) -> Result<Response<$output>, Status> {
                let caller = caller(&rpc);
                match self.call(caller, $wrap(rpc.into_inner())).await? {
                    Reply::$variant(reply) => Ok(Response::new(reply.into())),
                    _ => Err(mixed_up()),
                }
            })*
            $($more)*
        }
    };
}

/// A reply comes boxed where it is large.
impl From<Box<api::Receipt>> for api::Receipt {
    fn from(boxed: Box<Self>) -> Self {
        *boxed
    }
}

impl From<Box<api::Status>> for api::Status {
    fn from(boxed: Box<Self>) -> Self {
        *boxed
    }
}

service! {
    api::control_server::Control;
    disconnect(api::DisconnectRequest) as Request::Disconnect => Disconnect(api::DisconnectReply);
    revoke(api::RevokeRequest) as Request::Revoke => Receipt(api::Receipt);
    lift(api::LiftRequest) as Request::Lift => Receipt(api::Receipt);
    lock(api::LockRequest) as Request::Lock => Receipt(api::Receipt);
    unlock(api::UnlockRequest) as Request::Unlock => Receipt(api::Receipt);
    show_status(api::ShowRequest) as Request::Status => Status(api::Status);
    show_users(api::ShowRequest) as Request::Users => Users(api::Users);
    show_sessions(api::ShowRequest) as Request::Sessions => Sessions(api::Sessions);
    count_revocations(api::ShowRequest) as Request::CountRevocations => Count(api::RevocationCount);
    show_events(api::ShowRequest) as Request::Events => Events(api::Events);
    check(api::ShowRequest) as Request::Check => Findings(api::Findings);

    {
    async fn show_revocations(&self, rpc: Rpc<api::ShowRequest>) -> Result<Response<api::Revocations>, Status> {
        match self.revocations(caller(&rpc), Page { after: 0, up_to: None }).await? {
            (all, None) => Ok(Response::new(all)),
            (_, Some(_)) => Err(Status::resource_exhausted(
                "there are more revocations than fit into one message: ask for them by ListRevocations",
            )),
        }
    }

    type ListRevocationsStream = Pin<Box<dyn Stream<Item = Result<api::Revocations, Status>> + Send>>;

    async fn list_revocations(&self, rpc: Rpc<api::ListRequest>) -> Result<Response<Self::ListRevocationsStream>, Status> {
        let (front, caller) = (self.clone(), caller(&rpc));
        let first = Page { after: rpc.into_inner().after, up_to: None };
        // each part is a call of its own, made when there is room for it on the way to the reader: the loop answers
        // others in between, and a reader that is slow holds up nobody and one part
        let parts = futures::stream::try_unfold(Some(first), move |page| {
            let front = front.clone();
            async move {
                let Some(page) = page else { return Ok(None) };
                front.revocations(caller, page).await.map(Some)
            }
        });
        Ok(Response::new(Box::pin(parts)))
    }

    async fn revoke_many(&self, rpc: Rpc<Streaming<api::RevokeBatch>>) -> Result<Response<api::BulkReceipt>, Status> {
        let caller = caller(&rpc);
        // several at once, so that those that wait for the disk share one commit
        let mut replies = rpc
            .into_inner()
            .map(|batch| async {
                let api::RevokeBatch { requests } = batch?;
                if requests.len() > MAX_BATCH {
                    let text = format!("{} revocations in one message: send at most {MAX_BATCH}", requests.len());
                    return Err(Status::invalid_argument(text));
                }
                self.call(caller, Request::RevokeMany(requests)).await
            })
            .buffered(BATCHES);
        let mut bulk = api::BulkReceipt::default();
        while let Some(reply) = replies.next().await {
            let Reply::Bulk(part) = reply? else { return Err(mixed_up()) };
            bulk.done += part.done;
            bulk.failed += part.failed;
            let room = MAX_ERRORS.saturating_sub(bulk.errors.len());
            bulk.errors.extend(part.errors.into_iter().take(room));
        }
        Ok(Response::new(bulk))
    }
    }
}

service! {
    api::gate_server::Gate;
    look(api::GateLook) as Request::Look => Verdict(api::GateVerdict);
    left(api::GateLook) as Request::Left => Verdict(api::GateVerdict);
    {}
}
