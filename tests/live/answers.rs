//! What a well-behaved client is answered, and starting and stopping.

use crate::client::{ask_for_events, follow, get, raw};
use crate::{made_up, server, server_of};
use kronsae::Status;
use kronsae::monitor::serve::{ServeOptions, Server};
use std::io::{Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

#[test]
fn metrics_come_in_the_form_that_is_preferred() {
    let server = server();
    let plain = get(server.address(), "/metrics", &[]);
    assert_eq!(plain.status, 200);
    assert_eq!(plain.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    assert!(plain.body.starts_with("# HELP kronsae_build_info ") && !plain.body.contains("# EOF"));
    let open = get(server.address(), "/metrics", &[("Accept", "application/openmetrics-text;version=1.0.0,*/*;q=0.1")]);
    assert_eq!(open.header("content-type"), Some("application/openmetrics-text; version=1.0.0; charset=utf-8"));
    assert!(open.body.ends_with("# EOF\n"));
    assert_eq!(open.header("vary"), Some("accept"));
}

#[test]
fn the_snapshot_is_json() {
    let server = server();
    let answer = get(server.address(), "/snapshot", &[]);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let json: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(json["state"], "running");
    assert_eq!(json["sites"][1]["site"], "residual-22");
    assert_eq!(json["sites"][0]["model"], "a31f80c4229d07a3");
}

#[test]
fn every_answer_forbids_caching_sniffing_and_other_origins() {
    let server = server();
    for path in ["/", "/metrics", "/snapshot", "/nothing"] {
        let answer = get(server.address(), path, &[]);
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{path}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{path}");
        assert_eq!(answer.header("cross-origin-resource-policy"), Some("same-origin"), "{path}");
        assert!(!answer.head.to_ascii_lowercase().contains("access-control"), "{path}");
        assert_eq!(answer.status, if path == "/nothing" { 404 } else { 200 });
    }
    let page = get(server.address(), "/", &[]);
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none'; script-src 'sha256-") && !policy.contains("unsafe"), "{policy}");
    // Without data: the made-up sites are not in it.
    assert!(!page.body.contains("residual-15"));
}

#[test]
fn events_are_rules_and_ticks_and_go_on_where_a_client_left_off() {
    let server = server();
    let mut stream = ask_for_events(server.address());
    let text = follow(&mut stream, |text| {
        data::<serde_json::Value>(text, "tick").len() >= 2 && !data::<serde_json::Value>(text, "rule").is_empty()
    });
    assert!(text.contains("content-type: text/event-stream\r\n"));
    let ticks: Vec<serde_json::Value> = data(&text, "tick");
    let tokens = |tick: &serde_json::Value| tick["recent"][0]["tokens"].as_array().unwrap().clone();
    let (first, second) = (tokens(&ticks[0]), tokens(&ticks[1]));
    let sequence = |token: &serde_json::Value| token["sequence"].as_u64().unwrap();
    if let Some(last) = first.last() {
        assert!(sequence(&second[0]) > sequence(last));
    }
    assert!(second[0]["request"].is_string(), "64 bits are more than JavaScript's numbers hold");
    assert_eq!(second[0]["indices"].as_array().unwrap().len(), second[0]["values"].as_array().unwrap().len());
    assert_eq!(ticks[0]["snapshot"]["sites"][0]["site"], "residual-15");
    let rules: Vec<serde_json::Value> = data(&text, "rule");
    let ids: Vec<_> = rules.iter().map(|rule| rule["id"].as_u64().unwrap()).collect();
    assert!(ids.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{ids:?}");
    drop(stream);

    let mut stream = crate::client::connect(server.address());
    let address = server.address();
    write!(stream, "GET /events HTTP/1.1\r\nHost: {address}\r\nLast-Event-ID: {}\r\n\r\n", ids[0]).unwrap();
    let text = follow(&mut stream, |text| !data::<serde_json::Value>(text, "rule").is_empty());
    assert_eq!(data::<serde_json::Value>(&text, "rule")[0]["id"], ids[0] + 1);
}

/// The whole frames of a kind.
fn data<T: serde::de::DeserializeOwned>(text: &str, kind: &str) -> Vec<T> {
    let start = format!("event: {kind}\ndata: ");
    let frames = text.split(&start).skip(1).filter_map(|rest| rest.split_once("\n\n"));
    frames.map(|(json, _)| serde_json::from_str(json).unwrap()).collect()
}

#[test]
fn head_has_no_body_and_holds_no_place() {
    let server = server_of(made_up::MadeUp::new(1.0), ServeOptions { clients: 1, ..ServeOptions::default() });
    let address = server.address();
    for path in ["/events", "/events", "/metrics"] {
        let answer = raw(address, format!("HEAD {path} HTTP/1.1\r\nHost: {address}\r\n\r\n").as_bytes()).unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (200, ""));
    }
}

#[test]
fn a_stopped_server_ends_its_streams_at_once_and_frees_the_port() {
    let server = server();
    let address = server.address();
    let mut streams: Vec<_> = (0..8).map(|_| ask_for_events(address)).collect();
    for stream in &mut streams {
        follow(stream, |text| text.contains("event: tick\n"));
    }
    let start = Instant::now();
    server.stop();
    assert!(start.elapsed() < Duration::from_millis(500), "{:?}", start.elapsed());
    for stream in &mut streams {
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
    }
    let options = ServeOptions { address: address.to_string(), ..ServeOptions::default() };
    let again = Server::start(options, Arc::new(made_up::MadeUp::new(1.0))).unwrap();
    assert_eq!(again.address(), address);
    assert_eq!(get(address, "/metrics", &[]).status, 200);
}

#[test]
fn a_port_in_use_is_said_to_be() {
    let server = server();
    let options = ServeOptions { address: server.address().to_string(), ..ServeOptions::default() };
    let error = Server::start(options, Arc::new(made_up::MadeUp::new(1.0))).unwrap_err();
    assert_eq!(error.status(), Status::Io);
    assert!(error.message().contains("another program has this port"), "{error}");
    assert!(error.message().contains(&server.address().to_string()), "{error}");
}

#[test]
fn options_that_cannot_be_are_refused() {
    let start = |options| Server::start(options, Arc::new(made_up::MadeUp::new(1.0))).unwrap_err();
    for clients in [0, 1025] {
        assert_eq!(start(ServeOptions { clients, ..ServeOptions::default() }).status(), Status::InvalidArgument);
    }
    let open = start(ServeOptions { address: "0.0.0.0:0".to_owned(), ..ServeOptions::default() });
    assert!(open.message().contains("no token"), "{open}");
}

#[test]
#[cfg(target_os = "linux")]
fn its_one_thread_is_named_takes_no_signals_but_faults_and_is_nice() {
    let _server = server();
    // It names itself first thing, which it may not have come to yet.
    let deadline = Instant::now() + Duration::from_secs(10);
    while check_serving_threads() == 0 {
        assert!(Instant::now() < deadline, "no thread of that name");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Checks all threads called `kronsae-serve`; how many there are.
#[cfg(target_os = "linux")]
fn check_serving_threads() -> usize {
    let mut found = 0;
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let path = task.unwrap().path();
        let Ok(status) = std::fs::read_to_string(path.join("status")) else { continue };
        if !status.starts_with("Name:\tkronsae-serve\n") {
            continue;
        }
        found += 1;
        let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:\t")).unwrap();
        // All but KILL, STOP, the two that the C library keeps for itself, and faults of the thread itself.
        let faults = [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP, libc::SIGSYS];
        let open = faults.iter().fold(0x1_8004_0100, |open, fault| open | 1_u64 << (fault - 1));
        assert_eq!(u64::from_str_radix(blocked, 16).unwrap(), !open, "{blocked}");
        // It lowers its priority first thing, which it may not have come to yet; and another test's may end meanwhile.
        let deadline = Instant::now() + Duration::from_secs(10);
        while let Ok(stat) = std::fs::read_to_string(path.join("stat")) {
            let nice = stat.rsplit_once(") ").unwrap().1.split(' ').nth(16).unwrap();
            if nice == "10" {
                break;
            }
            assert!(Instant::now() < deadline, "nice {nice}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    found
}

/// A child process may drop what it inherited: it waits for no thread, and the parent's server goes on.
#[test]
#[cfg(target_os = "linux")]
fn a_fork_can_drop_it() {
    let server = server();
    let address = server.address();
    // SAFETY: the child calls nothing that other threads of the parent could hold a lock of, but the destructor that is
    // tested, and leaves by _exit.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        server.stop();
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(7) };
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut status = 0;
    // SAFETY: `status` is valid for a write; the child is this process's.
    while unsafe { libc::waitpid(child, &raw mut status, libc::WNOHANG) } == 0 {
        if Instant::now() > deadline {
            // SAFETY: the child was not waited for, so the number is still its own.
            unsafe { libc::kill(child, libc::SIGKILL) };
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 7, "{status}");
    assert_eq!(get(address, "/metrics", &[]).status, 200);
}
