//! One of several gateways under its unit: what the drop-in opens, and what stays shut.

use std::fs;

use enforcer_tests::enforcer::binary;
use enforcer_tests::process::{BOUND, eventually};

use crate::booted::Booted;
use crate::units;

/// etcd on a host beside the gateway, by TLS with certificates on both ends, at addresses that the drop-in names and at one it
/// does not name.
const ETCD: &str = r#"
ip link set lo up
ip netns add etcd
ip -n etcd link set lo up
ip link add net0 type veth peer name up0 netns etcd
ip address add 192.0.2.1/24 dev net0
ip address add 2001:db8::1/64 dev net0 nodad
ip link set net0 up
for address in 192.0.2.11/24 192.0.2.99/24; do ip -n etcd address add $address dev up0; done
ip -n etcd address add 2001:db8::11/64 dev up0 nodad
ip -n etcd link set up0 up
cd /etc/enforcer
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj /CN=ca -keyout ca.key -out ca.crt
for name in etcd gateway; do
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=$name -keyout $name.key -out $name.csr
    printf 'subjectAltName=IP:192.0.2.11,IP:192.0.2.99,IP:2001:db8::11\nextendedKeyUsage=serverAuth,clientAuth\n' > $name.ext
    openssl x509 -req -in $name.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -extfile $name.ext -out $name.crt
done
chmod 600 gateway.key
cat > /etc/systemd/system/etcd-test.service <<'END'
[Service]
Type=notify
NetworkNamespacePath=/run/netns/etcd
ExecStart=/usr/bin/etcd --data-dir /tmp/etcd-data --logger zap --log-level warn --listen-client-urls https://[::]:2379 \
    --advertise-client-urls https://192.0.2.11:2379 --client-cert-auth --trusted-ca-file /etc/enforcer/ca.crt \
    --cert-file /etc/enforcer/etcd.crt --key-file /etc/enforcer/etcd.key
END
"#;

/// The gateway's configuration, with etcd at that address.
fn configuration(address: &str) -> String {
    format!(
        "[kernel]\nouter = []\ninner = []\n[cluster]\nendpoints = ['https://{address}:2379']\nname = 'vpn-1'\n\
         ca = '/etc/enforcer/ca.crt'\ncertificate = '/etc/enforcer/gateway.crt'\nkey = '/etc/enforcer/gateway.key'\n\
         connect-timeout = '1s'\n"
    )
}

fn configure(booted: &Booted, address: &str) {
    let script = format!("cat > /etc/enforcer/enforcer.toml <<'END'\n{}END\n", configuration(address));
    assert_eq!(booted.run("sh", &["-euc", &script]).code, 0);
    assert_eq!(booted.run("systemctl", &["restart", "enforcer.service"]).code, 0, "{}", booted.journal());
}

/// `enforcer check` says so.
#[track_caller]
fn says(booted: &Booted, what: &str) {
    eventually(&format!("{what:?}; {}", booted.journal()), BOUND, || {
        booted.run("enforcer", &["check"]).stdout.contains(what).then_some(())
    });
}

fn boot(name: &str, drop_in: &str) -> Booted {
    let setup = format!(
        "mkdir -p /etc/systemd/system/enforcer.service.d\n\
         cat > /etc/systemd/system/enforcer.service.d/cluster.conf <<'END'\n{drop_in}\nEND\n{ETCD}\
         cat > /etc/enforcer/enforcer.toml <<'END'\n{}END\n",
        configuration("192.0.2.11")
    );
    let booted = Booted::start(name, &binary(), &units().join("enforcer.service"), &setup);
    let started = booted.run("systemctl", &["start", "etcd-test.service"]);
    let log = || booted.run("journalctl", &["--no-pager", "--unit", "etcd-test.service"]).stdout;
    assert_eq!(started.code, 0, "{}{}", started.stderr, log());
    booted.until("SubState", |state| state == "running");
    booted
}

/// R7: with the drop-in as it is, the daemon reaches the members that it names, by IPv4 and by IPv6, and reads its key (0600) and
/// its certificates; though it was started before the network and before etcd. Miss twin: another address of the same etcd.
#[test]
fn etcd_is_reached_where_the_drop_in_says_and_nowhere_else() {
    let drop_in = fs::read_to_string(units().join("cluster.conf")).unwrap();
    let booted = boot("cluster", &drop_in);
    says(&booted, "cluster: etcd answers: https://192.0.2.11:2379");
    configure(&booted, "[2001:db8::11]");
    says(&booted, "cluster: etcd answers: https://[2001:db8::11]:2379");
    configure(&booted, "192.0.2.99");
    says(&booted, "cluster: etcd is away: https://192.0.2.99:2379");
    // it is there, for whoever may go there
    let asked = booted.run(
        "etcdctl",
        &[
            "--endpoints=https://192.0.2.99:2379",
            "--cacert=/etc/enforcer/ca.crt",
            "--cert=/etc/enforcer/gateway.crt",
            "--key=/etc/enforcer/gateway.key",
            "get",
            "--prefix",
            "--keys-only",
            "/enforcer/v1/gateways/",
        ],
    );
    assert!(asked.code == 0 && asked.stdout.contains("/enforcer/v1/gateways/"), "{}", asked.stderr);
    let denied = ["Permission denied", "Read-only", "Bad system call"];
    for line in booted.journal().lines() {
        assert!(!denied.iter().any(|word| line.contains(word)), "{line}");
    }
}

/// R6: without it etcd is away, and that is said; the daemon runs.
#[test]
fn without_the_drop_in_etcd_is_away() {
    let booted = boot("no-cluster", "");
    says(&booted, "cluster: etcd is away: https://192.0.2.11:2379");
    assert_eq!(booted.property("SubState"), "running");
}
