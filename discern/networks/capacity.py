"""Whether this machine can hold a network at all."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING

from discern.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence


_BYTES_OF_A_WEIGHT = 16  # the weight, its gradient and two moments of the optimiser


def check_network_fits(
    encoder: Sequence[int], decoder: Sequence[int], latent_dim: int, n_genes: int, n_labels: int
) -> None:
    """Refuse a network that needs more memory than this machine has.

    Args:
        encoder: Sizes of the hidden layers.
        decoder: The same.
        latent_dim: `model.latent_dim`.
        n_genes: Number of genes.
        n_labels: Number of batches.

    Raises:
        InvalidInputError: If it does not fit; the message has both sizes.

    Example:
        >>> check_network_fits([10**6], [10**6], 48, 10**6, 2)
        Traceback (most recent call last):
        ...
        discern.errors.InvalidInputError: model: a network with layers [1000000] and [1000000], ... needs about 48...
    """
    weights = count_weights(encoder, decoder, latent_dim, n_genes, n_labels)
    needed, there = _BYTES_OF_A_WEIGHT * weights, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise InvalidInputError(
            f"model: a network with layers {list(encoder)} and {list(decoder)}, latent_dim {latent_dim} and "
            f"{n_genes:,} genes needs about {needed / 1e9:,.0f} GB, this machine has {there / 1e9:,.0f} GB: "
            "make it smaller"
        )


def count_weights(encoder: Sequence[int], decoder: Sequence[int], latent_dim: int, n_genes: int, n_labels: int) -> int:
    """Return how many weights a network has, but for biases; arguments as for `check_network_fits`.

    Example:
        >>> count_weights([10], [10], 5, 100, 2)
        3610
    """
    sizes = ([n_genes, *encoder, 2 * latent_dim], [latent_dim, *decoder, 2 * n_genes])
    return sum(_weights(side, n_labels) for side in sizes)


def _weights(sizes: Sequence[int], n_labels: int) -> int:
    return sum(below * above + n_labels * above for below, above in itertools.pairwise(sizes))
