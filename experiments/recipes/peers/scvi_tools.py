"""The cells of `experiments.recipes.single_cells` by scvi-tools, in an environment of its own:

uv run --no-project --with scvi-tools==1.4.2 --with h5py \\
    python -m experiments.recipes.peers.scvi_tools FILE
"""

import argparse
import json
import time
from typing import Any

import anndata
import numpy as np
import scvi
import torch

from experiments.datasets.cells import measured, read, split

BATCH = 112  # cells a step
EPOCHS = 400
SAMPLES = 1000  # importance samples of log p(x)
SEEDS = 3


def main(path: str) -> None:
    (counts, known), types, _ = read(path)
    phase = known["phase"].argmax(1).astype(str)
    for seed in range(SEEDS):
        scvi.settings.seed = seed
        train, test = split(seed, len(types))
        cells = anndata.AnnData(counts, obs={"phase": phase})
        scvi.model.SCVI.setup_anndata(cells, batch_key="phase")
        model: Any = scvi.model.SCVI(cells, gene_likelihood="nb", n_hidden=128, n_latent=10)
        start = time.perf_counter()
        model.train(
            max_epochs=EPOCHS,
            datasplitter_kwargs={"external_indexing": [train, test]},
            batch_size=BATCH,
            accelerator="cpu",
            plan_kwargs={"n_epochs_kl_warmup": EPOCHS},
        )
        seconds = time.perf_counter() - start
        with torch.no_grad():
            found = model.get_marginal_ll(
                cells[test].copy(),
                n_mc_samples=SAMPLES,
                n_mc_samples_per_pass=50,
                return_mean=False,
            )
        nats = -np.asarray(found)
        result = measured(model.get_latent_representation(cells), types, nats)
        print(json.dumps(result | {"seconds": seconds, "seed": seed}), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", metavar="FILE")
    main(parser.parse_args().path)
