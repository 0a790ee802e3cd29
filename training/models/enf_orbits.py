"""Which pixel looks at which latent, and what quarter turns do to both: the index tables of the frozen-pose field.

Positions of the latents never move, so the bi-invariants, the windows and the neighbours of all pixels are constants.
Quarter turns permute pixels and latents; a turned pair of pixel and latent has the same bi-invariant. One quarter of
the pairs is therefore enough, and equal numbers on all four quarters make the fit exactly C4-equivariant.

Letters: P pixels, R = P / 4 orbits of pixels, N latents, Q = N / 4 orbits of latents, K neighbours, M slots: the most
pairs any latent has. Orbit order: first the quarter turn (0 to 3), then the orbit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.models.latent_cloud import initial_cloud, nearest_latents, rotate_quarter

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class PairTables:
    """Constants of one image size and cloud; a pair is a pixel and one of its K nearest latents.

    Args:
        pixels: int64 [P], index of each pixel in the row-major image, in orbit order.
        offsets: float64 [Q, M, 2], pixel minus latent for latent (0, q); 0 where a slot is empty.
        orientations: float64 [Q], of latent (0, q), radian.
        filled: bool [Q, M].
        to_pixels: int64 [P * K], where each pixel's pairs lie among the 4 * Q * M slots.
        to_latents: int64 [4 * Q * M], which pair (of P * K) fills a slot; 0 where it is empty.
        neighbours: K.
    """

    pixels: Tensor
    offsets: Tensor
    orientations: Tensor
    filled: Tensor
    to_pixels: Tensor
    to_latents: Tensor
    neighbours: int

    def to(self, device: torch.device) -> PairTables:
        """Return the tables on another device."""
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **moved)


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
    (rows, neighbours), latent_orbits = orbit.shape, len(poses)
    flat_orbit, flat_turns = orbit.ravel(), turns.ravel()
    slot, slots = _slots(flat_orbit, latent_orbits)
    offsets = np.zeros((latent_orbits, slots, 2))
    offsets[flat_orbit, slot] = _turned_back(places.repeat(neighbours, axis=0), flat_turns) - poses[flat_orbit, :2]
    filled = np.zeros((latent_orbits, slots), bool)
    filled[flat_orbit, slot] = True
    quarter = np.arange(4)[:, None]
    place = flat_orbit * slots + slot
    to_pixels = ((flat_turns + quarter) % 4) * (latent_orbits * slots) + place  # [4, R * K]
    to_latents = np.zeros(4 * latent_orbits * slots, np.int64)
    to_latents[to_pixels] = quarter * (rows * neighbours) + np.arange(rows * neighbours)
    return PairTables(
        pixels=torch.from_numpy(pixels.ravel().copy()),
        offsets=torch.from_numpy(offsets),
        orientations=torch.from_numpy(poses[:, 2].copy()),
        filled=torch.from_numpy(filled),
        to_pixels=torch.from_numpy(to_pixels.ravel()),
        to_latents=torch.from_numpy(to_latents),
        neighbours=neighbours,
    )


def _slots(flat_orbit: Ints, latent_orbits: int) -> tuple[Ints, int]:
    """Number the pairs of each latent orbit from 0; returns the numbers and the most there are."""
    counts = np.bincount(flat_orbit, minlength=latent_orbits)
    order = np.argsort(flat_orbit, kind="stable")
    numbers = np.arange(len(flat_orbit)) - np.repeat(np.cumsum(counts) - counts, counts)
    slot = np.empty(len(flat_orbit), np.int64)
    slot[order] = numbers
    return slot, int(counts.max())


def _turned_back(places: NDArray[np.float64], turns: Ints) -> NDArray[np.float64]:
    """Turn each place back by its own number of quarter turns."""
    turned = np.stack([rotate_quarter(torch.from_numpy(places), -k).numpy() for k in range(4)])
    return np.asarray(turned[turns, np.arange(len(places))])
