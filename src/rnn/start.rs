//! First weights.

use rand::Rng;
use rand_distr::{Distribution, StandardNormal};

use crate::element::Element;

/// How weights are drawn at first. Gains start at 1, biases at 0, whatever is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Start {
    /// Every weight uniform in ±0.1, as are the input weights in the code that the paper's authors published.
    Uniform,
    /// Input weights uniform in ±√(6/(input + hidden)) (Glorot and Bengio 2010); the recurrent weights of each gate are a
    /// random orthogonal matrix, drawn evenly from all (Stewart 1980): some hidden³ multiplications a gate, on one thread.
    Orthogonal,
}

impl Start {
    /// Fills the weights of a cell, `[input, gates·hidden]` and `[hidden, gates·hidden]`.
    pub(crate) fn draw<T: Element>(
        self,
        hidden: usize,
        input_weight: &mut [T],
        recurrent_weight: &mut [T],
        columns: usize,
        rng: &mut (impl Rng + ?Sized),
    ) {
        let mut uniform = |weights: &mut [T], bound: f64| {
            weights.iter_mut().for_each(|weight| *weight = T::nearest((2.0 * rng.random::<f64>() - 1.0) * bound));
        };
        match self {
            Self::Uniform => {
                uniform(input_weight, 0.1);
                uniform(recurrent_weight, 0.1);
            }
            Self::Orthogonal => {
                let input = input_weight.len() / columns.max(1);
                uniform(input_weight, (6.0 / (input + hidden).max(1) as f64).sqrt());
                for gate in 0..columns / hidden.max(1) {
                    let block = orthogonal(hidden, rng);
                    for (row, block_row) in recurrent_weight.chunks_exact_mut(columns).zip(block.chunks_exact(hidden)) {
                        let gate = &mut row[gate * hidden..(gate + 1) * hidden];
                        gate.iter_mut().zip(block_row).for_each(|(weight, &x)| *weight = T::nearest(x));
                    }
                }
            }
        }
    }
}

/// A random orthogonal matrix: the product of a reflection for each dimension, each about a random direction among the
/// dimensions that are left.
fn orthogonal(n: usize, rng: &mut (impl Rng + ?Sized)) -> Vec<f64> {
    let mut matrix = vec![0.0; n * n];
    (0..n).for_each(|i| matrix[i * n + i] = 1.0);
    let mut dots = vec![0.0; n];
    for first in (0..n).rev() {
        let mut direction: Vec<f64> = (first..n).map(|_| StandardNormal.sample(rng)).collect();
        let length = direction.iter().map(|x| x * x).sum::<f64>().sqrt();
        let sign = if direction[0] < 0.0 { -1.0 } else { 1.0 };
        // The reflection that takes `direction` to the axis `first`, up to the sign.
        direction[0] += sign * length;
        let norm = direction.iter().map(|x| x * x).sum::<f64>();
        if norm == 0.0 {
            continue;
        }
        dots.fill(0.0);
        for (row, &x) in matrix[first * n..].chunks_exact(n).zip(&direction) {
            dots.iter_mut().zip(row).for_each(|(dot, &m)| *dot += x * m);
        }
        for (row, &x) in matrix[first * n..].chunks_exact_mut(n).zip(&direction) {
            let factor = 2.0 * x / norm;
            row.iter_mut().zip(&dots).for_each(|(m, &dot)| *m -= factor * dot);
        }
        // Without the sign, the last diagonal element would always be −1.
        matrix[first * n..(first + 1) * n].iter_mut().for_each(|m| *m *= -sign);
    }
    matrix
}

#[cfg(test)]
mod tests {
    use ndarray_rand::rand::{SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    fn recurrent_blocks_are_orthogonal() {
        let (n, gates) = (9, 3);
        let (mut input_weight, mut recurrent_weight) = (vec![0.0; 4 * gates * n], vec![0.0; n * gates * n]);
        let mut rng = StdRng::seed_from_u64(5);
        Start::Orthogonal.draw(n, &mut input_weight, &mut recurrent_weight, gates * n, &mut rng);
        let at = |gate: usize, i: usize, j: usize| recurrent_weight[i * gates * n + gate * n + j];
        for gate in 0..gates {
            for a in 0..n {
                for b in 0..n {
                    let dot: f64 = (0..n).map(|j| at(gate, a, j) * at(gate, b, j)).sum();
                    let right = if a == b { 1.0 } else { 0.0 };
                    assert!((dot - right).abs() < 1e-13, "gate {gate}, rows {a} and {b}: {dot}");
                }
            }
        }
        assert_ne!(at(0, 0, 0), at(1, 0, 0));
        let bound = (6.0 / 13.0f64).sqrt();
        assert!(input_weight.iter().all(|w| w.abs() <= bound) && input_weight.iter().any(|w| w.abs() > 0.8 * bound));
    }

    /// A random rotation of one dimension is 1 or −1, each half of the time.
    #[test]
    fn orthogonal_matrices_have_either_sign() {
        let mut rng = StdRng::seed_from_u64(1);
        let sum: f64 = (0..1000).map(|_| orthogonal(1, &mut rng)[0]).sum();
        assert!(sum.abs() < 150.0, "{sum}");
        let diagonal: f64 = (0..1000).map(|_| orthogonal(3, &mut rng)[8].signum()).sum();
        assert!(diagonal.abs() < 150.0, "{diagonal}");
    }
}
