//! Calls that take turns, so that what else happens on the machine happens to all of them.
//!
//! A ratio of two medians of one such run says more than two times of two runs.

use std::time::{Duration, Instant};

/// How long to measure.
#[derive(Clone, Copy)]
pub(crate) struct Effort {
    rounds: usize,
    /// A turn repeats its call until it has taken about that long; at least once.
    turn: Duration,
}

impl Effort {
    /// 0.3 s a call, and five turns of those that take longer.
    pub(crate) const FULL: Self = Self { rounds: 15, turn: Duration::from_millis(20) };
    pub(crate) const QUICK: Self = Self { rounds: 9, turn: Duration::from_millis(10) };
}

/// One of the calls, as a turn repeats it.
struct Player {
    repeats: u32,
    /// It sits out until this many rounds have passed: 1 unless a single call is longer than a turn.
    every: usize,
    seconds: Vec<f64>,
}

/// The median seconds of `call(0)`, `call(1)`, … `call(calls − 1)`.
pub(crate) fn medians(calls: usize, effort: Effort, mut call: impl FnMut(usize)) -> Vec<f64> {
    let mut players: Vec<Player> = (0..calls).map(|i| Player::new(effort, || call(i))).collect();
    for round in 0..effort.rounds {
        for (i, player) in players.iter_mut().enumerate() {
            if round % player.every == 0 {
                player.turn(|| call(i));
            }
        }
    }
    players.into_iter().map(Player::median).collect()
}

impl Player {
    /// Two calls tell how many make a turn; the second is warm.
    fn new(effort: Effort, mut call: impl FnMut()) -> Self {
        call();
        let start = Instant::now();
        call();
        let one = start.elapsed().as_secs_f64().max(1e-9);
        let turn = effort.turn.as_secs_f64();
        Self {
            repeats: (turn / one).clamp(1.0, 1e6) as u32,
            every: ((one / turn).round() as usize).clamp(1, effort.rounds.div_ceil(5)),
            seconds: Vec::new(),
        }
    }

    fn turn(&mut self, mut call: impl FnMut()) {
        let start = Instant::now();
        for _ in 0..self.repeats {
            call();
        }
        self.seconds.push(start.elapsed().as_secs_f64() / f64::from(self.repeats));
    }

    fn median(mut self) -> f64 {
        self.seconds.sort_by(f64::total_cmp);
        self.seconds[self.seconds.len() / 2]
    }
}
