//! A browser that is curl: it keeps cookies, follows redirects, and fills in forms.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use crate::namespace::Namespace;
use crate::process::{Process, output};

use super::WEB_V4;

/// By host and name: values.
type Jar = BTreeMap<(String, String), String>;

/// curl with a jar of its own.
pub struct Browser {
    namespace: Namespace,
    /// Its files begin so.
    files: PathBuf,
    headers: Vec<String>,
    jar: Mutex<Jar>,
}

/// What came at the end of all redirects.
#[derive(Debug, Clone)]
pub struct Page {
    pub status: u16,
    /// Where it was found.
    pub url: String,
    /// The last answer's head.
    pub head: String,
    pub body: String,
}

impl Page {
    /// The first field of that name.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields(name).next()
    }

    pub fn fields(&self, name: &str) -> impl Iterator<Item = &str> {
        self.head.lines().filter_map(move |line| {
            let (other, value) = line.split_once(':')?;
            other.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }

    /// Whether it asks for a password.
    pub fn is_login(&self) -> bool {
        self.body.contains("type=\"password\"")
    }

    /// The fields of its form that nobody sees.
    pub fn hidden(&self) -> Vec<(String, String)> {
        let attribute = |tag: &str, name: &str| {
            let rest = tag.split_once(&format!(" {name}=\""))?.1;
            Some(unescape(rest.split_once('"')?.0))
        };
        self.body
            .split("<input")
            .skip(1)
            .filter(|tag| tag.contains("type=\"hidden\""))
            .filter_map(|tag| Some((attribute(tag, "name")?, attribute(tag, "value")?)))
            .collect()
    }

    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}\n{}\n{}", self.url, self.head, self.body);
        self
    }

    /// Whether the application, and not the gateway, has answered.
    pub fn is_of_the_app(&self) -> bool {
        self.status == 200 && self.body.starts_with("GET ")
    }

    /// The cookies that the application got.
    pub fn cookies(&self) -> String {
        let fields = self.body.lines().filter_map(|line| line.strip_prefix("cookie: "));
        fields.collect::<Vec<_>>().join("; ")
    }
}

fn unescape(text: &str) -> String {
    let plain = text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&#39;", "'");
    plain.replace("&amp;", "&")
}

/// How far it is led before something is wrong.
const HOPS: usize = 10;

impl Browser {
    /// In that namespace; its files are named after `files`.
    pub fn new(namespace: &Namespace, files: &Path) -> Self {
        Self {
            namespace: namespace.clone(),
            files: files.to_owned(),
            headers: Vec::new(),
            jar: Mutex::default(),
        }
    }

    /// Sends this header with every request.
    #[must_use]
    pub fn header(mut self, line: &str) -> Self {
        self.headers.push(line.to_owned());
        self
    }

    /// Sends this header with every request, in place of all others.
    #[must_use]
    pub fn only(mut self, line: &str) -> Self {
        self.headers = vec![line.to_owned()];
        self
    }

    /// Another one with the same cookies: a thief's.
    pub fn copy(&self, namespace: &Namespace, name: &str) -> Self {
        let files = self.files.with_file_name(name);
        let jar = Mutex::new(self.jar().clone());
        Self { namespace: namespace.clone(), files, headers: self.headers.clone(), jar }
    }

    fn jar(&self) -> std::sync::MutexGuard<'_, Jar> {
        self.jar.lock().expect("a jar")
    }

    fn file(&self, end: &str) -> PathBuf {
        let mut name = self.files.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{end}"));
        self.files.with_file_name(name)
    }

    fn curl(&self, url: &str) -> Command {
        let mut curl = self.namespace.command("curl");
        curl.args(["-sS", "-k", "-m", "60", "--connect-to", &format!(":443:{WEB_V4}:443")]);
        let cookies = self.cookies_of(host(url));
        if !cookies.is_empty() {
            curl.args(["-H", &format!("Cookie: {cookies}")]);
        }
        if !self.headers.iter().any(|line| line.to_lowercase().starts_with("accept:")) {
            curl.args(["-H", "Accept: text/html,*/*"]);
        }
        for line in &self.headers {
            curl.args(["-H", line]);
        }
        curl
    }

    fn cookies_of(&self, host: &str) -> String {
        let jar = self.jar();
        let ours = jar.iter().filter(|((of, _), _)| of == host);
        ours.map(|((_, name), value)| format!("{name}={value}")).collect::<Vec<_>>().join("; ")
    }

    /// What comes, wherever it leads. `None`: nothing came.
    pub fn try_get(&self, url: &str) -> Option<Page> {
        self.follow(self.run(&[url])?)
    }

    #[track_caller]
    pub fn get(&self, url: &str) -> Page {
        self.try_get(url).unwrap_or_else(|| panic!("{url}: no answer"))
    }

    /// The first answer alone.
    #[track_caller]
    pub fn once(&self, url: &str) -> Page {
        self.ask(&[url])
    }

    /// The same with more arguments of curl, such as another method. The address is the last one.
    #[track_caller]
    pub fn ask(&self, arguments: &[&str]) -> Page {
        self.run(arguments).unwrap_or_else(|| panic!("{arguments:?}: no answer"))
    }

    fn follow(&self, mut page: Page) -> Option<Page> {
        for _ in 0..HOPS {
            let Some(there) = page.field("location").filter(|_| (300..400).contains(&page.status)) else {
                return Some(page);
            };
            assert!(there.starts_with("https://"), "a whole address: {there}");
            page = self.run(&[there])?;
        }
        panic!("it leads nowhere: {page:?}");
    }

    fn run(&self, arguments: &[&str]) -> Option<Page> {
        let url = *arguments.last().expect("an address");
        let mut curl = self.curl(url);
        curl.arg("-D").arg(self.file("head")).arg("-o").arg(self.file("body"));
        curl.args(["-w", "%{http_code}"]).args(arguments);
        let status: u16 = output(curl, "").stdout.parse().ok().filter(|status| *status != 0)?;
        let heads = fs::read_to_string(self.file("head")).ok()?.replace("\r\n", "\n");
        // what comes before is a 100
        let head = heads.trim_end().rsplit("\n\n").next().unwrap_or_default().to_owned();
        let body = fs::read(self.file("body")).map(|body| String::from_utf8_lossy(&body).into_owned());
        let _ = fs::remove_file(self.file("body"));
        let page = Page { status, url: url.to_owned(), head, body: body.unwrap_or_default() };
        for field in page.fields("set-cookie") {
            self.keep(host(url), field);
        }
        Some(page)
    }

    /// As far as it is needed here: every cookie is its host's, below `/`. (curl 7.88 brings back what was deleted, since
    /// it reads its file once more at the end.)
    fn keep(&self, host: &str, field: &str) {
        let (pair, attributes) = field.split_once(';').unwrap_or((field, ""));
        let (name, value) = pair.split_once('=').expect("a cookie with a name");
        let attributes = attributes.to_lowercase();
        if name.starts_with("__Host-") {
            let is_one = attributes.contains("secure") && attributes.contains("path=/");
            assert!(is_one && !attributes.contains("domain="), "no browser takes it: {field}");
        }
        let key = (host.to_owned(), name.to_owned());
        if attributes.contains("max-age=0") {
            self.jar().remove(&key);
        } else {
            self.jar().insert(key, value.to_owned());
        }
    }

    /// Fills in the login page that an address leads to. What comes of it.
    #[track_caller]
    pub fn try_login(&self, url: &str, user: &str, password: &str) -> Page {
        let page = self.get(url);
        assert!(page.is_login(), "{url} leads to no login page: {page:?}");
        self.submit(&page, user, password)
    }

    /// Sends that page's form.
    #[track_caller]
    pub fn submit(&self, page: &Page, user: &str, password: &str) -> Page {
        let mut fields = page.hidden();
        fields.extend([("user".to_owned(), user.to_owned()), ("password".to_owned(), password.to_owned())]);
        let mut arguments = Vec::new();
        for (name, value) in fields {
            arguments.extend(["--data-urlencode".to_owned(), format!("{name}={value}")]);
        }
        arguments.push(format!("https://{}/.enforcer/login", host(&page.url)));
        let answer = self.ask(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        self.follow(answer).expect("an answer")
    }

    /// The same, and it must lead to the application.
    #[track_caller]
    pub fn login(&self, url: &str, user: &str, password: &str) -> Page {
        let page = self.try_login(url, user, password);
        assert!(page.is_of_the_app(), "{user} is not logged in: {page:?}");
        page
    }

    /// A cookie's value as the browser keeps it for that host.
    pub fn cookie(&self, host: &str, name: &str) -> Option<String> {
        self.jar().get(&(host.to_owned(), name.to_owned())).cloned()
    }

    /// Puts a cookie into the jar, as if it had been there.
    pub fn plant(&self, host: &str, name: &str, value: &str) {
        self.jar().insert((host.to_owned(), name.to_owned()), value.to_owned());
    }

    /// Begins a download, which goes on until somebody ends it.
    pub fn download(&self, url: &str) -> Process {
        let mut curl = self.curl(url);
        curl.args(["-m", "600", "-N", url]);
        Process::start("download", curl, &self.file("download"), None)
    }

    /// How much of it has come.
    pub fn downloaded(&self) -> u64 {
        fs::metadata(self.file("download")).map_or(0, |about| about.len())
    }
}

fn host(url: &str) -> &str {
    url.split('/').nth(2).unwrap_or_default()
}
