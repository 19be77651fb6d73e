//! A small application: it says what it was asked, sets cookies as it is told, and can go on answering for ever.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::namespace::Namespace;

/// What it was asked, and how many endless answers it is giving.
#[derive(Default)]
struct Book {
    seen: Mutex<Vec<String>>,
    streams: AtomicUsize,
    over: AtomicBool,
}

/// The application. Dropped, it takes no more.
///
/// | path | answer |
/// |---|---|
/// | `/set/NAME/VALUE` | sets that cookie, for `/` |
/// | `/stream` | a piece every few milliseconds, until somebody hangs up |
/// | any other | the request's own lines |
pub struct App {
    pub port: u16,
    book: Arc<Book>,
}

impl App {
    /// On an address that only that namespace reaches.
    pub fn start(namespace: &Namespace) -> Self {
        let listener = namespace.within(|| TcpListener::bind("127.0.0.1:0").expect("a listener"));
        let port = listener.local_addr().expect("an address").port();
        let book = Arc::new(Book::default());
        let ours = Arc::clone(&book);
        thread::spawn(move || {
            for stream in listener.incoming() {
                if ours.over.load(Ordering::SeqCst) {
                    break;
                }
                if let Ok(stream) = stream {
                    let book = Arc::clone(&ours);
                    thread::spawn(move || speak(stream, &book));
                }
            }
        });
        Self { port, book }
    }

    /// The requests so far, each as its lines.
    pub fn seen(&self) -> Vec<String> {
        self.book.seen.lock().expect("a book").clone()
    }

    /// How many endless answers are being given.
    pub fn streams(&self) -> usize {
        self.book.streams.load(Ordering::SeqCst)
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.book.over.store(true, Ordering::SeqCst);
    }
}

/// Answers one request after the other.
fn speak(stream: TcpStream, book: &Book) {
    let Ok(mut writer) = stream.try_clone() else { return };
    let mut reader = BufReader::new(stream);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if !matches!(reader.read_line(&mut head), Ok(1..)) {
                return;
            }
        }
        let head = head.trim_end().replace("\r\n", "\n");
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        book.seen.lock().expect("a book").push(head.clone());
        if path == "/stream" {
            book.streams.fetch_add(1, Ordering::SeqCst);
            endless(&mut writer);
            book.streams.fetch_sub(1, Ordering::SeqCst);
            return;
        }
        let cookie = path
            .strip_prefix("/set/")
            .and_then(|rest| rest.split_once('/'))
            .map(|(name, value)| format!("Set-Cookie: {name}={value}; Path=/; HttpOnly\r\n"));
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n{}\r\n{head}",
            head.len(),
            cookie.unwrap_or_default()
        );
        if writer.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

fn endless(writer: &mut TcpStream) {
    let begun = writer.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    if begun.is_err() {
        return;
    }
    while writer.write_all(b"5\r\nmore\n\r\n").is_ok() {
        thread::sleep(Duration::from_millis(10));
    }
}
