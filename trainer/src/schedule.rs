//! The learning rate as a function of the step.

/// Linear warm-up, then a cosine down to the final rate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// The highest rate.
    pub peak: f64,
    /// The rate at the end.
    pub last: f64,
    /// Share of the steps that warm up.
    pub warmup: f64,
    /// Number of steps.
    pub steps: u64,
}

impl Schedule {
    /// The rate of step `step`, counted from 0.
    #[must_use]
    pub fn rate(&self, step: u64) -> f32 {
        let warmup = (self.warmup * self.steps as f64).ceil().max(1.0);
        let at = step as f64;
        let rate = if at < warmup {
            self.peak * (at + 1.0) / warmup
        } else {
            let progress = ((at - warmup) / (self.steps as f64 - warmup).max(1.0)).min(1.0);
            self.last + (self.peak - self.last) * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
        };
        rate as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rises_then_falls() {
        let schedule = Schedule { peak: 1e-3, last: 1e-6, warmup: 0.1, steps: 100 };
        assert_eq!(schedule.rate(0), 1e-4);
        assert_eq!(schedule.rate(9), 1e-3);
        assert!((10..99).all(|t| schedule.rate(t + 1) < schedule.rate(t)));
        assert!(schedule.rate(99) < 3e-6);
        // a run of one step
        assert_eq!(Schedule { steps: 1, ..schedule }.rate(0), 1e-3);
    }
}
