//! The yardstick: x copied into memory that is already there.

use std::hint::black_box;

use crate::contestant::Input;

/// From that many elements on a second thread copies a half: waking it costs tens of microseconds, a copy of a MiB too.
const WORTH_A_THREAD: usize = 1 << 18;

pub(crate) struct Copy {
    x: Vec<f32>,
    y: Vec<f32>,
}

impl Copy {
    pub(crate) fn new(input: &Input) -> Self {
        Self { x: input.x.clone(), y: vec![0.0; input.x.len()] }
    }

    pub(crate) fn run(&mut self) {
        let Self { x, y } = self;
        if rayon::current_num_threads() == 1 || x.len() < WORTH_A_THREAD {
            y.copy_from_slice(x);
        } else {
            let half = x.len() / 2;
            let (first, second) = y.split_at_mut(half);
            rayon::join(|| first.copy_from_slice(&x[..half]), || second.copy_from_slice(&x[half..]));
        }
        black_box(y);
    }
}
