"""The README's program runs as printed and ends where the README says."""

import re
from pathlib import Path

import torch

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_smallest_program_prints_what_the_readme_says():
    program = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    promised = re.search(r"ends at \((\S+), (\S+)\), where the log-density is (\S+); it began at (\S+)\.\n", README)
    assert program is not None
    assert promised is not None
    x, y, end, start = (float(number.replace("−", "-")) for number in promised.groups())
    scope: dict = {}
    exec(program.group(1), scope)
    assert torch.allclose(scope["x"], torch.tensor([[x, y]], dtype=torch.float64), atol=1e-4)
    assert abs(scope["density"].log_prob(scope["x"]).item() - end) < 0.01
    first = re.search(r"x = (torch.tensor.*?\))\s+#", program.group(1))
    assert first is not None
    assert abs(scope["density"].log_prob(eval(first.group(1), scope)).item() - start) < 0.01
