//! What each hook looks up, and what comes of it. The same code runs in the kernel and in the host's tests.

use crate::counters::Reason;
use crate::layout::{Address, AddressKey, DeviceKey, FOREVER, FlowKey, LEASE_NS, LEASED, TokenKey, UDP};
use crate::packet::{Frame, Framing, Segment, Unread, addresses, dtls_session_id, segment};

/// The tables and the clock.
pub trait World {
    /// An entry that was found, to be asked for more: in the kernel a pointer into the map.
    type Found: Copy;

    /// The network namespace in which we are.
    fn netns(&self) -> u32;
    fn flow(&self, key: &FlowKey) -> Option<Self::Found>;
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

/// XDP on an outer device: the sender is the client, the receiver is us.
#[inline(always)]
pub fn outer<W: World>(world: &W, frame: &(impl Frame + ?Sized), framing: Framing) -> Verdict {
    let Segment { source, destination, source_port, destination_port, protocol, at } =
        match segment(frame, framing) {
            Ok(segment) => segment,
            Err(why) => return unread(why),
        };
    let key = FlowKey {
        client: source,
        local: destination,
        client_port: source_port,
        local_port: destination_port,
        protocol,
        netns: world.netns(),
    };
    let verdict = judge(world, world.flow(&key), Reason::DroppedFlow);
    if matches!(verdict, Verdict::Drop(_)) || protocol != UDP {
        return verdict;
    }
    match dtls_session_id(frame, at) {
        None => verdict,
        Some(token) => match judge(world, world.token(&token), Reason::DroppedToken) {
            Verdict::Pass => verdict,
            said => said,
        },
    }
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
