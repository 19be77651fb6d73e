//! The parser and the verdict, the very code that runs in the kernel.
//!
//! First byte: bit 0 the framing, bit 1 whether the entry is leased, bit 2 whether every port is OpenVPN's. The rest is
//! the frame. Beside "no bytes make it panic": exactly the flow that the parser reads is dropped, a neighbour's is not,
//! a token is read by its kind's rules alone, OpenVPN's data goes the way of what its flow has shown, and nothing is
//! dropped in an empty world but first fragments without their head.
use std::cell::Cell;

use enforcer_ebpf::counters::Reason;
use enforcer_ebpf::layout::{
    AddressKey, DeviceKey, FOREVER, FlowKey, FragmentKey, LEASED, TOKEN_OPENVPN, TokenKey, UDP,
};
use enforcer_ebpf::openvpn;
use enforcer_ebpf::packet::{self, First, Fragment, Framing, Outer, Segment, addresses, dtls_session_id};
use enforcer_ebpf::verdict::{self, Look, Verdict, World};

#[derive(Default)]
struct One {
    flow: Option<FlowKey>,
    token: Option<TokenKey>,
    address: Option<AddressKey>,
    device: Option<DeviceKey>,
    leased: bool,
    /// The datagram whose fragments are dropped.
    datagram: Cell<Option<FragmentKey>>,
    /// The token that passed last.
    learned: Cell<Option<TokenKey>>,
    /// The flow that has shown a revoked token.
    shown: Option<FlowKey>,
    openvpn: bool,
}

const NETNS: u32 = 7;

impl World for One {
    type Found = ();

    fn netns(&self) -> u32 {
        NETNS
    }
    fn flow(&self, key: &FlowKey) -> Option<()> {
        (self.flow == Some(*key)).then_some(())
    }
    fn has_no_flow(&self, key: &FlowKey) -> bool {
        self.flow != Some(*key)
    }
    fn token(&self, key: &TokenKey) -> Option<()> {
        (self.token == Some(*key)).then_some(())
    }
    fn address(&self, key: &AddressKey) -> Option<()> {
        (self.address == Some(*key)).then_some(())
    }
    fn device(&self, key: &DeviceKey) -> Option<()> {
        (self.device == Some(*key)).then_some(())
    }
    fn expires_ns(&self, (): ()) -> u64 {
        if self.leased { LEASED } else { FOREVER }
    }
    fn now_ns(&self) -> u64 {
        1
    }
    fn heartbeat_ns(&self) -> u64 {
        1
    }
    fn hit(&self, (): (), _now_ns: u64) {}
    fn fragments(&self, key: &FragmentKey) -> Option<u64> {
        (self.datagram.get() == Some(*key)).then_some(2)
    }
    fn learn(&self, _flow: &FlowKey, token: &TokenKey) {
        self.learned.set(Some(*token));
    }
    fn shown(&self, flow: &FlowKey) -> Option<()> {
        (self.shown == Some(*flow)).then_some(())
    }
    fn is_openvpn(&self, _port: u16) -> bool {
        self.openvpn
    }
    fn drop_fragments(&self, key: &FragmentKey, _until_ns: u64) {
        self.datagram.set(Some(*key));
    }
    fn pass_fragments(&self, key: &FragmentKey) {
        if self.datagram.get() == Some(*key) {
            self.datagram.set(None);
        }
    }
}

/// What the programs say in their steps; where the first look is enough, the whole one has nothing to say and to do.
fn outer(world: &One, frame: &[u8], framing: Framing) -> Verdict {
    let state = || (world.datagram.get(), world.learned.get());
    let before = state();
    if verdict::look(world, frame, framing) == Look::Nobodys {
        assert_eq!(verdict::other(world, frame, framing), Verdict::Pass);
        assert!(state() == before);
    }
    verdict::outer(world, frame, framing)
}

fn dropped(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Drop(_))
}

pub fn body(input: &[u8]) {
    let Some((flags, frame)) = input.split_first() else { return };
    let framing = if flags & 1 == 0 { Framing::Ethernet } else { Framing::Bare };
    let world = || One { leased: flags & 2 != 0, openvpn: flags & 4 != 0, ..One::default() };

    let empty = world();
    let read = packet::outer(frame, framing);
    let headless = match read {
        Ok(Outer::Headless(fragment)) => Some(key(fragment)),
        _ => None,
    };
    assert_eq!(dropped(outer(&empty, frame, framing)), headless.is_some());
    assert_eq!(empty.datagram.get(), headless);
    assert!(!dropped(verdict::lan_ingress(&empty, frame, framing)));
    assert!(!dropped(verdict::lan_egress(&empty, frame, framing)));
    assert!(!dropped(verdict::tunnel_ingress(&empty, 3, frame, framing)));
    assert!(!dropped(verdict::tunnel_egress(&empty, 3, frame, framing)));

    let device = One { device: Some(DeviceKey { netns: NETNS, ifindex: 3 }), ..world() };
    assert!(dropped(verdict::tunnel_ingress(&device, 3, frame, framing)));
    assert!(dropped(verdict::tunnel_egress(&device, 3, frame, framing)));
    assert!(!dropped(verdict::tunnel_ingress(&device, 4, frame, framing)));

    match read {
        Ok(Outer::Segment(segment, first)) => {
            by_flow(frame, framing, segment, first, Reason::DroppedFlow, world);
            let is_udp = segment.protocol == UDP;
            let dtls = dtls_session_id(frame, segment.at);
            let openvpn = openvpn::session_id(frame, segment.at);
            assert!(dtls.is_none() || openvpn.is_none(), "one port may have both");
            let read = if empty.openvpn { dtls.or(openvpn) } else { dtls }.filter(|_| is_udp);
            assert_eq!(empty.learned.get(), read);
            for token in dtls.into_iter().chain(openvpn) {
                assert!((1..=32).contains(&token.len));
                assert!(token.kind != TOKEN_OPENVPN || token.len == 8);
                let one = One { token: Some(token), ..world() };
                assert_eq!(dropped(outer(&one, frame, framing)), read.is_some());
                assert!(read.is_none() || one.learned.get().is_none());
            }
            let is_data = is_udp && empty.openvpn && openvpn::is_data(frame, segment.at);
            let one = One { shown: Some(flow_of(segment)), ..world() };
            assert_eq!(dropped(outer(&one, frame, framing)), is_data);
        }
        Ok(Outer::Quote(segment, first)) => {
            by_flow(frame, framing, segment, first, Reason::DroppedError, world);
        }
        Ok(Outer::Later(fragment)) => {
            let one = world();
            one.datagram.set(Some(key(fragment)));
            assert!(dropped(outer(&one, frame, framing)));
            one.datagram.set(Some(FragmentKey { netns: NETNS ^ 1, ..key(fragment) }));
            assert!(!dropped(outer(&one, frame, framing)));
        }
        Ok(Outer::Other(fragment)) => {
            let one = world();
            one.datagram.set(Some(key(fragment)));
            assert!(!dropped(outer(&one, frame, framing)));
            assert_eq!(one.datagram.get(), None);
        }
        Ok(Outer::Headless(_)) | Err(_) => {}
    }
    if read.is_ok() {
        // whoever reads the ports has read the addresses too
        assert!(addresses(frame, framing).is_ok());
    }
    if let Ok(both) = addresses(frame, framing) {
        let key = |address| One { address: Some(AddressKey { address, netns: NETNS }), ..world() };
        assert!(dropped(verdict::lan_egress(&key(both.source), frame, framing)));
        assert!(dropped(verdict::lan_ingress(&key(both.destination), frame, framing)));
        assert!(dropped(verdict::tunnel_ingress(&key(both.source), 3, frame, framing)));
        assert!(dropped(verdict::tunnel_egress(&key(both.destination), 3, frame, framing)));
    }
}

fn key(Fragment { source, destination, id, protocol }: Fragment) -> FragmentKey {
    FragmentKey { client: source, local: destination, id, protocol, netns: NETNS }
}

fn flow_of(segment: Segment) -> FlowKey {
    let Segment { source, destination, source_port, destination_port, protocol, .. } = segment;
    FlowKey {
        client: source,
        local: destination,
        client_port: source_port,
        local_port: destination_port,
        protocol,
        netns: NETNS,
    }
}

fn by_flow(
    frame: &[u8],
    framing: Framing,
    segment: Segment,
    first: First,
    reason: Reason,
    world: impl Fn() -> One,
) {
    let flow = flow_of(segment);
    let one = One { flow: Some(flow), ..world() };
    assert_eq!(outer(&one, frame, framing), Verdict::Drop(reason));
    assert_eq!(one.datagram.get(), first.is.then(|| key(first.of)));
    let neighbour = FlowKey { client_port: flow.client_port ^ 1, ..flow };
    let one = One { flow: Some(neighbour), ..one };
    assert!(!dropped(outer(&one, frame, framing)));
    assert_eq!(one.datagram.get(), None);
}
