//! OpenVPN over UDP: a real server on the gateway, and real clients on hosts of their own. Everybody has a certificate
//! that is made for the test and known by its fingerprint, so that nobody is needed to sign them.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::client::Client;
use crate::lab::{GATEWAY_V4, Lab};
use crate::process::{BOUND, Process, command, eventually, succeed};

/// OpenVPN's own port.
pub const PORT: u16 = 1194;
/// Where the clients' control packets go.
pub const SERVER: SocketAddrV4 = SocketAddrV4::new(GATEWAY_V4, PORT);

/// What protects the control packets beside TLS.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protection {
    None,
    /// A secret of all for a signature (tls-auth).
    Auth,
    /// A secret of all, encrypted (tls-crypt).
    Crypt,
    /// Encrypted with a secret of each client (tls-crypt-v2).
    CryptV2,
}

/// A running server with 10.99.0.0/24 on `ovpn0`. It lets in those whom it was told of.
pub struct OpenvpnServer {
    folder: PathBuf,
    protection: Protection,
    _process: Process,
    fingerprint: String,
}

/// A client whose tunnel is up on `ovpn0` of its host, with a route to the LAN.
pub struct OpenvpnTunnel {
    pub process: Process,
    pub v4: Ipv4Addr,
}

impl OpenvpnServer {
    /// `clients`: the names of those who may come.
    #[track_caller]
    pub fn start(lab: &Lab, protection: Protection, clients: &[&str]) -> Self {
        let folder = lab.work().join("openvpn");
        fs::create_dir_all(&folder).expect("a folder");
        let fingerprint = certificate(&folder, "server");
        let known: String = clients.iter().map(|name| certificate(&folder, name) + "\n").collect();
        make_secrets(&folder, protection, clients);
        let config = format!(
            "local {GATEWAY_V4}\nport {PORT}\nproto udp4\ndev ovpn0\ndev-type tun\ntopology subnet\n\
             server 10.99.0.0 255.255.255.0\npush \"route 10.77.0.0 255.255.255.0\"\ndh none\n\
             <peer-fingerprint>\n{known}</peer-fingerprint>\n{}",
            secret(&folder, protection, "server")
        );
        let mut process = run(&folder, "server", &config, lab.gateway.command("openvpn"));
        is_up("the OpenVPN server", &mut process);
        Self { folder, protection, _process: process, fingerprint }
    }

    /// Connects from that local port, and waits until the tunnel is up. `more`: further lines of its configuration.
    #[track_caller]
    pub fn connect(&self, client: &Client, port: u16, more: &str) -> OpenvpnTunnel {
        let name = client.name();
        let config = format!(
            "client\nremote {GATEWAY_V4} {PORT} udp4\nlport {port}\ndev ovpn0\ndev-type tun\n\
             peer-fingerprint {}\n{}{more}\n",
            self.fingerprint,
            secret(&self.folder, self.protection, name)
        );
        let mut process = run(&self.folder, name, &config, client.namespace.command("openvpn"));
        is_up(name, &mut process);
        let log = process.log();
        let address = log.split(",ifconfig ").nth(1).and_then(|rest| rest.split([' ', ',', '\'']).next());
        let v4 = address.and_then(|address| address.parse().ok());
        OpenvpnTunnel { process, v4: v4.unwrap_or_else(|| panic!("no address was given:\n{log}")) }
    }
}

/// Starts it with that configuration and what all have in common.
fn run(folder: &Path, name: &str, config: &str, mut openvpn: Command) -> Process {
    let file = |end: &str| folder.join(format!("{name}.{end}"));
    let all = format!(
        "{config}cert {}\nkey {}\nverb 3\ndisable-dco\n",
        file("crt").display(),
        file("key").display()
    );
    fs::write(file("conf"), all).expect("a configuration");
    openvpn.arg("--config").arg(file("conf"));
    // a log of its own for each run, beside the lab's others, whose ends a failing test prints
    let work = folder.parent().expect("a folder");
    let log = (0..).map(|run| work.join(format!("openvpn-{name}-{run}.log"))).find(|log| !log.exists());
    Process::start(name, openvpn, &log.expect("a name"), None)
}

#[track_caller]
fn is_up(name: &str, process: &mut Process) {
    eventually(&format!("{name} is up"), BOUND, || {
        let done = process.log().contains("Initialization Sequence Completed");
        let ended = process.exited();
        assert!(ended.is_none(), "openvpn of {name} ended:\n{}", process.log());
        done.then_some(())
    });
}

/// Makes `NAME.crt` and `NAME.key`; gives the fingerprint.
fn certificate(folder: &Path, name: &str) -> String {
    let script = format!(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj /CN={name} \
         -keyout {name}.key -out {name}.crt 2>{name}.err || {{ cat {name}.err; exit 1; }}
         openssl x509 -in {name}.crt -noout -fingerprint -sha256"
    );
    let mut shell = command("sh", ["-c", &script]);
    shell.current_dir(folder);
    let said = succeed(shell, "");
    said.trim().rsplit('=').next().expect("a fingerprint").to_owned()
}

fn make_secrets(folder: &Path, protection: Protection, clients: &[&str]) {
    let genkey = |before: &[&str], words: &[&str]| {
        let mut openvpn = command("openvpn", before);
        openvpn.arg("--genkey").args(words).current_dir(folder);
        succeed(openvpn, "");
    };
    match protection {
        Protection::None => {}
        Protection::Auth | Protection::Crypt => genkey(&[], &["secret", "all.secret"]),
        Protection::CryptV2 => {
            genkey(&[], &["tls-crypt-v2-server", "server.secret"]);
            for name in clients {
                let file = format!("{name}.secret");
                genkey(&["--tls-crypt-v2", "server.secret"], &["tls-crypt-v2-client", &file]);
            }
        }
    }
}

/// The line of the configuration that names it.
fn secret(folder: &Path, protection: Protection, name: &str) -> String {
    let file = |of: &str| folder.join(format!("{of}.secret")).display().to_string();
    match protection {
        Protection::None => String::new(),
        Protection::Auth => {
            format!("tls-auth {} {}\n", file("all"), if name == "server" { 0 } else { 1 })
        }
        Protection::Crypt => format!("tls-crypt {}\n", file("all")),
        Protection::CryptV2 => format!("tls-crypt-v2 {}\n", file(name)),
    }
}
