//! What would hit the gateway itself, or the connection that the command came through, is refused.

use std::net::{IpAddr, SocketAddr};

use crate::control::Caller;
use crate::process;
use crate::registry::{Order, SessionRow, Target};
use crate::session::Flow;

/// How far up a command's ancestors are looked at for the ssh connection it came through.
const ANCESTORS: usize = 16;

/// The ends of the ssh connection that the caller works through: the client's and the gateway's.
pub(super) fn ssh_connection(caller: Caller) -> Option<(SocketAddr, SocketAddr)> {
    let mut pid = caller.pid?;
    for _ in 0..ANCESTORS {
        if let Some(found) = environment(pid, "SSH_CONNECTION").and_then(|value| ends(&value)) {
            return Some(found);
        }
        pid = process::parent(pid).ok().filter(|parent| *parent > 1)?;
    }
    None
}

fn environment(pid: i32, name: &str) -> Option<String> {
    let all = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
    let prefix = format!("{name}=");
    all.split(|byte| *byte == 0)
        .find_map(|word| word.strip_prefix(prefix.as_bytes()))
        .map(|value| String::from_utf8_lossy(value).into_owned())
}

/// sshd writes client address, client port, server address, server port.
fn ends(value: &str) -> Option<(SocketAddr, SocketAddr)> {
    let words: Vec<&str> = value.split_whitespace().collect();
    let [client, client_port, server, server_port] = words[..] else { return None };
    let end = |address: &str, port: &str| -> Option<SocketAddr> {
        Some(SocketAddr::new(address.parse::<IpAddr>().ok()?.to_canonical(), port.parse().ok()?))
    };
    Some((end(client, client_port)?, end(server, server_port)?))
}

/// What must not be hit, as it is now.
pub(super) struct Guard {
    ssh: Option<(SocketAddr, SocketAddr)>,
    own: Vec<IpAddr>,
}

impl Guard {
    /// `own`: the gateway's addresses, also those in the namespaces of its containers.
    pub(super) fn of(caller: Caller, own: Vec<IpAddr>) -> Self {
        Self { ssh: ssh_connection(caller), own }
    }

    /// Why this order would hit the gateway itself. `rows`: the sessions that it would touch.
    pub(super) fn refusal(&self, order: &Order, rows: &[SessionRow]) -> Option<String> {
        refusal_with(order, rows, self.ssh, &self.own)
    }
}

fn refusal_with(
    order: &Order,
    rows: &[SessionRow],
    ssh: Option<(SocketAddr, SocketAddr)>,
    own: &[IpAddr],
) -> Option<String> {
    match &order.target {
        Target::Address(address) => refuse_address(address.to_canonical(), ssh, own),
        Target::Flow(flow) => refuse_flow(flow, ssh, own),
        _ => {
            let (client, _) = ssh?;
            let mine = rows.iter().find(|row| row.addresses.contains(&client.ip()))?;
            Some(format!(
                "this command came through {}'s own session (ssh from {}): it would cut itself off; \
                 give it from elsewhere",
                mine.user.escape_default(),
                client.ip()
            ))
        }
    }
}

fn refuse_address(address: IpAddr, ssh: Option<(SocketAddr, SocketAddr)>, own: &[IpAddr]) -> Option<String> {
    if own.contains(&address) {
        return Some(format!("{address} is the gateway's own address: nothing was revoked"));
    }
    if address.is_unspecified() || address.is_loopback() || address.is_multicast() || is_broadcast(address) {
        return Some(format!("{address} is no client's address: nothing was revoked"));
    }
    let through = ssh.is_some_and(|(client, _)| client.ip() == address);
    through.then(|| {
        format!("this command came from {address} (ssh): it would cut itself off; give it from elsewhere")
    })
}

fn is_broadcast(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(v4) if v4.is_broadcast())
}

fn refuse_flow(flow: &Flow, ssh: Option<(SocketAddr, SocketAddr)>, own: &[IpAddr]) -> Option<String> {
    if own.contains(&flow.client().ip()) {
        return Some(format!(
            "{} is the gateway's own address, and not a client's (the client's end comes first): nothing was revoked",
            flow.client().ip()
        ));
    }
    let through = ssh.is_some_and(|(client, local)| flow.client() == client && flow.local() == local);
    through.then(|| "this command came through that very connection (ssh): give it from elsewhere".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::Protocol;

    fn order(target: Target) -> Order {
        Order {
            target,
            server: None,
            stands: None,
            reason: String::new(),
            by: String::new(),
            origin: None,
            spare: Default::default(),
            bulk: false,
        }
    }

    fn address(text: &str, ssh: Option<&str>) -> Option<String> {
        let own = ["203.0.113.1".parse().unwrap(), "10.0.0.1".parse().unwrap()];
        refusal_with(&order(Target::Address(text.parse().unwrap())), &[], ssh.and_then(ends), &own)
    }

    #[test]
    fn the_gateways_own_addresses_are_refused_and_a_clients_is_not() {
        assert!(address("203.0.113.1", None).is_some());
        assert!(address("::ffff:203.0.113.1", None).is_some());
        assert!(address("127.0.0.1", None).is_some());
        assert!(address("224.0.0.1", None).is_some());
        assert!(address("10.8.0.7", None).is_none());
    }

    #[test]
    fn the_connection_of_the_command_is_refused_and_another_from_the_same_client_is_not() {
        let ssh = "10.8.0.7 50000 10.0.0.1 22";
        assert!(address("10.8.0.7", Some(ssh)).is_some());
        assert!(address("10.8.0.8", Some(ssh)).is_none());
        let flow = |port| {
            let client = SocketAddr::new("10.8.0.7".parse().unwrap(), port);
            Flow::new(Protocol::Tcp, client, "10.0.0.1:22".parse().unwrap()).unwrap()
        };
        assert!(refusal_with(&order(Target::Flow(flow(50_000))), &[], ends(ssh), &[]).is_some());
        assert!(refusal_with(&order(Target::Flow(flow(50_001))), &[], ends(ssh), &[]).is_none());
    }
}
