//! A browser that is curl: it keeps cookies by the rules, follows redirects, and fills in forms.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::namespace::Namespace;
use crate::process::{Process, output};

use super::WEB_V4;

/// curl with a jar of its own.
pub struct Browser {
    namespace: Namespace,
    /// Its files begin so.
    files: PathBuf,
    headers: Vec<String>,
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

impl Browser {
    /// In that namespace; its files are named after `files`.
    pub fn new(namespace: &Namespace, files: &Path) -> Self {
        Self { namespace: namespace.clone(), files: files.to_owned(), headers: Vec::new() }
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
        fs::copy(self.file("jar"), with(&files, "jar")).expect("a jar");
        Self { namespace: namespace.clone(), files, headers: self.headers.clone() }
    }

    fn file(&self, end: &str) -> PathBuf {
        with(&self.files, end)
    }

    fn curl(&self) -> Command {
        let mut curl = self.namespace.command("curl");
        curl.args(["-sS", "-k", "-m", "60", "--connect-to", &format!("::{WEB_V4}:")]);
        curl.arg("-b").arg(self.file("jar"));
        if !self.headers.iter().any(|line| line.to_lowercase().starts_with("accept:")) {
            curl.args(["-H", "Accept: text/html,*/*"]);
        }
        for line in &self.headers {
            curl.args(["-H", line]);
        }
        curl
    }

    /// What comes, wherever it leads. `None`: nothing came.
    pub fn try_get(&self, url: &str) -> Option<Page> {
        self.run(&["-L", url])
    }

    #[track_caller]
    pub fn get(&self, url: &str) -> Page {
        self.try_get(url).unwrap_or_else(|| panic!("{url}: no answer"))
    }

    /// The first answer alone.
    #[track_caller]
    pub fn once(&self, url: &str) -> Page {
        self.run(&[url]).unwrap_or_else(|| panic!("{url}: no answer"))
    }

    /// With more arguments of curl, such as another method.
    #[track_caller]
    pub fn ask(&self, arguments: &[&str]) -> Page {
        self.run(arguments).unwrap_or_else(|| panic!("{arguments:?}: no answer"))
    }

    fn run(&self, arguments: &[&str]) -> Option<Page> {
        let mut curl = self.curl();
        curl.arg("-c").arg(self.file("jar"));
        curl.arg("-D").arg(self.file("head")).arg("-o").arg(self.file("body"));
        curl.args(["-w", "%{http_code} %{url_effective}"]).args(arguments);
        let said = output(curl, "");
        let (status, url) = said.stdout.split_once(' ')?;
        let status = status.parse().ok().filter(|status| *status != 0)?;
        let heads = fs::read_to_string(self.file("head")).ok()?.replace("\r\n", "\n");
        let head = heads.trim_end().rsplit("\n\n").next().unwrap_or_default().to_owned();
        let body = fs::read(self.file("body")).map(|body| String::from_utf8_lossy(&body).into_owned());
        let _ = fs::remove_file(self.file("body"));
        Some(Page { status, url: url.to_owned(), head, body: body.unwrap_or_default() })
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
        let host = page.url.split('/').take(3).collect::<Vec<_>>().join("/");
        let mut fields = page.hidden();
        fields.extend([("user".to_owned(), user.to_owned()), ("password".to_owned(), password.to_owned())]);
        let fields: Vec<String> = fields.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
        let mut arguments = vec!["-L".to_owned()];
        for field in fields {
            arguments.extend(["--data-urlencode".to_owned(), field]);
        }
        arguments.push(format!("{host}/.enforcer/login"));
        self.ask(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
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
        let jar = fs::read_to_string(self.file("jar")).ok()?;
        jar.lines().find_map(|line| {
            let fields: Vec<&str> = line.strip_prefix("#HttpOnly_").unwrap_or(line).split('\t').collect();
            let of_host = fields.first()?.trim_start_matches('.') == host;
            (of_host && *fields.get(5)? == name)
                .then(|| fields.get(6).copied().unwrap_or_default().to_owned())
        })
    }

    /// Puts a cookie into the jar, as if it had been there.
    pub fn plant(&self, host: &str, name: &str, value: &str) {
        let mut jar = fs::read_to_string(self.file("jar")).unwrap_or_default();
        jar.push_str(&format!("{host}\tFALSE\t/\tTRUE\t0\t{name}\t{value}\n"));
        fs::write(self.file("jar"), jar).expect("a jar");
    }

    /// Begins a download, which goes on until somebody ends it.
    pub fn download(&self, url: &str) -> Process {
        let mut curl = self.curl();
        curl.args(["-m", "600", "-N", url]);
        Process::start("download", curl, &self.file("download"), None)
    }

    /// How much of it has come.
    pub fn downloaded(&self) -> u64 {
        fs::metadata(self.file("download")).map_or(0, |about| about.len())
    }
}

fn with(files: &Path, end: &str) -> PathBuf {
    let mut name = files.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{end}"));
    files.with_file_name(name)
}
