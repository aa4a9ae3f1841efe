//! Ratios that mean something on a machine where other things happen: all from one run, call beside call.

use std::hint::black_box;
use std::time::{Duration, Instant};

/// Turns of each call.
const TURNS: usize = 25;

/// A turn repeats its call until it has taken about that long.
const TURN: Duration = Duration::from_millis(2);

/// The median seconds of each call. Calls take turns; one that takes very long has a turn in eight. A turn starts with a
/// call that is not timed: the next finds in the caches what it left there, not what another call did.
pub(crate) fn medians<C, const N: usize>(case: &mut C, calls: [fn(&mut C); N]) -> [f64; N] {
    let once = calls.map(|call| {
        call(case);
        let start = Instant::now();
        call(case);
        start.elapsed()
    });
    let mut samples = [const { Vec::new() }; N];
    for turn in 0..TURNS {
        for ((call, samples), once) in calls.iter().zip(&mut samples).zip(&once) {
            if turn % 8 == 0 || *once < 20 * TURN {
                let repeats = (TURN.as_nanos() / once.as_nanos().max(1)).clamp(1, 100_000) as u32;
                call(black_box(case));
                let start = Instant::now();
                for _ in 0..repeats {
                    call(black_box(case));
                }
                samples.push(start.elapsed().as_secs_f64() / f64::from(repeats));
            }
        }
    }
    samples.map(|mut samples| {
        samples.sort_by(f64::total_cmp);
        samples[samples.len() / 2]
    })
}
