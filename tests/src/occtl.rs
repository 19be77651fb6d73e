//! ocserv's control socket: the real `occtl`, and the bare protocol for what it cannot do.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::unistd::Pid;
use serde_json::Value;

use crate::era::Era;
use crate::process::{Output, output};

/// Asks for the list of sessions, as occtl does, and gives the reply's body.
///
/// # Errors
/// Nobody listens, or nobody answers within a second.
pub fn list(socket: &Path) -> io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    stream.write_all(&[4, 0, 0, 0, 0])?;
    let mut header = [0; 5];
    stream.read_exact(&mut header)?;
    let [_, length @ ..] = header;
    let mut body = vec![0; usize::try_from(u32::from_ne_bytes(length)).map_err(io::Error::other)?];
    stream.read_exact(&mut body)?;
    Ok(body)
}

/// The `occtl` of a running ocserv's own era, in that server's mount namespace and root.
pub fn occtl(era: Era, server: Pid, socket: &Path, arguments: &[&str]) -> Output {
    let mut command = if era == Era::Bookworm {
        Command::new("occtl")
    } else {
        let mut command = Command::new("nsenter");
        command.args(["--target", &server.to_string(), "--mount", "--root", "--", "occtl"]);
        command
    };
    command.arg("-s").arg(socket).args(arguments);
    output(command, "")
}

/// One session as `occtl -j show users` has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub id: i32,
    pub name: String,
    pub device: String,
    pub v4: String,
}

/// The sessions in the JSON of `occtl -j show users`, whatever its era puts around them.
pub fn users(json: &str) -> Vec<User> {
    let value: Value = parse(json);
    let text = |user: &Value, key: &str| user[key].as_str().unwrap_or_default().to_owned();
    value
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default()
        .iter()
        .filter(|user| user["Username"].is_string())
        .map(|user| User {
            id: user["ID"].as_i64().and_then(|id| i32::try_from(id).ok()).expect("an id"),
            name: text(user, "Username"),
            device: text(user, "Device"),
            v4: text(user, "IPv4"),
        })
        .collect()
}

/// The safe ids of a user's cookies in the JSON of `occtl -j show cookies all`, in use or not.
pub fn cookies(json: &str, user: &str) -> Vec<String> {
    parse(json)
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default()
        .iter()
        .filter(|cookie| cookie["Username"] == user)
        .map(|cookie| {
            cookie["Full session"].as_str().or(cookie["Session"].as_str()).unwrap_or_default().to_owned()
        })
        .collect()
}

/// occtl's JSON is not always JSON: old ones leave a comma behind the last member.
fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| {
        let mut repaired = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(comma) = rest.find(',') {
            let (before, after) = rest.split_at(comma);
            repaired.push_str(before);
            rest = &after[1..];
            if !rest.trim_start().starts_with(['}', ']']) {
                repaired.push(',');
            }
        }
        repaired.push_str(rest);
        serde_json::from_str(&repaired).unwrap_or(Value::Null)
    })
}
