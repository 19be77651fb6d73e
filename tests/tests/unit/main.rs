//! The systemd unit: that systemd takes it, how hardened it is, and that the daemon does its work under it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

mod booted;
mod cluster;

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use booted::Booted;
use enforcer_tests::enforcer::{DONE, binary};
use enforcer_tests::process::{BOUND, command, eventually, output};

/// The folder of the unit and its drop-ins.
fn units() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../enforcer/systemd").canonicalize().expect("the units")
}

/// A copy of the units below a root of their own, where the daemon seems to be installed. Removed when dropped.
struct Root(PathBuf);

impl Root {
    fn new(name: &str, drop_ins: &[&str]) -> Self {
        let root = std::env::temp_dir().join(format!("enforcer-unit-{}-{name}", std::process::id()));
        let system = root.join("etc/systemd/system");
        fs::create_dir_all(system.join("enforcer.service.d")).unwrap();
        // `verify` looks for every program that is named, there and not here
        for program in ["usr/sbin/enforcer", "usr/bin/nsenter", "bin/sh"] {
            let program = root.join(program);
            fs::create_dir_all(program.parent().unwrap()).unwrap();
            fs::copy("/bin/true", &program).unwrap();
        }
        fs::copy(units().join("enforcer.service"), system.join("enforcer.service")).unwrap();
        for name in drop_ins {
            fs::copy(units().join(name), system.join("enforcer.service.d").join(name)).unwrap();
        }
        Self(root)
    }

    fn unit(&self) -> PathBuf {
        self.0.join("etc/systemd/system/enforcer.service")
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// systemd reads every line of the unit without a complaint, with and without each drop-in.
#[test]
fn systemd_takes_the_unit() {
    for drop_ins in [&[] as &[&str], &["cluster.conf"], &["containers.conf"], &["web.conf"]] {
        let root = Root::new(drop_ins.first().unwrap_or(&"plain"), drop_ins);
        // from a path, the installed units of this host are beside it: ocserv.service, network-pre.target
        let unit = fs::read_to_string(root.unit()).unwrap();
        let program = root.0.join("usr/sbin/enforcer");
        fs::write(root.unit(), unit.replace("/usr/sbin/enforcer", program.to_str().unwrap())).unwrap();
        let mut verify = command("systemd-analyze", ["verify", "--man=no"]);
        verify.arg(root.unit());
        let said = output(verify, "");
        let ours: Vec<_> =
            said.stderr.lines().filter(|line| line.contains("enforcer") || line.contains(".conf")).collect();
        assert_eq!((said.code, ours), (0, vec![]), "{}", said.stderr);
    }
}

/// The exposure that `systemd-analyze security` sees, in tenths: no more than was reached.
#[test]
fn the_unit_stays_hardened() {
    for (name, drop_ins, threshold) in [
        ("hard", &[] as &[&str], 26),
        ("cluster", &["cluster.conf"], 27),
        ("less", &["containers.conf"], 29),
        ("web", &["web.conf"], 27),
    ] {
        let root = Root::new(name, drop_ins);
        let threshold = format!("--threshold={threshold}");
        let mut security =
            command("systemd-analyze", ["security", "--offline=true", "--no-pager", &threshold]);
        security.arg(root.unit());
        let said = output(security, "");
        assert_eq!(said.code, 0, "{}{}", said.stdout, said.stderr);
        assert!(said.stdout.contains("Overall exposure level"), "{}", said.stdout);
    }
}

/// The web gateway's unit, its user and its files: systemd takes them, and it is no more exposed than was reached.
#[test]
fn systemd_takes_the_web_gateways_unit_and_it_stays_hardened() {
    let root = Root::new("gateway", &[]);
    let program = root.0.join("usr/sbin/enforcer");
    fs::copy("/bin/true", root.0.join("bin/kill")).unwrap();
    let path = root.unit().with_file_name("enforcer-gateway.service");
    let unit = fs::read_to_string(units().join("enforcer-gateway.service")).unwrap();
    fs::write(&path, unit.replace("/usr/sbin/enforcer", program.to_str().unwrap())).unwrap();
    let mut verify = command("systemd-analyze", ["verify", "--man=no"]);
    verify.arg(&path);
    let said = output(verify, "");
    let ours: Vec<_> = said.stderr.lines().filter(|line| line.contains("enforcer")).collect();
    assert_eq!((said.code, ours), (0, vec![]), "{}", said.stderr);
    let mut security =
        command("systemd-analyze", ["security", "--offline=true", "--no-pager", "--threshold=17"]);
    security.arg(&path);
    let said = output(security, "");
    assert_eq!(said.code, 0, "{}{}", said.stdout, said.stderr);
    assert!(said.stdout.contains("Overall exposure level"), "{}", said.stdout);
    for (program, file) in [
        ("systemd-sysusers", "enforcer-gateway.sysusers.conf"),
        ("systemd-tmpfiles", "enforcer-gateway.tmpfiles.conf"),
    ] {
        fs::create_dir_all(root.0.join("etc/enforcer")).unwrap();
        fs::write(root.0.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
        fs::write(root.0.join("etc/group"), "root:x:0:\nenforcer-web:x:990:\n").unwrap();
        let mut taken = command(program, [format!("--root={}", root.0.display())]);
        if program == "systemd-tmpfiles" {
            taken.arg("--create");
        }
        taken.arg(units().join(file));
        let said = output(taken, "");
        assert_eq!(said.code, 0, "{file}: {}{}", said.stdout, said.stderr);
    }
    let users = fs::metadata(root.0.join("etc/enforcer/web-users")).unwrap();
    assert_eq!((users.gid(), users.mode() & 0o7777), (990, 0o640));
}

/// A gateway between two hosts: `near` has two client addresses, `far` is in the LAN.
const GATEWAY: &str = r#"
ip link set lo up
echo 1 > /proc/sys/net/ipv4/ip_forward
for which in all default; do echo 0 > /proc/sys/net/ipv4/conf/$which/rp_filter; done
for side in near far; do ip netns add $side; ip -n $side link set lo up; done
ip link add wan0 type veth peer name up0 netns near
ip link add lan0 type veth peer name up0 netns far
ip address add 192.0.2.1/24 dev wan0; ip link set wan0 up
ip address add 203.0.113.1/24 dev lan0; ip link set lan0 up
ip -n near address add 192.0.2.2/24 dev up0; ip -n near link set up0 up
ip -n far address add 203.0.113.2/24 dev up0; ip -n far link set up0 up
for address in 198.51.100.7 198.51.100.8; do
    ip -n near address add $address/32 dev lo
    ip route add $address/32 via 192.0.2.2
done
ip -n near route add default via 192.0.2.1
ip -n far route add default via 203.0.113.1
printf '[kernel]\nouter = ["wan0"]\ninner = ["lan0"]\n' > /etc/enforcer/enforcer.toml
"#;

/// Whether a packet from this client address reaches the LAN and its answer comes back.
fn passes(booted: &Booted, from: &str) -> bool {
    let ping = ["--net=/run/netns/near", "--", "ping", "-c", "1", "-W", "1", "-I", from, "203.0.113.2"];
    booted.run("nsenter", &ping).code == 0
}

/// Revoked is dropped, and its twin passes.
#[track_caller]
fn in_force(booted: &Booted, when: &str) {
    assert!(passes(booted, "198.51.100.8"), "{when}: the twin is dropped\n{}", booted.journal());
    assert!(!passes(booted, "198.51.100.7"), "{when}: the revoked address passes\n{}", booted.journal());
}

/// R5: under systemd, hardened as it is: it gets ready and reports; a daemon that is killed, or hangs, is started
/// again; the drops are in force all the while, and after a stop. Nothing that it needs is denied to it.
#[test]
fn r5_the_unit_keeps_the_drops_in_force() {
    let booted = Booted::start("r5", &binary(), &units().join("enforcer.service"), GATEWAY);
    booted.until("SubState", |state| state == "running");
    let revoked = booted.run("enforcer", &["revoke", "address", "198.51.100.7"]);
    assert_eq!(revoked.code, DONE, "{}{}", revoked.stdout, revoked.stderr);
    in_force(&booted, "revoked");

    // it reports to the watchdog, again and again, and so is left alone
    let pid = booted.property("MainPID");
    let first = booted.until("WatchdogTimestampMonotonic", |at| at != "0");
    let second = booted.until("WatchdogTimestampMonotonic", |at| at != first);
    booted.until("WatchdogTimestampMonotonic", |at| at != second);
    assert_eq!(booted.property("MainPID"), pid);

    let again = |pid: &str| {
        let next = booted.until("MainPID", |next| next != pid && next != "0");
        booted.until("SubState", |state| state == "running");
        next
    };
    booted.run("systemctl", &["kill", "--signal=KILL", "enforcer.service"]);
    in_force(&booted, "killed");
    let pid = again(&pid);
    in_force(&booted, "started again");

    booted.run("systemctl", &["kill", "--signal=STOP", "enforcer.service"]);
    in_force(&booted, "hanging");
    let pid = again(&pid);
    in_force(&booted, "started again by the watchdog");

    assert_eq!(booted.run("systemctl", &["stop", "enforcer.service"]).code, 0);
    assert_eq!(booted.property("Result"), "success");
    in_force(&booted, "stopped");
    assert_eq!(booted.run("systemctl", &["start", "enforcer.service"]).code, 0);
    assert_ne!(booted.property("MainPID"), pid);
    in_force(&booted, "started");
    let lifted = booted.run("enforcer", &["lift", "1"]);
    assert_eq!(lifted.code, DONE, "{}{}", lifted.stdout, lifted.stderr);
    assert!(passes(&booted, "198.51.100.7"), "lifted");

    // whoever started it, it has the pins in the host's bpffs, where a command line finds them
    let check = booted.run("enforcer", &["check"]);
    eventually("both interfaces", BOUND, || {
        let status = booted.run("enforcer", &["show", "status"]).stdout;
        (status.contains("wan0") && status.contains("lan0")).then_some(())
    });
    assert!(!check.stdout.contains("no pinned maps"), "{}", check.stdout);
    let denied: Vec<_> = ["not permitted", "Permission denied", "Read-only", "Bad system call"].to_vec();
    let journal = booted.journal();
    for line in journal.lines() {
        assert!(!denied.iter().any(|word| line.contains(word)), "{line}");
    }
    assert!(journal.contains("ready"), "{journal}");
}

/// The drop-in for a web gateway: its socket is there, its user's alone, in a folder that he can pass through; also after a
/// restart. Its twin: without the drop-in the daemon runs, and says what it cannot do.
#[test]
fn the_web_gateways_socket_under_the_unit() {
    let drop_in = fs::read_to_string(units().join("web.conf")).unwrap();
    let setup = |drop_in: &str| {
        format!(
            "mkdir -p /etc/systemd/system/enforcer.service.d\n\
             cat > /etc/systemd/system/enforcer.service.d/web.conf <<'END'\n{drop_in}\nEND\n\
             printf '[kernel]\\nouter = []\\ninner = []\\n[web]\\nuser = \"nobody\"\\n' > /etc/enforcer/enforcer.toml\n"
        )
    };
    let booted = Booted::start("web", &binary(), &units().join("enforcer.service"), &setup(&drop_in));
    for _ in 0..2 {
        booted.until("SubState", |state| state == "running");
        let about =
            booted.run("stat", &["--format", "%U %a %F", "/run/enforcer-web/web.sock", "/run/enforcer-web"]);
        assert_eq!(about.stdout, "nobody 600 socket\nroot 711 directory\n", "{}", booted.journal());
        let check = booted.run("enforcer", &["check"]).stdout;
        assert!(check.contains("web: /run/enforcer-web/web.sock is there"), "{check}");
        assert_eq!(booted.run("systemctl", &["restart", "enforcer.service"]).code, 0);
    }
    drop(booted);
    let booted = Booted::start("none", &binary(), &units().join("enforcer.service"), &setup(""));
    eventually("it says why", BOUND, || booted.journal().contains("/run/enforcer-web").then_some(()));
    booted.until("SubState", |state| state == "running");
    let check = booted.run("enforcer", &["check"]).stdout;
    assert!(check.contains("web: NO gateway is served"), "{check}");
}

/// A web gateway whose application is nobody's: what it lets through ends in 502.
const WEB: &str = r#"
ip link set lo up
systemd-sysusers /etc/gateway.sysusers
systemd-tmpfiles --create /etc/gateway.tmpfiles
printf 'secret\n' | enforcer passwd --file /etc/enforcer/web-users alice
cd /etc/enforcer
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj /CN=web -keyout web.key -out web.pem
chgrp enforcer-web web.key
chmod 640 web.key
cat > enforcer.toml <<'END'
[kernel]
outer = []
inner = []
[web]
[gateway]
listen = ["127.0.0.1:443"]
redirect = ["127.0.0.1:80"]
certificates = [{ certificate = "/etc/enforcer/web.pem", key = "/etc/enforcer/web.key" }]
users-file = "/etc/enforcer/web-users"
[[gateway.origins]]
host = "localhost"
to = "http://127.0.0.1:1"
END
"#;

/// Logs in with curl, and asks for something: the answers' codes.
const LOG_IN: &str = r#"
set -eu
ask() { curl -sk -m 20 -b /tmp/jar -H 'Accept: text/html' "$@"; }
login=https://localhost/.enforcer/login
form=$(ask -c /tmp/jar "$login" | grep -o 'name="form" value="[^"]*"' | cut -d'"' -f4)
ask -c /tmp/jar -o /dev/null -w '%{http_code} ' --data-urlencode "form=$form" -d user=alice -d password=secret "$login"
ask -o /dev/null -w '%{http_code}' https://localhost/
"#;

/// The web gateway under its unit, as the page for administrators says it: it serves on the ports of the web without being
/// root, is read again, stops cleanly, and nothing that it needs is denied to it.
#[test]
fn the_web_gateway_under_its_unit() {
    let file = |name: &str| fs::read_to_string(units().join(name)).unwrap();
    let put = |path: &str, text: &str| format!("cat > {path} <<'END'\n{text}\nEND\n");
    let setup = [
        "mkdir -p /etc/systemd/system/enforcer.service.d\n".to_owned(),
        put("/etc/systemd/system/enforcer.service.d/web.conf", &file("web.conf")),
        put("/etc/systemd/system/enforcer-gateway.service", &file("enforcer-gateway.service")),
        put("/etc/gateway.sysusers", &file("enforcer-gateway.sysusers.conf")),
        put("/etc/gateway.tmpfiles", &file("enforcer-gateway.tmpfiles.conf")),
        WEB.to_owned(),
    ]
    .concat();
    let booted = Booted::start("gateway", &binary(), &units().join("enforcer.service"), &setup);
    let journal = || {
        booted
            .run("journalctl", &["--no-pager", "--output", "cat", "--unit", "enforcer-gateway.service"])
            .stdout
    };
    let started = booted.run("systemctl", &["start", "enforcer-gateway.service"]);
    assert_eq!(started.code, 0, "{}{}", started.stderr, journal());
    eventually(&format!("somebody logs in; {}", journal()), BOUND, || {
        (booted.run("sh", &["-c", LOG_IN]).stdout == "303 502").then_some(())
    });
    let pid =
        booted.run("systemctl", &["show", "--value", "--property", "MainPID", "enforcer-gateway.service"]);
    let status = booted.run("cat", &[&format!("/proc/{}/status", pid.stdout.trim())]).stdout;
    let field = |name: &str| status.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    assert!(
        !field("Uid:").is_empty() && !field("Uid:").split_whitespace().skip(1).any(|uid| uid == "0"),
        "{status}"
    );
    for set in ["CapPrm:", "CapEff:", "CapAmb:"] {
        assert!(field(set).ends_with("0000000000000000"), "{status}");
    }
    assert_eq!(booted.run("systemctl", &["reload", "enforcer-gateway.service"]).code, 0);
    eventually("it reads everything again", BOUND, || {
        journal().contains("the configuration was read again").then_some(())
    });
    assert_eq!(booted.run("systemctl", &["stop", "enforcer-gateway.service"]).code, 0);
    let result =
        booted.run("systemctl", &["show", "--value", "--property", "Result", "enforcer-gateway.service"]);
    assert_eq!(result.stdout.trim(), "success", "{}", journal());
    let denied = ["not permitted", "Permission denied", "Read-only", "Bad system call", "ERROR"];
    for line in journal().lines() {
        assert!(!denied.iter().any(|word| line.contains(word)), "{line}");
    }
}
