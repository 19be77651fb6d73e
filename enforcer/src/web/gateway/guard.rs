//! The guard: each request is let in for a session, its cookies are opened, and the answer's are sealed.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::{Instant, SystemTime};

use hyper::Method;
use hyper::body::Bytes;
use hyper::header::{ACCEPT, COOKIE, HeaderValue, SET_COOKIE, USER_AGENT};
use hyper::http::{Response, StatusCode, request, response};

use crate::config::gateway::LOGOUT_PATHS;
use crate::web::learned::Keeper;
use crate::web::link::{Cause, Link};
use crate::web::oidc::Oidc;
use crate::web::proxy::{Admission, Asked, Guard, Origin, SessionKey};
use crate::web::seal::{KeyFile, MasterKeys};
use crate::web::sealing::{Deletion, Now, Sealing, Why};

use super::codes::Codes;
use super::held::{Held, Secrets};
use super::page;
use super::passwords::Passwords;
use super::rules::{self, Rules};
use super::sessions::{Present, Who};
use super::wish::Wish;

/// Everything that a request is judged by.
pub struct Gateway {
    pub(super) rules: RwLock<Arc<Rules>>,
    pub(super) keys: KeyFile,
    /// The number of the key that wraps, as it was last seen.
    pub(super) newest: AtomicU32,
    pub(super) link: Link,
    pub(super) secrets: Arc<Secrets>,
    pub(super) learned: Keeper,
    pub(super) codes: Arc<Codes>,
    /// `None`: nobody logs in with a password.
    pub(super) passwords: Option<Arc<Passwords>>,
    /// `None`: no identity provider is asked.
    pub(super) oidc: Option<Arc<Oidc>>,
}

/// Browsers come by TLS, also where a server before us ends it: without it none would keep the session's cookie.
const SECURE: bool = true;

/// What the answer to a request needs.
pub struct Context(Box<Sealed>);

struct Sealed {
    held: Arc<Held>,
    rules: Arc<Rules>,
    host: String,
    path: String,
    deletions: Vec<Deletion>,
    /// The gateway's own.
    cookies: Vec<HeaderValue>,
}

/// The gateway's own answer in place of what was asked for.
pub(super) type Instead = Box<Response<Bytes>>;

impl Gateway {
    pub(super) fn rules(&self) -> Arc<Rules> {
        Arc::clone(&self.rules.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The master keys as they are now.
    pub(super) fn keys(&self) -> Arc<MasterKeys> {
        let (keys, trouble) = self.keys.look();
        if let Some(error) = trouble {
            tracing::error!("the master keys cannot be read, those from before stay: {error}");
        }
        let newest = keys.newest();
        if self.newest.swap(newest, Ordering::Relaxed) != newest {
            tracing::info!("the master keys were read: number {newest} wraps");
        }
        keys
    }

    async fn decide(&self, mut asked: Asked<'_>) -> Result<Admission<Context>, Instead> {
        let rules = self.rules();
        let named = rules.named(asked.reserved, asked.peer.socket.ip());
        if !rules.has(asked.host) {
            // whatever the proxy knows: without rules nothing passes
            return Err(Box::new(page::plain(StatusCode::NOT_FOUND, "There is no application here.")));
        }
        let path = asked.head.uri.path().to_owned();
        if let Some(own) = rules::own(&path) {
            return Err(Box::new(self.own(&mut asked, &rules, &named, own).await?));
        }
        if rules.is_logout(&path) {
            return Err(Box::new(self.logout(&mut asked, &rules).await));
        }
        let present = match self.who(&asked, &rules, &named, false).await? {
            Who::Known(present) => present,
            Who::Nobody => return Err(Box::new(self.send_to_login(&asked, &rules))),
        };
        if !present.cookies.is_empty() && is_navigating(asked.head) {
            // made just now: the browser has it before an application, which may not answer, is asked
            let wanted = asked.head.uri.path_and_query().map_or("/", |path| path.as_str());
            let here = page::redirect(&rules.address(asked.host, wanted));
            return Err(Box::new(page::with_cookies(here, present.cookies)));
        }
        let held = match self.held(&present).await {
            Ok(held) => held,
            Err(why) => {
                tracing::warn!(session = %present.session.key, "a session is ended, since its secret does not open: {why}");
                self.end(&present, Cause::Logout).await?;
                return Err(Box::new(self.send_to_login(&asked, &rules)));
            }
        };
        self.let_in(asked, rules, present, held)
    }

    /// Opens the request's cookies, and lets it through.
    fn let_in(
        &self,
        asked: Asked<'_>,
        rules: Arc<Rules>,
        present: Present,
        held: Arc<Held>,
    ) -> Result<Admission<Context>, Instead> {
        let Some(origin) = asked.origin else {
            return Err(Box::new(no_application(&asked, &rules, present)));
        };
        let path = asked.head.uri.path().to_owned();
        let headers = &mut asked.head.headers;
        let fields: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
        let learned = self.learned.read();
        let sealing = Sealing {
            sealer: &held.sealer,
            recent: &held.recent,
            policy: rules.policy(origin.name()).ok_or_else(|| unknown(origin))?,
            groups: &rules.groups,
            learned: &learned,
            host: asked.host.as_bytes(),
            path: path.as_bytes(),
            secure: SECURE,
        };
        let incoming = sealing.incoming(&fields, Instant::now());
        drop(learned);
        for stripped in &incoming.stripped {
            match stripped.why {
                // with every request, and after every login
                Why::Own | Why::OtherGroup | Why::Stale => {}
                why => tracing::info!(
                    session = %present.session.key,
                    origin = origin.name(),
                    "the cookie \"{}\" is kept from the application: {}",
                    stripped.name.escape_ascii(),
                    why.word()
                ),
            }
        }
        headers.remove(COOKIE);
        for field in incoming.fields {
            match HeaderValue::from_maybe_shared(Bytes::from(field)) {
                Ok(field) => headers.append(COOKIE, field),
                Err(_) => {
                    let text = "A cookie cannot be handed on to the application.";
                    return Err(Box::new(page::plain(StatusCode::BAD_REQUEST, text)));
                }
            };
        }
        rules.tell_user(headers, &present.session.name);
        let session = Some(SessionKey(*present.session.key.as_bytes()));
        let sealed = Sealed {
            held,
            host: asked.host.to_owned(),
            path,
            deletions: incoming.deletions,
            cookies: present.cookies,
            rules,
        };
        Ok(Admission::Forward { session, context: Context(Box::new(sealed)) })
    }

    async fn seal(
        &self,
        sealed: &mut Sealed,
        origin: &Origin,
        head: &mut response::Parts,
    ) -> Result<(), Instead> {
        if !head.headers.contains_key(SET_COOKIE) && sealed.deletions.is_empty() && sealed.cookies.is_empty()
        {
            return Ok(());
        }
        let refused =
            || Box::new(page::plain(StatusCode::BAD_GATEWAY, "The application's answer cannot be used."));
        let fields: Vec<&[u8]> = head.headers.get_all(SET_COOKIE).iter().map(HeaderValue::as_bytes).collect();
        let outgoing = {
            let learned = self.learned.read();
            let sealing = Sealing {
                sealer: &sealed.held.sealer,
                recent: &sealed.held.recent,
                policy: sealed.rules.policy(origin.name()).ok_or_else(|| unknown(origin))?,
                groups: &sealed.rules.groups,
                learned: &learned,
                host: sealed.host.as_bytes(),
                path: sealed.path.as_bytes(),
                secure: SECURE,
            };
            let now = Now { wall: SystemTime::now(), steady: Instant::now() };
            sealing.outgoing(&fields, &sealed.deletions, now)
        };
        let outgoing = outgoing.map_err(|error| {
            tracing::error!(origin = origin.name(), "an answer is not handed on: {error}");
            refused()
        })?;
        for note in &outgoing.notes {
            tracing::warn!(origin = origin.name(), "{note}");
        }
        if let Err(error) = self.learned.learn(outgoing.news).await {
            tracing::error!("an answer is not handed on: {error}");
            let text = "The gateway cannot write to its disk: tell its administrator.";
            return Err(Box::new(page::plain(StatusCode::SERVICE_UNAVAILABLE, text)));
        }
        let fields: Result<Vec<HeaderValue>, _> = outgoing
            .fields
            .into_iter()
            .map(|field| HeaderValue::from_maybe_shared(Bytes::from(field)))
            .collect();
        head.headers.remove(SET_COOKIE);
        page::append(&mut head.headers, fields.map_err(|_| refused())?);
        page::append(&mut head.headers, sealed.cookies.drain(..));
        Ok(())
    }

    /// What somebody is told who has no session here.
    fn send_to_login(&self, asked: &Asked<'_>, rules: &Rules) -> Response<Bytes> {
        if !is_for_a_person(asked.head) {
            return page::unauthorized(&rules.realm);
        }
        let wanted = asked.head.uri.path_and_query().map_or("/", |path| path.as_str());
        // what was posted is lost; to ask for its address would be another question
        let is_a_get = matches!(asked.head.method, Method::GET | Method::HEAD);
        self.begin(asked, rules, &Wish::new(if is_a_get { wanted } else { "/" }))
    }
}

/// Somebody with a session asks for what no application serves. A login host may have none at all.
fn no_application(asked: &Asked<'_>, rules: &Rules, present: Present) -> Response<Bytes> {
    let page = if asked.host == rules.login_host && asked.head.uri.path() == "/" {
        let main = format!(
            "<p>You are logged in as {}.</p>\n<p><a href=\"{}\">Log out</a></p>",
            page::escape(&present.session.user),
            LOGOUT_PATHS[0]
        );
        page::page(StatusCode::OK, "Logged in", &main)
    } else {
        page::plain(StatusCode::NOT_FOUND, "There is no application here.")
    };
    // of a session that was made just now as well
    page::with_cookies(page, present.cookies)
}

fn unknown(origin: &Origin) -> Instead {
    tracing::error!(
        origin = origin.name(),
        "there are no rules for this origin: this is a fault of the enforcer"
    );
    Box::new(page::plain(StatusCode::INTERNAL_SERVER_ERROR, "The gateway has no rules for this application."))
}

/// Whether a person looks at the answer: then it may be a page, or lead to one.
pub(super) fn is_for_a_person(head: &request::Parts) -> bool {
    let says = |name: &str| head.headers.get(name).map(HeaderValue::as_bytes);
    if says("x-requested-with").is_some() {
        return false;
    }
    match says("sec-fetch-mode") {
        Some(mode) => mode == b"navigate",
        None => {
            head.headers.get_all(ACCEPT).iter().any(|value| {
                value.to_str().is_ok_and(|value| value.to_ascii_lowercase().contains("text/html"))
            })
        }
    }
}

/// Whether it is surely a browser that goes to a page: it follows where it is sent, and has the cookie then. In a frame of
/// another site it would not.
fn is_navigating(head: &request::Parts) -> bool {
    let says = |name: &str, word: &str| head.headers.get(name).is_some_and(|said| said == word);
    matches!(head.method, Method::GET | Method::HEAD)
        && says("sec-fetch-mode", "navigate")
        && says("sec-fetch-dest", "document")
}

/// The browser's own word for itself.
pub(super) fn agent(head: &request::Parts) -> String {
    head.headers
        .get(USER_AGENT)
        .map(|agent| String::from_utf8_lossy(agent.as_bytes()).into_owned())
        .unwrap_or_default()
}

/// What the proxy has for a guard before there is one: it takes its ports while it is privileged, and the gateway's own
/// files are opened when it is not any more. Nothing is accepted in between.
#[derive(Default)]
pub struct Door(OnceLock<Gateway>);

impl Door {
    /// The guard, from now on.
    pub(super) fn open(&self, gateway: Gateway) {
        // it is opened once
        self.0.get_or_init(|| gateway);
    }

    pub(super) fn gateway(&self) -> Option<&Gateway> {
        self.0.get()
    }
}

impl Guard for Door {
    type Context = Context;

    async fn admit(&self, asked: Asked<'_>) -> Admission<Context> {
        match self.0.get() {
            Some(gateway) => {
                gateway.decide(asked).await.unwrap_or_else(|instead| Admission::Answer(*instead))
            }
            None => {
                let text = "The gateway is starting.";
                Admission::Answer(page::plain(StatusCode::SERVICE_UNAVAILABLE, text))
            }
        }
    }

    async fn outgoing(
        &self,
        context: &mut Context,
        origin: &Origin,
        head: &mut response::Parts,
    ) -> Result<(), Response<Bytes>> {
        match self.0.get() {
            Some(gateway) => gateway.seal(&mut context.0, origin, head).await.map_err(|instead| *instead),
            None => Ok(()),
        }
    }
}
