//! Clients that mean no good, or do not work. After each, the server answers others as before.

use crate::client::{Answer, ask_for_events, connect, follow, get, raw};
use crate::{made_up, server, server_of};
use kronsae::monitor::serve::{ServeOptions, Source};
use kronsae::monitor::{Event, RecentToken, Snapshot};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

fn still_answers(address: SocketAddr) {
    let start = Instant::now();
    assert_eq!(get(address, "/metrics", &[]).status, 200);
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

fn with_host(address: SocketAddr, path: &str, host: &str) -> Answer {
    raw(address, format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).unwrap()
}

#[test]
fn names_of_others_are_refused_everywhere() {
    let server = server_of(
        made_up::MadeUp::new(1.0),
        ServeOptions { hosts: vec!["node-7.example".to_owned()], ..ServeOptions::default() },
    );
    let address = server.address();
    for path in ["/", "/metrics", "/snapshot", "/events", "/nothing"] {
        let answer = with_host(address, path, "evil.example");
        assert_eq!(answer.status, 421, "{path}");
        assert!(!answer.body.contains("kronsae_"), "{path}");
        assert_eq!(raw(address, format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).unwrap().status, 400);
    }
    assert_eq!(with_host(address, "/metrics", "node-7.example:1234").status, 200);
    assert_eq!(with_host(address, "/metrics", "localhost").status, 200);
    let absolute = "GET http://evil.example/metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";
    assert_eq!(raw(address, absolute.as_bytes()).unwrap().status, 421);
}

#[test]
fn pages_of_other_origins_are_refused() {
    let server = server();
    for header in [("Origin", "http://evil.example"), ("Sec-Fetch-Site", "cross-site"), ("Origin", "null")] {
        for path in ["/metrics", "/snapshot", "/events"] {
            assert_eq!(get(server.address(), path, &[header]).status, 403, "{path} {header:?}");
        }
    }
}

#[test]
fn nothing_can_be_written() {
    let server = server();
    let address = server.address();
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "BREW"] {
        let target = if method == "CONNECT" { "localhost:80" } else { "/metrics" };
        let request = format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc");
        let answer = raw(address, request.as_bytes()).unwrap();
        assert_eq!(answer.status, 405, "{method}");
        assert_eq!(answer.header("allow"), Some("GET, HEAD"), "{method}");
    }
    still_answers(address);
}

#[test]
fn without_the_token_there_is_only_the_page() {
    const TOKEN: &str = "correct-horse-battery";
    let server =
        server_of(made_up::MadeUp::new(1.0), ServeOptions { token: Some(TOKEN.to_owned()), ..ServeOptions::default() });
    let address = server.address();
    let right = format!("Bearer {TOKEN}");
    for path in ["/metrics", "/snapshot", "/events", "/nothing"] {
        for header in [
            ("X-Nothing", "1"),
            ("Authorization", "Bearer wrong-horse-battery"),
            ("Authorization", "Basic Y29ycmVjdC1ob3JzZS1iYXR0ZXJ5"),
            ("Cookie", "token=correct-horse-battery"),
        ] {
            let answer = get(address, path, &[header]);
            assert_eq!(answer.status, 401, "{path} {header:?}");
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
            assert!(!answer.body.contains(TOKEN));
        }
        // Never from the URL, where it would end up in histories and logs.
        assert_eq!(get(address, &format!("{path}?token={TOKEN}&access_token={TOKEN}"), &[]).status, 401);
    }
    assert_eq!(get(address, "/metrics", &[("Authorization", &right)]).status, 200);
    assert_eq!(get(address, "/", &[]).status, 200);
    assert!(!format!("{server:?}").contains(TOKEN));
}

#[test]
fn what_is_not_http_gets_400_or_is_closed() {
    let server = server();
    let address = server.address();
    let huge_header = format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(1 << 20));
    let many_headers = format!("GET / HTTP/1.1\r\nHost: localhost\r\n{}\r\n", "X: y\r\n".repeat(5000));
    let long_path = format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "x".repeat(1 << 20));
    let requests: [&[u8]; 9] = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a client hello\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"\0\0\0\0\0\0\0\0\r\n\r\n",
        huge_header.as_bytes(),
        many_headers.as_bytes(),
        long_path.as_bytes(),
    ];
    for request in requests {
        // A reset, where it did not read all, may overtake the answer.
        if let Some(answer) = raw(address, request) {
            assert!((400..500).contains(&answer.status), "{answer:?}");
        }
        still_answers(address);
    }
}

#[test]
fn who_does_not_ask_in_time_is_closed() {
    let server = server();
    let address = server.address();
    let closed_within = |mut stream: TcpStream, drip: bool| {
        let start = Instant::now();
        stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        loop {
            if drip && stream.write_all(b"X: y\r\n").is_err() {
                break;
            }
            match stream.read(&mut [0; 64]) {
                Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
            assert!(start.elapsed() < Duration::from_secs(9), "still open");
        }
        start.elapsed()
    };
    let silent = connect(address);
    let mut slow = connect(address);
    write!(slow, "GET /metrics HTTP/1.1\r\nHost: localhost\r\n").unwrap();
    still_answers(address);
    let slow = std::thread::spawn(move || closed_within(slow, true));
    assert!(closed_within(silent, false) > Duration::from_secs(3), "a client has time to ask");
    assert!(slow.join().unwrap() > Duration::from_secs(3));
    still_answers(address);
}

#[test]
fn half_open_connections_end() {
    let server = server();
    let address = server.address();
    // Sends nothing more; with and without having asked.
    for request in ["", "GET /metr", "GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n"] {
        let mut stream = connect(address);
        stream.write_all(request.as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        let start = Instant::now();
        let _ = stream.read_to_end(&mut rest);
        assert!(start.elapsed() < Duration::from_secs(8), "{request}");
    }
    still_answers(address);
}

#[test]
fn streams_have_places_and_give_them_back() {
    let server = server_of(made_up::MadeUp::new(50.0), ServeOptions { clients: 2, ..ServeOptions::default() });
    let address = server.address();
    let ticks = |stream: &mut TcpStream| follow(stream, |text| text.contains("event: tick\n"));
    let (mut a, mut b) = (ask_for_events(address), ask_for_events(address));
    ticks(&mut a);
    ticks(&mut b);
    let refused = get(address, "/events", &[]);
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("10")));
    still_answers(address);
    drop(a);
    // It is noticed when it is next written to, or at once.
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let mut again = ask_for_events(address);
        let text = follow(&mut again, |text| text.contains("\r\n\r\n"));
        if text.starts_with("HTTP/1.1 200") {
            break;
        }
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Enough data each second that a client's window is soon full.
#[test]
fn a_client_that_never_reads_loses_its_place_and_holds_nobody_up() {
    let word = "x".repeat(4000);
    let source = made_up::MadeUp::new(400.0).with_words(&[&word, &word, &word]);
    let server = server_of(source, ServeOptions { clients: 2, ..ServeOptions::default() });
    let address = server.address();
    let deaf = [ask_for_events(address), ask_for_events(address)];
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(get(address, "/events", &[]).status, 503);
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        still_answers(address);
        let mut stream = ask_for_events(address);
        if follow(&mut stream, |text| text.contains("\r\n\r\n")).starts_with("HTTP/1.1 200") {
            break;
        }
        assert!(Instant::now() < deadline, "a client that does not read keeps its place");
        std::thread::sleep(Duration::from_millis(500));
    }
    drop(deaf);
}

#[test]
fn ten_thousand_connections() {
    let server = server();
    let address = server.address();
    let mut good = ask_for_events(address);
    follow(&mut good, |text| text.contains("event: tick\n"));
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = descriptors();
    let mut held = std::collections::VecDeque::new();
    let mut slowest = Duration::ZERO;
    for n in 0..10_000 {
        held.push_back(connect(address));
        // As many as a test may have open at once; the client's end counts too.
        if held.len() > 400 {
            held.pop_front();
        }
        if n % 1000 == 999 {
            let start = Instant::now();
            still_answers(address);
            slowest = slowest.max(start.elapsed());
            // Their ends here, and a bounded number of the server's.
            let server_side = descriptors().saturating_sub(before + held.len());
            assert!(server_side <= 16 + 32 + 8, "{server_side} descriptors");
        }
    }
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    follow(&mut good, |text| text.contains("event: tick\n"));
}

/// A monitor that panics costs its asker the answer, and nobody else anything.
#[test]
fn a_source_that_panics() {
    struct Bad;
    impl Source for Bad {
        fn snapshot(&self) -> Snapshot {
            panic!("planted")
        }
        fn recent(&self, _site: u32, _since: u64, _most: usize) -> Vec<RecentToken> {
            Vec::new()
        }
        fn events(&self, _since: u64, _most: usize) -> Vec<Event> {
            Vec::new()
        }
    }
    let server = server_of(Bad, ServeOptions { clients: 1, ..ServeOptions::default() });
    let address = server.address();
    for path in ["/metrics", "/snapshot", "/metrics"] {
        assert!(raw(address, format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes()).is_none());
    }
    for _ in 0..3 {
        // Its head was sent; its place is free again.
        let answer = get(address, "/events", &[]);
        assert_eq!((answer.status, answer.body.as_str()), (200, ""));
    }
    assert_eq!(get(address, "/", &[]).status, 200);
    server.stop();
}
