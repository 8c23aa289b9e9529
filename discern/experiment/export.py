"""Write the model of an experiment into one file that can be given away."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from discern.errors import InvalidInputError
from discern.experiment.folder import load_experiment, open_experiment, read_network, require_model
from discern.folder.layout import ExperimentFolder
from discern.folder.locks import locked
from discern.model import exported
from discern.model.known import of_experiment
from discern.runtime.foreign import check_file, reading

if TYPE_CHECKING:
    from collections.abc import Mapping

    from discern.model.known import Known

_LOGGER = logging.getLogger(__name__)


def export(exp_folder: Path, file: Path, made_by: str, licence: str | None = None) -> Path:
    """Write parameters, genes, batches, statistics of genes, weights and a model card into one file; no cells.

    Of the cells that were trained on, it has for each batch the directions of at most 10,000 latent codes, without
    names, which distances are measured to.

    Args:
        exp_folder: EXPERIMENTS_DIR/NAME, trained.
        file: The file to write, `.discern`; must not be there yet.
        made_by: Program and version; goes into its card.
        licence: Under which it is given away; goes into its card.

    Returns:
        The file.

    Raises:
        UserError: If there is no model, or something of that name is there.
    """
    exp_folder, file = Path(exp_folder), Path(file)
    if file.suffix != exported.SUFFIX:
        raise InvalidInputError(f"{file}: expected a name that ends in {exported.SUFFIX}")
    if file.exists() or file.is_symlink():
        raise InvalidInputError(f"{file} is there already: remove it or give another name")
    experiment = open_experiment(exp_folder)
    require_model(exp_folder)
    with locked(exp_folder):
        data = load_experiment(exp_folder, None, batch_size=1)
        trained = read_network(exp_folder, experiment, data)
        batches = [str(name) for name in data.obs["batch"].cat.categories]
        known = of_experiment(exp_folder, trained, [None, *batches], lambda: data)
        card = {"made_by": made_by, "licence": licence, **_card(exp_folder, trained.epoch, known)}
    exported.write(file, trained, experiment.as_dict(), known, card)
    return file


def _card(exp_folder: Path, epochs: int, known: Known) -> dict[str, Any]:
    """Return what a reader wants to know of a model."""
    config = known.uns["DISCERN"]
    total = int(config.get("total_count", 0))
    cells = {name: round(share * total) for name, share in config.get("batch_ratios", {}).items()}
    kept = {name: seen.yardstick for name, seen in known.seen.items() if name is not None}
    return {
        "exported": datetime.now(UTC).date().isoformat(),
        "trained_on": {
            "cells": total,
            "training_cells": int(config.get("total_train_count", 0)),
            "genes": len(known.genes),
            "epochs": epochs,
            "cells_of_batches": cells,
        },
        "latent_codes_kept": {name: 0 if part is None else len(part.directions) for name, part in kept.items()},
        "evaluation": _evaluation(ExperimentFolder(exp_folder).evaluation / "evaluation.json", epochs),
    }


def _evaluation(file: Path, epochs: int) -> Mapping[str, Any] | None:
    """Return the figures of `discern evaluate`, if they are of this model."""
    if not file.is_file():
        _LOGGER.info("no figures of `discern evaluate` go into the model card: there are none yet")
        return None
    check_file(file)
    with reading(file, "cannot be read", "run `discern evaluate` again"):
        figures = json.loads(file.read_text())
        if figures.get("epoch") == epochs:
            return {key: value for key, value in figures.items() if key != "experiment"}
    _LOGGER.warning("%s: is of another model, after epoch %s; it does not go into the card", file, figures.get("epoch"))
    return None


def describe(file: Path) -> str:
    """Return what the card of an exported model says, and what can be done with it.

    Raises:
        UserError: If it is no such file.
    """
    model = exported.read(file)
    card, trained_on = model.card, _mapping(model.card.get("trained_on"))
    codes, figures = _mapping(card.get("latent_codes_kept")), _mapping(card.get("evaluation"))
    lines = [
        str(file),
        _line("made by", f"{card.get('made_by')}, exported {card.get('exported')}"),
        _line("licence", card.get("licence") or "none is given"),
        _line("trained", f"{trained_on.get('epochs')} epochs on {trained_on.get('training_cells')} cells"),
        _line("genes", f"{len(model.known.genes):,}, such as {', '.join(map(str, model.known.genes.index[:3]))}"),
    ]
    cells = _mapping(trained_on.get("cells_of_batches"))
    for batch in model.known.batches:
        lines.append(_line("batch", f"{batch}: {cells.get(batch)} cells; {codes.get(batch, 0)} latent codes are kept"))
    reference = _mapping(figures.get("reference")).get("batch")
    for source, found in _mapping(figures.get("sources")).items():
        verdict = _mapping(_mapping(found).get("verdict")).get("grade")
        lines.append(_line("evaluated", f"{source} as {reference}: {verdict}"))
    lines.append(_line("next", f"discern project --model {file} --input RAW --reference BATCH --output FOLDER"))
    return "\n".join(lines)


def _mapping(part: Any) -> Mapping[str, Any]:
    return part if isinstance(part, dict) else {}


def _line(head: str, text: object) -> str:
    return f"  {head:10} {text}"
