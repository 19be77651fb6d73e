//! Ways on which the addresses that ocserv reports, or those on the wire, are not those of its sockets.

use std::fs;

use crate::client::Connect;
use crate::lab::{GATEWAY_V4, Lab, ROUTER_V4};
use crate::namespace::Namespace;
use crate::ocserv::Ocserv;
use crate::process::{Process, eventually};

/// The port that is not ocserv's own.
const PORT: u16 = 8443;

/// How clients reach ocserv.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// Through HAProxy on another host, with the PROXY protocol: all clients' sockets come from that host.
    ProxyOutside,
    /// Through HAProxy on the gateway itself: all clients' sockets come from loopback.
    ProxyInside,
    /// The gateway redirects another port to ocserv's: the port on the wire is not the socket's.
    Redirected,
    /// ocserv in a container: another network namespace, to which the gateway forwards by DNAT.
    Container,
}

/// A way that was built. Dropped: its proxy ends.
pub struct Built {
    pub ocserv: Ocserv,
    pub how: Connect,
    _proxy: Option<Process>,
}

impl Way {
    pub const ALL: [Way; 4] = [Way::ProxyOutside, Way::ProxyInside, Way::Redirected, Way::Container];

    /// Builds the way, and changes `ocserv` so that it is reached by it.
    pub fn build(self, lab: &Lab, ocserv: Ocserv) -> Built {
        match self {
            Way::ProxyOutside => {
                let proxy =
                    haproxy(lab, &lab.router, &format!("{ROUTER_V4}:{PORT}"), &format!("{GATEWAY_V4}:443"));
                let how = Connect::default().url(&format!("https://{ROUTER_V4}:{PORT}"));
                Built { ocserv: proxied(ocserv), how, _proxy: Some(proxy) }
            }
            Way::ProxyInside => {
                let proxy = haproxy(lab, &lab.gateway, &format!("{GATEWAY_V4}:{PORT}"), "127.0.0.1:443");
                Built { ocserv: proxied(ocserv), how: by_port(), _proxy: Some(proxy) }
            }
            Way::Redirected => {
                lab.gateway.nft(&format!(
                    "table ip way {{\nchain pre {{\ntype nat hook prerouting priority -100\n\
                     meta l4proto {{ tcp, udp }} th dport {PORT} redirect to :443\n}}\n}}\n"
                ));
                Built { ocserv, how: by_port(), _proxy: None }
            }
            Way::Container => {
                let container = lab.namespace("ct");
                join(lab, &container);
                let ocserv = ocserv.namespace(&container);
                Built { ocserv, how: Connect::default(), _proxy: None }
            }
        }
    }
}

fn by_port() -> Connect {
    Connect::default().url(&format!("https://{GATEWAY_V4}:{PORT}"))
}

/// Takes the PROXY protocol, and no UDP.
fn proxied(ocserv: Ocserv) -> Ocserv {
    ocserv.set("listen-proxy-proto", "true").set("udp-port", "")
}

fn haproxy(lab: &Lab, host: &Namespace, listen: &str, target: &str) -> Process {
    let config = lab.work().join("haproxy.conf");
    let text = format!(
        "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n\
         frontend vpn\n  bind {listen}\n  default_backend ocserv\n\
         backend ocserv\n  server ocserv {target} send-proxy-v2\n"
    );
    fs::write(&config, text).expect("haproxy's configuration");
    let mut command = host.command("haproxy");
    command.arg("-db").arg("-f").arg(&config);
    let mut process = Process::start("haproxy", command, &lab.work().join("haproxy.log"), None);
    let address = listen.to_owned();
    eventually("haproxy listens", crate::process::BOUND, || {
        assert!(process.exited().is_none(), "haproxy ended: {}", process.log());
        host.within(|| std::net::TcpStream::connect(&address)).ok()
    });
    process
}

/// Links a container to the gateway, which forwards ocserv's port to it and routes its clients' networks there.
fn join(lab: &Lab, container: &Namespace) {
    lab.gateway.ip(&format!(
        "link add ct0 type veth peer name eth0 netns {}\naddr add 172.30.0.1/24 dev ct0\n\
         addr add fd30::1/64 dev ct0 nodad\nlink set ct0 up\n\
         route add 10.88.0.0/24 via 172.30.0.2\nroute add fd88::/64 via fd30::2\n",
        container.name()
    ));
    container.set("ipv4/ip_forward", "1");
    container.set("ipv6/conf/all/forwarding", "1");
    container.ip("addr add 172.30.0.2/24 dev eth0\naddr add fd30::2/64 dev eth0 nodad\nlink set eth0 up\n\
         route add default via 172.30.0.1\nroute add default via fd30::1\n");
    lab.gateway.nft(&format!(
        "table ip way {{\nchain pre {{\ntype nat hook prerouting priority -100\n\
         ip daddr {GATEWAY_V4} meta l4proto {{ tcp, udp }} th dport 443 dnat to 172.30.0.2\n}}\n}}\n"
    ));
}
