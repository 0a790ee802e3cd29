"""Which pixel looks at which latent, and what quarter turns do to both: the index tables of the frozen-pose field.

Positions of the latents never move, so the bi-invariants, the windows and the neighbours of all pixels are constants.
Quarter turns permute pixels and latents; a turned pair of pixel and latent has the same bi-invariant. One quarter of
the pairs is therefore enough, and equal numbers on all four quarters make the fit exactly C4-equivariant.

Latents near the corners are seen by fewer pixels than those in the middle. Orbits of about as many pairs share a block,
so that little of a block is empty, and what is computed of a block stays in the processor's cache.

Letters: P pixels, R = P / 4 orbits of pixels, N latents, Q = N / 4 orbits of latents, K neighbours, G orbits of a block, M
slots: the most pairs any latent of a block has, S slots of all orbits. Orbit order: first the quarter turn (0 to 3), then
the orbit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.models.latent_cloud import initial_cloud, nearest_latents, rotate_quarter

Ints = NDArray[np.int64]


BLOCK_ORBITS = 4
"""Orbits of latents that share a block."""


@dataclass(frozen=True, kw_only=True)
class PairBlock:
    """The pairs of some orbits of latents.

    Args:
        orbits: int64 [G], which.
        offsets: float64 [G, M, 2], pixel minus latent (0, q); 0 where a slot is empty.
        orientations: float64 [G], of latent (0, q), radian.
        filled: bool [G, M].
    """

    orbits: Tensor
    offsets: Tensor
    orientations: Tensor
    filled: Tensor


@dataclass(frozen=True, kw_only=True)
class PairTables:
    """Constants of one image size and cloud; a pair is a pixel and one of its K nearest latents.

    Args:
        pixels: int64 [P], index of each pixel in the row-major image, in orbit order.
        blocks: orbits of latents and their slots; a quarter's slots lie block by block, orbit by orbit.
        to_pixels: int64 [K * P], where each pixel's pairs lie among the 4 * S slots; all first neighbours come first.
        to_latents: int64 [4 * S], which pair (of K * P) fills a slot; 0 where it is empty.
        neighbours: K.
    """

    pixels: Tensor
    blocks: tuple[PairBlock, ...]
    to_pixels: Tensor
    to_latents: Tensor
    neighbours: int

    def to(self, device: torch.device) -> PairTables:
        """Return the tables on another device."""
        return replace(_moved(self, device), blocks=tuple(_moved(block, device) for block in self.blocks))


_Moved = TypeVar("_Moved", PairBlock, PairTables)


def _moved(tables: _Moved, device: torch.device) -> _Moved:
    return replace(tables, **{name: each.to(device) for name, each in vars(tables).items() if isinstance(each, Tensor)})


def pair_tables(size: int, latents: int, neighbours: int | None, orbits: Ints | None = None) -> PairTables:
    """Return the tables of an image of ``size`` by ``size`` pixels.

    Args:
        size: even, so that no pixel lies in the centre.
        latents: N, of ``initial_cloud``.
        neighbours: K.
        orbits: int64, which orbits of pixels are used; all when None. A set of orbits is closed under quarter turns.

    Raises:
        ValueError: an odd size, no number of neighbours, or a pixel with two latents equally far.
    """
    if neighbours is None:
        msg = "the frozen form needs a number of neighbours; found None (all latents): state one in the recipe"
        raise ValueError(msg)
    if size % 2:
        msg = (
            f"the image is {size} pixels wide; expected an even number: an odd one has a pixel of its own in the centre"
        )
        raise ValueError(msg)
    pixels, places = _quarter_pixels(size)
    if orbits is not None:
        pixels, places = pixels[:, orbits], places[orbits]
    poses = initial_cloud(latents, 1).poses.double().numpy()
    nearest = nearest_latents(torch.from_numpy(places), torch.from_numpy(poses), neighbours).numpy()
    turns, orbit = np.divmod(nearest, latents // 4)  # both [R, K]
    return _tables(pixels, places, poses[: latents // 4], turns, orbit)


def _quarter_pixels(size: int) -> tuple[Ints, NDArray[np.float64]]:
    """Return the pixels in orbit order, int64 [4, R], and the places (x, y) of the first quarter, [R, 2]."""
    index = np.arange(size * size).reshape(size, size)
    half = size // 2
    # rot90 moves pixel values; the pixel that the value of i came from is found in the image turned back.
    pixels = np.stack([np.rot90(index, -turns)[:half, :half].ravel() for turns in range(4)])
    axis = np.linspace(-1.0, 1.0, size)
    x, y = np.meshgrid(axis[:half], axis[:half])
    return pixels.astype(np.int64), np.stack([x.ravel(), y.ravel()], axis=1)


def _tables(
    pixels: Ints, places: NDArray[np.float64], poses: NDArray[np.float64], turns: Ints, orbit: Ints
) -> PairTables:
    rows, neighbours = orbit.shape
    flat_orbit, flat_turns = orbit.ravel(), turns.ravel()
    number, counts = _numbered(flat_orbit, len(poses))
    blocks = np.array_split(np.argsort(-counts, kind="stable"), range(BLOCK_ORBITS, len(poses), BLOCK_ORBITS))
    widths = [int(counts[block].max()) for block in blocks]
    first, slots = _first_slots(blocks, widths)
    offsets = np.zeros((slots, 2))
    place = first[flat_orbit] + number
    offsets[place] = _turned_back(places.repeat(neighbours, axis=0), flat_turns) - poses[flat_orbit, :2]
    filled = np.zeros(slots, bool)
    filled[place] = True
    quarter = np.arange(4)[:, None]
    slot = ((flat_turns + quarter) % 4) * slots + place  # [4, R * K], pixel by pixel
    pair = np.arange(neighbours) * (4 * rows) + (quarter * rows + np.arange(rows))[..., None]  # [4, R, K]
    to_latents = np.zeros(4 * slots, np.int64)
    to_latents[slot] = pair.reshape(4, -1)
    to_pixels = slot.reshape(4 * rows, neighbours).T
    ends = np.cumsum([len(block) * width for block, width in zip(blocks, widths, strict=True)])
    return PairTables(
        pixels=torch.from_numpy(pixels.ravel().copy()),
        blocks=tuple(
            PairBlock(
                orbits=torch.from_numpy(block),
                offsets=torch.from_numpy(part.reshape(len(block), width, 2)),
                orientations=torch.from_numpy(poses[block, 2]),
                filled=torch.from_numpy(there.reshape(len(block), width)),
            )
            for block, width, part, there in zip(
                blocks, widths, np.split(offsets, ends[:-1]), np.split(filled, ends[:-1]), strict=True
            )
        ),
        to_pixels=torch.from_numpy(np.ascontiguousarray(to_pixels).ravel()),
        to_latents=torch.from_numpy(to_latents),
        neighbours=neighbours,
    )


def _numbered(flat_orbit: Ints, latent_orbits: int) -> tuple[Ints, Ints]:
    """Number the pairs of each latent orbit from 0; returns the numbers and how many pairs each orbit has."""
    counts = np.bincount(flat_orbit, minlength=latent_orbits)
    order = np.argsort(flat_orbit, kind="stable")
    ordered = np.arange(len(flat_orbit)) - np.repeat(np.cumsum(counts) - counts, counts)
    numbers = np.empty(len(flat_orbit), np.int64)
    numbers[order] = ordered
    return numbers, counts


def _first_slots(blocks: Sequence[Ints], widths: Sequence[int]) -> tuple[Ints, int]:
    """Return where the slots of each orbit begin, int64 [Q], and how many slots there are."""
    order = np.concatenate(blocks)
    taken = np.repeat(widths, [len(block) for block in blocks])
    first = np.empty(len(order), np.int64)
    first[order] = np.cumsum(taken) - taken
    return first, int(taken.sum())


def _turned_back(places: NDArray[np.float64], turns: Ints) -> NDArray[np.float64]:
    """Turn each place back by its own number of quarter turns."""
    turned = np.stack([rotate_quarter(torch.from_numpy(places), -k).numpy() for k in range(4)])
    return np.asarray(turned[turns, np.arange(len(places))])
