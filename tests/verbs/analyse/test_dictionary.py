"""Sparse dictionaries in the layouts of three libraries, what they see, and what a vector is to them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from personavec.errors import DataError
from personavec.verbs.analyse.dictionary import Dictionary, load_dictionary, nearest

FEATURES, WIDTH = 40, 12


def parts(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.nn.functional.normalize(torch.randn((FEATURES, WIDTH), generator=generator), dim=1)
    return {"rows": rows, "bias": 0.1 * torch.randn(FEATURES, generator=generator), "centre": torch.ones(WIDTH)}


def written(folder: Path, layout: str) -> Path:
    own = parts()
    tensors, config = {
        "saelens": (
            {"W_dec": own["rows"], "W_enc": own["rows"].T, "b_enc": own["bias"], "b_dec": own["centre"]},
            {"apply_b_dec_to_input": True, "metadata": {"hook_name": "blocks.3.hook_resid_post"}},
        ),
        "sparsify": (
            {
                "W_dec": own["rows"], "encoder.weight": own["rows"].clone(), "encoder.bias": own["bias"],
                "b_dec": own["centre"],
            },
            {"k": 5},
        ),
        "dictionary_learning": (
            {
                "decoder.weight": own["rows"].T, "encoder.weight": own["rows"].clone(), "encoder.bias": own["bias"],
                "b_dec": own["centre"], "k": torch.tensor(5), "threshold": torch.tensor(-1.0),
            },
            {"trainer": {"layer": 3}},
        ),
        "jumprelu": (
            {"W_dec": own["rows"], "W_enc": own["rows"].T, "b_enc": own["bias"],
             "b_dec": own["centre"], "threshold": torch.full((FEATURES,), 0.5)},
            {"apply_b_dec_to_input": False, "metadata": {"hook_name": "blocks.4.hook_resid_pre"}},
        ),
    }[layout]  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("layout", "k", "layer", "centred"),
    [
        ("saelens", None, 3, True),
        ("sparsify", 5, None, True),
        ("dictionary_learning", 5, 3, True),
        ("jumprelu", None, 3, False),
    ],
)
def test_layouts_of_libraries(layout: str, k: int | None, layer: int | None, centred: bool, tmp_path: Path) -> None:
    found = load_dictionary(written(tmp_path / layout, layout), WIDTH)
    own = parts()
    assert found.encoder is not None and (found.k, found.layer) == (k, layer)
    torch.testing.assert_close(found.decoder, own["rows"])
    torch.testing.assert_close(found.encoder, own["rows"])
    assert bool(found.centre.any()) == centred
    seen = found.encode(torch.randn((30, WIDTH), generator=torch.Generator().manual_seed(1)))
    assert (seen >= 0).all() and seen.shape == (30, FEATURES)
    if k:
        assert ((seen > 0).sum(dim=1) <= k).all() and (seen > 0).sum() > 30
    if layout == "jumprelu":
        assert (seen[seen > 0] > 0.5).all()


def test_a_vector_made_of_a_feature_is_found() -> None:
    own = parts()
    dictionary = Dictionary(3 * own["rows"], None, own["bias"], torch.zeros(WIDTH), None, None, None, Path("sae"))
    unit = torch.nn.functional.normalize(own["rows"][7] + 0.1 * own["rows"][8], dim=0)
    found = nearest(dictionary, unit, 5, 0)
    assert found["features"][0]["feature"] == 7 and found["features"][0]["cosine"] > 0.95
    assert found["null"]["p"] < 0.01 and found["size"] == FEATURES and 0.95 < found["explained"] <= 1.0001
    chance = torch.nn.functional.normalize(torch.randn(WIDTH, generator=torch.Generator().manual_seed(3)), dim=0)
    assert nearest(dictionary, chance, 5, 0)["null"]["p"] > 0.01
    with pytest.raises(DataError, match="expected an encoder"):
        dictionary.encode(unit[None])


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"W_enc": (4, 12)}, "expected W_dec or decoder.weight"),
        ({"W_dec": (4, 13)}, "expected matrices with a side of 12"),
        ({"W_dec": (4, 12), "W_enc": (12, 5)}, "expected as many features"),
    ],
)
def test_wrong_files_give_one_line(tensors: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "sae.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in tensors.items()}, path)
    with pytest.raises(DataError, match=message):
        load_dictionary(path, WIDTH)
    (tmp_path / "other.safetensors").write_text("{}")
    with pytest.raises(DataError, match="expected a safetensors file"):
        load_dictionary(tmp_path / "other.safetensors", WIDTH)
