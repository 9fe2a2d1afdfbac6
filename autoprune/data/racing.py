"""Racing: a detector's evaluation stops once it is known to be worse than a rival on the same images.

The images come in a fixed random order. After each part of them, a look, the difference of the two mAPs so
far is compared with its paired error (`standard_error`); so what must be kept of a rival is its mAP on each
prefix of the images and on resamples of it. As in the Hoeffding races of Maron and Moore (NIPS 1993), what is
clearly beaten is given up. Every look is another chance to err, so the error is spent over the looks, evenly
(alpha spending: Lan and DeMets, Biometrika 70(3), 1983; without their correlations, which errs on the safe
side). The interval is for the difference on all images, which are no sample of more: it shrinks with the
fraction seen, by the finite population correction (Cochran, Sampling Techniques, 1977, section 2.6).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from autoprune.data.evaluators import Matches
from autoprune.data.rivals import RESAMPLES, Maps, compare
from autoprune.data.standard_error import resampled_map
from autoprune.seeding import seed as derive

LOOKS = 10  # the last of them at all images
LEAST = 16  # images before the first look; of fewer the error is not known
ERROR = 0.25  # probability that a trial is given up which is just as good on all images: it loses little


@dataclass(frozen=True)
class RaceOrder:
    """The order of the images, and after how many of them trials are compared.

    Attributes:
        images: indices of all images, in a random order.
        looks: numbers of images, rising; the last is all of them.
    """

    images: tuple[int, ...]
    looks: tuple[int, ...]

    @classmethod
    def make(cls, images: int, batch_size: int, seed: int) -> "RaceOrder | None":
        """The order for images 0, 1, …; ``None`` where they are too few to stop early.

        Args:
            images: number of images.
            batch_size: of the evaluation; each part holds whole batches.
            seed: of the order.
        """
        first = max(LEAST, images / LOOKS)
        ends = np.linspace(first, images, LOOKS) if images > first else np.array([images])
        looks = sorted({min(images, math.ceil(end / batch_size) * batch_size) for end in ends})
        if len(looks) < 2 or looks[0] > images / 2:
            return None
        order = np.random.default_rng(derive(seed, "order of the images")).permutation(images)
        return cls(tuple(order.tolist()), tuple(looks))


def prefix_maps(matches: Matches, places: Sequence[int], look: int) -> Maps:
    """The mAP on a prefix of the images, then on `RESAMPLES` resamples of it; NaN without boxes.

    Args:
        matches: of the detections on the prefix alone, or on more images.
        places: where in the order of ``matches`` the images of the prefix are, the first one first.
        look: which prefix, from 0; the resamples are the same for all detectors.
    """
    count = len(places)
    drawn = np.random.default_rng([look, count]).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    counts = np.zeros((1 + RESAMPLES, matches.images), np.int64)
    counts[:, list(places)] = np.concatenate([np.ones((1, count), np.int64), drawn])
    return resampled_map(matches, counts)


def is_beaten(ours: Maps, rival: Maps, look: int, looks: Sequence[int]) -> bool:
    """Whether a detector is worse than its rival on all images, as far as a look tells.

    Args:
        ours: its `prefix_maps` at the look [1 + resamples].
        rival: the rival's.
        look: which, from 0; at the last nothing is left to save.
        looks: after how many images they are.
    """
    if look + 1 >= len(looks):
        return False
    difference, error = compare(ours, rival)
    if not (math.isfinite(difference) and math.isfinite(error)):
        return False
    left = 1 - looks[look] / looks[-1]
    reach = -float(ndtri(ERROR / (len(looks) - 1)))
    return difference + reach * error * math.sqrt(left) < 0
