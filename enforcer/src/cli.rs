//! The command line.

mod audit;
mod bulk;
mod cluster;
mod gateway_keys;
mod gateways;
mod listing;
mod occtl;
mod output;
mod passwd;
mod run;
mod setup;
mod words;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::exit::Code;

pub use occtl::run as run_as_occtl;
pub use words::{parse_duration, parse_wait};

/// Ends gateway sessions in every layer at once: packets, sockets, VPN cookie, web session.
#[derive(Debug, Parser)]
#[command(
    name = "enforcer",
    version,
    propagate_version = true,
    after_help = "Exit codes: 0 done in every layer, 1 error, 2 usage, 3 nothing matched, 4 done in part (the receipt \
                  says where not).\n\nExamples:\n  enforcer disconnect user -i alice      end alice's sessions, and keep \
                  them ended\n  enforcer terminate id 4711 --reason 'laptop lost'\n  enforcer show sessions\n  enforcer \
                  show gateways\n  enforcer check"
)]
pub struct Cli {
    #[command(flatten)]
    pub common: Common,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Clone, Args)]
pub struct Common {
    /// Print JSON instead of tables
    #[arg(short, long, global = true)]
    pub json: bool,
    /// The daemon's control socket [default: as in the configuration]
    #[arg(short, long, global = true, value_name = "FILE", env = "ENFORCER_SOCKET")]
    pub socket: Option<PathBuf>,
    /// The configuration file [default: /etc/enforcer/enforcer.toml, if it is there]
    #[arg(long, global = true, value_name = "FILE", env = "ENFORCER_CONFIG")]
    pub config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// The daemon, in the foreground
    #[command(
        after_help = "SIGTERM stops it; what is in force in the kernel stays in force. The log goes to standard \
                            error; ENFORCER_LOG=enforcer=debug makes it tell everything that happens."
    )]
    Run,
    /// ocserv's own disconnect, which leaves the cookie valid; with -i a revocation, which does not
    #[command(
        subcommand_required = true,
        after_help = "Examples:\n  enforcer disconnect user -i alice\n  enforcer disconnect user -i alice --wait 30s\n  \
                      enforcer disconnect id 4711 --invalidate --dry-run\n\nWith -i other gateways are told of a user, \
                      where there are any ([cluster]); not of an id, which is an id on one gateway alone, nor where --server \
                      names one."
    )]
    Disconnect {
        /// Make the cookies worthless as well: a revocation
        #[arg(short, long)]
        invalidate: bool,
        #[command(subcommand)]
        whom: Disconnect,
    },
    /// End sessions and keep them ended: a revocation
    #[command(
        after_help = "Where there are other gateways ([cluster]), they end the user or the session too; an id is one \
                            gateway's alone, and so is what --server names. The receipt says which of them have confirmed; \
                            the others follow, and then the exit code is 4.\n\nExamples:\n  enforcer terminate user alice \
                            --reason 'left the company'\n  enforcer terminate user alice --wait 30s\n  enforcer \
                            terminate session 2jmj7l5rSw0yVb/vlWAYkK/YBwk=\n  enforcer terminate session \
                            8f2b6c0d9e4a41d7b3c5e6f708192a3b   a web session, by its key"
    )]
    Terminate {
        #[command(subcommand)]
        whom: Terminate,
    },
    /// Revoke an address, a flow or a wire token by itself (for any VPN's hooks)
    #[command(
        args_conflicts_with_subcommands = true,
        after_help = "Examples:\n  enforcer revoke address 10.8.0.7 --for 2h\n  enforcer revoke flow tcp \
                      198.51.100.7:51234 203.0.113.1:443\n  enforcer revoke --from list.txt      one a line, as on the \
                      command line: address 10.8.0.7 --for 2h"
    )]
    Revoke {
        #[command(subcommand)]
        what: Option<Revoke>,
        #[command(flatten)]
        from: From,
    },
    /// Refuse a person every login, also a fresh one, and end what they have
    #[command(
        subcommand_required = true,
        after_help = "Examples:\n  enforcer lock user alice --reason 'laptop lost'\n  enforcer lock user bob --for 2h\n\
                      A lock holds on every server of the realm, and on every other gateway ([cluster]), with or \
                      without the daemon, until its time is over or until `enforcer unlock user NAME`."
    )]
    Lock {
        #[command(subcommand)]
        whom: Lock,
    },
    /// Let a locked person log in again
    #[command(
        subcommand_required = true,
        after_help = "Examples:\n  enforcer unlock user alice\n  \
                                                      enforcer unlock user alice --wait 30s"
    )]
    Unlock {
        #[command(subcommand)]
        whom: Unlock,
    },
    /// Take one revocation back
    #[command(
        after_help = "Where the other gateways were told of it, they take it back too.\n\nExamples:\n  enforcer lift 4711\n  \
                      enforcer lift 4711 --wait 30s"
    )]
    Lift {
        /// Its number (show revocations)
        number: u64,
        #[command(flatten)]
        change: Change,
        #[command(flatten)]
        wait: Wait,
    },
    /// What is there, and what is in force
    Show {
        #[command(subcommand)]
        what: Show,
    },
    /// ocserv's connect-script and disconnect-script; also under the name enforcer-gate
    #[command(after_help = "In ocserv.conf (ocserv passes no arguments, so it goes by the link's name):\n  \
                            connect-script = /usr/sbin/enforcer-gate\n  disconnect-script = /usr/sbin/enforcer-gate")]
    Gate,
    /// Is this host ready, is everything in force? Shows a probe packet to every attached program
    #[command(
        after_help = "With --repair: where the database in the state directory is broken, it is kept aside \
                            under another name, and a new one is made of what can still be read of it; what is in \
                            force in the kernel is written there by the daemon at its next start."
    )]
    Check {
        /// Keep a broken database aside and make a new one. The daemon must not be running
        #[arg(long)]
        repair: bool,
    },
    /// The users of the web gateway: a new one, or a new password
    #[command(
        after_help = "On a terminal it asks for the password twice, without echo; otherwise it reads the first line of \
                      standard input. Sessions that run go on: `enforcer disconnect user -i NAME` ends them.\n\n\
                      Examples:\n  enforcer passwd alice\n  enforcer passwd --lock alice\n  enforcer passwd --group \
                      staff bob < FILE"
    )]
    Passwd(passwd::Passwd),
    /// The web gateway, in the foreground: it seals the cookies of the applications behind it
    #[command(
        after_help = "It needs [web] and [gateway] in the configuration, and the daemon (`enforcer run`). Started as root \
                      it takes its ports, reads its certificates, and becomes the user of [web].\n\nSIGHUP reads \
                      certificates, master keys, users and rules again; SIGTERM stops it, after what is on its way. \
                      ENFORCER_LOG=enforcer=debug makes it tell everything that happens.\n\nExamples:\n  enforcer \
                      gateway\n  enforcer gateway --config /etc/enforcer/gateway.toml\n  enforcer disconnect user -i \
                      alice      ends alice's web sessions too"
    )]
    Gateway,
    /// The master keys of the web gateway: what the sessions' secrets are wrapped with
    #[command(
        name = "gateway-keys",
        subcommand_required = true,
        after_help = "A new key logs nobody out: each session's secret is wrapped under it when the session is next seen. \
                      A gateway that runs notices the change by itself; SIGHUP makes it look at once.\n\nExamples:\n  \
                      enforcer gateway-keys rotate && systemctl reload enforcer-gateway\n  enforcer gateway-keys retire"
    )]
    GatewayKeys {
        #[command(subcommand)]
        what: gateway_keys::Keys,
    },
    /// Other gateways at etcd: this one's id, the role that it needs there, taking one out
    #[command(
        subcommand_required = true,
        after_help = "It prints commands for etcd's administrator, and changes nothing itself.\n\nExamples:\n  enforcer cluster \
                      id\n  enforcer cluster roles\n  enforcer cluster remove vpn-2"
    )]
    Cluster {
        #[command(subcommand)]
        what: cluster::Cluster,
    },
    /// The audit log: whether it is as it was written, and all of it as JSON lines
    #[command(
        subcommand_required = true,
        after_help = "It reads [state] directory, with or without the daemon. Each revocation, lock, unlock \
                      and lift has a line there, a list in bulk has one for all of it, and ocserv's own disconnect has none; for as \
                      long as [state] audit-days and audit-rows say.\n\nExamples:\n  enforcer audit verify\n  enforcer audit \
                      export > audit.jsonl\n  enforcer audit verify --from audit.jsonl"
    )]
    Audit {
        #[command(subcommand)]
        what: audit::Audit,
    },
    /// What the enforcer needs in ocserv's configuration: shown, made, taken back
    #[command(
        subcommand_required = true,
        after_help = "Examples:\n  enforcer setup ocserv              what would be changed\n  enforcer setup ocserv --apply && \
                      systemctl restart ocserv"
    )]
    Setup {
        #[command(subcommand)]
        what: setup::Setup,
    },
    /// Take everything out of the kernel: programs, maps, pins. Nothing is in force after it
    Unload,
}

/// What everything takes that changes something.
#[derive(Debug, Clone, Default, Args)]
pub struct Change {
    /// Why, for the record
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub reason: String,
    /// Only show whom and what it would touch
    #[arg(long)]
    pub dry_run: bool,
}

/// What everything takes of which the other gateways are told.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct Wait {
    /// How long to wait for the other gateways (500ms, 10s, 1min) [default: until those that are alive have confirmed, at
    /// most 4s]
    #[arg(long, value_name = "DURATION", value_parser = parse_wait)]
    pub wait: Option<std::time::Duration>,
}

#[derive(Debug, Clone, Default, Args)]
pub struct OnServer {
    /// Only on this ocserv server, by its configured name
    #[arg(long, value_name = "NAME", default_value = "")]
    pub server: String,
}

#[derive(Debug, Subcommand)]
pub enum Disconnect {
    /// All sessions of a user
    User {
        name: String,
        /// Make its cookies worthless as well: a revocation
        #[arg(short, long)]
        invalidate: bool,
        #[command(flatten)]
        on: OnServer,
        #[command(flatten)]
        change: Change,
        #[command(flatten)]
        wait: Wait,
    },
    /// One session, by ocserv's id
    Id {
        id: i32,
        /// Make its cookie worthless as well: a revocation
        #[arg(short, long)]
        invalidate: bool,
        #[command(flatten)]
        on: OnServer,
        #[command(flatten)]
        change: Change,
        #[command(flatten)]
        wait: Wait,
    },
}

#[derive(Debug, Clone, Args)]
pub struct Person {
    /// As the person logs in
    pub name: String,
    /// The realm whose name it is, as configured
    #[arg(long, value_name = "NAME", default_value = "")]
    pub realm: String,
}

#[derive(Debug, Subcommand)]
pub enum Lock {
    /// A user, by name
    User {
        #[command(flatten)]
        person: Person,
        /// How long it stands (90s, 15min, 2h, 1d) [default: until unlocked]
        #[arg(long = "for", value_name = "DURATION", value_parser = parse_duration)]
        stands: Option<std::time::Duration>,
        #[command(flatten)]
        change: Change,
        #[command(flatten)]
        wait: Wait,
    },
}

#[derive(Debug, Subcommand)]
pub enum Unlock {
    /// A user, by name
    User {
        #[command(flatten)]
        person: Person,
        #[command(flatten)]
        change: Change,
        #[command(flatten)]
        wait: Wait,
    },
}

#[derive(Debug, Subcommand)]
pub enum Terminate {
    /// All sessions and cookies that a user has now
    User {
        name: String,
        #[command(flatten)]
        on: OnServer,
        #[command(flatten)]
        change: Change,
        #[command(flatten)]
        wait: Wait,
    },
    /// One session, by ocserv's id
    Id {
        id: i32,
        #[command(flatten)]
        on: OnServer,
        #[command(flatten)]
        change: Change,
        #[command(flatten)]
        wait: Wait,
    },
    /// One session by its safe_id, also one whose client is offline; or a web session by its key
    Session {
        #[arg(value_name = "SAFE_ID|KEY")]
        safe_id: String,
        #[command(flatten)]
        on: OnServer,
        #[command(flatten)]
        change: Change,
        #[command(flatten)]
        wait: Wait,
    },
}

#[derive(Debug, Clone, Default, Args)]
pub struct For {
    /// How long it stands (90s, 15min, 2h, 1d) [default: until lifted]
    #[arg(long = "for", value_name = "DURATION", value_parser = parse_duration)]
    pub stands: Option<std::time::Duration>,
}

#[derive(Debug, Subcommand)]
pub enum Revoke {
    /// A tunnel address: dropped on the LAN side and on tunnel devices
    Address {
        #[arg(value_name = "IP")]
        address: std::net::IpAddr,
        #[command(flatten)]
        stands: For,
        #[command(flatten)]
        change: Change,
    },
    /// An exact outer flow: dropped in XDP, its socket destroyed
    Flow {
        #[arg(value_name = "tcp|udp")]
        protocol: String,
        #[arg(value_name = "CLIENT:PORT")]
        client: std::net::SocketAddr,
        #[arg(value_name = "LOCAL:PORT")]
        local: std::net::SocketAddr,
        #[command(flatten)]
        stands: For,
        #[command(flatten)]
        change: Change,
    },
    /// A wire token: the session id of a DTLS ClientHello or of OpenVPN (the client's, over UDP)
    #[command(
        after_help = "Examples:\n  enforcer revoke token openvpn 0a0b0c0d0e0f1011 --for 1d\n  enforcer revoke token \
                      dtls 0a0b\n\
                      [kernel] openvpn-ports in the configuration says at which UDP ports OpenVPN's ids are read. \
                      `enforcer revoke flow udp CLIENT:PORT LOCAL:PORT --dry-run` tells which id a flow has shown last."
    )]
    Token {
        #[arg(value_name = "dtls|openvpn")]
        kind: String,
        #[arg(value_name = "HEX")]
        id: String,
        #[command(flatten)]
        stands: For,
        #[command(flatten)]
        change: Change,
    },
}

#[derive(Debug, Clone, Args)]
pub struct From {
    /// Revoke what a file lists, one a line; `-` is standard input
    #[arg(long, value_name = "FILE")]
    pub from: Option<PathBuf>,
    /// For the lines that do not say themselves
    #[command(flatten)]
    pub stands: For,
    #[command(flatten)]
    pub change: Change,
}

#[derive(Debug, Clone, Copy, Subcommand)]
pub enum Show {
    /// The daemon, the servers, the interfaces, the tables, the counters
    Status,
    /// Who is connected, a line each
    Users,
    /// Every session, of the VPN and of the web gateway, and every cookie whose client is offline
    #[command(
        after_help = "Examples:\n  enforcer show sessions\n  enforcer show sessions --all      those of every gateway, as \
                            etcd has them"
    )]
    Sessions {
        /// Those of all gateways
        #[arg(long)]
        all: bool,
    },
    /// The other gateways, how far each is, and the etcd by which they tell each other
    #[command(
        after_help = "STATE is `alive` while the gateway is connected to etcd; PENDING is how many revocations, locks and \
                            lifts it has not confirmed. One that is gone for good keeps them all: `enforcer cluster remove \
                            --help` says how to take it out.\n\nExamples:\n  enforcer show gateways\n  enforcer show gateways \
                            --json"
    )]
    Gateways,
    /// Revocations, what they have stopped and when last
    Revocations {
        /// Only how many there are
        #[arg(long)]
        count: bool,
    },
    /// What happened lately; also the first packet that each entry has dropped
    Events,
}

/// Runs what the command line says. Usage errors are printed, with exit code 2.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // --help and --version are errors to clap, and not to anybody else
            let code = if error.use_stderr() { Code::Usage } else { Code::Done };
            let _ = error.print();
            return code.into();
        }
    };
    run::run(cli)
}
