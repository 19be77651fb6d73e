//! The server's end: each call becomes a [`Call`] for the daemon's loop.

use std::pin::Pin;

use futures::{Stream, StreamExt as _, TryStreamExt as _};
use prost::Message;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};
use tonic::{Request as Rpc, Response, Status, Streaming};

use super::api;
use super::incoming::{Caller, MAX_CONNECTIONS, incoming};
use super::web::{WebReply, WebRequest};
use crate::session::{GatewayId, WebKey};

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
    /// A part of the list of users.
    Users(UsersFrom),
    /// A part of the list of sessions.
    Sessions(SessionsFrom),
    /// A part of the list of revocations.
    Revocations(Page),
    CountRevocations(api::ShowRequest),
    Events(api::ShowRequest),
    Check(api::ShowRequest),
    Gateways(api::ShowRequest),
    /// A part of the list of all gateways' sessions.
    AllSessions(AllSessionsFrom),
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

/// The same of sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionsFrom {
    /// Those of ocserv, all of them.
    Vpn,
    /// Those of the web gateway, after this key.
    Web(Option<WebKey>),
}

/// The same of users.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UsersFrom {
    /// Those who have sessions, by their names, after this one.
    Name(Option<String>),
    /// Those who are locked and have none, by their locks' numbers, after this one.
    Lock(u64),
}

/// The same of the sessions of all gateways: those of the gateway with the lowest id above this one; `None`: above none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AllSessionsFrom(pub Option<GatewayId>);

#[derive(Debug)]
pub enum Reply {
    Disconnect(api::DisconnectReply),
    Receipt(Box<api::Receipt>),
    Bulk(api::BulkReceipt),
    Status(Box<api::Status>),
    /// Some of them, and where to go on if there are more.
    Users(Vec<api::User>, Option<UsersFrom>),
    /// Some of them, and where to go on if there are more.
    Sessions(Vec<api::SessionInfo>, Option<SessionsFrom>),
    /// Some of them, and where to go on if there are more.
    Revocations(api::Revocations, Option<Page>),
    Count(api::RevocationCount),
    Events(api::Events),
    Findings(api::Findings),
    Gateways(api::Gateways),
    /// Some of them, and where to go on if there are more.
    AllSessions(Vec<api::ClusterSession>, Option<AllSessionsFrom>),
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

impl Front {
    /// Everybody, in parts of some hundreds.
    fn users(
        &self,
        caller: Option<Caller>,
    ) -> impl Stream<Item = Result<Vec<api::User>, Status>> + Send + use<> {
        self.parts(caller, UsersFrom::Name(None), Request::Users, |reply| match reply {
            Reply::Users(some, next) => Some((some, next)),
            _ => None,
        })
    }

    /// Every session, in parts of some hundreds.
    fn sessions(
        &self,
        caller: Option<Caller>,
    ) -> impl Stream<Item = Result<Vec<api::SessionInfo>, Status>> + Send + use<> {
        self.parts(caller, SessionsFrom::Vpn, Request::Sessions, |reply| match reply {
            Reply::Sessions(some, next) => Some((some, next)),
            _ => None,
        })
    }

    /// Every session of all gateways, in parts of some hundreds.
    fn all_sessions(
        &self,
        caller: Option<Caller>,
    ) -> impl Stream<Item = Result<Vec<api::ClusterSession>, Status>> + Send + use<> {
        self.parts(caller, AllSessionsFrom(None), Request::AllSessions, |reply| match reply {
            Reply::AllSessions(some, next) => Some((some, next)),
            _ => None,
        })
    }

    /// Each question to the loop is made once the parts before it were read.
    fn parts<F: Send + 'static, T: Message + Send + 'static>(
        &self,
        caller: Option<Caller>,
        first: F,
        ask: fn(F) -> Request,
        read: fn(Reply) -> Option<Part<T, F>>,
    ) -> impl Stream<Item = Result<Vec<T>, Status>> + Send + use<F, T> {
        let front = self.clone();
        let parts = futures::stream::try_unfold(Some(first), move |from| {
            let front = front.clone();
            async move {
                let Some(from) = from else { return Ok(None) };
                let reply = front.call(caller, ask(from)).await?;
                read(reply).map(Some).ok_or_else(mixed_up)
            }
        });
        parts.map_ok(|some| futures::stream::iter(chopped(some).map(Ok))).try_flatten()
    }
}

/// Some of a list, and where to go on if there is more.
type Part<T, F> = (Vec<T>, Option<F>);

/// A message of a list ends with the one by which it comes to one of these.
const PART: usize = 512;
const PART_BYTES: usize = 256 * 1_024;
/// How much of a list is told in one message, for whoever asks for one: any client takes 4 MiB.
const IN_ONE: usize = 3 * 1_024 * 1_024;

fn chopped<T: Message + Send>(all: Vec<T>) -> impl Iterator<Item = Vec<T>> + Send + use<T> {
    let mut all = all.into_iter();
    std::iter::from_fn(move || {
        let (mut part, mut bytes) = (Vec::new(), 0);
        while part.len() < PART
            && bytes < PART_BYTES
            && let Some(one) = all.next()
        {
            bytes += one.encoded_len();
            part.push(one);
        }
        (!part.is_empty()).then_some(part)
    })
}

async fn in_one<T: Message>(
    parts: impl Stream<Item = Result<Vec<T>, Status>>,
    what: &str,
    instead: &str,
) -> Result<Vec<T>, Status> {
    let mut parts = std::pin::pin!(parts);
    let (mut all, mut bytes) = (Vec::new(), 0);
    while let Some(part) = parts.next().await {
        let part = part?;
        bytes += part.iter().map(Message::encoded_len).sum::<usize>();
        all.extend(part);
        if bytes > IN_ONE {
            let text = format!("there are more {what} than fit into one message: ask for them by {instead}");
            return Err(Status::resource_exhausted(text));
        }
    }
    Ok(all)
}

pub(super) type Parts<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

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
    count_revocations(api::ShowRequest) as Request::CountRevocations => Count(api::RevocationCount);
    show_events(api::ShowRequest) as Request::Events => Events(api::Events);
    check(api::ShowRequest) as Request::Check => Findings(api::Findings);
    show_gateways(api::ShowRequest) as Request::Gateways => Gateways(api::Gateways);

    {
    async fn show_revocations(&self, rpc: Rpc<api::ShowRequest>) -> Result<Response<api::Revocations>, Status> {
        match self.revocations(caller(&rpc), Page { after: 0, up_to: None }).await? {
            (all, None) => Ok(Response::new(all)),
            (_, Some(_)) => Err(Status::resource_exhausted(
                "there are more revocations than fit into one message: ask for them by ListRevocations",
            )),
        }
    }

    type ListRevocationsStream = Parts<api::Revocations>;

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

    async fn show_users(&self, rpc: Rpc<api::ShowRequest>) -> Result<Response<api::Users>, Status> {
        let users = in_one(self.users(caller(&rpc)), "users", "ListUsers").await?;
        Ok(Response::new(api::Users { users }))
    }

    type ListUsersStream = Parts<api::Users>;

    async fn list_users(&self, rpc: Rpc<api::ShowRequest>) -> Result<Response<Self::ListUsersStream>, Status> {
        let parts = self.users(caller(&rpc)).map_ok(|users| api::Users { users });
        Ok(Response::new(Box::pin(parts)))
    }

    async fn show_sessions(&self, rpc: Rpc<api::ShowRequest>) -> Result<Response<api::Sessions>, Status> {
        let sessions = in_one(self.sessions(caller(&rpc)), "sessions", "ListSessions").await?;
        Ok(Response::new(api::Sessions { sessions }))
    }

    type ListSessionsStream = Parts<api::Sessions>;

    async fn list_sessions(&self, rpc: Rpc<api::ShowRequest>) -> Result<Response<Self::ListSessionsStream>, Status> {
        let parts = self.sessions(caller(&rpc)).map_ok(|sessions| api::Sessions { sessions });
        Ok(Response::new(Box::pin(parts)))
    }

    type ListAllSessionsStream = Parts<api::ClusterSessions>;

    async fn list_all_sessions(&self, rpc: Rpc<api::ShowRequest>) -> Result<Response<Self::ListAllSessionsStream>, Status> {
        let parts = self.all_sessions(caller(&rpc)).map_ok(|sessions| api::ClusterSessions { sessions });
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

#[cfg(test)]
mod tests {
    use super::*;

    fn sessions(count: usize, agent: usize) -> Vec<api::SessionInfo> {
        let one = api::SessionInfo { agent: "x".repeat(agent), ..api::SessionInfo::default() };
        (1..).map(|id| api::SessionInfo { id, ..one.clone() }).take(count).collect()
    }

    /// R7: no message of a list is large, whatever there is; and all of it comes.
    #[test]
    fn r7_a_list_comes_in_messages_that_are_bounded() {
        for (count, agent, most) in [(0, 1, 0), (1, 1, 1), (512, 1, 1), (513, 1, 2), (600, 5_000, 12)] {
            let all = sessions(count, agent);
            let parts: Vec<_> = chopped(all.clone()).collect();
            assert!(parts.len() <= most && parts.iter().all(|part| part.len() <= PART), "{count}");
            for part in &parts {
                let bytes = api::Sessions { sessions: part.clone() }.encoded_len();
                assert!(bytes < PART_BYTES + 10_000, "{bytes}");
            }
            assert_eq!(parts.concat(), all);
        }
    }

    /// The loop is asked for one gateway after the other, each once the part before it was read; what it refuses is told as
    /// it said it.
    #[tokio::test]
    async fn all_gateways_sessions_come_in_parts_and_a_refusal_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control");
        let (calls, mut called) = mpsc::channel(8);
        let server = tokio::spawn(serve_control(UnixListener::bind(&path).unwrap(), calls));
        let daemon = tokio::spawn(async move {
            let ids = [1, 2, 3].map(|byte| GatewayId::from_bytes([byte; 16]));
            let mut asked = Vec::new();
            while let Some(Call { request, reply, .. }) = called.recv().await {
                let answer = match request {
                    Request::AllSessions(AllSessionsFrom(after)) => {
                        let mut left = ids.iter().filter(|id| after.is_none_or(|after| **id > after));
                        let id = *left.next().unwrap();
                        let one = api::ClusterSession { gateway_id: id.to_string(), ..Default::default() };
                        asked.push(after);
                        let count = if id == ids[1] { 0 } else { 600 };
                        let next = left.next().map(|_| AllSessionsFrom(Some(id)));
                        Ok(Reply::AllSessions(vec![one; count], next))
                    }
                    _ => Err(Status::failed_precondition("this daemon is in no cluster")),
                };
                let _ = reply.send(answer);
                if asked.len() == ids.len() {
                    return asked;
                }
            }
            asked
        });
        let mut client = super::super::connect_control(&path).await.unwrap();
        let refused = client.show_gateways(api::ShowRequest {}).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
        assert_eq!(refused.message(), "this daemon is in no cluster");
        let mut parts = client.list_all_sessions(api::ShowRequest {}).await.unwrap().into_inner();
        let mut told = Vec::new();
        while let Some(part) = parts.message().await.unwrap() {
            assert!(part.sessions.len() <= PART);
            told.extend(part.sessions.into_iter().map(|session| session.gateway_id));
        }
        let expected = [1, 3].map(|byte| vec![GatewayId::from_bytes([byte; 16]).to_string(); 600]).concat();
        assert_eq!(told, expected);
        let after = [1, 2].map(|byte| Some(GatewayId::from_bytes([byte; 16])));
        assert_eq!(daemon.await.unwrap(), [None, after[0], after[1]]);
        server.abort();
    }

    /// R7: in one message so much and no more, and the error says how to ask for it.
    #[tokio::test]
    async fn r7_what_does_not_fit_one_message_is_refused() {
        let parts = |count| futures::stream::iter(chopped(sessions(count, 1_000)).map(Ok));
        assert_eq!(in_one(parts(2_000), "sessions", "ListSessions").await.unwrap().len(), 2_000);
        let refused = in_one(parts(4_000), "sessions", "ListSessions").await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        assert!(refused.message().contains("ListSessions"), "{refused}");
    }
}
