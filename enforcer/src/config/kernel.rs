//! `[kernel]`: interfaces, modes and table sizes.

use std::path::PathBuf;

use enforcer_ebpf::layout::OPENVPN_PORTS_MOST;
use serde::Deserialize;

/// Where the BPF programs go.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Kernel {
    /// Interfaces that face the clients (XDP), names or patterns with `*`; unset: the default routes' ones.
    pub outer: Option<Vec<String>>,
    /// Interfaces that face the LAN (tc), names or patterns with `*`; unset: every other Ethernet one with an
    /// address, or the outer ones where there is no other.
    pub inner: Option<Vec<String>>,
    pub pin_path: PathBuf,
    pub xdp: Xdp,
    pub tc: Tc,
    /// How a session's sockets are ended; `kill` serves kernels without SOCK_DESTROY.
    pub sockets: Sockets,
    /// UDP ports of this host at which an OpenVPN server (or another peer) is spoken to: the session ids there are read.
    pub openvpn_ports: Vec<u16>,
    pub capacity: Capacity,
}

/// How many entries each of the kernel's tables can hold.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Capacity {
    pub flows: u32,
    pub addresses: u32,
    pub devices: u32,
    pub tokens: u32,
    pub safe_ids: u32,
    pub cutoffs: u32,
    pub locks: u32,
}

impl Default for Capacity {
    fn default() -> Self {
        Self {
            flows: 1_000_000,
            addresses: 1_000_000,
            devices: 65_536,
            tokens: 65_536,
            safe_ids: 262_144,
            cutoffs: 65_536,
            locks: 65_536,
        }
    }
}

impl Capacity {
    fn all(&self) -> [(&'static str, u32); 7] {
        [
            ("flows", self.flows),
            ("addresses", self.addresses),
            ("devices", self.devices),
            ("tokens", self.tokens),
            ("safe-ids", self.safe_ids),
            ("cutoffs", self.cutoffs),
            ("locks", self.locks),
        ]
    }
}

/// The kernel takes 16 bytes for each entry that could be there, at once.
const MAX_CAPACITY: u32 = 64 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Xdp {
    #[default]
    Auto,
    Native,
    Generic,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Tc {
    #[default]
    Auto,
    Tcx,
    Clsact,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Sockets {
    /// SOCK_DESTROY, and the worker killed where the kernel lacks it.
    #[default]
    Auto,
    Kill,
}

impl Default for Kernel {
    fn default() -> Self {
        Self {
            outer: None,
            inner: None,
            pin_path: PathBuf::from("/sys/fs/bpf/enforcer"),
            xdp: Xdp::Auto,
            tc: Tc::Auto,
            sockets: Sockets::Auto,
            openvpn_ports: Vec::new(),
            capacity: Capacity::default(),
        }
    }
}

impl Kernel {
    pub(super) fn validate(&self) -> Result<(), String> {
        for (table, capacity) in self.capacity.all() {
            if capacity == 0 || capacity > MAX_CAPACITY {
                return Err(format!("[kernel.capacity] {table} = {capacity}: it is 1 to {MAX_CAPACITY}"));
            }
        }
        let ports = &self.openvpn_ports;
        if ports.len() > OPENVPN_PORTS_MOST || ports.contains(&0) {
            return Err(format!(
                "[kernel] openvpn-ports = {ports:?}: at most {OPENVPN_PORTS_MOST} UDP ports, each from 1 to 65535"
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    #[test]
    fn openvpns_ports_are_few_and_none_by_default() {
        assert!(Config::parse("").unwrap().kernel.openvpn_ports.is_empty());
        let config = Config::parse("[kernel]\nopenvpn-ports = [1194, 443, 1, 65535]").unwrap();
        assert_eq!(config.kernel.openvpn_ports, [1194, 443, 1, 65535]);
        for bad in ["[0]", "[1, 2, 3, 4, 5]", "[65536]", "[-1]", "1194", "['udp']"] {
            let told = Config::parse(&format!("[kernel]\nopenvpn-ports = {bad}")).unwrap_err();
            assert!(told.contains("openvpn-ports"), "{told}");
        }
    }
}
