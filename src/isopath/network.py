"""f(theta, x): a module as a pure function of a point in weight space."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from isopath.module_state import ModuleState
from isopath.space import Space, Trainable

Output = str | int | slice | Callable[[Any], Tensor] | None
Module = TypeVar("Module", bound=nn.Module)
FORWARD = 1 / 3  # cost of a forward pass, in gradient evaluations


class Network:
    """The function f(theta, x) of a module, evaluated without touching the module.

    The module runs in eval mode (dropout off, batch norm on its running statistics) whatever mode the caller's is in,
    and attention on the math backend with the encoder fast path off: the fused kernels have neither forward-mode
    derivatives nor double backward. What a forward pass leaves behind in the module, an attribute or a moved buffer, is
    put back. The caller's module is read once; its buffers are copied.

    Args:
        model: any `nn.Module`.
        trainable: names, glob patterns or a predicate; `None` for every parameter with `requires_grad`.
        own: whether frozen parameters are copied too: what the caller does to theirs later is then nothing to the
            network. Otherwise they are shared and only read.

    Attributes:
        space: names and shapes of the trainable parameters.
        start: the module's own point, `(P,)`.
        evaluations: gradient evaluations spent so far (a forward alone counts a third, per example).

    Raises:
        TypeError: the module cannot be copied.
        ValueError: it has no trainable parameter.
    """

    def __init__(self, model: nn.Module, trainable: Trainable = None, own: bool = False) -> None:
        self.space = Space.of(model, trainable)
        self._skeleton = _skeleton(model, set(self.space.names) if own else None)
        self._state = ModuleState(self._skeleton)
        self._modes = [module.training for module in self._skeleton.modules()]
        self._skeleton.eval()
        # Fused recurrent kernels have no forward-mode derivative on CPU; the plain ones do.
        self._recurrent = any(isinstance(module, nn.RNNBase) for module in self._skeleton.modules())
        self.start = self.space.flatten(dict(model.named_parameters()))
        self.evaluations = 0.0

    def __call__(self, theta: Tensor, inputs: Any, output: Output = None) -> Tensor:
        """Outputs `(N, C)`, or `(N, T, C)`, of the network at `theta`.

        Args:
            theta: a point, `(P,)`.
            inputs: a tensor, a tuple or list of positional arguments, or a mapping of keyword arguments.
            output: picks the tensor from what the module returns: a key, an attribute's name, an index, or a callable.
                `None` takes a tensor as it is, and `.logits` or `["logits"]` where there is one; a slice takes that
                and cuts its last axis.
        """
        grad = torch.is_grad_enabled() and theta.requires_grad
        self.count(rows_of(inputs), 1.0 if grad else FORWARD)
        return self.apply(self.space.unflatten(theta), inputs, output)

    def apply(self, parameters: Mapping[str, Tensor], inputs: Any, output: Output = None) -> Tensor:
        """As a call, with named parameters and nothing counted."""
        args, kwargs = _arguments(inputs)
        try:
            with self._state.held(), plain_kernels(self._recurrent):
                returned = functional_call(self._skeleton, dict(parameters), args, kwargs)
        except NotImplementedError:
            raise  # an operator without the derivative asked for, which callers know what to do about
        except (RuntimeError, TypeError, IndexError, ValueError) as error:
            raise ValueError(
                f"the model does not run on these inputs: got {_shapes(inputs)}; its parameters are "
                f"{self.space.dtype} on {self.space.device}; convert or reshape the inputs. The model said: {error}"
            ) from error
        return pick(returned, output)

    def count(self, rows: int, cost: float) -> None:
        """Adds `rows * cost` gradient evaluations to the account."""
        self.evaluations += rows * cost

    def model(self, theta: Tensor) -> nn.Module:
        """A new module with the weights of `theta`, in the modes that the caller's module had."""
        module = copied(self._skeleton)
        for child, training in zip(module.modules(), self._modes):
            child.training = training
        self.copy_to(theta, module)
        return module

    def copy_to(self, theta: Tensor, module: nn.Module) -> None:
        """Writes `theta` into `module`'s parameters in place: an optimiser that holds them goes on.

        Raises:
            ValueError: the module lacks one of the parameters, or a shape differs.
        """
        named = dict(module.named_parameters())
        missing = [name for name in self.space.names if name not in named]
        if missing:
            raise ValueError(f"{type(module).__name__} has no parameter {missing[0]!r} ({len(missing)} are missing)")
        with torch.no_grad():
            for name, value in self.space.unflatten(theta).items():
                if named[name].shape != value.shape:
                    raise ValueError(
                        f"{name!r} has shape {tuple(named[name].shape)}, expected {tuple(value.shape)}; "
                        "use the architecture that was traced"
                    )
                named[name].copy_(value)


@contextmanager
def plain_kernels(recurrent: bool = False) -> Iterator[None]:
    """Runs attention and recurrent layers on kernels that have all derivatives; restores the settings."""
    fastpath, mkldnn = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled
    torch.backends.mha.set_fastpath_enabled(False)
    torch.backends.mkldnn.enabled = mkldnn and not recurrent  # type: ignore[assignment]
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        torch.backends.mkldnn.enabled = mkldnn


def rows_of(inputs: Any) -> int:
    """N: the leading size of the first tensor in `inputs`."""
    if isinstance(inputs, Tensor):
        return inputs.shape[0] if inputs.ndim else 1
    values = inputs.values() if isinstance(inputs, Mapping) else inputs
    return next((rows_of(v) for v in values if isinstance(v, (Tensor, Mapping, tuple, list))), 1)


def pick(returned: Any, output: Output = None) -> Tensor:
    """The output tensor in what a module returned.

    Raises:
        TypeError: there is no such tensor; the message lists what there is.
    """
    if isinstance(output, slice):
        return pick(returned)[..., output]
    if callable(output):
        found = output(returned)
    elif output is None:
        found = returned if isinstance(returned, Tensor) else _entry(returned, "logits")
    else:
        found = _entry(returned, output)
    if not isinstance(found, Tensor):
        raise TypeError(
            f"no output tensor found (output={output!r}) in what the model returned: {_describe(returned)}; "
            "name one with output='key', output=index or output=lambda returned: ..."
        )
    return found


def _entry(returned: Any, key: str | int) -> Any:
    if isinstance(returned, Mapping):
        return returned.get(key)
    if isinstance(key, int):
        return returned[key] if isinstance(returned, Sequence) and -len(returned) <= key < len(returned) else None
    return getattr(returned, key, None)


def _describe(returned: Any) -> str:
    if isinstance(returned, Mapping):
        return f"a {type(returned).__name__} with the keys {list(returned)}"
    if isinstance(returned, (tuple, list)):
        return f"a {type(returned).__name__} of {[type(r).__name__ for r in returned]}"
    return f"a {type(returned).__name__}"


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, (tuple, list)):
        return tuple(inputs), {}
    return (inputs,), {}


def check_runs(model: nn.Module, inputs: Any, what: str) -> None:
    """Raises `ValueError` unless a copy of a module runs on some inputs, in eval mode."""
    twin, (args, kwargs) = copied(model).eval(), _arguments(inputs)
    try:
        with torch.no_grad(), plain_kernels(recurrent=True), torch.random.fork_rng(devices=[]):
            twin(*args, **kwargs)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, IndexError, ValueError) as error:
        raise ValueError(
            f"{type(model).__name__} does not run on {what}: got {_shapes(inputs)}; give inputs as the model takes "
            f"them. The model said: {error}"
        ) from error


def _shapes(inputs: Any) -> str:
    """Shapes, dtypes and devices, for an error."""
    args, kwargs = _arguments(inputs)
    named = {**dict(enumerate(args)), **kwargs}  # type: ignore[misc]
    return ", ".join(
        f"{name}: {tuple(v.shape)} {v.dtype} on {v.device}" if isinstance(v, Tensor) else f"{name}: {type(v).__name__}"
        for name, v in named.items()
    )


def _skeleton(model: nn.Module, moving: set[str] | None = None) -> nn.Module:
    """A copy of the module tree that shares the caller's parameters, or only those that move, and owns its buffers."""
    # Sharing parameters keeps the cost at the buffers' size: every call substitutes the trainable ones anyway.
    shared: dict[int, Any] = {id(p): p for name, p in model.named_parameters() if moving is None or name in moving}
    return copied(model, shared)


def copied(model: Module, memo: dict[int, Any] | None = None) -> Module:
    """A deep copy of a module; of tensors that it keeps of a graph, as an activation of its last forward pass, values.

    Args:
        model: any module.
        memo: what is not copied but shared, by id, as `copy.deepcopy` takes it.

    Raises:
        TypeError: it cannot be copied.
    """
    memo = {} if memo is None else dict(memo)
    for module in model.modules():
        for kept in (*vars(module).values(), *module._buffers.values()):
            if isinstance(kept, Tensor) and not kept.is_leaf:
                memo[id(kept)] = kept.detach().clone()
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise TypeError(
            f"{type(model).__name__} cannot be copied ({error}); hooks, locks and tensors computed outside forward "
            "stand in the way: remove them, or use torch.nn.utils.parametrizations instead of the old weight_norm"
        ) from error
