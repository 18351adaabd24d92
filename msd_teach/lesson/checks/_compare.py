"""How a checker answers: 'not yet' for a stub, an AssertionError that helps, or one line with the measured error."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from functools import wraps
from io import StringIO
from typing import Any

import torch
from torch import Tensor

Exercise = Callable[..., Any]

# What torch says of a slip, and what it means here.
SLIPS = {
    "must be Tensor, not float": "This argument is a plain number: use `math`, or arithmetic.",
    "must be Tensor, not int": "This argument is a plain number: use `math`, or arithmetic.",
    "same dtype": "The points here are float64; a tensor that you make is float32 unless you say `dtype=torch.float64`.",
}


class Wrong(AssertionError):
    """A wrong answer. A notebook shows its one line: a traceback would print the checker, and with it the solution."""

    def _render_traceback_(self) -> list[str]:
        return [f"wrong: {self}"]


class _Inside(Exception):
    """What the function under test raised itself."""


def checker(check: Callable[[Exercise], None]) -> Callable[[Exercise], None]:
    """Makes a check print 'not yet' where the function under test still raises NotImplementedError, and refuse None.

    What that function raises otherwise goes on as it is, with its own lines in the traceback and none of the check.
    """

    @wraps(check)
    def answer(fn: Exercise) -> None:
        __tracebackhide__ = True

        def returning(*arguments: Any) -> Any:
            try:
                value = fn(*arguments)
            except Exception as error:
                raise _Inside from error
            assert value is not None, f"{check.__name__}: your function returns None; is the `return` missing?"
            return value

        try:
            check(returning)
            return
        except _Inside as inside:
            raised = inside.__cause__
        except AssertionError as error:
            raised = Wrong(str(error))
        except Exception as error:
            raised = Wrong(f"{check.__name__}: what your function returns cannot be judged ({error})")
        if isinstance(raised, NotImplementedError):
            print(
                f"not yet: {check.__name__} raises NotImplementedError. Put your code there, then run the cell again."
            )
            return
        assert raised is not None
        for said, hint in SLIPS.items():
            if said in str(raised):
                raised.add_note(hint)
        trace = raised.__traceback__  # of an error inside fn: the line of `returning`, then its own
        raise raised.with_traceback(None if trace is None else trace.tb_next) from None

    return answer


def solved(check: Callable[[Exercise], None], fn: Exercise) -> bool:
    """Whether fn passes a checker; prints nothing, and a stub or an error of any kind is a no."""
    try:
        with redirect_stdout(StringIO()):
            inspect.unwrap(check)(fn)
    except Exception:
        return False
    return True


def compare(
    name: str, got: Any, want: Tensor | float, tolerance: float, mistakes: Mapping[str, Tensor | float] | None = None
) -> None:
    """Prints the largest difference between `got` and `want`, or says what is wrong.

    `mistakes` maps a hint to the value that a plausible wrong answer would give; the hint is shown where `got` is it.

    Raises:
        AssertionError: another shape, NaN, or a difference above `tolerance`.
    """
    target = torch.as_tensor(want, dtype=torch.float64)
    value = torch.as_tensor(got, dtype=torch.float64).detach()
    if value.shape != target.shape:
        said = f"{name}: the shape is {tuple(value.shape)}; it must be {tuple(target.shape)}."
        raise AssertionError(" ".join([said, *_about_shapes(value, target)]))
    assert value.isfinite().all(), (
        f"{name}: the result contains NaN or infinity; does an exponential under- or overflow?"
    )
    error = _distance(value, target)
    if error > tolerance:
        hints = [hint for hint, wrong in (mistakes or {}).items() if _distance(value, wrong) <= tolerance]
        short = isinstance(got, Tensor) and got.dtype == torch.float32
        if short and error < 1e-5 * max(1.0, float(target.abs().max())):
            hints.append("It is float32, which has seven digits; the inputs are float64: what turned them?")
        digits = next(d for d in range(2, 18) if f"{error:.{d}g}" != f"{tolerance:.{d}g}")
        said = f"{name}: the largest error is {error:.{digits}g}, allowed is {tolerance:.{digits}g}."
        raise AssertionError(" ".join([said, *hints]))
    print(f"{name}: right, largest error {error:.1e} (allowed {tolerance:.0e})")


def _about_shapes(value: Tensor, target: Tensor) -> list[str]:
    if value.ndim == 0:
        return ["That is one number; was something summed or averaged over everything?"]
    if target.ndim == 0:
        return ["One number is asked for."]
    if value.numel() == target.numel():
        return ["As many numbers in another order: a transpose, or an axis of length 1 too many or too few?"]
    return []


def _distance(value: Tensor, other: Tensor | float) -> float:
    return float((value - torch.as_tensor(other, dtype=torch.float64)).abs().max())
