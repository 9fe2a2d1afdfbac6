"""Tests of LibreYOLO's checkpoints and names, of the way back into LibreYOLO, and of what is refused."""

import io
import logging
import os
import pickle
import warnings

import pytest
import torch
from rich.console import Console

import autoprune
from autoprune import progress
from autoprune.config import ModelSpec
from autoprune.detectors import build, load_dense, save_state
from autoprune.detectors.class_names import class_names
from autoprune.errors import ModelError
from autoprune.export import save_detector
from autoprune.graph import analyze, prune
from autoprune.policy import Policy, hash_weights
from autoprune.resize import Resize, resized
from autoprune.vendors import libreyolo as adapter
from autoprune.vendors import vendor_of
from tests.vendors.libreyolo_models import KINDS, NAMES, as_tensor, pictures, wrapper


@pytest.fixture(scope="module", autouse=True)
def quiet():
    logging.getLogger("libreyolo").setLevel(logging.ERROR)


@pytest.fixture(scope="module")
def yolox(tmp_path_factory):
    """LibreYOLO's object, and the checkpoint that it saved."""
    path = tmp_path_factory.mktemp("yolox") / "cells.pt"
    made = wrapper("yolox")
    made.save(str(path))
    return made, path


@pytest.fixture(scope="module")
def pruned_yolox(yolox):
    return halved(load_dense(f"libreyolo:{yolox[1]}", {"imgsz": 64}, weights=yolox[1])[0])


def halved(detector):
    graph = analyze(detector, ([torch.rand(3, 64, 64)],))
    return prune(detector, graph, {name: g.units[::2].ravel().tolist() for name, g in graph.prunable.items()})


@pytest.mark.parametrize("family", KINDS)
def test_a_name_gives_the_network_of_libreyolo(family):
    size, side = KINDS[family]
    detector, spec = load_dense(f"libreyolo:{family}-{size}", {"imgsz": side}, num_classes=4)
    theirs = adapter.FAMILIES[family](
        model_path=None, size=size, nb_classes=3, device="cpu", _scratch_init=True
    ).model.state_dict()
    computed = {"decoder.anchors", "decoder.valid_mask"}
    ours = detector.unwrap().state_dict()
    assert ours.keys() == theirs.keys() - computed
    differing = {name for name in ours if ours[name].shape != theirs[name].shape}
    assert all(family == "yolo9" and name.startswith("head.cv3") for name in differing)  # COCO's width
    assert spec.name == f"libreyolo:{family}-{size}"
    assert all(parameter.requires_grad for parameter in detector.parameters() if parameter.dim() > 1)
    again = build(spec)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), detector.parameters(), strict=True))


def test_a_checkpoint_says_what_it_is(yolox):
    _, path = yolox
    detector, spec = load_dense(f"libreyolo:{path}", weights=path)
    assert (spec.name, spec.num_classes) == ("libreyolo:cells.pt", 4)
    assert spec.arguments == {"family": "yolox", "size": "n", "imgsz": 416}
    names = class_names(str(path), f"libreyolo:{path}", 4)
    assert names == {label + 1: name for label, name in NAMES.items()}
    assert all(
        torch.equal(detector.unwrap().state_dict()[name], tensor)
        for name, tensor in yolox[0].model.state_dict().items()
    )


def test_class_towers_keep_the_width_of_the_first_training(tmp_path):
    made = wrapper("yolo9", classes=80)
    made._rebuild_for_new_classes(2)
    made.names = {0: "a", 1: "b"}
    made.save(str(tmp_path / "tuned.pt"))
    detector, spec = load_dense(f"libreyolo:{tmp_path / 'tuned.pt'}", weights=tmp_path / "tuned.pt")
    assert (spec.num_classes, spec.arguments["class_width"]) == (3, 80)
    assert torch.equal(detector.unwrap().head.cv3[0][0].conv.weight, made.model.head.cv3[0][0].conv.weight)


def test_official_names_and_training_branches_are_translated(tmp_path):
    made = wrapper("rtmdet")
    own = made.model.state_dict()
    theirs = {name.replace("head.", "bbox_head.", 1): tensor for name, tensor in own.items()}
    torch.save({"state_dict": {**theirs, "data_preprocessor.mean": torch.ones(3)}}, tmp_path / "rtmdet.pth")
    detector, spec = load_dense(f"libreyolo:{tmp_path / 'rtmdet.pth'}", weights=tmp_path / "rtmdet.pth")
    assert (spec.arguments["family"], spec.arguments["size"], spec.num_classes) == ("rtmdet", "t", 4)
    assert all(torch.equal(detector.unwrap().state_dict()[name], own[name]) for name in own)


@pytest.mark.parametrize(
    ("family", "average"),
    [("dfine", "ema"), ("yolox", "ema"), ("yolox", "ema_net"), ("rtmdet", "ema_state_dict")],
)
def test_of_a_training_by_others_the_average_is_taken_as_libreyolo_does(family, average, tmp_path):
    head = "bbox_head." if family == "rtmdet" else "head."  # the names of its authors
    own = wrapper(family).model.state_dict()
    last = {name.replace("head.", head, 1): tensor.clone() for name, tensor in own.items()}
    mean = {n: t * 1.5 if t.is_floating_point() else t for n, t in last.items()}
    file = tmp_path / f"{family}_hgnetv2_n_coco.pth"
    torch.save({"model": last, average: {"module": mean} if average == "ema" else mean, "epoch": 3}, file)
    libreyolo = pytest.importorskip("libreyolo")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = libreyolo.LibreYOLO(str(file), device="cpu")
    detector, _ = load_dense(f"libreyolo:{file}", weights=file)
    ours, expected = detector.unwrap().state_dict(), theirs.model.state_dict()
    assert all(torch.equal(ours[name], expected[name]) for name in ours)
    other, _ = load_dense(f"libreyolo:{file}", weights=file, weights_key="model")
    assert not all(
        torch.equal(tensor, expected[name]) for name, tensor in other.unwrap().state_dict().items()
    )


def test_our_own_weights_are_those_of_a_name(tmp_path):
    detector, _ = load_dense("libreyolo:yolox-n", {"imgsz": 64}, num_classes=6)
    save_state(detector, tmp_path / "model.safetensors")
    again, spec = load_dense("libreyolo:yolox-n", {"imgsz": 64}, weights=tmp_path / "model.safetensors")
    assert spec.num_classes == 6
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), detector.parameters(), strict=True))


class Evil:
    def __reduce__(self):
        return os.system, ("touch ran",)


def test_code_in_a_checkpoint_is_not_run(yolox, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = torch.load(yolox[1], weights_only=True)
    torch.save({**content, "names": Evil()}, "evil.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"model": Evil()}))
    for name in ("evil.pt", "plain.pt"):
        with pytest.raises(ModelError) as error:
            load_dense(f"libreyolo:{name}", weights=name)
        assert "no weights that can be read safely" in str(error.value)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


CHANGES = {
    "task": ("segment", "is for the task segment; give a checkpoint of a detector"),
    "model_family": ("rfdetr", "holds a rfdetr, not a kind of LibreYOLO that is supported: yolox, yolo9"),
    "size": ("huge", "yolox has no size 'huge'; it has n, t, s"),
    "imgsz": (100, "imgsz is 100; yolox needs a multiple of 32"),
    "quant": ({"bits": 8}, "is quantized"),
    "imgsz_h": (384, "is for images of 384x"),
    "model": ({"other.weight": torch.ones(2)}, "keys differ"),
}


@pytest.mark.parametrize("key", CHANGES)
def test_a_checkpoint_of_something_else_is_refused_in_one_line(key, yolox, tmp_path):
    value, said = CHANGES[key]
    torch.save({**torch.load(yolox[1], weights_only=True), key: value}, tmp_path / "other.pt")
    with pytest.raises(ModelError) as error:
        load_dense(f"libreyolo:{tmp_path / 'other.pt'}", weights=tmp_path / "other.pt")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("imgsz", ["640", [640, 480], [], [[64]], True, 64.5])
def test_an_input_size_that_is_no_square_is_not_replaced_by_the_default(imgsz, yolox, tmp_path):
    torch.save({**torch.load(yolox[1], weights_only=True), "imgsz": imgsz}, tmp_path / "other.pt")
    with pytest.raises(ModelError, match="imgsz must be the pixels of a square's side") as error:
        load_dense(f"libreyolo:{tmp_path / 'other.pt'}", weights=tmp_path / "other.pt")
    assert repr(imgsz) in str(error.value)


def test_an_input_size_of_two_equal_sides_is_one(yolox, tmp_path):
    torch.save({**torch.load(yolox[1], weights_only=True), "imgsz": [96, 96]}, tmp_path / "other.pt")
    _, spec = load_dense(f"libreyolo:{tmp_path / 'other.pt'}", weights=tmp_path / "other.pt")
    assert spec.arguments["imgsz"] == 96


@pytest.mark.parametrize(
    ("source", "arguments", "said"),
    [
        ("yolox-z", {}, "did you mean libreyolo:yolox-"),
        ("yollox-s", {}, "did you mean libreyolo:yolox-s"),
        ("LibreYOLOXs.pt", {}, "are not downloaded, give its path; libreyolo:yolox-s has fresh weights"),
        ("runs/best.pt", {}, "there is no file runs/best.pt"),
        ("yolox-n", {"imgsz": 100}, "imgsz is 100; yolox needs a multiple of 32"),
        ("yolox-n", {"imgsz": "big"}, "imgsz is 'big'"),
        ("rtdetr-r18", {"imgsz": 96}, "imgsz is 96; the 300 queries of rtdetr need at least 128"),
        ("yolox-n", {"min_size": 96}, "libreyolo has no `min_size`; valid: imgsz"),
        ("yolox-n", {"score_thresh": 2}, "score_thresh is 2; give a number from 0 to 1"),
        ("yolox-n", {"detections_per_img": 0}, "detections_per_img is 0; give a number from 1"),
        ("yolox-n", {"letterbox_pad": "center"}, "no `letterbox_pad`"),
        ("x", {"family": "yolox", "size": "q"}, "yolox has no size 'q'"),
        ("yolox-n", {"size": "s"}, "size is 's', and the model libreyolo:yolox-n has n; omit size"),
        ("yolox-n", {"family": "rtmdet", "size": "n"}, "family is 'rtmdet', and the model libreyolo:yolox-n"),
        ("yolox-n", {"family": ["a"]}, "family is ['a'], and the model libreyolo:yolox-n has yolox"),
        ("x", {"family": "os.system", "size": "n"}, "'os.system' is not supported"),
    ],
)
def test_a_wrong_name_or_argument_is_refused_in_one_line(source, arguments, said):
    with pytest.raises(ModelError) as error:
        load_dense(f"libreyolo:{source}", arguments, num_classes=4)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_setting_that_does_nothing_is_said():
    for name, said in (("dfine-n", 1), ("yolox-n", 0)):
        out = io.StringIO()
        with progress.show(Console(file=out, width=200)):
            vendor, source = vendor_of(f"libreyolo:{name}")
            vendor.describe(source, {"nms_thresh": 0.5})
        assert out.getvalue().count("nms_thresh does nothing") == said


def test_a_file_of_nothing_known_is_refused(tmp_path):
    torch.save({"layer.weight": torch.ones(3)}, tmp_path / "other.pt")
    with pytest.raises(ModelError, match="holds no weights of a kind of LibreYOLO that is supported"):
        load_dense(f"libreyolo:{tmp_path / 'other.pt'}")


def test_weights_of_a_pruned_network_are_not_taken_as_dense(yolox, pruned_yolox, tmp_path):
    content = torch.load(yolox[1], weights_only=True)
    torch.save({**content, "model": pruned_yolox.unwrap().state_dict()}, tmp_path / "pruned.pt")
    with pytest.raises(ModelError, match=r"pruned.pt are not for libreyolo:pruned.pt: \d+ keys differ"):
        load_dense(f"libreyolo:{tmp_path / 'pruned.pt'}", weights=tmp_path / "pruned.pt")


def back_in_libreyolo(family, detector):
    """LibreYOLO's object with our network in it, as a user would make it."""
    size, _ = KINDS[family]
    theirs = adapter.FAMILIES[family](
        model_path=None, size=size, nb_classes=3, device="cpu", _scratch_init=True
    )
    theirs.model = detector.unwrap()
    return theirs


def assert_it_predicts_the_same(theirs, detector, side):
    image = pictures(6)[5].resize((side, side))
    with torch.no_grad():
        (got,) = detector([as_tensor(image)])
    theirs_boxes = theirs.predict(image, imgsz=side, conf=detector.min_score, iou=detector.nms_thresh).boxes
    assert len(theirs_boxes.conf) == len(got["scores"]) > 0
    torch.testing.assert_close(theirs_boxes.conf, got["scores"], rtol=0, atol=1e-3)


def test_a_pruned_network_goes_back_into_libreyolo(pruned_yolox):
    assert_it_predicts_the_same(back_in_libreyolo("yolox", pruned_yolox), pruned_yolox, 64)


@pytest.mark.slow
@pytest.mark.parametrize("family", [family for family in KINDS if family != "yolox"])
def test_every_kind_goes_back_into_libreyolo(family):
    size, side = KINDS[family]
    detector, _ = load_dense(f"libreyolo:{family}-{size}", {"imgsz": side}, num_classes=4)
    own = detector.unwrap().state_dict()
    theirs = {name: t for name, t in wrapper(family).model.state_dict().items() if name in own}
    detector.unwrap().load_state_dict(
        {name: t for name, t in theirs.items() if t.shape == own[name].shape}, strict=False
    )
    pruned = halved(detector.eval())
    assert_it_predicts_the_same(back_in_libreyolo(family, pruned), pruned, side)


def tuned_in_libreyolo(family, tmp_path):
    """LibreYOLO's object with a pruned detector, once trained on and saved beside the folder of before."""
    _, side = KINDS[family]
    file = tmp_path / "dense.pt"
    wrapper(family).save(str(file))
    dense, spec = load_dense(f"libreyolo:{file}", {"imgsz": side}, weights=file)
    graph = analyze(dense, ([torch.rand(3, side, side)],))
    keep = {name: tuple(sorted(g.units[::2].ravel().tolist())) for name, g in graph.prunable.items()}
    policy = Policy(
        model=spec,
        weights_sha256=hash_weights(dense.state_dict()),
        criterion="l2",
        input_size=(side, side),
        widths={name: graph.groups[name].width for name in keep},
        keep=keep,
    )
    save_detector(tmp_path / "pruned", prune(dense, graph, keep), policy)
    theirs = back_in_libreyolo(family, autoprune.load(tmp_path / "pruned"))
    with torch.no_grad():
        for parameter in theirs.model.parameters():
            parameter.mul_(1.01)
    theirs.save(str(tmp_path / "tuned.pt"))
    return theirs, side


@pytest.mark.parametrize(
    "family", [pytest.param(kind, marks=() if kind == "yolox" else pytest.mark.slow) for kind in KINDS]
)
def test_what_libreyolo_saved_goes_back_into_the_folder(family, tmp_path):
    theirs, side = tuned_in_libreyolo(family, tmp_path)
    tuned = autoprune.load(tmp_path / "pruned", weights=tmp_path / "tuned.pt")
    assert_it_predicts_the_same(theirs, tuned, side)
    own, before = tuned.state_dict(), autoprune.load(tmp_path / "pruned").state_dict()
    assert any(not torch.equal(own[name], before[name]) for name in own)
    with pytest.raises(ModelError, match="give weights of this pruned detector"):
        autoprune.load(tmp_path / "pruned", weights=tmp_path / "dense.pt")


def test_it_says_its_input_size_also_after_a_policy_changed_it(pruned_yolox, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    smaller = resized(pruned_yolox, Resize(min_size=32, max_size=32))
    assert (pruned_yolox.imgsz, smaller.imgsz) == (64, 32)
    theirs = back_in_libreyolo("yolox", pruned_yolox)
    theirs.input_size = pruned_yolox.imgsz
    image = pictures(6)[5].resize((64, 64))
    with torch.no_grad():
        (got,) = pruned_yolox([as_tensor(image)])
    boxes = theirs.predict(image, conf=pruned_yolox.min_score, iou=pruned_yolox.nms_thresh).boxes
    torch.testing.assert_close(boxes.conf, got["scores"], rtol=0, atol=1e-3)
    with warnings.catch_warnings(action="ignore"):
        theirs.export(format="onnx", output_path=str(tmp_path / "pruned.onnx"), simplify=False)
    session = onnxruntime.InferenceSession(str(tmp_path / "pruned.onnx"), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape[2:] == [64, 64]


def test_the_exporter_of_libreyolo_takes_a_pruned_network(pruned_yolox, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    theirs, file = back_in_libreyolo("yolox", pruned_yolox), tmp_path / "pruned.onnx"
    with warnings.catch_warnings(action="ignore"):
        theirs.export(format="onnx", imgsz=64, output_path=str(file), simplify=False)
    batch, _ = pruned_yolox.transform([as_tensor(pictures(6)[5].resize((64, 64)))])
    pixels = pruned_yolox._images(batch)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: pixels.numpy()})
    head = pruned_yolox.unwrap().head
    head.export = True
    with torch.no_grad():
        expected = pruned_yolox.unwrap()(pixels)
    head.export = False
    torch.testing.assert_close(torch.from_numpy(got), expected, rtol=1e-3, atol=1e-3)


def test_a_policy_needs_no_file():
    arguments = {"family": "yolox", "size": "n", "imgsz": 64}
    detector = build(ModelSpec(name="libreyolo:gone.pt", arguments=arguments, num_classes=4))
    assert detector.transform.max_size == 64
