"""The pages' code runs: every ```python block of a page, in order, in one namespace."""

import re
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("page", ["README.md", "docs/guide.md", "docs/bounds.md"])
def test_code_of_the_page_runs(page):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)
    assert blocks
    namespace: dict = {}
    with jax.numpy_rank_promotion("allow"), jax.debug_key_reuse(False):  # as a user has it
        for block in blocks:
            exec(compile(block, page, "exec"), namespace)
