//! The applications on the LAN host: Django's admin, and Jupyter with terminals on WebSockets.

use std::fs::{self, File};
use std::path::PathBuf;

use crate::era::target_folder;
use crate::lab::{LAN_V4, Lab};
use crate::ocserv::PASSWORD;
use crate::process::{BOUND, Process, command, eventually, output, succeed};
use crate::web::{python, sources};

/// Django with its admin; alice and bob may use it, with the password of the lab.
pub struct Django {
    _process: Process,
}

impl Django {
    /// Where it is for gateways, in every lab.
    pub const URL: &str = "http://10.77.0.2:8000";

    /// For browsers that ask for these hosts.
    pub fn start(lab: &Lab, hosts: &[&str]) -> Self {
        let folder = lab.shared().scratch("django");
        fs::copy(database(), folder.join("site.sqlite3")).expect("a copy of the database");
        let mut gunicorn = lab.lan.command(&python("gunicorn"));
        // threads: a stream that never ends has one of them
        gunicorn.args(["--bind", Self::URL.trim_start_matches("http://"), "--threads", "16", "--chdir"]);
        gunicorn.arg(sources().join("site")).arg("django.core.wsgi:get_wsgi_application()");
        gunicorn.args(["--worker-tmp-dir"]).arg(&folder).args(["--no-control-socket"]);
        gunicorn.env("SITE_FOLDER", &folder).env("SITE_HOSTS", hosts.join(","));
        settings(&mut gunicorn);
        let mut process = Process::start("gunicorn", gunicorn, &lab.work().join("django.log"), None);
        answers(lab, "Django", &format!("{}/admin/login/", Self::URL), hosts.first(), &mut process);
        Self { _process: process }
    }
}

fn settings(command: &mut std::process::Command) {
    command.env("DJANGO_SETTINGS_MODULE", "settings").env("PYTHONDONTWRITEBYTECODE", "1");
}

/// A database with its tables and people, made once for all tests: that takes seconds.
fn database() -> PathBuf {
    let folder = target_folder().join("lab/web/site");
    fs::create_dir_all(&folder).expect("a folder");
    let lock = File::create(folder.join("lock")).expect("a file");
    lock.lock().expect("a lock");
    let site = sources().join("site");
    let file = folder.join("site.sqlite3");
    let note = folder.join("made-with");
    let read =
        |path: PathBuf| fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let wanted = read(site.join("settings.py")) + &read(sources().join("requirements.txt")) + PASSWORD;
    if file.exists() && fs::read_to_string(&note).is_ok_and(|with| with == wanted) {
        return file;
    }
    let _ = fs::remove_file(&note);
    let _ = fs::remove_file(&file);
    let django = |arguments: &[&str]| {
        let mut command = command(&python("python"), ["-m", "django"]);
        command.args(arguments).current_dir(&site).env("PYTHONPATH", &site);
        command.env("SITE_FOLDER", &folder).env("SITE_HOSTS", "localhost");
        command.env("DJANGO_SUPERUSER_PASSWORD", PASSWORD);
        settings(&mut command);
        succeed(command, "");
    };
    django(&["migrate", "--verbosity", "0"]);
    for name in ["alice", "bob"] {
        let email = format!("{name}@example.com");
        django(&["createsuperuser", "--noinput", "--username", name, "--email", &email]);
    }
    fs::write(note, wanted).expect("a note");
    file
}

/// A Jupyter server with terminals: whoever knows its password has a shell there.
pub struct Jupyter {
    /// For the tests' files.
    pub folder: PathBuf,
    _process: Process,
}

impl Jupyter {
    /// Where it is for gateways, in every lab.
    pub const URL: &str = "http://10.77.0.2:8888";

    /// For browsers that ask for this host.
    pub fn start(lab: &Lab, host: &str) -> Self {
        let home = lab.shared().scratch("jupyter");
        let folder = home.join("work");
        fs::create_dir_all(&folder).expect("a folder");
        let mut server = lab.lan.command(&python("jupyter-server"));
        server.args(["--no-browser", "--allow-root", "--ServerApp.allow_remote_access=True"]);
        server.args([format!("--ip={LAN_V4}"), "--port=8888".to_owned()]);
        server.arg(format!("--ServerApp.root_dir={}", folder.display()));
        server.arg(format!("--IdentityProvider.token={PASSWORD}"));
        server.arg("--ServerApp.terminado_settings={\"shell_command\": [\"/bin/sh\"]}");
        server.env("HOME", &home).env("JUPYTER_PLATFORM_DIRS", "1").env("PYTHONDONTWRITEBYTECODE", "1");
        let mut process = Process::start("jupyter", server, &lab.work().join("jupyter.log"), None);
        answers(lab, "Jupyter", &format!("{}/login", Self::URL), Some(&host), &mut process);
        Self { folder, _process: process }
    }
}

/// Waits until a server answers for a host, with whatever that is not its own failure.
fn answers(lab: &Lab, what: &str, url: &str, host: Option<&&str>, process: &mut Process) {
    let host = host.map_or_else(String::new, |host| format!("Host: {host}"));
    eventually(&format!("{what} answers"), BOUND * 2, || {
        if let Some(status) = process.exited() {
            panic!("{what} ended ({status}):\n{}", process.log());
        }
        let mut curl = lab.lan.command("curl");
        curl.args(["-sS", "-o", "/dev/null", "-w", "%{http_code}", "-m", "10", "-H", &host, url]);
        (output(curl, "").stdout == "200").then_some(())
    });
}
