//! Chromium, driven by `tests/browser/driver.mjs`: one order a line, one answer a line.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::lab::Shared;
use crate::namespace::Namespace;
use crate::web::{Papers, installed, sources};

/// Longer than the driver itself waits for anything, so that its answer says what did not come.
const BOUND: Duration = Duration::from_secs(120);

/// The driver, with a Chromium if one was started. Dropped: both end.
pub struct Browser {
    talk: Mutex<Talk>,
}

struct Talk {
    driver: Child,
    orders: Option<ChildStdin>,
    answers: Receiver<String>,
}

/// A page that was loaded.
#[derive(Clone, Debug, Deserialize)]
pub struct Loaded {
    pub url: String,
    pub status: u16,
    pub title: String,
    /// `h2` or `http/1.1`.
    pub protocol: String,
}

/// A cookie in somebody's browser.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct Cookie {
    pub name: String,
    pub value: String,
    pub domain: String,
    pub path: String,
    #[serde(rename = "httpOnly")]
    pub http_only: bool,
    pub secure: bool,
}

impl Browser {
    /// The driver alone, in this namespace: enough for [`Browser::connect`].
    pub fn driver(namespace: &Namespace, shared: &Shared) -> Self {
        let home = shared.scratch("browser");
        let mut command = namespace.command("node");
        command.arg(sources().join("driver.mjs")).arg(installed("browser"));
        // whatever they leave, they leave in the lab's folder
        command.env("HOME", &home).env("TMPDIR", &home).env_remove("DISPLAY");
        let log = std::fs::File::create(shared.work().join("browser.log")).expect("a log file");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        let mut driver = command.spawn().unwrap_or_else(|error| panic!("cannot start node: {error}"));
        let orders = driver.stdin.take();
        let output = driver.stdout.take().expect("a piped output");
        let (send, answers) = channel();
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        Self { talk: Mutex::new(Talk { driver, orders, answers }) }
    }

    /// With a Chromium that finds these hosts at these addresses, and no other, and believes these papers alone.
    pub fn start(
        namespace: &Namespace,
        shared: &Shared,
        hosts: &[(&str, Ipv4Addr)],
        papers: &Papers,
    ) -> Self {
        Self::believing(namespace, shared, hosts, &[papers.pin()])
    }

    /// The same with the public keys that it believes ([`Papers::pin`]).
    pub fn believing(
        namespace: &Namespace,
        shared: &Shared,
        hosts: &[(&str, Ipv4Addr)],
        keys: &[String],
    ) -> Self {
        let browser = Self::driver(namespace, shared);
        let hosts: serde_json::Map<String, Value> =
            hosts.iter().map(|(host, address)| ((*host).to_owned(), json!(address.to_string()))).collect();
        browser
            .order(json!({ "do": "start", "chromium": "/usr/bin/chromium", "hosts": hosts, "keys": keys }));
        browser
    }

    /// The browser of somebody, with no cookies in it.
    pub fn open(&self, name: &str) -> Person<'_> {
        self.order(json!({ "do": "open", "page": name }));
        Person { browser: self, name: name.to_owned() }
    }

    /// An HTTP/2 connection of the driver's own to this host at this address: no browser puts two people on one.
    pub fn connect(&self, host: &str, address: Ipv4Addr, papers: &Papers) -> Connection<'_> {
        let name = host.to_owned();
        let protocol = self.order(json!({
            "do": "connect", "connection": name, "host": host, "address": address.to_string(),
            "authority": papers.certificate(),
        }));
        assert_eq!(protocol, "h2");
        Connection { browser: self, name }
    }

    #[track_caller]
    fn order(&self, order: Value) -> Value {
        let said = order.to_string();
        self.try_order(&order).unwrap_or_else(|error| panic!("{said}\n{error}"))
    }

    fn try_order(&self, order: &Value) -> Result<Value, String> {
        let mut talk = self.talk.lock().unwrap_or_else(PoisonError::into_inner);
        let orders = talk.orders.as_mut().ok_or("the driver was ended")?;
        writeln!(orders, "{order}").map_err(|error| format!("the driver takes no order: {error}"))?;
        let line = talk
            .answers
            .recv_timeout(BOUND)
            .map_err(|error| format!("the driver does not answer ({error}): see browser.log"))?;
        let mut answer: Value = serde_json::from_str(&line).map_err(|error| format!("{error}: {line}"))?;
        match answer.get("error") {
            Some(error) => Err(error.as_str().unwrap_or_default().to_owned()),
            None => Ok(answer["ok"].take()),
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let talk = self.talk.get_mut().unwrap_or_else(PoisonError::into_inner);
        // it ends with its input, and takes Chromium along; what stays is killed with the lab
        talk.orders = None;
        let end = Instant::now() + Duration::from_secs(5);
        while Instant::now() < end && matches!(talk.driver.try_wait(), Ok(None)) {
            thread::sleep(Duration::from_millis(5));
        }
        let _ = talk.driver.kill();
        let _ = talk.driver.wait();
    }
}

/// Somebody at a browser.
pub struct Person<'a> {
    browser: &'a Browser,
    name: String,
}

impl<'a> Person<'a> {
    /// A further page in the same browser.
    pub fn tab(&self, name: &str) -> Person<'a> {
        self.browser.order(json!({ "do": "tab", "page": name, "of": self.name }));
        Person { browser: self.browser, name: name.to_owned() }
    }

    #[track_caller]
    fn order(&self, mut order: Value) -> Value {
        order["page"] = json!(self.name);
        self.browser.order(order)
    }

    #[track_caller]
    fn loaded(&self, order: Value) -> Loaded {
        serde_json::from_value(self.order(order)).expect("what was loaded")
    }

    #[track_caller]
    pub fn goto(&self, url: &str) -> Loaded {
        self.loaded(json!({ "do": "goto", "url": url }))
    }

    /// Whether the page has such an element (CSS).
    #[track_caller]
    pub fn has(&self, selector: &str) -> bool {
        self.order(json!({ "do": "has", "selector": selector })) == true
    }

    /// What stands in the first such element; waits until there is one.
    #[track_caller]
    pub fn text(&self, selector: &str) -> String {
        let text = self.order(json!({ "do": "text", "selector": selector }));
        text.as_str().expect("a text").to_owned()
    }

    #[track_caller]
    pub fn fill(&self, selector: &str, value: &str) {
        self.order(json!({ "do": "fill", "selector": selector, "value": value }));
    }

    /// Clicks what leads to another page, and waits for that.
    #[track_caller]
    pub fn submit(&self, selector: &str) -> Loaded {
        self.loaded(json!({ "do": "submit", "selector": selector }))
    }

    /// The cookies that would go to this address.
    #[track_caller]
    pub fn cookies(&self, url: &str) -> Vec<Cookie> {
        serde_json::from_value(self.order(json!({ "do": "cookies", "url": url }))).expect("cookies")
    }

    /// Puts a cookie into the browser, as somebody does who stole it.
    #[track_caller]
    pub fn put(&self, cookie: &Cookie) {
        let cookie = json!({
            "name": cookie.name, "value": cookie.value, "domain": cookie.domain, "path": cookie.path,
            "httpOnly": cookie.http_only, "secure": cookie.secure,
        });
        self.order(json!({ "do": "add_cookies", "cookies": [cookie] }));
    }

    /// Runs a script in the page, as the body of an async function; gives what it returns.
    #[track_caller]
    pub fn run(&self, script: &str) -> Value {
        self.order(json!({ "do": "run", "script": script }))
    }

    /// Waits until an expression in the page is true.
    #[track_caller]
    pub fn wait(&self, expression: &str) {
        self.order(json!({ "do": "wait", "script": expression }));
    }

    /// What the window shows, as PNG.
    #[track_caller]
    pub fn screenshot(&self, file: &Path) {
        self.order(json!({ "do": "screenshot", "file": file }));
    }
}

impl Drop for Person<'_> {
    fn drop(&mut self) {
        if !thread::panicking() {
            // the page may have ended with its browser
            let _ = self.browser.try_order(&json!({ "do": "close", "page": self.name }));
        }
    }
}

/// One HTTP/2 connection, on which whoever likes may ask.
pub struct Connection<'a> {
    browser: &'a Browser,
    name: String,
}

/// What came on a stream up to now.
#[derive(Clone, Debug, Deserialize)]
pub struct Stream {
    pub bytes: u64,
    /// The end of it.
    pub text: String,
    /// How it ended.
    pub over: Option<String>,
    /// How the whole connection ended.
    pub connection: Option<String>,
}

impl Connection<'_> {
    /// Asks with these fields; gives the answer's status and fields as soon as they are there. `stream` names it.
    #[track_caller]
    pub fn ask(&self, stream: &str, path: &str, fields: &[(&str, &str)]) -> (u64, Value) {
        self.begin("ask", stream, path, fields)
    }

    #[track_caller]
    fn begin(&self, how: &str, stream: &str, path: &str, fields: &[(&str, &str)]) -> (u64, Value) {
        let fields: serde_json::Map<String, Value> =
            fields.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
        let mut answer = self.browser.order(json!({
            "do": how, "connection": self.name, "stream": stream, "path": path, "headers": fields,
        }));
        (answer["status"].as_u64().expect("a status"), answer["fields"].take())
    }

    /// Opens a WebSocket on a stream of its own (RFC 8441); gives the answer's status.
    #[track_caller]
    pub fn socket(&self, stream: &str, path: &str, fields: &[(&str, &str)]) -> u64 {
        let (status, _) = self.begin("socket", stream, path, fields);
        status
    }

    /// Sends a text on a WebSocket. Nobody says whether it arrives.
    #[track_caller]
    pub fn send(&self, stream: &str, text: &str) {
        self.browser.order(json!({ "do": "send", "connection": self.name, "stream": stream, "text": text }));
    }

    #[track_caller]
    pub fn stream(&self, stream: &str) -> Stream {
        let stream = self.browser.order(json!({ "do": "stream", "connection": self.name, "stream": stream }));
        serde_json::from_value(stream).expect("a stream")
    }
}
