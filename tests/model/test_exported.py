"""Files of models that come from anybody: read back as they were written, or refused in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest

from discern.errors import InvalidInputError, MissingFileError, UnknownNameError, UserError
from discern.model import exported
from discern.reconstructor import Reconstructor

if TYPE_CHECKING:
    from collections.abc import Callable

    import anndata as ad

PARAMETERS: dict[str, Any] = {
    "min_genes": 5,
    "min_cells": 3,
    "latent_dim": 4,
    "layers": [16],
    "batch_size": 8,
    "max_steps": 1,
    "GPU": [],
    "LSN": 1000,
    "test_cells": 0.3,
}


@pytest.fixture(scope="module")
def cells(make_raw_cells: Callable[..., ad.AnnData]) -> ad.AnnData:
    return make_raw_cells({"good": 60, "poor": 60})


@pytest.fixture(scope="module")
def model(cells: ad.AnnData) -> Reconstructor:
    return Reconstructor(seed=1, **PARAMETERS).fit(cells)


@pytest.fixture(scope="module")
def written(model: Reconstructor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("exported") / "model.discern"
    for batch in (None, "good", "poor"):
        known = model._known(batch)
    exported.write(file, model.estimator.trained, model.parameters, known, {"licence": "CC0"})
    return file


@pytest.fixture
def file(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(written, tmp_path / "model.discern"))


def test_it_comes_back_and_does_the_same(model: Reconstructor, cells: ad.AnnData, file: Path) -> None:
    loaded = Reconstructor.load(file)
    for reference in (None, "good", ""):
        new, wanted = (one.project(reference, adata=cells[60:]) for one in (loaded, model))
        np.testing.assert_array_equal(new.X, wanted.X)
        np.testing.assert_array_equal(new.var["discern_trust"], wanted.var["discern_trust"])
        np.testing.assert_array_equal(new.obsm["X_DISCERN"], wanted.obsm["X_DISCERN"])
        for column in new.obs.columns.intersection(["discern_distance", "discern_beyond"]):
            np.testing.assert_array_equal(new.obs[column], wanted.obs[column])
    assert list(loaded._known("good").seen["good"].alignments) == ["poor"]
    intervals = [one.project("good", adata=cells[60:], intervals=True) for one in (loaded, model)]
    np.testing.assert_array_equal(*(one.layers["estimated_high"] for one in intervals))
    assert exported.read(file).card == {"licence": "CC0"}
    assert "without cells" in repr(loaded)


def test_what_needs_cells_says_so(cells: ad.AnnData, file: Path, tmp_path: Path) -> None:
    loaded = Reconstructor.load(file)
    for step in (lambda: loaded.project("good"), lambda: loaded.save(tmp_path / "x"), lambda: loaded.update(cells)):
        with pytest.raises(InvalidInputError, match="this model was exported and has no cells"):
            step()


def _set(place: str, value: Any) -> Callable[[h5py.File], None]:
    def change(handle: h5py.File) -> None:
        del handle[place]
        handle[place] = value

    return change


def _attribute(name: str, value: Any, group: str = "/") -> Callable[[h5py.File], None]:
    return lambda handle: handle[group].attrs.__setitem__(name, value)


def _remove(place: str) -> Callable[[h5py.File], None]:
    return lambda handle: handle.__delitem__(place)


def _linked(handle: h5py.File) -> None:
    del handle["card"]
    handle["card"] = h5py.ExternalLink("/etc/passwd", "/")


def _nan_weight(handle: h5py.File) -> None:
    layer = next(iter(handle["weights"].values()))
    name = next(iter(layer))
    layer[name][...] = np.nan


def _directions(value: Any) -> Callable[[h5py.File], None]:
    def change(handle: h5py.File) -> None:
        group = next(group for group in handle["seen"].values() if "directions" in group)
        del group["directions"]
        group["directions"] = value

    return change


def _alignment(change: Callable[[h5py.Group], None]) -> Callable[[h5py.File], None]:
    return lambda handle: change(next(g["alignments/0"] for g in handle["seen"].values() if "alignments" in g))


def _of_another_network(group: h5py.Group) -> None:
    for part in ("codes", "moves"):
        _set(part, np.ones((len(group["shares"]), 9)))(group)


def _other_genes(handle: h5py.File) -> None:
    names = handle["var/_index"].asstr()[()]
    del handle["var/_index"]
    handle["var/_index"] = names[::-1].astype(object)
    handle["var/_index"].attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})


def _imports(handle: h5py.File) -> None:
    parameters = json.loads(handle["parameters"].asstr()[()])
    parameters["model"]["activation_fn"] = "os.system"
    _set("parameters", json.dumps(parameters))(handle)


def _huge(handle: h5py.File) -> None:
    parameters = json.loads(handle["parameters"].asstr()[()])
    parameters["model"]["encoder"]["layers"] = [10**9]
    _set("parameters", json.dumps(parameters))(handle)


BROKEN: dict[str, tuple[Callable[[h5py.File], None], str]] = {
    "future export": (_attribute("exported_version", 2), "exported in format 2 by a newer DISCERN"),
    "future model": (_attribute("format_version", 3), "written in format 3 by a newer DISCERN"),
    "version of text": (_attribute("exported_version", "one"), "exported_version"),
    "link": (_linked, "link to another file"),
    "no parameters": (_remove("parameters"), "parameters"),
    "parameters no JSON": (_set("parameters", "{"), "not a complete model file"),
    "parameters a list": (_set("parameters", "[]"), "parameters: expected an object of JSON"),
    "parameters a number": (_set("parameters", 3), "parameters: expected a text"),
    "card of NaN": (_set("card", np.nan), "card: expected a text"),
    "a name to import": (_imports, "os.system"),
    "an unknown key": (_set("parameters", '{"model": {"modell": 1}, "training": {}}'), "modell"),
    "a huge network": (_huge, "model.encoder.layers[0]: expected"),
    "no genes": (_remove("var"), "var"),
    "other genes": (_other_genes, "its genes and batches are not those of its network"),
    "no batches": (_remove("uns"), "uns"),
    "NaN in weights": (_nan_weight, "not a number"),
    "no weights": (_remove("weights"), "not a complete model file"),
    "NaN in scaling": (lambda handle: handle["scaling/mean"].__setitem__(0, np.nan), "scaling/mean"),
    "no scaling": (_remove("scaling"), "its genes and batches are not those of its network"),
    "NaN in directions": (_directions(np.full((3, 4), np.nan)), "directions"),
    "directions of another network": (_directions(np.ones((3, 9))), "latent codes of 9 dimensions"),
    "directions of text": (_directions("x"), "not a complete model file"),
    "NaN in a move": (_alignment(lambda group: group["moves"].__setitem__(0, np.nan)), "moves"),
    "other moves than codes": (_alignment(_set("moves", np.ones((3, 4)))), "a share and a move of each"),
    "other shares than codes": (_alignment(_set("shares", np.ones(3))), "a share and a move of each"),
    "a share of 7": (_alignment(lambda group: group.attrs.__setitem__("usual", 7.0)), "usual"),
    "no codes": (_alignment(_remove("codes")), "not a complete model file"),
    "codes of another network": (_alignment(_of_another_network), "latent codes of 9 dimensions"),
    "trust of other genes": (_set("seen/0/trust", np.ones(3)), "trust: expected correlations of"),
    "trust of 7": (lambda handle: handle["seen/0/trust"].__setitem__(0, 7), "trust: expected correlations of"),
    "seen is a number": (_set("seen", 3), "not a complete model file"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_hostile_file_is_refused_in_one_line_that_names_it(name: str, file: Path) -> None:
    change, said = BROKEN[name]
    with h5py.File(file, "r+") as handle:
        change(handle)
    with pytest.raises(UserError) as error:
        Reconstructor.load(file)
    message = str(error.value)
    assert said in message
    assert "model.discern" in message
    assert "\n" not in message
    assert len(message) < 2000


@pytest.mark.parametrize("size", [0, 100, 5000, -1])
def test_a_truncated_file_is_refused(size: int, file: Path) -> None:
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(InvalidInputError, match=r"model\.discern"):
        Reconstructor.load(file)


def test_other_files_are_refused(model: Reconstructor, tmp_path: Path) -> None:
    folder = model.save(tmp_path / "saved")
    with pytest.raises(InvalidInputError, match="this is a model of an experiment: export that"):
        exported.read(folder / "job" / "last_model.h5")
    with pytest.raises(InvalidInputError, match="this is a folder"):
        exported.read(folder)
    with pytest.raises(InvalidInputError, match=r"concatenated_data\.h5ad"):
        exported.read(folder / "processed_data" / "concatenated_data.h5ad")
    with pytest.raises(InvalidInputError, match=r"parameters\.json"):
        exported.read(folder / "parameters.json")
    with pytest.raises(MissingFileError):
        exported.read(tmp_path / "none.discern")


def test_an_unknown_batch_is_told(file: Path, cells: ad.AnnData) -> None:
    model = Reconstructor.load(file)
    with pytest.raises(InvalidInputError, match="has no value 'bad'"):
        model.project("bad", adata=cells)
    strange = cells.copy()
    strange.obs["batch"] = "bad"
    with pytest.raises(InvalidInputError, match="onlinetraining"):
        model.project("good", adata=strange)
    with pytest.raises(UnknownNameError, match="donor"):
        model.project("good", adata=strange, batch_key="donor")
    del strange.obs["batch"]
    new = model.project("good", adata=strange, batch_key=None, as_batch="poor")
    assert set(new.obs["discern_encoded_as"]) == {"poor"}
