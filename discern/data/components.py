"""The space of the principal components: the one way into it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
from scipy import sparse

if TYPE_CHECKING:
    from collections.abc import Sequence

    import anndata
    import numpy.typing as npt

    from discern.data.chunks import Matrix


@dataclass(frozen=True)
class PrincipalComponents:
    """The map from log-normalised expression to principal components, as a rule those of standardised expression.

    `varm["PCs"]` are loadings of (x - mean) / std; here they are applied to x itself, so that a chunk stays sparse.

    Attributes:
        genes: Numbers of the genes that have loadings, (n_pca_genes,).
        loadings: Loadings divided by the standard deviations, (n_pca_genes, n_components).
        origin: What the means of the genes are mapped to, (n_components,).

    Example:
        >>> import anndata, pandas as pd
        >>> var = pd.DataFrame({"mean_scaling": [1.0, 5.0], "var_scaling": [2.0, 1.0]}, index=["A", "B"])
        >>> cells = anndata.AnnData(np.array([[1.0, 9.0], [3.0, 9.0]]), var=var, varm={"PCs": np.array([[1.0], [0.0]])})
        >>> PrincipalComponents.of(cells).project(cells.X).tolist()
        [[0.0], [1.0]]
    """

    genes: npt.NDArray[np.intp]
    loadings: npt.NDArray[np.float64]
    origin: npt.NDArray[np.float64]

    @classmethod
    def of(cls, adata: anndata.AnnData) -> Self:
        """Take the components of processed cells: varm `PCs`, var `mean_scaling` and `var_scaling`."""
        loadings = np.asarray(adata.varm["PCs"], dtype=np.float64)
        genes = np.flatnonzero(loadings.any(axis=1))
        mean, std = (adata.var[f"{name}_scaling"].to_numpy(dtype=np.float64)[genes] for name in ("mean", "var"))
        scaled = loadings[genes] / std[:, np.newaxis]
        return cls(genes, scaled, mean @ scaled)

    @classmethod
    def found(cls, chunks: Sequence[Matrix], most_genes: int = 1000, most: int = 32, standardised: bool = True) -> Self:
        """Find the components of some cells that have none: of the genes that vary most.

        Args:
            chunks: Log-normalised expression, (n_cells, n_genes) each, as many cells as fit into memory.
            most_genes: Most genes to use.
            most: Most components.
            standardised: Whether each gene varies alike; else as much as it does.
        """
        from sklearn.decomposition import PCA

        values = sparse.vstack([sparse.csr_matrix(chunk) for chunk in chunks], format="csr").astype(np.float64)
        mean = np.asarray(values.mean(axis=0)).ravel()
        std = np.sqrt(np.maximum(np.asarray(values.multiply(values).mean(axis=0)).ravel() - mean**2, 0))
        genes = np.sort(np.argsort(-std, kind="stable")[:most_genes])
        genes = genes[std[genes] > 0]
        per_gene = 1 / std[genes] if standardised else np.ones(len(genes))
        number = min(most, values.shape[0], len(genes))
        axes = np.zeros((len(genes), 0))
        if number:  # of sparse values: none are made dense
            scaled_values = (values[:, genes] @ sparse.diags_array(per_gene)).tocsr()
            axes = PCA(number, svd_solver="covariance_eigh").fit(scaled_values).components_.T
        scaled = axes * per_gene[:, np.newaxis]
        return cls(genes, scaled, mean[genes] @ scaled)

    @property
    def n_components(self) -> int:
        """Number of components."""
        return int(self.loadings.shape[1])

    def project(self, chunk: Matrix) -> npt.NDArray[np.float64]:
        """Return the components of some cells.

        Args:
            chunk: Log-normalised expression, (n_cells, n_genes), dense or sparse.

        Returns:
            Of shape (n_cells, n_components).
        """
        return np.asarray(chunk[:, self.genes] @ self.loadings) - self.origin
