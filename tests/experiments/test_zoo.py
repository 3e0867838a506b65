"""The zoo: every row of the pages has a rule and a place, and what is done is not done again."""

import json
import re
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxvae as jv
from experiments.common.compose import PARTNERS, PLAYERS, compose
from experiments.common.methods import ALSO, DOCS, ROWS, Parts, Unsuited, find
from experiments.zoo import __main__ as zoo
from experiments.zoo import data, page
from experiments.zoo.found import base_of
from experiments.zoo.rules import Fit, rule_of
from experiments.zoo.run import Trained, known, measured, trained
from experiments.zoo.tables import PART_OF, ROW_DATA, SETTINGS, data_of

NOWHERE = Path("nowhere")


def table_rows(name):
    text = (DOCS / name).read_text()
    return re.findall(r"^\|(?!-).*\|$(?!\n\|-)", text, flags=re.MULTILINE)


def test_every_row_of_the_page_is_a_row_of_the_zoo_and_has_run():
    lines = table_rows("methods.md")
    of_bounds = ("bound", "kl", "gradient", "weighting")
    assert len([row for row in ROWS.values() if row.group not in of_bounds]) == len(lines)
    assert len([row for row in ROWS.values() if row.group in of_bounds]) > 25
    assert not [line for line in lines if re.search(r"\|\s*\|$", line)]  # the last column


def test_what_the_tables_of_the_zoo_name_is_a_row():
    named = [*PART_OF, *PART_OF.values(), *ROW_DATA, *SETTINGS, *PARTNERS, *PLAYERS]
    scripts = {path for path in PART_OF.values() if path.startswith("experiments.")}
    assert all(find_spec(script) for script in scripts)
    not_run = [path for path in [*named, *PLAYERS.values()] if path not in {*ROWS, *scripts}]
    assert len(not_run) == 1
    assert not_run[0].startswith("no: ")
    for partners in PARTNERS.values():
        assert all(find(group, name) for group, name in partners.items())
    assert all(find(group, short) for group, of in ALSO.items() for short in of)
    for row in ROWS.values():
        assert row.path in PART_OF or base_of(row) in ROWS or rule_of(row)
        assert data_of(row) in data.DATA


@pytest.mark.parametrize(
    ("group", "name", "path"),
    [
        ("prior", "vamp", "prior/vampprior"),
        ("posterior", "iaf", "posterior/inverse-autoregressive-flow"),
        ("likelihood", "logistic-mixture", "likelihood/mixture-of-them-grey"),
        ("bound", "iwae", "bound/iwae"),
        ("gradient", "dreg", "gradient/doubly-reparameterized"),
        ("penalty", "free-bits", "penalty/free-bits-a-latent"),
    ],
)
def test_a_method_is_found_by_a_short_name(group, name, path):
    assert find(group, name) is ROWS[path]


def test_a_name_that_none_bears_is_one_line_and_exit_code_2(capsys):
    with pytest.raises(Unsuited, match=r"--prior is 'vmap', .*; did you mean vamp"):
        find("prior", "vmap")
    assert zoo.main(["--only", "priors"]) == 2
    assert capsys.readouterr().err.startswith("error: --only is 'priors', expected of prior,")
    assert zoo.main(["--only", "prior/vmap"]) == 2


def test_a_choice_is_of_groups_and_of_rows():
    paths = [row.path for row in zoo.chosen(["kl", "posterior/iaf"])]
    iaf = "posterior/inverse-autoregressive-flow"
    assert paths == [iaf, "kl/auto-kl", "kl/analytic-kl", "kl/sampled-kl", "kl/stepwise-kl"]
    assert len(zoo.chosen([])) == len(ROWS) - len(PART_OF)


def test_parts_are_made_when_they_are_named_and_once():
    parts = Parts(nnx.Rngs(0), d=2, shape=(3,), examples=jnp.ones((3, 3)))
    vamp = parts(find("prior", "vamp"))
    assert set(parts) == {"encode", "decode"}
    assert vamp.encode is parts.encode
    assert parts.model.encode is parts.encode
    assert parts(find("prior", "standard-normal")).shape == (2,)


@pytest.mark.thorough
def test_a_row_that_is_done_is_not_done_again(tmp_path, monkeypatch, capsys):
    """A run that is killed loses the row it was at; one that fails doesn't stop the others."""
    rows, calls = zoo.chosen(["kl"]), []

    def result(row, _):
        calls.append(row.name)
        if row.name == "sampled-kl" and len(calls) == 3:
            raise KeyboardInterrupt
        if row.name == "stepwise-kl":
            raise ValueError("no")
        if row.name == "analytic-kl":
            raise data.MissingError("nowhere")
        return {"seeds": [{"bound": 1.0}], "seconds": 1.0, "on": None}, None

    monkeypatch.setattr(zoo, "result", result)
    with pytest.raises(KeyboardInterrupt):
        zoo.run(rows, NOWHERE, tmp_path)
    assert calls == ["auto-kl", "analytic-kl", "sampled-kl"]
    assert [path.stem for path in tmp_path.rglob("*.json")] == ["auto-kl"]
    assert zoo.run(rows, NOWHERE, tmp_path) == 1
    assert calls[3:] == ["analytic-kl", "sampled-kl", "stepwise-kl"]
    assert "kl/analytic-kl: left out: nowhere" in capsys.readouterr().out
    assert {path.stem for path in tmp_path.rglob("*.json")} == {"auto-kl", "sampled-kl"}


def test_the_page_has_a_line_for_every_row_of_a_group_that_is_done(tmp_path, monkeypatch):
    seed = {"bound": -2.0, "nll": 1.5, "error": 0.01, "reliable": 0.5}
    seed |= {"active": 3.0, "latents": 4.0}
    seeds = [seed, seed | {"nll": 2.5}, seed | {"nll": 3.5}]
    told = {"data": "digits", "seeds": seeds, "on": None, "seconds": 7.0}
    (tmp_path / "prior").mkdir()
    priors = [row for row in ROWS.values() if row.group == "prior"]
    for row in priors:
        (tmp_path / f"{row.path}.json").write_text(json.dumps(told))
    np.save(tmp_path / "prior/laplace.npy", np.zeros((20, 8, 8, 1)))
    monkeypatch.setattr(page, "DOCS", tmp_path)
    page.write_page(tmp_path)
    text = (tmp_path / "zoo.md").read_text()
    done = "| `laplace` | digits | -2.00 ± 0.00 | 2.50 ± 1.00 (0.01) | 50% | 3.0 of 4 | 7 s |"
    assert done in text
    assert not [row.path for row in priors if f"| `{row.name}` |" not in text]
    assert "## Posteriors" not in text
    assert "Not run yet: posteriors, likelihoods" in text
    assert (tmp_path / "figures/zoo/prior.png").exists()
    assert text.index("(figures/zoo/prior.png)") < text.index("\nDecoded draws of the prior")


def test_below_a_picture_stands_what_fails_in_it():
    paragraphs = [" ".join(of.split()) for of in (DOCS / "zoo.md").read_text().split("\n\n")]
    for group, fails in page.PICTURED.items():
        shown = paragraphs.index(f"![decoded draws, a row a line](figures/zoo/{group}.png)")
        assert paragraphs[shown + 1].startswith("Decoded draws of the prior, seed 0, a row a line.")
        assert paragraphs[shown + 1].endswith(f" {fails}")


GROUPS = sorted({row.group for row in ROWS.values() if not base_of(row)})


@pytest.mark.thorough
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.usefixtures("stand_ins")
def test_every_row_can_be_trained(group):
    """A step of each, in shapes."""
    for row in ROWS.values():
        if row.group != group or row.path in PART_OF or base_of(row):
            continue
        found = data.read(data_of(row), NOWHERE)

        def step(key, row=row, found=found):
            key, init_key = jax.random.split(key)
            fit = rule_of(row)(row, nnx.Rngs(init_key), found)
            xs = jax.tree.map(lambda leaf: leaf[:6], found.train)
            objective = jv.preprocessed(fit.objective, found.transform)
            state = jv.init_state(fit.model, fit.optimizer)
            hyper = {name: of(0) for name, of in fit.hyper.items()}
            return fit.step(objective, fit.optimizer)(state, key, xs, **hyper)

        # as a user has it, who runs the zoo
        with jax.numpy_rank_promotion("allow"), jax.debug_key_reuse(False):
            _, metrics = jax.eval_shape(step, jax.random.key(0))
        assert metrics["loss"].shape == (), row.path


@pytest.mark.thorough
def test_a_row_moves_what_it_trains():
    row = find("prior", "mixture-of-gaussians")
    one, more = (trained(row, NOWHERE, seeds=1, steps=n).models.prior for n in (20, 40))
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), one, more)
    assert all(jax.tree.leaves(moved))


@pytest.mark.thorough
def test_a_density_is_told_as_the_probability_of_what_is_stored():
    """The bound falls by log 256 a number, and -log p(x) rises as much."""
    parts, xs = Parts(nnx.Rngs(0), d=2, shape=(3,), examples=jnp.ones((3, 3))), jnp.ones((4, 3))
    told = []
    for unit in (0.0, -3 * np.log(256.0)):
        made = data.Data(xs, xs, {}, samples=50, unit=unit)
        found = Trained(None, Fit(parts.model), made)
        told.append(measured(found, parts.model, jax.random.key(0)))
    plain, stored = told
    assert plain["nll"] <= -plain["bound"] + 3 * plain["error"]
    np.testing.assert_allclose(stored["bound"] - plain["bound"], -3 * np.log(256.0), rtol=1e-4)
    np.testing.assert_allclose(stored["nll"] - plain["nll"], 3 * np.log(256.0), rtol=1e-4)
    assert 0 <= plain["active"] <= plain["latents"] == 2
    assert known("nll", lambda _: jnp.zeros(2).dot(jnp.zeros(3)), 0.0).keys() == {"no nll"}


def test_a_schedule_is_as_long_as_the_run():
    made = data.Data(None, None, {"d": 2, "shape": (3,)}, steps=50)
    row = find("schedule", "linear-annealing")
    beta = rule_of(row)(row, nnx.Rngs(0), made).hyper["beta"]
    assert [float(beta(step)) for step in (0, 25, 50)] == pytest.approx([0.0, 0.5, 1.0])


def test_bytes_that_a_compiled_measure_holds_are_looked_at():
    """They are constants, which NumPy's max would trace."""
    head = find("likelihood", "discretized-logistic")
    parts = Parts(nnx.Rngs(0), d=2, shape=(3,), examples=jnp.ones((3, 3)))
    model = Parts(nnx.Rngs(0), d=2, shape=(3,), likelihood=parts(head)).model
    encode, of_floats, xs = parts.encode, parts.model, jnp.full((4, 3), 200, jnp.uint8)
    floats = model._replace(encode=lambda x: encode(x.astype(float)))
    shape = jax.eval_shape(lambda: jv.evaluation.active_units(floats, xs))
    assert shape.shape == (2,)
    with pytest.raises(ValueError, match="holds bytes up to 200"):
        jax.eval_shape(lambda: jv.evaluation.active_units(of_floats, xs))


def of(**names):
    rows = {group: find(group, name) for group, name in names.items()}
    return compose(nnx.Rngs(0), rows, d=2, shape=(3,), examples=jnp.ones((3, 3)))


@pytest.mark.thorough
def test_factors_compose():
    model, objective = of(prior="vamp", posterior="iaf", bound="iwae", gradient="dreg")
    assert isinstance(model, jv.VampVAE)
    value, log_w = objective(model, jax.random.key(0), jnp.ones(3))
    assert log_w.shape == (8,)
    again, _ = jv.iwae(model, jax.random.key(0), jnp.ones(3), num_samples=8)
    np.testing.assert_allclose(value, again, rtol=1e-6)


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (
            {"bound": "iwae", "penalty": "free-bits"},
            "stands in place of the elbo",
        ),
        ({"prior": "vamp", "posterior": "ladder"}, "whole model"),
        ({"prior": "conditional-p-z-y"}, "data of another kind"),
        ({"likelihood": "missing-entries"}, "isn't one of an array"),
        ({"penalty": "lagging-inference"}, "is no objective"),
    ],
)
def test_what_does_not_go_together_is_refused(names, why):
    with pytest.raises(Unsuited, match=why):
        of(**names)
