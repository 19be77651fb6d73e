//! A proxy on two threads, with a guard that believes what the request says.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use enforcer::web::proxy::{
    Admission, Asked, Guard, Origin, OriginSettings, Peer, Proxy, SessionKey, Settings, Threads,
};
use hyper::body::Bytes;
use hyper::http::{Response, response};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::sync::Semaphore;

use super::{Http2, Papers, Raw};

/// `x-session: 7` is the session 7; without it a request is nobody's.
#[derive(Default)]
pub struct Watchman {
    /// Who is not let in any more.
    pub over: Mutex<HashSet<u8>>,
    /// What `/hold` waits for after it was decided, and the answers of what is below `/late/`. Those below `/refused/`
    /// are refused.
    pub held: Arc<Held>,
    pub peers: Mutex<Vec<Peer>>,
    /// Paths, and the status of their answers when the guard was asked about them.
    pub seen: Mutex<Vec<(String, u16)>>,
}

pub struct Held {
    pub arrived: Semaphore,
    pub go_on: Semaphore,
}

impl Default for Held {
    fn default() -> Self {
        Self { arrived: Semaphore::new(0), go_on: Semaphore::new(0) }
    }
}

impl Guard for Watchman {
    type Context = String;

    async fn admit(&self, mut asked: Asked<'_>) -> Admission<String> {
        self.peers.lock().unwrap().push(asked.peer);
        let answer = |status: u16, text: String| {
            Admission::Answer(Response::builder().status(status).body(Bytes::from(text)).unwrap())
        };
        let session =
            asked.head.headers.get("x-session").map(|value| value.to_str().unwrap().parse().unwrap());
        let path = asked.head.uri.path().to_owned();
        if path == "/gateway/form" {
            return match asked.body(64).await {
                Ok(body) => answer(200, format!("{} bytes for {}", body.len(), asked.host)),
                Err(error) => answer(400, error.to_string()),
            };
        }
        if session.is_some_and(|session| self.over.lock().unwrap().contains(&session)) {
            return answer(401, "who are you?".into());
        }
        if path == "/hold" {
            self.held.arrived.add_permits(1);
            self.held.go_on.acquire().await.unwrap().forget();
        }
        Admission::Forward { session: session.map(|session| SessionKey([session; 16])), context: path }
    }

    async fn outgoing(
        &self,
        context: &mut String,
        origin: &Origin,
        head: &mut response::Parts,
    ) -> Result<(), Response<Bytes>> {
        self.seen.lock().unwrap().push((context.clone(), head.status.as_u16()));
        if context.starts_with("/late/") {
            self.held.arrived.add_permits(1);
            self.held.go_on.acquire().await.unwrap().forget();
        }
        if context.starts_with("/refused/") {
            return Err(Response::builder().status(451).body("not this".into()).unwrap());
        }
        let said = format!("{} {context}", origin.name());
        head.headers.insert("x-guarded", said.parse().unwrap());
        Ok(())
    }
}

pub struct Gateway {
    pub proxy: Proxy<Watchman>,
    threads: Option<Threads>,
    pub papers: Papers,
}

impl Gateway {
    /// With these origins below the hosts that they are given for.
    pub fn new(origins: &[(&str, SocketAddr)]) -> Self {
        Self::with(origins, |_| {})
    }

    pub fn with(origins: &[(&str, SocketAddr)], change: impl FnOnce(&mut Settings)) -> Self {
        // both ends of all connections are in this process
        let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
        let papers = Papers::new();
        let anywhere = "127.0.0.1:0".parse().unwrap();
        let mut settings = Settings {
            listen: vec![anywhere],
            plain: vec![anywhere],
            redirect: vec![anywhere],
            certificates: vec![papers.issue("first", &["a.example", "*.a.example"])],
            ..Settings::default()
        };
        for (number, (place, address)) in origins.iter().enumerate() {
            let (host, path) = place.split_once('/').map_or((*place, ""), |(host, path)| (host, path));
            settings.origins.push(origin(&format!("o{number}"), host, &format!("/{path}"), *address));
        }
        change(&mut settings);
        let proxy = Proxy::bind(settings, Watchman::default()).unwrap();
        let threads = proxy.start(2).unwrap();
        Self { proxy, threads: Some(threads), papers }
    }

    pub fn tls(&self) -> SocketAddr {
        self.proxy.addresses().unwrap()[0]
    }

    pub fn plain(&self) -> SocketAddr {
        self.proxy.addresses().unwrap()[1]
    }

    pub fn redirect(&self) -> SocketAddr {
        self.proxy.addresses().unwrap()[2]
    }

    /// A client that writes bytes as it likes.
    pub async fn raw(&self) -> Raw {
        Raw::connect(self.plain()).await
    }

    pub async fn http2(&self) -> Http2 {
        Http2::connect(self.tls(), &self.papers, "a.example").await
    }

    /// Ends a session as the glue will: the guard knows first.
    pub async fn end(&self, session: u8) -> enforcer::web::proxy::Ended {
        self.proxy.guard().over.lock().unwrap().insert(session);
        self.proxy.end(SessionKey([session; 16])).await
    }
}

pub fn origin(name: &str, host: &str, path: &str, address: SocketAddr) -> OriginSettings {
    let text = format!("name = {name:?}\nhost = {host:?}\npath = {path:?}\naddress = \"http://{address}\"");
    toml::from_str(&text).unwrap()
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let proxy = self.proxy.clone();
        let threads = self.threads.take().unwrap();
        // a runtime of its own: the test's may be gone
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(proxy.drain(Duration::ZERO));
            threads.join().unwrap();
        })
        .join()
        .unwrap();
    }
}
