//! From a command to the daemon and back.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use anyhow::Context as _;
use tokio_stream::StreamExt as _;
use tonic::Status;

use super::bulk::Progress;
use super::{Change, Cli, Command, Common, Disconnect, From, Lock, Revoke, Show, Terminate, Unlock, Wait};
use super::{cluster, gateways, listing, output};
use crate::config::Config;
use crate::control::{ControlClient, MAX_BATCH, api, connect_control};
use crate::exit::Code;

pub(super) fn run(cli: Cli) -> ExitCode {
    let json = cli.common.json;
    match try_run(cli) {
        Ok(code) => code.into(),
        Err(error) => {
            let (code, text) = explain(&error);
            if json {
                println!("{}", serde_json::json!({ "error": text }));
            } else {
                eprintln!("enforcer: {text}");
            }
            code.into()
        }
    }
}

/// The daemon's errors carry their exit code with them.
pub(super) fn explain(error: &anyhow::Error) -> (Code, String) {
    match error.downcast_ref::<Status>() {
        Some(status) => {
            let code = match status.code() {
                tonic::Code::NotFound => Code::Nothing,
                tonic::Code::InvalidArgument => Code::Usage,
                _ => Code::Error,
            };
            // what lies below says more than "transport error"
            let mut text = status.message().to_owned();
            let mut source = std::error::Error::source(status);
            while let Some(error) = source {
                text = format!("{text}: {error}");
                source = error.source();
            }
            (code, text)
        }
        None => (Code::Error, format!("{error:#}")),
    }
}

fn try_run(cli: Cli) -> anyhow::Result<Code> {
    let config = || Config::load(cli.common.config.as_deref());
    match cli.command {
        Command::Run => {
            let config = config()?;
            crate::daemon::run(config).map(|()| Code::Done)
        }
        Command::Gate => Ok(crate::gate::run(cli.common.config.as_deref())),
        Command::Gateway => {
            crate::web::gateway::run(config()?, cli.common.config.clone()).map(|()| Code::Done)
        }
        Command::GatewayKeys { what } => super::gateway_keys::run(what, &config()?, cli.common.json),
        Command::Cluster { what } if cluster::needs_no_daemon(&what) => {
            cluster::run(&what, &config()?, cli.common.json)
        }
        Command::Setup { what } => super::setup::run(&what, &config()?, cli.common.json),
        Command::Audit { what } => super::audit::run(&what, config, cli.common.json),
        Command::Passwd(asked) => super::passwd::run(asked, cli.common.json),
        Command::Unload => {
            let config = config()?;
            anyhow::ensure!(
                std::os::unix::net::UnixStream::connect(&config.control.socket).is_err(),
                "the daemon is running: stop it first"
            );
            let report = crate::daemon::unload(&config)?;
            output::print(cli.common.json, &report, |report| format!("{}\n", report.text))?;
            Ok(Code::Done)
        }
        Command::Check { repair: true } => {
            let config = config()?;
            anyhow::ensure!(
                std::os::unix::net::UnixStream::connect(&config.control.socket).is_err(),
                "the daemon is running, and its database is open: there is nothing to repair, or stop it first"
            );
            let findings = crate::daemon::repair(&config)?;
            output::print(cli.common.json, &findings, output::findings)?;
            Ok(worst(&findings))
        }
        command => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(ask(&cli.common, command))
        }
    }
}

async fn ask(common: &Common, command: Command) -> anyhow::Result<Code> {
    let json = common.json;
    let mut client = match connect(common).await {
        Ok(client) => client,
        // without a daemon there is still something to be checked
        Err(error) if matches!(command, Command::Check { .. }) => {
            let findings = crate::daemon::check_without_daemon(common.config.as_deref(), &error);
            output::print(json, &findings, output::findings)?;
            return Ok(Code::Error);
        }
        Err(error) => return Err(error),
    };
    match command {
        Command::Disconnect { invalidate, whom } => match plain_or_revocation(whom, invalidate)? {
            Ok(request) => {
                let reply = client.disconnect(request).await?.into_inner();
                output::print(json, &reply, output::disconnected)?;
                Ok(Code::Done)
            }
            Err(request) => revoke(&mut client, json, request).await,
        },
        Command::Terminate { whom } => {
            let (what, server, change, wait) = match whom {
                Terminate::User { name, on, change, wait } => {
                    (api::target::What::User(name), on.server, change, wait)
                }
                Terminate::Id { id, on, change, wait } => {
                    (api::target::What::Id(id), on.server, change, wait)
                }
                Terminate::Session { safe_id, on, change, wait } => {
                    (api::target::What::Session(safe_id), on.server, change, wait)
                }
            };
            revoke(&mut client, json, request(what, server, change, wait)).await
        }
        Command::Revoke { what: Some(what), .. } => revoke(&mut client, json, explicit(&what)).await,
        Command::Revoke { what: None, from } => {
            let file = from.from.clone().ok_or_else(|| {
                Status::invalid_argument("revoke what? address IP, flow PROTO CLIENT:PORT LOCAL:PORT, token dtls|openvpn HEX, or --from FILE")
            })?;
            bulk(&mut client, json, file, from).await
        }
        Command::Lift { number, change, wait } => {
            let Change { reason, dry_run } = change;
            let request = api::LiftRequest { number, reason, dry_run, wait_ms: wait_ms(wait) };
            receipt(json, client.lift(request).await?.into_inner(), "Lifted: ")
        }
        Command::Lock { whom: Lock::User { person, stands, change, wait } } => {
            let request = api::LockRequest {
                user: person.name,
                realm: person.realm,
                for_seconds: stands.map_or(0, |stands| stands.as_secs()),
                reason: change.reason,
                dry_run: change.dry_run,
                wait_ms: wait_ms(wait),
            };
            receipt(json, client.lock(request).await?.into_inner(), "")
        }
        Command::Unlock { whom: Unlock::User { person, change, wait } } => {
            let request = api::UnlockRequest {
                user: person.name,
                realm: person.realm,
                reason: change.reason,
                dry_run: change.dry_run,
                wait_ms: wait_ms(wait),
            };
            receipt(json, client.unlock(request).await?.into_inner(), "Unlocked: ")
        }
        Command::Show { what } => show(&mut client, json, what).await,
        Command::Cluster { what: cluster::Cluster::Remove { gateway } } => {
            let config = Config::load(common.config.as_deref())?;
            let known = client.show_gateways(api::ShowRequest {}).await?.into_inner();
            cluster::remove(&gateway, &known, &config, json)
        }
        Command::Check { .. } => {
            let findings = client.check(api::ShowRequest {}).await?.into_inner();
            output::print(json, &findings, output::findings)?;
            Ok(worst(&findings))
        }
        Command::Run
        | Command::Gate
        | Command::Gateway
        | Command::GatewayKeys { .. }
        | Command::Audit { .. }
        | Command::Setup { .. }
        | Command::Unload
        | Command::Cluster { .. }
        | Command::Passwd(_) => Err(anyhow::anyhow!("not a question to the daemon")),
    }
}

async fn connect(common: &Common) -> anyhow::Result<ControlClient> {
    let socket = match &common.socket {
        Some(socket) => socket.clone(),
        None => Config::load(common.config.as_deref())?.control.socket,
    };
    connect_control(&socket).await.with_context(|| {
        format!(
            "the daemon does not answer on {} (is `enforcer run` running? are you root?)",
            socket.display()
        )
    })
}

/// `Ok`: ocserv's own disconnect. `Err`: a revocation.
type PlainOrRevocation = Result<api::DisconnectRequest, api::RevokeRequest>;

fn plain_or_revocation(whom: Disconnect, either: bool) -> Result<PlainOrRevocation, Status> {
    let (what, invalidate, server, change, wait) = match whom {
        Disconnect::User { name, invalidate, on, change, wait } => {
            (api::target::What::User(name), invalidate, on.server, change, wait)
        }
        Disconnect::Id { id, invalidate, on, change, wait } => {
            (api::target::What::Id(id), invalidate, on.server, change, wait)
        }
    };
    if invalidate || either {
        return Ok(Err(request(what, server, change, wait)));
    }
    if wait.wait.is_some() {
        return Err(Status::invalid_argument(
            "--wait is for a revocation, of which other gateways are told: add -i, or leave --wait out",
        ));
    }
    let target = Some(api::Target { what: Some(what), server });
    Ok(Ok(api::DisconnectRequest { target, dry_run: change.dry_run, reason: change.reason }))
}

fn request(what: api::target::What, server: String, change: Change, wait: Wait) -> api::RevokeRequest {
    let target = Some(api::Target { what: Some(what), server });
    let Change { reason, dry_run } = change;
    api::RevokeRequest { target, for_seconds: 0, reason, dry_run, wait_ms: wait_ms(wait) }
}

/// 0: the daemon's default.
fn wait_ms(wait: Wait) -> u64 {
    wait.wait.map_or(0, |wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX))
}

pub(super) fn explicit(what: &Revoke) -> api::RevokeRequest {
    let (what, stands, change) = match what {
        Revoke::Address { address, stands, change } => {
            (api::target::What::Address(address.to_string()), stands, change)
        }
        Revoke::Flow { protocol, client, local, stands, change } => {
            (api::target::What::Flow(format!("{protocol} {client} {local}")), stands, change)
        }
        Revoke::Token { kind, id, stands, change } => {
            (api::target::What::Token(format!("{kind} {id}")), stands, change)
        }
    };
    let for_seconds = stands.stands.map_or(0, |stands| stands.as_secs());
    api::RevokeRequest { for_seconds, ..request(what, String::new(), change.clone(), Wait::default()) }
}

async fn revoke(client: &mut ControlClient, json: bool, request: api::RevokeRequest) -> anyhow::Result<Code> {
    receipt(json, client.revoke(request).await?.into_inner(), "")
}

fn receipt(json: bool, receipt: api::Receipt, head: &str) -> anyhow::Result<Code> {
    output::print(json, &receipt, |receipt| format!("{head}{}", output::receipt(receipt)))?;
    Ok(if receipt.complete { Code::Done } else { Code::Partial })
}

fn worst(findings: &api::Findings) -> Code {
    let bad = findings.findings.iter().any(|finding| finding.level == "error");
    if bad { Code::Error } else { Code::Done }
}

async fn bulk(
    client: &mut ControlClient,
    json: bool,
    file: std::path::PathBuf,
    from: From,
) -> anyhow::Result<Code> {
    let lines = super::bulk::orders(&file, &from)?;
    let (send, receive) = tokio::sync::mpsc::channel(4 * MAX_BATCH);
    // reading a file or a terminal blocks, and must not hold the stream up
    let reader = tokio::task::spawn_blocking(move || {
        let mut bad = Vec::new();
        let mut progress = Progress::new(std::io::stderr().is_terminal(), std::time::Instant::now());
        for line in lines {
            match line {
                Ok(order) => {
                    if send.blocking_send(order).is_err() {
                        break;
                    }
                }
                Err(why) => bad.push(why),
            }
            if let Some(text) = progress.line(std::time::Instant::now()) {
                eprint!("{text}");
            }
        }
        eprint!("{}", progress.end());
        bad
    });
    // full messages, or what has come within a moment
    let batches = tokio_stream::wrappers::ReceiverStream::new(receive)
        .chunks_timeout(MAX_BATCH / 2, std::time::Duration::from_millis(20))
        .map(|requests| api::RevokeBatch { requests });
    let mut receipt = client.revoke_many(batches).await?.into_inner();
    let bad = reader.await.context("the reader of the lines broke")?;
    receipt.failed += bad.len() as u64;
    receipt.errors.extend(bad.into_iter().take(100));
    output::print(json, &receipt, output::bulk)?;
    Ok(match (receipt.done, receipt.failed) {
        (_, 0) => Code::Done,
        (0, _) => Code::Error,
        _ => Code::Partial,
    })
}

async fn show(client: &mut ControlClient, json: bool, what: Show) -> anyhow::Result<Code> {
    let nothing = api::ShowRequest {};
    match what {
        Show::Status => {
            output::print(json, &client.show_status(nothing).await?.into_inner(), output::status)?
        }
        Show::Users => return listing::users(client, json).await,
        Show::Sessions { all: false } => return listing::sessions(client, json).await,
        Show::Sessions { all: true } => return listing::all_sessions(client, json).await,
        Show::Gateways => {
            output::print(json, &client.show_gateways(nothing).await?.into_inner(), gateways::text)?
        }
        Show::Revocations { count: false } => return listing::revocations(client, json).await,
        Show::Revocations { count: true } => {
            output::print(json, &client.count_revocations(nothing).await?.into_inner(), output::count)?
        }
        Show::Events => {
            output::print(json, &client.show_events(nothing).await?.into_inner(), output::events)?
        }
    }
    Ok(Code::Done)
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, Parser as _};

    use super::*;

    fn command(line: &str) -> Command {
        Cli::try_parse_from(line.split_whitespace()).unwrap().command
    }

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    /// What is said of the other gateways reaches the daemon, wherever it stands; 0 is the daemon's own default.
    #[test]
    fn a_wait_reaches_the_daemon() {
        let asked = |line: &str| match command(line) {
            Command::Disconnect { invalidate, whom } => {
                plain_or_revocation(whom, invalidate).unwrap().unwrap_err().wait_ms
            }
            Command::Lift { wait, .. }
            | Command::Terminate {
                whom:
                    Terminate::User { wait, .. } | Terminate::Id { wait, .. } | Terminate::Session { wait, .. },
            }
            | Command::Lock { whom: Lock::User { wait, .. } }
            | Command::Unlock { whom: Unlock::User { wait, .. } } => wait_ms(wait),
            other => panic!("{other:?}"),
        };
        for line in [
            "enforcer disconnect user -i alice",
            "enforcer disconnect -i id 7",
            "enforcer terminate user alice",
            "enforcer terminate id 7",
            "enforcer terminate session x",
            "enforcer lock user alice --for 2h",
            "enforcer unlock user alice",
            "enforcer lift 7",
        ] {
            assert_eq!(asked(line), 0, "{line}");
            assert_eq!(asked(&format!("{line} --wait 1500ms")), 1_500, "{line}");
        }
        assert!(Cli::try_parse_from(["enforcer", "lift", "7", "--wait", "11min"]).is_err());
        assert!(Cli::try_parse_from(["enforcer", "revoke", "address", "10.0.0.1", "--wait", "1s"]).is_err());
    }

    #[test]
    fn a_plain_disconnect_waits_for_nobody() {
        let plain = |line: &str| match command(line) {
            Command::Disconnect { invalidate, whom } => plain_or_revocation(whom, invalidate),
            other => panic!("{other:?}"),
        };
        assert!(plain("enforcer disconnect user alice").unwrap().is_ok());
        let told = plain("enforcer disconnect user alice --wait 1s").unwrap_err();
        assert!(told.message().contains("add -i"), "{told}");
    }
}
