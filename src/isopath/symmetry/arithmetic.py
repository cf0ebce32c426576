"""What operators that compute do to axes: elementwise, contractions, normalisation, reductions, pooling."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor
from torch.utils._pytree import tree_leaves

from isopath.symmetry.axes import Axis, fixed, product, split, unify
from isopath.symmetry.labels import Call, Label, Labels, rule
from isopath.symmetry.views import parts


@rule("add", "copy", "where", "masked_fill", "_prelu_kernel", "lerp", "addcmul", "addcdiv", "fill", "nan_to_num",
      "hardswish", "hardsigmoid", "hardtanh", "elu", "celu", "leaky_relu", "mish", "silu", "gelu", "softplus",
      "softshrink", "hardshrink", "threshold", "log_sigmoid_forward", "clamp", "relu6")  # fmt: skip
def pointwise(see: Labels, call: Call) -> list[Label]:
    """Axes that broadcast against each other move together."""
    out = call.out[0]
    tensors = [t for t in tree_leaves(dict(call.args)) if isinstance(t, Tensor)]
    return [joined(see, tensors, out, call.name)] * len(call.out)


def joined(see: Labels, tensors: Iterable[Tensor], out: Tensor, reason: str) -> Label:
    """The label of tensors broadcast to `out`."""
    label: list[Axis | None] = [None] * out.ndim
    for tensor in tensors:
        shift = out.ndim - tensor.ndim
        for k, axis in enumerate(see.of(tensor)):
            if axis.size == out.shape[k + shift] and axis.size != 1:
                found = label[k + shift]
                if found is None:
                    label[k + shift] = axis
                else:
                    unify(found, axis, reason)
    return [Axis(size) if axis is None else axis for axis, size in zip(label, out.shape)]


@rule("glu")
def glu(see: Labels, call: Call) -> list[Label]:
    """Two halves of an axis, one the gate of the other."""
    label, dim = list(see.of(call["self"])), call["dim"]
    dim %= len(label)
    half = label[dim].size // 2
    first, second = parts(label, dim, (half, half), call.name)
    for a, b in zip(first, second):
        unify(a, b, call.name)
    return [first]


# --- contractions ---------------------------------------------------------------------------------------------------


PAIRS = {
    "mm": ("self", "mat2"), "bmm": ("self", "mat2"), "mv": ("self", "vec"), "dot": ("self", "tensor"),
    "addmm": ("mat1", "mat2"), "baddbmm": ("batch1", "batch2"), "addmv": ("mat", "vec"),
}  # fmt: skip


@rule(*PAIRS)
def contraction(see: Labels, call: Call) -> list[Label]:
    """The last axis of one moves with the last but one (or only) axis of the other; batches move together."""
    operator = call.name.removeprefix("aten.")
    x, y = (see.of(call[name]) for name in PAIRS[operator])
    unify(x[-1], y[-2] if len(y) > 1 else y[-1], call.name)
    for a, b in zip(x[:-2], y[:-2]):
        unify(a, b, call.name)
    label = x[:-1] + (y[-1:] if len(y) > 1 else [])
    see.couple([x[-1]], label[len(x[:-2]) :])
    if operator in ("addmm", "baddbmm", "addmv"):
        see.put(call.out[0], label)
        return [joined(see, [call.out[0], call["self"]], call.out[0], call.name)]
    return [label]


@rule("convolution", "mkldnn_convolution", "_convolution")
def convolution(see: Labels, call: Call) -> list[Label]:
    """Channels contract with the weight's, group by group; windows fix the plane."""
    x, w, out = see.of(call["input"]), see.of(call["weight"]), call.out[0]
    groups, transposed = call["groups"], call.args.get("transposed") or False
    for axis in (*x[2:], *w[2:]):
        axis.fix("a convolution's window")
    if groups == 1:
        entering, leaving = (w[0], w[1]) if transposed else (w[1], w[0])
        unify(x[1], entering, call.name)
        see.couple([x[1]], [leaving])
        channels = leaving
    else:
        outer, inner = split(x[1], (groups, x[1].size // groups), call.name)
        first, second = split(w[0], (groups, w[0].size // groups), call.name)
        unify(outer, first, call.name)
        entering, leaving = (second, w[1]) if transposed else (w[1], second)
        leaving.find().parents |= {outer.find()} if leaving.find().kind == "atom" else set()
        unify(inner, entering, call.name)
        see.couple([inner], [leaving, outer])
        channels = product([outer, leaving])
    if call.args.get("bias") is not None:
        unify(see.of(call["bias"])[0], channels, call.name)
    return [[x[0], channels, *(fixed(size, "a convolution's window") for size in out.shape[2:])]]


# --- along an axis --------------------------------------------------------------------------------------------------


def _along(label: Label, dims: object) -> set[int]:
    if dims is None or dims == []:
        return set(range(len(label)))
    return {d % len(label) for d in ([dims] if isinstance(dims, int) else dims)}  # type: ignore[attr-defined]


@rule("_softmax", "_log_softmax", "_safe_softmax", "softmax", "log_softmax")
def softmax(see: Labels, call: Call) -> list[Label]:
    """Each entry sees all others along the axis, alike."""
    label = see.of(call["self"])
    chosen = _along(label, call["dim"])
    see.couple([label[k] for k in chosen], [axis for k, axis in enumerate(label) if k not in chosen])
    return [label]


@rule("sum", "mean", "amax", "amin", "var", "std", "prod", "linalg_vector_norm", "norm", "logsumexp", "any", "all")
def reduction(see: Labels, call: Call) -> list[Label]:
    """An axis that is summed over, or the like, is gone."""
    label = see.of(call["self"])
    chosen = _along(label, call.args.get("dim"))
    rest = [axis for k, axis in enumerate(label) if k not in chosen]
    see.couple([label[k] for k in chosen], rest)
    if call.args.get("keepdim"):
        return [[Axis(1) if k in chosen else axis for k, axis in enumerate(label)]]
    return [rest]


@rule("max", "min")
def extreme(see: Labels, call: Call) -> list[Label]:
    """The largest entry along an axis and where it is: a place is a number, so the axis is fixed."""
    if "other" in call.args:
        return pointwise(see, call)
    for k in _along(see.of(call["self"]), call.args.get("dim")):
        see.of(call["self"])[k].fix(call.name)
    return reduction(see, call) * len(call.out)


@rule("native_layer_norm", "layer_norm", "_fused_rms_norm", "rms_norm")
def layer_norm(see: Labels, call: Call) -> list[Label]:
    """Scales move with the normalised axes."""
    label, count = see.of(call["input"]), len(call["normalized_shape"])
    for name in ("weight", "bias"):
        if call.args.get(name) is not None:
            for a, b in zip(label[-count:], see.of(call[name])):
                unify(a, b, call.name)
    see.couple(label[-count:], label[:-count])
    return [label, *(label[:-count] + [Axis(1)] * count for _ in call.out[1:])]


@rule("native_group_norm", "group_norm")
def group_norm(see: Labels, call: Call) -> list[Label]:
    """Channels in groups: groups among themselves, channels within each."""
    label, groups = see.of(call["input"]), call.args.get("group", call.args.get("num_groups"))
    for name in ("weight", "bias"):
        if call.args.get(name) is not None:
            unify(label[1], see.of(call[name])[0], call.name)
    outer, inner = split(label[1], (groups, label[1].size // groups), call.name)
    for axis in label[2:]:
        axis.fix(call.name)
    see.couple([inner], [outer])
    return [label, *([label[0], outer] for _ in call.out[1:])]


@rule("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm",
      "_batch_norm_no_update", "miopen_batch_norm", "batch_norm")  # fmt: skip
def batch_norm(see: Labels, call: Call) -> list[Label]:
    """Scales, shifts and running statistics move with the channels."""
    label = see.of(call["input"])
    for name in ("weight", "bias", "running_mean", "running_var"):
        tensor = call.args.get(name)
        if tensor is not None:
            found = see.statistics(tensor) if name.startswith("running") else see.of(tensor)
            unify(label[1], found[0], call.name)
    return [label, *([Axis(size) for size in tensor.shape] for tensor in call.out[1:])]


@rule("max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool2d", "avg_pool3d", "avg_pool1d",
      "_adaptive_avg_pool2d",
      "_adaptive_avg_pool3d", "adaptive_max_pool2d", "upsample_nearest1d", "upsample_nearest2d", "upsample_bilinear2d",
      "upsample_bicubic2d", "upsample_linear1d", "_upsample_nearest_exact2d", "max_pool2d", "adaptive_avg_pool2d",
      "mkldnn_max_pool2d", "max_pool1d_with_indices")  # fmt: skip
def pool(see: Labels, call: Call) -> list[Label]:
    """Windows of the plane, which is fixed; channels one by one."""
    label = see.of(call["self"])
    plane = call.name.count("3d") * 3 or call.name.count("2d") * 2 or 1
    for axis in label[-plane:]:
        axis.fix("a pooling window")
    return [[*label[:-plane], *(fixed(size, "a pooling window") for size in t.shape[-plane:])] for t in call.out]
