//! OpenVPN's session ids on a real kernel, and the ports at which they are read.

use std::collections::BTreeMap;

use aya::maps::MapInfo;
use aya::programs::{ProgramInfo, loaded_programs};
use enforcer::dataplane::{Capacities, Dataplane, Role, Settings};
use enforcer::session::{Entry, Netns, Stands, Token, TokenKind};
use enforcer_ebpf::layout;

use crate::lab::{GATEWAY, Lab, PEER, lab};
use crate::packets::{client_hello, openvpn};
use crate::{attach, flow, insert, packets_by};

const PORT: u16 = 1194;
const ID: [u8; 8] = [9, 8, 7, 6, 5, 4, 3, 2];

fn with(lab: &Lab, ports: &[u16]) -> Settings {
    Settings { openvpn_ports: ports.to_vec(), ..lab.settings() }
}

fn token(id: [u8; 8]) -> Token {
    Token::new(TokenKind::Openvpn, id.to_vec()).unwrap()
}

fn control(id: [u8; 8]) -> Vec<u8> {
    openvpn(7, 0, &id)
}

fn data() -> Vec<u8> {
    openvpn(9, 0, &[0; 8])
}

/// R1, R3, R4: by its id from any port, at each port that is OpenVPN's and no other; its data by what its flow has shown.
#[test]
fn r1_a_tunnel_ends_with_its_openvpn_session_id_and_a_new_one_is_let_in() {
    lab(|lab| {
        let mut dataplane = Dataplane::open(with(lab, &[PORT, 5000, 5001, 65_535])).unwrap();
        attach(&mut dataplane, lab, "gw", Role::Outer);
        let server = lab.here(&format!("{GATEWAY}:{PORT}"));
        let (client, other) = (lab.far(&format!("{PEER}:4000")), lab.far(&format!("{PEER}:4001")));
        let learned = |dataplane: &Dataplane, netns: u32| {
            let Entry::Flow(_, flow) = flow(lab.netns(), &client, &server) else { panic!("no flow") };
            dataplane.learned(Netns(netns), flow)
        };
        assert!(client.reaches_with(&server, &data()));
        assert_eq!(learned(&dataplane, lab.netns().0), None, "data shows no id");
        assert!(client.reaches_with(&server, &control(ID)));
        assert_eq!(learned(&dataplane, lab.netns().0), Some(token(ID)));
        assert_eq!(learned(&dataplane, lab.netns().0 ^ 1), None, "another namespace");
        assert!(other.reaches_with(&server, &control([1; 8])));
        assert!(client.reaches_with(&server, &data()) && other.reaches_with(&server, &data()));

        let entry = Entry::Token(token(ID));
        insert(&mut dataplane, &entry, Stands::Forever);
        assert!(!client.reaches_with(&server, &data()));
        assert!(!client.reaches_with(&server, &control(ID)));
        assert!(!other.reaches_with(&server, &control(ID)), "from another port");
        assert!(other.reaches_with(&server, &control([1; 8])) && other.reaches_with(&server, &data()));
        assert!(server.reaches_with(&client, &data()), "what goes out is not XDP's");
        assert_eq!(dataplane.hits(&entry), Some(3));
        assert_eq!(packets_by(&dataplane, "dropped-token"), 3);

        for (port, is_openvpns) in [(5000, true), (65_535, true), (5002, false)] {
            let server = lab.here(&format!("{GATEWAY}:{port}"));
            assert_eq!(client.reaches_with(&server, &control(ID)), !is_openvpns, "{port}");
            assert!(client.reaches_with(&server, &client_hello(&ID)), "DTLS has ids of its own");
        }

        // the same port, a new session
        assert!(client.reaches_with(&server, &control([2; 8])));
        assert!(client.reaches_with(&server, &data()), "R4");
        assert!(!client.reaches_with(&server, &control(ID)));
        assert!(client.reaches_with(&server, &data()), "what is dropped is not learned");
        // and the lift
        assert!(dataplane.remove(&entry).unwrap());
        assert!(client.reaches_with(&server, &control(ID)));
    });
}

/// R5: what the flows have shown outlives the daemon, and the ports go with the configuration: with the next attach, or
/// with a migration.
#[test]
fn r5_the_ports_of_openvpn_change_with_the_next_start() {
    lab(|lab| {
        let server = lab.here(&format!("{GATEWAY}:{PORT}"));
        let client = lab.far(&format!("{PEER}:4000"));
        let entry = Entry::Token(token(ID));
        let mut dataplane = Dataplane::open(with(lab, &[PORT])).unwrap();
        attach(&mut dataplane, lab, "gw", Role::Outer);
        assert!(client.reaches_with(&server, &control(ID)));
        insert(&mut dataplane, &entry, Stands::Forever);
        let is_dropped = || {
            assert!(!client.reaches_with(&server, &control(ID)));
            assert!(!client.reaches_with(&server, &data()));
        };
        is_dropped();
        drop(dataplane);
        is_dropped();

        let mut dataplane = Dataplane::open(with(lab, &[PORT + 1])).unwrap();
        is_dropped();
        attach(&mut dataplane, lab, "gw", Role::Outer);
        assert!(client.reaches_with(&server, &data()), "it is not OpenVPN's any more");
        assert!(client.reaches_with(&server, &control(ID)));
        let next = lab.here(&format!("{GATEWAY}:{}", PORT + 1));
        assert!(!client.reaches_with(&next, &control(ID)));
        drop(dataplane);

        // other capacities: every program is another one once it is open
        let capacities = Capacities { flows: 128, tokens: 128, ..lab.settings().capacities };
        let mut dataplane = Dataplane::open(Settings { capacities, ..with(lab, &[PORT]) }).unwrap();
        is_dropped();
        attach(&mut dataplane, lab, "gw", Role::Outer);
        is_dropped();
        assert!(dataplane.hits(&entry) >= Some(9), "{:?}", dataplane.hits(&entry));
    });
}

/// A port that is not configured is no instruction of the program.
#[test]
fn the_program_grows_with_each_port_and_has_none_without() {
    lab(|lab| {
        let size = |ports: &[u16]| {
            // the one of an earlier turn stays until this one has taken its place
            let mut dataplane = Dataplane::open(with(lab, ports)).unwrap();
            attach(&mut dataplane, lab, "gw", Role::Outer);
            let ours = MapInfo::from_pin(lab.pin_path().join("maps").join(layout::COUNTERS)).unwrap().id();
            loaded_programs()
                .filter_map(Result::ok)
                .filter(|program| program.name_as_str() == Some("outer_ether"))
                .filter(|program| matches!(program.map_ids(), Ok(Some(ids)) if ids.contains(&ours)))
                .max_by_key(ProgramInfo::id)
                .and_then(|program| program.size_translated())
                .expect("the program")
        };
        let sizes = [&[][..], &[PORT], &[PORT, 2], &[PORT, 2, 3], &[PORT, 2, 3, 4]].map(size);
        println!("bytes of the program with none to four ports: {sizes:?}");
        assert!(sizes.is_sorted_by(|less, more| less < more), "{sizes:?}");
    });
}

/// The verifier walks through at most a million instructions, every way counted. Kernels differ in what they take for the
/// same way, so that some of it is left for them.
#[test]
fn every_program_leaves_a_part_of_the_verifiers_limit() {
    lab(|lab| {
        let mut dataplane = Dataplane::open(with(lab, &[PORT, 2, 3, 4])).unwrap();
        for role in [Role::Outer, Role::Inner, Role::Tunnel] {
            attach(&mut dataplane, lab, "gw", role);
        }
        let ours = MapInfo::from_pin(lab.pin_path().join("maps").join(layout::COUNTERS)).unwrap().id();
        let walked: BTreeMap<String, u32> = loaded_programs()
            .filter_map(Result::ok)
            .filter(|program| matches!(program.map_ids(), Ok(Some(ids)) if ids.contains(&ours)))
            .filter_map(|program| {
                Some((program.name_as_str()?.to_owned(), program.verified_instruction_count()?))
            })
            .collect();
        println!("instructions that the verifier walks through: {walked:?}");
        assert_eq!(walked.len(), 5);
        assert!(walked.values().all(|count| *count < 800_000), "{walked:?}");
    });
}

/// R7
#[test]
fn r7_too_many_ports_of_openvpn_are_refused_and_so_is_none() {
    lab(|lab| {
        for bad in [&[1, 2, 3, 4, 5][..], &[0], &[PORT, 0]] {
            let refused = Dataplane::open(with(lab, bad)).err().map(|error| error.to_string());
            assert!(refused.as_ref().is_some_and(|text| text.contains("at most 4")), "{bad:?}: {refused:?}");
        }
        assert!(!lab.pin_path().exists(), "nothing was made");
    });
}
