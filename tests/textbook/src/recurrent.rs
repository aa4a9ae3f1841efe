//! The paper's recurrent equations, one sequence at a time, one plain loop each, in `f64`.
//!
//! Parameters come by name from a closure. Weights are `[in, out]`, row-major; the gates of the LSTM stand in the order
//! f, i, o, g, the columns of the GRU in the order z, r, candidate. Biases that the paper writes twice are there once.

use crate::forward;

/// What a cell is asked to do.
pub struct Sequence<'a> {
    /// Elements of x.
    pub input: usize,
    /// Elements of h.
    pub hidden: usize,
    /// A row each step.
    pub x: Vec<Vec<f64>>,
    /// Whether a step is there; a padded one keeps the state.
    pub mask: Vec<bool>,
    /// h⁰
    pub h: Vec<f64>,
    /// c⁰
    pub c: Vec<f64>,
    /// Added to σ².
    pub eps: f64,
    /// The parameter of that name.
    pub parameter: &'a dyn Fn(&str) -> Vec<f64>,
}

/// h of every step, and the last c.
pub type States = (Vec<Vec<f64>>, Vec<f64>);

fn sigma(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

impl Sequence<'_> {
    /// Columns `from .. from + columns` of x·W, W with `all` columns.
    fn product(x: &[f64], w: &[f64], all: usize, from: usize, columns: usize) -> Vec<f64> {
        let mut product = vec![0.0; columns];
        for j in 0..columns {
            for i in 0..x.len() {
                product[j] += x[i] * w[i * all + from + j];
            }
        }
        product
    }

    fn get(&self, name: &str) -> Vec<f64> {
        (self.parameter)(name)
    }

    /// LN(a; gain, bias = 0)
    fn norm(&self, a: &[f64], gain: &[f64]) -> Vec<f64> {
        forward(a, Some(gain), None, self.eps).y
    }

    fn run(&self, step: impl Fn(&[f64], &[f64], &[f64]) -> (Vec<f64>, Vec<f64>)) -> States {
        let (mut h, mut c, mut all) = (self.h.clone(), self.c.clone(), Vec::new());
        for t in 0..self.x.len() {
            if self.mask[t] {
                (h, c) = step(&self.x[t], &h, &c);
            }
            all.push(h.clone());
        }
        (all, c)
    }

    /// a = W_h h′ + W_x x; h = tanh(a + b), or with `normalized` eq. 4: h = tanh(LN(a; g, b)).
    pub fn rnn(&self, normalized: bool) -> States {
        let n = self.hidden;
        let (w_x, w_h, b) = (self.get("input_weight"), self.get("recurrent_weight"), self.get("bias"));
        self.run(|x, h, _| {
            let (v, u) = (Self::product(x, &w_x, n, 0, n), Self::product(h, &w_h, n, 0, n));
            let mut a: Vec<f64> = (0..n).map(|i| u[i] + v[i]).collect();
            if normalized {
                a = self.norm(&a, &self.get("gain"));
            }
            ((0..n).map(|i| (a[i] + b[i]).tanh()).collect(), Vec::new())
        })
    }

    /// Eq. 17–19; with `products` eq. 20, with `cell` eq. 22 or 31 for the output.
    pub fn lstm(&self, products: bool, cell: bool) -> States {
        let n = self.hidden;
        let (w_x, w_h, b) = (self.get("input_weight"), self.get("recurrent_weight"), self.get("bias"));
        self.run(|x, h, c| {
            let mut v = Self::product(x, &w_x, 4 * n, 0, 4 * n);
            let mut u = Self::product(h, &w_h, 4 * n, 0, 4 * n);
            if products {
                u = self.norm(&u, &self.get("recurrent_gain"));
                v = self.norm(&v, &self.get("input_gain"));
            }
            let p: Vec<f64> = (0..4 * n).map(|i| u[i] + v[i] + b[i]).collect();
            let (f, i, o, g) = (&p[..n], &p[n..2 * n], &p[2 * n..3 * n], &p[3 * n..]);
            let c: Vec<f64> = (0..n).map(|j| sigma(f[j]) * c[j] + sigma(i[j]) * g[j].tanh()).collect();
            let mut out = c.clone();
            if cell {
                let beta = self.get("cell_bias");
                out = self.norm(&c, &self.get("cell_gain"));
                (0..n).for_each(|j| out[j] += beta[j]);
            }
            ((0..n).map(|j| sigma(o[j]) * out[j].tanh()).collect(), c)
        })
    }

    /// Eq. 23–25 with biases, or with `normalized` eq. 26–28.
    pub fn gru(&self, normalized: bool) -> States {
        let n = self.hidden;
        let (w_x, w_h) = (self.get("input_weight"), self.get("recurrent_weight"));
        let (b, b_u) = (self.get("bias"), self.get("recurrent_bias"));
        self.run(|x, h, _| {
            let mut v_zr = Self::product(x, &w_x, 3 * n, 0, 2 * n);
            let mut u_zr = Self::product(h, &w_h, 3 * n, 0, 2 * n);
            let mut v_k = Self::product(x, &w_x, 3 * n, 2 * n, n);
            let mut u_k = Self::product(h, &w_h, 3 * n, 2 * n, n);
            if normalized {
                let (gain_v, gain_u) = (self.get("input_gain"), self.get("recurrent_gain"));
                (v_zr, v_k) = (self.norm(&v_zr, &gain_v[..2 * n]), self.norm(&v_k, &gain_v[2 * n..]));
                (u_zr, u_k) = (self.norm(&u_zr, &gain_u[..2 * n]), self.norm(&u_k, &gain_u[2 * n..]));
            }
            let mut next = vec![0.0; n];
            for i in 0..n {
                let z = sigma(u_zr[i] + v_zr[i] + b[i]);
                let r = sigma(u_zr[n + i] + v_zr[n + i] + b[n + i]);
                let k = (v_k[i] + b[2 * n + i] + r * (u_k[i] + b_u[i])).tanh();
                next[i] = (1.0 - z) * h[i] + z * k;
            }
            (next, Vec::new())
        })
    }
}
