//! Request state against a naive model that keeps every token and computes everything anew; and what lies beyond its
//! bounds.

use super::*;
use crate::Status;
use crate::monitor::rules::tests::model;
use crate::monitor::{Rules, Tokens, flags};
use proptest::prelude::*;

fn site(text: &str) -> Arc<SiteRules> {
    Arc::new(SiteRules::compile(&Rules::parse(text).unwrap(), "here", &model("", None)).unwrap())
}

fn requests(text: &str, most: usize) -> Requests {
    Requests::new(site(text), most).unwrap()
}

/// A match, owned: (rule, retracts, handle, tag, gap).
type Found = (usize, bool, u64, TokenTag, bool);

fn found(m: &Match<'_>) -> Found {
    (m.rule, m.retracts, m.handle, m.tag, m.gap)
}

/// Rules of the comparison, and the same as plain Rust.
const RULES: &str = r#"
    rule = [
        { name = "plain", when = { latent = 0, above = 0.5 } },
        { name = "window", when = { latent = 1, above = 0.5 }, window = { at_least = 2, of_last = 3 } },
        { name = "any", when = { any = [{ latent = 0, above = 0.5 }, { latent = 1, above = 0.5 }] },
          window = { at_least = 3, of_last = 5 }, cooldown = { tokens = 4 } },
        { name = "generated", tokens = "generated", when = { latent = 2, above = 0.5 },
          window = { at_least = 2, of_last = 4 }, cooldown = { seconds = 0.00000002 } },
        { name = "prompt", tokens = "prompt", when = { latent = 3, above = 0.5 },
          window = { at_least = 1, of_last = 2 }, cooldown = { tokens = 1, seconds = 0.00000001 } },
        { name = "long", when = { sum = [{ latent = 2 }, { latent = 3, weight = 0.5 }], above = 1.25 },
          window = { at_least = 5, of_last = 40 } },
        { name = "cool", when = { all = [{ latent = 0, above = 0.5 }, { latent = 3, above = 0.5 }] },
          cooldown = { tokens = 3 } },
    ]"#;

struct NaiveRule {
    kind: Tokens,
    holds: fn([f32; 4]) -> bool,
    at_least: usize,
    of_last: usize,
    tokens: i64,
    nanos: u64,
}

fn naive_rules() -> Vec<NaiveRule> {
    let rule =
        |kind, holds, at_least, of_last, tokens, nanos| NaiveRule { kind, holds, at_least, of_last, tokens, nanos };
    vec![
        rule(Tokens::All, |v| v[0] > 0.5, 1, 1, 0, 0),
        rule(Tokens::All, |v| v[1] > 0.5, 2, 3, 0, 0),
        rule(Tokens::All, |v| v[0] > 0.5 || v[1] > 0.5, 3, 5, 4, 0),
        rule(Tokens::Generated, |v| v[2] > 0.5, 2, 4, 0, 20),
        rule(Tokens::Prompt, |v| v[3] > 0.5, 1, 2, 1, 10),
        rule(Tokens::All, |v| v[2] + 0.5 * v[3] > 1.25, 5, 40, 0, 0),
        rule(Tokens::All, |v| v[0] > 0.5 && v[3] > 0.5, 1, 1, 3, 0),
    ]
}

#[derive(Clone)]
struct NaiveToken {
    tag: TokenTag,
    step: u32,
    values: Option<[f32; 4]>,
}

#[derive(Clone)]
struct NaiveMatch {
    found: Found,
    nanos: u64,
    /// Beyond the matches that can be retracted.
    forgotten: bool,
}

#[derive(Default)]
struct NaiveRequest {
    request: u64,
    tokens: Vec<NaiveToken>,
    matches: Vec<NaiveMatch>,
}

struct Naive {
    rules: Vec<NaiveRule>,
    /// Used longest ago first.
    requests: Vec<NaiveRequest>,
    most: usize,
    handles: u64,
    evicted: u64,
    /// A rewind reached a match that cannot be retracted: from here on the naive model knows better.
    beyond: bool,
}

impl Naive {
    fn last(&self, request: u64) -> Option<i32> {
        Some(self.requests.iter().find(|r| r.request == request)?.tokens.last()?.tag.position)
    }

    fn rewind(&mut self, request: u64, position: i32, out: &mut Vec<Found>) {
        let Some(state) = self.requests.iter_mut().find(|r| r.request == request) else { return };
        state.tokens.retain(|token| token.tag.position < position);
        while let Some(last) = state.matches.pop_if(|m| m.found.3.position >= position) {
            self.beyond |= last.forgotten;
            out.push((last.found.0, true, last.found.2, last.found.3, last.found.4));
        }
    }

    fn token(&mut self, token: &NaiveToken, nanos: u64, out: &mut Vec<Found>) {
        let request = token.tag.request;
        if self.last(request).is_some_and(|last| token.tag.position <= last) {
            self.rewind(request, token.tag.position, out);
        }
        let at = match self.requests.iter().position(|r| r.request == request) {
            Some(at) => at,
            None => {
                if self.requests.len() == self.most {
                    self.requests.remove(0);
                    self.evicted += 1;
                }
                self.requests.push(NaiveRequest { request, ..NaiveRequest::default() });
                self.requests.len() - 1
            }
        };
        let mut state = self.requests.remove(at);
        state.tokens.push(token.clone());
        if let Some(values) = token.values {
            for (number, rule) in self.rules.iter().enumerate() {
                if !rule.kind.takes(&token.tag) || !(rule.holds)(values) {
                    continue;
                }
                let of_kind = |t: &NaiveToken| rule.kind.takes(&t.tag);
                let observed = (0..state.tokens.len()).rev().filter(|i| {
                    let token = &state.tokens[*i];
                    token.values.is_some() && of_kind(token)
                });
                let window: Vec<usize> = observed.take(rule.of_last).collect();
                let held = window.iter().filter(|i| (rule.holds)(state.tokens[**i].values.unwrap())).count();
                if held < rule.at_least {
                    continue;
                }
                let oldest = *window.last().unwrap();
                let gap = (oldest + 1..state.tokens.len()).any(|i| {
                    let (before, token) = (&state.tokens[i - 1], &state.tokens[i]);
                    let distance = i64::from(token.tag.position) - i64::from(before.tag.position);
                    (token.step > 0 && distance > i64::from(token.step)) || (token.values.is_none() && of_kind(token))
                });
                let cool = state.matches.iter().rev().find(|m| m.found.0 == number).is_some_and(|last| {
                    let tokens = i64::from(token.tag.position) - i64::from(last.found.3.position);
                    (rule.tokens > 0 && tokens <= rule.tokens) || (rule.nanos > 0 && nanos - last.nanos < rule.nanos)
                });
                if cool {
                    continue;
                }
                self.handles += 1;
                let found = (number, false, self.handles, token.tag, gap && rule.of_last > 1);
                out.push(found);
                state.matches.push(NaiveMatch { found, nanos, forgotten: false });
                let retractable = state.matches.iter_mut().rev().skip(RETRACTABLE_MATCHES);
                retractable.for_each(|m| m.forgotten = true);
            }
        }
        self.requests.push(state);
    }
}

#[derive(Debug, Clone)]
enum Op {
    Token { request: u64, ahead: i32, flags: u32, step: u32, values: [f32; 4] },
    Missing { request: u64, ahead: i32, flags: u32 },
    Rewind { request: u64, back: i32 },
    End { request: u64 },
    Reload,
    Wait(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let request = 0..4_u64;
    // Mostly the next token; sometimes later ones, sometimes one that was there already.
    let ahead = prop_oneof![20 => Just(1), 3 => 2..5, 1 => -3..1_i32];
    let flags = prop_oneof![3 => Just(0), 2 => Just(flags::PROMPT), 1 => Just(flags::LAST_PROMPT)];
    let value = prop_oneof![3 => Just(0.0_f32), 1 => Just(0.5), 2 => Just(1.0)];
    let step = prop_oneof![4 => Just(1_u32), 1 => Just(0), 1 => Just(2)];
    let values = [value.clone(), value.clone(), value.clone(), value];
    prop_oneof![
        40 => (request.clone(), ahead.clone(), flags.clone(), step, values)
            .prop_map(|(request, ahead, flags, step, values)| Op::Token { request, ahead, flags, step, values }),
        2 => (request.clone(), ahead, flags).prop_map(|(request, ahead, flags)| Op::Missing { request, ahead, flags }),
        2 => (request.clone(), 0..12_i32).prop_map(|(request, back)| Op::Rewind { request, back }),
        1 => request.prop_map(|request| Op::End { request }),
        4 => (1..30_u64).prop_map(Op::Wait),
        1 => prop_oneof![20 => Just(Op::Wait(5)), 1 => Just(Op::Reload)],
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 250, ..ProptestConfig::default() })]

    /// Whatever the order of tokens, rewinds and ends: the same matches, gaps and retractions as from the full history.
    #[test]
    fn as_the_naive_model(ops in prop::collection::vec(op(), 1..1200), most in 1..5_usize) {
        let mut ours = requests(RULES, most);
        let mut naive =
            Naive { rules: naive_rules(), requests: vec![], most, handles: 0, evicted: 0, beyond: false };
        let mut nanos = 1_u64 << 60;
        for op in ops {
            nanos += 1;
            let (mut got, mut expected) = (Vec::new(), Vec::new());
            let tag = |naive: &Naive, request: u64, ahead: i32, flags: u32| {
                let position = naive.last(request).map_or(7, |last| last.saturating_add(ahead));
                TokenTag { request, position, token: position * 3, flags }
            };
            match op.clone() {
                Op::Token { request, ahead, flags, step, values } => {
                    let tag = tag(&naive, request, ahead, flags);
                    naive.token(&NaiveToken { tag, step, values: Some(values) }, nanos, &mut expected);
                    // As an encoder gives them: active ones alone, strongest first.
                    let mut active: Vec<u32> = (0..4).filter(|i| values[*i as usize] > 0.0).collect();
                    active.sort_by(|a, b| values[*b as usize].total_cmp(&values[*a as usize]));
                    let of: Vec<f32> = active.iter().map(|i| values[*i as usize]).collect();
                    ours.observe(&tag, step, nanos, &active, &of, &mut |m| {
                        for latent in m.latents {
                            assert_eq!(latent.value, values[latent.latent as usize]);
                        }
                        got.push(found(&m));
                    });
                }
                Op::Missing { request, ahead, flags } => {
                    let tag = tag(&naive, request, ahead, flags);
                    naive.token(&NaiveToken { tag, step: 1, values: None }, nanos, &mut expected);
                    ours.missing(&tag, 1, &mut |m| got.push(found(&m)));
                }
                Op::Rewind { request, back } => {
                    let position = naive.last(request).map_or(0, |last| last.saturating_sub(back));
                    naive.rewind(request, position, &mut expected);
                    ours.rewind(request, position, &mut |m| got.push(found(&m)));
                }
                Op::End { request } => {
                    naive.requests.retain(|r| r.request != request);
                    ours.end(request);
                }
                Op::Reload => {
                    let (rules, bytes) = (Arc::clone(ours.rules()), ours.bytes());
                    ours.set_rules(rules).unwrap();
                    prop_assert_eq!(ours.bytes(), bytes);
                    naive.requests.iter_mut().for_each(|r| {
                        *r = NaiveRequest { request: r.request, ..NaiveRequest::default() };
                    });
                }
                Op::Wait(more) => nanos += more,
            }
            if naive.beyond {
                prop_assert!(ours.unretracted() > 0);
                break;
            }
            prop_assert_eq!(&got, &expected, "{:?}", op);
            prop_assert_eq!(ours.alive(), naive.requests.len() as u64);
            prop_assert_eq!(ours.evicted(), naive.evicted);
            prop_assert_eq!(ours.unretracted(), 0);
        }
    }
}

fn token(request: u64, position: i32) -> TokenTag {
    TokenTag { request, position, token: -1, flags: 0 }
}

/// Observes a token at the next positions, `values[i]` being latent 0's value; returns what was emitted.
fn run(requests: &mut Requests, request: u64, positions: std::ops::Range<i32>, value: f32) -> Vec<Found> {
    let mut out = Vec::new();
    for position in positions {
        requests.observe(&token(request, position), 1, 0, &[0], &[value], &mut |m| out.push(found(&m)));
    }
    out
}

const WINDOW: &str = "[[rule]]\nname='w'\nwhen={latent=0, above=0.5}\nwindow={at_least=3, of_last=4}";

#[test]
fn a_rewind_within_reach_leaves_no_trace() {
    let mut ours = requests(WINDOW, 2);
    assert_eq!(run(&mut ours, 1, 0..2, 1.0), []);
    run(&mut ours, 1, 2..2 + REWIND_TOKENS as i32, 0.1);
    ours.rewind(1, 2, &mut |m| panic!("{m:?}"));
    let found = run(&mut ours, 1, 2..3, 1.0);
    assert_eq!(found, [(0, false, 1, token(1, 2), false)], "tokens 0, 1 and 2");
    // One more, and what was before is gone: fewer tokens in the window, and the match that comes says so.
    run(&mut ours, 1, 3..3 + 2 * REWIND_TOKENS as i32, 0.1);
    ours.rewind(1, 3, &mut |m| panic!("{m:?}"));
    assert_eq!(run(&mut ours, 1, 3..5, 1.0), []);
    assert_eq!(run(&mut ours, 1, 5..6, 1.0), [(0, false, 2, token(1, 5), true)]);
    // With the window full of known tokens again, nothing is missing.
    assert!(!run(&mut ours, 1, 6..7, 1.0)[0].4);
}

/// A rule that looks at generated tokens remembers them over a prompt that is longer than what can be rewound.
#[test]
fn a_long_prompt_between_generated_tokens() {
    let text = format!("{WINDOW}\ntokens='generated'");
    for dropped in [None, Some(3), Some(2 * REWIND_TOKENS as i32 + 5)] {
        let mut ours = requests(&text, 1);
        run(&mut ours, 1, 0..2, 1.0);
        let (prompt, end) = (2, 2 + 2 * REWIND_TOKENS as i32 + 10);
        for position in (prompt..end).filter(|position| Some(*position) != dropped) {
            let tag = TokenTag { flags: flags::PROMPT, ..token(1, position) };
            ours.observe(&tag, 1, 0, &[0], &[1.0], &mut |m| panic!("{m:?}"));
        }
        // Within the prompt, and not as far back as the token that is missing.
        ours.rewind(1, end - 2, &mut |m| panic!("{m:?}"));
        let found = run(&mut ours, 1, end - 2..end - 1, 1.0);
        assert_eq!(found, [(0, false, 1, token(1, end - 2), dropped.is_some())]);
    }
}

#[test]
fn matches_beyond_the_last_ones_stand() {
    let mut ours = requests("[[rule]]\nname='p'\nwhen={latent=0, above=0.5}\ncooldown={tokens=1}", 1);
    let many = 2 * RETRACTABLE_MATCHES as i32 + 20;
    assert_eq!(run(&mut ours, 1, 0..many, 1.0).len(), many as usize / 2);
    let mut retracted = Vec::new();
    ours.rewind(1, many - 20, &mut |m| retracted.push(found(&m)));
    assert_eq!((retracted.len(), ours.unretracted()), (10, 0));
    assert!(retracted.iter().all(|m| m.1) && retracted.is_sorted_by(|a, b| a.2 > b.2), "newest first: {retracted:?}");
    ours.rewind(1, 0, &mut |m| retracted.push(found(&m)));
    assert_eq!((retracted.len(), ours.unretracted()), (RETRACTABLE_MATCHES, 1));
    // Nothing is silent because of a match that was taken back.
    assert_eq!(run(&mut ours, 1, 0..1, 1.0).len(), 1);
    ours.rewind(1, 0, &mut |m| retracted.push(found(&m)));
    assert_eq!((retracted.len(), ours.unretracted()), (RETRACTABLE_MATCHES + 1, 1));
}

#[test]
fn more_rules_than_bits_in_a_word() {
    let mut text = String::new();
    for rule in 0..200 {
        text +=
            &format!("[[rule]]\nname='r{rule}'\nwhen={{latent=0, above={rule}}}\nwindow={{at_least=2, of_last=2}}\n");
    }
    let mut ours = requests(&text, 3);
    assert_eq!(run(&mut ours, 9, 0..1, 150.5), []);
    let rules: Vec<_> = run(&mut ours, 9, 1..2, 100.5).iter().map(|m| m.0).collect();
    assert_eq!(rules, (0..101).collect::<Vec<_>>());
}

#[test]
fn cooldown_goes_by_positions_and_time_and_a_clock_set_back_does_not_silence() {
    let mut ours = requests("[[rule]]\nname='c'\nwhen={latent=0, above=0.5}\ncooldown={seconds=1}", 1);
    let mut at = |position, seconds: u64| {
        let mut count = 0;
        ours.observe(&token(1, position), 1, seconds * 1_000_000_000, &[0], &[1.0], &mut |_| count += 1);
        count
    };
    assert_eq!(
        [at(0, 100), at(1, 100), at(2, 101), at(3, 101), at(4, 50), at(5, 50), at(6, 51)],
        [1, 0, 1, 0, 1, 0, 1]
    );
}

#[test]
fn extremes_of_positions() {
    let mut ours = requests(WINDOW, 1);
    let mut out = Vec::new();
    for position in [i32::MIN, -1, 0, i32::MAX, i32::MAX, i32::MIN] {
        ours.observe(&token(1, position), 1, 0, &[0], &[1.0], &mut |m| out.push(found(&m)));
    }
    // The third token completes a match over gaps; the fourth, too; the fifth takes it back and matches again; the last
    // takes back all of them.
    let kinds: Vec<_> = out.iter().map(|m| (m.1, m.2, m.4)).collect();
    let matched = [(false, 1, true), (false, 2, true), (true, 2, true), (false, 3, true)];
    assert_eq!(kinds, [&matched[..], &[(true, 3, true), (true, 1, true)]].concat());
    ours.rewind(1, i32::MIN, &mut |m| panic!("{m:?}"));
    ours.rewind(2, 0, &mut |m| panic!("{m:?}"));
    assert_eq!(ours.alive(), 1);
}

#[test]
fn sizes() {
    let (rules, none) = (site(RULES), site(""));
    assert_eq!(Requests::new(Arc::clone(&rules), 0).unwrap_err().status(), Status::InvalidArgument);
    assert_eq!(Requests::new(Arc::clone(&rules), usize::MAX).unwrap_err().status(), Status::InvalidArgument);
    let ours = Requests::new(Arc::clone(&rules), 100).unwrap();
    assert_eq!(ours.bytes(), Requests::bytes_for(&rules, 100));
    assert!(Requests::bytes_for(&none, 100) < Requests::bytes_for(&rules, 100));
    assert!(Requests::bytes_for(&rules, usize::MAX / 2) > usize::MAX / 4);
    // As documented.
    let window =
        site("[[rule]]\nname='w'\nwhen={latent=0, above=0.5}\nwindow={at_least=3, of_last=32}\ncooldown={tokens=9}");
    let each = Requests::bytes_for(&window, 4096) / 4096;
    assert!((5000..5600).contains(&each), "{each} bytes");
    // What the default of 4,096 requests takes with a handful of rules: tens of megabytes, not hundreds.
    assert!(Requests::bytes_for(&rules, 4096) < 40 << 20, "{}", Requests::bytes_for(&rules, 4096));
}
