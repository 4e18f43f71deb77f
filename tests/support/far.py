"""A second device where there is none: tensors that pretend to be elsewhere, and fail as torch's do when mixed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter, tree_map_only

FAR = torch.device("xpu", 0)
"""How the pretended device is called; torch here knows the name and has no such device."""
DEVICE_OF = Tensor.device.__get__  # type: ignore[attr-defined]


class TwoDevices(TorchFunctionMode):
    """While it is open, tensors on `FAR` and others do not mix, single numbers of the CPU aside."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        owner = args[0] if args and isinstance(args[0], Tensor) else None
        if name == "__get__":
            if func == DEVICE_OF and is_far(owner):
                return FAR
            return keep(func(*args, **named), is_far(owner))
        if func in (Tensor.to, Tensor.cpu):
            return self._moved(func, owner, args[1:], named)
        if func is Tensor.numpy and is_far(owner):
            raise TypeError("can't convert a far tensor to numpy; use Tensor.cpu() first")
        given = [tensor for tensor in tree_iter((args, named)) if isinstance(tensor, Tensor)]
        wanted = named.get("device")
        if wanted is not None and torch.device(wanted) == FAR:
            return keep(func(*args, **named | {"device": "cpu"}), True)
        if func in (Tensor.copy_, Tensor.__setitem__):
            return func(*args, **named)
        places = {is_far(tensor) for tensor in given if tensor.dim() or is_far(tensor)}
        if len(places) > 1:
            raise RuntimeError(f"Expected all tensors to be on the same device, got {FAR} and cpu in {name}")
        return keep(func(*args, **named), places == {True} and wanted is None)

    def _moved(self, func: Any, owner: Any, given: Any, named: dict[str, Any]) -> Tensor:
        places = [x for x in (*given, *named.values()) if isinstance(x, torch.device | str | Tensor)]
        far = is_far(owner)
        if func is Tensor.cpu:
            far = False
        elif places:
            far = is_far(places[0]) if isinstance(places[0], Tensor) else torch.device(places[0]) == FAR
        given = ["cpu" if isinstance(x, torch.device | str) and torch.device(x) == FAR else x for x in given]
        named = {k: "cpu" if k == "device" and torch.device(v) == FAR else v for k, v in named.items()}
        moved: Tensor = func(owner, *given, **named)
        return keep(moved.clone() if moved is owner and far != is_far(owner) else moved, far)


def is_far(tensor: Any) -> bool:
    return getattr(tensor, "far", False)


def keep(result: Any, far: bool) -> Any:
    """Mark every tensor of a result; parameters and buffers stay as they are marked."""

    def mark(tensor: Tensor) -> Tensor:
        if far:
            tensor.far = True  # type: ignore[attr-defined]
        return tensor

    return tree_map_only(Tensor, mark, result)


@contextmanager
def spread(hf: Any, blocks: nn.ModuleList, first: int) -> Iterator[None]:
    """The blocks from one on are on `FAR`, and what they are given is brought there, as accelerate's hooks do."""

    def there(_: Any, args: Any, named: Any) -> Any:
        return bring((args, named), FAR)

    handles = []
    for block in blocks[first:]:
        for weight in (*block.parameters(), *block.buffers()):
            weight.far = True  # type: ignore[attr-defined]
        handles.append(block.register_forward_pre_hook(there, with_kwargs=True))
    handles.append(hf.model.norm.register_forward_pre_hook(lambda _, args: bring(args, torch.device("cpu"))))
    try:
        with TwoDevices():
            yield
    finally:
        for handle in handles:
            handle.remove()
        for weight in (*hf.parameters(), *hf.buffers()):
            if is_far(weight):
                del weight.far


def bring(what: Any, device: torch.device) -> Any:
    return tree_map_only(Tensor, lambda tensor: tensor.to(device), what)
