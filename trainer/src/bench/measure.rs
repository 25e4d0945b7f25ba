//! How contenders are timed: in rounds, each taking its turn in every round, so that whatever else the machine does
//! falls on all of them; medians of all calls.

use super::contender::Contender;
use super::machine::Flusher;
use serde::Serialize;
use std::time::Duration;

/// How much is measured.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Effort {
    /// Turns that each contender has.
    pub rounds: usize,
    /// Seconds of calls in a turn; at least one call.
    pub turn_seconds: f64,
    /// Seconds between turns: threads that still spin for the last contender fall asleep.
    pub pause_seconds: f64,
}

impl Effort {
    /// For figures that are published.
    pub const FULL: Effort = Effort { rounds: 9, turn_seconds: 0.25, pause_seconds: 0.05 };
    /// For a look.
    pub const QUICK: Effort = Effort { rounds: 3, turn_seconds: 0.08, pause_seconds: 0.03 };
    /// Most calls in a turn: more say nothing new.
    const MOST_CALLS: f64 = 400.0;
}

/// Times of one contender in one situation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Times {
    /// Nanoseconds, the median call.
    pub median_ns: f64,
    /// Nanoseconds, the fastest call: what a disturbed machine changes least.
    pub best_ns: f64,
    /// Nanoseconds, the 99th percentile (nearest rank; of fewer than 100 calls, the slowest).
    pub p99_ns: f64,
    /// Calls timed.
    pub calls: usize,
}

impl Times {
    /// Of the nanoseconds of each call.
    #[must_use]
    pub fn of(mut samples: Vec<f64>) -> Option<Self> {
        samples.sort_by(f64::total_cmp);
        let calls = samples.len();
        let rank = |share: f64| ((calls as f64 * share).ceil() as usize).clamp(1, calls) - 1;
        (calls > 0).then(|| Times {
            median_ns: samples[rank(0.5)],
            best_ns: samples[0],
            p99_ns: samples[rank(0.99)],
            calls,
        })
    }
}

/// Times all of `contenders` on `tokens` tokens a call, with caches flushed before every timed call if there is a
/// `flusher`, or hot. Each ends with its times, or with what went wrong.
pub fn measure(
    contenders: &mut [Box<dyn Contender>],
    tokens: usize,
    flusher: Option<&Flusher>,
    effort: Effort,
) -> Vec<Result<Times, String>> {
    let mut turns: Vec<Result<Turn, String>> =
        contenders.iter_mut().map(|contender| Turn::planned(contender.as_mut(), tokens, effort)).collect();
    for _ in 0..effort.rounds {
        for (contender, turn) in contenders.iter_mut().zip(&mut turns) {
            let Ok(planned) = turn else { continue };
            std::thread::sleep(Duration::from_secs_f64(effort.pause_seconds));
            if let Err(error) = planned.take(contender.as_mut(), tokens, flusher) {
                *turn = Err(error);
            }
        }
    }
    let none = || "no call was timed".to_owned();
    turns.into_iter().map(|turn| turn.and_then(|turn| Times::of(turn.samples).ok_or_else(none))).collect()
}

/// A contender's turns.
struct Turn {
    /// Untimed calls before the timed ones: the last contender's data is in the caches.
    warm_up: usize,
    calls: usize,
    samples: Vec<f64>,
}

impl Turn {
    /// How many calls fit into a turn; learnt from some first calls, which warm the contender up.
    fn planned(contender: &mut dyn Contender, tokens: usize, effort: Effort) -> Result<Self, String> {
        let mut first = Vec::new();
        contender.run(tokens, 2, &mut first)?;
        if first.iter().all(|ns| ns * 1e-9 < effort.turn_seconds) {
            contender.run(tokens, 4, &mut first)?;
        }
        let seconds = first.iter().copied().fold(f64::INFINITY, f64::min).max(100.0) * 1e-9;
        let calls = (effort.turn_seconds / seconds).clamp(1.0, Effort::MOST_CALLS) as usize;
        Ok(Turn { warm_up: if seconds > effort.turn_seconds { 1 } else { 2 }, calls, samples: Vec::new() })
    }

    fn take(&mut self, contender: &mut dyn Contender, tokens: usize, flusher: Option<&Flusher>) -> Result<(), String> {
        contender.run(tokens, self.warm_up, &mut Vec::new())?;
        let Some(flusher) = flusher else { return contender.run(tokens, self.calls, &mut self.samples) };
        // A flush takes longer than most calls; some tens of them are enough for a median.
        for _ in 0..self.calls.min(12) {
            flusher.flush();
            contender.run(tokens, 1, &mut self.samples)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::contender::Work;
    use super::*;

    #[test]
    fn medians_and_percentiles() {
        assert_eq!(Times::of(Vec::new()), None);
        assert_eq!(Times::of(vec![3.0]), Some(Times { median_ns: 3.0, best_ns: 3.0, p99_ns: 3.0, calls: 1 }));
        let times = Times::of((1..=200).rev().map(f64::from).collect()).unwrap();
        assert_eq!(times, Times { median_ns: 100.0, best_ns: 1.0, p99_ns: 198.0, calls: 200 });
    }

    /// Counts its calls; fails from some call on.
    struct Fake(usize, usize);

    impl Contender for Fake {
        fn work(&self, _tokens: usize) -> Work {
            Work { bytes: 1, rows: 1, products: 1, unit: None, ours: None }
        }
        fn run(&mut self, _: usize, calls: usize, times: &mut Vec<f64>) -> Result<(), String> {
            self.0 += calls;
            times.extend(std::iter::repeat_n(1e6, calls));
            if self.0 > self.1 { Err("broke".to_owned()) } else { Ok(()) }
        }
    }

    #[test]
    fn one_that_fails_does_not_stop_the_others() {
        let effort = Effort { rounds: 2, turn_seconds: 0.005, pause_seconds: 0.0 };
        let mut contenders: Vec<Box<dyn Contender>> = vec![Box::new(Fake(0, 11)), Box::new(Fake(0, 1000))];
        let times = measure(&mut contenders, 1, None, effort);
        assert_eq!(times[0], Err("broke".to_owned()));
        assert_eq!(times[1], Ok(Times { median_ns: 1e6, best_ns: 1e6, p99_ns: 1e6, calls: 10 }));
    }
}
