//! `check`: what probes have shown of each interface, in words.

use crate::control::api;
use crate::dataplane::{Proof, Role};
use crate::session::Device;

use super::Daemon;
use super::checks::finding;

/// Of how many interfaces it is told what is wrong.
const MAX_TOLD: usize = 100;

const ATTACH_ANEW: &str = "look at who did that (bpftool link, tc filter). The daemon looks every 5 s and attaches anew; \
                           where this stays, restart it: what is revoked stays so meanwhile";

impl Daemon {
    /// Shows a probe to every attached program. It takes entries into the kernel for a moment, so the loop does it.
    pub(super) fn proofs(&mut self) -> Vec<api::Finding> {
        let own = self.namespaces.own();
        let mut proofs = self.dataplane.prove();
        // of a device that is gone the program is gone with it, and nothing passes there
        proofs.retain(|proof| {
            let device = Device { netns: proof.netns, index: proof.ifindex };
            let there = self.namespaces.name_of(device).is_some();
            there || (proof.wrong.is_empty() && proof.untried.is_empty())
        });
        let where_it_is = |proof: &Proof| match proof.netns == own {
            true => String::new(),
            false => format!(" in net:[{}]", proof.netns.0),
        };
        findings(&proofs, where_it_is)
    }
}

fn findings(proofs: &[Proof], where_it_is: impl Fn(&Proof) -> String) -> Vec<api::Finding> {
    let mut findings = Vec::new();
    let (mut tunnels, mut more) = (0, 0);
    for proof in proofs {
        let role = match proof.role {
            Role::Outer => "outer",
            Role::Inner => "inner",
            Role::Tunnel => "tunnel",
        };
        let place = format!("{role} {}{}", proof.name, where_it_is(proof));
        if proof.wrong.is_empty() && proof.untried.is_empty() {
            match proof.role {
                Role::Outer => findings.push(finding(
                    "ok",
                    format!("{place}: a probe packet was dropped, and passes without its entry"),
                    "",
                )),
                Role::Inner => findings.push(finding(
                    "ok",
                    format!(
                        "{place}: probe packets were dropped in both directions, and pass without their entry"
                    ),
                    "",
                )),
                // there may be thousands
                Role::Tunnel => tunnels += 1,
            }
            continue;
        }
        if findings.len() >= MAX_TOLD {
            more += 1;
            continue;
        }
        if !proof.wrong.is_empty() {
            let text = format!("{place}: NOT in force: {}", proof.wrong.join("; "));
            findings.push(finding("error", text, ATTACH_ANEW));
        }
        if !proof.untried.is_empty() {
            let text = format!("{place}: could not be proved: {}", proof.untried.join("; "));
            findings.push(finding("warning", text, ""));
        }
    }
    if tunnels > 0 {
        let devices = if tunnels == 1 { "device" } else { "devices" };
        findings.push(finding(
            "ok",
            format!(
                "{tunnels} tunnel {devices}: probe packets were dropped in both directions, by device and by address, \
                 and pass without their entry"
            ),
            "",
        ));
    }
    if more > 0 {
        findings.push(finding(
            "error",
            format!("… and {more} interfaces more, of which something is to be said"),
            "",
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::Netns;

    fn proof(ifindex: u32, role: Role, wrong: &[&str], untried: &[&str]) -> Proof {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let (wrong, untried) = (texts(wrong), texts(untried));
        Proof { netns: Netns(1), ifindex, name: format!("d{ifindex}"), role, wrong, untried }
    }

    #[test]
    fn r6_what_is_not_in_force_is_an_error_and_what_was_not_tried_is_not_called_in_force() {
        let proofs = [
            proof(1, Role::Outer, &[], &[]),
            proof(2, Role::Inner, &["lan_in: gone"], &[]),
            proof(3, Role::Inner, &[], &["full"]),
            proof(4, Role::Tunnel, &[], &[]),
            proof(5, Role::Tunnel, &[], &[]),
        ];
        let told = findings(&proofs, |_| String::new());
        let levels: Vec<_> = told.iter().map(|finding| finding.level.as_str()).collect();
        assert_eq!(levels, ["ok", "error", "warning", "ok"]);
        assert!(told[1].what.contains("inner d2: NOT in force: lan_in: gone"), "{}", told[1].what);
        assert!(told[3].what.starts_with("2 tunnel devices"), "{}", told[3].what);
    }

    #[test]
    fn r7_of_many_that_are_broken_a_hundred_are_told() {
        let proofs: Vec<_> = (0..500).map(|index| proof(index, Role::Tunnel, &["gone"], &[])).collect();
        let told = findings(&proofs, |_| String::new());
        assert_eq!(told.len(), MAX_TOLD + 1);
        assert!(told[MAX_TOLD].what.contains("400"), "{}", told[MAX_TOLD].what);
    }
}
