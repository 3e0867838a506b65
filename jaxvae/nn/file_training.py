"""`jaxvae train`: a VAE for a file, and in its folder what it takes to use it later."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxvae.bounds import elbo
from jaxvae.checks import Tree
from jaxvae.distributions import Poisson, StandardNormal
from jaxvae.model import VAE
from jaxvae.nn.column_kinds import LONG_TAIL, has_long_tail
from jaxvae.nn.command_output import say
from jaxvae.nn.conditional import Conditional
from jaxvae.nn.convolutions import ConvDecoder, ConvEncoder
from jaxvae.nn.data_files import DataRefusedError, Rows, check_counts, read_rows
from jaxvae.nn.heads import BernoulliHead, HeadOf, NormalHead, Positive
from jaxvae.nn.model_folders import is_saved, refuse_other
from jaxvae.nn.networks import MLP
from jaxvae.nn.preparation import (
    as_images,
    check_rows,
    is_images,
    preparation_of,
    prepared,
    table_of,
)
from jaxvae.nn.saved import save_model
from jaxvae.nn.shared_heads import SharedScaleHead
from jaxvae.nn.stock import make_vae
from jaxvae.training import (
    Callback,
    Checkpoints,
    early_stopping,
    fit,
    init_state,
    train_step,
)
from jaxvae.training import validation as validation_of
from jaxvae.training.callbacks import Run

UNSAID = ("config", "table")  # of what is known of a model, too long for a line


class GoesOn:
    """A callback that says where a run goes on."""

    def begin(self, run: Run) -> None:
        if run.step >= run.end:
            print(f"this run is finished, at step {run.step}: nothing is left to do")
        elif run.step:
            print(f"going on from step {run.step} of {run.end}")

    def __call__(self, *_: Any) -> None:
        pass


def train(
    data: Path,
    run: Path,
    /,
    *,
    columns: tuple[str, ...] = (),
    kinds: tuple[str, ...] = (),
    network: Literal["mlp", "conv"] = "mlp",
    likelihood: Literal["gaussian", "bernoulli", "poisson", "logistic"] | None = None,
    latent: int = 8,
    hidden: int = 256,
    epochs: int = 50,
    batch: int = 64,
    learning_rate: float = 1e-3,
    validation: float = 0.1,
    seed: int = 0,
) -> None:
    """Train a VAE and save it in a folder. The same command goes on after whatever has ended it.

    What is saved is the model of the epoch that was best on the rows held out; without any, the
    last.

    Args:
      data: the file or folder.
      run: the folder to make.
      columns: of a table; by default all.
      kinds: of columns of a table, where they aren't what was inferred:
        zip=category, or number, or log of amounts, or ignored.
      likelihood: p(x|z): gaussian with one learned sigma, bernoulli of 0 and 1, poisson of counts,
        logistic of bytes as they are stored. By default logistic of images, else gaussian, which of
        a table with text or gaps is a normal, or a categorical, of every column.
      validation: the share of the rows held out.
    """
    check_counts(latent=latent, hidden=hidden, epochs=epochs, batch=batch)
    if is_saved(run):
        raise DataRefusedError(f"{run} is a saved model; give the run a folder of its own")
    refuse_other(run / "model")
    if not 0 <= validation < 1 or not learning_rate > 0:
        raise DataRefusedError("--validation must be in [0, 1) and --learning-rate above 0")
    mixed = likelihood in (None, "gaussian") and network == "mlp"
    rows = read_rows(data, columns, mixed=mixed)
    if kinds and mixed and rows.frame is not None:
        rows = Rows(rows.frame[[*columns]] if columns else rows.frame, rows.frame)
    likelihood = likelihood or ("logistic" if is_images(rows) else "gaussian")
    preparation = preparation_of(rows, likelihood, columns, kinds)
    bytes_ = likelihood == "logistic"
    xs = as_images(rows.values) if bytes_ else prepared(data, rows, preparation)
    if not table_of(preparation):
        check_rows(data, xs, network, likelihood)
    init_key, run_key, split_key, score_key = jax.random.split(jax.random.key(seed), 4)
    order = np.asarray(jax.random.permutation(split_key, len(rows.values)))
    held, kept = np.split(order, [int(validation * len(order))])

    def of(chosen: np.ndarray) -> Tree:
        return jax.tree.map(lambda a: jnp.asarray(a[chosen]), xs)

    if len(kept) < batch:
        raise DataRefusedError(f"--batch is {batch} but {len(kept)} rows are left to train on")
    rngs = nnx.Rngs(init_key)
    if table := table_of(preparation):
        print(table)
        model = make_vae(table, latents=latent, hidden=(hidden,), rngs=rngs)
    elif likelihood == "logistic":
        conv = network == "conv"
        model = make_vae(xs[0], latents=latent, convolutional=conv, hidden=(hidden,), rngs=rngs)
    else:
        model = _model(network, likelihood, xs.shape[1:], latent, hidden, rngs)
    optimizer = optax.adam(learning_rate)
    config = {"network": network, "likelihood": likelihood, "latent": latent, "hidden": hidden,
              "seed": seed, "learning_rate": learning_rate, "preparation": preparation}  # fmt: skip
    callbacks: list[Callback] = []
    if len(held):  # with more patience than epochs, for the best of all
        callbacks = [validation_of(elbo, score_key, of(held)),
                     early_stopping("validation_loss", patience=epochs)]  # fmt: skip
    callbacks.append(GoesOn())
    if mixed and (tails := [f"{name}=log" for name in long_tailed(rows, preparation)]):
        print(f"long tails, which a logarithm takes away: --kinds {' '.join(tails)}?")
    say({"training on": len(kept), "held out": len(held)})
    state, history = fit(
        train_step(elbo, optimizer),
        init_state(model, optimizer),
        run_key,
        of(kept),
        epochs=epochs,
        batch_size=batch,
        callbacks=callbacks,
        checkpoints=Checkpoints(run / "checkpoints", config=config),
    )
    by_epoch = {name: m.reshape(-1, len(kept) // batch) for name, m in history.items()}
    elbos, best = -by_epoch["loss"].mean(1), epochs - 1
    about: dict[str, Any] = {"data": data.name, "rows": len(kept), "epochs": epochs}
    if len(held):
        held_out = -by_epoch["validation_loss"][:, -1]
        best = int(np.nanargmax(held_out))
        about |= {"best_epoch": best + 1, "validation_elbo": float(held_out[best])}
    about |= {"elbo": float(elbos[best]), "config": config}
    if "table" in preparation:
        about |= {"table": preparation["table"], "config": config | {"preparation": {}}}
    save_model(run / "model", state.model, about=about)
    say({n: about[n] for n in about if n not in UNSAID} | {"model": str(run / "model")})


def long_tailed(rows: Rows, preparation: dict[str, Any]) -> list[str]:
    """Columns whose logarithms may be the better numbers, but those whose kind was chosen."""
    if table := table_of(preparation):
        return [column.name for column in table.seen if column.why == LONG_TAIL]
    columns = zip(preparation["columns"], rows.values.T, strict=False)
    return [name for name, values in columns if has_long_tail(values)]


def _model(network: str, likelihood: str, shape: Any, latent: int, hidden: int, rngs: Any) -> VAE:
    pair = {"mlp": (MLP, MLP), "conv": (ConvEncoder, ConvDecoder)}[network]
    encoder, decoder = (partial(each, hidden=(hidden,)) for each in pair)
    heads: dict[str, Callable[[], Any]] = {
        "gaussian": lambda: SharedScaleHead(0.5),
        "bernoulli": BernoulliHead,
        "poisson": lambda: HeadOf(Poisson, (Positive("n"),)),
    }
    return VAE(
        Conditional(encoder, NormalHead(), shape, (latent,), rngs=rngs),
        Conditional(decoder, heads[likelihood](), (latent,), shape, rngs=rngs),
        StandardNormal((latent,)),
    )
