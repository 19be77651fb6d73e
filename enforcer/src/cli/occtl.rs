//! Under the name `occtl`: `disconnect user|id [-i|--invalidate] X` is ours, in either order of words;
//! everything else is the real occtl's, unchanged.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::{Change, Cli, Command, Common, Disconnect, OnServer, Wait};
use crate::config::Config;
use crate::exit::Code;

/// What of an occtl command line is ours.
#[derive(Debug, PartialEq, Eq)]
struct Ours {
    /// `user` or `id`.
    kind: String,
    whom: String,
    /// occtl's `-s`: which server.
    socket: Option<PathBuf>,
    json: bool,
}

/// `None`: not ours.
fn ours(args: &[OsString]) -> Option<Ours> {
    let mut words = Vec::new();
    let (mut invalidate, mut json, mut socket) = (false, false, None);
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.to_str()? {
            "-i" | "--invalidate" => invalidate = true,
            "-j" | "--json" => json = true,
            "-n" | "--no-pager" => {}
            "-s" | "--socket-file" => socket = Some(PathBuf::from(args.next()?)),
            option if option.starts_with("--socket-file=") => {
                socket = Some(PathBuf::from(option.trim_start_matches("--socket-file=")));
            }
            option if option.starts_with('-') => return None,
            word => words.push(word.to_owned()),
        }
    }
    match <[String; 3]>::try_from(words) {
        Ok([verb, kind, whom]) if invalidate && verb == "disconnect" && (kind == "user" || kind == "id") => {
            Some(Ours { kind, whom, socket, json })
        }
        _ => None,
    }
}

/// Runs under occtl's name. `args` without the name itself.
pub fn run(args: Vec<OsString>) -> ExitCode {
    let Some(ours) = ours(&args) else { return real(&args) };
    let config = std::env::var_os("ENFORCER_CONFIG").map(PathBuf::from);
    let server = match &ours.socket {
        None => String::new(),
        Some(socket) => match server_of(config.as_deref(), socket) {
            Ok(name) => name,
            Err(why) => {
                eprintln!("occtl: {why}");
                return Code::Error.into();
            }
        },
    };
    let on = OnServer { server };
    let change = Change { reason: "occtl".into(), dry_run: false };
    let wait = Wait::default();
    let whom = match (ours.kind.as_str(), ours.whom.parse::<i32>()) {
        ("user", _) => Disconnect::User { name: ours.whom, invalidate: true, on, change, wait },
        (_, Ok(id)) => Disconnect::Id { id, invalidate: true, on, change, wait },
        (_, Err(_)) => {
            eprintln!("occtl: {:?} is not an id: it is the number that `occtl show users` prints", ours.whom);
            return Code::Usage.into();
        }
    };
    let socket = std::env::var_os("ENFORCER_SOCKET").map(PathBuf::from);
    super::run::run(Cli {
        common: Common { json: ours.json, socket, config },
        command: Command::Disconnect { invalidate: true, whom },
    })
}

fn server_of(config: Option<&Path>, socket: &Path) -> Result<String, String> {
    let config = Config::load(config).map_err(|error| error.to_string())?;
    let same = |a: &Path, b: &Path| {
        a == b || matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
    };
    (config.ocserv.iter())
        .find(|server| same(&server.control_socket, socket))
        .map(|server| server.name.clone())
        .ok_or_else(|| {
            format!("no [ocserv] section of the enforcer has control-socket = {:?}", socket.display())
        })
}

/// Becomes the real occtl.
fn real(args: &[OsString]) -> ExitCode {
    let Some(occtl) = real_occtl() else {
        eprintln!("occtl: the real occtl is nowhere on PATH (it comes with ocserv)");
        return Code::Error.into();
    };
    let error = std::process::Command::new(&occtl).arg0("occtl").args(args).exec();
    eprintln!("occtl: cannot run {}: {error}", occtl.display());
    Code::Error.into()
}

/// The first occtl on PATH (or in the usual folders) that is not this program.
fn real_occtl() -> Option<PathBuf> {
    let me = std::env::current_exe().ok()?.canonicalize().ok()?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/bin", "/usr/sbin", "/usr/local/bin"].map(PathBuf::from))
        .map(|folder| folder.join(OsStr::new("occtl")))
        .find(|file| file.canonicalize().is_ok_and(|there| there != me))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Option<Ours> {
        ours(&line.split_whitespace().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn invalidate_is_ours_in_either_order() {
        for line in
            ["disconnect user -i alice", "disconnect user alice --invalidate", "-i disconnect user alice"]
        {
            let ours = words(line).unwrap();
            assert_eq!((ours.kind.as_str(), ours.whom.as_str()), ("user", "alice"));
        }
        assert_eq!(words("-s /run/a disconnect id 7 -i").unwrap().socket, Some("/run/a".into()));
    }

    #[test]
    fn everything_else_is_the_real_ones() {
        for line in [
            "",
            "show users",
            "disconnect user alice",
            "-i show users",
            "disconnect user -i",
            "-v disconnect user a -i",
        ] {
            assert_eq!(words(line), None, "{line}");
        }
    }
}
