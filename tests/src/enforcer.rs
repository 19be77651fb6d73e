//! The daemon under test, by its command line alone.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::Value;

use crate::clock::Moment;
use crate::era::profile_folder;
use crate::lab::{LAN, Lab, Shared, WAN};
use crate::namespace::Namespace;
use crate::ocserv::Ocserv;
use crate::process::{BOUND, Output, Process, eventually, output};
use crate::receipt::Receipt;

/// The exit codes of the command line.
pub const DONE: i32 = 0;
pub const ERROR: i32 = 1;
pub const USAGE: i32 = 2;
pub const NOTHING_MATCHED: i32 = 3;
pub const PARTIAL: i32 = 4;

/// The built daemon.
pub fn binary() -> PathBuf {
    let this = std::env::current_exe().expect("the path of this program");
    let binary = profile_folder(&this).join("enforcer");
    assert!(binary.exists(), "{} is missing: cargo build -p enforcer", binary.display());
    binary
}

/// How the daemon is to be; keys as in its configuration file.
#[derive(Clone)]
pub struct Config {
    servers: Vec<Vec<(String, String)>>,
    sections: Vec<(String, String, String)>,
    name: String,
}

impl Config {
    /// For these servers, each under its own name if there are several.
    pub fn new(servers: &[&Ocserv]) -> Self {
        let several = servers.len() > 1;
        let servers = servers
            .iter()
            .map(|server| {
                let mut keys =
                    vec![("control-socket".to_owned(), quoted(&server.socket().display().to_string()))];
                if several {
                    keys.push(("name".to_owned(), quoted(server.name())));
                }
                keys
            })
            .collect();
        let inner = if several { "[\"lan0\", \"vpns*\", \"vpn1s*\"]" } else { "[\"lan0\", \"vpns*\"]" };
        Self { servers, sections: Vec::new(), name: "enforcer".to_owned() }
            .set("kernel", "outer", &format!("[{}]", quoted(WAN)))
            .set("kernel", "inner", &inner.replace("lan0", LAN))
    }

    /// Sets a key of a section; `value` as TOML has it.
    #[must_use]
    pub fn set(mut self, section: &str, key: &str, value: &str) -> Self {
        self.sections.retain(|(present, name, _)| (present.as_str(), name.as_str()) != (section, key));
        self.sections.push((section.to_owned(), key.to_owned(), value.to_owned()));
        self
    }

    /// Adds an element to a key that has a list in brackets.
    #[must_use]
    pub fn more(mut self, section: &str, key: &str, element: &str) -> Self {
        let ours = |one: &&mut (String, String, String)| (one.0.as_str(), one.1.as_str()) == (section, key);
        let (_, _, list) = self.sections.iter_mut().find(ours).expect("a list");
        *list = format!("{}, {element}]", list.strip_suffix(']').expect("a list"));
        self
    }

    /// Sets a key of every configured server.
    #[must_use]
    pub fn server(mut self, key: &str, value: &str) -> Self {
        for server in &mut self.servers {
            server.push((key.to_owned(), value.to_owned()));
        }
        self
    }

    /// Another name for its files, where a lab has two daemons.
    #[must_use]
    pub fn name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    fn toml(&self) -> String {
        let mut text = String::new();
        let mut names: Vec<&str> = Vec::new();
        for (section, _, _) in &self.sections {
            if !names.contains(&section.as_str()) {
                names.push(section);
            }
        }
        for name in names {
            text.push_str(&format!("[{name}]\n"));
            for (_, key, value) in self.sections.iter().filter(|(section, _, _)| section == name) {
                text.push_str(&format!("{key} = {value}\n"));
            }
        }
        for server in &self.servers {
            text.push_str(if self.servers.len() > 1 { "[[ocserv]]\n" } else { "[ocserv]\n" });
            for (key, value) in server {
                text.push_str(&format!("{key} = {value}\n"));
            }
        }
        text
    }
}

/// A string as TOML has it.
pub fn quoted(text: &str) -> String {
    format!("{text:?}")
}

/// The daemon and its files. They are there before it runs, so that ocserv can be started first, or alone.
pub struct Enforcer {
    namespace: Namespace,
    shared: Arc<Shared>,
    name: String,
    process: Option<Process>,
    /// What the daemon takes for the id of this boot, if the host was "started anew".
    boot: Option<PathBuf>,
    everything: bool,
    environment: Vec<(String, String)>,
}

/// What a command said.
#[derive(Clone, Debug)]
pub struct Answer {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
    /// `null` if the output is not JSON.
    pub json: Value,
    /// When the command was given, and when its answer was there.
    pub asked: Moment,
    pub answered: Moment,
}

impl Answer {
    #[track_caller]
    pub fn code(self, code: i32) -> Self {
        assert!(self.code == code, "exit {} instead of {code}\n{}{}", self.code, self.stdout, self.stderr);
        self
    }

    pub fn receipt(&self) -> Receipt {
        Receipt(self.json.clone())
    }
}

impl Enforcer {
    /// Writes the configuration and the links; starts nothing.
    pub fn prepare(lab: &Lab, config: &Config) -> Self {
        Self::prepare_in(lab, &lab.gateway, config)
    }

    /// The same on another gateway than the lab's own.
    pub fn prepare_in(lab: &Lab, namespace: &Namespace, config: &Config) -> Self {
        let new = Self {
            namespace: namespace.clone(),
            shared: Arc::clone(lab.shared()),
            name: config.name.clone(),
            process: None,
            boot: None,
            everything: false,
            environment: Vec::new(),
        };
        new.configure(config);
        let binary = binary();
        for name in ["enforcer-gate", "occtl"] {
            let link = new.shared.work().join(name);
            if !link.exists() {
                symlink(&binary, link).expect("a link");
            }
        }
        new
    }

    /// Writes another configuration, for the next start.
    pub fn configure(&self, config: &Config) {
        let path = |end: &str| quoted(&self.file(end).display().to_string());
        let pins = quoted(&self.pins().display().to_string());
        let mut config = config.clone();
        for (section, key, value) in [
            ("kernel", "pin-path", pins),
            ("gate", "socket", path("gate")),
            ("state", "directory", path("state")),
            ("control", "socket", path("control")),
        ] {
            if !config.sections.iter().any(|(present, name, _)| present == section && name == key) {
                config = config.set(section, key, &value);
            }
        }
        fs::write(self.config(), config.toml()).expect("the daemon's configuration");
    }

    fn file(&self, end: &str) -> PathBuf {
        self.shared.work().join(format!("{}.{end}", self.name))
    }

    pub fn config(&self) -> PathBuf {
        self.file("toml")
    }

    pub fn pins(&self) -> PathBuf {
        self.shared.bpffs().join(&self.name)
    }

    /// The state directory, if the configuration did not name another.
    pub fn state(&self) -> PathBuf {
        self.file("state")
    }

    pub fn control_socket(&self) -> PathBuf {
        self.file("control")
    }

    /// ocserv's connect-script and disconnect-script.
    pub fn gate(&self) -> PathBuf {
        self.shared.work().join("enforcer-gate")
    }

    /// The gate as a shell script: ocserv's own firewall script runs the next one by `/bin/sh FILE`, in every era,
    /// so a binary under that name fails there with a syntax error.
    pub fn gate_script(&self) -> PathBuf {
        let script = self.shared.work().join("enforcer-gate.sh");
        crate::ocserv::write_script(&script, &format!("exec {} gate", binary().display()));
        script
    }

    /// `ocserv` with the gate as both scripts.
    pub fn guard(&self, ocserv: Ocserv) -> Ocserv {
        ocserv.scripts(&self.gate()).env("ENFORCER_CONFIG", &self.config().display().to_string())
    }

    /// Starts the daemon, and waits until it answers.
    #[track_caller]
    pub fn start(&mut self) {
        self.launch();
        self.answers();
    }

    /// Starts the daemon, and waits for nothing.
    pub fn launch(&mut self) {
        let mut command = match &self.boot {
            None => self.namespace.command(&binary().display().to_string()),
            // a mount namespace of its own, in which the kernel tells another boot id
            Some(boot) => {
                let mut command = self.namespace.command("unshare");
                let script = "mount --bind \"$1\" /proc/sys/kernel/random/boot_id && shift && exec \"$@\"";
                command.args(["--mount", "sh", "-c", script, "boot"]).arg(boot).arg(binary());
                command
            }
        };
        command.args(["run", "--config"]).arg(self.config());
        if self.everything {
            command.env("ENFORCER_LOG", "trace");
        }
        command.envs(self.environment.iter().map(|(key, value)| (key, value)));
        let log = self.log_path();
        self.process = Some(Process::start(&self.name, command, &log, None));
    }

    /// Waits until the daemon answers.
    #[track_caller]
    pub fn answers(&mut self) {
        eventually("the daemon answers", BOUND, || {
            let process = self.process.as_mut()?;
            if let Some(status) = process.exited() {
                panic!("the daemon ended ({status}):\n{}", process.log());
            }
            let answer = self.cli(&["show", "status", "--json"]);
            (answer.code == DONE).then_some(())
        });
    }

    /// As after a start of the host: another boot, and nothing in the kernel. The daemon must not be running.
    #[track_caller]
    pub fn reboot(&mut self, id: &str) {
        assert!(self.process.is_none(), "the daemon still runs");
        self.cli(&["unload"]).code(DONE);
        let file = self.file("boot");
        fs::write(&file, format!("{id}\n")).expect("a file");
        self.boot = Some(file);
    }

    /// Starts the daemon, which must end by itself. What it said.
    #[track_caller]
    pub fn fails_to_start(&self) -> Answer {
        let mut command = self.namespace.command(&binary().display().to_string());
        command.args(["run", "--config"]).arg(self.config());
        let asked = Moment::now();
        let Output { code, stdout, stderr } = output(command, "");
        Answer { code, stdout, stderr, json: Value::Null, asked, answered: Moment::now() }
    }

    pub fn pid(&self) -> Pid {
        self.process.as_ref().expect("the daemon was stopped").pid()
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        self.process.as_mut().is_some_and(|process| process.exited().is_none())
    }

    /// kill -9.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// SIGTERM.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.stop();
        }
    }

    pub fn signal(&self, signal: Signal) {
        if let Some(process) = &self.process {
            process.signal(signal);
        }
    }

    pub fn log(&self) -> String {
        crate::process::read_log(&self.log_path())
    }

    pub fn log_path(&self) -> PathBuf {
        self.file("log")
    }

    /// From the next start on it logs at every level.
    pub fn log_everything(&mut self) {
        self.everything = true;
    }

    /// From the next start on the daemon has this variable.
    pub fn env(&mut self, key: &str, value: &str) {
        self.environment.push((key.to_owned(), value.to_owned()));
    }

    /// The command line.
    pub fn cli(&self, arguments: &[&str]) -> Answer {
        self.say(&binary(), arguments, "")
    }

    /// The command line, with something on its standard input.
    pub fn cli_with(&self, arguments: &[&str], input: &str) -> Answer {
        self.say(&binary(), arguments, input)
    }

    /// The same binary under the name `occtl`.
    pub fn occtl(&self, arguments: &[&str]) -> Answer {
        self.say(&self.shared.work().join("occtl"), arguments, "")
    }

    fn say(&self, program: &Path, arguments: &[&str], input: &str) -> Answer {
        let mut command = Command::new(program);
        command.args(arguments).env("ENFORCER_SOCKET", self.control_socket());
        command.env("ENFORCER_CONFIG", self.config());
        let asked = Moment::now();
        let Output { code, stdout, stderr } = output(command, input);
        let answered = Moment::now();
        let json = serde_json::from_str(&stdout).unwrap_or(Value::Null);
        Answer { code, stdout, stderr, json, asked, answered }
    }

    pub fn status(&self) -> Value {
        self.cli(&["show", "status", "--json"]).json
    }

    /// `disconnect user -i NAME --json`, which must be done in every layer.
    #[track_caller]
    pub fn revoke(&self, user: &str) -> Answer {
        self.cli(&["disconnect", "user", "-i", user, "--json"]).code(DONE)
    }

    /// The same, where only part of it can be done.
    #[track_caller]
    pub fn revoke_in_part(&self, user: &str) -> Answer {
        self.cli(&["disconnect", "user", "-i", user, "--json"]).code(PARTIAL)
    }

    /// Ends one session by ocserv's id.
    #[track_caller]
    pub fn revoke_id(&self, id: i32) -> Answer {
        self.cli(&["disconnect", "id", "-i", &id.to_string(), "--json"]).code(DONE)
    }

    /// Waits until the daemon knows of a session of this user.
    #[track_caller]
    pub fn knows(&self, user: &str) {
        eventually(&format!("the daemon knows {user}"), BOUND, || {
            let shown = self.cli(&["show", "sessions", "--json"]).json;
            crate::receipt::live(&shown).iter().any(|name| name == user).then_some(())
        });
    }

    /// Waits until a revocation is complete.
    #[track_caller]
    pub fn completes(&self, number: u64) {
        eventually(&format!("revocation {number} completes"), BOUND, || {
            let shown = self.cli(&["show", "revocations", "--json"]).json;
            crate::receipt::is_complete(&shown, number).then_some(())
        })
    }
}
