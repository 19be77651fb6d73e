//! The gate: ocserv's connect-script and disconnect-script, a process of its own for every login.
//!
//! It asks the daemon. Where the daemon does not answer within a bound it decides by the pinned maps itself, and
//! where it can see neither, `[gate] when-blind` decides. Where there are other gateways, nobody could ask them then: whom
//! nothing here speaks against gets what `[cluster] when-away` says for his group. It is asked once more as its last act, after the
//! administrator's own script: a revocation may have come meanwhile.
//!
//! It refuses by its exit code: then ocserv answers the client `401`, and the client gives up. SIGTERM keeps its
//! default action, since ocserv's main process waits for the script when the worker dies.

mod alone;

use std::fmt;
use std::net::IpAddr;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::config::{Config, WhenAway, WhenBlind};
use crate::control::{GateClient, api, connect_gate};
use crate::exit::Code;

/// How long the daemon may take, for connecting and answering together; where it asks etcd, beside that.
const DAEMON_WITHIN: Duration = Duration::from_secs(2);
/// A hint is not worth holding ocserv up for.
const HINT_WITHIN: Duration = Duration::from_millis(500);

/// What ocserv says of the login, in the environment (`export_*` and `call_script` in its `src/main-user.c`).
#[derive(Debug, Clone)]
struct Login {
    id: i32,
    user: String,
    vhost: String,
    group: String,
    device: String,
    addresses: Vec<IpAddr>,
    client: String,
}

impl Login {
    fn from_environment() -> Result<Self, String> {
        let word = |name: &str| {
            std::env::var_os(name).map(|value| value.to_string_lossy().into_owned()).unwrap_or_default()
        };
        // as ocserv's socket spells them: any bytes
        let name = |name: &str| {
            let value = std::env::var_os(name).unwrap_or_default();
            crate::ocserv::name_from_bytes(value.as_bytes()).unwrap_or_default()
        };
        let id = word("ID");
        let id = id.parse().map_err(|_| {
            format!("ID={id:?}: this is ocserv's connect-script, and ocserv sets ID, REASON, USERNAME and DEVICE for it")
        })?;
        // ocserv's words are from the gateway's view: the remote end is the client's
        let addresses =
            ["IP_REMOTE", "IPV6_REMOTE"].iter().filter_map(|name| word(name).parse().ok()).collect();
        Ok(Self {
            id,
            user: name("USERNAME"),
            vhost: word("VHOST"),
            group: name("GROUPNAME"),
            device: word("DEVICE"),
            addresses,
            client: word("IP_REAL"),
        })
    }

    fn look(&self, last: bool) -> api::GateLook {
        api::GateLook {
            id: self.id,
            user: self.user.clone(),
            vhost: self.vhost.clone(),
            group: self.group.clone(),
            device: self.device.clone(),
            addresses: self.addresses.iter().map(ToString::to_string).collect(),
            client: self.client.clone(),
            last,
        }
    }
}

/// As ocserv's log has it.
impl fmt::Display for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (id {})", self.user.escape_default(), self.id)
    }
}

/// A decision, and why.
#[derive(Debug)]
enum Decision {
    /// `server`: by its configured name, where it is known.
    Admit {
        server: Option<String>,
    },
    Refuse(String),
    Blind(String),
}

/// Runs as ocserv's script: `REASON` tells which.
pub fn run(config: Option<&Path>) -> Code {
    match run_with(config) {
        Ok(()) => Code::Done,
        Err(why) => {
            eprintln!("enforcer-gate: {why}");
            Code::Error
        }
    }
}

fn run_with(named: Option<&Path>) -> Result<(), String> {
    let reason = std::env::var("REASON").unwrap_or_default();
    let login = Login::from_environment()?;
    // without a readable configuration nothing is known, not even what to do when blind: the default is to refuse
    let config = Config::load(named).map_err(|error| error.to_string())?;
    let runtime =
        (tokio::runtime::Builder::new_current_thread().enable_all().build()).map_err(|e| e.to_string())?;
    match reason.as_str() {
        "connect" => runtime.block_on(connect(&config, &login)),
        "disconnect" => {
            let server = runtime.block_on(disconnected(&config, &login));
            run_script(script(&config, server.as_deref(), |server| server.next_disconnect_script.clone()))
        }
        // host-update and whatever comes: not a login
        _ => Ok(()),
    }
}

async fn connect(config: &Config, login: &Login) -> Result<(), String> {
    let mut daemon = Daemon::default();
    // one look is enough where nothing runs after it
    let has_next = config.ocserv.iter().any(|server| is_some_path(server.next_script.as_ref()));
    let server = decide(config, login, &mut daemon, !has_next).await?;
    if !has_next {
        return Ok(());
    }
    run_script(script(config, server.as_deref(), |server| server.next_script.clone()))?;
    decide(config, login, &mut daemon, true).await.map(|_| ())
}

/// Asks the daemon, or decides alone. `Ok`: let in, by that server.
async fn decide(
    config: &Config,
    login: &Login,
    daemon: &mut Daemon,
    last: bool,
) -> Result<Option<String>, String> {
    let (decision, unanswered) = match daemon.ask(config, login.look(last)).await {
        Ok(verdict) if verdict.admit => {
            (Decision::Admit { server: Some(verdict.server).filter(|name| !name.is_empty()) }, None)
        }
        Ok(verdict) => (Decision::Refuse(verdict.text), None),
        Err(why) => (alone::decide(config, login, &why).await, Some(why)),
    };
    let (server, unseen) = match decision {
        Decision::Admit { server } => (server, None),
        Decision::Refuse(why) => return Err(format!("{login} is refused: {why}")),
        Decision::Blind(why) if config.gate.when_blind == WhenBlind::Refuse => {
            return Err(format!("{login} is refused, since {why}"));
        }
        Decision::Blind(why) => (None, Some(why)),
    };
    if let Some(why) = unanswered {
        without_others(config, login, &why)?;
    }
    if let Some(why) = unseen {
        eprintln!("enforcer-gate: {login} is let in unseen: {why}");
    }
    Ok(server)
}

/// Without the daemon the other gateways cannot be asked: somebody may have been revoked there meanwhile. `Err`: so this
/// login is refused.
fn without_others(config: &Config, login: &Login, why: &str) -> Result<(), String> {
    let Some(cluster) = &config.cluster else { return Ok(()) };
    match cluster.when_away(&login.group) {
        WhenAway::Closed => Err(format!(
            "{login} is refused, since the other gateways cannot be asked ([cluster] when-away = \"closed\"): {why}"
        )),
        WhenAway::Open => {
            eprintln!("enforcer-gate: {login} is let in, and the other gateways could not be asked: {why}");
            Ok(())
        }
    }
}

/// With other gateways the daemon's own answer waits for etcd.
fn daemon_within(config: &Config) -> Duration {
    config.cluster.as_ref().map_or(DAEMON_WITHIN, |cluster| cluster.login_wait + DAEMON_WITHIN)
}

/// The connection to the daemon, kept for the second look.
#[derive(Default)]
struct Daemon {
    client: Option<GateClient>,
}

impl Daemon {
    async fn ask(&mut self, config: &Config, look: api::GateLook) -> Result<api::GateVerdict, String> {
        let within = daemon_within(config);
        let asked = async {
            let mut client = match self.client.take() {
                Some(client) => client,
                None => connect_gate(&config.gate.socket)
                    .await
                    .map_err(|error| format!("the daemon does not answer: {error}"))?,
            };
            let verdict =
                client.look(look).await.map_err(|status| format!("the daemon says: {}", status.message()))?;
            self.client = Some(client);
            Ok(verdict.into_inner())
        };
        tokio::time::timeout(within, asked)
            .await
            .unwrap_or_else(|_| Err(format!("the daemon did not answer within {within:?}")))
    }
}

/// Tells the daemon, if it listens. Gives the server's name.
async fn disconnected(config: &Config, login: &Login) -> Option<String> {
    let told = async {
        let mut client = connect_gate(&config.gate.socket).await.ok()?;
        client.left(login.look(true)).await.ok()
    };
    let verdict = tokio::time::timeout(HINT_WITHIN, told).await.ok()??;
    Some(verdict.into_inner().server).filter(|name| !name.is_empty())
}

fn is_some_path(path: Option<&PathBuf>) -> bool {
    path.is_some_and(|path| !path.as_os_str().is_empty())
}

/// The administrator's own script for this server.
fn script(
    config: &Config,
    server: Option<&str>,
    which: impl Fn(&crate::config::Server) -> Option<PathBuf>,
) -> Option<PathBuf> {
    let mut servers = config.ocserv.iter();
    let server = match server {
        Some(name) => servers.find(|server| server.name == name),
        // the only one there is
        None => servers.next().filter(|_| servers.next().is_none()),
    };
    server.and_then(which).filter(|path| !path.as_os_str().is_empty())
}

fn run_script(script: Option<PathBuf>) -> Result<(), String> {
    let Some(script) = script else { return Ok(()) };
    let mut command = Command::new(&script);
    // SAFETY: between fork and exec only prctl(2) is called, which is async-signal-safe and allocates nothing.
    unsafe {
        // when ocserv ends the gate, the administrator's script ends with it: main waits for both
        command.pre_exec(|| {
            nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGTERM).map_err(Into::into)
        });
    }
    let status = command.status().map_err(|error| format!("next-script {}: {error}", script.display()))?;
    if status.success() { Ok(()) } else { Err(format!("next-script {} refused: {status}", script.display())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(group: &str) -> Login {
        Login {
            id: 4711,
            user: "alice".into(),
            vhost: String::new(),
            group: group.into(),
            device: "vpns0".into(),
            addresses: Vec::new(),
            client: "192.0.2.1".into(),
        }
    }

    fn config(text: &str) -> Config {
        Config::parse(text).unwrap()
    }

    const CLUSTER: &str = "[cluster]\nendpoints = ['http://127.0.0.1:2379']\n";

    /// R2: who could have been revoked elsewhere is not let in, but for those groups for whom that was decided.
    #[test]
    fn r2_without_the_daemon_the_other_gateways_count_by_group() {
        let alone = config("");
        let closed = config(CLUSTER);
        let guests = config(&format!("{CLUSTER}[cluster.groups.guests]\nwhen-away = 'open'"));
        let staff =
            config(&format!("{CLUSTER}when-away = 'open'\n[cluster.groups.staff]\nwhen-away = 'closed'"));
        for (config, group, admitted) in [
            (&alone, "", true),
            (&closed, "", false),
            (&closed, "guests", false),
            (&guests, "guests", true),
            (&guests, "staff", false),
            (&guests, "", false),
            (&staff, "staff", false),
            (&staff, "guests", true),
            (&staff, "", true),
        ] {
            let said = without_others(config, &login(group), "the daemon does not answer");
            assert_eq!(said.is_ok(), admitted, "{group}: {said:?}");
            if let Err(why) = said {
                assert!(
                    why.contains("alice (id 4711) is refused") && why.contains("other gateways"),
                    "{why}"
                );
            }
        }
    }

    #[test]
    fn the_daemon_has_the_time_that_it_gives_etcd_and_more() {
        assert_eq!(daemon_within(&config("")), DAEMON_WITHIN);
        let wait = format!("{CLUSTER}login-wait = '5s'");
        assert_eq!(daemon_within(&config(&wait)), DAEMON_WITHIN + Duration::from_secs(5));
    }
}
