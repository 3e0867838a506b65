"""Which data a row of the pages is trained on, with which settings, and which is run elsewhere."""

from experiments.common.methods import ROWS, Row

SETTINGS: dict[str, dict[str, float]] = {  # where the page's are of larger images
    "penalty/geco": {"tolerance": 20.0},
    "penalty/target-rate": {"target": 5.0},
    "penalty/capacity": {"capacity": 5.0},
}
GROUP_DATA = {"likelihood": "densities"}  # the rest: digits
ROW_DATA = {
    "prior/markov-chain": "series",
    "prior/conditional-p-z-y": "labelled digits",
    "likelihood/bernoulli": "digits",
    "likelihood/256-values": "patches",
    "likelihood/discretized-logistic": "patches",
    "likelihood/mixture-of-them-grey": "patches",
    "likelihood/mixture-of-them-rgb-coupled": "patches",
    "likelihood/poisson": "counts",
    "likelihood/negative-binomial": "counts",
    "likelihood/negative-binomial-a-dispersion-a-gene": "counts",
    "likelihood/zero-inflated": "counts",
    "likelihood/mixed-columns": "table",
    "likelihood/missing-entries": "gappy table",
    "likelihood/missing-entries-as-a-head": "gappy table",
    "likelihood/a-sequence-step-by-step": "series",
    "network/behind-integers-as-stored": "patches",
    "kl/stepwise-kl": "series",
    "structure/conditional-vae": "labelled digits",
    "structure/semi-supervised-m2-examples-with-a-label": "labelled digits",
    "structure/missing-data-single-imputation": "gappy table",
    "structure/missing-data-multiple-imputation": "gappy table",
    "structure/mixed-tables": "gappy table",
    "structure/mixed-tables-of-a-data-frame-its-anomalies": "data frame",
    "structure/product-of-experts": "halves",
    "structure/mixture-of-experts": "halves",
    "structure/mixture-of-products": "halves",
    "structure/sequences-word-dropout": "text",
    "structure/dynamics-deep-markov-model": "series",
    "structure/dynamics-deep-markov-model-its-rate-in-closed-form-at-each-step": "series",
    "structure/dynamics-deep-markov-model-of-unequal-length-padded": "padded series",
}
DEEP = "structure/deep-hierarchy-residual-cells"
PART_OF = {  # rows of which another is made, and so run with it
    "gradient/score-function-learned-baseline": "experiments.codes.categorical",  # where it learns
    "gradient/relax": "experiments.codes.categorical",
    "likelihood/densities-of-stored-integers": "likelihood/gaussian-sigma-a-pixel",
    "network/residual-cell": DEEP,
    "network/cells-or-blocks-alike-in-a-loop": DEEP,
    "network/level-of-residual-blocks": DEEP,
    "network/masked-for-autoregressive-flows-and-priors": "prior/autoregressive",
    "penalty/geco-its-model-with-the-multiplier": "penalty/geco",
    "penalty/adversarial-autoencoder-its-two-players": "penalty/adversarial-autoencoder",
    "penalty/vae-gan-its-two-players": "penalty/vae-gan",
    "codes/vq-vae-the-model": "codes/vq-vae-the-model-its-codebook-moved-by-the-gradient",
    "structure/semi-supervised-m2": "structure/semi-supervised-m2-examples-without",
    "structure/joint-discrete-and-continuous":
        "structure/joint-discrete-and-continuous-one-part-summed-out",
}  # fmt: skip
SCRIPTS = ("codes.priors", "codes.tricks", "priors", "structures.lfads", "structures.multimodal",
           "structures.missing_not_at_random", "structures.world_model", "tokenizer")  # fmt: skip
OWN = ("product-of-experts", "mixture-of-experts", "mixture-of-products")  # which the zoo runs too
PART_OF |= (
    {  # what asks for a model or data of its own, and has them in a script
        row.path: row.run
        for row in ROWS.values()
        if row.name not in OWN
        and (row.run in [f"experiments.{s}" for s in SCRIPTS] or row.run[:2] == "no")
    }
    | {"kl/diffusion-kl": "experiments.priors"}
)


def data_of(row: Row) -> str:
    return ROW_DATA.get(row.path) or GROUP_DATA.get(row.group, "digits")
