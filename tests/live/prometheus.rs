//! What Prometheus itself makes of the metrics, of the alert rules, and of the names on the dashboard.
//! `cargo xtask test` runs these where the programs `promtool` and `prometheus` are installed.

use crate::client::{connect, get, parse};
use crate::{made_up, server_of};
use kronsae::monitor::metrics::{MetricsForm, write};
use kronsae::monitor::serve::ServeOptions;
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

fn integration(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("integrations/prometheus").join(file)
}

fn promtool(args: &[&str], input: &str) {
    let mut command = Command::new("promtool");
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("promtool is installed");
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "promtool {args:?}:\n{said}");
}

#[test]
#[ignore = "needs promtool"]
fn promtool_accepts_the_metrics() {
    let mut text = String::new();
    write(&crate::metrics::snapshot(), MetricsForm::Prometheus, &mut text);
    promtool(&["check", "metrics"], &text);
}

#[test]
#[ignore = "needs promtool"]
fn promtool_accepts_the_alert_rules_and_they_fire_when_they_should() {
    promtool(&["check", "rules", integration("alerts.yml").to_str().unwrap()], "");
    promtool(&["test", "rules", integration("alerts-test.yml").to_str().unwrap()], "");
}

/// Every name that the dashboard and the alerts ask for is one that the metrics have.
#[test]
fn the_dashboard_and_the_alerts_name_metrics_that_exist() {
    let mut text = String::new();
    write(&crate::metrics::snapshot(), MetricsForm::Prometheus, &mut text);
    let have: BTreeSet<_> = text.lines().filter(|line| !line.starts_with('#')).map(name).collect();
    let dashboard = std::fs::read_to_string(integration("dashboard.json")).unwrap();
    let json: Value = serde_json::from_str(&dashboard).unwrap();
    assert!(json["panels"].as_array().unwrap().len() >= 8);
    let alerts = std::fs::read_to_string(integration("alerts.yml")).unwrap();
    for (file, text) in [("dashboard.json", &dashboard), ("alerts.yml", &alerts)] {
        let mut asked = 0;
        for (at, _) in text.match_indices("kronsae_") {
            // Names of variables and recorded things aside, an expression names series.
            asked += 1;
            assert!(have.contains(name(&text[at..])), "{file}: {} is no metric", name(&text[at..]));
        }
        assert!(asked >= 8, "{file}");
    }
}

fn name(line: &str) -> &str {
    line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap()
}

/// Ends the program with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Serves the text form alone, whatever is asked: what a host with an endpoint of its own does.
fn hosts_own_endpoint() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let mut text = String::new();
            write(&crate::metrics::snapshot(), MetricsForm::Prometheus, &mut text);
            let kind = MetricsForm::Prometheus.content_type();
            let length = text.len();
            let head = format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n");
            let _ = write!(stream, "{head}Connection: close\r\n\r\n{text}");
        }
    });
    address
}

#[test]
#[ignore = "needs prometheus"]
fn prometheus_scrapes_both_forms() {
    const TOKEN: &str = "correct-horse-battery";
    let options = ServeOptions { token: Some(TOKEN.to_owned()), ..ServeOptions::default() };
    let server = server_of(made_up::MadeUp::new(100.0), options);
    let plain = hosts_own_endpoint();
    let folder = tempfile::tempdir().unwrap();
    let config = format!(
        "global: {{scrape_interval: 1s}}\nrule_files: ['{}']\nscrape_configs:\n\
         - {{job_name: open, authorization: {{credentials: {TOKEN}}}, static_configs: [{{targets: ['{}']}}]}}\n\
         - {{job_name: plain, static_configs: [{{targets: ['{plain}']}}]}}\n",
        integration("alerts.yml").display(),
        server.address(),
    );
    std::fs::write(folder.path().join("prometheus.yml"), config).unwrap();
    let own = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let errors = std::fs::File::create(folder.path().join("errors")).unwrap();
    let child = Command::new("prometheus")
        .arg(format!("--config.file={}", folder.path().join("prometheus.yml").display()))
        .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
        .arg(format!("--web.listen-address={own}"))
        .stdout(Stdio::null())
        .stderr(errors)
        .spawn()
        .expect("prometheus is installed");
    let _running = Running(child);
    let deadline = Instant::now() + Duration::from_secs(60);
    let said = || std::fs::read_to_string(folder.path().join("errors")).unwrap();
    let ask = |path: &str| -> Option<Value> {
        std::net::TcpStream::connect(own).ok()?;
        let answer = get_closing(own, path)?;
        serde_json::from_str(&answer).ok()
    };
    let value = |query: &str| -> Option<f64> {
        let answer = ask(&format!("/api/v1/query?query={query}"))?;
        answer["data"]["result"][0]["value"][1].as_str()?.parse().ok()
    };
    while value("sum(up)") != Some(2.0) {
        let targets = ask("/api/v1/targets");
        assert!(Instant::now() < deadline, "not scraped: {targets:?}\n{}", said());
        std::thread::sleep(Duration::from_millis(300));
    }
    // Both forms, as their metadata tell: only OpenMetrics has units.
    for (job, unit) in [("open", "bytes"), ("plain", "")] {
        let path = format!(
            "/api/v1/targets/metadata?match_target=%7Bjob%3D%22{job}%22%7D&metric=kronsae_monitor_memory_bytes"
        );
        let metadata = ask(&path).unwrap();
        assert_eq!(metadata["data"][0]["unit"], unit, "{metadata}");
        assert_eq!(metadata["data"][0]["type"], "gauge", "{metadata}");
    }
    let known = "kronsae_tokens_total%7Bjob%3D%22plain%22%2Coutcome%3D%22encoded%22%2Csite%3D%22bare%22%7D";
    assert_eq!(value(known), Some(900.0));
    let moving = "sum(kronsae_tokens_total%7Bjob%3D%22open%22%2Coutcome%3D%22encoded%22%7D)";
    assert!(value(moving).unwrap() > 0.0);
    assert_eq!(value("kronsae_latency_seconds_count%7Bjob%3D%22plain%22%2Csite!%3D%22bare%22%7D"), Some(31.0));
    let escaped = ask("/api/v1/label/site/values").unwrap();
    let sites: Vec<_> = escaped["data"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert!(sites.contains(&"a \"site\" \\ of\nmany"), "{sites:?}");
    // The same series, whichever form they came in: no bound is spelt in two ways.
    let bounds = ask("/api/v1/label/le/values").unwrap();
    let bounds: Vec<_> = bounds["data"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert!(bounds.contains(&"1.0") && !bounds.contains(&"1"), "{bounds:?}");
    let rules = ask("/api/v1/rules").unwrap();
    assert!(rules["data"]["groups"][0]["rules"].as_array().unwrap().len() >= 5, "{rules}");
    assert_eq!(get(server.address(), "/metrics", &[]).status, 401);
}

fn get_closing(address: SocketAddr, path: &str) -> Option<String> {
    let mut stream = connect(address);
    // 1.0, so that the answer is not in chunks.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").ok()?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).ok()?;
    parse(&bytes).map(|answer| answer.body)
}
