"""scikit-learn's isolation forest as it comes, on the columns that a `Table` has inferred."""

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.ensemble import IsolationForest

from jaxvae import nn


def isolation_forest(table: nn.Table, frame: Any, seed: int) -> Callable[[Any], np.ndarray]:
    """frame -> how odd each row is.

    Numbers have the median in their gaps; a category is one-hot, 0 in every place in a gap.
    """
    medians = {column.name: table.coded(frame)[column.name].median() for column in table.seen}

    def features(frame: Any) -> np.ndarray:
        coded, parts = table.coded(frame), []
        for column in table.seen:
            x = coded[column.name]
            if column.kind == "number":
                parts.append(x.fillna(medians[column.name]).to_numpy()[:, None])
            else:
                parts.append(x.to_numpy()[:, None] == np.arange(len(column.values)))
        return np.concatenate(parts, axis=1, dtype=float)

    forest = IsolationForest(random_state=seed).fit(features(frame))
    return lambda frame: -forest.score_samples(features(frame))
