//! The usual parts put together: a gateway with ocserv and the enforcer, alice and bob on hosts of their own.

use std::net::IpAddr;

use crate::client::{Client, Connect, Cookie, Tunnel};
use crate::clock::Moment;
use crate::enforcer::{Config, Enforcer};
use crate::era::Era;
use crate::lab::{LAN, Lab};
use crate::ocserv::{Ocserv, Server};
use crate::tap::Tap;
use crate::traffic::{Flood, Route};

/// A guarded gateway. The order of the members is the order in which they end.
pub struct Scene {
    pub server: Server,
    pub enforcer: Enforcer,
    pub alice: Client,
    pub bob: Client,
    pub lab: Lab,
}

impl Scene {
    /// ocserv of `era` with the gate, and the daemon running.
    #[track_caller]
    pub fn new(name: &str, era: Era) -> Self {
        Self::with(name, era, |ocserv| ocserv, |config| config)
    }

    /// The same, changed by the test.
    #[track_caller]
    pub fn with(
        name: &str,
        era: Era,
        ocserv: impl FnOnce(Ocserv) -> Ocserv,
        config: impl FnOnce(Config) -> Config,
    ) -> Self {
        let mut lab = Lab::new(name);
        let plain = ocserv(Ocserv::new(&lab, era, 0));
        let mut enforcer = Enforcer::prepare(&lab, &config(Config::new(&[&plain])));
        let server = enforcer.guard(plain).start();
        enforcer.start();
        let alice = lab.client("alice");
        let bob = lab.client("bob");
        Self { server, enforcer, alice, bob, lab }
    }

    /// A session of `user` on a client's host, of which the daemon knows.
    #[track_caller]
    pub fn session(&self, client: &Client, user: &str) -> (Cookie, Tunnel) {
        let session = client.session(&self.server, user);
        self.enforcer.knows(user);
        session
    }

    /// Tries a cookie: it must be refused.
    #[track_caller]
    pub fn refused(&self, client: &Client, cookie: &Cookie) {
        client.connect(&self.server, cookie, &Connect::default()).refused();
    }

    /// Packets in both directions between a tunnel and the LAN host.
    pub fn flood(&self, client: &Client, tunnel: &Tunnel, v6: bool, rate: u32) -> Pair {
        Pair::new(&self.lab, client, tunnel, v6, rate)
    }
}

/// Both directions of a tunnel's traffic with the LAN host.
pub struct Pair {
    /// From the client.
    pub up: Flood,
    /// To the client.
    pub down: Flood,
}

impl Pair {
    pub fn new(lab: &Lab, client: &Client, tunnel: &Tunnel, v6: bool, rate: u32) -> Self {
        let up = Route::new(&client.namespace, &lab.lan, lab.lan_ip(v6)).source(tunnel.ip(v6));
        let down = Route::new(&lab.lan, &client.namespace, tunnel.ip(v6));
        Self { up: Flood::start(&up, rate), down: Flood::start(&down, rate) }
    }

    #[track_caller]
    pub fn flowing(&self) -> &Self {
        self.up.flowing();
        self.down.flowing();
        self
    }

    /// R1: nothing that was sent after the answer arrived, and nothing reached the LAN host after it; while at
    /// least `tried` more packets were sent in each direction.
    #[track_caller]
    pub fn stopped_at(&self, answered: Moment, tried: usize) {
        self.up.wait_sent(tried);
        self.down.wait_sent(tried);
        let late = self.up.received_after(answered);
        assert!(late.is_empty(), "{} packets reached the LAN host after the answer: {late:?}", late.len());
        for (flood, whose) in [(&self.up, "from"), (&self.down, "to")] {
            let passed = flood.passed_after(answered);
            assert!(passed.is_empty(), "{} packets passed {whose} the client: {passed:?}", passed.len());
        }
    }

    /// R3: nothing sent between the two times was lost.
    #[track_caller]
    pub fn lost_nothing(&mut self, from: Moment, to: Moment) {
        for (flood, whose) in [(&mut self.up, "from"), (&mut self.down, "to")] {
            flood.stop_sending();
            let lost = flood.lost_between(from, to);
            assert!(lost.is_empty(), "{} packets {whose} the client were lost: {lost:?}", lost.len());
        }
    }
}

/// R1 on the gateway itself: after `answered` no packet of these addresses left through the LAN device, nor into
/// the tunnel device.
#[track_caller]
pub fn nothing_left(tap: &Tap, tunnel_device: &str, addresses: &[IpAddr], answered: Moment) {
    for device in [LAN, tunnel_device] {
        let late = tap.out_after(device, addresses, answered);
        assert!(late.is_empty(), "{} packets left through {device} after the answer: {late:?}", late.len());
    }
}

/// alice has 10.66.0.0/24 behind her client.
pub fn routed_network(ocserv: Ocserv) -> Ocserv {
    ocserv
        .set("route-add-cmd", "\"ip route add %{R} dev %{D}\"")
        .set("route-del-cmd", "\"ip route delete %{R} dev %{D}\"")
        .set("expose-iroutes", "false")
        .for_user("alice", "iroute = 10.66.0.0/255.255.255.0")
}

/// Each client gets an IPv6 prefix of its own, 64 bits long.
pub fn delegated_prefix(ocserv: Ocserv) -> Ocserv {
    ocserv.set("ipv6-network", "fd88::/48").set("ipv6-subnet-prefix", "64")
}

/// An address in the prefix that was delegated to this tunnel, and not the tunnel's own.
#[track_caller]
pub fn other_in_prefix(tunnel: &Tunnel) -> IpAddr {
    assert!(tunnel.prefix.ends_with("/64"), "no prefix was delegated: {}", tunnel.prefix);
    let mut parts = tunnel.v6.expect("an IPv6 address").segments();
    parts[7] ^= 0x1234;
    IpAddr::from(parts)
}
