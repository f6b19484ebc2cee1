//! Tests of counts, statistics and histogram. Expected numbers were computed with Python.

use super::*;

fn runtimes(seconds: impl IntoIterator<Item = f64>) -> Runtimes {
    let mut runtimes = Runtimes::default();
    for second in seconds {
        runtimes.record(Duration::from_secs_f64(second));
    }
    runtimes
}

fn assert_close(value: f64, expected: f64, relative: f64) {
    let allowed = (expected.abs() * relative).max(1e-9);
    assert!(
        (value - expected).abs() <= allowed,
        "{value} is not {expected}"
    );
}

/// A small seeded generator (a linear congruential one) of numbers between 0 and 1.
fn random_numbers(seed: u64) -> impl Iterator<Item = f64> {
    let mut state = seed;
    std::iter::repeat_with(move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        as_float(state >> 33) / as_float(1 << 31)
    })
}

#[test]
fn tally_reads_as_the_python_pilot_writes_it() {
    let tally = Tally {
        received: 10,
        started: 9,
        succeeded: 5,
        failed: 2,
        given_back: 1,
        ..Tally::default()
    };
    assert_eq!(
        tally.to_string(),
        "2 Pending Tasks 7 Finished Tasks (5 succeeded, 2 failed)"
    );
}

#[test]
fn statistics_equal_those_of_python() {
    let summary = runtimes([1.5, 2.5, 2.0, 10.0]).summary().unwrap();
    assert_eq!(summary.count, 4);
    assert_close(summary.mean, 4.0, 1e-12);
    assert_close(summary.median, 2.25, 1e-3);
    assert_close(summary.variance, 12.125, 1e-12);
    assert_close(summary.standard_deviation, 3.482_097_069_296_032_5, 1e-12);
    assert_close(summary.min, 1.5, 0.0);
    assert_close(summary.max, 10.0, 0.0);
    assert_eq!(
        runtimes([1.5, 2.5, 2.0, 10.0])
            .summary()
            .unwrap()
            .to_string(),
        "(count: 4)\n(mean: 4.00)\n(median: 2.25)\n(variance: 12.12)\n\
         (standard deviation: 3.48)\n(min: 1.50)\n(max: 10.00)\n(range: 8.50)"
    );
}

#[test]
fn variance_of_long_run_times_that_hardly_differ_is_not_lost_to_cancellation() {
    let summary = runtimes([1e6, 1e6 + 0.001, 1e6 + 0.002]).summary().unwrap();
    assert_close(summary.standard_deviation, 0.000_816_496_58, 1e-3);
}

#[test]
fn median_is_within_a_thousandth_of_the_true_one() {
    for (seed, count) in [(1, 1), (2, 2), (3, 3), (4, 999), (5, 20_000)] {
        let mut values: Vec<f64> = random_numbers(seed)
            .map(|x| 0.001 * 10_f64.powf(6.0 * x))
            .take(count)
            .collect();
        let median = runtimes(values.iter().copied()).summary().unwrap().median;
        values.sort_by(f64::total_cmp);
        let true_one = f64::midpoint(values[(count - 1) / 2], values[count / 2]);
        assert_close(median, true_one, 1e-3);
    }
}

#[test]
fn memory_is_flat_over_any_number_and_length_of_run_times() {
    let mut runtimes = Runtimes::default();
    runtimes.record(Duration::MAX);
    runtimes.record(Duration::ZERO);
    let slots = runtimes.micros.distinct_values();
    for n in 0..200_000 {
        runtimes.record(Duration::from_micros(n * n));
    }
    assert_eq!(runtimes.micros.distinct_values(), slots);
    assert!(slots * 8 < 450 * 1024, "{slots} slots");
    assert_eq!(runtimes.summary().unwrap().count, 200_002);
}

#[test]
fn no_successful_task_is_said_in_words() {
    let report = Runtimes::default().report();
    assert_eq!(report[1..], ["no finished successful tasks"]);
}

#[test]
fn few_run_times_give_a_bar_each() {
    assert_eq!(runtimes([3.24]).histogram(), ["[3.20, 3.30)         | # 1"]);
    assert_eq!(
        runtimes([1.0, 2.0, 2.1, 4.5]).histogram(),
        [
            "[1.00, 2.00)         | # 1",
            "[2.00, 3.00)         | ## 2",
            "[3.00, 4.00)         | [none]",
            "[4.00, 5.00)         | # 1",
        ]
    );
}

#[test]
fn empty_ranges_share_a_line() {
    let mut values = vec![0.5; 30];
    values.push(19.2);
    let lines = runtimes(values).histogram();
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(lines[1].ends_with("| [none]"), "{lines:?}");
}

#[test]
fn long_bars_are_scaled_and_rare_run_times_still_seen() {
    let mut values = vec![1.0; 10_000];
    values.push(5.0);
    let lines = runtimes(values).histogram();
    assert!(
        lines[0].ends_with(&format!("| {} 10000", "#".repeat(50))),
        "{lines:?}"
    );
    assert!(lines[lines.len() - 1].ends_with("| # 1"), "{lines:?}");
}

#[test]
fn any_run_times_give_at_most_twenty_bins_that_hold_them_all() {
    for seed in 0..400 {
        let mut random = random_numbers(seed);
        let mut next = || random.next().unwrap_or_default();
        let scale = 10_f64.powf(10.0 * next() - 4.0);
        let offset = scale * 10_f64.powf(6.0 * next() - 3.0);
        let count = to_count(10_f64.powf(4.0 * next()));
        let data = runtimes((0..count).map(|_| offset + scale * next().powi(4)));
        let lines = data.histogram();
        assert!((1..=20).contains(&lines.len()), "seed {seed}: {lines:#?}");
        let counted: usize = lines
            .iter()
            .filter_map(|line| line.rsplit(' ').next()?.parse::<usize>().ok())
            .sum();
        assert_eq!(counted, count, "seed {seed}: {lines:#?}");
        let edges: Vec<&str> = lines
            .iter()
            .map(|line| &line[..line.find(" |").unwrap()])
            .collect();
        let starts: std::collections::HashSet<&str> = edges
            .iter()
            .map(|range| range.split(',').next().unwrap())
            .collect();
        assert_eq!(
            starts.len(),
            edges.len(),
            "seed {seed}: equal edges in {lines:#?}"
        );
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a size for a test, between 1 and 10,000"
)]
fn to_count(number: f64) -> usize {
    number as usize
}
