//! The page in a real browser, driven over Chromium's debugging pipe. `cargo xtask test` runs these where `chromium` is
//! installed. With `KRONSAE_SCREENSHOTS` naming a folder, pictures are left there.

use crate::{made_up, server_of};
use kronsae::monitor::serve::{ServeOptions, Server, Source};
use kronsae::monitor::{Event, RecentToken, Snapshot, UnboundRule};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A browser with one page.
struct Browser {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    session: Option<String>,
    calls: u64,
    /// What the page complained of: exceptions, refused resources, the console.
    complaints: Vec<String>,
    _profile: tempfile::TempDir,
}

impl Browser {
    fn open() -> Self {
        let profile = tempfile::tempdir().unwrap();
        // The browser reads descriptor 3 and writes to 4.
        let script = format!(
            "exec chromium --headless=new --no-sandbox --disable-gpu --no-first-run --user-data-dir='{}' \
             --remote-debugging-pipe about:blank 3<&0 4>&1 </dev/null >/dev/null 2>&1",
            profile.path().display()
        );
        let mut child = Command::new("sh")
            .args(["-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a shell");
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut browser =
            Browser { child, input, output, session: None, calls: 0, complaints: Vec::new(), _profile: profile };
        let target = browser.call("Target.createTarget", &json!({"url": "about:blank"}));
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let session = browser.call("Target.attachToTarget", &attach)["sessionId"].as_str().unwrap().to_owned();
        browser.session = Some(session);
        for domain in ["Runtime.enable", "Log.enable", "Page.enable"] {
            browser.call(domain, &json!({}));
        }
        browser
    }

    fn call(&mut self, method: &str, params: &Value) -> Value {
        self.calls += 1;
        let mut message = json!({"id": self.calls, "method": method, "params": params});
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        self.input.write_all(format!("{message}\0").as_bytes()).expect("chromium is installed and runs");
        loop {
            let mut bytes = Vec::new();
            self.output.read_until(0, &mut bytes).unwrap();
            assert_eq!(bytes.pop(), Some(0), "chromium is not installed, or has ended");
            let mut answer: Value = serde_json::from_slice(&bytes).unwrap();
            if answer["id"] == self.calls {
                assert!(answer["error"].is_null(), "{method}: {answer}");
                return answer["result"].take();
            }
            let kind = answer["method"].as_str().unwrap_or_default();
            if ["Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"].contains(&kind) {
                self.complaints.push(answer["params"].to_string());
            }
        }
    }

    fn go(&mut self, server: &Server) {
        let port = server.address().port();
        self.run("document.title = 'the page before'");
        self.call("Page.navigate", &json!({"url": format!("http://{}/", server.address())}));
        self.wait(&format!(
            "location.port === '{port}' && document.title === 'kronsae live' && document.readyState === 'complete'"
        ));
    }

    fn run(&mut self, script: &str) -> Value {
        let params = json!({"expression": script, "returnByValue": true, "awaitPromise": true});
        let result = self.call("Runtime.evaluate", &params);
        assert!(result["exceptionDetails"].is_null(), "{script}: {result}");
        result["result"]["value"].clone()
    }

    /// Until the expression holds.
    fn wait(&mut self, condition: &str) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.run(&format!("Boolean({condition})")) != true {
            if Instant::now() >= deadline {
                let text = self.run("document.body.innerText");
                panic!("never: {condition}\n{text}\n{:?}", self.complaints);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn screen(&mut self, width: u32, height: u32, scheme: &str) {
        let phone = width < 500;
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone});
        self.call("Emulation.setDeviceMetricsOverride", &size);
        let scheme = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.call("Emulation.setEmulatedMedia", &scheme);
    }

    fn press(&mut self, key: &str) {
        for kind in ["keyDown", "keyUp"] {
            self.call("Input.dispatchKeyEvent", &json!({"type": kind, "key": key, "code": key}));
        }
    }

    /// Leaves a picture, if pictures are wanted.
    fn picture(&mut self, name: &str) {
        use base64::Engine;
        let Some(folder) = std::env::var_os("KRONSAE_SCREENSHOTS") else { return };
        let picture = self.call("Page.captureScreenshot", &json!({"format": "png"}));
        let bytes = base64::engine::general_purpose::STANDARD.decode(picture["data"].as_str().unwrap()).unwrap();
        std::fs::write(std::path::Path::new(&folder).join(format!("{name}.png")), bytes).unwrap();
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
#[ignore = "needs chromium"]
fn tokens_latents_and_rules_appear_on_every_screen() {
    let server = server_of(made_up::MadeUp::new(60.0), ServeOptions::default());
    let mut browser = Browser::open();
    for (width, height) in [(1400_u32, 1300), (390, 2800)] {
        for scheme in ["light", "dark"] {
            browser.screen(width, height, scheme);
            browser.go(&server);
            browser.wait("document.querySelectorAll('.request:not([hidden]) .tok').length > 100");
            browser.wait("document.querySelectorAll('#log > li .severity').length > 5");
            browser.wait("document.querySelectorAll('#strongest tr').length > 10");
            browser.wait("document.querySelector('#state').textContent === 'running'");
            browser.wait("document.querySelector('#log .taken-back') && document.querySelector('#log .flag')");
            // Tokens are coloured by the strongest latent, and its label is shown.
            browser.wait("document.querySelectorAll('.tok.fires').length > 0");
            browser.wait("document.querySelector('#chosen-label').textContent === 'water and weather'");
            // A token says its latents when it is chosen, and a latent chosen there colours the others.
            browser.run("[...document.querySelectorAll('.tok')].find(t => t.textContent.includes('said')).click()");
            browser.wait("document.querySelector('#detail').textContent.includes('256 reported speech')");
            browser.run("document.querySelector('#detail [data-latent=\"256\"]').click()");
            browser.wait("document.querySelector('#chosen').value === '256'");
            browser.wait("[...document.querySelectorAll('.tok.fires')].every(t => /said|\"/.test(t.textContent))");
            // Nothing is wider than the screen, and no text lies on its own colour.
            let wide = browser.run("document.documentElement.scrollWidth").as_u64().unwrap();
            assert!(wide <= width.into(), "{wide}");
            let contrast = browser.run(LEAST_CONTRAST).as_f64().unwrap();
            assert!(contrast >= 4.5, "{scheme}: {contrast}");
            browser.picture(&format!("{width}-{scheme}"));
        }
    }
    assert_eq!(browser.complaints, [""; 0]);
}

/// Least contrast, as WCAG 2 computes it, of any text on the page against what is behind it.
const LEAST_CONTRAST: &str = r"(() => {
  const canvas = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
  const behind = (element) => element ? [...behind(element.parentElement), getComputedStyle(element).backgroundColor] : [];
  const pixel = (colours) => {
    canvas.clearRect(0, 0, 1, 1);
    for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => {
    const [R, G, B] = [r, g, b].map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * R + 0.7152 * G + 0.0722 * B;
  };
  let least = 21;
  for (const element of document.querySelectorAll('body *')) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || !element.checkVisibility() || ['SCRIPT', 'STYLE', 'OPTION'].includes(element.tagName)) continue;
    const ground = behind(element);
    const [a, b] = [light(pixel(ground)), light(pixel([...ground, getComputedStyle(element).color]))];
    least = Math.min(least, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
  }
  return least;
})()";

#[test]
#[ignore = "needs chromium"]
fn hostile_text_stays_text() {
    let words = [
        "<script>document.title='taken'</script>",
        "<img src=x onerror=\"document.title='taken'\">",
        "'\"><svg onload=document.title='taken'>",
        "\u{202e}reversed\u{200b}\0",
        "](javascript:alert(1))",
    ];
    let source = Hostile(made_up::MadeUp::new(100.0).with_words(&words));
    let server = server_of(source, ServeOptions::default());
    let mut browser = Browser::open();
    browser.go(&server);
    browser.wait("document.querySelectorAll('.tok').length > 20");
    browser.wait("document.querySelectorAll('#strongest small').length > 0");
    browser.wait("document.querySelectorAll('#rules li').length > 0");
    let texts = browser.run("[...document.querySelectorAll('.tok')].map(t => t.textContent).join('\\n')");
    let texts = texts.as_str().unwrap();
    for word in [words[0], words[1], words[2], "\\u{202e}reversed\\u{200b}\\u{0}"] {
        assert!(texts.contains(word), "{word} in {texts}");
    }
    // A rule for a site that there is not is shown to wait, and its names are text as well.
    let waiting = browser.run("[...document.querySelectorAll('#rules .waiting')].map(r => r.textContent).join('\\n')");
    assert_eq!(waiting, format!("{} waits for site {}", WAITING[0], WAITING[1]));
    assert_eq!(browser.run("document.querySelectorAll('main script, img, main svg:not([role=img])').length"), 0);
    assert_eq!(browser.run("document.title"), "kronsae live");
    assert!(browser.run("document.querySelector('#strongest').textContent").as_str().unwrap().contains("<b>bold</b>"));
    // And if something did get in, the policy would stop it.
    browser.run(
        "(() => { try { document.body.innerHTML = '<b>x</b>'; } catch { return; } throw new Error('parsed'); })()",
    );
    browser.complaints.retain(|complaint| !complaint.contains("TrustedHTML"));
    assert_eq!(browser.complaints, [""; 0]);
}

/// A rule, and the site it waits for.
const WAITING: [&str; 2] =
    ["<script>document.title='taken'</script>", "<img src=x onerror=\"document.title='taken'\">"];

/// Names and labels from outside as well.
struct Hostile(made_up::MadeUp);

impl Source for Hostile {
    fn snapshot(&self) -> Snapshot {
        let mut snapshot = self.0.snapshot();
        for site in &mut snapshot.sites {
            site.site = format!("<script>document.title='taken'</script>{}", site.site).into();
            site.rules.iter_mut().for_each(|rule| rule.rule = "<img src=x onerror=alert(1)>".into());
        }
        let [rule, site] = WAITING;
        snapshot.unbound_rules.push(UnboundRule { rule: rule.into(), site: site.into() });
        snapshot
    }

    fn recent(&self, site: u32, since: u64, most: usize) -> Vec<RecentToken> {
        self.0.recent(site, since, most)
    }

    fn events(&self, since: u64, most: usize) -> Vec<Event> {
        self.0.events(since, most)
    }

    fn label(&self, _site: u32, _latent: u32) -> Option<Arc<str>> {
        Some("<b>bold</b>".into())
    }
}

#[test]
#[ignore = "needs chromium"]
fn a_token_is_asked_for_and_kept_out_of_the_address() {
    const TOKEN: &str = "correct-horse-battery";
    let options = ServeOptions { token: Some(TOKEN.to_owned()), ..ServeOptions::default() };
    let server = server_of(made_up::MadeUp::new(60.0), options);
    let mut browser = Browser::open();
    browser.go(&server);
    browser.wait("!document.querySelector('#door').hidden && document.querySelector('#main').hidden");
    browser.picture("door");
    let enter = |token: &str| {
        format!("document.querySelector('#token').value = '{token}'; document.querySelector('#door').requestSubmit()")
    };
    browser.run(&enter("wrong-horse-battery"));
    browser.wait("document.querySelector('#notice').textContent.includes('not accepted')");
    browser.run(&enter(TOKEN));
    browser.wait("document.querySelectorAll('.tok').length > 20");
    let kept = "location.href + document.cookie + JSON.stringify({...localStorage}) + document.documentElement.outerHTML \
                + performance.getEntries().map(e => e.name)";
    assert!(!browser.run(kept).as_str().unwrap().contains(TOKEN));
}

#[test]
#[ignore = "needs chromium"]
fn keys_reach_every_token() {
    let server = server_of(made_up::MadeUp::new(60.0), ServeOptions::default());
    let mut browser = Browser::open();
    browser.go(&server);
    browser.wait("document.querySelectorAll('.tok').length > 50");
    browser.run("document.querySelector('.tok[tabindex=\"0\"]').focus()");
    let at = "document.querySelector('#detail').textContent";
    browser.press("Home");
    browser.wait("document.activeElement.classList.contains('pinned')");
    let first = browser.run(at);
    browser.press("ArrowRight");
    browser.wait(&format!("{at} !== {first}"));
    assert_eq!(browser.run("document.querySelectorAll('.tok[tabindex=\"0\"]').length"), 1);
    browser.press("Escape");
    browser.wait("!document.querySelector('.tok.pinned')");
}

/// What is looked at holds still; what came meanwhile is there afterwards.
#[test]
#[ignore = "needs chromium"]
fn pausing_holds_everything_still() {
    let server = server_of(made_up::MadeUp::new(200.0), ServeOptions::default());
    let mut browser = Browser::open();
    browser.go(&server);
    browser.wait("document.querySelectorAll('#log > li .severity').length > 5");
    browser.run("document.querySelector('#pause').click()");
    let shown = "document.querySelector('#requests').textContent + document.querySelector('#log').textContent";
    let before = browser.run(shown);
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(browser.run(shown), before);
    browser.run("document.querySelector('#pause').click()");
    browser.wait(&format!("{shown} !== {before}"));
    let ids = browser.run("[...document.querySelectorAll('#log > li')].map(item => Number(item.dataset.id))");
    let ids: Vec<u64> = serde_json::from_value(ids).unwrap();
    assert!(ids.windows(2).all(|pair| pair[0] == pair[1] + 1), "{ids:?}");
}

/// A monitor without sites says what to do; one whose server goes away is said to be away, and found again.
#[test]
#[ignore = "needs chromium"]
fn nothing_yet_and_nobody_there() {
    struct Empty(made_up::MadeUp);
    impl Source for Empty {
        fn snapshot(&self) -> Snapshot {
            Snapshot { sites: Vec::new(), ..self.0.snapshot() }
        }
        fn recent(&self, _: u32, _: u64, _: usize) -> Vec<RecentToken> {
            Vec::new()
        }
        fn events(&self, _: u64, _: usize) -> Vec<Event> {
            Vec::new()
        }
    }
    let server = server_of(Empty(made_up::MadeUp::new(1.0)), ServeOptions::default());
    let mut browser = Browser::open();
    browser.go(&server);
    browser.wait("document.querySelector('#empty').innerText.includes('kronsae_monitor_add_site')");
    browser.picture("empty");
    let address = server.address();
    server.stop();
    browser.wait("document.querySelector('#state').textContent === 'no connection'");
    let options = ServeOptions { address: address.to_string(), ..ServeOptions::default() };
    let _again = Server::start(options, Arc::new(made_up::MadeUp::new(60.0))).unwrap();
    browser.wait("document.querySelectorAll('.tok').length > 0");
    assert_eq!(browser.run("document.querySelector('#notice').hidden"), true);
}

/// A tap whose GPU failed is named, and for how long it drops; one that was closed is history.
#[test]
#[ignore = "needs chromium"]
fn a_tap_whose_device_failed_is_named() {
    struct Broken {
        inner: made_up::MadeUp,
        closed: AtomicBool,
    }
    impl Source for Broken {
        fn snapshot(&self) -> Snapshot {
            let mut snapshot = self.inner.snapshot();
            snapshot.device_memory = 5 << 20;
            let tap = snapshot.sites.last_mut().unwrap().taps.last_mut().unwrap();
            tap.failure = Some("the device failed: <b>an illegal address</b>".to_owned());
            tap.closed = self.closed.load(Ordering::Relaxed);
            snapshot
        }
        fn recent(&self, site: u32, after: u64, most: usize) -> Vec<RecentToken> {
            self.inner.recent(site, after, most)
        }
        fn events(&self, after: u64, most: usize) -> Vec<Event> {
            self.inner.events(after, most)
        }
    }
    let source = Arc::new(Broken { inner: made_up::MadeUp::new(60.0), closed: AtomicBool::new(false) });
    let options = ServeOptions { address: "127.0.0.1:0".to_owned(), ..ServeOptions::default() };
    let server = Server::start(options, Arc::clone(&source) as Arc<dyn Source>).unwrap();
    let mut browser = Browser::open();
    browser.go(&server);
    let notice = "document.querySelector('#notice')";
    browser.wait(&format!(
        "{notice}.textContent.includes('the device failed: <b>an illegal address</b>; what it is given')"
    ));
    browser.wait("document.querySelector('#more').textContent.includes('MiB on devices')");
    browser.picture("failed-tap");
    source.closed.store(true, Ordering::Relaxed);
    browser.wait(&format!("{notice}.hidden"));
}

/// What the page holds is bounded: after many more tokens than it shows, it has no more elements than before.
#[test]
#[ignore = "needs chromium"]
fn the_page_does_not_grow() {
    let server = server_of(made_up::MadeUp::new(400.0), ServeOptions::default());
    let mut browser = Browser::open();
    browser.go(&server);
    browser.wait("document.querySelectorAll('#log > li').length >= 200");
    let mut sizes = Vec::new();
    for _ in 0..3 {
        std::thread::sleep(Duration::from_secs(6));
        browser.call("HeapProfiler.collectGarbage", &json!({}));
        let counted = browser.call("Memory.getDOMCounters", &json!({}));
        sizes.push(counted["nodes"].as_u64().unwrap());
    }
    let (first, last) = (sizes[0], sizes[2]);
    assert!(last < first + first / 5, "{sizes:?}");
    let tokens = browser.run("document.querySelectorAll('.tok').length").as_u64().unwrap();
    assert!(tokens <= 2 * 512, "{tokens}");
    // As many tokens came meanwhile as would fill the page several times over.
    assert!(browser.run("document.querySelectorAll('#log > li').length").as_u64().unwrap() <= 200);
}
