//! `show status` and `check`: is this host ready, is everything in force?

use std::path::Path;

use crate::config::{Config, WhenBlind};
use crate::control::api;
use crate::dataplane::{Role, Untold};
use crate::ocserv::FeedState;
use crate::registry::{GateState, ServerState};
use crate::session::TokenKind;

use super::Daemon;

/// The oldest kernel that has everything: `bpf_link` for XDP (5.9), `CAP_BPF` (5.8), clsact for tc.
const OLDEST_KERNEL: (u32, u32) = (5, 15);

pub(super) fn finding(level: &str, what: impl Into<String>, mend: impl Into<String>) -> api::Finding {
    api::Finding { level: level.into(), what: what.into(), mend: mend.into() }
}

impl Daemon {
    pub(super) fn status(&self) -> api::Status {
        let servers = (self.registry.servers())
            .filter_map(|(name, rules)| {
                let server = self.servers.get(name)?;
                Some(api::Server {
                    name: name.to_string(),
                    control_socket: server.settings.control_socket.display().to_string(),
                    state: match rules.state {
                        ServerState::Unknown => "not reached yet",
                        ServerState::Up => "up",
                        ServerState::Silent => "silent",
                        ServerState::Gone => "gone",
                    }
                    .into(),
                    feed: match &server.feed {
                        _ if !server.settings.feed => "listing once a second (feed = false)".into(),
                        FeedState::Live => "live".into(),
                        FeedState::Polling { why } => format!("polling: {why}"),
                        FeedState::Off => "off".into(),
                    },
                    gate: match rules.gate {
                        GateState::Missing => "missing",
                        GateState::Configured => "configured",
                        GateState::Seen => "seen",
                    }
                    .into(),
                    terminate: rules.terminate,
                    main_pid: rules.main.map_or(0, |main| u32::try_from(main.pid).unwrap_or(0)),
                })
            })
            .collect();
        let own = self.namespaces.own();
        let interfaces = (self.dataplane.attachments().into_iter())
            .map(|a| api::Interface {
                name: a.name,
                ifindex: a.ifindex,
                netns: if a.netns == own { String::new() } else { format!("net:[{}]", a.netns.0) },
                role: match a.role {
                    Role::Outer => "outer",
                    Role::Inner => "inner",
                    Role::Tunnel => "tunnel",
                }
                .into(),
                how: a.how,
            })
            .collect();
        let mut warnings = self.warnings.clone();
        warnings.extend(self.interfaces.troubles());
        let counters = self.dataplane.counters().unwrap_or_else(|error| {
            warnings.push(format!("the counters cannot be read: {error:#}"));
            Vec::new()
        });
        let untold = self.dataplane.untold().unwrap_or_else(|error| {
            warnings.push(format!("how many drops were not told of cannot be read: {error:#}"));
            Untold::default()
        });
        api::Status {
            version: env!("CARGO_PKG_VERSION").into(),
            uptime_seconds: self.started.elapsed().as_secs(),
            servers,
            interfaces,
            tables: (self.dataplane.usage().into_iter())
                .map(|u| api::Table { name: u.name.into(), used: u.used, capacity: u.capacity })
                .collect(),
            counters: (counters.into_iter())
                .map(|c| api::Counter { reason: c.reason.into(), packets: c.packets, bytes: c.bytes })
                .collect(),
            sessions: self.registry.sessions().count() as u64,
            revocations_in_force: self.registry.revocations_in_force() as u64,
            pin_path: self.config.kernel.pin_path.display().to_string(),
            warnings,
            locks_in_force: self.registry.locks_in_force() as u64,
            disk: Some(self.disk()),
            untold: Some(api::Untold { suppressed: untold.suppressed, lost: untold.lost }),
            web: self.web_status(),
        }
    }

    pub(super) fn findings(&mut self) -> api::Findings {
        let mut findings = host_findings();
        for (name, rules) in self.registry.servers() {
            let Some(server) = self.servers.get(name) else { continue };
            let socket = server.settings.control_socket.display();
            findings.push(match rules.state {
                ServerState::Up => finding("ok", format!("{name}: ocserv answers on {socket}"), ""),
                ServerState::Unknown => finding(
                    "error",
                    format!("{name}: ocserv was not reached on {socket} since the daemon started"),
                    "is it running, with use-occtl = true? is [ocserv] control-socket its occtl-socket-file?",
                ),
                ServerState::Silent => {
                    finding("error", format!("{name}: ocserv does not answer on {socket}"), "look at its log")
                }
                ServerState::Gone => finding("warning", format!("{name}: ocserv is not running"), ""),
            });
            findings.push(match (rules.gate, &server.scripts) {
                (GateState::Seen, _) => finding("ok", format!("{name}: the gate is at its door"), ""),
                (GateState::Configured, _) => {
                    finding("ok", format!("{name}: its configuration names the gate; no login has passed it yet"), "")
                }
                (GateState::Missing, Ok(_)) => finding(
                    "error",
                    format!("{name}: a revoked cookie is NOT refused: its connect-script is not the gate"),
                    "set connect-script to the path of enforcer-gate in the global part of ocserv.conf, and restart ocserv; \
                     a script of your own goes to [ocserv] next-script",
                ),
                (GateState::Missing, Err(why)) => finding(
                    "warning",
                    format!("{name}: no login has passed the gate yet, and whether it is configured is not known: {why}"),
                    "set connect-script to the path of enforcer-gate in ocserv.conf",
                ),
            });
            if server.needs_wrapper {
                findings.push(finding(
                    "error",
                    format!(
                        "{name}: with restrict-user-to-routes or -ports ocserv hands connect-script to /bin/sh, \
                         which cannot run a program: every login will be refused"
                    ),
                    "make connect-script a file named enforcer-gate with two lines: #!/bin/sh and exec enforcer gate",
                ));
            }
            if let (FeedState::Polling { why }, true) = (&server.feed, server.settings.feed) {
                findings.push(finding(
                    "warning",
                    format!("{name}: sessions are listed once a second, for want of the feed: {why}"),
                    "end the occtl that holds it (`show events`, `top`), or set feed = false",
                ));
            }
        }
        let attachments = self.dataplane.attachments();
        for (role, what) in [(Role::Outer, "outer interface (XDP)"), (Role::Inner, "inner interface (tc)")] {
            let on: Vec<String> = attachments
                .iter()
                .filter(|a| a.role == role)
                .map(|a| format!("{} {}", a.name, a.how))
                .collect();
            findings.push(if on.is_empty() {
                finding("warning", format!("no {what}"), "name it in [kernel] of the configuration")
            } else {
                finding("ok", format!("{what}: {}", on.join(", ")), "")
            });
        }
        if self.config.kernel.openvpn_ports.is_empty()
            && self.registry.holdings().has_token_of(TokenKind::Openvpn)
        {
            findings.push(finding(
                "error",
                "OpenVPN session ids are revoked, and NOT dropped: no port is OpenVPN's any more",
                "name its UDP ports in [kernel] openvpn-ports and restart the daemon, or lift those revocations",
            ));
        }
        findings.extend(self.proofs());
        for usage in self.dataplane.usage().iter().filter(|u| u.used * 10 >= u.capacity * 9) {
            findings.push(finding(
                "warning",
                format!("the table {} is almost full", usage.name),
                "lift what is not needed",
            ));
        }
        let disk = self.disk();
        findings.push(match (disk.error.as_str(), disk.unwritten) {
            ("", _) => finding("ok", format!("the state in {} is written", disk.directory), ""),
            (why, n) => finding(
                "error",
                format!("{n} revocations or locks would be lost at a reboot: {why}"),
                "make room, or make the state directory writable: it is tried again every few seconds",
            ),
        });
        if self.config.gate.when_blind == WhenBlind::Admit {
            findings.push(finding(
                "warning",
                "when the gate can see neither the daemon nor the maps it lets everybody in (when-blind = \"admit\")",
                "when-blind = \"refuse\", unless logins matter more than revocations here",
            ));
        }
        findings.extend(self.web_findings());
        findings.extend(self.cluster_findings());
        findings.extend(self.interface_findings());
        findings.extend(self.warnings.iter().map(|warning| finding("warning", warning.clone(), "")));
        api::Findings { findings }
    }
}

fn host_findings() -> Vec<api::Finding> {
    let release = nix::sys::utsname::uname()
        .map(|name| name.release().to_string_lossy().into_owned())
        .unwrap_or_default();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let (major, minor) = OLDEST_KERNEL;
    vec![if version >= OLDEST_KERNEL {
        finding("ok", format!("kernel {release} (the oldest that serves is {major}.{minor})"), "")
    } else {
        finding(
            "error",
            format!("kernel {release} is too old"),
            format!("{major}.{minor} or later is needed"),
        )
    }]
}

/// What can be said of the host when no daemon answers.
pub fn check_without_daemon(config: Option<&Path>, error: &anyhow::Error) -> api::Findings {
    let mut findings = host_findings();
    findings.push(finding("error", format!("{error:#}"), "start it: enforcer run"));
    match Config::load(config) {
        Ok(config) => {
            findings.push(finding("ok", "the configuration can be read", ""));
            let pins = config.kernel.pin_path.exists();
            findings.push(if pins {
                finding(
                    "ok",
                    "the maps of an earlier daemon are pinned: what keeps revoked sessions out is in force",
                    "",
                )
            } else {
                finding(
                    "error",
                    "nothing is in force in the kernel: there are no pinned maps",
                    "start the daemon",
                )
            });
            findings.push(match super::state::look(&config) {
                Ok(None) => {
                    finding("warning", "there is no database yet", "the daemon makes it when it starts")
                }
                Ok(Some(count)) => {
                    finding("ok", format!("the database is sound: {count} revocations and locks"), "")
                }
                Err(error) => finding("error", error.to_string(), ""),
            });
            for server in config.ocserv.iter() {
                let there = std::os::unix::net::UnixStream::connect(&server.control_socket).is_ok();
                let socket = server.control_socket.display();
                findings.push(if there {
                    finding("ok", format!("{}: something answers on {socket}", server.name), "")
                } else {
                    finding(
                        "error",
                        format!("{}: nothing answers on {socket}", server.name),
                        "is ocserv running, with use-occtl = true?",
                    )
                });
            }
        }
        Err(error) => findings.push(finding("error", error.to_string(), "mend the configuration")),
    }
    api::Findings { findings }
}
