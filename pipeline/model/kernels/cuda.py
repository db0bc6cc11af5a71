"""The operators' kernels for CUDA, in Triton. Results are those of the kernels for CPUs, wherever they run.

All are compiled without fusing products and sums into one rounding (``enable_fp_fusion``), and divide as IEEE 754 says
(`tl.div_rn`; Triton's ``/`` is off by an ulp or two): a bin has one sample more or less, and a box stays or goes, by
the last bit. Sizes that change from call to call are not compiled in (``do_not_specialize``): few kernels are made, all
of them by the first batches. Block sizes and numbers of warps follow from the reasons beside them; none was measured.

B images, R RoIs, C channels, S bins along a side of a pooled RoI, G groups, N boxes of a group, H W size of a map.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

_LEVELS = 4

# Boxes that are compared all with all at once. More are taken chunk after chunk, so that the memory is half a MB a
# group (all with all, 80,000 boxes would take 800 MB) and the work what it must be, still without the host.
CHUNK = 2048
_ROWS = 64  # times 32 columns: 16 pairs for each thread of 4 warps
_WORD = tl.constexpr(32)  # bits of a word: as many boxes as a warp has lanes
_COLUMNS = 256  # of an image: 2 for each thread of 4 warps


def roi_align_levels(
    features: list[Tensor], boxes: Tensor, levels: Tensor, images: Tensor, side: int, strides: list[int]
) -> Tensor:
    """`pipeline.model.kernels.roi_align.roi_align_levels` in one launch, equal to torchvision's kernel for CPUs.

    Raises:
        ValueError: there are not four levels.
    """
    if len(features) != _LEVELS or len(strides) != _LEVELS:
        raise ValueError(f"{len(features)} maps with {len(strides)} strides: expected {_LEVELS} of both")
    R, C = len(boxes), features[0].shape[1]
    pooled = features[0].new_empty((R, side, side, C))
    if pooled.numel():
        maps = [feature.permute(0, 2, 3, 1).contiguous() for feature in features]
        sizes = [size for feature in maps for size in feature.shape[1:3]]
        scales = [1 / stride for stride in strides]
        # A program has the channels of one bin, and one warp: with 256 channels in bfloat16 each lane loads 16 bytes
        # of a pixel at once, all lanes the whole 512 in a row, and warps do not wait for each other at the sum.
        block = min(256, triton.next_power_of_2(C))
        with torch.cuda.device_of(boxes):
            _roi_align_kernel[(R * side * side, triton.cdiv(C, block))](
                *maps, boxes.contiguous(), levels.contiguous(), images.contiguous(), pooled, *sizes, *scales,
                C=C, S=side, BLOCK=block, num_warps=1, enable_fp_fusion=False,
            )  # fmt: skip
    return pooled.permute(0, 3, 1, 2)


@triton.jit(do_not_specialize=["H0", "W0", "H1", "W1", "H2", "W2", "H3", "W3"])
def _roi_align_kernel(
    map0: tl.tensor,
    map1: tl.tensor,
    map2: tl.tensor,
    map3: tl.tensor,
    boxes: tl.tensor,
    levels: tl.tensor,
    images: tl.tensor,
    pooled: tl.tensor,
    H0: tl.tensor,
    W0: tl.tensor,
    H1: tl.tensor,
    W1: tl.tensor,
    H2: tl.tensor,
    W2: tl.tensor,
    H3: tl.tensor,
    W3: tl.tensor,
    scale0: tl.tensor,
    scale1: tl.tensor,
    scale2: tl.tensor,
    scale3: tl.tensor,
    C: tl.constexpr,
    S: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One bin of one RoI, BLOCK channels; maps ``(B, H, W, C)``, boxes ``(R, 4)``, result ``(R, S, S, C)``."""
    r = tl.program_id(0).to(tl.int64) // (S * S)
    cell = tl.program_id(0) % (S * S)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    level = tl.load(levels + r)
    if level == 0:
        pixels, H, W, scale = map0, H0, W0, scale0
    elif level == 1:
        pixels, H, W, scale = map1, H1, W1, scale1
    elif level == 2:
        pixels, H, W, scale = map2, H2, W2, scale2
    else:
        pixels, H, W, scale = map3, H3, W3, scale3

    start_x = tl.load(boxes + r * 4) * scale - 0.5
    start_y = tl.load(boxes + r * 4 + 1) * scale - 0.5
    bin_w = tl.div_rn(tl.load(boxes + r * 4 + 2) * scale - 0.5 - start_x, S * 1.0)
    bin_h = tl.div_rn(tl.load(boxes + r * 4 + 3) * scale - 0.5 - start_y, S * 1.0)
    # A NaN fails all comparisons. What is not usable has no samples, so nothing is read for it and its sum is 0.
    samples_x, samples_y = tl.ceil(bin_w), tl.ceil(bin_h)
    usable = (samples_x > 0) & (samples_x <= W) & (samples_y > 0) & (samples_y <= H) & (level >= 0) & (level < 4)
    samples_x = tl.where(usable, samples_x, 0.0)
    samples_y = tl.where(usable, samples_y, 0.0)

    pixels += tl.load(images + r) * H * W * C + channel
    total = tl.zeros([BLOCK], tl.float32)
    for row in range(samples_y.to(tl.int32)):
        y = start_y + (cell // S) * bin_h + tl.div_rn((row + 0.5) * bin_h, samples_y)
        y_inside = (y >= -1.0) & (y <= H)
        y = tl.minimum(tl.maximum(y, 0.0), H - 1.0)
        top = y.to(tl.int32)
        low = y - top
        upper = pixels + top.to(tl.int64) * W * C
        lower = pixels + tl.minimum(top + 1, H - 1).to(tl.int64) * W * C
        for column in range(samples_x.to(tl.int32)):
            x = start_x + (cell % S) * bin_w + tl.div_rn((column + 0.5) * bin_w, samples_x)
            inside = channel < tl.where((x >= -1.0) & (x <= W) & y_inside, C, 0)
            x = tl.minimum(tl.maximum(x, 0.0), W - 1.0)
            left = x.to(tl.int32)
            right = tl.minimum(left + 1, W - 1)
            far = x - left
            top_left = tl.load(upper + left * C, mask=inside, other=0.0).to(tl.float32)
            top_right = tl.load(upper + right * C, mask=inside, other=0.0).to(tl.float32)
            bottom_left = tl.load(lower + left * C, mask=inside, other=0.0).to(tl.float32)
            bottom_right = tl.load(lower + right * C, mask=inside, other=0.0).to(tl.float32)
            total += (
                (1.0 - low) * (1.0 - far) * top_left
                + (1.0 - low) * far * top_right
                + low * (1.0 - far) * bottom_left
                + low * far * bottom_right
            )
    mean = tl.div_rn(total, tl.maximum(samples_x * samples_y, 1.0))
    to = pooled + (r * (S * S) + cell) * C + channel
    tl.store(to, mean.to(pooled.dtype.element_ty), mask=channel < C)


def nms_groups(boxes: Tensor, valid: Tensor, iou_threshold: float) -> Tensor:
    """`pipeline.model.kernels.nms.nms_groups` in two launches, and three for each further `CHUNK` boxes."""
    G, N = valid.shape
    keep = torch.empty((G, N), dtype=torch.bool, device=valid.device)
    if keep.numel() == 0:
        return keep
    boxes = boxes.contiguous()
    # What no better box of an earlier chunk has suppressed.
    alive = valid.contiguous().view(torch.uint8) if N <= CHUNK else valid.to(torch.uint8)
    # A bit for each pair. Rows have a length that is compiled in, so that a lane loads 16 bytes of them at once.
    W = triton.next_power_of_2(triton.cdiv(min(N, CHUNK), 32))
    words = torch.empty((G, min(N, CHUNK), W), dtype=torch.int32, device=boxes.device)
    threshold = _next_float32_below(iou_threshold)
    with torch.cuda.device_of(boxes):
        for start in range(0, N, CHUNK):
            end = min(start + CHUNK, N)
            _overlap_kernel[(G, triton.cdiv(end - start, _ROWS), triton.cdiv(end - start, 32))](
                boxes, words, start, end, N, threshold, W=W, ROWS=_ROWS, num_warps=4, enable_fp_fusion=False
            )
            # One warp: it takes 32 boxes at a time, a lane for each, and never waits for another.
            _scan_kernel[(G,)](
                words, alive, keep.view(torch.uint8), start, end, N, W=W, num_warps=1, enable_fp_fusion=False
            )
            if end < N:
                _suppress_kernel[(G, triton.cdiv(N - end, _ROWS))](
                    boxes, keep.view(torch.uint8), alive, start, end, N, threshold,
                    ROWS=_ROWS, num_warps=4, enable_fp_fusion=False,
                )  # fmt: skip
    return keep


def _next_float32_below(threshold: float) -> float:
    """The largest float32 that is no larger: as an upper limit of a float32 it is the same as the float64 itself."""
    nearest = np.float32(threshold)
    return float(nearest) if float(nearest) <= threshold else float(np.nextafter(nearest, np.float32(-np.inf)))


@triton.jit
def _corners(boxes: tl.tensor, index: tl.tensor, end: tl.tensor) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    inside = index < end
    x1 = tl.load(boxes + index * 4, mask=inside, other=0.0)
    y1 = tl.load(boxes + index * 4 + 1, mask=inside, other=0.0)
    x2 = tl.load(boxes + index * 4 + 2, mask=inside, other=0.0)
    y2 = tl.load(boxes + index * 4 + 3, mask=inside, other=0.0)
    return x1, y1, x2, y2


@triton.jit
def _overlap(
    ax1: tl.tensor,
    ay1: tl.tensor,
    ax2: tl.tensor,
    ay2: tl.tensor,
    bx1: tl.tensor,
    by1: tl.tensor,
    bx2: tl.tensor,
    by2: tl.tensor,
    threshold: tl.tensor,
) -> tl.tensor:
    """Whether the IoU is above the threshold, for all pairs of a box a and a box b, in torchvision's order of steps."""
    width = tl.maximum(tl.minimum(ax2[:, None], bx2[None, :]) - tl.maximum(ax1[:, None], bx1[None, :]), 0.0)
    height = tl.maximum(tl.minimum(ay2[:, None], by2[None, :]) - tl.maximum(ay1[:, None], by1[None, :]), 0.0)
    both = width * height
    area_a, area_b = (ax2 - ax1) * (ay2 - ay1), (bx2 - bx1) * (by2 - by1)
    return tl.div_rn(both, area_a[:, None] + area_b[None, :] - both) > threshold


@triton.jit(do_not_specialize=["start", "end", "N"])
def _overlap_kernel(
    boxes: tl.tensor,
    words: tl.tensor,
    start: tl.tensor,
    end: tl.tensor,
    N: tl.tensor,
    threshold: tl.tensor,
    W: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """``words[g, i, w]``: a bit for each of boxes 32 w .. 32 w + 31 of the chunk that is better than i and overlaps it.

    Words of worse boxes alone are not written.
    """
    group, word = tl.program_id(0).to(tl.int64), tl.program_id(2)
    i = start + tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    if word * _WORD < (tl.program_id(1) + 1) * ROWS:
        bit = tl.arange(0, _WORD)
        j = start + word * _WORD + bit
        ax1, ay1, ax2, ay2 = _corners(boxes + group * N * 4, i, end)
        bx1, by1, bx2, by2 = _corners(boxes + group * N * 4, j, end)
        over = _overlap(ax1, ay1, ax2, ay2, bx1, by1, bx2, by2, threshold) & (j[None, :] < i[:, None])
        bits = tl.sum(tl.where(over, (1 << bit)[None, :], 0), axis=1)
        tl.store(words + (group * (end - start) + i - start) * W + word, bits, mask=i < end)


@triton.jit(do_not_specialize=["start", "end", "N"])
def _scan_kernel(
    words: tl.tensor,
    alive: tl.tensor,
    keep: tl.tensor,
    start: tl.tensor,
    end: tl.tensor,
    N: tl.tensor,
    W: tl.constexpr,
) -> None:
    """One group walks its boxes of a chunk, 32 at a time, with a bit in ``kept`` for each box kept so far."""
    group = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, _WORD)
    column = tl.arange(0, W)
    kept = tl.zeros([W], tl.int32)
    for word in range(tl.cdiv(end - start, _WORD)):
        i = start + word * _WORD + lane
        row = words + (group * (end - start) + i - start) * W
        # Words that were not written meet a 0 in ``kept``.
        better = tl.load(row[:, None] + column[None, :], mask=(i < end)[:, None], other=0)
        suppressed = tl.max(tl.where((better & kept[None, :]) != 0, 1, 0), axis=1)
        free = (tl.load(alive + group * N + i, mask=i < end, other=0) != 0) & (suppressed == 0)
        # Among the 32: a box stays if none that stays suppresses it. Each round settles the next box at the latest.
        within = tl.load(row + word, mask=i < end, other=0)
        staying = tl.sum(tl.where(free, 1 << lane, 0), axis=0)
        before = ~staying
        while staying != before:
            before = staying
            staying = tl.sum(tl.where(free & ((within & staying) == 0), 1 << lane, 0), axis=0)
        kept = tl.where(column == word, staying, kept)
        tl.store(keep + group * N + i, ((staying >> lane) & 1).to(tl.uint8), mask=i < end)


@triton.jit(do_not_specialize=["start", "end", "N"])
def _suppress_kernel(
    boxes: tl.tensor,
    keep: tl.tensor,
    alive: tl.tensor,
    start: tl.tensor,
    end: tl.tensor,
    N: tl.tensor,
    threshold: tl.tensor,
    ROWS: tl.constexpr,
) -> None:
    """ROWS of the boxes behind a chunk: those that a box kept in the chunk overlaps are alive no more."""
    group = tl.program_id(0).to(tl.int64)
    i = end + tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    ax1, ay1, ax2, ay2 = _corners(boxes + group * N * 4, i, N)
    suppressed = tl.zeros([ROWS], tl.int32)
    for first in range(start, end, _WORD):
        j = first + tl.arange(0, _WORD)
        bx1, by1, bx2, by2 = _corners(boxes + group * N * 4, j, end)
        kept = tl.load(keep + group * N + j, mask=j < end, other=0) != 0
        over = _overlap(ax1, ay1, ax2, ay2, bx1, by1, bx2, by2, threshold) & kept[None, :]
        suppressed = tl.maximum(suppressed, tl.max(tl.where(over, 1, 0), axis=1))
    tl.store(alive + group * N + i, tl.zeros([ROWS], tl.uint8), mask=(i < N) & (suppressed != 0))


def resize_normalise(
    pixels: Tensor,
    table: Tensor,
    height: int,
    width: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> Tensor:
    """`pipeline.model.kernels.resize.resize_normalise` in one launch."""
    inputs = torch.empty((len(table), 3, height, width), device=pixels.device)
    if inputs.numel():
        with torch.cuda.device_of(pixels):
            _resize_kernel[(len(table) * height, triton.cdiv(width, _COLUMNS))](
                pixels.contiguous(), table.contiguous(), inputs, height, width, *mean, *std,
                BLOCK=_COLUMNS, num_warps=4, enable_fp_fusion=False,
            )  # fmt: skip
    return inputs


@triton.jit(do_not_specialize=["H", "W"])
def _resize_kernel(
    pixels: tl.tensor,
    table: tl.tensor,
    inputs: tl.tensor,
    H: tl.tensor,
    W: tl.tensor,
    mean_r: tl.tensor,
    mean_g: tl.tensor,
    mean_b: tl.tensor,
    std_r: tl.tensor,
    std_g: tl.tensor,
    std_b: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """BLOCK pixels of one row of one image, all channels."""
    image, y = tl.program_id(0).to(tl.int64) // H, tl.program_id(0) % H
    x = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    offset = tl.load(table + image * 5)
    src_h = tl.load(table + image * 5 + 1).to(tl.int32)
    src_w = tl.load(table + image * 5 + 2).to(tl.int32)
    h = tl.load(table + image * 5 + 3).to(tl.int32)
    w = tl.load(table + image * 5 + 4).to(tl.int32)
    inside = x < tl.where(y < h, w, 0)
    top, bottom, w_top, w_bottom = _taps(y, src_h, h, False)
    left, right, w_left, w_right = _taps(x, src_w, w, True)
    upper = pixels + offset + top.to(tl.int64) * src_w * 3
    lower = pixels + offset + bottom.to(tl.int64) * src_w * 3
    to = inputs + (image * 3 * H + y) * W + x
    plane = H.to(tl.int64) * W
    for channel in tl.static_range(3):
        above = _between(upper + channel, left, right, w_left, w_right, inside)
        below = _between(lower + channel, left, right, w_left, w_right, inside)
        value = (((above * w_top) >> 16) + ((below * w_bottom) >> 16) + 2) >> 2
        value = tl.minimum(tl.maximum(value, 0), 255)
        mean = mean_r if channel == 0 else (mean_g if channel == 1 else mean_b)
        std = std_r if channel == 0 else (std_g if channel == 1 else std_b)
        normal = tl.div_rn(value.to(tl.float32) - mean, std)
        tl.store(to + channel * plane, tl.where(inside, normal, 0.0), mask=x < W)


@triton.jit
def _between(
    row: tl.tensor, left: tl.tensor, right: tl.tensor, w_left: tl.tensor, w_right: tl.tensor, inside: tl.tensor
) -> tl.tensor:
    a = tl.load(row + left * 3, mask=inside, other=0).to(tl.int32)
    b = tl.load(row + right * 3, mask=inside, other=0).to(tl.int32)
    return (a * w_left + b * w_right) >> 4


@triton.jit
def _taps(
    target: tl.tensor, n_src: tl.tensor, n_dst: tl.tensor, IS_COLUMN: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """What `pipeline.images.resize._taps` gives, for the positions asked for."""
    scale = 1.0 / (n_dst.to(tl.float64) / n_src.to(tl.float64))
    position = ((target.to(tl.float64) + 0.5) * scale - 0.5).to(tl.float32)
    first = tl.floor(position)
    fraction = position - first
    index = first.to(tl.int32)
    if IS_COLUMN:
        fraction = tl.where((index < 0) | (index >= n_src - 1), 0.0, fraction)
    low = tl.minimum(tl.maximum(index, 0), n_src - 1)
    high = tl.minimum(tl.maximum(index + 1, 0), n_src - 1)
    return low, high, _round(2048.0 * (1.0 - fraction)), _round(2048.0 * fraction)


@triton.jit
def _round(value: tl.tensor) -> tl.tensor:
    """To the nearest integer, halves to the even one, from 0 to 2^22: from 2^23 on float32 has no bits below 1."""
    return ((value + 8388608.0) - 8388608.0).to(tl.int32)
