//! The web gateway under test: its process, the daemon beside it, small applications behind it, and browsers that are
//! curl.
//!
//! ```text
//! curl [alice's and bob's namespaces] ── enforcer gateway [gateway namespace] ── applications [the same, on 127.0.0.1]
//! ```

mod app;
mod browser;

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::PathBuf;

use nix::sys::signal::Signal;
use nix::unistd::{Pid, User};

use crate::enforcer::{Config, DONE, Enforcer, binary, quoted};
use crate::era::Era;
use crate::lab::{Lab, WAN};
use crate::ocserv::Ocserv;
use crate::process::{BOUND, Output, Process, command, eventually, output, succeed};
use crate::receipt::list;
use crate::scene::Scene;

pub use app::App;
pub use browser::{Browser, Page};

/// Where the gateway listens.
pub const WEB_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 80);
/// The hosts behind it.
pub const ONE: &str = "one.example.com";
pub const TWO: &str = "two.example.net";
/// Whom the gateway becomes, as the daemon knows it.
pub const USER: &str = "nobody";
/// Of everybody.
pub const PASSWORD: &str = "correct horse";

/// A guarded gateway with its web side. The order of the members is the order in which they end.
pub struct Portal {
    process: Option<Process>,
    pub one: App,
    pub two: App,
    pub scene: Scene,
}

impl Portal {
    /// With two applications, below [`ONE`] and [`TWO`]; alice and bob have passwords.
    #[track_caller]
    pub fn new(name: &str) -> Self {
        Self::with(name, |config| config)
    }

    /// The same with another configuration.
    #[track_caller]
    pub fn with(name: &str, change: impl FnOnce(Config) -> Config) -> Self {
        let mut lab = Lab::new(name);
        lab.gateway.ip(&format!("addr add {WEB_V4}/24 dev {WAN}\n"));
        let (one, two) = (App::start(&lab.gateway), App::start(&lab.gateway));
        let file = |name: &str| quoted(&lab.work().join(name).display().to_string());
        let certificate = format!("[{{ certificate = {}, key = {} }}]", file("crt.pem"), file("key.pem"));
        let origins = format!(
            "[{{ host = \"{ONE}\", to = \"http://127.0.0.1:{}\", readable = [\"csrf\"] }}, {{ host = \"{TWO}\", to = \
             \"http://127.0.0.1:{}\" }}]",
            one.port, two.port
        );
        // it listens on every address, and 443 is the gateway's
        let ocserv = Ocserv::new(&lab, Era::Bookworm, 0).port(4443);
        let config = Config::new(&[&ocserv])
            .set("web", "socket", &file("web"))
            .set("web", "user", &quoted(USER))
            .set("web", "socket-table", &file("sockets"))
            .set("gateway", "listen", &format!("[\"{WEB_V4}:443\"]"))
            .set("gateway", "redirect", &format!("[\"{WEB_V4}:80\"]"))
            .set("gateway", "certificates", &certificate)
            .set("gateway", "state", &file("gateway"))
            .set("gateway", "users-file", &file("web-users"))
            .set("gateway", "user-header", "\"X-Forwarded-User\"")
            .set("gateway", "origins", &origins);
        let mut enforcer = Enforcer::prepare(&lab, &change(config));
        let server = enforcer.guard(ocserv).start();
        enforcer.start();
        let (alice, bob) = (lab.client("alice"), lab.client("bob"));
        let scene = Scene { server, enforcer, alice, bob, lab };
        let mut new = Self { process: None, one, two, scene };
        new.papers();
        for user in ["alice", "bob"] {
            new.password(user, PASSWORD);
        }
        new.start();
        new
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.scene.lab.work().join(name)
    }

    /// A certificate for both hosts that nobody has to believe.
    fn papers(&self) {
        let names = format!("subjectAltName=DNS:{ONE},DNS:{TWO}");
        let script = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj /CN=web \
                      -addext \"$0\" -keyout key.pem -out crt.pem 2>openssl.log";
        let mut openssl = command("sh", ["-c", script, &names]);
        openssl.current_dir(self.file(""));
        succeed(openssl, "");
        // the gateway reads it again as itself
        self.share("key.pem");
    }

    /// Root's, and the gateway's group may read it.
    fn share(&self, name: &str) {
        let user = User::from_name(USER).expect("a user").expect("a user");
        let path = self.file(name);
        chown(&path, None, Some(user.gid.as_raw())).expect("chown");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("chmod");
    }

    /// `enforcer passwd`.
    #[track_caller]
    pub fn password(&self, user: &str, password: &str) {
        let users = self.file("web-users").display().to_string();
        let asked = ["passwd", "--file", &users, user];
        self.scene.enforcer.cli_with(&asked, &format!("{password}\n")).code(DONE);
        self.share("web-users");
    }

    /// Starts the gateway, and waits until it answers and is told of ends.
    #[track_caller]
    pub fn start(&mut self) {
        let process = Process::start("gateway", self.command(), &self.log_path(), None);
        self.process = Some(process);
        self.answers();
    }

    fn command(&self) -> std::process::Command {
        let mut command = self.scene.lab.gateway.command(&binary().display().to_string());
        command.args(["gateway", "--config"]).arg(self.scene.enforcer.config());
        command
    }

    /// Starts it, and it must end by itself.
    pub fn fails_to_start(&self) -> Output {
        output(self.command(), "")
    }

    /// Waits until somebody could log in.
    #[track_caller]
    pub fn answers(&mut self) {
        let browser = Browser::new(&self.scene.lab.gateway, &self.file("probe"));
        eventually("the gateway answers", BOUND, || {
            let process = self.process.as_mut()?;
            if let Some(status) = process.exited() {
                panic!("the gateway ended ({status}):\n{}", process.log());
            }
            (browser.try_get(&format!("https://{ONE}/.enforcer/login"))?.status == 200).then_some(())
        });
    }

    pub fn pid(&self) -> Pid {
        self.process.as_ref().expect("the gateway was stopped").pid()
    }

    pub fn signal(&self, signal: Signal) {
        if let Some(process) = &self.process {
            process.signal(signal);
        }
    }

    /// SIGTERM; its exit code.
    pub fn stop(&mut self) -> Option<i32> {
        self.process.take().and_then(|mut process| process.stop().code())
    }

    /// kill -9.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    pub fn log_path(&self) -> PathBuf {
        self.file("gateway.log")
    }

    pub fn log(&self) -> String {
        crate::process::read_log(&self.log_path())
    }

    /// A browser on alice's host, with nothing in it.
    pub fn browser(&self, name: &str) -> Browser {
        Browser::new(&self.scene.alice.namespace, &self.file(name))
    }

    /// A browser in which that user has just logged in.
    #[track_caller]
    pub fn logged_in(&self, user: &str) -> Browser {
        let browser = self.browser(user);
        browser.login(&format!("https://{ONE}/"), user, PASSWORD);
        browser
    }

    /// The web sessions of this user that the daemon shows.
    pub fn sessions(&self, user: &str) -> usize {
        let shown = self.scene.enforcer.cli(&["show", "sessions", "--json"]).code(DONE).json;
        let web = list(&shown, "sessions").iter().filter(|session| session["server"] == "web");
        web.filter(|session| session["user"] == user).count()
    }
}
