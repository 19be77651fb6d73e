use tokio::net::{TcpListener, TcpStream};

use super::super::socket::Io;
use super::*;

const WAIT: Duration = Duration::from_secs(20);
const SOON: Duration = Duration::from_millis(50);

fn register(limits: Limits) -> Arc<Register> {
    Arc::new(Register::new(limits, vec!["127.0.0.2".parse().unwrap()], None))
}

fn key(number: u8) -> SessionKey {
    SessionKey([number; 16])
}

/// A connection of a client, with its other end.
struct Client {
    _place: Place,
    present: Present,
    io: Io,
    other: TcpStream,
}

impl Client {
    async fn new(register: &Arc<Register>, peer: &str) -> Self {
        let (io, other) = socket().await;
        let place = register.place(peer.parse().unwrap()).unwrap();
        let present = register.present(&place, io.wire(), Protocol::Http2);
        Self { _place: place, present, io, other }
    }

    fn connection(&self) -> &Arc<Connection> {
        self.present.connection()
    }

    /// Whether its other end is still connected.
    async fn is_open(&self) -> bool {
        let mut buf = [0];
        let read = tokio::time::timeout(SOON, self.other.readable()).await;
        read.is_err()
            || matches!(self.other.try_read(&mut buf), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
    }
}

async fn socket() -> (Io, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (one, other) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (Io::new(one.unwrap()).unwrap(), other.unwrap().0)
}

fn fly(register: &Arc<Register>, session: u8, client: &Client) -> Result<Registered, Refused> {
    register.register(register.ticket(), key(session), client.connection(), &Arc::default())
}

#[tokio::test]
async fn an_ended_session_registers_nothing_more() {
    let register = register(Limits::default());
    let client = Client::new(&register, "127.0.0.1:1").await;
    let ticket = register.ticket();
    drop(fly(&register, 1, &client).unwrap());
    register.end(key(1), WAIT).await;
    // the guard had said yes before the end
    let late = register.register(ticket, key(1), client.connection(), &Arc::default());
    assert_eq!(late.unwrap_err(), Refused::Ended);
    let other = Client::new(&register, "127.0.0.1:2").await;
    assert_eq!(fly(&register, 1, &other).unwrap_err(), Refused::Ended);
    // somebody else
    fly(&register, 2, &other).unwrap();
}

#[tokio::test]
async fn r7_a_forgotten_end_still_refuses_who_was_let_in_before_it() {
    let register = register(Limits { ended_sessions: 2, ..Limits::default() });
    let client = Client::new(&register, "127.0.0.1:1").await;
    fly(&register, 9, &client).unwrap();
    let before = register.ticket();
    for session in 1..=3 {
        register.end(key(session), WAIT).await;
    }
    assert_eq!(lock(&register.ended).len(), 2);
    // the end of 1 is forgotten, and with it whom it was for: whoever was let in before it has to ask again
    for session in [1, 9] {
        let late = register.register(before, key(session), client.connection(), &Arc::default());
        assert_eq!(late.unwrap_err(), Refused::TooOld);
    }
    fly(&register, 9, &client).unwrap();
    assert_eq!(fly(&register, 3, &client).unwrap_err(), Refused::Ended);
}

#[tokio::test]
async fn an_end_waits_for_what_is_on_its_way_and_counts_it() {
    let register = register(Limits::default());
    let client = Client::new(&register, "127.0.0.1:1").await;
    let (upstream, _origin) = socket().await;
    let one = fly(&register, 1, &client).unwrap();
    let two = fly(&register, 1, &client).unwrap();
    let stranger = fly(&register, 2, &client).unwrap();
    assert!(one.flight().attach(upstream.wire()));
    let ended = register.end(key(1), SOON).await;
    assert_eq!(ended, Ended { requests: 2, upstream: 1, downstream: 0, left: 2 });
    assert!(one.flight().is_ended() && two.flight().is_ended() && !stranger.flight().is_ended());
    assert!(!one.flight().detach(), "the socket is reset and must not serve anybody");
    assert!(!two.flight().attach(upstream.wire()), "nothing more begins");
    let again = {
        let register = Arc::clone(&register);
        tokio::spawn(async move { register.end(key(1), WAIT).await })
    };
    drop((one, two));
    assert_eq!(again.await.unwrap().left, 0);
    assert_eq!(register.flights_of(key(2)), 1);
}

#[tokio::test]
async fn r3_a_connection_is_closed_only_when_nobody_alive_was_seen_on_it() {
    let register = register(Limits::default());
    let shared = Client::new(&register, "127.0.0.1:1").await;
    let alone = Client::new(&register, "127.0.0.1:2").await;
    let proxy = Client::new(&register, "127.0.0.2:3").await;
    for (session, client) in [(1, &shared), (2, &shared), (1, &alone), (1, &proxy)] {
        drop(fly(&register, session, client).unwrap());
    }
    assert_eq!(register.end(key(1), WAIT).await.downstream, 1);
    assert!(!alone.is_open().await);
    assert!(shared.is_open().await && proxy.is_open().await);
    assert_eq!(fly(&register, 3, &alone).unwrap_err(), Refused::Closing);
    assert_eq!(register.end(key(2), WAIT).await.downstream, 1);
    assert!(!shared.is_open().await);
    assert!(!alone.io.wire().abort() || !alone.is_open().await);
}

#[tokio::test]
async fn the_answer_to_a_logout_reaches_its_reader() {
    let register = register(Limits::default());
    let client = Client::new(&register, "127.0.0.1:1").await;
    drop(fly(&register, 1, &client).unwrap());
    let own = client.connection().own();
    assert_eq!(register.end(key(1), WAIT).await.downstream, 1);
    assert!(client.is_open().await, "the gateway's own answer is on its way");
    assert!(client.connection().must_close());
    drop(own);
}

#[tokio::test]
async fn with_more_sessions_than_are_told_apart_a_connection_stays() {
    let register = register(Limits { sessions_of_connection: 2, ..Limits::default() });
    let client = Client::new(&register, "127.0.0.1:1").await;
    for session in 1..=3 {
        drop(fly(&register, session, &client).unwrap());
    }
    for session in 1..=3 {
        assert_eq!(register.end(key(session), WAIT).await.downstream, 0);
    }
    assert!(client.is_open().await);
}

#[tokio::test]
async fn r7_what_has_gone_leaves_nothing_behind() {
    let register = register(Limits::default());
    let client = Client::new(&register, "127.0.0.1:1").await;
    for session in 0..200 {
        drop(fly(&register, session, &client).unwrap());
    }
    drop(client);
    assert_eq!(register.shards.iter().map(|shard| lock(shard).len()).sum::<usize>(), 0);
    assert!(lock(&register.connections).all.is_empty());
    assert!(lock(&register.connections).of_address.is_empty());
    register.no_connections().await;
}

#[tokio::test]
async fn r7_places_are_counted_in_all_and_for_each_address() {
    let limits = Limits { connections: 4, connections_of_address: 2, ..Limits::default() };
    let register = register(limits);
    let place = |peer: &str| register.place(peer.parse().unwrap());
    let first = place("192.0.2.1:1").unwrap();
    let _second = place("[::ffff:192.0.2.1]:2").unwrap();
    assert!(place("192.0.2.1:3").is_none());
    let _third = place("[2001:db8::1]:1").unwrap();
    let fourth = place("[2001:db8::2]:1").unwrap();
    assert!(place("192.0.2.9:1").is_none(), "all places are taken");
    drop(fourth);
    let _proxy = place("127.0.0.2:1").unwrap();
    drop(first);
    assert!(place("192.0.2.1:3").is_some());
}
