"""The pictures of plots.md: `discern demo --output demo`, then `python docs/plot_pictures.py demo`."""

from __future__ import annotations

import sys
from pathlib import Path

import anndata as ad
import matplotlib as mpl

import discern

IMAGES = Path(__file__).parent / "images"
SYMBOLS = {
    "ENSG00000086548": "CEACAM6",
    "ENSG00000039068": "CDH1",
    "ENSG00000185499": "MUC1",
    "ENSG00000077782": "FGFR1",
    "ENSG00000167601": "AXL",
    "ENSG00000119888": "EPCAM",
    "ENSG00000146648": "EGFR",
    "ENSG00000026025": "VIM",
}


def main(demo: Path) -> None:
    """Draw each function of `discern.pl` for the result of the demo."""
    experiment = demo / "experiments" / "lung_cell_lines"
    (projected,) = (experiment / "projected").glob("*.h5ad")
    result = ad.read_h5ad(projected)
    processed = ad.read_h5ad(experiment / "processed_data" / "concatenated_data.h5ad")
    result.layers["measured"] = processed[result.obs_names].X
    result.var["symbol"] = [SYMBOLS.get(gene, "") for gene in result.var_names]
    with mpl.rc_context({"savefig.dpi": 80}):
        discern.pl.umap(result, save=IMAGES / "pl_umap.png")
        discern.pl.gene(result, "MUC1", reference="celseq2", save=IMAGES / "pl_gene.png")
        discern.pl.means(result, reference="celseq2", save=IMAGES / "pl_means.png")
        discern.pl.dotplot(result, list(SYMBOLS.values()), reference="celseq2", save=IMAGES / "pl_dotplot.png")
        discern.pl.distance(result, reference="celseq2", save=IMAGES / "pl_distance.png")
        discern.pl.learning_curves(experiment, save=IMAGES / "pl_learning_curves.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
