"""Functions under the names and with the arguments that people's own code already calls."""

import numpy as np

from vifast.retrieval.rerank import rerank


def re_ranking(probFea, galFea, k1, k2, lambda_value, *, queries_only=False) -> np.ndarray:
    r"""k-reciprocal re-ranking under the name and arguments of the published evaluation code.

    :func:`vifast.retrieval.rerank` with ``metric="sqeuclidean"`` and ``precision="reference"``: the published
    numbers, half-precision rounding included, for code that compares with its old results. Its defaults are faster.

    Args:
        probFea: [Q, D] query features, a tensor or an array.
        galFea: [G, D] gallery features.
        k1: neighbours that must be mutual.
        k2: rows whose weights are averaged.
        lambda_value: weight of the original distance.
        queries_only: the masked mode.

    Returns:
        [Q, G] float32 array of distances.

    Raises:
        TypeError, ValueError: as :func:`vifast.retrieval.rerank`.

    Memory:
        As :func:`vifast.retrieval.rerank`.

    Source:
        specs idkl 10.

    Example:
        >>> import numpy as np
        >>> query, gallery = np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32) + 0.1
        >>> re_ranking(query, gallery, 1, 1, 0.3).argmin(1).tolist()
        [0, 1]
    """
    dist = rerank(probFea, galFea, k1=k1, k2=k2, lambda_=lambda_value, queries_only=queries_only, precision="reference")
    return dist.cpu().numpy()
