"""Each checker names the mistake in a plausible wrong answer and says 'not yet' to a stub; the chapters give it the right one."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import answers02
import answers03
import answers04
import answers05
import answers06
import answers07
import answers08
import pytest
import torch
from torch import Tensor

from msd_teach.lesson import checks
from msd_teach.lesson.checks._compare import compare


def softmax_step(x: Tensor, points: Tensor, bandwidth: float) -> Tensor:
    return (-torch.cdist(x, points).square() / (2 * bandwidth**2)).softmax(-1) @ points


def unsafe_step(x: Tensor, points: Tensor, bandwidth: float) -> Tensor:
    kernel = (-torch.cdist(x, points).square() / (2 * bandwidth**2)).exp()
    return kernel @ points / kernel.sum(-1, keepdim=True)


def chebyshev_step(J: Tensor) -> Tensor:
    rates = torch.linalg.eigvalsh(J)
    return 2 / (2 - rates[0] - rates[-1])


MISTAKES = [
    ("two_point_denoiser", lambda z, sigma: torch.tanh(z / sigma), "square of σ"),
    ("two_point_denoiser", lambda z, sigma: torch.tanh(2 * z / sigma**2), "factor 2"),
    ("two_point_denoiser", lambda z, sigma: z.sign(), "nearest"),
    ("bandwidth_from_paper", lambda theirs: theirs * math.sqrt(2), "smaller"),
    ("bandwidth_from_paper", lambda theirs: theirs / 2, "root"),
    ("bandwidth_from_paper", lambda theirs: theirs, "unchanged"),
    ("bandwidth_from_paper", lambda theirs: None, "return"),
    ("mean_shift_step", lambda x, points, h: softmax_step(x, points, h / math.sqrt(2)), "standard deviation"),
    ("mean_shift_step", lambda x, points, h: softmax_step(x, points, h) - x, "x' = x|new point"),
    ("mean_shift_step", lambda x, points, h: points.mean(0), "shape"),
    ("mean_shift_step", lambda x, points, h: softmax_step(x, points, h).T, "another order"),
    ("mean_shift_step", lambda x, points, h: softmax_step(x, points, h).sum(), "one number"),
    ("mean_shift_step", lambda x, points, h: softmax_step(x, points, h).float(), "float32"),
    ("mean_shift_step", unsafe_step, "NaN or infinity"),
    ("merging_bandwidth", lambda a, s: a - s, "variances"),
    ("merging_bandwidth", lambda a, s: a, "width"),
    ("merging_bandwidth", lambda a, s: a * a - s * s, "square of the bandwidth"),
    ("merging_bandwidth", lambda a, s: torch.ones(3), "One number"),
    ("best_step", lambda J: 1 / (1 - torch.linalg.eigvalsh(J)[-1]), "overshoots"),
    ("best_step", lambda J: 2 / (1 - torch.linalg.eigvalsh(J)[0]), "still converges"),
    ("best_step", lambda J: 1.0, "gain"),
    ("best_step", lambda J: 1.5, "largest error"),
]


CHAPTERS = (answers02, answers03, answers04, answers05, answers06, answers07, answers08)
WRONG = [(getattr(checks, name), wrong, hint) for name, wrong, hint in MISTAKES]
WRONG += [triple for chapter in CHAPTERS for triple in chapter.WRONG]


def test_every_checker_is_asked_in_a_chapter_and_knows_three_mistakes() -> None:
    """Its right answer is the chapter's solution, which every execution gives to it."""
    chapters = "".join(path.read_text() for path in (Path(__file__).parents[2] / "notebooks").glob("*.py"))
    for name in checks.__all__:
        assert chapters.count(f"\nchecks.{name}(") == 2, name  # under the stub and under the solution
    hints = Counter(name for name, _ in {(check.__name__, hint) for check, _, hint in WRONG})
    assert set(hints) == set(checks.__all__)
    assert not [name for name, count in hints.items() if count < 3]


@pytest.mark.parametrize(("check", "wrong", "hint"), WRONG)
def test_mistake_is_refused_with_a_hint(check: Callable, wrong: Callable, hint: str) -> None:
    with pytest.raises(AssertionError, match=hint):
        check(wrong)


@pytest.mark.parametrize("name", checks.__all__)
def test_stub_is_not_yet(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    def stub(*arguments: object) -> None:
        raise NotImplementedError

    getattr(checks, name)(stub)
    assert capsys.readouterr().out.startswith(f"not yet: {name}")


@pytest.mark.parametrize("name", checks.__all__)
def test_a_forgotten_return_is_named(name: str) -> None:
    with pytest.raises(AssertionError, match=f"{name}: your function returns None"):
        getattr(checks, name)(lambda *arguments: None)


def test_other_errors_are_not_swallowed() -> None:
    with pytest.raises(ZeroDivisionError):
        checks.bandwidth_from_paper(lambda theirs: theirs / 0)


@pytest.fixture(scope="module")
def shell():
    """A shell as a notebook's kernel has it."""
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell()
    shell.run_cell("import math, torch\nfrom msd_teach.lesson import checks")
    return shell


@pytest.mark.parametrize(
    ("body", "shown", "hidden"),
    [
        ("a - s", "wrong: a = 1, s = 0.3: the largest error is", ("Traceback", "math.sqrt(a * a - s * s)", "mistakes")),
        ("a / unknown", "NameError", ("math.sqrt(a * a - s * s)", "mistakes", "compare(")),
        ("'wide'", "wrong: merging_bandwidth: what your function returns cannot be judged", ("Traceback", "mistakes")),
        ("torch.ones(3)", "wrong: a = 1, s = 0.3: the shape is (3,); it must be ().", ("Traceback", "mistakes")),
        ("torch.sqrt(a)", "This argument is a plain number", ("math.sqrt(a * a - s * s)", "mistakes", "compare(")),
        ("None", "your function returns None", ("Traceback", "mistakes")),
    ],
)
def test_a_notebook_does_not_show_the_solution(shell, capsys, body: str, shown: str, hidden: tuple[str, ...]) -> None:
    shell.run_cell(f"def mine(a, s):\n    return {body}\nchecks.merging_bandwidth(mine)")
    seen = re.sub(r"\x1b\[[0-9;]*m", "", "".join(capsys.readouterr()))  # without colours
    assert shown in seen and not [text for text in hidden if text in seen], seen
    own = "unknown" in body or "sqrt" in body
    assert (f"return {body}" in seen) == own, "an error of one's own shows one's own line"


def test_a_mixture_of_kinds_of_float_is_explained() -> None:
    with pytest.raises(RuntimeError) as raised:
        checks.mean_shift_step(lambda x, points, bandwidth: torch.ones(len(x), len(points)) @ points)
    assert "dtype=torch.float64" in raised.value.__notes__[0]


def test_an_error_just_above_the_allowed_one_does_not_look_below_it() -> None:
    for error, tolerance in ((5.87e-5, 5.86e-5), (1.00001e-9, 1e-9)):
        with pytest.raises(AssertionError, match="largest error is") as raised:
            compare("x", error, 0.0, tolerance)
        numbers = [float(word.rstrip(".,")) for word in str(raised.value).split() if "e-" in word]
        assert numbers[0] > numbers[1]


def test_best_step_is_best() -> None:
    """No other η on a fine grid shrinks the worst direction faster: the formula behind the checker, by brute force."""
    J = torch.diag(torch.tensor([0.1, 0.4, 0.93], dtype=torch.float64))
    worst = [
        float(torch.linalg.eigvalsh(torch.eye(3) - eta * (torch.eye(3) - J)).abs().max())
        for eta in torch.linspace(0.5, 2.2, 1701)
    ]
    found = 0.5 + 0.001 * worst.index(min(worst))
    assert abs(found - float(chebyshev_step(J))) < 2e-3


def test_merging_bandwidth_by_counting_maxima() -> None:
    """Just below the formula's bandwidth two equal Gaussians show two maxima, just above it one."""
    a, s = 0.8, 0.3
    x = torch.linspace(-1, 1, 2001, dtype=torch.float64)
    for factor, maxima in ((0.98, 2), (1.02, 1)):
        variance = s**2 + (factor * math.sqrt(a**2 - s**2)) ** 2
        p = (-((x - a) ** 2) / (2 * variance)).exp() + (-((x + a) ** 2) / (2 * variance)).exp()
        assert int(((p[1:-1] > p[:-2]) & (p[1:-1] > p[2:])).sum()) == maxima


def test_compare_takes_numbers_at_full_precision(capsys: pytest.CaptureFixture[str]) -> None:
    compare("third", 1 / 3, 1 / 3, 1e-15)
    assert "right" in capsys.readouterr().out
    with pytest.raises(AssertionError, match=r"largest error is 1e-08, allowed is 1e-09"):
        compare("third", 1 / 3 + 1e-8, 1 / 3, 1e-9)
