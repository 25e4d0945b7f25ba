//! The rules of the documentation, run; and what running rules allocates: nothing.

#[path = "common/rules.rs"]
mod any_rules;
mod common;

use any_rules::model;
use common::Rng;
use kronsae::monitor::{Match, Requests, Rules, SiteRules, TokenTag, flags};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::Path;
use std::sync::Arc;

/// Counts the calls of each thread.
struct Counting;

thread_local! {
    static CALLS: Cell<usize> = const { Cell::new(0) };
}

fn count() {
    CALLS.with(|calls| calls.set(calls.get() + 1));
}

// SAFETY: everything is passed on to the system's allocator; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promise.
        unsafe { System.realloc(pointer, layout, new_size) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn example() -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/monitoring-rules.md");
    let page = std::fs::read_to_string(page).unwrap();
    let (_, example) = page.split_once("```toml\n").expect("an example");
    example.split_once("```").unwrap().0.to_owned()
}

fn documented() -> Rules {
    Rules::parse(&example()).unwrap()
}

fn tag(position: i32, flags: u32) -> TokenTag {
    TokenTag { request: 77, position, token: 9, flags }
}

#[test]
fn the_documented_example_does_what_it_says() {
    let (rules, sae) = (documented(), model());
    let elsewhere = SiteRules::compile(&rules, "layer3", &sae).unwrap();
    assert_eq!(elsewhere.names().map(|(name, _)| name.as_ref()).collect::<Vec<_>>(), ["python"]);
    let site = Arc::new(SiteRules::compile(&rules, "layer15", &sae).unwrap());
    assert_eq!(site.latents(), [0, 1, 2, 3, 4, 5, 6]);
    let mut requests = Requests::new(Arc::clone(&site), 4).unwrap();
    let mut out = Vec::new();
    let mut observe = |position: i32, flags: u32, seconds: f64, latents: &[(u32, f32)]| -> Vec<(usize, bool)> {
        out.clear();
        let (indices, values): (Vec<_>, Vec<_>) = latents.iter().copied().unzip();
        let nanos = (seconds * 1e9) as u64;
        let mut emit = |m: Match<'_>| {
            assert_eq!((m.tag, m.retracts), (tag(position, flags), false));
            let latent = |l: &kronsae::monitor::EventLatent| {
                let found = latents.iter().find(|(latent, _)| *latent == l.latent);
                assert_eq!(l.value, found.map_or(0.0, |found| found.1));
                l.latent
            };
            let named: Vec<_> = m.latents.iter().map(latent).collect();
            assert_eq!(named, [&[5][..], &[0, 1, 2, 3, 4, 6]][m.rule]);
            out.push((m.rule, m.gap));
        };
        requests.observe(&tag(position, flags), 1, nanos, &indices, &values, &mut emit);
        out.clone()
    };
    let (quantile, all, sum) = ([(0, 3.5)], [(1, 0.75), (2, 0.75)], [(3, 2.5), (4, 2.0)]);
    // Prompt tokens are not the second rule's.
    assert_eq!(observe(0, flags::PROMPT, 0.0, &quantile), []);
    assert_eq!(observe(1, flags::LAST_PROMPT, 0.0, &[(5, 2.75), (0, 3.5)]), [(0, false)]);
    assert_eq!(observe(2, 0, 0.0, &quantile), []);
    assert_eq!(observe(3, 0, 0.0, &[(0, 3.0)]), [], "not above the quantile");
    assert_eq!(observe(4, 0, 0.0, &all), []);
    assert_eq!(observe(5, 0, 0.0, &[(3, 2.5), (4, 2.0), (6, 1.0)]), [], "2.5 + 1 - 1 is not above 3");
    // Position 6 was dropped.
    assert_eq!(observe(7, 0, 0.0, &sum), [(1, true)], "three of the last five generated tokens");
    assert_eq!(observe(8, 0, 3.0, &sum), [], "silent for 50 tokens");
    assert_eq!(observe(57, 0, 3.0, &sum), []);
    assert_eq!(observe(58, 0, 2.0, &sum), [], "and for 2.5 seconds");
    assert_eq!(observe(59, 0, 2.5, &sum), [(1, true)]);
    let mut retracted = Vec::new();
    requests.rewind(77, 7, &mut |m| retracted.push((m.rule, m.retracts, m.tag.position)));
    assert_eq!(retracted, [(1, true, 59), (1, true, 7)]);
}

#[test]
fn observing_allocates_nothing() {
    let before = CALLS.get();
    std::hint::black_box(vec![1_u8; 100]);
    assert_eq!(CALLS.get(), before + 1, "the allocator in use is not the counting one");

    let site = Arc::new(SiteRules::compile(&documented(), "layer15", &model()).unwrap());
    let mut requests = Requests::new(site, 50).unwrap();
    let mut rng = Rng(5);
    let (mut matched, mut retracted, bytes) = (0_u64, 0_u64, requests.bytes());
    let before = CALLS.get();
    for step in 0..300_000_u64 {
        let request = rng.next() % 80;
        let tag = TokenTag { request, position: (step / 60) as i32, token: 1, flags: (rng.next() % 8 / 7) as u32 };
        let mut emit = |m: Match<'_>| if m.retracts { retracted += 1 } else { matched += 1 };
        let (indices, values) =
            ([0, 3, 5, 11], [rng.unit() * 4.0, rng.unit() * 4.0, rng.unit() * 4.0, 1.0].map(f32::abs));
        match rng.below(200) {
            0 => requests.rewind(request, tag.position - 3, &mut emit),
            1 => requests.end(request),
            2 => requests.missing(&tag, 1, &mut emit),
            _ => requests.observe(&tag, 1, step * 1_000_000, &indices, &values, &mut emit),
        }
    }
    assert_eq!(CALLS.get(), before, "{matched} matches, {retracted} retractions, {} evictions", requests.evicted());
    assert!(matched > 1000 && retracted > 100 && requests.evicted() > 1000 && requests.alive() == 50);
    assert_eq!(requests.bytes(), bytes);
}

/// The example with some of its bytes changed, cut, doubled or exchanged for others of its words: an error, or rules that run.
#[test]
fn any_text_is_refused_or_runs() {
    let (sae, example) = (model(), example().into_bytes());
    let words: Vec<&[u8]> = example.split(|b| b" =,{}[]".contains(b)).filter(|word| !word.is_empty()).collect();
    let extra: [&[u8]; 8] = [b"nan", b"-1", b"0", b"1e999", b"18446744073709551616", b"\"", b"[[rule]]", b"{"];
    let (mut rng, mut sound) = (Rng(3), 0);
    for _ in 0..3000 {
        let mut text = example.clone();
        for _ in 0..=rng.below(3) {
            let at = rng.below(text.len());
            let end = (at + rng.below(12)).min(text.len());
            match rng.below(5) {
                0 => text[at] = rng.next() as u8 & 0x7F,
                1 => _ = text.drain(at..end),
                2 => _ = text.splice(at..at, text[at..end].to_vec()),
                3 => _ = text.splice(at..end, words[rng.below(words.len())].iter().copied()),
                _ => _ = text.splice(at..end, extra[rng.below(extra.len())].iter().copied()),
            }
        }
        let Ok(text) = String::from_utf8(text) else { continue };
        let text = format!("{text}\n");
        sound += usize::from(any_rules::run(&sae, &text, rng.next()));
    }
    assert!(sound > 100, "{sound} of 3000 texts were rules: the changes are too crude to say anything");
}
