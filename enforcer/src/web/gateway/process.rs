//! The process: from the configuration to a gateway that serves, and to its end.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

use crate::config::{self, Config};
use crate::session::WebKey;
use crate::web::learned::{Bounds, Keeper};
use crate::web::link::{Link, OnEnd, Settings};
use crate::web::oidc::{self, Oidc};
use crate::web::proxy::{Proxy, SessionKey};
use crate::web::seal::KeyFile;

use super::codes::Codes;
use super::files;
use super::guard::{Door, Gateway};
use super::held::Secrets;
use super::passwords::Passwords;
use super::privileges::Become;
use super::provider_ends;
use super::rules::{self, Rules};

/// How long what is on its way has at the end.
const DRAIN: Duration = Duration::from_secs(10);
/// After this long the daemon should have been reached.
const LATE: Duration = Duration::from_secs(5);
/// Sessions whose secrets are in memory at once: some 600 bytes each.
const HELD: usize = 200_000;

/// Runs the gateway in the foreground until SIGTERM or SIGINT. SIGHUP reads again what can be read again.
///
/// `path`: of the configuration, as it was named.
pub fn run(config: Config, path: Option<PathBuf>) -> anyhow::Result<()> {
    crate::logging::start();
    let gateway = config.gateway.clone().context(
        "there is no [gateway] in the configuration: docs/web-gateway.md says what belongs there, and --config names \
         another file",
    )?;
    let web = config.web.clone().unwrap_or_default();
    let user = Become::new(&web.user)?;
    user.folder(&gateway.state)?;
    if let Some(folder) = web.socket_table.parent().filter(|folder| !folder.exists()) {
        user.folder(folder)?;
    }
    more_files();
    // ports and keys first, while they can be had; not a thread is started before the user is changed
    let proxy = Proxy::bind(rules::settings(&gateway, &web.socket_table), Door::default())?;
    user.give(&web.socket_table)?;
    user.for_good()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let guard = guard(&config, &gateway, &web, &runtime, &proxy)?;
    proxy.guard().open(guard);
    let threads = gateway.threads.or_else(|| Some(std::thread::available_parallelism().ok()?.get()));
    let threads = proxy.start(threads.unwrap_or(1)).context("cannot start the threads that serve")?;
    let addresses = proxy.addresses().unwrap_or_default();
    let shown: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    tracing::info!("the gateway serves on {}", shown.join(", "));
    let running = Running { proxy, gateway, path, socket: web.socket };
    runtime.block_on(running.serve())?;
    threads.join().context("a thread that served")
}

/// Started as root: becomes the gateway's user, for what is done to its files from the command line.
///
/// # Errors
/// There is no such user.
pub fn become_its_user(config: &Config) -> anyhow::Result<()> {
    Become::new(&config.web.clone().unwrap_or_default().user)?.for_good()
}

/// As many open files as it may have: two for each client.
fn more_files() {
    if let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE)
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, most, most)
    {
        tracing::warn!("the number of open files stays as it is: {error}");
    }
}

/// Everything that requests are judged by, from the gateway's own files.
fn guard(
    config: &Config,
    gateway: &config::Gateway,
    web: &config::Web,
    runtime: &Runtime,
    proxy: &Proxy<Door>,
) -> anyhow::Result<Gateway> {
    let rules = Rules::new(config, gateway)?;
    let keys = KeyFile::open(&files::keys(&gateway.state)).context("the master keys")?;
    let learned = Keeper::open(&files::learned(&gateway.state), Bounds::default());
    let learned = learned.context("what sealing has learned")?;
    let at_once = std::thread::available_parallelism().map_or(1, usize::from);
    let passwords = gateway.users_file.as_deref().map(|path| Passwords::open(path, at_once));
    let passwords = passwords.transpose().context("the users file")?;
    let oidc = gateway.oidc.as_ref().map(|oidc| Oidc::new(settings(oidc), &files::oidc(&gateway.state)));
    let oidc = oidc.transpose().context("[gateway] oidc")?.map(Arc::new);
    let secrets = Arc::new(Secrets::new(HELD));
    let codes = Arc::new(Codes::default());
    let link = {
        let _entered = runtime.enter();
        let settings =
            Settings { grace: gateway.grace.unwrap_or_default(), ..Settings::new(web.socket.clone()) };
        Link::start(settings, on_end(Arc::clone(&secrets), Arc::clone(&codes), oidc.clone(), proxy.clone()))
    };
    let gateway = Gateway {
        rules: RwLock::new(Arc::new(rules)),
        keys,
        newest: AtomicU32::new(0),
        link,
        secrets,
        learned,
        codes,
        passwords,
        oidc,
    };
    gateway.keys();
    Ok(gateway)
}

/// What becomes of a session here when it is over. The link has forgotten it before.
fn on_end(secrets: Arc<Secrets>, codes: Arc<Codes>, oidc: Option<Arc<Oidc>>, proxy: Proxy<Door>) -> OnEnd {
    Arc::new(move |key: WebKey, cause| {
        secrets.forget(&key);
        codes.forget(&key);
        if let Some(oidc) = &oidc {
            oidc.forget(&key);
        }
        let proxy = proxy.clone();
        Box::pin(async move {
            let ended = proxy.end(SessionKey(*key.as_bytes())).await;
            if ended.requests + ended.downstream > 0 {
                tracing::info!(
                    session = %key,
                    ?cause,
                    requests = ended.requests,
                    connections = ended.downstream,
                    "a session is over"
                );
            }
            u64::try_from(ended.upstream + ended.downstream).unwrap_or(u64::MAX)
        })
    })
}

/// What the identity provider is asked with.
fn settings(of: &config::gateway::Oidc) -> oidc::Settings {
    let mut settings = oidc::Settings::new(&of.issuer, &of.client_id, &of.client_secret_file);
    settings.user_claim.clone_from(&of.user_claim);
    settings.roots.clone_from(&of.ca);
    settings.single_sign_on = of.single_sign_on;
    if let Some(scopes) = &of.scopes {
        settings.scopes.clone_from(scopes);
    }
    settings
}

/// A gateway that serves.
struct Running {
    proxy: Proxy<Door>,
    /// As it was started: what of it counts until the next start.
    gateway: config::Gateway,
    path: Option<PathBuf>,
    /// The daemon's.
    socket: PathBuf,
}

impl Running {
    async fn serve(&self) -> anyhow::Result<()> {
        let mut term = signal(SignalKind::terminate()).context("SIGTERM")?;
        let mut int = signal(SignalKind::interrupt()).context("SIGINT")?;
        let mut hup = signal(SignalKind::hangup()).context("SIGHUP")?;
        // it ends with the runtime
        tokio::spawn(provider_ends::end(self.proxy.clone()));
        let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Ready]);
        let late = tokio::time::sleep(LATE);
        tokio::pin!(late);
        let mut looked = false;
        loop {
            tokio::select! {
                () = &mut late, if !looked => {
                    looked = true;
                    self.look_for_the_daemon();
                }
                _ = term.recv() => break,
                _ = int.recv() => break,
                _ = hup.recv() => self.reload(),
            }
        }
        let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Stopping]);
        tracing::info!("the gateway stops: what is on its way has {} s", DRAIN.as_secs());
        let left = self.proxy.drain(DRAIN).await;
        if left > 0 {
            tracing::info!("{left} connections were still open, and were reset");
        }
        Ok(())
    }

    /// What an administrator looks for first who cannot log in.
    fn look_for_the_daemon(&self) {
        if self.proxy.guard().gateway().is_some_and(|guard| !guard.link.is_connected()) {
            tracing::warn!(
                "the enforcer's daemon is not reached at {}, so nobody is let in: is `enforcer run` there, with [web] in \
                 its configuration, and may uid {} come to that socket?",
                self.socket.display(),
                nix::unistd::geteuid()
            );
        }
    }

    /// Certificates, master keys and rules. What cannot be read stays as it was.
    fn reload(&self) {
        match self.proxy.reload_certificates() {
            Ok(()) => tracing::info!("the certificates were read again"),
            Err(error) => tracing::error!("the certificates cannot be used, the old ones stay: {error}"),
        }
        let Some(guard) = self.proxy.guard().gateway() else { return };
        guard.keys();
        if let Some(Err(error)) = guard.oidc.as_ref().map(|oidc| oidc.reload_secret()) {
            tracing::error!("the secret of OpenID Connect cannot be read, the old one stays: {error}");
        }
        match self.rules() {
            Ok(rules) => {
                *guard.rules.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(rules);
                tracing::info!("the configuration was read again");
            }
            Err(error) => tracing::error!("the configuration cannot be used, the old one stays: {error:#}"),
        }
    }

    fn rules(&self) -> anyhow::Result<Rules> {
        let config = Config::load(self.path.as_deref())?;
        let gateway = config.gateway.as_ref().context("there is no [gateway] in it")?;
        let fixed = fixed(&self.gateway, gateway);
        anyhow::ensure!(
            fixed.is_empty(),
            "{} changed, which counts from the next start on (systemctl restart enforcer-gateway)",
            fixed.join(", ")
        );
        Rules::new(&config, gateway)
    }
}

/// The keys in which two configurations differ and that a running gateway cannot change.
fn fixed(ours: &config::Gateway, theirs: &config::Gateway) -> Vec<&'static str> {
    let place = |gateway: &config::Gateway| {
        let settings = rules::settings(gateway, Path::new(""));
        format!("{:?}", settings.origins)
    };
    let never = |gateway: &config::Gateway| rules::settings(gateway, Path::new("")).never_from_clients;
    let same =
        |one: &dyn std::fmt::Debug, other: &dyn std::fmt::Debug| format!("{one:?}") == format!("{other:?}");
    let file = |path: &Option<PathBuf>| path.as_deref().map(Path::to_owned);
    [
        ("listen", same(&ours.listen, &theirs.listen)),
        ("redirect", same(&ours.redirect, &theirs.redirect)),
        ("plain", same(&ours.plain, &theirs.plain)),
        ("public-port", ours.public_port() == theirs.public_port()),
        ("certificates", ours.certificates == theirs.certificates),
        ("never-from-clients", never(ours) == never(theirs)),
        ("trusted-proxies", same(&ours.trusted_proxies, &theirs.trusted_proxies)),
        ("state", ours.state == theirs.state),
        ("oidc", same(&ours.oidc, &theirs.oidc)),
        ("users-file", file(&ours.users_file) == file(&theirs.users_file)),
        ("grace", ours.grace == theirs.grace),
        ("threads", ours.threads == theirs.threads),
        ("limits", same(&ours.limits, &theirs.limits)),
        ("times", same(&ours.times, &theirs.times)),
        ("origins", place(ours) == place(theirs)),
    ]
    .into_iter()
    .filter_map(|(key, same)| (!same).then_some(key))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gateway(more: &str, origin: &str) -> config::Gateway {
        let text = format!(
            "[web]\n[gateway]\nplain = ['127.0.0.1:1']\nusers-file = '/u'\n{more}\n[[gateway.origins]]\nhost = 'a'\nto = \
             'http://127.0.0.1:2'\n{origin}"
        );
        Config::parse(&text).unwrap().gateway.unwrap()
    }

    #[test]
    fn what_a_running_gateway_cannot_change_is_named() {
        let ours = gateway("", "");
        assert!(
            fixed(&ours, &gateway("idle-timeout = '1h'\nlogout-paths = ['/bye']", "readable = ['x']"))
                .is_empty()
        );
        assert_eq!(fixed(&ours, &gateway("redirect = ['127.0.0.1:3']", "")), ["redirect"]);
        assert_eq!(fixed(&ours, &gateway("limits = { streams = 5 }", "path = '/x'")), ["limits", "origins"]);
    }
}
