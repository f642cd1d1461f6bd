"""Measures SAM on a GPU in bf16 at 1024 px: attention, encoder, latency, training step, click and automatic masks.

`python experiments/benchmarks/gpu.py --model vit_h --json vit_h.json` runs all parts, each with its peers in turn on the same
card; `--only` chooses parts. Rows are written as they come, so a part that is stopped loses nothing. Times are medians of CUDA
events. MFU is the number of the model's operations per second, divided by the card's dense bf16 peak (`--peak-tflops`).
Weights are random: they prove that results agree, and have the same speed as trained ones.
"""

from __future__ import annotations

import argparse
import math
import statistics
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from models import official_sam, our_sam
from paired import arguments, begin, machine, peak_gb, timed, write_rows
from step import image as image_of_discs
from step import our_step, their_step
from torch import Tensor, nn

from samtrain.modeling import SAM_CONFIGS, SamConfig
from samtrain.types import Batch

PEAKS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "4090": 165.0}  # dense bf16 TFLOP/s by the vendors' data sheets
PARTS = ("attention", "encoder", "latency", "click", "step", "generator")


def main() -> None:
    parser = arguments(__doc__, pairs=7)
    parser.add_argument("--model", default="vit_h", choices=("vit_b", "vit_l", "vit_h"))
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="images per forward pass of the encoder")
    parser.add_argument("--images", type=int, nargs="+", default=[1, 4], help="images per step")
    parser.add_argument("--masks", type=int, default=64, help="masks per image of a step")
    parser.add_argument("--interactions", type=int, default=11)
    parser.add_argument("--peers", nargs="+", choices=PARTS, default=[], help="parts that time others, too")
    parser.add_argument("--compile", action="store_true", help="also time our encoder with its blocks compiled")
    parser.add_argument("--tune", choices=("forward", "all"), help="also time other launches of the attention kernels")
    parser.add_argument("--profile", action="store_true", help="print the kernels that take most of encoder and step")
    parser.add_argument("--peak-tflops", type=float, default=None)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu is for trying out the script")
    parser.add_argument("--size", default=None, help="a smaller model of ours instead, for trying out the script")
    options = parser.parse_args()
    begin(options)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("This machine has no CUDA device. --device cpu --size vit_tiny tries out the script.")
    bench = Bench(options)
    for part in options.only:
        try:
            getattr(bench, part)()
        except Exception:  # one part that fails must not cost the others
            traceback.print_exc()
            bench.row(part, "failed", note=traceback.format_exc(limit=1).splitlines()[-1])


class Bench:
    """Runs the parts for one model and keeps their rows."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.device = options, torch.device(options.device)
        self.rows: list[dict[str, Any]] = []
        if options.size is None:
            self.official = official_sam(options.model).to(self.device)
            self.ours = our_sam(self.official, options.model).to(self.device)
        else:
            from models import official_like

            from samtrain.modeling import Sam

            self.ours = Sam(SAM_CONFIGS[options.size]).eval().to(self.device)
            self.official = official_like(self.ours).to(self.device)
        self.config = self.ours.config
        name = torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu"
        self.peak = options.peak_tflops or next((peak for key, peak in PEAKS.items() if key in name), None)
        print(f"{self.config.model} on {name}, torch {torch.__version__}", flush=True)

    def row(self, what: str, who: str, seconds: float | None = None, *, images: float = 0, tflop: float = 0, **more) -> None:
        """Prints a row and writes all rows so far; `tflop` are the operations of the whole job."""
        row: dict[str, Any] = {"model": self.config.model, "what": what, "who": who}
        if seconds is not None:
            row["ms"] = round(seconds * 1e3, 3)
            if images:
                row["images/s"] = round(images / seconds, 2)
            if tflop and self.peak:
                row["MFU"] = round(tflop / seconds / self.peak, 3)
        self.rows.append(row | more)
        print(" | ".join(f"{key} {value}" for key, value in self.rows[-1].items()), flush=True)
        if self.options.json is not None:
            write_rows(self.options.json, {"benchmark": "gpu", "machine": machine(), "rows": self.rows})

    def seconds(self, job: Callable[[], Any], repeats: int | None = None) -> float:
        """Returns the median time of a job after two runs that warm it up."""
        job(), job()
        return statistics.median(timed(job) for _ in range(repeats or self.options.pairs))

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16)

    # ---- parts

    def attention(self) -> None:
        """Times the attention of a global block and of a windowed one by itself."""
        for side, windows in ((self.config.grid, 1), (self.config.window_size, 25)):
            attention_rows(self, side, 4 * windows)

    @torch.no_grad()
    def encoder(self) -> None:
        tflop = forward_tflop(self.config)
        for count in self.options.batch:
            images = torch.randn(count, 3, self.config.image_size, self.config.image_size, device=self.device)
            exact = self.ours.image_encoder(images[:1])
            for name, encode, dtype in self._encoders():
                inputs = images.to(dtype)
                with torch.autocast(self.device.type, torch.bfloat16, enabled=dtype == torch.float32):
                    seconds = self.seconds(lambda encode=encode, inputs=inputs: encode(inputs))
                    memory = peak_gb(lambda encode=encode, inputs=inputs: encode(inputs))
                    error = "" if "transformers" in name else distance(encode(inputs)[:1], exact)  # its weights are others
                self.row(
                    f"encoder, forward, batch {count}", name, seconds, images=count, tflop=tflop * count,
                    GB=round(memory, 2), error=error,
                )  # fmt: skip
            if self.options.profile and count == max(self.options.batch):
                with self.autocast():
                    profile(lambda images=images: self.ours.image_encoder(images))

    def _encoders(self) -> Iterator[tuple[str, Callable[[Tensor], Tensor], torch.dtype]]:
        """Yields the encoders to compare: float32 weights run under autocast, bf16 weights without it."""
        encoder = self.ours.image_encoder
        yield "ours, autocast", encoder, torch.float32
        with converted(encoder):
            yield "ours, bf16 weights", encoder, torch.bfloat16
        if self.options.compile:
            with compiled(encoder):
                yield "ours, compiled, autocast", encoder, torch.float32
            with converted(encoder), compiled(encoder):
                yield "ours, compiled, bf16 weights", encoder, torch.bfloat16
        if "encoder" in self.options.peers:
            yield "segment_anything, autocast", self.official.image_encoder, torch.float32
            yield "transformers, autocast", transformers_encoder(self.config).to(self.device), torch.float32

    @torch.no_grad()
    def latency(self) -> None:
        """Times one image from a uint8 array in the input frame to its embedding, also with the encoder as a CUDA graph."""
        side = self.config.image_size
        pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, side, side), dtype=np.uint8))
        size = torch.tensor([[side, side]])

        def run(encode: Callable[[Tensor], Tensor]) -> Tensor:
            with self.autocast():
                return encode(self.ours.preprocess(pixels.to(self.device), size.to(self.device)))

        encoder = self.ours.image_encoder
        self.row("one image, array to embedding", "ours, autocast", self.seconds(lambda: run(encoder)))
        if self.device.type == "cuda":
            with converted(encoder):
                graph = graphed(encoder, torch.zeros(1, 3, side, side, device=self.device, dtype=torch.bfloat16))
                self.row("one image, array to embedding", "ours, CUDA graph", self.seconds(lambda: run(graph)))
            if self.options.compile:
                with converted(encoder), compiled(encoder):
                    graph = graphed(encoder, torch.zeros(1, 3, side, side, device=self.device, dtype=torch.bfloat16))
                    self.row("one image, array to embedding", "ours, compiled, CUDA graph", self.seconds(lambda: run(graph)))
        if "latency" in self.options.peers:
            self.row(
                "one image, array to embedding", "segment_anything", self.seconds(lambda: run(self.official.image_encoder))
            )

    def click(self) -> None:
        """Times a click on a 1500 x 1000 image, from NumPy to NumPy, given the embedding."""
        from segment_anything import SamPredictor as OfficialPredictor

        from samtrain import SamPredictor

        theirs, own = OfficialPredictor(self.official), SamPredictor(self.ours)
        picture = np.random.default_rng(0).integers(0, 256, (1000, 1500, 3), dtype=np.uint8)
        theirs.set_image(picture)
        own.set_image(picture)
        own.features = theirs.features
        click = {"point_coords": np.array([[700.0, 400.0]]), "point_labels": np.array([1])}
        masks = [predictor.predict(**click)[0] for predictor in (theirs, own)]
        apart = f"{(masks[0] != masks[1]).mean():.0e} of the pixels"
        what = "a click, embedding ready, float32"
        self.row(what, "ours", self.seconds(lambda: own.predict(**click), 20), error=apart)
        self.row(what, "segment_anything", self.seconds(lambda: theirs.predict(**click), 20))
        with self.autocast():
            self.row(what.replace("float32", "autocast"), "ours", self.seconds(lambda: own.predict(**click), 20))

    def step(self) -> None:
        """Times a training step with all of its interactions."""
        encoder, decoder = step_tflop(self.config, self.options)
        what = f"step, {self.options.masks} masks per image, {self.options.interactions} interactions"
        self.ours.train()
        for count in self.options.images:
            batch = batch_of(count, self.config, self.options)

            def own(batch: Batch = batch) -> None:
                with self.autocast():
                    our_step(self.ours, batch, self.options.interactions)

            seconds = self.seconds(own, 3)
            self.row(f"{what}, {count} images", "ours", seconds, images=count, tflop=(encoder + decoder) * count,
                     GB=round(peak_gb(own), 2))  # fmt: skip
            if self.options.profile and count == max(self.options.images):
                profile(own)
            if self.options.compile:
                with compiled(self.ours.image_encoder):
                    seconds = self.seconds(own, 3)
                    self.row(f"{what}, {count} images", "ours, encoder compiled", seconds, images=count,
                             tflop=(encoder + decoder) * count, GB=round(peak_gb(own), 2))  # fmt: skip
        self.ours.zero_grad(set_to_none=True)
        self.ours.eval()
        if "step" in self.options.peers:
            self._their_step(what, encoder, decoder)

    def _their_step(self, what: str, encoder: float, decoder: float) -> None:
        """Times the loop on segment_anything, with half the masks again and again until they fit."""
        masks = self.options.masks
        while masks:
            batch = image_of_discs(masks, self.config.image_size).to(self.device)

            def theirs(batch: Batch = batch) -> None:
                with self.autocast():
                    their_step(self.official, batch, self.options.interactions)

            try:
                seconds = self.seconds(theirs, 3)
            except torch.cuda.OutOfMemoryError:
                print(f"the loop on segment_anything does not fit with {masks} masks", flush=True)
                masks //= 2
                torch.cuda.empty_cache()
                continue
            tflop = encoder + decoder * masks / self.options.masks
            self.row(what, f"the loop on segment_anything, 1 image, {masks} masks", seconds, images=1, tflop=tflop,
                     GB=round(peak_gb(theirs), 2))  # fmt: skip
            break
        self.official.zero_grad(set_to_none=True)

    def generator(self) -> None:
        """Times all masks of a 1500 x 1000 image from a 32 x 32 grid, both networks answering with the same discs."""
        from generator import PASSING, answer_with_shapes, same_records
        from segment_anything import SamAutomaticMaskGenerator as OfficialGenerator

        from samtrain import SamAutomaticMaskGenerator

        picture = np.random.default_rng(0).integers(0, 256, (1000, 1500, 3), dtype=np.uint8)
        own = SamAutomaticMaskGenerator(self.ours, output_mode="coco_rle", bf16=True)
        theirs = OfficialGenerator(self.official, output_mode="coco_rle")
        for name in ("few", "many"):
            hooks = answer_with_shapes(self.official, self.ours, PASSING[name])
            found: dict[str, list] = {}

            def ourselves(found: dict = found) -> None:
                found["own"] = own.generate(picture)

            def peer(found: dict = found) -> None:
                with self.autocast():
                    found["theirs"] = theirs.generate(picture)

            what = f"all masks of a 1500 x 1000 image, {name} pass"
            ourselves()  # makes the discs, which are kept
            self.row(what, "ours", self.seconds(ourselves, 3), records=len(found["own"]))
            if self.options.profile:
                profile(ourselves)
            if "generator" in self.options.peers:
                peer()
                seconds = statistics.median(timed(peer) for _ in range(3))
                self.row(what, "segment_anything", seconds, equality=same_records(found["theirs"], found["own"]))
            for hook in hooks:
                hook.remove()


# ---- attention


def attention_rows(bench: Bench, side: int, images: int) -> None:
    """Compares the kernels with the folded bias and with FlexAttention, forward, and forward with backward."""
    from samtrain.ops import rel_pos_attention

    heads, width = bench.config.encoder_heads, bench.config.encoder_dim // bench.config.encoder_heads
    N, dtype = side * side, torch.bfloat16 if bench.device.type == "cuda" else torch.float32
    make = torch.Generator(bench.device).manual_seed(0)
    shapes = [(images, N, 3, heads, width), (2 * side - 1, width), (2 * side - 1, width)]
    inputs = [torch.randn(shape, generator=make, device=bench.device, dtype=dtype).requires_grad_() for shape in shapes]
    outer = torch.randn(images, N, heads * width, generator=make, device=bench.device, dtype=dtype)
    tflop = 4 * images * heads * N * N * width / 1e12
    few = [inputs[0].detach()[:1].float().requires_grad_(), *(each.detach().float().requires_grad_() for each in inputs[1:])]
    with way_of(rel_pos_attention, "folded", bench.device):
        exact = rel_pos_attention.rel_pos_attention(*few, width**-0.5)
        gradients = torch.autograd.grad(exact, few, outer[:1].float())

    def rows(who: str, function: Callable[..., Tensor], errors: bool = True) -> None:
        def forward() -> Tensor:
            return function(*inputs, width**-0.5)

        def both() -> None:
            torch.autograd.grad(forward(), inputs, outer)

        with torch.no_grad():
            seconds = bench.seconds(forward, 20)
        error = ""
        if errors:
            one = [inputs[0].detach()[:1].requires_grad_(), *inputs[1:]]
            out = function(*one, width**-0.5)
            found = torch.autograd.grad(out, one, outer[:1])
            pairs = zip((out, *found), (exact, *gradients), strict=True)
            error = " ".join(distance(a, b) for a, b in pairs)
        what = f"attention {side} x {side}, {images} images"
        bench.row(f"{what}, forward", who, seconds, tflop=tflop, error=error)
        bench.row(f"{what}, forward and backward", who, bench.seconds(both, 10), tflop=3.5 * tflop)

    rows("ours", rel_pos_attention.rel_pos_attention)
    with way_of(rel_pos_attention, "folded", bench.device):
        rows("bias folded into scaled_dot_product_attention", rel_pos_attention.rel_pos_attention)
    if "attention" in bench.options.peers and bench.device.type == "cuda":
        rows("FlexAttention, bias computed before", flex_attention_with_bias(), errors=False)
    if bench.options.tune and bench.device.type == "cuda":
        tune(bench, inputs, outer, width**-0.5, f"attention {side} x {side}, {images} images")


@contextmanager
def way_of(module: Any, way: str, device: torch.device) -> Iterator[None]:
    before = module.WAYS.get(device.type, "folded")
    module.WAYS[device.type] = way
    try:
        yield
    finally:
        module.WAYS[device.type] = before


def flex_attention_with_bias() -> Callable[..., Tensor]:
    """Returns FlexAttention that adds the products with rows and columns to each score."""
    from torch.nn.attention.flex_attention import flex_attention

    from samtrain.ops.rel_pos_attention import distance_table, relative_scores

    run = torch.compile(flex_attention, dynamic=False)

    def attend(qkv: Tensor, rel_pos_h: Tensor, rel_pos_w: Tensor, scale: float) -> Tensor:
        B, N, _, n, C = qkv.shape
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        tables = distance_table(rel_pos_h), distance_table(rel_pos_w)
        rel_h, rel_w = relative_scores(q.reshape(B * n, N, C), *tables)
        rel_h, rel_w, W = rel_h.view(B, n, N, -1), rel_w.view(B, n, N, -1), rel_w.shape[-1]

        def add(score, b, h, query, key):
            return score + rel_h[b, h, query, key // W] + rel_w[b, h, query, key % W]

        return run(q, k, v, score_mod=add, scale=scale).transpose(1, 2).flatten(2)

    return attend


def tune(bench: Bench, inputs: list[Tensor], outer: Tensor, scale: float, what: str) -> None:
    """Times the kernels with other numbers of queries, warps and stages; the fastest forward kernel stays."""
    from samtrain.ops import rel_pos_kernels as kernels

    qkv, rel_h, rel_w = (each.detach() for each in inputs)
    B, N, _, n, C = qkv.shape
    grad = outer.view(B, N, n, C)
    out, log_sum = kernels.forward(qkv, rel_h, rel_w, scale)
    forward = "FORWARD_ROW" if N >= kernels.FULL_ROW**2 else "FORWARD_ROWS"
    jobs = {forward: lambda: kernels.forward(qkv, rel_h, rel_w, scale)}
    if bench.options.tune == "all":
        backward = lambda: kernels.backward(grad, out, log_sum, qkv, rel_h, rel_w, scale)  # noqa: E731
        jobs |= {"BACKWARD_QUERIES": backward, "BACKWARD_KEYS": backward}
    for name, job in jobs.items():
        found = {}
        for launch in [(64, 4, 2), (64, 4, 3), (64, 4, 4), (64, 8, 2), (128, 8, 2), (128, 8, 3)]:
            setattr(kernels, name, kernels.Launch(*launch))
            try:
                found[bench.seconds(job, 10)] = launch
            except Exception as error:
                bench.row(what, f"{name} {launch}", note=str(error)[:80])
            else:
                bench.row(what, f"{name} {launch}", max(found, key=lambda seconds: found[seconds] == launch))
        setattr(kernels, name, kernels.Launch(*found[min(found)]))


# ---- models and operations


@contextmanager
def converted(module: nn.Module) -> Iterator[None]:
    """Converts the weights to bf16 for a while."""
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    module.to(torch.bfloat16)
    try:
        yield
    finally:
        module.float().load_state_dict(state)


@contextmanager
def compiled(encoder: nn.Module) -> Iterator[None]:
    """Compiles the blocks for a while: two graphs, one for windowed and one for global blocks."""
    for block in encoder.blocks:
        block.compile(dynamic=False)
    try:
        yield
    finally:
        for block in encoder.blocks:
            block._compiled_call_impl = None


def graphed(encoder: nn.Module, like: Tensor) -> Callable[[Tensor], Tensor]:
    """Returns the encoder as a CUDA graph, which is launched at once."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.autocast("cuda", enabled=False):
        for _ in range(3):
            encoder(like)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.autocast("cuda", enabled=False):
        out = encoder(like)

    def replay(images: Tensor) -> Tensor:
        like.copy_(images)
        graph.replay()
        return out

    return replay


def transformers_encoder(config: SamConfig) -> nn.Module:
    """Returns transformers' vision encoder with random weights, because only time and memory are compared."""
    from transformers import SamVisionConfig, SamVisionModel

    model = SamVisionModel(
        SamVisionConfig(
            hidden_size=config.encoder_dim,
            num_hidden_layers=config.encoder_depth,
            num_attention_heads=config.encoder_heads,
            global_attn_indexes=list(config.global_attn_indexes),
            mlp_dim=4 * config.encoder_dim,
            image_size=config.image_size,
            patch_size=config.patch_size,
            window_size=config.window_size,
            output_channels=config.prompt_dim,
        )
    ).eval()

    class Embedding(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return model(images).last_hidden_state

    module = Embedding()
    module.model = model
    return module


def forward_tflop(config: SamConfig) -> float:
    """Returns the operations of the encoder's forward pass on one image: linear layers and attention, 2 per product."""
    D, g, w = config.encoder_dim, config.grid, config.window_size
    windows = math.ceil(g / w) ** 2
    cells, padded, whole = g * g, windows * w * w, len(config.global_attn_indexes)
    windowed = config.encoder_depth - whole
    linear = config.encoder_depth * 8 * cells * D * D + windowed * (3 * padded + cells) * D * D + whole * 4 * cells * D * D
    attention = windowed * 2 * padded * w * w * D + whole * 2 * cells * cells * D
    neck = cells * (3 * config.patch_size**2 * D + D * config.prompt_dim + 9 * config.prompt_dim**2)
    return 2 * (linear + attention + neck) / 1e12


def step_tflop(config: SamConfig, options: argparse.Namespace) -> tuple[float, float]:
    """Returns the operations of a step on one image, of the encoder and of everything else, by the planner."""
    from samtrain.losses import SamLoss
    from samtrain.prompts import PromptSampler
    from samtrain.training.plan import step_cost

    cost = step_cost(
        config, device="cuda", images=1, masks=options.masks, sampler=PromptSampler(num_points=options.interactions - 3),
        loss=SamLoss(), bf16=True, activation_checkpointing=False,
    )  # fmt: skip
    print(f"planned: {cost.memory_gb:.1f} GB with the optimiser, {cost.step_gb:.1f} GB for the step", flush=True)
    return cost.encoder_tflop, cost.decoder_tflop


def batch_of(images: int, config: SamConfig, options: argparse.Namespace) -> Batch:
    side = config.image_size
    one, batch = image_of_discs(options.masks, side), image_of_discs(options.masks * images, side)
    batch.images = one.images.repeat(images, 1, 1, 1)
    batch.image_index = torch.arange(images).repeat_interleave(options.masks)
    batch.input_sizes, batch.original_sizes = (torch.full((images, 2), side) for _ in range(2))
    batch.keys = one.keys * images
    return batch.to(options.device)


def distance(found: Tensor, exact: Tensor) -> str:
    """Returns ||found - exact|| / ||exact||."""
    found, exact = found.detach().float(), exact.detach().float()
    return f"{float((found - exact).norm() / exact.norm()):.1e}"


def profile(job: Callable[[], Any]) -> None:
    """Prints the kernels that take most of the time."""
    job()
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as found:
        job()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    events = sorted(found.key_averages(), key=lambda e: getattr(e, by.replace("cuda", "device")), reverse=True)
    total = sum(getattr(e, by.replace("cuda", "device")) for e in events)
    print(f"profile: {total / 1e3:.1f} ms of kernels, {sum(e.count for e in events)} events")
    for event in events[:22]:
        time = getattr(event, by.replace("cuda", "device"))
        print(f"  {time / 1e3:9.2f} ms {time / max(total, 1):5.1%} x {event.count:5d} {event.key[:110]}")


if __name__ == "__main__":
    main()
