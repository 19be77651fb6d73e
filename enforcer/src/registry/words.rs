//! What goes into the registry and what comes out of it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use crate::session::{
    Author, Cookie, Decision, Device, Entry, Flow, Identity, LetterKey, Netns, Observed, Origin, Over,
    Process, Record, Revision, SafeId, ServerName, SessionId, Stands, Token, WebDigest, WebKey, WebRecord,
    WebTokenRecord,
};

use super::durable::Ticket;
use super::web::{NewWebSession, WebAnswer, WebCause};

pub use crate::session::Target;

/// A revocation's number: what `lift` takes and what every entry in the kernel carries.
pub type Number = u64;
/// A session as the registry counts it. Never reused, unlike pids, device names and tunnel addresses.
pub type SessionKey = u64;
/// Where an answer to a command goes.
pub type Request = u64;
/// Where a verdict goes.
pub type Ask = u64;

/// A stream of ends that a web gateway reads.
pub type Watch = u64;

/// A web gateway as the daemon tells one from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gateway {
    /// Never given twice in a run of the daemon.
    pub id: u64,
    /// Its end is told by [`Event::WebGatewayGone`]. `None`: it cannot be seen from here.
    pub process: Option<Process>,
    /// It keeps a table of its sockets, by which they can be destroyed: [`Effect::WebDestroy`].
    pub table: bool,
}

/// What a record, of another gateway's or of this one's, has ordered up to a revision is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TakeBack {
    pub author: Author,
    pub over: Over,
    pub up_to: Revision,
    pub by: String,
}

/// The moment of an event. The registry has no clock of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// CLOCK_MONOTONIC.
    pub mono: Duration,
    /// Unix seconds, as ocserv's own `time()` gives them.
    pub wall: u64,
}

/// A revocation as it is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    pub target: Target,
    /// Only on this server.
    pub server: Option<ServerName>,
    /// How long an explicit address, flow or token stands; `None`: until lifted.
    pub stands: Option<Duration>,
    pub reason: String,
    /// Who asked.
    pub by: String,
    /// `None`: it is decided here, and other gateways may have to be told.
    pub origin: Option<Origin>,
    /// Of another gateway's decision: who was admitted after it.
    pub spare: BTreeSet<SessionId>,
    /// One of many that are told of together: neither a note nor a line in the audit log of its own.
    pub bulk: bool,
}

/// A worker as it was seen, with what only this host can tell of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sighting {
    pub observed: Observed,
    /// Alive when it was seen. `None`: its process is not visible from here.
    pub worker: Option<Process>,
    /// Its tun device, by number, checked to be its own.
    pub device: Option<Device>,
    pub netns: Option<Netns>,
    /// The worker holds its tun device: it is past its connect-script.
    pub has_tun: bool,
}

/// How a worker ended, as the sockets adapter saw it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ended {
    /// It went by itself within the head start that the polite disconnect gave it.
    pub politely: bool,
    /// Connected sockets that were destroyed.
    pub destroyed: u64,
    /// It had to be killed.
    pub killed: bool,
    /// The kernel has no SOCK_DESTROY.
    pub unsupported: bool,
    /// What is left, and why. Empty: neither worker nor socket is left.
    pub left: Vec<String>,
}

/// An entry as an earlier run left it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adopted {
    pub entry: Entry,
    pub number: Number,
    pub stands: Stands,
    /// Whose: for a safe_id and a cutoff. `None`: of a server that is not configured (any more).
    pub server: Option<ServerName>,
    /// A cutoff's moment.
    pub moment: u64,
}

/// What earlier runs left in the kernel and on the disk.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Left {
    pub entries: Vec<Adopted>,
    pub records: Vec<Record>,
    /// Revocations that were taken back, of which the kernel may still have something.
    pub lifted: Vec<Number>,
    /// What the wall clock showed when the disk was last written to; 0: not known.
    pub wall: u64,
    /// The disk was last written to before the host was started: nothing of a session is left.
    pub rebooted: bool,
    pub web: Vec<WebRecord>,
    /// The web gateways that there were before and that run still; `None`: nobody knows.
    pub gateways: Option<Vec<Gateway>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Once, before anything else: what earlier runs left.
    Adopt(Box<Left>),
    /// Answers [`Effect::Save`]: what became of these writes.
    Stored {
        tickets: std::ops::RangeInclusive<Ticket>,
        outcome: Result<(), String>,
    },
    /// ocserv answers: its main process, and whether it has `terminate`.
    ServerUp {
        server: ServerName,
        main: Process,
        terminate: bool,
    },
    /// ocserv does not answer; `gone`: its main process is known to be gone.
    ServerDown {
        server: ServerName,
        gone: bool,
    },
    /// Whether ocserv's configuration names our gate.
    GateConfigured {
        server: ServerName,
        configured: bool,
    },
    /// One worker was seen.
    Sighted {
        server: ServerName,
        sighting: Sighting,
    },
    /// A complete list of workers, asked for at `asked`.
    Listed {
        server: ServerName,
        asked: Duration,
        outcome: Result<Vec<Sighting>, String>,
    },
    /// A complete list of cookies, asked for at `asked`.
    Cookies {
        server: ServerName,
        asked: Duration,
        outcome: Result<Vec<Cookie>, String>,
    },
    /// The feed told of a disconnect. Late, and about an id that may be somebody else's by now: a hint.
    FeedDisconnected {
        server: ServerName,
        id: i32,
        safe_id: Option<SafeId>,
        user: String,
        reason: u32,
    },
    /// The gate asks for a client that is at the door.
    GateAsked {
        ask: Ask,
        server: ServerName,
        sighting: Sighting,
        last: bool,
    },
    WorkerGone {
        key: SessionKey,
    },
    DeviceGone {
        device: Device,
    },
    /// The outer flows of a session's connected sockets.
    Flows {
        key: SessionKey,
        outcome: Result<(Netns, Vec<Flow>), String>,
    },
    /// What these flows have shown on the wire, as far as it was seen: by it another flow becomes the session's.
    Tokens {
        key: SessionKey,
        tokens: Vec<Token>,
    },
    Ended {
        key: SessionKey,
        ended: Ended,
    },
    Terminated {
        server: ServerName,
        safe_id: SafeId,
        outcome: Result<bool, String>,
    },
    /// Answers [`Effect::DestroyFlow`]: how many sockets it took.
    FlowDestroyed {
        number: Number,
        outcome: Result<u64, String>,
    },
    InsertFailed {
        entry: Entry,
        number: Number,
        error: String,
    },
    /// Answers [`Effect::ForgetConnections`]: how many entries were taken out; `None`: the kernel tracks none there.
    ConnectionsForgotten {
        netns: Netns,
        address: IpAddr,
        turn: u64,
        outcome: Result<Option<u64>, String>,
    },
    /// Answers [`Effect::AskBanScore`].
    BanScore {
        server: ServerName,
        client: IpAddr,
        score: u32,
    },
    /// Answers [`Effect::Confirm`].
    Confirmed {
        number: Number,
    },
    /// A plain disconnect (no revocation) went out through us.
    PlainDisconnect {
        server: ServerName,
        ids: Vec<i32>,
    },
    /// Programs are attached in this namespace from now on.
    NetnsAdded {
        netns: Netns,
    },
    Revoke {
        request: Option<Request>,
        order: Order,
    },
    /// The same for many at once: what follows from all of them is looked at once.
    RevokeMany {
        orders: Vec<(Request, Order)>,
    },
    /// Another gateway, or an administrator, has lifted something.
    TakeBack {
        request: Request,
        lift: TakeBack,
    },
    /// A decision of this gateway's stands there for the others.
    Told {
        number: Number,
        origin: Origin,
    },
    /// Somebody waits for the next [`Effect::CookiesListed`].
    WantCookies {
        server: ServerName,
    },
    /// `by`: who asked, and why if it was said.
    Lift {
        request: Request,
        number: Number,
        by: String,
    },
    /// Takes every lock of that person back.
    Unlock {
        request: Request,
        identity: Identity,
        by: String,
    },
    WebCreate {
        request: Request,
        new: Box<NewWebSession>,
    },
    WebAddToken {
        request: Request,
        /// One that the session has.
        known: WebDigest,
        token: Box<WebTokenRecord>,
    },
    WebRewrap {
        request: Request,
        /// With the secret as it is wrapped from now on; its host says nothing.
        token: Box<WebTokenRecord>,
    },
    /// How long ago they were used.
    WebSeen {
        uses: Vec<(WebKey, Duration)>,
    },
    /// By the gateway itself.
    WebEnd {
        request: Request,
        /// By its key, or one of its tokens.
        which: Result<WebKey, WebDigest>,
        cause: WebCause,
    },
    /// A gateway wants to be told of ends.
    WebWatch {
        watch: Watch,
        gateway: Gateway,
    },
    /// It cannot be told any more.
    WebWatchGone {
        watch: Watch,
    },
    /// How many sockets of each were closed; `listed`: of every session that its list did not have.
    WebAcknowledged {
        watch: Watch,
        closed: Vec<(WebKey, u64)>,
        listed: bool,
    },
    /// That gateway's process has ended, and its sockets with it.
    WebGatewayGone {
        id: u64,
    },
    /// Answers [`Effect::WebDestroy`]: of which sessions nothing is left in that gateway, and how many sockets of each were
    /// destroyed; of those that are not named that cannot be said, and `trouble` says why.
    WebDestroyed {
        id: u64,
        gone: Vec<(WebKey, u64)>,
        trouble: Option<String>,
    },
    Tick,
}

/// What the gate is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Admit,
    Refuse(String),
    /// The safe_id could not be learned: `[gate] when-blind` decides.
    Blind(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Into the kernel's maps. `moment`: unix seconds, for a cutoff the last second that it covers.
    Insert {
        entry: Entry,
        number: Number,
        stands: Stands,
        server: Option<ServerName>,
        moment: u64,
    },
    /// `number`: whose it was in the kernel.
    Remove {
        entry: Entry,
        number: Number,
    },
    /// A login was refused by this entry.
    CountRefusal {
        entry: Entry,
    },
    /// Attach to the session's tunnel device, before anything is answered.
    Attach {
        device: Device,
        name: String,
    },
    /// Tell when this worker is gone.
    Watch {
        key: SessionKey,
        worker: Process,
    },
    /// Answered at once by [`Event::Flows`], and by [`Event::Tokens`] if there are any.
    FindFlows {
        key: SessionKey,
        worker: Process,
    },
    AskList {
        server: ServerName,
    },
    AskCookies {
        server: ServerName,
    },
    Terminate {
        server: ServerName,
        safe_id: SafeId,
    },
    Disconnect {
        server: ServerName,
        id: i32,
    },
    /// Give the polite disconnect its head start, then destroy what sockets are left, then kill.
    End {
        key: SessionKey,
        worker: Process,
    },
    DestroyFlow {
        number: Number,
        flow: Flow,
    },
    /// Take everything that ends at this tunnel address out of the kernel's connection tracking. `turn` names this order.
    ForgetConnections {
        netns: Netns,
        address: IpAddr,
        turn: u64,
    },
    /// Whatever is read from now on for that order stays: it may be somebody else's.
    KeepConnections {
        turn: u64,
    },
    /// Look at this worker again: is it past its connect-script, is it gone? Answered by a sighting.
    Probe {
        key: SessionKey,
        server: ServerName,
        observed: Observed,
    },
    /// Tell when this device is gone.
    WatchDevice {
        device: Device,
    },
    /// [`super::Registry::take_writes`] has something for the disk.
    Save,
    /// Answered at once: what had to be written before has been written, or has failed. A receipt made earlier would
    /// call done what is about to fail.
    Confirm {
        number: Number,
    },
    /// How many ban points has this address at ocserv?
    AskBanScore {
        server: ServerName,
        client: IpAddr,
    },
    /// Take its ban points back.
    Unban {
        server: ServerName,
        client: IpAddr,
    },
    GateAnswer {
        ask: Ask,
        verdict: Verdict,
    },
    Answer {
        request: Request,
        answer: Answer,
    },
    WebAnswer {
        request: Request,
        answer: WebAnswer,
    },
    /// What is alive, to begin with.
    WebListed {
        watch: Watch,
        keys: Vec<WebKey>,
        ends: u64,
    },
    WebEnded {
        watch: Watch,
        key: WebKey,
        cause: WebCause,
        /// The how manieth end it is.
        ends: u64,
    },
    /// It has ended: what it had elsewhere is free.
    WebOver {
        key: WebKey,
    },
    /// It is told nothing any more, and has to begin anew.
    WebBreak {
        watch: Watch,
    },
    /// Destroy what that gateway has of these, by its table of sockets.
    WebDestroy {
        id: u64,
        keys: Vec<WebKey>,
    },
    /// It was decided here, and the other gateways have to be told. `request`: whose answer is to say how far that is.
    Decided {
        number: Number,
        request: Option<Request>,
        over: Vec<Over>,
        decision: Decision,
    },
    /// Such a decision, or another gateway's, was taken back here: the others have to be told. `request`: whose answer is
    /// to say how far that is.
    TakenBack {
        number: Number,
        request: Request,
        origin: Option<Origin>,
        over: Vec<Over>,
        by: String,
    },
    /// What became of writing down what the others are to be told.
    LetterStored {
        key: LetterKey,
        outcome: Result<(), String>,
    },
    /// All cookies that this server had when it was asked; none where it is gone.
    CookiesListed {
        server: ServerName,
        asked: Duration,
        ids: Vec<SafeId>,
    },
    /// The next revocation's number has moved.
    Numbered {
        next: Number,
    },
    /// For `show events` and the log.
    Note {
        kind: &'static str,
        text: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Receipt(Box<super::receipt::Receipt>),
    /// Nobody and nothing matched.
    Nothing(String),
    /// It was not done, and nothing was changed.
    Refused(String),
}

impl Effect {
    /// Effects of one event happen in this order, and in the order in which they came where it is the same.
    pub(super) fn rank(&self) -> u8 {
        match self {
            Self::Insert { .. }
            | Self::Remove { .. }
            | Self::Numbered { .. }
            | Self::CountRefusal { .. }
            | Self::Attach { .. }
            | Self::Watch { .. }
            | Self::WatchDevice { .. }
            | Self::KeepConnections { .. } => 0,
            // the others are told as soon as it is in force here, and the disk with it
            Self::Decided { .. } | Self::TakenBack { .. } => 1,
            // its answer puts more into the kernel
            Self::FindFlows { .. } => 1,
            Self::Save => 2,
            Self::AskList { .. }
            | Self::AskCookies { .. }
            | Self::Terminate { .. }
            | Self::Disconnect { .. }
            | Self::End { .. }
            | Self::DestroyFlow { .. }
            | Self::ForgetConnections { .. }
            | Self::AskBanScore { .. }
            | Self::Unban { .. }
            | Self::Probe { .. }
            | Self::WebListed { .. }
            | Self::WebEnded { .. }
            | Self::WebOver { .. }
            | Self::WebDestroy { .. }
            | Self::WebBreak { .. }
            | Self::LetterStored { .. }
            | Self::CookiesListed { .. } => 3,
            Self::Confirm { .. }
            | Self::GateAnswer { .. }
            | Self::Answer { .. }
            | Self::WebAnswer { .. }
            | Self::Note { .. } => 4,
        }
    }
}
