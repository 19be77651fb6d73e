//! Processes that the lab starts: their output goes to a file, and they end with their owner.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long anything may take that is only waited for; generous, since the machine may be busy.
pub const BOUND: Duration = Duration::from_secs(30);

/// Polls until `condition` gives a value; panics with `what` when `bound` has passed.
#[track_caller]
pub fn eventually<T>(what: &str, bound: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + bound;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < end, "not within {bound:?}: {what}");
        thread::sleep(Duration::from_millis(3));
    }
}

/// Copies a program so that it can be run at once. Not by this process: whatever another thread starts meanwhile holds the
/// file open for writing until it is itself, and nobody can run the copy so long ("text file busy").
#[track_caller]
pub fn copy_program(from: &Path, to: &Path) {
    let status = Command::new("cp").arg(from).arg(to).status().expect("cp can be run");
    assert!(status.success(), "cp {} {}: {status}", from.display(), to.display());
}

/// A process of the lab. Dropped: killed and reaped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    status: Option<ExitStatus>,
}

impl Process {
    /// Starts `command` with its output appended to `log`, and `input` on its standard input.
    pub fn start(name: &str, mut command: Command, log: &Path, input: Option<&str>) -> Self {
        let out = File::options().create(true).append(true).open(log).expect("a log file");
        command.stdout(out.try_clone().expect("a log file")).stderr(out);
        command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        if let Some(input) = input {
            // a process that exits without reading is seen by its exit status
            let _ = child.stdin.take().expect("a piped stdin").write_all(input.as_bytes());
        }
        Self { name: name.to_owned(), child, log: log.to_owned(), status: None }
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a pid"))
    }

    pub fn exited(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().expect("waitpid");
        }
        self.status
    }

    pub fn signal(&self, signal: Signal) {
        if self.status.is_none() {
            // ESRCH: it ended by itself
            let _ = kill(self.pid(), signal);
        }
    }

    /// Waits until the process ends.
    #[track_caller]
    pub fn wait(&mut self, bound: Duration) -> ExitStatus {
        let what = format!("{} ends", self.name);
        eventually(&what, bound, || self.exited())
    }

    /// SIGTERM, and SIGKILL if that does not help within 5 s.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.signal(Signal::SIGCONT);
        let end = Instant::now() + Duration::from_secs(5);
        while Instant::now() < end {
            if let Some(status) = self.exited() {
                return status;
            }
            thread::sleep(Duration::from_millis(2));
        }
        self.kill()
    }

    /// SIGKILL.
    pub fn kill(&mut self) -> ExitStatus {
        self.signal(Signal::SIGKILL);
        let status = self.child.wait().unwrap_or_else(|_| ExitStatus::from_raw(9));
        *self.status.insert(status)
    }

    /// All that the process wrote so far.
    pub fn log(&self) -> String {
        read_log(&self.log)
    }

    pub fn log_path(&self) -> &Path {
        &self.log
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.exited().is_none() {
            self.kill();
        }
    }
}

/// A log as text, whatever bytes are in it; empty if it is not there.
pub fn read_log(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// What a finished command said.
#[derive(Debug, Clone)]
pub struct Output {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// Runs a command to its end, whatever its exit code; a signal gives 128 and its number, as in a shell.
pub fn output(mut command: Command, input: &str) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
    // one that does not read its input is seen by its exit code
    let _ = child.stdin.take().expect("a piped stdin").write_all(input.as_bytes());
    let output = child.wait_with_output().expect("the output of a command");
    let code = output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap_or(0));
    Output {
        code,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Runs a command that must succeed; gives its standard output.
#[track_caller]
pub fn succeed(command: Command, input: &str) -> String {
    let said = format!("{command:?}");
    let output = output(command, input);
    assert!(output.code == 0, "{said}\nexit {}\n{}{}", output.code, output.stdout, output.stderr);
    output.stdout
}

/// `program` with `arguments`.
pub fn command<A: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new(program);
    command.args(arguments);
    command
}
