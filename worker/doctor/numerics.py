"""Checks of what this machine's GPU computes, against its own CPU. Where there is no GPU, CPU against CPU.

Each step of a pass starts from the CPU's state, so that the first wrong step is the one that is named.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
from humanfriendly import format_size

from shared.choices import BITS, GROUP_SIZES
from shared.costs import forward_bytes
from shared.doctor.check import Check, CheckFunction, ok
from worker.engine.block_gradients import pull_back_by_block, record_states
from worker.engine.memory import memory_of_weights, passing_of
from worker.engine.replay import Forward, Replay, State
from worker.families.family import Family
from worker.families.registry import FAMILIES, trial_family

TOLERANCES = {mx.float32: 1e-4, mx.float16: 1e-2, mx.bfloat16: 5e-2}
"""Relative L2 difference of one step between GPU and CPU, by the dtype computed in. float32 products differ
by the order of their sums, about 1e-6; TF32 would show as 1e-3. 16 bits differ by their own rounding."""
QUANTIZED_TOLERANCE = 1e-3
"""Of a quantized product in float32 against the product with the dequantized weight: a wrong group, scale or
row changes it by tenths."""
GRADIENT_TOLERANCE = 1e-3
"""Of a gradient in float32. Gradients add up what each step rounds."""
MANY_ROWS = 33_000
"""More than 32,768, from which on older kernels were wrong."""
LATENT_SIZE = (16, 16)
TEXT_TOKENS = 20
PROBES = 3
RETRY_CURE = "install the newest mlx and try again; if it stays, this machine should not join a fleet"


@contextmanager
def on(device: mx.DeviceType | mx.Device) -> Iterator[None]:
    """Within this context MLX computes on a device."""
    before = mx.default_device()
    mx.set_default_device(device)
    try:
        yield
    finally:
        mx.set_default_device(before)


def numeric_checks(*, full: bool) -> list[tuple[str, CheckFunction]]:
    """Return all checks of numbers. With `full`, transformers have the width of published ones."""
    checks: list[tuple[str, CheckFunction]] = [("Device", check_device)]
    for name in FAMILIES:
        checks.append((f"{name} passes", partial(check_passes, name, full=full)))
        checks.append((f"{name} gradients", partial(check_gradients, name, full=full)))
    checks.append(("quantized products", check_quantized_products))
    return checks


def check_device() -> Iterator[Check]:
    """Check that there is a GPU and that it answers."""
    device = mx.default_device()
    name = str(mx.device_info().get("device_name", "unknown"))
    total: Any = mx.ones((256, 256)).sum().item()
    if total != 65536:
        yield Check(
            name="Device",
            outcome="failed",
            found=f"{name}: a sum of 65536 ones is {total:g}",
            cure=RETRY_CURE,
        )
    elif device.type != mx.gpu and sys.platform != "darwin":
        yield ok("Device", "MLX computes on the CPU; the checks below hold it against itself")
    elif device.type != mx.gpu:
        yield Check(
            name="Device",
            outcome="warning",
            found="MLX has no GPU here and computes on the CPU, which is many times slower",
            cure="run this in a session with a GPU, and install mlx again if that does not help",
        )
    else:
        yield ok("Device", f"{name} answers")


def check_passes(name: str, *, full: bool) -> Iterator[Check]:
    """Check each step of a forward pass of a small random model, in float32 and in the model's own format.

    Then that the same pass gives the same answer twice, and that it takes the memory that was planned.
    """
    family = trial_family(name, full=full)
    if family is None:
        yield Check(name=f"{name} passes", outcome="skipped", found="this family has no model to try")
        return
    for dtype in dict.fromkeys((mx.float32, family.dtype)):
        yield _compared(f"{name} passes", family, dtype)
    forward = _forward(family, family.dtype)
    mx.eval(first := forward())
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    mx.eval(second := forward())
    took = mx.get_peak_memory() - before
    if mx.array_equal(first, second).item():
        yield ok(f"{name} twice", "the same pass gives the same answer twice")
    else:
        yield Check(
            name=f"{name} twice",
            outcome="failed",
            found=f"the same pass gives two answers, {_difference([first], [second]):.1g} apart",
            cure=RETRY_CURE,
        )
    size = family.pass_size(LATENT_SIZE, TEXT_TOKENS)
    passing = passing_of(family, size, rows=2)
    one_pass = forward_bytes(passing, itemsize=family.dtype.size, fused_attention=mx.metal.is_available())
    planned = one_pass + 4 * passing.largest_block
    found = f"a pass took {format_size(took)}, planned were {format_size(planned)}"
    figures = {"took_bytes": float(took), "planned_bytes": float(planned)}
    yield Check(
        name=f"{name} memory",
        outcome="ok" if took <= planned else "warning",
        found=found + f", beside weights of {format_size(memory_of_weights(family.transformer))}",
        cure="" if took <= planned else "give a smaller --memory-limit, in proportion",
        figures=figures,
    )


def _compared(name: str, family: Family, dtype: mx.Dtype) -> Check:
    forward = _forward(family, dtype)
    replay = Replay(family.stages, family.after_blocks, forward)
    with on(mx.cpu):
        states, output = record_states(replay, forward)
    differences = step_differences(replay, forward, states, output, mx.default_device())
    worst = max(differences.values())
    limit = TOLERANCES[dtype]
    wrong = [step for step, difference in differences.items() if not difference <= limit]
    said = str(dtype).removeprefix("mlx.core.")
    if wrong:
        step = wrong[0]
        return Check(
            name=name,
            outcome="failed",
            found=f"in {said} the first wrong step is {step}: {differences[step]:.1g} from the CPU's, "
            f"tolerance {limit:g}",
            cure=RETRY_CURE,
            figures=differences,
        )
    found = f"in {said} every one of {len(differences)} steps is within {worst:.1g} of the CPU's"
    return Check(name=name, outcome="ok", found=found, figures=differences)


def step_differences(
    replay: Replay, forward: Forward, states: Sequence[State], output: mx.array, device: mx.Device
) -> dict[str, float]:
    """Return by step the relative difference to what the CPU computed, each from the CPU's own state.

    Args:
        replay: of the model.
        forward: the pass that the states belong to.
        states: of `record_states` on the CPU.
        output: of the whole pass on the CPU.
        device: to compare with the CPU.
    """
    differences = {}
    with on(device):
        for position, state in enumerate(states):
            if position == len(replay):
                after, wanted = [replay.run_from(forward, state)], [output]
                name = "output"
            else:
                after = replay.advance(forward, state, position + 1).arrays
                wanted, name = states[position + 1].arrays, replay.path_at(position)
            mx.eval(after)
            differences[name] = _difference(after, wanted)
    return differences


def check_gradients(name: str, *, full: bool) -> Iterator[Check]:
    """Check the gradients of several probes at once, as a sketch takes them, layer by layer."""
    family = trial_family(name, full=full)
    if family is None:
        return
    with on(mx.cpu):
        wanted = _gradients(family)
    found = _gradients(family)
    differences = {layer: _difference([found[layer]], [wanted[layer]]) for layer in wanted}
    wrong = [layer for layer, difference in differences.items() if not difference <= GRADIENT_TOLERANCE]
    worst = max(differences.values())
    if wrong:
        yield Check(
            name=f"{name} gradients",
            outcome="failed",
            found=f"{len(wrong)} of {len(differences)} layers are wrong; going back, the first is "
            f"{wrong[0]}: {differences[wrong[0]]:.1g} from the CPU's, tolerance {GRADIENT_TOLERANCE:g}",
            cure=RETRY_CURE + "; exact measurements and images do not need gradients",
            figures=differences,
        )
    else:
        yield Check(
            name=f"{name} gradients",
            outcome="ok",
            found=f"gradients of {len(differences)} layers are within {worst:.1g} of the CPU's",
            figures=differences,
        )


def _gradients(family: Family) -> dict[str, mx.array]:
    """Gradients (PROBES, outputs, inputs) by layer, in the order in which they come going back."""
    forward = _forward(family, mx.float32)
    replay = Replay(family.stages, family.after_blocks, forward)
    states, output = record_states(replay, forward)
    signs = np.random.default_rng(1).integers(0, 2, (PROBES, *output.shape), np.int8)
    gradients: dict[str, mx.array] = {}

    def receive(_: int, some: dict[str, mx.array]) -> None:
        for layer, gradient in some.items():
            gradients[layer] = gradients[layer] + gradient if layer in gradients else gradient

    pull_back_by_block(
        replay,
        forward,
        states,
        transformer=family.transformer,
        layers=[layer.path for layer in family.layers],
        cotangent=mx.array(2 * signs - 1).astype(mx.float32),
        at_once=PROBES,
        receive=receive,
    )
    mx.eval(gradients)
    return gradients


def check_quantized_products() -> Iterator[Check]:
    """Check quantized products at every (bits, group size), for many rows and for strided input."""
    draw = np.random.default_rng(0).standard_normal
    weight = mx.array(draw((96, 256)).astype(np.float32))
    few, wide = mx.array(draw((24, 256)).astype(np.float32)), mx.array(draw((24, 512)).astype(np.float32))
    many = mx.array(draw((MANY_ROWS, 128)).astype(np.float32))
    differences: dict[str, float] = {}
    for bits in BITS:
        for group_size in GROUP_SIZES:
            label = f"{bits} bits in groups of {group_size}"
            differences[label] = _quantized_difference(few, weight, bits, group_size)
    differences[f"{MANY_ROWS} rows"] = _quantized_difference(many, weight[:, :128], 4, 64)
    differences["strided input"] = _quantized_difference(wide[:, ::2], weight, 4, 64)
    differences["strided weight"] = _strided_dequantize_difference(weight)
    wrong = [case for case, difference in differences.items() if not difference <= QUANTIZED_TOLERANCE]
    worst = max(differences.values())
    if wrong:
        yield Check(
            name="quantized products",
            outcome="failed",
            found=f"wrong for {', '.join(wrong[:3])}: {differences[wrong[0]]:.1g} off, tolerance "
            f"{QUANTIZED_TOLERANCE:g}",
            cure=RETRY_CURE,
            figures=differences,
        )
    else:
        yield Check(
            name="quantized products",
            outcome="ok",
            found=f"{len(differences)} ways to quantize, all within {worst:.1g}",
            figures=differences,
        )


def _quantized_difference(x: mx.array, weight: mx.array, bits: int, group_size: int) -> float:
    packed, scales, biases = mx.quantize(weight, group_size=group_size, bits=bits)
    product = mx.quantized_matmul(x, packed, scales, biases, transpose=True, group_size=group_size, bits=bits)
    mx.eval(product)
    with on(mx.cpu):
        plain = mx.dequantize(packed, scales, biases, group_size=group_size, bits=bits)
        wanted = mx.contiguous(x) @ plain.T
        mx.eval(wanted)
    return _difference([product], [wanted])


def _strided_dequantize_difference(weight: mx.array) -> float:
    packed, scales, biases = mx.quantize(weight, group_size=64, bits=4)
    every_second = mx.dequantize(packed[::2], scales[::2], biases[::2], group_size=64, bits=4)
    mx.eval(every_second)
    with on(mx.cpu):
        wanted = mx.dequantize(packed, scales, biases, group_size=64, bits=4)[::2]
        mx.eval(wanted)
    return _difference([every_second], [wanted])


def _forward(family: Family, dtype: mx.Dtype) -> Forward:
    """A pass of two rows, as with CFG; the inputs are drawn the same on every machine."""
    random = np.random.default_rng(0)

    def draw(*shape: int) -> mx.array:
        return mx.array(random.standard_normal(shape, dtype=np.float32)).astype(dtype)

    x = draw(2, *LATENT_SIZE, family.channels)
    conditioning: Mapping[str, mx.array] = family.canary_conditioning(draw, 2, TEXT_TOKENS)
    sigma = mx.array([0.7, 0.7])
    mx.eval(x, conditioning, sigma)
    return lambda: family.velocity(x, sigma, conditioning)


def _difference(found: Sequence[mx.array], wanted: Sequence[mx.array]) -> float:
    """Return the largest relative L2 difference of arrays; infinity where one is not finite."""
    worst = 0.0
    for left, right in zip(found, wanted, strict=True):
        a, b = (np.array(array.astype(mx.float32), np.float64) for array in (left, right))
        distance, length = float(np.linalg.norm(a - b)), float(np.linalg.norm(b))
        if not np.isfinite(distance):
            return float("inf")
        worst = max(worst, distance / length if length else distance)
    return worst
