use proptest::prelude::*;

use super::*;

fn client(number: u32) -> ClientId {
    ClientId::new(format!("client-{number:03}")).unwrap()
}

fn spec() -> StabilitySpec {
    StabilitySpec { participation: 0.7, dropout: 0.2, crash: 0.25, ..Default::default() }
}

/// Draws of 100 clients in 100 rounds.
fn draws<T>(draw: impl Fn(Round, &ClientId) -> T) -> Vec<T> {
    let clients: Vec<ClientId> = (0..100).map(client).collect();
    let draw = &draw;
    (1..=100).flat_map(|round| clients.iter().map(move |client| draw(round, client))).collect()
}

fn share(flags: &[bool]) -> f64 {
    flags.iter().filter(|flag| **flag).count() as f64 / flags.len() as f64
}

/// Of a sample of 10,000, five standard deviations.
fn tolerance(probability: f64) -> f64 {
    5.0 * (probability * (1.0 - probability) / 10_000.0).sqrt()
}

/// Changing these changes the outcome of every recorded run with faults.
#[test]
fn draws_are_pinned() {
    let available: String =
        (0..20).map(|i| if is_available(&spec(), 7, 3, &client(i)) { 'x' } else { '.' }).collect();
    assert_eq!(available, "..xx...xxxxx..xx.xxx");
    let fates: Vec<String> = (0..12)
        .map(|i| match fate(&spec(), 7, 3, &client(i)) {
            Fate::Answers => "answers".to_owned(),
            Fate::DropsOut => "drops out".to_owned(),
            Fate::Crashes { at } => format!("{at:.6}"),
        })
        .collect();
    assert_eq!(
        fates.join(" "),
        "answers answers drops out 0.145471 drops out answers 0.250755 answers 0.204954 answers answers 0.056672"
    );
    let kinds = [
        DelaySpec::Uniform { min: 1.0, max: 3.0 },
        DelaySpec::Exponential { mean: 2.0 },
        DelaySpec::Lognormal { median: 2.0, sigma: 0.5 },
    ];
    let delays = kinds.map(|kind| {
        let spec = StabilitySpec { delay: kind, ..spec() };
        [0, 1, 2].map(|i| format!("{:.6}", delay(&spec, 7, 3, &client(i)).as_secs_f64())).join(" ")
    });
    assert_eq!(
        delays,
        ["1.360028 2.198717 2.707771", "0.139193 1.061619 5.964968", "1.633775 2.220057 4.597326"]
    );
}

#[test]
fn shares_are_those_of_the_specification() {
    let spec = spec();
    let available = draws(|round, client| is_available(&spec, 1, round, client));
    assert!((share(&available) - 0.7).abs() < tolerance(0.7), "{}", share(&available));
    let fates = draws(|round, client| fate(&spec, 1, round, client));
    let dropped: Vec<bool> = fates.iter().map(|fate| *fate == Fate::DropsOut).collect();
    assert!((share(&dropped) - 0.2).abs() < tolerance(0.2), "{}", share(&dropped));
    // A crash is of one that did not drop out.
    let crashes: Vec<f64> = fates
        .iter()
        .filter_map(|fate| if let Fate::Crashes { at } = fate { Some(*at) } else { None })
        .collect();
    let crashed = crashes.len() as f64 / 10_000.0;
    assert!((crashed - 0.8 * 0.25).abs() < tolerance(0.2), "{crashed}");
    assert!(crashes.iter().all(|at| (0.0..1.0).contains(at)));
    let mean = crashes.iter().sum::<f64>() / crashes.len() as f64;
    assert!((mean - 0.5).abs() < 5.0 * (1.0 / 12.0 / crashes.len() as f64).sqrt(), "{mean}");
}

#[test]
fn nothing_happens_by_default_and_everything_at_one() {
    let calm = StabilitySpec::default();
    assert!(draws(|round, client| is_available(&calm, 1, round, client)).into_iter().all(|yes| yes));
    assert!(draws(|round, client| fate(&calm, 1, round, client)).iter().all(|fate| *fate == Fate::Answers));
    assert!(draws(|round, client| delay(&calm, 1, round, client)).iter().all(Duration::is_zero));
    let gone = StabilitySpec { dropout: 1.0, ..calm };
    assert!(draws(|round, client| fate(&gone, 1, round, client)).iter().all(|fate| *fate == Fate::DropsOut));
}

#[test]
fn delays_have_their_moments() {
    let delays = |kind| {
        let spec = StabilitySpec { delay: kind, ..spec() };
        let mut delays = draws(|round, client| delay(&spec, 1, round, client).as_secs_f64());
        delays.sort_unstable_by(f64::total_cmp);
        let mean = delays.iter().sum::<f64>() / delays.len() as f64;
        let variance = delays.iter().map(|delay| (delay - mean).powi(2)).sum::<f64>() / delays.len() as f64;
        (delays, mean, variance)
    };
    let (all, mean, _) = delays(DelaySpec::Fixed { seconds: 1.5 });
    assert!(all.iter().all(|delay| *delay == 1.5) && mean == 1.5);
    let (all, mean, variance) = delays(DelaySpec::Uniform { min: 1.0, max: 3.0 });
    assert!(all[0] >= 1.0 && all[9_999] <= 3.0);
    assert!((mean - 2.0).abs() < 0.03 && (variance - 1.0 / 3.0).abs() < 0.02, "{mean} {variance}");
    let (_, mean, variance) = delays(DelaySpec::Exponential { mean: 2.0 });
    assert!((mean - 2.0).abs() < 0.1 && (variance - 4.0).abs() < 0.6, "{mean} {variance}");
    let (all, _, _) = delays(DelaySpec::Lognormal { median: 2.0, sigma: 0.5 });
    let logs: Vec<f64> = all.iter().map(|delay| delay.ln()).collect();
    let mean = logs.iter().sum::<f64>() / 10_000.0;
    let variance = logs.iter().map(|log| (log - mean).powi(2)).sum::<f64>() / 10_000.0;
    assert!((mean - 2.0_f64.ln()).abs() < 0.025 && (variance.sqrt() - 0.5).abs() < 0.02, "{mean} {variance}");
}

#[test]
fn no_delay_is_endless() {
    let heavy = StabilitySpec { delay: DelaySpec::Lognormal { median: 1e300, sigma: 1e300 }, ..spec() };
    let delays = draws(|round, client| delay(&heavy, 1, round, client));
    assert!(delays.iter().all(|delay| *delay <= LONGEST_DELAY));
    assert_eq!(delays.iter().max(), Some(&LONGEST_DELAY));
    assert_eq!(absence(&StabilitySpec { restart_seconds: 1e300, ..spec() }), LONGEST_DELAY);
}

proptest! {
    #[test]
    fn the_seed_of_the_specification_comes_first(
        own: u64, run: u64, other: u64, round: Round, number in 0u32..1000,
    ) {
        let (client, delayed) = (client(number), DelaySpec::Exponential { mean: 1.0 });
        let all = |spec: &StabilitySpec, seed| {
            (is_available(spec, seed, round, &client), fate(spec, seed, round, &client), delay(spec, seed, round, &client))
        };
        let free = StabilitySpec { delay: delayed, ..spec() };
        let seeded = StabilitySpec { seed: Some(own), ..free.clone() };
        prop_assert_eq!(all(&seeded, run), all(&seeded, other));
        prop_assert_eq!(all(&seeded, run), all(&free, own));
    }

    #[test]
    fn one_number_moves_no_other_draw(seed: u64, round: Round, number in 0u32..1000) {
        let client = client(number);
        let late = StabilitySpec { delay: DelaySpec::Fixed { seconds: 1.0 }, participation: 0.1, ..spec() };
        prop_assert_eq!(fate(&spec(), seed, round, &client), fate(&late, seed, round, &client));
        // More drop-outs drop the same clients and more.
        let worse = StabilitySpec { dropout: 0.6, ..spec() };
        if fate(&spec(), seed, round, &client) == Fate::DropsOut {
            prop_assert_eq!(fate(&worse, seed, round, &client), Fate::DropsOut);
        }
    }
}
