//! `enforcer gateway`, with the daemon and a VPN server beside it, as on a real gateway.

use std::fs;

use crate::enforcer::{Config, DONE, Enforcer, binary, quoted};
use crate::era::Era;
use crate::lab::Lab;
use crate::ocserv::{Ocserv, PASSWORD, Server};
use crate::process::{BOUND, Process, eventually, output};
use crate::receipt::list;
use crate::web::browser::Person;
use crate::web::script::{Ending, Front, PASSWORD_FIELD, USER_FIELD};
use crate::web::{APP, Papers, WEB_V4};

/// Whom the daemon's socket for the gateway is for.
const USER: &str = "nobody";

/// An application behind the gateway.
pub struct Behind<'a> {
    pub host: &'a str,
    pub to: &'a str,
    /// Cookies that its scripts must read.
    pub readable: &'a [&'a str],
}

/// The gateway's process and all that it needs. alice and bob may log in, with the password of the lab. The order of the
/// members is the order in which they end.
pub struct Gateway {
    process: Process,
    pub enforcer: Enforcer,
    _server: Server,
}

impl Gateway {
    /// Starts everything. `idle`: seconds after which an unused session ends.
    pub fn start(lab: &Lab, papers: &Papers, behind: &[Behind<'_>], idle: u32) -> Self {
        let ocserv = Ocserv::new(lab, Era::Bookworm, 0);
        let config = config(Config::new(&[&ocserv]), lab, papers, behind, idle);
        let mut enforcer = Enforcer::prepare(lab, &config);
        let server = enforcer.guard(ocserv).start();
        enforcer.start();
        let users = lab.work().join("web-users").display().to_string();
        for name in ["alice", "bob"] {
            enforcer.cli_with(&["passwd", "--file", &users, name], &format!("{PASSWORD}\n")).code(DONE);
        }
        let mut gateway = lab.gateway.command(&binary().display().to_string());
        gateway.args(["gateway", "--config"]).arg(enforcer.config());
        let process = Process::start("gateway", gateway, &lab.work().join("gateway.log"), None);
        let mut new = Self { process, enforcer, _server: server };
        eventually("the gateway answers", BOUND, || {
            if let Some(status) = new.process.exited() {
                panic!("the gateway ended ({status}):\n{}", new.process.log());
            }
            let mut curl = lab.gateway.command("curl");
            curl.args(["-sS", "-k", "-o", "/dev/null", "-w", "%{http_code}", "-m", "10"]);
            curl.args(["-H", &format!("Host: {APP}"), &format!("https://{WEB_V4}/")]);
            let code: u16 = output(curl, "").stdout.parse().unwrap_or(0);
            (200..500).contains(&code).then_some(())
        });
        new
    }

    pub fn pid(&self) -> nix::unistd::Pid {
        self.process.pid()
    }

    /// How many web sessions of this user the daemon shows.
    pub fn sessions(&self, user: &str) -> usize {
        let shown = self.enforcer.cli(&["show", "sessions", "--json"]).code(DONE).json;
        let web = list(&shown, "sessions").iter().filter(|session| session["server"] == "web");
        web.filter(|session| session["user"] == user).count()
    }
}

/// What the daemon and the gateway are told, in one file.
fn config(config: Config, lab: &Lab, papers: &Papers, behind: &[Behind<'_>], idle: u32) -> Config {
    let path = |name: &str| quoted(&lab.work().join(name).display().to_string());
    let origin = |one: &Behind<'_>| {
        format!("{{ host = {:?}, to = {:?}, readable = {:?} }}", one.host, one.to, one.readable)
    };
    let origins: Vec<_> = behind.iter().map(origin).collect();
    let certificate = format!("{{ certificate = {:?}, key = {:?} }}", papers.certificate(), papers.key());
    config
        .set("web", "socket", &path("web"))
        .set("web", "user", &quoted(USER))
        .set("gateway", "listen", &format!("[\"{WEB_V4}:443\"]"))
        .set("gateway", "redirect", &format!("[\"{WEB_V4}:80\"]"))
        .set("gateway", "certificates", &format!("[{certificate}]"))
        .set("gateway", "state", &path("gateway"))
        .set("gateway", "users-file", &path("web-users"))
        .set("gateway", "idle-timeout", &quoted(&format!("{idle}s")))
        .set("gateway", "origins", &format!("[{}]", origins.join(", ")))
}

impl Front for Gateway {
    fn host(&self) -> &str {
        APP
    }

    fn name(&self) -> &'static str {
        "enforcer"
    }

    fn sign_in(&self, person: &Person<'_>, user: &str, password: &str) {
        sign_in(person, user, password);
    }

    fn end(&self, person: &Person<'_>, user: &str, ending: Ending) {
        assert_eq!(self.sessions(user), 1, "{user} has a session at the gateway");
        match ending {
            Ending::Logout => {
                person.goto(&format!("https://{APP}/AGLogout"));
                assert_eq!(self.sessions(user), 0, "the logout was answered");
            }
            Ending::Idle => eventually(&format!("{user} was idle for too long"), BOUND * 2, || {
                (self.sessions(user) == 0).then_some(())
            }),
            Ending::Administrator => {
                self.enforcer.revoke(user);
            }
        }
    }
}

/// Fills in the gateway's own login page.
#[track_caller]
pub fn sign_in(person: &Person<'_>, user: &str, password: &str) {
    person.fill(USER_FIELD, user);
    person.fill(PASSWORD_FIELD, password);
    person.submit("button");
}
