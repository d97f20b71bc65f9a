"""Paints one synthetic photograph: a class's object among clutter, under its own light, camera and colours.

The statistics are those of photographs: things that hide one another (the dead-leaves model of natural images),
textures with equal energy in every octave (an amplitude spectrum of about 1/f), shading, focus and sensor noise.
A class is a silhouette and the pattern on it (see `motifs`); colour, light, pose, place, scale and surroundings are
drawn independently of the class, so that nothing but structure tells the classes apart.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from pipeline.sources.motifs import NUM_MOTIFS, Field, pattern, silhouette

SIZE = (375, 500)
SIZE_SPREAD = 0.15
"""The short and the long side in pixels, and by how much each varies."""

BITS_PER_PIXEL = (2.0, 4.5)
"""Bounds that every encoded picture keeps: where photographs of this size at a camera's quality lie."""

_PORTRAITS = 0.3
_COARSEST_OCTAVE = 6
_QUALITY, _LOWEST_QUALITY, _HIGHEST_QUALITY = 92, 30, 99

# An outline is a circle with harmonics 2 to 6, sampled at 40 points.
_ANGLES = np.linspace(0, 2 * np.pi, 40, endpoint=False)
_HARMONICS = np.arange(2, 7)
_WAVES = np.concatenate([np.cos(np.outer(_HARMONICS, _ANGLES)), np.sin(np.outer(_HARMONICS, _ANGLES))])
_CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)])


@dataclass(slots=True)
class Canvas:
    """A picture while it is painted, with what everything in it shares: textures and the lamp."""

    pixels: Field
    """(3, H, W) RGB in [0, 255] and somewhat beyond; planes, so that a (H, W) field spreads over them cheaply."""
    grain: Field
    """(H, W) texture of unit variance, the same energy in every octave."""
    swell: Field
    """(H, W) slow undulation of unit variance, which makes outlines uneven."""
    lamp: NDArray[np.float32]
    """Unit vector (x, y) towards the light."""


def paint(seed: int, index: int, motif: int) -> NDArray[np.uint8]:
    """Returns picture `index` of the set `seed`, RGB (H, W, 3): the same pixels for the same three numbers."""
    rng = np.random.Generator(np.random.Philox(key=np.array([seed, index], np.uint64)))
    canvas = _lay_ground(rng, *_draw_size(rng))
    for _ in range(rng.integers(0, 3)):
        _place_object(rng, canvas, int(rng.integers(NUM_MOTIFS)), scale=rng.uniform(0.06, 0.12))
    _place_object(rng, canvas, motif, scale=rng.uniform(0.42, 0.58))
    for _ in range(rng.integers(0, 3)):
        _lay_leaf(rng, canvas)
    return _develop(rng, canvas)


def encode(pixels: NDArray[np.uint8]) -> bytes:
    """Returns RGB (H, W, 3) as a baseline 4:2:0 JPEG of a size within `BITS_PER_PIXEL`.

    The quality is 92; it moves, by bisection, only for a picture that would be smaller or larger than that.
    """
    low, high = (bound * pixels.shape[0] * pixels.shape[1] / 8 for bound in BITS_PER_PIXEL)
    worst, best, quality = _LOWEST_QUALITY, _HIGHEST_QUALITY, _QUALITY
    while True:
        data: bytes = simplejpeg.encode_jpeg(pixels, quality=quality, colorspace="RGB", colorsubsampling="420")
        if low <= len(data) <= high:
            return data
        worst, best = (quality + 1, best) if len(data) < low else (worst, quality - 1)
        assert worst <= best, "every painted picture has a quality that fits"
        quality = (worst + best) // 2


def fractal(rng: np.random.Generator, height: int, width: int, *, finest_octave: int) -> Field:
    """Returns (height, width) noise of about unit variance with equal energy in every octave of spatial frequency.

    Octave k has one value every 2^k pixels and is added at that resolution, so all cost little more than the finest.
    """
    field: Field | None = None
    for octave in range(_COARSEST_OCTAVE, finest_octave - 1, -1):
        rows, columns = ((side >> octave) + 2 for side in (height, width))
        noise = rng.standard_normal((rows, columns), np.float32)
        field = noise if field is None else noise + _enlarge(field, rows, columns)
    assert field is not None
    field *= np.float32(1 / np.sqrt(_COARSEST_OCTAVE - finest_octave + 1))
    return _enlarge(field, height, width)


def _enlarge(field: Field, height: int, width: int) -> Field:
    enlarged: Field = cv2.resize(field, (width, height), interpolation=cv2.INTER_CUBIC)
    return enlarged


def _draw_size(rng: np.random.Generator) -> tuple[int, int]:
    short, long = (round(side * rng.uniform(1 - SIZE_SPREAD, 1 + SIZE_SPREAD)) for side in SIZE)
    return (long, short) if rng.random() < _PORTRAITS else (short, long)


def _draw_colour(rng: np.random.Generator, lightness: float) -> NDArray[np.float32]:
    """Returns RGB in [0, 255] of any hue; mostly muted, as in photographs."""
    hue, saturation = rng.uniform(0, 2 * np.pi), 0.45 * rng.beta(1.2, 2.5)
    colour = 255 * lightness * (1 + saturation * np.cos(hue + np.array([0.0, 2.1, 4.2])))
    return np.clip(colour, 0, 255).astype(np.float32)


def _draw_outline(rng: np.random.Generator, centre: NDArray[np.float64], radius: float) -> NDArray[np.int32]:
    """Returns the outline of a leaf or a stone, (40, 2) points in 1/16 pixels."""
    weights = rng.normal(0, 0.16, (2, 5)) / _HARMONICS
    x, y = _CIRCLE * (1 + weights.ravel() @ _WAVES)
    y = y * rng.uniform(0.35, 1.0)
    turn = rng.uniform(0, np.pi)
    cos, sin = radius * np.cos(turn), radius * np.sin(turn)
    points = np.stack([x * cos - y * sin + centre[0], x * sin + y * cos + centre[1]], axis=1)
    outline: NDArray[np.int32] = np.rint(16 * points).astype(np.int32)
    return outline


def _lay_ground(rng: np.random.Generator, height: int, width: int) -> Canvas:
    """Returns a canvas covered by leaves that hide one another, some of it out of focus."""
    # The fourth channel is how rough a leaf's surface is.
    leaves = np.empty((height, width, 4), np.uint8)
    ambient = rng.uniform(0.25, 0.65)
    cv2.rectangle(leaves, (0, 0), (width, height), (*_draw_colour(rng, ambient).tolist(), rng.uniform(40, 255)), -1)
    # Radii follow the density 1/r^3, for which the model has no preferred scale.
    radii = 0.035 * height / np.sqrt(rng.uniform(0.003, 1, rng.integers(10, 40)))
    centres = rng.uniform(0, 1, (len(radii), 2)) * (width, height)
    for centre, radius in zip(centres, radii, strict=True):
        colour = (*_draw_colour(rng, ambient * rng.uniform(0.5, 1.6)).tolist(), rng.uniform(40, 255))
        cv2.fillPoly(leaves, [_draw_outline(rng, centre, radius)], colour, cv2.LINE_AA, 4)
    blur = rng.choice([0.0, 0.8, 1.6])
    if blur > 0:
        leaves = cv2.GaussianBlur(leaves, (0, 0), float(blur))

    grain = fractal(rng, height, width, finest_octave=1)
    swell = fractal(rng, height, width, finest_octave=4)
    *colours, roughness = cv2.split(leaves)
    relief = roughness * grain
    relief *= np.float32(rng.uniform(0.2, 0.38) / 255)
    relief += 1
    angle = rng.uniform(0, 2 * np.pi)
    lamp = np.array([np.cos(angle), np.sin(angle)], np.float32)
    return Canvas(np.stack(colours) * relief, grain, swell, lamp)


def _place_object(rng: np.random.Generator, canvas: Canvas, motif: int, *, scale: float) -> None:
    """Paints one object, its radius `scale` times the short side, and its shadow."""
    height, width = canvas.grain.shape
    radius = scale * min(height, width)
    margin = min(0.5, 0.9 * scale)
    centre = rng.uniform(margin, 1 - margin, 2) * (width, height)
    left, top = (max(0, int(middle - 1.25 * radius)) for middle in centre)
    right, bottom = (int(middle + 1.25 * radius) for middle in centre)
    box = np.s_[top : min(bottom, height), left : min(right, width)]

    u, v = _object_coordinates(rng, centre - (left, top), radius, canvas.swell[box])
    inside = silhouette(motif, u, v)
    cover = np.clip(inside * np.float32(radius / 2) + np.float32(0.5), 0, 1)
    painted = _draw_coat(rng, canvas, motif, u, v, inside, canvas.grain[box])

    reach = 2 * int(0.12 * radius) + 3
    shadow = cv2.blur(cover, (reach, reach))
    shift = np.eye(2, 3, dtype=np.float32)
    shift[:, 2] = -0.1 * radius * canvas.lamp
    shadow = cv2.warpAffine(shadow, shift, shadow.shape[::-1])
    shadow *= np.float32(-rng.uniform(0.15, 0.6))
    shadow += 1
    under = canvas.pixels[:, *box]
    under *= shadow
    painted -= under
    painted *= cover
    under += painted


def _object_coordinates(
    rng: np.random.Generator, centre: NDArray[np.float64], radius: float, swell: Field
) -> tuple[Field, Field]:
    """Returns each pixel's place (u, v) on an object at `centre`, in radii: turned, sheared, bent and uneven."""
    turn, squeeze, shear = rng.normal(0, 0.25), rng.uniform(0.75, 1.0), rng.normal(0, 0.1)
    cos, sin = np.cos(turn), np.sin(turn)
    pose = np.array([[cos, -sin], [sin, cos]]) @ np.array([[1, shear], [0, squeeze]]) * radius
    a, b, c, d = np.linalg.inv(pose).astype(np.float32).ravel()
    x = np.arange(swell.shape[1], dtype=np.float32) - np.float32(centre[0])
    y = (np.arange(swell.shape[0], dtype=np.float32) - np.float32(centre[1]))[:, None]
    u, v = a * x + b * y, c * x + d * y
    u += np.float32(rng.normal(0, 0.1)) * v * v
    unevenness = swell * np.float32(rng.uniform(0.015, 0.045))
    u += unevenness
    v -= unevenness
    return u, v


def _draw_coat(
    rng: np.random.Generator, canvas: Canvas, motif: int, u: Field, v: Field, inside: Field, grain: Field
) -> Field:
    """Returns the object's own colours under the lamp, (3, h, w)."""
    coat = pattern(motif, u, v, frequency=rng.uniform(0.85, 1.15), phase=rng.uniform(0, 2 * np.pi))
    lightness, contrast = rng.uniform(0.35, 0.6), rng.uniform(0.6, 1.0) * rng.choice([-1, 1])
    dark, light = (_draw_colour(rng, lightness * (1 + sign * contrast / 2)) for sign in (-1, 1))
    # A rounded body: lighter towards the lamp, darker at the rim.
    shade = np.minimum(inside * np.float32(1.5), np.float32(0.3))
    slope = np.float32(rng.uniform(0.1, 0.35)) * canvas.lamp
    shade += u * slope[0]
    shade += v * slope[1]
    shade += grain * np.float32(rng.uniform(0.05, 0.2))
    shade += np.float32(0.85)
    painted = (light - dark)[:, None, None] * coat
    painted += dark[:, None, None]
    painted *= shade
    return painted


def _lay_leaf(rng: np.random.Generator, canvas: Canvas) -> None:
    """Lays one leaf on top of everything."""
    height, width = canvas.grain.shape
    outline = _draw_outline(rng, rng.uniform(0, 1, 2) * (width, height), rng.uniform(0.04, 0.12) * height)
    colour = _draw_colour(rng, rng.uniform(0.15, 0.7))
    left, top = np.maximum(outline.min(axis=0) // 16 - 1, 0)
    right, bottom = outline.max(axis=0) // 16 + 2
    box = np.s_[top:bottom, left:right]
    grain = canvas.grain[box]
    cover = np.zeros(grain.shape, np.uint8)
    cv2.fillPoly(cover, [outline - 16 * np.array([left, top], np.int32)], 255, cv2.LINE_AA, 4)
    under = canvas.pixels[:, *box]
    front = colour[:, None, None] * (1 + np.float32(0.2) * grain)
    under += (front - under) * (cover * np.float32(1 / 255))


def _develop(rng: np.random.Generator, canvas: Canvas) -> NDArray[np.uint8]:
    """Applies uneven light, exposure and the sensor's noise; saturates to RGB uint8 (H, W, 3)."""
    height, width = canvas.grain.shape
    light = _enlarge(rng.standard_normal((3, 4), np.float32), height, width)
    light *= np.float32(rng.uniform(0.05, 0.3))
    light += np.float32(rng.uniform(0.85, 1.2))
    noise = np.frombuffer(rng.bytes(height * width), np.int8).reshape(height, width)
    canvas.pixels *= light
    canvas.pixels += noise * np.float32(rng.uniform(0.03, 0.09))
    np.clip(canvas.pixels, 0, 255, out=canvas.pixels)
    developed: NDArray[np.uint8] = cv2.merge(list(canvas.pixels.astype(np.uint8)))
    return developed
