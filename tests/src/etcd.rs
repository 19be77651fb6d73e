//! A real etcd of one or several members, each in a namespace of its own, on one network with whoever is to reach it.
//!
//! ```text
//! etcd1 10.99.0.1 ──┐
//! etcd2 10.99.0.2 ──┼─ bridge (10.99.0.254, where etcdctl runs)
//! etcd3 10.99.0.3 ──┘
//! gateways 10.99.0.101 … ──┘
//! ```
//!
//! The lab that it is started in ends it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::lab::Lab;
use crate::namespace::Namespace;
use crate::process::{BOUND, Output, Process, command, eventually, output, succeed};
use crate::wire::Wire;

/// Of `root` and of each user that [`Etcd::with_roles`] makes.
pub const PASSWORD: &str = "Kestrel-4711-Umbra";

/// The device by which a gateway is on etcd's network, where that is by [`Etcd::wire`].
pub const CLUSTER: &str = "etcd0";

/// What whoever tests with it wants.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanted {
    /// Clients speak TLS.
    pub tls: bool,
    /// ... and show a certificate of the same authority. With [`Self::tls`].
    pub client_certificates: bool,
}

/// A cluster. Its members end with it.
pub struct Etcd {
    pub members: Vec<Member>,
    pub network: Namespace,
    folder: PathBuf,
    wanted: Wanted,
    token: String,
    /// Once roles are in force.
    root: bool,
}

/// One member.
pub struct Member {
    pub namespace: Namespace,
    number: u8,
    process: Option<Process>,
}

impl Etcd {
    /// Starts so many members, and waits until they have a leader.
    #[track_caller]
    pub fn start(lab: &Lab, count: u8, wanted: Wanted) -> Self {
        let network = lab.namespace("etcdnet");
        network.ip("link add br0 type bridge\naddr add 10.99.0.254/24 dev br0\nlink set br0 up\n");
        let folder = lab.work();
        let members = (1..=count)
            .map(|number| Member {
                namespace: attach(lab, &network, &format!("etcd{number}"), number),
                number,
                process: None,
            })
            .collect();
        let mut new = Self { members, network, folder, wanted, token: "first".into(), root: false };
        if wanted.tls {
            Authority::new(&new.folder, "ca").issue("server", &new.addresses());
        }
        for place in 0..new.members.len() {
            new.start_member(place);
        }
        new.healthy();
        new
    }

    /// A namespace on that network: 10.99.0.(100 + `number`).
    pub fn attach(&self, lab: &Lab, name: &str, number: u8) -> Namespace {
        attach(lab, &self.network, name, 100 + number)
    }

    /// A namespace that is there already gets on that network, as 10.99.0.(100 + `number`), by a wire that can be cut.
    pub fn wire(&self, namespace: &Namespace, number: u8) -> Wire {
        let last = 100 + number;
        let port = format!("w{last}");
        let wire = Wire::lay((namespace, CLUSTER), (&self.network, &port));
        self.network.ip(&format!("link set {port} master br0\n"));
        namespace.ip(&format!("addr add 10.99.0.{last}/24 dev {CLUSTER}\n"));
        wire
    }

    /// One for each member.
    pub fn endpoints(&self) -> Vec<String> {
        let scheme = if self.wanted.tls { "https" } else { "http" };
        self.addresses().iter().map(|address| format!("{scheme}://{address}:2379")).collect()
    }

    fn addresses(&self) -> Vec<String> {
        self.members.iter().map(|member| format!("10.99.0.{}", member.number)).collect()
    }

    /// The file with the root of its certificates.
    pub fn ca(&self) -> PathBuf {
        self.folder.join("ca.crt")
    }

    /// The authority whose certificates it shows and believes.
    pub fn authority(&self) -> Authority {
        Authority { folder: self.folder.clone(), name: "ca".into() }
    }

    /// Also again, with the data that it has.
    #[track_caller]
    pub fn start_member(&mut self, place: usize) {
        let scheme = if self.wanted.tls { "https" } else { "http" };
        let peers: Vec<String> = self
            .members
            .iter()
            .map(|member| format!("etcd{0}=http://10.99.0.{0}:2380", member.number))
            .collect();
        let member = &self.members[place];
        let (number, log) = (member.number, self.folder.join(format!("etcd{}.log", member.number)));
        let mut etcd = member.namespace.command("etcd");
        etcd.env_clear().env("PATH", "/usr/bin:/bin");
        etcd.args(["--name", &format!("etcd{number}"), "--logger", "zap", "--log-level", "warn"]);
        etcd.arg("--data-dir").arg(self.data(place));
        etcd.args(["--listen-client-urls", &format!("{scheme}://10.99.0.{number}:2379")]);
        etcd.args(["--advertise-client-urls", &format!("{scheme}://10.99.0.{number}:2379")]);
        etcd.args(["--listen-peer-urls", &format!("http://10.99.0.{number}:2380")]);
        etcd.args(["--initial-advertise-peer-urls", &format!("http://10.99.0.{number}:2380")]);
        etcd.args(["--initial-cluster", &peers.join(","), "--initial-cluster-token", &self.token]);
        if self.wanted.tls {
            etcd.arg("--cert-file").arg(self.folder.join("server.crt"));
            etcd.arg("--key-file").arg(self.folder.join("server.key"));
        }
        if self.wanted.client_certificates {
            etcd.arg("--client-cert-auth").arg("--trusted-ca-file").arg(self.ca());
        }
        let process = Process::start(&format!("etcd{number}"), etcd, &log, None);
        self.members[place].process = Some(process);
    }

    fn data(&self, place: usize) -> PathBuf {
        self.folder.join(format!("etcd{}.data", self.members[place].number))
    }

    /// SIGKILL.
    pub fn kill(&mut self, place: usize) {
        if let Some(mut process) = self.members[place].process.take() {
            process.kill();
        }
    }

    pub fn kill_all(&mut self) {
        (0..self.members.len()).for_each(|place| self.kill(place));
    }

    #[track_caller]
    pub fn start_all(&mut self) {
        (0..self.members.len()).for_each(|place| self.start_member(place));
        self.healthy();
    }

    /// Cuts a member off from the others; clients still reach it.
    pub fn isolate(&self, place: usize) {
        self.members[place].namespace.nft(
            "table inet peers {\nchain in { type filter hook input priority 0; tcp dport 2380 drop; tcp sport 2380 drop; }\n\
             chain out { type filter hook output priority 0; tcp dport 2380 drop; tcp sport 2380 drop; }\n}",
        );
    }

    pub fn rejoin(&self, place: usize) {
        self.members[place].namespace.nft("delete table inet peers");
    }

    /// All members killed; what they have on disk as it is now, by that name.
    pub fn keep_data(&mut self, name: &str) {
        self.kill_all();
        for place in 0..self.members.len() {
            copy(&self.data(place), &self.data(place).with_extension(name));
        }
    }

    /// All members killed, and their disks as they were at [`Self::keep_data`].
    pub fn restore_data(&mut self, name: &str) {
        self.kill_all();
        for place in 0..self.members.len() {
            fs::remove_dir_all(self.data(place)).expect("etcd's data");
            copy(&self.data(place).with_extension(name), &self.data(place));
        }
    }

    /// All members killed, and another, empty cluster at the same place.
    #[track_caller]
    pub fn replace(&mut self) {
        self.kill_all();
        for place in 0..self.members.len() {
            fs::remove_dir_all(self.data(place)).expect("etcd's data");
        }
        self.token = "another".into();
        self.start_all();
    }

    /// Waits until a majority answers.
    #[track_caller]
    pub fn healthy(&self) {
        eventually("etcd answers", BOUND, || (self.try_ctl(&["get", "/none"]).code == 0).then_some(()));
    }

    /// The place of the leader.
    #[track_caller]
    pub fn leader(&self) -> usize {
        eventually("etcd has a leader", BOUND, || {
            let running = (0..self.members.len()).filter(|place| self.members[*place].process.is_some());
            running.into_iter().find(|place| {
                let endpoint = &self.endpoints()[*place];
                let status = self.ctl_at(endpoint, &["endpoint", "status", "-w", "json"]);
                let answer: serde_json::Value = serde_json::from_str(&status.stdout).unwrap_or_default();
                let status = &answer[0]["Status"];
                status["leader"].is_number() && status["leader"] == status["header"]["member_id"]
            })
        })
    }

    /// What etcdctl says; it must succeed.
    #[track_caller]
    pub fn ctl(&self, words: &[&str]) -> String {
        let said = self.try_ctl(words);
        assert!(said.code == 0, "etcdctl {words:?}\nexit {}\n{}{}", said.code, said.stdout, said.stderr);
        said.stdout
    }

    pub fn try_ctl(&self, words: &[&str]) -> Output {
        self.ctl_at(&self.endpoints().join(","), words)
    }

    fn ctl_at(&self, endpoints: &str, words: &[&str]) -> Output {
        let mut ctl = self.network.command("etcdctl");
        ctl.env("ETCDCTL_API", "3").args(["--endpoints", endpoints, "--command-timeout", "5s"]);
        if self.wanted.tls {
            ctl.arg("--cacert").arg(self.ca());
        }
        if self.wanted.client_certificates {
            let authority = self.authority();
            if !self.folder.join("ctl.crt").exists() {
                authority.issue("ctl", &[]);
            }
            ctl.arg("--cert").arg(self.folder.join("ctl.crt")).arg("--key").arg(self.folder.join("ctl.key"));
        }
        if self.root {
            ctl.args(["--user", &format!("root:{PASSWORD}")]);
        }
        output(
            {
                ctl.args(words);
                ctl
            },
            "",
        )
    }

    /// Puts a value, as an administrator does.
    #[track_caller]
    pub fn put(&self, key: &str, value: &str) {
        let mut ctl = self.network.command("etcdctl");
        ctl.env("ETCDCTL_API", "3").args(["--endpoints", &self.endpoints().join(","), "put", key]);
        assert!(!self.wanted.tls && !self.root, "an etcd without a lock on its door");
        succeed(ctl, value);
    }

    /// Turns authentication on: one user for each gateway, `gw-ID`, which may write what is its own below `prefix` and
    /// read all.
    #[track_caller]
    pub fn with_roles(&mut self, prefix: &str, gateways: &[String]) {
        self.ctl(&["user", "add", &format!("root:{PASSWORD}")]);
        self.ctl(&["user", "grant-role", "root", "root"]);
        for id in gateways {
            let user = format!("gw-{id}");
            self.ctl(&["user", "add", &format!("{user}:{PASSWORD}")]);
            self.ctl(&["role", "add", &user]);
            self.ctl(&["role", "grant-permission", &user, "--prefix=true", "read", prefix]);
            for key in ["gateways", "alive", "acknowledged"] {
                self.ctl(&["role", "grant-permission", &user, "readwrite", &format!("{prefix}{key}/{id}")]);
            }
            for folder in [format!("from/{id}/"), format!("sessions/{id}/"), "owners/".to_owned()] {
                let folder = format!("{prefix}{folder}");
                self.ctl(&["role", "grant-permission", &user, "--prefix=true", "readwrite", &folder]);
            }
            self.ctl(&["user", "grant-role", &user, &user]);
        }
        self.ctl(&["auth", "enable"]);
        self.root = true;
    }
}

/// An authority: `NAME.crt` and `NAME.key` in some folder.
pub struct Authority {
    folder: PathBuf,
    name: String,
}

impl Authority {
    /// Makes one.
    pub fn new(folder: &Path, name: &str) -> Self {
        let new = Self { folder: folder.to_owned(), name: name.to_owned() };
        new.openssl(&format!(
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj /CN={name} \
             -keyout {name}.key -out {name}.crt"
        ));
        new
    }

    pub fn certificate(&self) -> PathBuf {
        self.folder.join(format!("{}.crt", self.name))
    }

    /// `NAME.crt` and `NAME.key` (0600), for these addresses.
    pub fn issue(&self, name: &str, addresses: &[String]) -> (PathBuf, PathBuf) {
        let mut names: Vec<String> = addresses.iter().map(|address| format!("IP:{address}")).collect();
        names.push(format!("DNS:{name}.invalid"));
        let authority = &self.name;
        self.openssl(&format!(
            "openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN={name} -keyout {name}.key \
             -out {name}.csr && printf 'subjectAltName={}\\nextendedKeyUsage=serverAuth,clientAuth\\n' > {name}.ext && \
             openssl x509 -req -in {name}.csr -CA {authority}.crt -CAkey {authority}.key -CAcreateserial -days 30 \
             -extfile {name}.ext -out {name}.crt && chmod 600 {name}.key",
            names.join(",")
        ));
        (self.folder.join(format!("{name}.crt")), self.folder.join(format!("{name}.key")))
    }

    fn openssl(&self, script: &str) {
        let mut shell = command("sh", ["-ec", script]);
        shell.current_dir(&self.folder);
        succeed(shell, "");
    }
}

fn attach(lab: &Lab, network: &Namespace, name: &str, last: u8) -> Namespace {
    let namespace = lab.namespace(name);
    network.ip(&format!(
        "link add p{last} type veth peer name eth0 netns {}\nlink set p{last} master br0\nlink set p{last} up\n",
        namespace.name()
    ));
    namespace.ip(&format!("addr add 10.99.0.{last}/24 dev eth0\nlink set eth0 up\n"));
    namespace
}

fn copy(from: &Path, to: &Path) {
    let mut copy = command("cp", ["-a"]);
    copy.arg(from).arg(to);
    succeed(copy, "");
}

/// How long one who was cut off may take to notice; a bound for tests that wait for it.
pub const NOTICED: Duration = Duration::from_secs(60);
