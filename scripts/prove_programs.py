#!/usr/bin/env python3
"""Models and programs that nobody here wrote, through the routes as without them.

    python scripts/prove_programs.py timm torchvision diffusers segmentation ranks quantization yolo
    python scripts/prove_programs.py timm --part 2/4            # one quarter of a long list

Models have random weights and run forward and backward in float64, in training mode, on the CPU through the
route gemm; the largest difference of output and gradients, relative to the largest value of each tensor (or
to FLOOR of the model's, where that is larger), is compared with 1e-10. Programs run from the installed wheel.
A row a model or program; the status is 1 if one fails.
`make proofs` makes the environment that this needs.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import convroutes
import torch
from torch import Tensor, nn

MOST = 1e-10
"""Largest difference that passes, relative to the largest value of a tensor."""

FLOOR = 1e-4
"""Part of the model's largest value below which a tensor is not compared with itself.

A gradient that is zero but for rounding, as of a bias that a later batch norm takes away, has no digits to
agree in: without the routes too, the batch in another order changes it by more than its size. What passes
is 1e-14 of the model's largest value: 45 roundings."""

Maker = Callable[[], nn.Module]
Caller = Callable[[nn.Module], Any]

TIMM = (
    "resnet10t", "resnetv2_50d_gn", "regnetx_002", "mobilenetv2_035", "mobilenetv3_small_050",
    "mnasnet_small", "efficientnet_lite0", "ghostnet_050", "hardcorenas_a", "rexnetr_100", "densenet121",
    "dla46_c", "dpn48b", "hrnet_w18_small", "inception_next_atto", "cs3darknet_s", "convnext_atto",
    "convnextv2_atto", "edgenext_xx_small", "efficientformer_l1", "efficientformerv2_s0",
    "efficientvit_m0", "efficientvit_b0", "fastvit_t8", "repghostnet_050", "repvit_m0_9", "repvgg_a0",
    "starnet_s1", "mambaout_femto", "levit_128s", "pit_ti_224", "poolformer_s12", "pvt_v2_b0",
    "xcit_nano_12_p16_224", "vit_tiny_patch16_224", "selecsls42b", "skresnet18", "legacy_seresnet18",
    "ese_vovnet19b_dw", "hgnetv2_b0", "tiny_vit_5m_224", "swiftformer_xs",
)  # fmt: skip
"""One small model of each of these families."""

CLASSIFICATION = (
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3", "maxvit_t",
    "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "resnet18", "shufflenet_v2_x0_5",
    "squeezenet1_1", "swin_t", "vgg11", "vit_b_32",
)  # fmt: skip
SIZES = {
    "efficientnet_b0": 128, "mobilenet_v3_small": 128, "inception_v3": 299, "maxvit_t": 224, "vit_b_32": 224,
}  # fmt: skip
SEGMENTATION = ("deeplabv3_mobilenet_v3_large", "fcn_resnet50", "lraspp_mobilenet_v3_large")
DETECTION = (
    "fasterrcnn_mobilenet_v3_large_320_fpn", "fcos_resnet50_fpn", "keypointrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn", "retinanet_resnet50_fpn", "ssd300_vgg16", "ssdlite320_mobilenet_v3_large",
)  # fmt: skip
ARCHITECTURES = ("Unet", "UnetPlusPlus", "FPN", "Linknet", "PSPNet", "PAN", "MAnet", "DeepLabV3Plus")


@dataclass(frozen=True)
class Row:
    """One model or program: what came out, and how many convolutions a route served."""

    name: str
    passed: bool
    found: str
    served: int
    seconds: float


def compared(name: str, make: Maker, call: Caller) -> Row:
    """A model's output and gradients by the route, against the same without it."""
    begun = time.perf_counter()
    try:
        torch.manual_seed(0)
        model = make().double().train()
        plain = _outcome(model, call)
        with convroutes.enabled("cpu", route="gemm"):
            served = _outcome(model, call)
            done = convroutes.report()
    except Exception as error:
        return Row(name, False, f"{type(error).__name__}: {error}"[:200], 0, time.perf_counter() - begun)
    floor = FLOOR * max(float(each.abs().max()) for each in plain if each.numel())
    worst = max(_difference(ours, theirs, floor) for ours, theirs in zip(served, plain, strict=True))
    calls = done.by_route().get("gemm", 0)
    others = sum(each.calls for each in done.fall_throughs)
    words = f"{worst:.1e}" + (f", {others} calls passed on" if others else "")
    return Row(name, worst <= MOST and calls > 0, words, calls, time.perf_counter() - begun)


def _outcome(model: nn.Module, call: Caller) -> list[Tensor]:
    buffers = {name: each.clone() for name, each in model.named_buffers()}
    torch.manual_seed(1)  # dropout
    outputs = list(_tensors(call(model)))
    model.zero_grad()
    total = torch.stack([out.square().mean() for out in outputs]).sum()
    total.backward()  # type: ignore[no-untyped-call]
    gradients = [each.grad.clone() for each in model.parameters() if each.grad is not None]
    with torch.no_grad():
        for name, each in model.named_buffers():
            each.copy_(buffers[name])
    return [*(out.detach() for out in outputs), *gradients]


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.requires_grad:
            yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _tensors(each)
    elif hasattr(value, "sample"):
        yield value.sample


def _difference(ours: Tensor, theirs: Tensor, floor: float) -> float:
    largest = max(floor, float(theirs.abs().max()) if theirs.numel() else 0.0)
    return float((ours - theirs).abs().max()) / largest if theirs.numel() and largest else 0.0


def _image(size: int, channels: int = 3, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.rand(batch, channels, size, size, generator=generator, dtype=torch.float64)


def timm_models() -> Iterator[tuple[str, Maker, Caller]]:
    """One small model a family."""
    import timm

    for name in TIMM:
        fixed = timm.models.get_pretrained_cfg(name).fixed_input_size
        size = timm.models.get_pretrained_cfg(name).input_size[-1] if fixed else 96
        yield (
            name,
            lambda name=name: timm.create_model(name, num_classes=10),
            lambda model, size=size: model(_image(size)),
        )


def torchvision_models() -> Iterator[tuple[str, Maker, Caller]]:
    """Every family of classification, segmentation and detection."""
    from torchvision import models

    for name in CLASSIFICATION:
        size = SIZES.get(name, 64)
        yield (
            name,
            lambda name=name: models.get_model(name, weights=None, num_classes=10),
            lambda model, size=size: model(_image(size)),
        )
    bare = {"weights": None, "weights_backbone": None}
    for name in SEGMENTATION:
        yield (
            name,
            lambda name=name: models.get_model(name, num_classes=5, **bare),
            lambda model: model(_image(64)),
        )
    small = {"min_size": 96, "max_size": 96}
    for name in DETECTION:
        size_options = {} if name.startswith("ssd") else small
        if "rcnn" in name:
            size_options = {**small, "box_batch_size_per_image": 16}
        yield (
            name,
            lambda name=name, options=size_options: models.get_model(name, num_classes=3, **bare, **options),
            lambda model, name=name: model(list(_image(96)), _targets(name)),
        )


def _targets(name: str) -> list[dict[str, Tensor]]:
    target: dict[str, Tensor] = {
        "boxes": torch.tensor([[8.0, 10, 50, 60], [30, 20, 80, 90]], dtype=torch.float64),
        "labels": torch.tensor([1, 2]),
    }
    if name.startswith("mask"):
        target["masks"] = torch.ones(2, 96, 96, dtype=torch.uint8)
    if name.startswith("keypoint"):
        target["keypoints"] = torch.tensor([[[20.0, 20, 1]] * 17, [[40.0, 40, 1]] * 17])
        target["labels"] = torch.tensor([1, 1])
    return [target, target]


def diffusers_models() -> Iterator[tuple[str, Maker, Caller]]:
    """The denoiser and the autoencoder of image diffusion, from small configurations."""
    from diffusers import AutoencoderKL, UNet2DModel

    def unet() -> nn.Module:
        made: nn.Module = UNet2DModel(
            sample_size=16, block_out_channels=(32, 64), layers_per_block=1,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        )  # fmt: skip
        return made

    def autoencoder() -> nn.Module:
        made: nn.Module = AutoencoderKL(
            block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
        )  # fmt: skip
        return made

    yield "UNet2DModel", unet, lambda model: model(_image(16), 10)
    yield "AutoencoderKL", autoencoder, lambda model: model(_image(32))


def segmentation_models() -> Iterator[tuple[str, Maker, Caller]]:
    """Every kind of decoder, on one small encoder."""
    import segmentation_models_pytorch as smp

    for name in ARCHITECTURES:
        yield (
            f"smp.{name}",
            lambda name=name: getattr(smp, name)(encoder_name="resnet18", encoder_weights=None, classes=3),
            lambda model: model(_image(128)),
        )


RANK = """
import sys, torch, torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel as DDP

dist.init_process_group("gloo")
torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.ConvTranspose2d(8, 4, 2, 2)).double()
if sys.argv[1] == "FSDP":
    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    for layer in (net[0], net[3]):
        fully_shard(layer, mesh=mesh)
    model = fully_shard(net, mesh=mesh)
else:
    model = DDP(net)
step = torch.optim.SGD(net.parameters(), 0.1)
for n in range(3):
    x = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(10 * n + dist.get_rank())).double()
    step.zero_grad()
    model(x).square().mean().backward()
    step.step()
whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in net.parameters()]
if dist.get_rank() == 0:
    print("sum", *(f"{float(p.double().abs().sum()):.12e}" for p in whole))
dist.destroy_process_group()
"""


def ranks() -> Iterator[Row]:
    """Training steps on two processes, as torchrun starts them: replicated, and sharded."""
    yield from map(_ranks, ("DDP", "FSDP"))


def _ranks(kind: str) -> Row:
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "rank.py")
        script.write_text(RANK)
        words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script), kind]
        plain, served = _run([sys.executable, *words], folder), _run(_served(*words), folder)
    sums = [_sums(each.stdout) for each in (plain, served)]
    alike = bool(sums[0]) and len(sums[0]) == len(sums[1])
    worst = max((abs(a - b) / abs(a) for a, b in zip(*sums, strict=False)), default=1.0)
    calls = served.stderr.count("route gemm")
    passed = alike and worst <= MOST and calls == 2
    found = f"{worst:.1e}, {calls} ranks served"
    return Row(f"{kind}, two processes", passed, found, calls, time.perf_counter() - begun)


def quantization() -> Iterator[Row]:
    """A network quantised eagerly and through FX: integers stay PyTorch's own, the rest is served."""
    from torch.ao.quantization import QConfigMapping, convert, get_default_qconfig, prepare, quantize_fx

    class Eager(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.quant, self.out = torch.ao.quantization.QuantStub(), torch.ao.quantization.DeQuantStub()
            self.conv, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            answer: Tensor = self.last(self.out(self.conv(self.quant(x))))
            return answer

    def eager() -> nn.Module:
        model: Any = Eager().eval()
        model.conv.qconfig = model.quant.qconfig = model.out.qconfig = get_default_qconfig("x86")
        prepared = prepare(model)
        prepared(x)
        made: nn.Module = convert(prepared)
        return made

    def graph() -> nn.Module:
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
        prepared = quantize_fx.prepare_fx(
            model, QConfigMapping().set_global(get_default_qconfig("x86")), (x,)
        )
        prepared(x)
        made: nn.Module = quantize_fx.convert_fx(prepared)
        return made

    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    for name, make in (("eager", eager), ("FX graph", graph)):
        begun = time.perf_counter()
        answers = []
        for served in (False, True):
            torch.manual_seed(0)
            with convroutes.enabled("cpu", route="gemm") if served else nullcontext():
                answers.append(make()(x))
                calls = convroutes.report().calls if served else 0
        worst = float((answers[0] - answers[1]).abs().max() / answers[0].abs().max())
        yield Row(f"quantised, {name}", worst < 1e-6, f"{worst:.1e}", calls, time.perf_counter() - begun)


def _sums(text: str) -> list[float]:
    lines = [line for line in text.splitlines() if line.startswith("sum ")]
    return [float(word) for word in lines[0].split()[1:]] if lines else []


def _served(*words: str) -> list[str]:
    options = ["--route=gemm", "--device=cpu", "--report", "--"]
    head = words[:2] if words[0] == "-m" else ()
    rest = words[2:] if head else words
    return [sys.executable, "-m", "convroutes", "run", *options, *head, *rest]


def _run(command: Sequence[str], folder: str) -> subprocess.CompletedProcess[str]:
    quiet = {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "YOLO_CONFIG_DIR": folder}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **quiet}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def yolo() -> Iterator[Row]:
    """The command of Ultralytics, unedited: train, val, predict and export."""
    import ultralytics

    entry = "import sys; from ultralytics.cfg import entrypoint; sys.exit(entrypoint())"
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "yolo_command.py")
        script.write_text(entry)
        data = _pictures(Path(folder))
        common = ["imgsz=64", "device=cpu", f"project={folder}", "exist_ok=True", "plots=False"]
        train = ["detect", "train", "model=yolov8n.yaml", f"data={data}", "epochs=2", "batch=4", "workers=0",
                 "amp=False", *common]  # fmt: skip
        yield _both(f"yolo train ({ultralytics.__version__})", script, train, folder, _losses)
        weights = Path(folder, "plain", "weights", "best.pt")
        yield _both(
            "yolo val", script, ["detect", "val", f"model={weights}", f"data={data}", *common], folder, None
        )
        predict = ["detect", "predict", f"model={weights}", f"source={data.parent / 'images'}",
                   "save_txt=True", "save_conf=True", "conf=0.0001", *common]  # fmt: skip
        yield _both("yolo predict", script, predict, folder, _boxes)
        for kind in ("torchscript", "onnx"):
            words = ["export", f"model={weights}", f"format={kind}", "imgsz=64", "device=cpu"]
            yield _both(f"yolo export {kind}", script, words, folder, None)


def _both(
    name: str, script: Path, words: list[str], folder: str, read: Callable[[Path], list[float]] | None
) -> Row:
    begun = time.perf_counter()
    named = [] if words[0] == "export" else ["name=plain"]
    plain = _run([sys.executable, str(script), *words, *named], folder)
    named = [] if words[0] == "export" else ["name=served"]
    served = _run(_served(str(script), *words, *named), folder)
    seconds = time.perf_counter() - begun
    if plain.returncode or served.returncode:
        last = (plain if plain.returncode else served).stderr.strip().splitlines()[-1:]
        return Row(
            name, False, f"status {plain.returncode}, {served.returncode}: {' '.join(last)}", 0, seconds
        )
    calls = served.stderr.count("route gemm")
    if read is None:
        return Row(name, calls > 0, "both end with status 0", calls, seconds)
    ours, theirs = read(Path(folder, "served")), read(Path(folder, "plain"))
    alike = len(ours) == len(theirs) > 0
    worst = max((abs(a - b) / max(abs(b), 1e-3) for a, b in zip(ours, theirs, strict=False)), default=1.0)
    return Row(
        name, alike and worst < 1e-2 and calls > 0, f"{len(ours)} numbers, {worst:.1e}", calls, seconds
    )


def _losses(run: Path) -> list[float]:
    with (run / "results.csv").open() as file:
        rows = [{key.strip(): value for key, value in row.items()} for row in csv.DictReader(file)]
    return [float(value) for row in rows for key, value in row.items() if key.startswith("train/")]


def _boxes(run: Path) -> list[float]:
    files = sorted((run / "labels").glob("*.txt"))
    return [
        float(word)
        for file in files
        for line in sorted(file.read_text().splitlines())
        for word in line.split()
    ]


def _pictures(folder: Path) -> Path:
    import cv2
    import numpy as np

    random = np.random.default_rng(0)
    for name in ("images", "labels"):
        (folder / "pictures" / name).mkdir(parents=True)
    for n in range(8):
        picture = random.integers(0, 255, (64, 64, 3), np.uint8)
        cv2.imwrite(str(folder / "pictures" / "images" / f"{n}.png"), picture)
        (folder / "pictures" / "labels" / f"{n}.txt").write_text("0 0.5 0.5 0.4 0.3\n")
    data = folder / "pictures" / "data.yaml"
    data.write_text(f"path: {folder / 'pictures'}\ntrain: images\nval: images\nnames: [thing]\n")
    return data


MODELS = {
    "timm": timm_models,
    "torchvision": torchvision_models,
    "diffusers": diffusers_models,
    "segmentation": segmentation_models,
}
PROGRAMS = {"ranks": ranks, "quantization": quantization, "yolo": yolo}


def rows(subject: str, part: int, parts: int) -> Iterator[Row]:
    """The rows of a subject; of its models every ``parts``-th, beginning with ``part``."""
    if subject in PROGRAMS:
        yield from PROGRAMS[subject]()
        return
    for each in list(MODELS[subject]())[part - 1 :: parts]:
        yield compared(*each)


def main() -> int:
    """Print a row each; 1 if one fails."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("subjects", nargs="+", choices=(*MODELS, *PROGRAMS), metavar="SUBJECT")
    parser.add_argument("--part", default="1/1", help="N/M: every M-th model, beginning with the N-th")
    parser.add_argument("--json", type=Path, help="write the rows there, one a line")
    given = parser.parse_args()
    part, parts = map(int, given.part.split("/"))
    failed = 0
    for subject in given.subjects:
        for row in rows(subject, part, parts):
            failed += not row.passed
            print(f"{'passed' if row.passed else 'FAILED':<7} {subject:<13} {row.name:<38} {row.found:<40} "
                  f"{row.served:>6} served  {row.seconds:6.1f} s", flush=True)  # fmt: skip
            if given.json:
                with given.json.open("a") as file:
                    file.write(json.dumps({"subject": subject, **vars(row)}) + "\n")
    print(f"torch {torch.__version__}, convroutes {convroutes.__version__}: {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
