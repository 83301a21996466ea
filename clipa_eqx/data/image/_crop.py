"""The box of a random resized crop."""

from collections.abc import Sequence
from typing import NamedTuple

from ...config import AugmentConfig


CROP_TRIES = 10
DRAWS = 2 * CROP_TRIES + 3
"""Random numbers that one training image uses."""


class Box(NamedTuple):
    """A rectangle of a picture, in its pixels."""

    left: int
    top: int
    width: int
    height: int

    def divisor(self, size: int) -> int:
        """The largest of 8, 4, 2, 1 by which a picture can be shrunk while the box keeps `size` pixels a side."""
        short = min(self.width, self.height)
        return next((divisor for divisor in (8, 4, 2) if short >= size * divisor), 1)

    def shrunk(self, divisor: int) -> tuple[float, float, float, float]:
        """Left, top, right and bottom in the picture shrunk by a divisor."""
        edges = (self.left, self.top, self.left + self.width, self.top + self.height)
        left, top, right, bottom = (edge / divisor for edge in edges)
        return left, top, right, bottom


def draw_crop(width: int, height: int, augment: AugmentConfig, draws: Sequence[float]) -> Box:
    """Draw the box of a random resized crop (Szegedy et al., arXiv 1409.4842, section 6).

    The area is uniform in [crop_area_min, 1] of the picture's, the aspect log-uniform in [1/crop_aspect_max,
    crop_aspect_max], the place uniform. After ten boxes that do not fit it is the largest centred one with an allowed
    aspect, as in torchvision's RandomResizedCrop. TensorFlow draws the aspect uniformly instead.

    Args:
        width: of the picture, in pixels.
        height: of the picture, in pixels.
        augment: smallest area and widest aspect.
        draws: uniform numbers in [0, 1): two for each try, then two for the place.
    """
    widest = augment.crop_aspect_max
    for attempt in range(CROP_TRIES):
        area = width * height * (augment.crop_area_min + draws[2 * attempt] * (1 - augment.crop_area_min))
        aspect = widest ** (2 * draws[2 * attempt + 1] - 1)
        box_width, box_height = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if 0 < box_width <= width and 0 < box_height <= height:
            left = int(draws[2 * CROP_TRIES] * (width - box_width + 1))
            top = int(draws[2 * CROP_TRIES + 1] * (height - box_height + 1))
            return Box(left, top, box_width, box_height)
    box_width = min(width, max(1, round(height * widest)))
    box_height = min(height, max(1, round(width * widest)))
    return Box((width - box_width) // 2, (height - box_height) // 2, box_width, box_height)
