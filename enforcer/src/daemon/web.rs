//! The web gateway's calls: what is asked becomes an event, what the registry answers becomes a record. And who is told of
//! ends.

mod gateways;

use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::UnixListener;

use anyhow::Context as _;
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

use crate::config::{self, Config};
use crate::control::{self, Caller, News, Reply, SessionsFrom, WebReply, WebRequest, api, web_words};
use crate::ocserv;
use crate::registry::{Event, NewWebSession, Request, Watch, WebAnswer, WebCause, WebRow, WebSession};
use crate::session::{WebDigest, WebKey, WebTokenRecord};

use super::checks::finding;
use super::{Answerer, Daemon, Input};

/// What may wait for a gateway beside an end of every session that there can be.
const NEWS: usize = 4_096;
/// How many sessions are told at once: others are answered in between.
const ROWS: usize = 1_024;

/// What the loop has of the web gateway.
pub(super) struct Web {
    /// Which run of the daemon this is.
    run: u64,
    random: std::fs::File,
    watches: Watches,
    gateways: gateways::Gateways,
    /// Why no gateway is served, though one is configured.
    unserved: Option<String>,
    waiting: BTreeMap<Request, Answerer>,
}

pub(super) use gateways::Found;

/// The streams of ends that are read, and by whom.
#[derive(Default)]
struct Watches {
    all: BTreeMap<Watch, (Caller, mpsc::Sender<News>)>,
    last: Watch,
}

/// The gateway's system user.
pub(super) fn user_of(web: &config::Web) -> anyhow::Result<u32> {
    let user = nix::unistd::User::from_name(&web.user)
        .with_context(|| format!("[web] user = {:?} cannot be looked up", web.user))?;
    let user = user.with_context(|| {
        format!(
            "[web] user = {:?}: there is no such system user; make it (useradd --system --no-create-home {}), or name \
             another one",
            web.user, web.user
        )
    })?;
    Ok(user.uid.as_raw())
}

/// The gateway's socket and its user, where one is configured.
pub(super) fn bind(config: &Config) -> anyhow::Result<Option<(UnixListener, u32)>> {
    let Some(web) = &config.web else { return Ok(None) };
    let uid = user_of(web)?;
    Ok(Some((control::bind_for(&web.socket, uid)?, uid)))
}

impl Watches {
    /// A further one, and where its news come out; `most` may wait there.
    fn begin(&mut self, whose: Caller, most: usize) -> (Watch, mpsc::Receiver<News>) {
        // room is taken as it is needed
        let (sender, news) = mpsc::channel(most);
        self.last += 1;
        self.all.insert(self.last, (whose, sender));
        (self.last, news)
    }

    /// Another process reads it.
    fn is_anothers(&self, watch: Watch, caller: Caller) -> bool {
        self.all.get(&watch).is_some_and(|(whose, _)| *whose != caller)
    }

    /// False: it does not read, or is gone; it is forgotten, and its stream ends.
    #[must_use]
    fn tell(&mut self, watch: Watch, news: News) -> bool {
        let told = self.all.get(&watch).is_some_and(|(_, sender)| sender.try_send(news).is_ok());
        told || self.all.remove(&watch).is_none()
    }

    /// It is told nothing any more, and hears so.
    fn end(&mut self, watch: Watch) {
        self.all.remove(&watch);
    }
}

impl Web {
    pub(super) fn new() -> anyhow::Result<Self> {
        let mut random = std::fs::File::open("/dev/urandom").context("/dev/urandom")?;
        let mut run = [0; 8];
        random.read_exact(&mut run).context("/dev/urandom")?;
        Ok(Self {
            run: u64::from_ne_bytes(run),
            random,
            watches: Watches::default(),
            gateways: gateways::Gateways::default(),
            unserved: None,
            waiting: BTreeMap::new(),
        })
    }

    fn key(&mut self) -> Result<WebKey, Status> {
        let mut key = [0; 16];
        self.random
            .read_exact(&mut key)
            .map_err(|error| Status::internal(format!("/dev/urandom: {error}")))?;
        Ok(WebKey::from_bytes(key))
    }
}

impl Daemon {
    /// The VPN part does its work without a web gateway.
    pub(super) fn web_unserved(&mut self, error: &anyhow::Error) {
        tracing::error!("web: NO gateway is served: {error:#}");
        self.web.unserved = Some(format!("{error:#}"));
    }

    pub(super) fn call_web(&mut self, request: WebRequest, caller: Caller, reply: Answerer) {
        match self.web_event(request, caller) {
            Ok(Asked::Event(make)) => {
                let request = self.next_request;
                self.next_request += 1;
                self.web.waiting.insert(request, reply);
                self.handle(make(request));
            }
            Ok(Asked::Login(new)) => {
                let request = self.next_request;
                self.next_request += 1;
                self.web.waiting.insert(request, reply);
                self.web_login(request, new);
            }
            Ok(Asked::Told(event)) => {
                self.handle(*event);
                let _ = reply.send(Ok(Reply::Web(WebReply::Done)));
            }
            Ok(Asked::Answered(answer)) => {
                let _ = reply.send(Ok(Reply::Web(answer)));
            }
            Ok(Asked::Watch) => self.web_watch(caller, reply),
            Err(status) => {
                let _ = reply.send(Err(status));
            }
        }
    }

    fn web_event(&mut self, request: WebRequest, caller: Caller) -> Result<Asked, Status> {
        if tells_of_a_session(&request) && !self.may_be_told(caller) {
            return Err(Status::unavailable(
                "no session is told of to a gateway that would not hear of its end: read the stream of ends first",
            ));
        }
        Ok(match request {
            WebRequest::Create(request) => {
                let realms = self.config.web.as_ref().map(|web| web.realms.as_slice()).unwrap_or_default();
                let asked = web_words::read_create(request, realms)?;
                let new = Box::new(NewWebSession {
                    key: self.web.key()?,
                    realm: asked.realm,
                    user: asked.user,
                    peer: asked.peer,
                    agent: asked.agent,
                    idle: asked.idle,
                    lasts: asked.lasts,
                    token: asked.token,
                });
                Asked::Login(new)
            }
            WebRequest::AddToken(api::WebAddToken { known, host, digest, wrapped }) => {
                let known = web_words::read_digest(&known)?;
                let token = Box::new(web_words::read_token(host, &digest, wrapped)?);
                Asked::event(move |request| Event::WebAddToken { request, known, token })
            }
            WebRequest::Rewrap(api::WebRewrap { digest, wrapped }) => {
                let digest = web_words::read_digest(&digest)?;
                let wrapped = web_words::read_wrapped(wrapped)?;
                let token = Box::new(WebTokenRecord { digest, host: String::new(), wrapped });
                Asked::event(move |request| Event::WebRewrap { request, token })
            }
            WebRequest::Check(api::WebToken { digest }) => {
                Asked::Answered(self.web_alive(&web_words::read_digest(&digest)?)?)
            }
            WebRequest::Seen(seen) => {
                Asked::Told(Box::new(Event::WebSeen { uses: web_words::read_seen(&seen)? }))
            }
            WebRequest::End(end) => {
                let (which, cause) = (web_words::read_which(&end)?, cause_of(end.cause())?);
                Asked::event(move |request| Event::WebEnd { request, which, cause })
            }
            WebRequest::Watch => Asked::Watch,
            WebRequest::Acknowledge(acknowledged)
                if self.web.watches.is_anothers(acknowledged.watch, caller) =>
            {
                return Err(Status::permission_denied(
                    "that stream is another gateway's, which says itself what it closed",
                ));
            }
            WebRequest::Acknowledge(acknowledged) => Asked::Told(Box::new(Event::WebAcknowledged {
                closed: web_words::read_closed(&acknowledged)?,
                watch: acknowledged.watch,
                listed: acknowledged.listed,
            })),
        })
    }

    fn web_alive(&self, digest: &WebDigest) -> Result<WebReply, Status> {
        let now = super::now();
        let session = self.registry.web_session_of(digest, now).ok_or_else(gone)?;
        let token = session.tokens.get(digest).ok_or_else(gone)?;
        Ok(WebReply::Alive(Box::new(self.alive(session, token))))
    }

    fn alive(&self, session: &WebSession, token: &WebTokenRecord) -> api::WebAlive {
        api::WebAlive {
            key: session.key.as_bytes().to_vec(),
            user: session.user.clone(),
            realm: session.identity.realm.clone(),
            host: token.host.clone(),
            wrapped: token.wrapped.clone(),
            since: session.since,
            until: session.until(super::now()),
            idle_seconds: session.idle.as_secs(),
            moment: Some(self.web_moment(self.registry.web_ends())),
            name: session.identity.name.clone(),
        }
    }

    fn web_moment(&self, ends: u64) -> api::WebMoment {
        api::WebMoment { run: self.web.run, ends }
    }

    pub(super) fn web_answer(&mut self, request: Request, answer: WebAnswer) {
        let Some(reply) = self.web.waiting.remove(&request) else { return };
        let answer = match answer {
            WebAnswer::Alive(digest) => self.web_alive(&digest),
            WebAnswer::Done => Ok(WebReply::Done),
            WebAnswer::Gone => Err(gone()),
            WebAnswer::Locked(number) => {
                Err(Status::permission_denied(format!("the user is locked (lock {number})")))
            }
            WebAnswer::Taken => Err(Status::already_exists("that token is a session's already")),
            WebAnswer::Full(why) => Err(Status::resource_exhausted(why)),
            WebAnswer::Unwritten(why) => Err(Status::unavailable(format!("it could not be written: {why}"))),
        };
        let _ = reply.send(answer.map(Reply::Web));
    }

    /// Whoever asked has gone.
    pub(super) fn web_asks_no_more(&self, request: Request) -> bool {
        self.web.waiting.get(&request).is_none_or(Answerer::is_closed)
    }

    /// It was not created.
    pub(super) fn web_refuse(&mut self, request: Request, status: Status) {
        if let Some(reply) = self.web.waiting.remove(&request) {
            let _ = reply.send(Err(status));
        }
    }

    fn web_watch(&mut self, caller: Caller, reply: Answerer) {
        let most = self.config.web.as_ref().map_or(0, |web| web.max_sessions as usize);
        let (watch, news) = self.web.watches.begin(caller, most + NEWS);
        let (reading, ended) = oneshot::channel::<()>();
        let inputs = self.inputs.clone();
        tokio::spawn(async move {
            // nothing is ever sent: it ends with the stream
            let _ = ended.await;
            let _ = inputs.send(Input::Event(Event::WebWatchGone { watch })).await;
        });
        let gateway = self.web_gateway(caller);
        self.handle(Event::WebWatch { watch, gateway });
        let _ = reply.send(Ok(Reply::Web(WebReply::Watch(news, reading))));
    }

    pub(super) fn web_listed(&mut self, watch: Watch, keys: Vec<WebKey>, ends: u64) {
        self.note("web", format!("a web gateway is connected ({} sessions)", keys.len()));
        self.web_news(watch, News::List { watch, keys, moment: self.web_moment(ends) });
    }

    pub(super) fn web_ended(&mut self, watch: Watch, key: WebKey, cause: WebCause, ends: u64) {
        let cause = api_cause(cause).into();
        self.web_news(watch, News::Ended(api::WebEnded { key: key.as_bytes().to_vec(), cause, ends }));
    }

    fn web_news(&mut self, watch: Watch, news: News) {
        if !self.web.watches.tell(watch, news) {
            self.handle(Event::WebWatchGone { watch });
        }
    }

    /// What the rules say of streams and gateways that have ended is forgotten here as well.
    pub(super) fn web_before(&mut self, event: &Event) {
        match event {
            Event::WebWatchGone { watch } => self.web_break(*watch),
            Event::WebGatewayGone { id } => self.web.gateways.forget(*id),
            _ => {}
        }
    }

    pub(super) fn web_break(&mut self, watch: Watch) {
        self.web.watches.end(watch);
    }

    /// Some of them, and where to go on.
    pub(super) fn web_sessions_after(
        &self,
        after: Option<WebKey>,
    ) -> (Vec<api::SessionInfo>, Option<SessionsFrom>) {
        let rows = self.registry.web_rows_after(after, ROWS, super::now());
        let last = rows.last().filter(|_| rows.len() == ROWS).map(|row| row.key);
        (rows.iter().map(row).collect(), last.map(|last| SessionsFrom::Web(Some(last))))
    }

    pub(super) fn web_status(&self) -> Option<api::WebStatus> {
        let sessions = self.registry.web_count() as u64;
        let web = self.config.web.as_ref();
        if web.is_none() && sessions == 0 {
            return None;
        }
        let (gateways, unacknowledged) = self.registry.web_watches();
        Some(api::WebStatus {
            socket: web.map(|web| web.socket.display().to_string()).unwrap_or_default(),
            gateways: u32::try_from(gateways).unwrap_or(u32::MAX),
            sessions,
            most: web.map_or(0, |web| web.max_sessions.into()),
            unacknowledged: unacknowledged as u64,
            trouble: self.web.unserved.clone().unwrap_or_default(),
            away: self.registry.web_away().iter().map(|name| name.to_string()).collect(),
        })
    }

    pub(super) fn web_findings(&self) -> Vec<api::Finding> {
        let Some(web) = &self.config.web else {
            let left = self.registry.web_count();
            return if left == 0 { Vec::new() } else { vec![unserved(left)] };
        };
        if let Some(why) = &self.web.unserved {
            let text = format!("web: NO gateway is served: {why}");
            return vec![finding(
                "error",
                text,
                "mend that, and restart the daemon; the VPN part does its work",
            )];
        }
        let mut findings = vec![socket_finding(web)];
        findings.extend(self.registry.web_away().into_iter().map(|name| {
            finding(
                "error",
                format!("web: {name} runs, and does not read of ends: what it has in hand may go on"),
                "does it hang? restart it",
            )
        }));
        let (gateways, _) = self.registry.web_watches();
        findings.push(if gateways > 0 {
            finding(
                "ok",
                format!("web: {gateways} gateway connected, {} sessions", self.registry.web_count()),
                "",
            )
        } else {
            finding(
                "warning",
                "web: no gateway is connected: nobody gets to the web applications",
                "is `enforcer gateway` running, as the user that [web] user names?",
            )
        });
        let (used, most) = (self.registry.web_count(), web.max_sessions as usize);
        if used * 10 >= most * 9 {
            findings.push(finding(
                "warning",
                format!("web: {used} of {most} sessions: at {most} nobody else can log in"),
                "raise [web] max-sessions",
            ));
        }
        findings
    }
}

/// What a call comes to.
enum Asked {
    /// The registry answers, and the other gateways may have a say.
    Login(Box<NewWebSession>),
    /// The registry answers.
    Event(Box<dyn FnOnce(Request) -> Event>),
    /// There is no more to be said.
    Told(Box<Event>),
    Answered(WebReply),
    Watch,
}

impl Asked {
    fn event(make: impl FnOnce(Request) -> Event + 'static) -> Self {
        Self::Event(Box::new(make))
    }
}

/// Whoever asks that may have something of a session in hand from then on.
fn tells_of_a_session(request: &WebRequest) -> bool {
    match request {
        WebRequest::Create(_) | WebRequest::AddToken(_) | WebRequest::Rewrap(_) | WebRequest::Check(_) => {
            true
        }
        WebRequest::Seen(_) | WebRequest::End(_) | WebRequest::Watch | WebRequest::Acknowledge(_) => false,
    }
}

fn gone() -> Status {
    Status::not_found("no such web session, or it is over")
}

/// Whether the socket is what the gateway needs, and no more.
pub(super) fn socket_finding(web: &config::Web) -> api::Finding {
    let socket = web.socket.display();
    let wanted = match user_of(web) {
        Ok(uid) => uid,
        Err(error) => {
            return finding("error", format!("web: {error:#}"), "make the user, and restart the daemon");
        }
    };
    let restart = "restart the daemon, which makes it anew";
    match std::fs::symlink_metadata(&web.socket) {
        Err(error) => finding("error", format!("web: {socket}: {error}"), restart),
        Ok(about) if !about.file_type().is_socket() => {
            finding("error", format!("web: {socket} is no socket"), restart)
        }
        Ok(about) if about.uid() != wanted || about.mode() & 0o777 != 0o600 => finding(
            "error",
            format!(
                "web: {socket} is of user {} with mode {:o}, and has to be of {} with mode 600",
                about.uid(),
                about.mode() & 0o777,
                web.user
            ),
            restart,
        ),
        Ok(_) => finding("ok", format!("web: {socket} is there for user {}", web.user), ""),
    }
}

fn unserved(left: usize) -> api::Finding {
    finding(
        "warning",
        format!("web: {left} web sessions are left of a time when [web] was configured"),
        "they end by their time, or by `enforcer terminate`",
    )
}

fn cause_of(cause: api::WebCause) -> Result<WebCause, Status> {
    match cause {
        api::WebCause::Logout => Ok(WebCause::Logout),
        api::WebCause::ChangedUser => Ok(WebCause::ChangedUser),
        api::WebCause::BackChannel => Ok(WebCause::BackChannel),
        api::WebCause::Idle => Ok(WebCause::Idle),
        api::WebCause::Over => Ok(WebCause::Over),
        api::WebCause::Revoked | api::WebCause::Unspecified => Err(Status::invalid_argument(
            "a gateway ends a session by logout, changed user, back channel or time",
        )),
    }
}

fn api_cause(cause: WebCause) -> api::WebCause {
    match cause {
        WebCause::Logout => api::WebCause::Logout,
        WebCause::ChangedUser => api::WebCause::ChangedUser,
        WebCause::BackChannel => api::WebCause::BackChannel,
        WebCause::Idle => api::WebCause::Idle,
        WebCause::Over => api::WebCause::Over,
        WebCause::Revoked => api::WebCause::Revoked,
    }
}

/// A web session as people see it.
pub(super) fn row(row: &WebRow) -> api::SessionInfo {
    api::SessionInfo {
        server: "web".into(),
        user: ocserv::printable(&row.user),
        client: ocserv::printable(&row.peer),
        since: row.since,
        state: "live".into(),
        web: row.key.to_string(),
        realm: row.realm.clone(),
        hosts: row.hosts.iter().map(|host| ocserv::printable(host)).collect(),
        agent: ocserv::printable(&row.agent),
        seen: row.seen,
        until: row.until,
        ..api::SessionInfo::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended() -> News {
        News::Ended(api::WebEnded::default())
    }

    fn caller(pid: i32) -> Caller {
        Caller { uid: 7, pid: Some(pid) }
    }

    /// R6: nobody says for another process what that has closed.
    #[test]
    fn r6_a_stream_is_of_the_process_that_reads_it() {
        let mut watches = Watches::default();
        let (watch, _news) = watches.begin(caller(1), 2);
        assert!(watches.is_anothers(watch, caller(2)) && !watches.is_anothers(watch, caller(1)));
        watches.end(watch);
        assert!(!watches.is_anothers(watch, caller(2)), "it is nobody's any more");
    }

    /// A stream that nobody reads any more, one that is full and one that was ended are forgotten, whoever noticed first;
    /// the other one goes on.
    #[test]
    fn a_watch_that_is_gone_is_forgotten() {
        let mut watches = Watches::default();
        let streams: Vec<_> = (0..4).map(|_| watches.begin(caller(1), 2)).collect();
        let [(gone, dropped), (full, _full), (broken, mut heard), (lives, mut news)] =
            <[_; 4]>::try_from(streams).unwrap();
        drop(dropped);
        assert!(!watches.tell(gone, ended()), "that it is gone is told once");
        assert!(watches.tell(gone, ended()), "and it is not known any more");
        assert!(watches.tell(full, ended()) && watches.tell(full, ended()) && !watches.tell(full, ended()));
        watches.end(broken);
        assert!(heard.try_recv().is_err() && heard.is_closed(), "its stream ends");
        assert!(watches.tell(broken, ended()));
        assert_eq!(watches.all.len(), 1);
        assert!(watches.tell(lives, ended()) && news.try_recv().is_ok());
    }
}
