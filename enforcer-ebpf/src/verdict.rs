//! What each hook looks up, and what comes of it. The same code runs in the kernel and in the host's tests.

use crate::counters::Reason;
use crate::layout::{
    Address, AddressKey, DeviceKey, FOREVER, FRAGMENT_NS, FlowKey, FragmentKey, LEASE_NS, LEASED, TokenKey,
    UDP,
};
use crate::openvpn;
use crate::packet::{
    self, First, Fragment, Frame, Framing, Outer, Segment, Unread, addresses, dtls_session_id,
};

/// The tables and the clock.
pub trait World {
    /// An entry that was found, to be asked for more: in the kernel a pointer into the map.
    type Found: Copy;

    /// The network namespace in which we are.
    fn netns(&self) -> u32;
    fn flow(&self, key: &FlowKey) -> Option<Self::Found>;
    /// Whether one word tells that there is no such flow: never `true` where there is one.
    fn has_no_flow(&self, key: &FlowKey) -> bool;
    fn token(&self, key: &TokenKey) -> Option<Self::Found>;
    fn address(&self, key: &AddressKey) -> Option<Self::Found>;
    fn device(&self, key: &DeviceKey) -> Option<Self::Found>;
    /// [`crate::layout::Standing::expires_ns`] of the entry.
    fn expires_ns(&self, found: Self::Found) -> u64;
    /// CLOCK_MONOTONIC. Asked for only after something was found.
    fn now_ns(&self) -> u64;
    /// When the daemon last wrote its heartbeat, on the same clock.
    fn heartbeat_ns(&self) -> u64;
    /// Counts one drop by that entry.
    fn hit(&self, found: Self::Found, now_ns: u64);
    /// Until when the fragments of that datagram are dropped; `None`: they are not.
    fn fragments(&self, key: &FragmentKey) -> Option<u64>;
    /// The first fragment of that datagram is dropped: so are the others, until then. It may be forgotten.
    fn drop_fragments(&self, key: &FragmentKey, until_ns: u64);
    /// The first fragment of that datagram passes: so do the others.
    fn pass_fragments(&self, key: &FragmentKey);
    /// This flow has shown that token, and passes. It may be forgotten.
    fn learn(&self, flow: &FlowKey, token: &TokenKey);
    /// The entry of the token that this flow has shown last, as far as both are there.
    fn shown(&self, flow: &FlowKey) -> Option<Self::Found>;
    /// Whether this local UDP port (network byte order) is OpenVPN's.
    fn is_openvpn(&self, port: u16) -> bool;
}

/// What happens to the packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It passes, and nothing is to be said.
    Pass,
    /// It passes, and is counted.
    PassCounted(Reason),
    /// It is dropped, and is counted.
    Drop(Reason),
}

/// Whether a leased entry is in force `now`. A heartbeat from the future (never on one host) is in force.
#[inline(always)]
pub const fn lease_holds(heartbeat_ns: u64, now_ns: u64) -> bool {
    now_ns < heartbeat_ns.saturating_add(LEASE_NS)
}

/// Drops for an entry in force. `Pass` if there is none.
#[inline(always)]
fn judge<W: World>(world: &W, found: Option<W::Found>, reason: Reason) -> Verdict {
    let Some(found) = found else { return Verdict::Pass };
    let now = world.now_ns();
    match world.expires_ns(found) {
        FOREVER => {}
        LEASED => {
            if !lease_holds(world.heartbeat_ns(), now) {
                return Verdict::PassCounted(Reason::PassedLapsed);
            }
        }
        until => {
            if now >= until {
                return Verdict::PassCounted(Reason::PassedExpired);
            }
        }
    }
    world.hit(found, now);
    Verdict::Drop(reason)
}

#[inline(always)]
fn unread(unread: Unread) -> Verdict {
    match unread {
        Unread::Foreign => Verdict::Pass,
        Unread::CutOff => Verdict::PassCounted(Reason::PassedCutOff),
        Unread::TooDeep => Verdict::PassCounted(Reason::PassedTooDeep),
    }
}

/// What one word tells of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Look {
    /// [`outer`] says [`Verdict::Pass`] of it, and leaves everything as it is: nobody needs to look further.
    Nobodys,
    /// [`plain`] knows what becomes of it.
    Plain,
    /// [`other`] does.
    Other,
}

/// The first look of XDP, which is all that almost every honest packet pays for: of what is read nothing is kept for
/// those who look further.
#[inline(always)]
pub fn look<W: World>(world: &W, frame: &(impl Frame + ?Sized), framing: Framing) -> Look {
    let Ok(network) = packet::network(frame, framing) else { return Look::Other };
    let asked = packet::plain(frame, network, |segment| {
        if segment.protocol == UDP
            && (packet::may_be_handshake(frame, segment.at) || world.is_openvpn(segment.destination_port))
        {
            return Look::Plain;
        }
        if world.has_no_flow(&flow_key(world, segment)) { Look::Nobodys } else { Look::Plain }
    });
    asked.unwrap_or(Look::Other)
}

/// XDP on an outer device: the sender is the client, the receiver is us. What the programs say in two steps, after a
/// first [`look`].
#[inline(always)]
pub fn outer<W: World>(world: &W, frame: &(impl Frame + ?Sized), framing: Framing) -> Verdict {
    match look(world, frame, framing) {
        Look::Nobodys => Verdict::Pass,
        Look::Plain => plain(world, frame, framing),
        Look::Other => other(world, frame, framing),
    }
}

/// Of a TCP or UDP packet in one piece; what is none passes.
#[inline(always)]
pub fn plain<W: World>(world: &W, frame: &(impl Frame + ?Sized), framing: Framing) -> Verdict {
    let Ok(network) = packet::network(frame, framing) else { return Verdict::Pass };
    match packet::plain(frame, network, |segment| *segment) {
        Some(segment) => sent(world, frame, &segment),
        None => Verdict::Pass,
    }
}

/// Of any packet: fragments, IPv6 extension headers, ICMP errors.
#[inline(always)]
pub fn other<W: World>(world: &W, frame: &(impl Frame + ?Sized), framing: Framing) -> Verdict {
    let (verdict, first) = match packet::outer(frame, framing) {
        Err(why) => return unread(why),
        Ok(Outer::Later(fragment)) => return later(world, fragment),
        Ok(Outer::Headless(of)) => (Verdict::Drop(Reason::DroppedFragment), First { is: true, of }),
        Ok(Outer::Other(of)) => (Verdict::Pass, First { is: true, of }),
        Ok(Outer::Quote(about, first)) => {
            (judge(world, world.flow(&flow_key(world, &about)), Reason::DroppedError), first)
        }
        Ok(Outer::Segment(segment, first)) => (sent(world, frame, &segment), first),
    };
    if first.is {
        let key = fragment_key(world, first.of);
        match verdict {
            Verdict::Drop(_) => world.drop_fragments(&key, world.now_ns().saturating_add(FRAGMENT_NS)),
            _ => world.pass_fragments(&key),
        }
    }
    verdict
}

/// By the flow, and by the token that it shows. OpenVPN's data shows none, and goes the way of the token that its flow
/// has shown last: so a tunnel's data ends with its token, and a new session from the same port passes with its first
/// packet, since that one is learned.
#[inline(always)]
fn sent<W: World>(world: &W, frame: &(impl Frame + ?Sized), segment: &Segment) -> Verdict {
    let flow = flow_key(world, segment);
    let verdict = judge(world, world.flow(&flow), Reason::DroppedFlow);
    if matches!(verdict, Verdict::Drop(_)) || segment.protocol != UDP {
        return verdict;
    }
    if world.is_openvpn(segment.destination_port) {
        if openvpn::is_data(frame, segment.at) {
            return or_else(verdict, judge(world, world.shown(&flow), Reason::DroppedToken));
        }
        if let Some(token) = openvpn::session_id(frame, segment.at) {
            return shows(world, &flow, &token, verdict);
        }
    }
    match dtls_session_id(frame, segment.at) {
        None => verdict,
        Some(token) => shows(world, &flow, &token, verdict),
    }
}

/// `verdict`: what the flow by itself would be told, which is no drop.
#[inline(always)]
fn shows<W: World>(world: &W, flow: &FlowKey, token: &TokenKey, verdict: Verdict) -> Verdict {
    match judge(world, world.token(token), Reason::DroppedToken) {
        Verdict::Drop(reason) => Verdict::Drop(reason),
        said => {
            world.learn(flow, token);
            or_else(verdict, said)
        }
    }
}

#[inline(always)]
fn flow_key<W: World>(world: &W, segment: &Segment) -> FlowKey {
    FlowKey {
        client: segment.source,
        local: segment.destination,
        client_port: segment.source_port,
        local_port: segment.destination_port,
        protocol: segment.protocol,
        netns: world.netns(),
    }
}

/// A fragment without ports goes the way of its datagram's first one.
#[inline(always)]
fn later<W: World>(world: &W, fragment: Fragment) -> Verdict {
    match world.fragments(&fragment_key(world, fragment)) {
        Some(until) if world.now_ns() < until => Verdict::Drop(Reason::DroppedFragment),
        _ => Verdict::Pass,
    }
}

#[inline(always)]
fn fragment_key<W: World>(world: &W, fragment: Fragment) -> FragmentKey {
    let Fragment { source, destination, id, protocol } = fragment;
    FragmentKey { client: source, local: destination, id, protocol, netns: world.netns() }
}

#[inline(always)]
fn address<W: World>(world: &W, address: Address, reason: Reason) -> Verdict {
    judge(world, world.address(&AddressKey { address, netns: world.netns() }), reason)
}

/// A packet whose source may be a revoked client.
#[inline(always)]
fn from_client<W: World>(world: &W, frame: &(impl Frame + ?Sized), framing: Framing) -> Verdict {
    match addresses(frame, framing) {
        Ok(both) => address(world, both.source, Reason::DroppedAddressFrom),
        Err(why) => unread(why),
    }
}

/// A packet whose destination may be a revoked client.
#[inline(always)]
fn to_client<W: World>(world: &W, frame: &(impl Frame + ?Sized), framing: Framing) -> Verdict {
    match addresses(frame, framing) {
        Ok(both) => address(world, both.destination, Reason::DroppedAddressTo),
        Err(why) => unread(why),
    }
}

/// tc ingress on an inner device: from the LAN towards a client.
#[inline(always)]
pub fn lan_ingress<W: World>(world: &W, frame: &(impl Frame + ?Sized), framing: Framing) -> Verdict {
    to_client(world, frame, framing)
}

/// tc egress on an inner device: from a client towards the LAN.
#[inline(always)]
pub fn lan_egress<W: World>(world: &W, frame: &(impl Frame + ?Sized), framing: Framing) -> Verdict {
    from_client(world, frame, framing)
}

/// The device first: on a revoked one everything is dropped, whatever its content, and without reading it.
#[inline(always)]
fn device<W: World>(world: &W, ifindex: u32, reason: Reason) -> Verdict {
    judge(world, world.device(&DeviceKey { netns: world.netns(), ifindex }), reason)
}

/// tc ingress on a tunnel device: what a client has sent.
#[inline(always)]
pub fn tunnel_ingress<W: World>(
    world: &W,
    ifindex: u32,
    frame: &(impl Frame + ?Sized),
    framing: Framing,
) -> Verdict {
    match device(world, ifindex, Reason::DroppedDeviceIn) {
        Verdict::Drop(reason) => Verdict::Drop(reason),
        said => or_else(said, from_client(world, frame, framing)),
    }
}

/// tc egress on a tunnel device: what a client is about to get.
#[inline(always)]
pub fn tunnel_egress<W: World>(
    world: &W,
    ifindex: u32,
    frame: &(impl Frame + ?Sized),
    framing: Framing,
) -> Verdict {
    match device(world, ifindex, Reason::DroppedDeviceOut) {
        Verdict::Drop(reason) => Verdict::Drop(reason),
        said => or_else(said, to_client(world, frame, framing)),
    }
}

/// The second verdict, unless it has nothing to say.
#[inline(always)]
fn or_else(first: Verdict, second: Verdict) -> Verdict {
    match second {
        Verdict::Pass => first,
        said => said,
    }
}
