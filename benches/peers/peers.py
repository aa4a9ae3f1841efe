#!/usr/bin/env python3
"""Layer normalization by torch and onnxruntime, as multiples of a numpy copy of x.

    python peers.py [--quick] [--threads N]

The shapes, inputs' distribution, rounds and columns are those of `cargo run --release` beside it. A package that is not
installed is named and left out. Every result is checked against numpy in float64 before it is timed. Calls take turns,
and a time is the median of its turns. The copy is of one thread also where the others have two.
"""

import argparse
import math
import statistics
import sys
import time

try:
    import numpy as np
except ImportError:
    sys.exit("numpy is not installed: nothing can be measured without it")

SHAPES = [
    (1, 400), (64, 512), (128, 1000), (64, 2400), (8192, 768), (8192, 1024),
    (2048, 4096), (512, 12288), (16, 65536), (65536, 64), (32768, 256), (4, 1048576),
]
QUICK_SHAPES = [(64, 512), (8192, 768), (16, 65536)]
EPS = 1e-5
# More than the worst rounding here, less than what any mistake in a formula makes.
WRONG = 1e-2


class Torch:
    """`nn.functional.layer_norm`; gradients by autograd, into new tensors."""

    def __init__(self, torch, threads, x, gain, bias):
        torch.set_num_threads(threads)
        self.torch, self.norm = torch, torch.nn.functional.layer_norm
        self.plain = [torch.from_numpy(a) for a in (x, gain, bias)]
        self.tracked = [a.clone().requires_grad_() for a in self.plain]
        self.dy = torch.ones_like(self.plain[0])

    def forward(self):
        x, gain, bias = self.plain
        return self.norm(x, gain.shape, gain, bias, EPS)

    def forward_backward(self):
        x, gain, bias = self.tracked
        return self.torch.autograd.grad(self.norm(x, gain.shape, gain, bias, EPS), self.tracked, self.dy)

    def calls(self):
        yield "torch", "forward", self.forward
        yield "torch", "forward + backward", self.forward_backward


class OnnxRuntime:
    """A model of one `LayerNormalization` node; it has no backward."""

    def __init__(self, onnx, onnxruntime, threads, x, gain, bias):
        from onnx import TensorProto, helper, numpy_helper

        node = helper.make_node("LayerNormalization", ["x", "gain", "bias"], ["y"], axis=-1, epsilon=EPS)
        value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, x.shape)
        parameters = [numpy_helper.from_array(gain, "gain"), numpy_helper.from_array(bias, "bias")]
        graph = helper.make_graph([node], "layer_norm", [value("x")], [value("y")], parameters)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
        onnx.checker.check_model(model)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        bytes_ = model.SerializeToString()
        self.session = onnxruntime.InferenceSession(bytes_, options, providers=["CPUExecutionProvider"])
        self.feed = {"x": x}

    def forward(self):
        return self.session.run(None, self.feed)[0]

    def calls(self):
        yield "onnxruntime", "forward", self.forward


def installed():
    """What makes a contestant of (threads, x, gain, bias), for each package that is there."""
    makers = []
    try:
        import torch

        print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}")
        makers.append(lambda *case: Torch(torch, *case))
    except (ImportError, OSError, ValueError) as why:  # the last two: its CUDA libraries are missing
        print(f"torch left out: {why}")
    try:
        import onnx
        import onnxruntime

        print(f"onnxruntime {onnxruntime.__version__}, onnx {onnx.__version__}")
        makers.append(lambda *case: OnnxRuntime(onnx, onnxruntime, *case))
    except ImportError as why:
        print(f"onnxruntime left out: {why}")
    print(f"numpy {np.__version__}, Python {sys.version.split()[0]}\n")
    return makers


def oracle(x, gain, bias):
    """y and (dx, dgain, dbias) for dy = 1, in float64."""
    x, gain, bias = (a.astype(np.float64) for a in (x, gain, bias))
    xhat = x - x.mean(axis=1, keepdims=True)
    rstd = 1 / np.sqrt((xhat**2).mean(axis=1, keepdims=True) + EPS)
    xhat *= rstd
    dx = rstd * (gain - gain.mean() - xhat * (gain * xhat).mean(axis=1, keepdims=True))
    return xhat * gain + bias, (dx, xhat.sum(axis=0), np.full_like(bias, len(x)))


def error(got, right):
    """The largest error relative to the largest of the row."""
    got, right = np.atleast_2d(np.asarray(got)), np.atleast_2d(right)
    return (np.abs(got - right).max(axis=1) / np.abs(right).max(axis=1)).max()


def check(name, call, function, right):
    y, gradients = right
    pairs = [(function(), y)] if call == "forward" else list(zip(function(), gradients))
    errors = [error(got, right) for got, right in pairs]
    if not all(e < WRONG for e in errors):
        sys.exit(f"{name}, {call}: off by {errors}")
    return " ".join(f"{e:.0e}" for e in errors)


def medians(calls, rounds, turn, pause):
    """The median seconds of each call; they take turns of about `turn` seconds."""
    repeats, every, times = [], [], [[] for _ in calls]
    for call in calls:
        call()
        start = time.perf_counter()
        call()
        one = max(time.perf_counter() - start, 1e-7)
        repeats.append(max(1, int(turn / one)))
        every.append(min(max(1, round(one / turn)), math.ceil(rounds / 5)))
    for number in range(rounds):
        for i, call in enumerate(calls):
            if number % every[i]:
                continue
            time.sleep(pause)
            start = time.perf_counter()
            for _ in range(repeats[i]):
                call()
            times[i].append((time.perf_counter() - start) / repeats[i])
    return [statistics.median(t) for t in times]


def measure(makers, threads, quick):
    rounds, turn = (9, 0.010) if quick else (15, 0.020)
    # Pools of two libraries spin for a while after a call: the next one should not pay for that.
    pause = 0.005 if threads > 1 else 0.0
    random = np.random.default_rng(1)
    lines = []
    for rows, features in QUICK_SHAPES if quick else SHAPES:
        x = random.standard_normal((rows, features), dtype=np.float32)
        gain = 1 + random.standard_normal(features, dtype=np.float32)
        bias = random.standard_normal(features, dtype=np.float32)
        right, y = oracle(x, gain, bias), np.zeros_like(x)
        calls = [call for make in makers for call in make(threads, x, gain, bias).calls()]
        errors = [check(*call, right) for call in calls]
        copy, *times = medians([lambda: np.copyto(y, x)] + [call[2] for call in calls], rounds, turn, pause)
        cells = [f"{t / copy:.2f}" for t in times]
        lines.append(f"| {rows} × {features} | {copy * 1e6:.2f} | {' | '.join(cells)} | {' | '.join(errors)} |")
        print(f"{rows} × {features} done", file=sys.stderr)
    head = [f"{name}, {call} × copy" for name, call, _ in calls] + [
        f"{name}, error of {'y' if call == 'forward' else 'dx, dgain, dbias'}" for name, call, _ in calls
    ]
    print(f"## {threads} thread{'s' if threads > 1 else ''}\n")
    print(f"| rows × features | copy µs | {' | '.join(head)} |\n|---|---|{'---|' * len(head)}")
    print("\n".join(lines) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few shapes, less time")
    parser.add_argument("--threads", type=int, help="default: one, then two")
    arguments = parser.parse_args()
    makers = installed()
    if not makers:
        sys.exit("neither torch nor onnxruntime is installed")
    for threads in [arguments.threads] if arguments.threads else [1, 2]:
        measure(makers, threads, arguments.quick)


if __name__ == "__main__":
    main()
