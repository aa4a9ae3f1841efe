#!/usr/bin/env python3
"""Layer normalization by this crate, torch, oneDNN and onnxruntime, torch's batch normalization, and loops of numpy.

    python peers.py [--quick] [--threads N]

The shapes, x's distribution and rounds are those of `cargo run --release` beside it. Forward and forward + backward are
multiples of a copy of x, backward of a stream, which reads x and dy and writes dx; behind it, in brackets, of this
crate's time from a thread of its pool. Both loops are of one thread also where the others have two. What is not installed
or not built is named and left out. Every result is checked against numpy in float64 before it is timed. Calls take turns
on the same arrays, and a time is the median of its turns.
"""

import argparse
import ctypes
import importlib.util
import math
import os
import statistics
import subprocess
import sys
import time
from ctypes import byref, c_float, c_int, c_int64, c_size_t, c_void_p
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from typing import Callable, NamedTuple

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


class Call(NamedTuple):
    """What is timed. `function` returns [y] if `part` is "forward", else (dx, dgain, dbias)."""

    peer: str
    norm: str  # "layer norm" or "batch norm"
    part: str  # "forward", "backward" or "forward + backward"
    function: Callable
    many: Callable | None = None  # the same so many times, for who has a loop of its own

    def __str__(self):
        return f"{self.peer}, {self.norm} {self.part}"


OURS, OUTSIDE = "layernorm", "layernorm, from outside of the pool"


class Ours:
    """layernorm into the caller's memory, from a thread of a pool or, without one, from this thread."""

    def __init__(self, module, name, pool, x, dy, gain, bias):
        self.name, self.x, self.dy = name, x, dy
        # NaN, so that what no call writes is found.
        self.y, self.dx = np.full_like(x, np.nan), np.full_like(x, np.nan)
        self.layer = module.Layer(gain, bias, EPS, pool)
        self.forward()  # backward needs what it keeps

    def forward(self, times=1):
        self.layer.forward(self.x, self.y, times)
        return [self.y]

    def backward(self, times=1):
        self.layer.backward(self.x, self.dy, self.dx, times)
        return self.dx, *self.layer.gradients()

    def calls(self):
        yield Call(self.name, "layer norm", "forward", self.forward, self.forward)
        yield Call(self.name, "layer norm", "backward", self.backward, self.backward)


class Torch:
    """`nn.functional`'s norms, gradients by autograd, and by what autograd calls for them; all into new tensors.

    Batch normalization is that of training, without running statistics.
    """

    def __init__(self, torch, threads, x, dy, gain, bias):
        torch.set_num_threads(threads)
        self.nn, self.aten, self.grad = torch.nn.functional, torch.ops.aten, torch.autograd.grad
        self.dy = torch.from_numpy(dy)
        self.plain = [torch.from_numpy(a) for a in (x, gain, bias)]
        self.tracked = [torch.from_numpy(a).requires_grad_() for a in (x, gain, bias)]

    def layer_norm(self, x, gain, bias):
        return self.nn.layer_norm(x, gain.shape, gain, bias, EPS)

    def batch_norm(self, x, gain, bias):
        return self.nn.batch_norm(x, None, None, gain, bias, training=True, eps=EPS)

    def layer_norm_backward(self):
        x, gain, bias = self.plain
        _, *saved = self.aten.native_layer_norm(x, gain.shape, gain, bias, EPS)
        rest = *saved, gain, bias, [True] * 3
        return lambda: self.aten.native_layer_norm_backward(self.dy, x, gain.shape, *rest)

    def batch_norm_backward(self):
        x, gain, bias = self.plain
        _, *saved = self.aten.native_batch_norm(x, gain, bias, None, None, True, 0, EPS)
        rest = None, None, *saved, True, EPS, [True] * 3
        return lambda: self.aten.native_batch_norm_backward(self.dy, x, gain, *rest)

    def each(self, name, norm, backward):
        yield Call("torch", name, "forward", lambda: [norm(*self.plain)])
        yield Call("torch", name, "backward", backward)
        yield Call("torch", name, "forward + backward", lambda: self.grad(norm(*self.tracked), self.tracked, self.dy))

    def calls(self):
        yield from self.each("layer norm", self.layer_norm, self.layer_norm_backward())
        if len(self.dy) > 1:  # torch refuses a batch of one
            yield from self.each("batch norm", self.batch_norm, self.batch_norm_backward())


# From oneDNN's headers.
dnnl_cpu, dnnl_stream_default_flags, DNNL_MAX_NDIMS = 1, 1, 12
dnnl_f32, dnnl_a, dnnl_ab = 3, 2, 3
dnnl_forward_training, dnnl_backward = 64, 128
dnnl_use_scale, dnnl_use_shift = 2, 4
DNNL_ARG_SRC, DNNL_ARG_DST, DNNL_ARG_MEAN, DNNL_ARG_VARIANCE, DNNL_ARG_SCALE, DNNL_ARG_SHIFT = 1, 17, 49, 50, 51, 52
DNNL_ARG_DIFF_SRC, DNNL_ARG_DIFF_DST, DNNL_ARG_DIFF_SCALE, DNNL_ARG_DIFF_SHIFT = 129, 145, 255, 256


class dnnl_exec_arg_t(ctypes.Structure):
    _fields_ = [("arg", c_int), ("memory", c_void_p)]


class OneDnn:
    """The C API of oneDNN, into memory that is there. Its objects are never destroyed: they are small."""

    def __init__(self, library, x, dy, gain, bias):
        self.library, self.kept = library, []
        # NaN, so that what no call writes is found.
        y, dx, dgain, dbias, mean, variance = (np.full_like(a, np.nan) for a in (x, x, gain, bias, x[:, 0], x[:, 0]))
        both = {DNNL_ARG_SRC: x, DNNL_ARG_SCALE: gain, DNNL_ARG_SHIFT: bias}
        both |= {DNNL_ARG_MEAN: mean, DNNL_ARG_VARIANCE: variance}
        results = {DNNL_ARG_DIFF_SRC: dx, DNNL_ARG_DIFF_SCALE: dgain, DNNL_ARG_DIFF_SHIFT: dbias}

        self.engine = self.make("engine_create", dnnl_cpu, c_size_t(0))
        self.stream = self.make("stream_create", self.engine, dnnl_stream_default_flags)
        like_x, like_mean = self.layout(x), self.layout(mean)
        options = like_mean, c_float(EPS), dnnl_use_scale | dnnl_use_shift
        describe = lambda way, *rest: self.make(f"layer_normalization_{way}_primitive_desc_create", self.engine, *rest)
        forward = describe("forward", dnnl_forward_training, like_x, like_x, *options, None)
        backward = describe("backward", dnnl_backward, like_x, like_x, like_x, *options, forward, None)
        self.forward = self.call(forward, both | {DNNL_ARG_DST: y}, [y])
        self.backward = self.call(backward, both | {DNNL_ARG_DIFF_DST: dy} | results, [dx, dgain, dbias])
        self.forward()  # backward reads mean and variance

    def do(self, name, *arguments):
        status = getattr(self.library, f"dnnl_{name}")(*arguments)
        if status:
            raise RuntimeError(f"dnnl_{name}: status {status}")

    def make(self, name, *arguments):
        made = c_void_p()
        self.do(name, byref(made), *arguments)
        return made

    def layout(self, array):
        dims = (c_int64 * DNNL_MAX_NDIMS)(*array.shape)
        tag = {1: dnnl_a, 2: dnnl_ab}[array.ndim]
        return self.make("memory_desc_create_with_tag", array.ndim, dims, dnnl_f32, tag)

    def memory(self, array):
        self.kept.append(array)  # oneDNN has its address only
        return self.make("memory_create", self.layout(array), self.engine, c_void_p(array.ctypes.data))

    def call(self, description, arrays, results):
        primitive = self.make("primitive_create", description)
        bound = [dnnl_exec_arg_t(arg, self.memory(array)) for arg, array in arrays.items()]
        arguments = primitive, self.stream, len(bound), (dnnl_exec_arg_t * len(bound))(*bound)

        def run():
            self.do("primitive_execute", *arguments)
            self.do("stream_wait", self.stream)
            return results

        return run

    def calls(self):
        yield Call("oneDNN", "layer norm", "forward", self.forward)
        yield Call("oneDNN", "layer norm", "backward", self.backward)


class OnnxRuntime:
    """A model of one `LayerNormalization` node; it has no backward."""

    def __init__(self, onnx, onnxruntime, threads, x, _, gain, bias):
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
        self.feed, self.y = {"x": x}, np.full_like(x, np.nan)
        self.binding = self.session.io_binding()
        for bind, name, array in (self.binding.bind_input, "x", x), (self.binding.bind_output, "y", self.y):
            bind(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)

    def forward(self):
        return self.session.run(None, self.feed)

    def forward_into(self):
        self.session.run_with_iobinding(self.binding)
        return [self.y]

    def calls(self):
        yield Call("onnxruntime", "layer norm", "forward", self.forward)
        yield Call("onnxruntime, caller's memory", "layer norm", "forward", self.forward_into)


def load_ours():
    """What `cargo build --release --package layernorm-numpy` leaves in this folder's target."""
    path = Path(__file__).resolve().parent / "target/release/liblayernorm_numpy.so"
    loader = ExtensionFileLoader("layernorm_numpy", str(path))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_onednn():
    """From the loader's path, or else from where pip puts it. The C API of 2.x, another one, is in `libdnnl.so.2`."""
    try:
        library = ctypes.CDLL("libdnnl.so.3")
    except OSError:
        library = ctypes.CDLL(f"{sys.prefix}/lib/libdnnl.so.3")
    if not hasattr(library, "omp_get_max_threads"):
        raise OSError("its threads are not OpenMP's, their number cannot be set")
    library.dnnl_version.restype = ctypes.POINTER(c_int * 3)
    print(f"oneDNN {'.'.join(map(str, library.dnnl_version().contents))}")
    return library


def installed():
    """What makes a contestant of (threads, x, dy, gain, bias), for each package that is there."""
    makers = []
    try:
        module = load_ours()
        makers.append(lambda threads, *case: Ours(module, OURS, threads, *case))
        makers.append(lambda _, *case: Ours(module, OUTSIDE, None, *case))  # its threads: RAYON_NUM_THREADS
    except ImportError as why:
        print(f"layernorm left out: {why}")
    try:
        import torch

        print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}")
        makers.append(lambda *case: Torch(torch, *case))
    except (ImportError, OSError, ValueError) as why:  # the last two: its CUDA libraries are missing
        print(f"torch left out: {why}")
    try:
        library = load_onednn()
        makers.append(lambda _, *case: OneDnn(library, *case))  # its threads: OMP_NUM_THREADS
    except OSError as why:
        print(f"oneDNN left out: {why}")
    try:
        import onnx
        import onnxruntime

        print(f"onnxruntime {onnxruntime.__version__}, onnx {onnx.__version__}")
        makers.append(lambda *case: OnnxRuntime(onnx, onnxruntime, *case))
    except ImportError as why:
        print(f"onnxruntime left out: {why}")
    print(f"numpy {np.__version__}, Python {sys.version.split()[0]}\n")
    return makers


def oracle(axis, x, dy, gain, bias):
    """In float64; `axis` is that of the mean: 1 in layer, 0 in batch normalization."""
    x, dy, gain, bias = (a.astype(np.float64) for a in (x, dy, gain, bias))
    mean = lambda a: a.mean(axis=axis, keepdims=True)
    xhat = x - mean(x)
    rstd = 1 / np.sqrt(mean(xhat**2) + EPS)
    xhat *= rstd
    dxhat = dy * gain
    dx = rstd * (dxhat - mean(dxhat) - xhat * mean(dxhat * xhat))
    return {"y": xhat * gain + bias, "dx": dx, "dgain": (dy * xhat).sum(axis=0), "dbias": dy.sum(axis=0)}


def error(got, right):
    """The largest error relative to the largest of the row."""
    got, right = np.atleast_2d(np.asarray(got)), np.atleast_2d(right)
    return (np.abs(got - right).max(axis=1) / np.abs(right).max(axis=1)).max()


def check(call, right):
    names = ["y"] if call.part == "forward" else ["dx", "dgain", "dbias"]
    errors = {name: error(got, right[name]) for name, got in zip(names, call.function(), strict=True)}
    if not all(e < WRONG for e in errors.values()):
        sys.exit(f"{call}: off by {errors}")
    return errors


def repeated(function):
    """A function of a number: so many calls."""

    def many(times):
        for _ in range(times):
            function()

    return many


def medians(calls, rounds, turn, pause):
    """The median seconds of one of each of `calls`, functions of a number; they take turns of about `turn` seconds."""
    repeats, every, times = [], [], [[] for _ in calls]
    for call in calls:
        call(1)
        start = time.perf_counter()
        call(1)
        one = max(time.perf_counter() - start, 1e-7)
        repeats.append(max(1, int(turn / one)))
        every.append(min(max(1, round(one / turn)), math.ceil(rounds / 5)))
    for number in range(rounds):
        for i, call in enumerate(calls):
            if number % every[i]:
                continue
            time.sleep(pause)
            start = time.perf_counter()
            call(repeats[i])
            times[i].append((time.perf_counter() - start) / repeats[i])
    return [statistics.median(t) for t in times]


def print_table(lines):
    """Lines of the same keys, which are the head."""
    for cells in [lines[0].keys(), ["---"] * len(lines[0]), *(line.values() for line in lines)]:
        print(f"| {' | '.join(cells)} |")
    print()


def measure(makers, threads, quick):
    rounds, turn = (9, 0.010) if quick else (15, 0.020)
    # Pools of two libraries spin for a while after a call: the next one should not pay for that.
    pause = 0.005 if threads > 1 else 0.0
    random = np.random.default_rng(1)
    normal = lambda *shape: random.standard_normal(shape, dtype=np.float32)
    tables, worst = {}, {}
    for rows, features in QUICK_SHAPES if quick else SHAPES:
        case = x, dy, _, _ = normal(rows, features), normal(rows, features), 1 + normal(features), normal(features)
        right = {"layer norm": oracle(1, *case), "batch norm": oracle(0, *case)}
        calls = [call for make in makers for call in make(threads, *case).calls()]
        for call in calls:
            errors = worst.setdefault(str(call), {})
            for name, e in check(call, right[call.norm]).items():
                errors[name] = max(e, errors.get(name, 0))
        y, dx = np.zeros_like(x), np.zeros_like(x)
        loops = [lambda: np.copyto(y, x), lambda: np.add(x, dy, out=dx)]
        many = [*map(repeated, loops), *(call.many or repeated(call.function) for call in calls)]
        copy, stream, *times = medians(many, rounds, turn, pause)
        ours = {call.part: seconds for call, seconds in zip(calls, times) if call.peer == OURS}
        size = f"{rows} × {features}"
        shape = {"rows × features": size, "copy µs": f"{copy * 1e6:.2f}", "stream µs": f"{stream * 1e6:.2f}"}
        for call, seconds in zip(calls, times):
            name, loop = ("stream", stream) if call.part == "backward" else ("copy", copy)
            line = tables.setdefault(call.norm, {}).setdefault(size, dict(shape))
            line[f"{call} × {name}"] = f"{seconds / loop:.2f}"
            if call.norm == "layer norm" and call.peer != OURS and call.part in ours:
                line[f"{call} × {name}"] += f" ({seconds / ours[call.part]:.2f})"
        print(f"{size} done", file=sys.stderr)
    print(f"## {threads} thread{'s' if threads > 1 else ''}\n")
    for lines in tables.values():
        print_table(list(lines.values()))
    cell = lambda errors, name: f"{errors[name]:.0e}" if name in errors else ""
    names = ["y", "dx", "dgain", "dbias"]
    print_table([{"largest error": call} | {name: cell(e, name) for name in names} for call, e in worst.items()])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few shapes, less time")
    parser.add_argument("--threads", type=int, help="default: one, then two")
    arguments = parser.parse_args()
    if arguments.threads is None:
        run = lambda threads: subprocess.call([sys.executable, __file__, *sys.argv[1:], "--threads", threads])
        sys.exit(run("1") or run("2"))
    # They are read when a library is loaded or first used: hence before, and a process for each number of threads.
    os.environ["OMP_NUM_THREADS"] = os.environ["RAYON_NUM_THREADS"] = str(arguments.threads)
    makers = installed()
    if not makers:
        sys.exit("layernorm is not built, and none of torch, oneDNN and onnxruntime is installed")
    measure(makers, arguments.threads, arguments.quick)


if __name__ == "__main__":
    main()
