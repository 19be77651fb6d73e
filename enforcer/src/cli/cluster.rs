//! `enforcer cluster`: what an administrator has to know and to do at etcd. It prints commands, and runs none: they need
//! the rights of etcd's administrator, which no gateway has.

use std::path::PathBuf;

use anyhow::Context as _;
use serde::Serialize;
use tonic::Status;

use super::{gateways, output};
use crate::cluster::{GatewayId, Key, Prefix};
use crate::config::Config;
use crate::control::api;
use crate::exit::Code;
use crate::store::Reader;

#[derive(Debug, Clone, clap::Subcommand)]
pub enum Cluster {
    /// This gateway's id, by which etcd's keys and other gateways know it
    #[command(
        after_help = "It is made with the database in [state] directory, when the daemon is started first, and stays \
                            for as long as that is there."
    )]
    Id,
    /// Print the etcdctl commands that make etcd's user and role for a gateway, which may write its own keys alone
    #[command(
        after_help = "Run them where etcdctl reaches etcd as root. The role reads everything below [cluster] prefix, and \
                      writes what is this gateway's, and the places of limited sessions, which all gateways write.\n\n\
                      Examples:\n  enforcer cluster roles\n  enforcer cluster roles > vpn-1.sh\n  enforcer cluster roles \
                      --gateway 8f2b6c0d9e4a41d7b3c5e6f708192a3b --name vpn-2"
    )]
    Roles(Roles),
    /// Take whichever etcd is found next for the right one: after it was restored from a backup, or made anew
    #[command(
        after_help = "While the daemon runs it keeps to the etcd that it knows: another one, or one that went back, is not \
                      used, and `enforcer show gateways` says so. Stop the daemon, adopt, start it: everything in that etcd is \
                      read from its beginning. What is in force here stays in force; what was told to the other etcd alone \
                      is not told again.\n\nExample:\n  systemctl stop enforcer && enforcer cluster adopt && systemctl \
                      start enforcer"
    )]
    Adopt,
    /// Print the etcdctl commands that take a gateway out which is gone for good
    #[command(
        after_help = "Until it is taken out, every revocation is kept for it, and receipts say that it has not confirmed. \
                      Stop its daemon first, or see that it never comes back: one that does registers itself again, and has \
                      missed whatever was forgotten meanwhile.\n\nExamples:\n  enforcer cluster remove vpn-2\n  enforcer \
                      cluster remove 8f2b6c0d9e4a41d7b3c5e6f708192a3b"
    )]
    Remove {
        /// As `show gateways` lists it: its name, its id, or as much of the id as is printed there
        #[arg(value_name = "NAME|ID")]
        gateway: String,
    },
}

#[derive(Debug, Clone, clap::Args)]
pub struct Roles {
    /// For another gateway, by what `enforcer cluster id` prints there [default: this one]
    #[arg(long, value_name = "ID", requires = "name")]
    pub gateway: Option<GatewayId>,
    /// What etcd's user and role are called [default: [cluster] user, else what this gateway is called]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Where the commands read the user's password: one line, without spaces [default: [cluster] password-file; with
    /// --gateway or without that key etcdctl asks for it]
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<PathBuf>,
}

/// As `--json` prints it.
#[derive(Debug, Serialize)]
struct Shown {
    gateway: String,
    /// For a shell, one after the other.
    commands: Vec<String>,
    /// What they do not do.
    notes: Vec<String>,
}

/// What needs no daemon.
pub(super) fn run(what: &Cluster, config: &Config, json: bool) -> anyhow::Result<Code> {
    match what {
        Cluster::Id => {
            let gateway = own_id(config)?.to_string();
            let shown = Shown { gateway, commands: Vec::new(), notes: Vec::new() };
            output::print(json, &shown, |shown| format!("{}\n", shown.gateway))?;
        }
        Cluster::Adopt => {
            anyhow::ensure!(
                std::os::unix::net::UnixStream::connect(&config.control.socket).is_err(),
                "the daemon is running, and keeps to the etcd that it knows: stop it first"
            );
            let gateway = own_id(config)?.to_string();
            let note = match crate::daemon::forget_etcd(config)? {
                Some(cluster) => {
                    format!("etcd's cluster {cluster:x} is forgotten: the next one that is found is taken")
                }
                None => "no etcd was known: the next one that is found is taken".to_owned(),
            };
            let shown = Shown { gateway, commands: Vec::new(), notes: vec![note] };
            output::print(json, &shown, |shown| format!("{}\n", shown.notes.join("\n")))?;
        }
        Cluster::Roles(asked) => output::print(json, &roles(asked, config)?, text)?,
        Cluster::Remove { gateway } => {
            let id: GatewayId = gateway.parse()?;
            output::print(json, &removal(id, None, &prefix(config)?), text)?;
        }
    }
    Ok(Code::Done)
}

/// One that is named otherwise than by its whole id: `known` has the names.
pub(super) fn remove(
    named: &str,
    known: &api::Gateways,
    config: &Config,
    json: bool,
) -> anyhow::Result<Code> {
    let gateway = find(named, &known.gateways)?;
    let id = gateway.id.parse().context("the daemon knows a gateway by what is no id")?;
    output::print(json, &removal(id, Some(gateway), &prefix(config)?), text)?;
    Ok(Code::Done)
}

/// Whether it needs no daemon to know which gateway is meant.
pub(super) fn needs_no_daemon(what: &Cluster) -> bool {
    !matches!(what, Cluster::Remove { gateway } if gateway.parse::<GatewayId>().is_err())
}

fn text(shown: &Shown) -> String {
    let notes = shown.notes.iter().map(|note| format!("# {note}\n"));
    notes.chain(shown.commands.iter().map(|command| format!("{command}\n"))).collect()
}

fn own_id(config: &Config) -> anyhow::Result<GatewayId> {
    let directory = &config.state.directory;
    let reader = Reader::open(directory)?.with_context(|| {
        format!(
            "this gateway has no id yet: there is no database in {}. It is made when `enforcer run` is started first",
            directory.display()
        )
    })?;
    Ok(reader.gateway()?.parse()?)
}

fn prefix(config: &Config) -> anyhow::Result<Prefix> {
    let cluster = config.cluster.as_ref().context(
        "there is no [cluster] in the configuration, which says what is before every key: --config names another file",
    )?;
    Prefix::new(&cluster.prefix).map_err(|why| anyhow::anyhow!("[cluster] prefix: {why}"))
}

fn roles(asked: &Roles, config: &Config) -> anyhow::Result<Shown> {
    let prefix = prefix(config)?;
    let cluster = config.cluster.as_ref().filter(|_| asked.gateway.is_none());
    let id = match asked.gateway {
        Some(id) => id,
        None => own_id(config)?,
    };
    let configured = cluster.map(|cluster| cluster.user.clone().unwrap_or_else(|| cluster.display_name(id)));
    let name = asked.name.clone().or(configured).context("--gateway needs --name")?;
    // etcdctl splits USER:PASSWORD there, and a name that looks like an option is one
    let plain = |c: char| c.is_ascii_graphic() && c != ':';
    if name.is_empty() || name == "root" || name.starts_with('-') || !name.chars().all(plain) {
        return Err(Status::invalid_argument(format!(
            "{name:?} is no name for a gateway's user: visible ASCII without a colon, not beginning with `-`, and not root. \
             --name gives another one"
        ))
        .into());
    }
    let password = asked.password_file.clone().or_else(|| cluster.and_then(|c| c.password_file.clone()));
    let user = quoted(&name);
    let mut commands = vec![match &password {
        Some(file) => {
            format!("etcdctl user add {user} --interactive=false < {}", quoted(&file.display().to_string()))
        }
        None => format!("etcdctl user add {user}"),
    }];
    commands.push(format!("etcdctl role add {user}"));
    let grant = |options: &str, right: &str, key: &str| {
        format!("etcdctl role grant-permission {user} {options}{right} {}", quoted(key))
    };
    let below = "--prefix=true ";
    commands.push(grant(below, "read", prefix.as_str()));
    for key in [Key::Gateway(id), Key::Alive(id), Key::Acknowledged(id)] {
        commands.push(grant("", "readwrite", &written(&prefix, &key)?));
    }
    for folder in [format!("from/{id}/"), format!("sessions/{id}/"), "owners/".to_owned()] {
        commands.push(grant(below, "readwrite", &format!("{}{folder}", prefix.as_str())));
    }
    commands.push(format!("etcdctl user grant-role {user} {user}"));
    let notes = vec![
        format!("etcd's user and role {name} for the gateway {id}. Run this as etcd's root."),
        "Once for all gateways, if etcd has no authentication yet: etcdctl user add root; etcdctl user grant-role root root; \
         and, when every gateway has its user: etcdctl auth enable"
            .to_owned(),
        format!(
            "The gateway's configuration then has [cluster] user = {name:?}, and password-file: a file of mode 0600."
        ),
    ];
    Ok(Shown { gateway: id.to_string(), commands, notes })
}

/// `known`: what the daemon knows of it.
fn removal(id: GatewayId, known: Option<&api::Gateway>, prefix: &Prefix) -> Shown {
    let below = prefix.as_str();
    let delete =
        |options: &str, key: String| format!("etcdctl del {options}{}", quoted(&format!("{below}{key}")));
    let commands = vec![
        delete("", format!("gateways/{id}")),
        delete("", format!("acknowledged/{id}")),
        delete("--prefix ", format!("sessions/{id}/")),
    ];
    let mut notes = Vec::new();
    if known.is_some_and(|gateway| gateway.is_me) {
        notes.push("THIS IS THE GATEWAY YOU ARE ON. Stop it first: it registers itself again.".to_owned());
    } else if known.is_some_and(|gateway| gateway.alive) {
        notes.push("It is ALIVE. Stop it first: it registers itself again.".to_owned());
    }
    notes.push(format!(
        "Takes the gateway {id} out: no revocation is kept for it any longer. Run this as etcd's root, and take its user \
         away: etcdctl user delete NAME; etcdctl role delete NAME"
    ));
    notes.push(format!(
        "What it has decided stays, its locks too: {below}from/{id}/ holds it. `enforcer unlock` and `enforcer lift` take \
         it back."
    ));
    Shown { gateway: id.to_string(), commands, notes }
}

/// By its name, or by how its id begins, at least as much of it as is printed.
fn find<'a>(named: &str, all: &'a [api::Gateway]) -> Result<&'a api::Gateway, Status> {
    let by_id = |gateway: &&api::Gateway| named.len() >= gateways::SHORT_ID && gateway.id.starts_with(named);
    let found: Vec<&api::Gateway> =
        all.iter().filter(|gateway| gateway.name == named || by_id(gateway)).collect();
    match found.as_slice() {
        [one] => Ok(one),
        [] => Err(Status::not_found(format!(
            "there is no gateway {named:?}: `enforcer show gateways` lists them"
        ))),
        several => {
            let ids: Vec<&str> = several.iter().map(|gateway| gateway.id.as_str()).collect();
            Err(Status::invalid_argument(format!(
                "there are {} gateways {named:?}; name one by its id: {}",
                ids.len(),
                ids.join(", ")
            )))
        }
    }
}

fn written(prefix: &Prefix, key: &Key) -> anyhow::Result<String> {
    Ok(String::from_utf8(prefix.write(key)?)?)
}

/// One word for a shell.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-@+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: &str = "[cluster]\nendpoints = ['http://127.0.0.1:2379']\n";

    fn id(n: u8) -> GatewayId {
        GatewayId::from_bytes([n; 16])
    }

    fn asked(gateway: Option<GatewayId>, name: Option<&str>) -> Roles {
        Roles { gateway, name: name.map(str::to_owned), password_file: None }
    }

    /// tests/tests/cluster/security.rs runs what is printed against a real etcd.
    #[test]
    fn a_role_is_made_of_the_gateways_own_keys() {
        let config =
            Config::parse(&format!("{CLUSTER}prefix = '/it''s/'").replace("'/it''s/'", "\"/it's/\""))
                .unwrap();
        let shown = roles(&asked(Some(id(7)), Some("vpn-7")), &config).unwrap();
        let seven = id(7);
        assert_eq!(
            shown.commands,
            [
                "etcdctl user add vpn-7".to_owned(),
                "etcdctl role add vpn-7".to_owned(),
                r"etcdctl role grant-permission vpn-7 --prefix=true read '/it'\''s/'".to_owned(),
                format!(r"etcdctl role grant-permission vpn-7 readwrite '/it'\''s/gateways/{seven}'"),
                format!(r"etcdctl role grant-permission vpn-7 readwrite '/it'\''s/alive/{seven}'"),
                format!(r"etcdctl role grant-permission vpn-7 readwrite '/it'\''s/acknowledged/{seven}'"),
                format!(
                    r"etcdctl role grant-permission vpn-7 --prefix=true readwrite '/it'\''s/from/{seven}/'"
                ),
                format!(
                    r"etcdctl role grant-permission vpn-7 --prefix=true readwrite '/it'\''s/sessions/{seven}/'"
                ),
                r"etcdctl role grant-permission vpn-7 --prefix=true readwrite '/it'\''s/owners/'".to_owned(),
                "etcdctl user grant-role vpn-7 vpn-7".to_owned(),
            ]
        );
        // what is for people is no command to a shell
        assert!(text(&shown).lines().take(shown.notes.len()).all(|line| line.starts_with("# ")));
    }

    #[test]
    fn a_role_is_not_made_of_anything() {
        let config = Config::parse(CLUSTER).unwrap();
        for bad in ["", "root", "a:b", "a b", "-x", "a\nb"] {
            assert!(roles(&asked(Some(id(1)), Some(bad)), &config).is_err(), "{bad:?}");
        }
        assert!(roles(&asked(Some(id(1)), None), &config).is_err());
        let alone = Config::parse("").unwrap();
        let told = roles(&asked(Some(id(1)), Some("a")), &alone).unwrap_err();
        assert!(told.to_string().contains("[cluster]"), "{told}");
        let folder = tempfile::tempdir().unwrap();
        let none = Config::parse(&format!("{CLUSTER}[state]\ndirectory = {:?}", folder.path().join("none")))
            .unwrap();
        let told = roles(&asked(None, None), &none).unwrap_err();
        assert!(told.to_string().contains("no id yet"), "{told}");
    }

    #[test]
    fn a_gateway_is_found_by_name_or_id_and_never_guessed() {
        let gateway =
            |name: &str, id: &str| api::Gateway { name: name.into(), id: id.into(), ..Default::default() };
        let all = [
            gateway("vpn-1", &"ab".repeat(16)),
            gateway("vpn-2", &format!("{}{}", "cd".repeat(4), "00".repeat(12))),
            gateway("vpn-2", &format!("{}{}", "cd".repeat(4), "11".repeat(12))),
        ];
        assert_eq!(find("vpn-1", &all).unwrap().name, "vpn-1");
        assert_eq!(find("abababab", &all).unwrap().name, "vpn-1");
        assert_eq!(find("cdcdcdcd1", &all).unwrap().id, all[2].id);
        for (named, code) in [
            ("vpn-2", tonic::Code::InvalidArgument),
            ("cdcdcdcd", tonic::Code::InvalidArgument),
            ("abab", tonic::Code::NotFound),
            ("", tonic::Code::NotFound),
            ("vpn", tonic::Code::NotFound),
        ] {
            assert_eq!(find(named, &all).unwrap_err().code(), code, "{named}");
        }
    }

    #[test]
    fn who_is_alive_is_not_taken_out_unsaid() {
        let prefix = Prefix::new("/enforcer/v1/").unwrap();
        let gone = text(&removal(id(7), None, &prefix));
        assert!(
            !gone.contains("ALIVE")
                && gone.contains(&format!("\netcdctl del /enforcer/v1/gateways/{}\n", id(7))),
            "{gone}"
        );
        let alive = api::Gateway { alive: true, ..Default::default() };
        assert!(text(&removal(id(7), Some(&alive), &prefix)).contains("ALIVE"));
        let me = api::Gateway { is_me: true, ..alive };
        assert!(text(&removal(id(7), Some(&me), &prefix)).contains("THIS IS"));
    }

    proptest::proptest! {
        /// A shell gives back what was quoted.
        #[test]
        fn a_quoted_word_is_one_word(word in "[ -~]{0,20}") {
            let said = std::process::Command::new("sh").args(["-c", &format!("printf %s {}", quoted(&word))]).output().unwrap();
            proptest::prop_assert_eq!(String::from_utf8(said.stdout).unwrap(), word);
        }
    }
}
