"""The methods by name: each a row of docs/methods.md or docs/bounds.md, and what its line makes.

The first block of docs/methods.md is run here, so that the functions it defines are this module's;
the other two, sizes and parts, are run for the data at hand, as far as a line asks for them.
"""

import ast
import re
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

DOCS = Path(__file__).parents[2] / "docs"
# headings to what the rows are called together; of bounds.md, heads of tables
GROUPS = {
    "Priors p(z)": "prior",
    "Posteriors q(z|x)": "posterior",
    "Likelihoods p(x|z)": "likelihood",
    "Networks": "network",
    "Regularizers: what is charged in place of the rate": "penalty",
    "Schedules, in steps": "schedule",
    "Discrete codes": "codes",
    "Structures": "structure",
    "After training": "after",
    "Disentanglement, of arrays": "disentanglement",
    "bound": "bound",
    "`kl=`": "kl",
    "`gradient=`": "gradient",
    "`weighting=`": "weighting",
}
LIBRARY = r"\b(?:jaxvae|bounds|gradients|models|evaluation)\.(\w+)"
ALSO = {  # what some are called in short
    "prior": {"vamp": "vampprior", "normal": "standard-normal"},
    "posterior": {
        "diagonal": "diagonal-gaussian",
        "full": "full-covariance",
        "iaf": "inverse-autoregressive-flow",
        "maf": "masked-autoregressive-flow",
        "categorical": "categorical-relaxed-or-not",
        "mixture": "mixture-implicit-gradient",
        "hierarchical": "hierarchical-bottom-up",
    },
    "likelihood": {
        "gaussian": "gaussian-fixed-sigma",
        "logistic-mixture": "mixture-of-them-grey",
        "logistic-mixture-rgb": "mixture-of-them-rgb-coupled",
        "logistic": "discretized-logistic",
    },
    "gradient": {
        "dreg": "doubly-reparameterized",
        "stl": "sticking-the-landing",
        "gumbel": "gumbel-softmax",
    },
    "penalty": {"free-bits": "free-bits-a-latent", "tc": "beta-tc-stratified"},
}


class Row(NamedTuple):
    """A method: of which group, its name in it, as the page has it, its line, where it runs."""

    group: str
    name: str
    method: str
    line: str
    run: str = ""

    @property
    def path(self) -> str:
        return f"{self.group}/{self.name}"


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), flags=re.DOTALL)


def makers(block: str) -> dict[str, Any]:
    """The names that a block of assignments and functions makes, and the code of each."""
    found = {}
    for node in ast.parse(block).body:
        code = compile(ast.Module([node], []), "docs/methods.md", "exec")
        if isinstance(node, ast.FunctionDef):
            found[node.name] = code
        elif isinstance(node, ast.Assign):
            names = [n for target in node.targets for n in ast.walk(target)]
            found |= {n.id: code for n in names if isinstance(n, ast.Name)}
    return found


def slug(text: str) -> str:
    return "-".join(re.findall(r"[a-z0-9]+", text.lower()))


def _rows(page: str) -> list[Row]:
    """The rows of a page; one that begins with dots bears the name of that above it, too."""
    found, group, above, lines = [], None, "", (DOCS / page).read_text().splitlines()
    for number, text in enumerate(lines):
        if text.startswith("## "):
            group = GROUPS.get(text[3:])
        if not text.startswith("|"):
            continue
        cells = [c.strip().replace("\\|", "|") for c in re.split(r"(?<!\\)\|", text)[1:-1]]
        if re.match(r"\|-", [*lines, ""][number + 1]):  # a head
            group = GROUPS.get(cells[0], group if cells[0] == "method" else None)
        elif group is not None and not text.startswith("|-"):
            if page == "bounds.md":
                method = line = cells[0].strip("`")
                name = slug(" ".join(re.findall(LIBRARY, line)))
            else:
                method, line = cells[0], cells[2].strip("`")
                above = above if method.startswith("...") else slug(method)
                name = f"{above}-{slug(method)}" if method.startswith("...") else above
            run = cells[-1].strip("`") if page == "methods.md" else ""
            found.append(Row(group, name, method, line, run))
    return found


_first, _sizes, _parts = blocks("methods.md")
_makers = makers(_parts)
exec(_first, globals())
_bounds: dict[str, Any] = {}
exec(blocks("bounds.md")[0], _bounds)
ROWS = {row.path: row for page in ("methods.md", "bounds.md") for row in _rows(page)}


class Unsuited(ValueError):
    """No method bears that name, or methods do not go together; the message is for the user."""


def find(group: str, name: str) -> Row:
    """The row of a name, or of what it is called in short."""
    names = [row.name for row in ROWS.values() if row.group == group]
    also = ALSO.get(group, {})
    path = f"{group}/{also.get(name, name)}"
    if path not in ROWS:
        near = get_close_matches(name, [*also, *names], 1, 0.5)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise Unsuited(f"--{group} is {name!r}, expected one of {', '.join(names)}{meant}")
    return ROWS[path]


class Parts(dict[str, Any]):
    """The names of both pages at the sizes of the data: `parts(row)` is what the row's line makes.

    What the third block of docs/methods.md makes is made when a line first names it.

    Args:
      rngs: of all networks.
      **sizes: of docs/methods.md's second block, those that differ; `latent` is (d,) by default.
    """

    def __init__(self, rngs: nnx.Rngs, **sizes: Any):
        super().__init__()
        self.given: dict[str, Any] = _bounds | globals()
        exec(_sizes, self.given)
        latent = (sizes.get("d", self.given["d"]),)
        betas = np.linspace(0.0, 1.0, 6, dtype=np.float32)
        self.given |= {"latent": latent, "betas": betas, **sizes, "rngs": rngs}

    def __missing__(self, name: str) -> Any:
        if name not in _makers:
            return self.given[name]
        exec(_makers[name], self.given, self)
        return self[name]

    def __getattr__(self, name: str) -> Any:
        return self[name]

    def __call__(self, row: Row, **names: Any) -> Any:
        self |= names
        if "Constant(" in row.line:  # which holds no array that is traced
            with jax.ensure_compile_time_eval():
                return eval(row.line, self.given, self)
        return eval(row.line, self.given, self)
