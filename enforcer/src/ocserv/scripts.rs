//! Which scripts ocserv runs: from the configuration that is in force.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use crate::process;
use crate::session::Process;

/// A configuration file is some kilobytes.
const MAX_CONFIG: u64 = 4 << 20;
const DEFAULT_CONFIGS: [&str; 2] = ["/etc/ocserv/ocserv.conf", "/etc/ocserv.conf"];

/// The scripts of an ocserv.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Scripts {
    /// Where they were read: ocserv's own copy of its configuration (`/proc/PID/fd/N`), or the file.
    pub config: PathBuf,
    /// Whether that is ocserv's own copy, taken when it started or reloaded. A file may have been edited since.
    pub in_force: bool,
    /// As written there. One for all virtual hosts: ocserv has no other.
    pub connect: Option<PathBuf>,
    pub disconnect: Option<PathBuf>,
    /// Virtual hosts that name a script of their own: 1.1.6 and 1.3.0 ignore it with a warning, 1.5.0 refuses to start.
    pub ignored: Vec<String>,
    /// ocserv's own firewall script runs first (`restrict-user-to-routes`, `restrict-user-to-ports`), and hands the
    /// script to `/bin/sh` (`execute_next_script` in `src/ocserv-fw`): a program cannot be run that way, only a
    /// shell script.
    pub firewall: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum ScriptsError {
    #[error("ocserv's configuration was not found: tried {tried}; name it in [ocserv] config")]
    NotFound { tried: String },
    #[error("ocserv's configuration {}: {source}", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("process {0} is gone")]
    Gone(i32),
}

/// The scripts that this ocserv runs. `config`: its configuration file, where the administrator named it.
///
/// ocserv blanks its command line (`setproctitle` in `src/setproctitle.c`; 1.1.6, 1.3.0 and 1.5.0 all do), so `-c`
/// cannot be read there. It does hold a copy of each configuration file, as an open and deleted `ocserv_XXXXXX`
/// (`src/common/snapshot.c`): that is what its workers go by, so it is read first.
pub fn scripts(main: Process, config: Option<&Path>) -> Result<Scripts, ScriptsError> {
    let root = PathBuf::from(format!("/proc/{}/root", main.pid));
    let mut tried = Vec::new();
    let mut found = None;
    if let Some(path) = snapshot(main.pid) {
        found = Some((read(&path)?, path, true));
    }
    let named = config.map(Path::to_path_buf).or_else(|| from_command_line(main.pid));
    let candidates = named.map_or_else(|| DEFAULT_CONFIGS.map(PathBuf::from).to_vec(), |named| vec![named]);
    for path in candidates {
        if found.is_some() {
            break;
        }
        match read(&within(&root, &path)) {
            Ok(text) => found = Some((text, path, false)),
            Err(ScriptsError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                tried.push(path.display().to_string());
            }
            Err(error) => return Err(error),
        }
    }
    if !process::is_alive(main) {
        return Err(ScriptsError::Gone(main.pid));
    }
    let (text, config, in_force) = found.ok_or_else(|| ScriptsError::NotFound { tried: tried.join(", ") })?;
    Ok(Scripts { config, in_force, ..parse(&text) })
}

/// A path of ocserv's file system as ours: also in a container, or in another root.
fn within(root: &Path, path: &Path) -> PathBuf {
    let inside: PathBuf = path.components().filter(|part| matches!(part, Component::Normal(_))).collect();
    root.join(inside)
}

fn read(path: &Path) -> Result<Vec<u8>, ScriptsError> {
    use std::io::Read as _;
    let failed = |source| ScriptsError::Read { path: path.to_path_buf(), source };
    let mut text = Vec::new();
    fs::File::open(path).map_err(failed)?.take(MAX_CONFIG).read_to_end(&mut text).map_err(failed)?;
    Ok(text)
}

/// ocserv's own copy: among its deleted temporary files (the others are password files, say) the one that names
/// an authentication and a port, which no configuration can lack.
fn snapshot(pid: i32) -> Option<PathBuf> {
    let list = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    let mut found: Vec<(i32, PathBuf)> = Vec::new();
    for entry in list.flatten() {
        let Ok(link) = fs::read_link(entry.path()) else { continue };
        let name = link.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if !(name.starts_with("ocserv_") && name.ends_with(" (deleted)")) {
            continue;
        }
        let names = |text: &[u8], wanted: &[u8]| {
            pairs(text).iter().any(|(section, name, _)| section.is_empty() && name.as_slice() == wanted)
        };
        let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
        if let (Ok(text), Some(number)) = (read(&entry.path()), number)
            && names(&text, b"auth")
            && names(&text, b"tcp-port")
        {
            found.push((number, entry.path()));
        }
    }
    // after a reload the newer copy
    found
        .into_iter()
        .max_by_key(|(_, path)| fs::metadata(path).and_then(|data| data.modified()).ok())
        .map(|one| one.1)
}

/// `-c FILE`, `-cFILE`, `--config FILE`, `--config=FILE`.
fn from_command_line(pid: i32) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStrExt as _;
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let mut words = line.split(|byte| *byte == 0);
    while let Some(word) = words.next() {
        let file = match word {
            b"-c" | b"--config" => words.next()?,
            _ => match word.strip_prefix(b"--config=").or_else(|| word.strip_prefix(b"-c")) {
                Some(file) => file,
                None => continue,
            },
        };
        return (!file.is_empty()).then(|| PathBuf::from(std::ffi::OsStr::from_bytes(file)));
    }
    None
}

pub(super) type Pair = (Vec<u8>, Vec<u8>, Vec<u8>);

fn trim(text: &[u8]) -> &[u8] {
    text.trim_ascii()
}

/// Section, name and value as inih reads them (`src/inih/ini.c`): comments start with `;` or `#`, `=` or `:` after
/// the name, ` ;` starts a comment within a line, and an **indented line goes on with the previous name**, whatever
/// it looks like.
pub(super) fn pairs(text: &[u8]) -> Vec<Pair> {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let mut section = Vec::new();
    let mut previous: Option<Vec<u8>> = None;
    let mut pairs = Vec::new();
    for line in text.split(|byte| *byte == b'\n') {
        let indented = line.first().is_some_and(u8::is_ascii_whitespace);
        let line = trim(line);
        match line.first() {
            None | Some(b';' | b'#') => {}
            Some(_) if indented && previous.is_some() => {
                let name = previous.clone().unwrap_or_default();
                pairs.push((section.clone(), name, line.to_vec()));
            }
            Some(b'[') => {
                if let Some(end) = line.iter().position(|byte| *byte == b']') {
                    section = line[1..end].to_vec();
                    previous = None;
                }
            }
            Some(_) => {
                let Some(end) = line.iter().position(|byte| matches!(byte, b'=' | b':')) else { continue };
                let name = trim(&line[..end]).to_vec();
                let value = &line[end + 1..];
                let comment = value.windows(2).position(|two| two[0].is_ascii_whitespace() && two[1] == b';');
                let value = trim(&value[..comment.unwrap_or(value.len())]).to_vec();
                previous = Some(name.clone());
                pairs.push((section.clone(), name, value));
            }
        }
    }
    pairs
}

pub(super) fn parse(text: &[u8]) -> Scripts {
    use std::os::unix::ffi::OsStrExt as _;
    let mut scripts = Scripts::default();
    for (section, name, value) in pairs(text) {
        let script = match name.as_slice() {
            b"connect-script" => &mut scripts.connect,
            b"disconnect-script" => &mut scripts.disconnect,
            b"restrict-user-to-routes" | b"restrict-user-to-ports" => {
                scripts.firewall |= !value.is_empty() && value != b"false" && value != b"no";
                continue;
            }
            _ => continue,
        };
        if let Some(vhost) = section.strip_prefix(b"vhost:") {
            let vhost = String::from_utf8_lossy(trim(vhost)).into_owned();
            if !scripts.ignored.contains(&vhost) {
                scripts.ignored.push(vhost);
            }
        } else if section.is_empty() {
            // `sanitize_config_value`: blanks and quotes off both ends. The last one counts
            let blank = |byte: &u8| byte.is_ascii_whitespace() || *byte == b'"';
            let start = value.iter().position(|byte| !blank(byte)).unwrap_or(value.len());
            let end = value.iter().rposition(|byte| !blank(byte)).map_or(start, |last| last + 1);
            *script = (start < end).then(|| PathBuf::from(std::ffi::OsStr::from_bytes(&value[start..end])));
        }
        // any other section is one that ocserv skips
    }
    scripts
}

/// Whether a script of `main`'s configuration is our gate: under its own name, or a link to our binary.
pub fn names_gate(main: Process, script: &Path) -> bool {
    names_gate_in(&PathBuf::from(format!("/proc/{}/root", main.pid)), script)
}

/// The same of a file of this host, whoever is to run it.
pub fn is_gate_here(script: &Path) -> bool {
    names_gate_in(Path::new("/"), script)
}

/// As [`is_shell_script`], of a file of this host.
pub fn is_shell_script_here(script: &Path) -> bool {
    is_shell_script_in(Path::new("/"), script)
}

/// Whether a script of `main`'s configuration is a shell script, and no program: only such a one can stand behind
/// ocserv's own firewall script.
pub fn is_shell_script(main: Process, script: &Path) -> bool {
    is_shell_script_in(&PathBuf::from(format!("/proc/{}/root", main.pid)), script)
}

fn is_shell_script_in(root: &Path, script: &Path) -> bool {
    use std::io::Read as _;
    let mut head = [0; 2];
    let read = resolve(root, script).0;
    fs::File::open(within(root, &read)).and_then(|mut file| file.read_exact(&mut head)).is_ok()
        && head == *b"#!"
}

fn names_gate_in(root: &Path, script: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    let (path, named) = resolve(root, script);
    let runs = fs::metadata(within(root, &path))
        .is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0);
    runs && (named || path.file_name().is_some_and(|name| name == "enforcer" || name == "enforcer-gate"))
}

/// Where a path leads in ocserv's root, and whether it went by the gate's name on the way.
fn resolve(root: &Path, script: &Path) -> (PathBuf, bool) {
    // resolved by hand: an absolute link means ocserv's root, not ours
    let mut path = script.to_path_buf();
    let mut named = false;
    for _ in 0..40 {
        named |= path.file_name().is_some_and(|name| name == "enforcer-gate");
        match fs::read_link(within(root, &path)) {
            Ok(target) => path = path.parent().unwrap_or(Path::new("/")).join(target),
            Err(_) => break,
        }
        path = normal(&path);
    }
    (path, named)
}

fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(part) => normal.push(part),
            Component::ParentDir => {
                normal.pop();
            }
            _ => {}
        }
    }
    normal
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    #[test]
    fn scripts_are_read_as_ocserv_reads_them() {
        let text = b"\xef\xbb\xbf# connect-script = /no\n; connect-script = /no\nconnect-script=\"/usr/bin/one\" ; not this\n\
            auth : x\n  connect-script = /a/continuation/of/auth\ndisconnect-script = /d\n\
            [vhost:WWW.example.com]\nconnect-script = /two\n[other]\nconnect-script = /no\n";
        let scripts = parse(text);
        assert_eq!(scripts.connect.as_deref(), Some(Path::new("/usr/bin/one")));
        assert_eq!(scripts.disconnect.as_deref(), Some(Path::new("/d")));
        assert_eq!(scripts.ignored, ["WWW.example.com"]);
        let two = parse(b"connect-script = /one\nconnect-script = /two");
        assert_eq!(two.connect.as_deref(), Some(Path::new("/two")));
    }

    proptest::proptest! {
        #[test]
        fn any_file_is_read(text in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..400)) {
            let _ = parse(&text);
        }
    }

    #[test]
    fn the_gate_is_known_by_its_name_or_by_what_it_links_to() {
        let root = tempfile::tempdir().unwrap();
        let bin = root.path().join("usr/sbin");
        fs::create_dir_all(&bin).unwrap();
        let write = |name: &str, mode| {
            fs::write(bin.join(name), "").unwrap();
            fs::set_permissions(bin.join(name), fs::Permissions::from_mode(mode)).unwrap();
        };
        write("enforcer", 0o755);
        write("other", 0o755);
        symlink("enforcer", bin.join("enforcer-gate")).unwrap();
        symlink("/usr/sbin/enforcer-gate", root.path().join("hook")).unwrap();
        symlink("/usr/sbin/other", root.path().join("else")).unwrap();
        let gate = |path: &str| names_gate_in(root.path(), Path::new(path));
        assert!(gate("/usr/sbin/enforcer-gate"));
        assert!(gate("/hook"));
        assert!(!gate("/else"));
        assert!(!gate("/usr/sbin/other"));
        assert!(!gate("/usr/sbin/none/enforcer-gate"));
        write("enforcer", 0o644);
        assert!(!gate("/usr/sbin/enforcer-gate"), "not executable");
    }
}
