//! The learning rate of every step.

use std::f64::consts::PI;

use fedpeft_protocol::{
    Round,
    run::{ScheduleSpec, Span, TrainingSpec, Warmup},
};

/// The learning rates of one client in one round; formulas: [`ScheduleSpec`].
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    spec: ScheduleSpec,
    learning_rate: f64,
    /// Steps of the span before this round's first.
    before: f64,
    warmup: f64,
    total: f64,
}

impl Schedule {
    /// For a client that makes `steps` optimizer steps in each round, in round `round` (counted from 1) of
    /// `rounds`. A round beyond the last counts as the last.
    pub fn new(training: &TrainingSpec, steps: u64, round: Round, rounds: Round) -> Self {
        let spec = training.schedule;
        // Counts are f64 from the start: exact as far as steps can be made, and without overflow beyond.
        let steps = steps as f64;
        let (before, total) = match spec.span() {
            Span::Round => (0.0, steps),
            Span::Run => (steps * f64::from(round.saturating_sub(1)), steps * f64::from(rounds.max(round))),
        };
        let warmup = match spec.warmup() {
            Warmup::Steps(steps) => f64::from(steps),
            Warmup::Fraction(fraction) => (fraction * total).ceil(),
        };
        Self { spec, learning_rate: training.learning_rate, before, warmup, total }
    }

    /// Learning rate of the round's optimizer step `step`, counted from 0.
    pub fn learning_rate(&self, step: u64) -> f64 {
        self.learning_rate * self.factor(self.before + step as f64)
    }

    fn factor(&self, step: f64) -> f64 {
        if step < self.warmup {
            return step / self.warmup;
        }
        let progress = ((step - self.warmup) / (self.total - self.warmup).max(1.0)).min(1.0);
        let (decay, floor) = match self.spec {
            ScheduleSpec::Constant { .. } => return 1.0,
            ScheduleSpec::Linear { floor, .. } => (1.0 - progress, floor),
            ScheduleSpec::Cosine { floor, .. } => (0.5 * (1.0 + (PI * progress).cos()), floor),
        };
        floor + (1.0 - floor) * decay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(schedule: ScheduleSpec, steps: u64, round: Round, rounds: Round) -> Vec<f64> {
        let training = TrainingSpec { learning_rate: 0.5, schedule, ..Default::default() };
        let schedule = Schedule::new(&training, steps, round, rounds);
        (0..steps).map(|step| schedule.learning_rate(step)).collect()
    }

    fn same(got: &[f64], wanted: &[f64]) {
        assert_eq!(got.len(), wanted.len());
        for (got, wanted) in got.iter().zip(wanted) {
            assert!((got - wanted).abs() < 1e-15, "{got} is not {wanted}");
        }
    }

    #[test]
    fn constant_warms_up_and_stays() {
        let plain = ScheduleSpec::default();
        same(&rates(plain, 3, 2, 5), &[0.5; 3]);
        let warm = ScheduleSpec::Constant { warmup: Warmup::Steps(4), span: Span::Round };
        same(&rates(warm, 6, 2, 5), &[0.0, 0.125, 0.25, 0.375, 0.5, 0.5]);
        // 5 % of 60 steps: the first round's first three.
        let once = ScheduleSpec::Constant { warmup: Warmup::Fraction(0.05), span: Span::Run };
        same(&rates(once, 6, 1, 10), &[0.0, 0.5 / 3.0, 1.0 / 3.0, 0.5, 0.5, 0.5]);
        same(&rates(once, 6, 2, 10), &[0.5; 6]);
    }

    #[test]
    fn linear_falls_to_its_floor() {
        let linear = |floor| ScheduleSpec::Linear { warmup: Warmup::Steps(2), floor, span: Span::Round };
        same(&rates(linear(0.0), 6, 1, 1), &[0.0, 0.25, 0.5, 0.375, 0.25, 0.125]);
        same(&rates(linear(0.2), 6, 1, 1), &[0.0, 0.25, 0.5, 0.4, 0.3, 0.2]);
    }

    #[test]
    fn cosine_follows_the_formula() {
        let warmup = Warmup::Fraction(0.1);
        let got = rates(ScheduleSpec::Cosine { warmup, floor: 0.0, span: Span::Round }, 20, 1, 1);
        for (step, rate) in [(0, 0.0), (1, 0.25), (2, 0.5), (11, 0.25)] {
            assert!((got[step] - rate).abs() < 1e-15, "{step}: {}", got[step]);
        }
        let last = 0.25 * (1.0 + (PI * 17.0 / 18.0).cos());
        assert!((got[19] - last).abs() < 1e-15, "{}", got[19]);
    }

    #[test]
    fn a_run_is_one_schedule_over_its_rounds() {
        let spans = [Span::Run, Span::Round];
        let cosine = |span| ScheduleSpec::Cosine { warmup: Warmup::Steps(3), floor: 0.1, span };
        let [run, round] = spans.map(cosine);
        let pieces: Vec<f64> = (1..=4).flat_map(|r| rates(run, 5, r, 4)).collect();
        same(&pieces, &rates(round, 20, 1, 1));
        // A client with other steps is equally far at the start of a round.
        let flat = |span| ScheduleSpec::Linear { warmup: Warmup::Steps(0), floor: 0.0, span };
        assert_eq!(rates(flat(Span::Run), 5, 3, 4)[0], rates(flat(Span::Run), 7, 3, 4)[0]);
    }

    #[test]
    fn impossible_places_still_have_a_rate() {
        let run = ScheduleSpec::Linear { warmup: Warmup::Steps(9), floor: 0.0, span: Span::Run };
        for (round, rounds) in [(0, 0), (1, 0), (u32::MAX, 0), (u32::MAX, u32::MAX)] {
            assert!(rates(run, 3, round, rounds).iter().all(|rate| (0.0..=0.5).contains(rate)));
        }
        let training = TrainingSpec { schedule: run, ..Default::default() };
        assert!(Schedule::new(&training, u64::MAX, 1, 1).learning_rate(u64::MAX).is_finite());
    }
}
