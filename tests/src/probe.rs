//! Which of many addresses behind the gateway can be reached from the LAN: a datagram to each, and who gets one.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use crate::lab::{Lab, ROUTER_V4};
use crate::namespace::Namespace;

const PORT: u16 = 9_009;
/// Nobody revokes it: what was sent before it has arrived, or never will.
const FENCE: Ipv4Addr = Ipv4Addr::new(10, 255, 255, 254);

/// The addresses 10.192.0.0/10, all of them the router's, and the LAN host that asks for them.
pub struct Probe {
    lan: Namespace,
    sink: UdpSocket,
    round: u64,
}

impl Probe {
    #[track_caller]
    pub fn new(lab: &Lab) -> Self {
        lab.gateway.ip(&format!("route add 10.192.0.0/10 via {ROUTER_V4}\n"));
        lab.router.ip("route add local 10.192.0.0/10 dev lo\n");
        let sink = lab.router.within(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT))).expect("a socket");
        sink.set_read_timeout(Some(Duration::from_millis(200))).expect("a time-out");
        Self { lan: lab.lan.clone(), sink, round: 0 }
    }

    /// The `n`th address.
    pub fn address(n: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 192, 0, 0)) + n + 1)
    }

    /// Those of the addresses that a packet reaches.
    #[track_caller]
    pub fn reached(&mut self, addresses: &[Ipv4Addr]) -> BTreeSet<Ipv4Addr> {
        self.round += 1;
        let round = self.round;
        let sender = self.lan.within(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))).expect("a socket");
        let mut reached = BTreeSet::new();
        // in parts that a socket's buffer holds
        for part in addresses.chunks(100) {
            for address in part {
                let _ = sender.send_to(format!("{round} {address}").as_bytes(), (*address, PORT));
            }
            self.receive(&sender, &mut reached);
        }
        reached
    }

    fn receive(&self, sender: &UdpSocket, reached: &mut BTreeSet<Ipv4Addr>) {
        let mut buffer = [0; 64];
        let end = Instant::now() + Duration::from_secs(10);
        let fence = format!("{} {FENCE}", self.round);
        let _ = sender.send_to(fence.as_bytes(), (FENCE, PORT));
        while Instant::now() < end {
            let Ok((length, _)) = self.sink.recv_from(&mut buffer) else {
                let _ = sender.send_to(fence.as_bytes(), (FENCE, PORT));
                continue;
            };
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            let Some((round, address)) = text.split_once(' ') else { continue };
            if text == fence {
                return;
            }
            if round == self.round.to_string() {
                reached.extend(address.parse::<Ipv4Addr>().ok());
            }
        }
        panic!("not even the address that nobody revokes is reached");
    }
}
