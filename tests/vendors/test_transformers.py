"""From a folder to a pruned detector, and back: exact, saved, loaded, trained on by the vendor."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

pytest.importorskip("transformers")

from rich.console import Console
from safetensors.torch import load_file

import autoprune
from autoprune import progress
from autoprune.detectors import load_dense
from autoprune.detectors.class_names import class_names
from autoprune.errors import ModelError
from autoprune.export import save_detector
from autoprune.fields import ModelSpec
from autoprune.graph import ChannelGraph, prune
from autoprune.graph.surgery import mask
from autoprune.policy import Policy
from autoprune.vendors.transformers_families import FAMILIES, quiet
from autoprune.vendors.transformers_weights import translated_for

from .transformers_models import config_of, halved, write_folder

SIDES = {family: 128 if family == "deformable_detr" else 64 for family in FAMILIES}


@dataclass
class Case:
    """A dense detector, and it pruned to half of each group's channels, by a policy."""

    family: str
    dense: nn.Module
    spec: ModelSpec
    graph: ChannelGraph
    policy: Policy
    pruned: Any

    @property
    def image(self) -> Tensor:
        side = SIDES[self.family]
        return torch.rand((3, side, side), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=list(FAMILIES))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    family: str = request.param
    folder = tmp_path_factory.mktemp(family)
    write_folder(folder, family)
    dense, spec, graph, policy = halved(folder, SIDES[family])
    return Case(family, dense, spec, graph, policy, prune(dense, graph, policy.keep))


def test_a_size_that_the_folder_does_not_say_is_said(tmp_path: Path) -> None:
    write_folder(tmp_path, "rt_detr")
    (tmp_path / "preprocessor_config.json").unlink()
    for arguments, said in (({}, 1), ({"size": 64}, 0)):
        out = io.StringIO()
        with progress.show(Console(file=out, width=500)):
            load_dense(f"transformers:{tmp_path}", arguments, weights=tmp_path)
        assert out.getvalue().count("brought to the library's own size (height 640, width 640)") == said


def raw(detector: Any, image: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and boxes in float64: in float32 ties of the best queries may fall either way."""
    detector = detector.double().eval()
    with torch.inference_mode():
        batch, _ = detector.transform([image.double()])
        output = detector.raw(batch)
    detector.float()
    return output["logits"], output["pred_boxes"]


def test_a_policy_holds_all_that_is_needed(case: Case) -> None:
    assert case.spec.num_classes == 4
    assert case.spec.arguments["config"]["model_type"] == case.family
    assert yaml.safe_load(yaml.safe_dump(case.spec.arguments)) == case.spec.arguments
    assert class_names(None, case.spec.name, 4, case.spec.arguments) == case.policy.labels


def test_pruned_equals_masked(case: Case) -> None:
    assert case.graph.gflops(case.policy.kept_widths) < 0.9 * case.graph.gflops()
    masked = mask(case.dense, case.graph, case.policy.keep)
    for own, wanted in zip(raw(case.pruned, case.image), raw(masked, case.image), strict=True):
        assert (own - wanted).abs().max() <= 1e-9 * wanted.abs().max()
    dense_logits = raw(case.dense, case.image)[0]
    assert (dense_logits - raw(masked, case.image)[0]).abs().max() > 1e-3, "nothing of value was masked"


def test_features_carry_channels(case: Case) -> None:
    seen: dict[str, Tensor] = {}
    modules = dict(case.pruned.named_modules())
    handles = [
        modules[name].register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
        for name in case.pruned.features
    ]
    with torch.inference_mode():
        case.pruned.eval()([case.image])
    for handle in handles:
        handle.remove()
    assert set(seen) == set(case.pruned.features)
    assert all(out.dim() == 4 for out in seen.values())
    assert bool(seen) == (case.family != "yolos"), "which has no feature maps"


def test_a_pruned_detector_is_saved_and_loaded_without_its_folder(case: Case, tmp_path: Path) -> None:
    save_detector(tmp_path, case.pruned, case.policy)
    loaded: Any = autoprune.load(tmp_path)
    with torch.inference_mode():
        (one,), (other,) = case.pruned.eval()([case.image]), loaded([case.image])
    assert all(torch.equal(one[name], other[name]) for name in ("boxes", "scores", "labels"))
    assert type(loaded.unwrap()).__name__ == FAMILIES[case.family].model


def test_what_the_vendor_saves_in_parts_beside_a_policy_is_read(case: Case, tmp_path: Path) -> None:
    with quiet():
        case.pruned.unwrap().save_pretrained(tmp_path, max_shard_size="20KB")
    assert not (tmp_path / "model.safetensors").exists()
    case.policy.save(tmp_path / "policy.yaml")
    read, wanted = autoprune.load(tmp_path).state_dict(), case.pruned.state_dict()
    assert read.keys() == wanted.keys()
    assert all(torch.equal(read[name], wanted[name]) for name in wanted)
    next(tmp_path.glob("model-00001-*")).unlink()
    with pytest.raises(ModelError, match=r"cannot read weights .*model-00001"):
        autoprune.load(tmp_path)


def test_what_the_vendor_saves_of_a_pruned_model_is_read_back(case: Case, tmp_path: Path) -> None:
    import transformers

    model = case.pruned.unwrap()
    with quiet():
        model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert saved.keys() != before.keys(), "the vendor saves under the names of earlier versions"
    read = translated_for(model, saved, "the file")
    assert read.keys() == before.keys()
    assert all(torch.equal(read[name], before[name]) for name in before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    # Its own function must not pass the pruned weights for dense ones.
    with quiet(), pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        transformers.AutoModelForObjectDetection.from_pretrained(tmp_path)


def test_another_number_of_classes_gets_a_fresh_head(tmp_path: Path) -> None:
    write_folder(tmp_path, "rt_detr")
    detector, spec = load_dense(f"transformers:{tmp_path}", num_classes=8, weights=tmp_path)
    assert spec.num_classes == 8
    (detections,) = detector([torch.rand(3, 64, 64)])
    assert detections["labels"].max() <= 7
    own, _ = load_dense(f"transformers:{tmp_path}", weights=tmp_path)
    ours, theirs = detector.state_dict(), own.state_dict()
    kept = [name for name in theirs if ours[name].shape == theirs[name].shape and theirs[name].dim() == 4]
    assert kept
    assert all(torch.equal(ours[name], theirs[name]) for name in kept)


def test_a_config_alone_describes_a_detector(tmp_path: Path) -> None:
    arguments = {"config": config_of("rt_detr"), "size": 96}
    detector, spec = load_dense("transformers:mine", arguments)
    assert spec.arguments["preprocessing"]["size"] == {"height": 96, "width": 96}
    assert spec.num_classes == 4
    assert detector([torch.rand(3, 50, 70)])[0]["boxes"].shape == (12, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"imgsz": 320},
            "no `imgsz` for transformers; valid: config, preprocessing, size, min_size, max_size",
        ),
        ({"config": 3}, "`config` must be a mapping, not 3"),
        (
            {"config": {"model_type": "rt_detr"}, "preprocessing": [1]},
            r"`preprocessing` must be a mapping, not \[1\]",
        ),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_dense("transformers:mine", arguments)
