"""Reference values of the recurrent cells, made by PyTorch in float64.

    python recurrent.py          writes *.txt beside this script and prints its checks

Needs torch (CPU is enough). One file per cell:

    rnn       h = tanh(h' W_h + x W_x + b)   torch.nn.RNN, converted to the paper's layout
    lstm      eq. 17-19   torch.nn.LSTM, converted likewise
    gru       eq. 23-25   torch.nn.GRU, whose biases the paper does not have, converted likewise
    ln_rnn    eq. 4       LN-RNN, f = tanh
    ln_lstm   eq. 20-22   LN-LSTM
    ln_gru    eq. 26-28   LN-GRU
    draw      eq. 29-31   LSTM with LN on the way out of the cell

The last four are the paper's equations written in torch with gradients by autograd; each is there
once more as *_masked, where a step of a sequence with mask 0 keeps its state (and y repeats it).

Equations: Ba, Kiros, Hinton, Layer Normalization, arXiv:1607.06450. LN adds eps = 1e-5 to σ².

A line is one array, row-major, and reads back to the same float64:

    name dim0 dim1 ... : value value ...

Lines with # are comments. States are rows, so a product is h @ W_h with W_h [hidden, gates*hidden].
Gates are stacked f, i, o, g (LSTM) and z, r (GRU).

    x, dx [steps, batch, input]     y, dy [steps, batch, hidden]     mask [steps, batch]
    h_0, c_0 initial and h_T, c_T final states, their gradients dh_0 ...   [batch, hidden]

y holds the carried h of each step. Every gradient dx, dh_0, dc_0, dW_x ... is that of

    loss = Σ y ⊙ dy + Σ h_T ⊙ dh_T + Σ c_T ⊙ dc_T,   with dy, dh_T and dc_T given,

so dy of the last step and dh_T both arrive at the same h. Inputs have three decimals.
"""

from pathlib import Path

import torch
from torch.nn.functional import layer_norm

STEPS, BATCH, INPUT, HIDDEN = 5, 3, 4, 6
HIDDEN_RNN = 17  # a vector and more
EPS = 1e-5
SEED = 160706450

# One column a sequence: full, padded behind, padded at both ends.
MASK = [[1, 1, 0], [1, 1, 1], [1, 1, 1], [1, 0, 1], [1, 0, 0]]


# The paper's equations. p holds the parameters; a cell maps x and the state to the next state.


def LN(z, gain, bias=None):
    return layer_norm(z, z.shape[-1:], gain, bias, EPS)


def rnn(p, x, h):  # without a norm
    return ((h @ p["W_h"] + x @ p["W_x"] + p["b"]).tanh(),)


def lstm(p, x, h, c):  # eq. 17-19
    f, i, o, g = (h @ p["W_h"] + x @ p["W_x"] + p["b"]).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def draw(p, x, h, c):  # eq. 29-31: LN on the way out of the cell only
    f, i, o, g = (h @ p["W_h"] + x @ p["W_x"] + p["b"]).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * LN(c, p["a3"], p["b3"]).tanh(), c


def ln_lstm(p, x, h, c):  # eq. 20-22; b stands for b + b1 + b2
    f, i, o, g = (LN(h @ p["W_h"], p["a1"]) + LN(x @ p["W_x"], p["a2"]) + p["b"]).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * LN(c, p["a3"], p["b3"]).tanh(), c


def gru(p, x, h):  # eq. 23-25, and the biases of eq. 26-28
    z, r = (h @ p["W_h"] + x @ p["W_x"] + p["b"]).chunk(2, -1)
    candidate = (x @ p["W"] + p["b3"] + r.sigmoid() * (h @ p["U"] + p["b4"])).tanh()
    return ((1 - z.sigmoid()) * h + z.sigmoid() * candidate,)


def ln_gru(p, x, h):  # eq. 26-28; b stands for b1 + b2
    z, r = (LN(h @ p["W_h"], p["a1"]) + LN(x @ p["W_x"], p["a2"]) + p["b"]).chunk(2, -1)
    candidate = LN(x @ p["W"], p["a3"], p["b3"]) + r.sigmoid() * LN(h @ p["U"], p["a4"], p["b4"])
    return ((1 - z.sigmoid()) * h + z.sigmoid() * candidate.tanh(),)


def ln_rnn(p, x, h):  # eq. 4 with f = tanh: one LN over the sum
    return (LN(h @ p["W_h"] + x @ p["W_x"], p["gain"], p["bias"]).tanh(),)


def run(cell, p, x, state, mask=None):
    y = []
    for t in range(len(x)):
        new = cell(p, x[t], *state)
        if mask is not None:
            m = mask[t][:, None]
            new = [m * s + (1 - m) * old for s, old in zip(new, state)]
        state = new
        y.append(state[0])
    return torch.stack(y), state


# Inputs, gradients, files.


def rand(*shape, centre=0.0, spread=0.5):
    return (centre + spread * torch.randn(shape)).round(decimals=3)


def inputs(names, hidden=HIDDEN):
    """x, the initial state and what arrives from the loss; names are those of the states."""
    given = {"x": rand(STEPS, BATCH, INPUT, spread=1.0)}
    given |= {n + "_0": rand(BATCH, hidden) for n in names}
    arrives = {"dy": rand(STEPS, BATCH, hidden, spread=1.0)}
    arrives |= {f"d{n}_T": rand(BATCH, hidden, spread=1.0) for n in names}
    return given, arrives


def parameters(shapes):
    """Weights and biases around 0, gains (`a...`, `gain`) around 1."""
    return {n: rand(*s, centre=1.0, spread=0.25) if n[0] in "ag" else rand(*s) for n, s in shapes.items()}


def gradients(wanted, out, arrives):
    """d + name of every wanted array; out is y followed by the final states."""
    loss = sum((o * d).sum() for o, d in zip(out, arrives.values(), strict=True))
    found = torch.autograd.grad(loss, list(wanted.values()))
    return {"d" + n: g for n, g in zip(wanted, found)}


def literal(cell, given, p, arrives, mask=None):
    """Outputs and gradients of the equations above."""
    leaf = {n: a.detach().clone().requires_grad_() for n, a in (given | p).items()}
    states = [n for n in given if n != "x"]
    y, state = run(cell, leaf, leaf["x"], [leaf[n] for n in states], mask)
    out = {"y": y} | {n.replace("_0", "_T"): s for n, s in zip(states, state)}
    return out | gradients(leaf, out.values(), arrives)


def write(name, title, arrays):
    lines = [f"# torch {torch.__version__} float64, recurrent.py, seed {SEED}: {title}"]
    lines += ["# loss = sum(y * dy) + sum of final state * its d..._T; layout: see recurrent.py"]
    for n, a in arrays.items():
        shape = " ".join(map(str, a.shape))
        lines.append(f"{n} {shape} : " + " ".join(map(repr, a.detach().flatten().tolist())))
    Path(__file__).with_name(name + ".txt").write_text("\n".join(lines) + "\n")


def check(name, ours, theirs):
    assert ours.keys() == theirs.keys()
    worst = {n: (ours[n] - theirs[n]).abs().max().item() for n in ours}
    at = max(worst, key=worst.get)
    print(f"{name}: equations against torch.nn, {len(worst)} arrays, worst |difference| {worst[at]:.1e} in {at}")
    assert worst[at] < 1e-12


# torch.nn stacks gates as rows of [gates*hidden, input] and in another order. Both conversions are
# permutations with signs, so that a gradient converts like its weight.


def lstm_layout(w):
    i, f, g, o = w.chunk(4)
    return torch.cat([f, i, o, g]).t()


def gru_layout(w):
    """(z, r) and the candidate. torch has h = (1 - z)*candidate + z*h', the paper's gate is σ(-z)."""
    r, z, n = w.chunk(3)
    return torch.cat([-z, r]).t(), n.t()


def library(net, convert, given, arrives):
    """Parameters in the paper's layout; outputs and gradients of a torch.nn module."""
    with torch.no_grad():
        for w in net.parameters():
            w.copy_(rand(*w.shape))
    leaf = {n: a.clone().requires_grad_() for n, a in given.items()}
    x, *states = leaf.values()
    first = [s[None] for s in states]
    y, last = net(x, tuple(first) if len(first) > 1 else first[0])
    last = [s[0] for s in (last if len(first) > 1 else [last])]
    out = {"y": y} | {n.replace("_0", "_T"): s for n, s in zip(list(leaf)[1:], last)}
    weights = dict(net.named_parameters())
    d = gradients(leaf | weights, out.values(), arrives)
    dp = convert({n: d.pop("d" + n) for n in weights}, gradient=True)
    return convert(weights), out | d | {"d" + n: g for n, g in dp.items()}


def bias(w, gradient):
    """Two biases that only act as their sum: values add, gradients are the same."""
    return w["bias_ih_l0"] if gradient else w["bias_ih_l0"] + w["bias_hh_l0"]


def rnn_parameters(w, gradient=False):
    return {"W_x": w["weight_ih_l0"].t(), "W_h": w["weight_hh_l0"].t(), "b": bias(w, gradient)}


def lstm_parameters(w, gradient=False):
    matrices = {"W_x": lstm_layout(w["weight_ih_l0"]), "W_h": lstm_layout(w["weight_hh_l0"])}
    return matrices | {"b": lstm_layout(bias(w, gradient))}


def gru_parameters(w, gradient=False):
    """Only those of the gates act as their sum."""
    W_x, W = gru_layout(w["weight_ih_l0"])
    W_h, U = gru_layout(w["weight_hh_l0"])
    (b, _), (_, b3), (_, b4) = map(gru_layout, (bias(w, gradient), w["bias_ih_l0"], w["bias_hh_l0"]))
    return {"W_x": W_x, "W_h": W_h, "W": W, "U": U, "b": b, "b3": b3, "b4": b4}


def main():
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)

    for name, cell, Net, hidden, convert, states, title in [
        ("rnn", rnn, torch.nn.RNN, HIDDEN_RNN, rnn_parameters, "h", "torch.nn.RNN, tanh"),
        ("lstm", lstm, torch.nn.LSTM, HIDDEN, lstm_parameters, "hc", "torch.nn.LSTM, eq. 17-19"),
        ("gru", gru, torch.nn.GRU, HIDDEN, gru_parameters, "h", "torch.nn.GRU, eq. 23-25 with biases"),
    ]:
        torch.manual_seed(SEED)
        given, arrives = inputs(states, hidden)
        p, found = library(Net(INPUT, hidden), convert, given, arrives)
        check(name, literal(cell, given, p, arrives), found)
        write(name, title, given | p | arrives | found)

    I, H = INPUT, HIDDEN
    gates = lambda n: {"W_x": (I, n * H), "W_h": (H, n * H), "b": (n * H,)}
    both = lambda n: {"a1": (n * H,), "a2": (n * H,)}
    last = {"a3": (H,), "b3": (H,)}
    candidate = {"W": (I, H), "U": (H, H), **last, "a4": (H,), "b4": (H,)}
    sums = {"W_x": (I, H), "W_h": (H, H), "gain": (H,), "bias": (H,)}
    for name, cell, shapes, states, title in [
        ("ln_rnn", ln_rnn, sums, "h", "LN-RNN, eq. 4, tanh"),
        ("ln_lstm", ln_lstm, gates(4) | both(4) | last, "hc", "LN-LSTM, eq. 20-22"),
        ("ln_gru", ln_gru, gates(2) | both(2) | candidate, "h", "LN-GRU, eq. 26-28"),
        ("draw", draw, gates(4) | last, "hc", "DRAW LSTM, eq. 29-31"),
    ]:
        torch.manual_seed(SEED)
        given, arrives = inputs(states)
        p = parameters(shapes)
        title += ", eps 1e-5"
        write(name, title, given | p | arrives | literal(cell, given, p, arrives))
        mask = torch.tensor(MASK, dtype=torch.float64)
        found = literal(cell, given, p, arrives, mask)
        write(name + "_masked", title + ", padding mask", given | {"mask": mask} | p | arrives | found)


if __name__ == "__main__":
    main()
