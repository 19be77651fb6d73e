//! The parser and the verdict, the very code that runs in the kernel.
//!
//! First byte: bit 0 the framing, bit 1 whether the entry is leased. The rest is the frame. Beside "no bytes make it
//! panic": exactly the flow that the parser reads is dropped, a neighbour's is not, and nothing is dropped in an
//! empty world.
use enforcer_ebpf::layout::{AddressKey, DeviceKey, FOREVER, FlowKey, LEASED, TokenKey};
use enforcer_ebpf::packet::{Framing, Segment, addresses, dtls_session_id, segment};
use enforcer_ebpf::verdict::{self, Verdict, World};

#[derive(Default)]
struct One {
    flow: Option<FlowKey>,
    token: Option<TokenKey>,
    address: Option<AddressKey>,
    device: Option<DeviceKey>,
    leased: bool,
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
}

fn dropped(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Drop(_))
}

pub fn body(input: &[u8]) {
    let Some((flags, frame)) = input.split_first() else { return };
    let framing = if flags & 1 == 0 { Framing::Ethernet } else { Framing::Bare };
    let world = || One { leased: flags & 2 != 0, ..One::default() };

    let empty = world();
    assert!(!dropped(verdict::outer(&empty, frame, framing)));
    assert!(!dropped(verdict::lan_ingress(&empty, frame, framing)));
    assert!(!dropped(verdict::lan_egress(&empty, frame, framing)));
    assert!(!dropped(verdict::tunnel_ingress(&empty, 3, frame, framing)));
    assert!(!dropped(verdict::tunnel_egress(&empty, 3, frame, framing)));

    let device = One { device: Some(DeviceKey { netns: NETNS, ifindex: 3 }), ..world() };
    assert!(dropped(verdict::tunnel_ingress(&device, 3, frame, framing)));
    assert!(dropped(verdict::tunnel_egress(&device, 3, frame, framing)));
    assert!(!dropped(verdict::tunnel_ingress(&device, 4, frame, framing)));

    if let Ok(Segment { source, destination, source_port, destination_port, protocol, at }) =
        segment(frame, framing)
    {
        let key = FlowKey {
            client: source,
            local: destination,
            client_port: source_port,
            local_port: destination_port,
            protocol,
            netns: NETNS,
        };
        assert!(dropped(verdict::outer(&One { flow: Some(key), ..world() }, frame, framing)));
        let neighbour = FlowKey { client_port: source_port ^ 1, ..key };
        assert!(!dropped(verdict::outer(&One { flow: Some(neighbour), ..world() }, frame, framing)));
        if let Some(token) = dtls_session_id(frame, at) {
            assert!((1..=32).contains(&token.len));
            let said = verdict::outer(&One { token: Some(token), ..world() }, frame, framing);
            assert_eq!(dropped(said), protocol == enforcer_ebpf::layout::UDP);
        }
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
