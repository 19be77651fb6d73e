//! Where programs hang: means that change, foreign namespaces, devices that go and come back.

use std::os::fd::AsFd as _;

use enforcer::dataplane::{Dataplane, Role, Settings, TcPreference};
use enforcer::session::{Device, Entry, Stands};

use crate::lab::{self, CLIENT, GATEWAY, PEER, ifindex, ip, lab};
use crate::{attach, flow, insert, packets_by};

#[test]
fn a_change_of_means_leaves_one_of_them() {
    lab(|lab| {
        let lan = lab.far(&format!("{PEER}:80"));
        let client = lab.here(&format!("{CLIENT}:5000"));
        let entry = Entry::Address(lab.netns(), CLIENT.parse().unwrap());
        for (round, tc) in
            [TcPreference::Clsact, TcPreference::Auto, TcPreference::Clsact].into_iter().enumerate()
        {
            let mut dataplane = Dataplane::open(Settings { tc, ..lab.settings() }).unwrap();
            attach(&mut dataplane, lab, "gw", Role::Inner);
            insert(&mut dataplane, &entry, Stands::Forever);
            assert!(!client.reaches(&lan));
            assert_eq!(packets_by(&dataplane, "dropped-address-from"), round as u64 + 1);
            assert_eq!(dataplane.detach_others().unwrap(), 0);
            let names: Vec<_> = std::fs::read_dir(lab.pin_path().join("links")).unwrap().flatten().collect();
            assert_eq!(names.len(), 2, "{names:?}");
        }
        // what is not configured any more goes
        let mut dataplane = lab.open();
        assert_eq!(dataplane.detach_others().unwrap(), 2);
        assert!(client.reaches(&lan));
    });
}

#[test]
fn a_foreign_namespace_has_programs_of_its_own() {
    lab(|lab| {
        let mut dataplane = lab.open();
        let netns = lab::number(&lab.peer);
        let index = lab.there(|| ifindex("peer"));
        let attach = |dataplane: &mut Dataplane| {
            dataplane.attach(Some(lab.peer.as_fd()), netns, index, "peer", Role::Outer)
        };
        attach(&mut dataplane).unwrap();
        let (client, server) = (lab.here(&format!("{GATEWAY}:4000")), lab.far(&format!("{PEER}:443")));
        insert(&mut dataplane, &flow(lab.netns(), &client, &server), Stands::Forever);
        assert!(client.reaches(&server), "that was said of our namespace");
        insert(&mut dataplane, &flow(netns, &client, &server), Stands::Forever);
        assert!(!client.reaches(&server));
        // the namespace must be the one that is named
        let wrong = dataplane.attach(Some(lab.gateway.as_fd()), netns, index + 50, "peer", Role::Outer);
        assert!(wrong.unwrap_err().to_string().contains("namespace"));
        // a filter there is found again without being told where
        drop(dataplane);
        let mut dataplane = Dataplane::open(Settings { tc: TcPreference::Clsact, ..lab.settings() }).unwrap();
        attach(&mut dataplane).unwrap();
        dataplane.attach(Some(lab.peer.as_fd()), netns, index, "peer", Role::Inner).unwrap();
        drop(dataplane);
        let report = Dataplane::unload(&lab.pin_path()).unwrap();
        assert_eq!((report.links, report.filters, report.left), (1, 2, Vec::new()));
        assert!(client.reaches(&server));
    });
}

#[test]
fn a_device_that_went_and_came_back_gets_its_programs_again() {
    lab(|lab| {
        let mut dataplane = lab.open();
        let netns = lab.netns();
        let address = Entry::Address(netns, CLIENT.parse().unwrap());
        insert(&mut dataplane, &address, Stands::Forever);
        for round in 0..3 {
            attach(&mut dataplane, lab, "gw", Role::Outer);
            attach(&mut dataplane, lab, "gw", Role::Inner);
            let (server, client) = (lab.here(&format!("{GATEWAY}:443")), lab.far(&format!("{PEER}:4000")));
            insert(&mut dataplane, &flow(netns, &client, &server), Stands::Forever);
            assert!(!client.reaches(&server), "round {round}");
            assert!(!lab.here(&format!("{CLIENT}:1")).reaches(&client), "round {round}");
            let index = ifindex("gw");
            ip("link del gw");
            assert!(dataplane.attach(None, netns, index, "gw", Role::Inner).is_err(), "it is not there");
            match round {
                // with the same number: the old pins are in the way
                0 => lab.veth_named("gw", "peer", &format!(" index {index}")),
                _ => {
                    dataplane.detach_gone(Device { netns, index });
                    assert_eq!(std::fs::read_dir(lab.pin_path().join("links")).unwrap().count(), 0);
                    lab.veth_named("gw", "peer", "");
                }
            }
            lab.address();
        }
        assert!(dataplane.attach(None, netns, 4711, "nosuch0", Role::Outer).is_err());
        assert!(dataplane.attach(None, netns, ifindex("gw") + 1, "gw", Role::Outer).is_err());
    });
}
