"""Images to classify: scikit-learn's digits, plain or with their contrast reversed at random.

A digit is 8 x 8 pixels with 16 grey levels, cut here into 16 patches of 2 x 2.  Plain digits are
nearly linear: logistic regression reads 96 % of them, so that they say little about what a part of
a network is for.  With the sign of every image drawn at random the mean image of every class is
zero, and logistic regression reads less than a half.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

SIDE, PATCH, CLASSES = 8, 2, 10
PATCHES = (SIDE // PATCH) ** 2
TEST = 500
PLAIN, REVERSED = "plain", "reversed"


@dataclass(frozen=True, eq=False)
class Images:
    """`patches` [image, patch, pixel] with mean 0 and variance 1 over all; `labels` [image]."""

    patches: np.ndarray
    labels: np.ndarray

    @property
    def flat(self) -> np.ndarray:
        """Pixels [image, patch x pixel], for classifiers that know no patches."""
        return self.patches.reshape(len(self.labels), -1)


def patches(images: np.ndarray) -> np.ndarray:
    """Images [image, 8, 8] cut into patches [image, patch, pixel], row by row.

    >>> patches(np.arange(64.0).reshape(1, 8, 8))[0, 1].tolist()
    [2.0, 3.0, 10.0, 11.0]
    """
    across = SIDE // PATCH
    cut = images.reshape(-1, across, PATCH, across, PATCH).transpose(0, 1, 3, 2, 4)
    return cut.reshape(len(images), PATCHES, PATCH * PATCH)


@lru_cache(maxsize=1)
def digits() -> tuple[Images, Images]:
    """Images to learn and images to test, the same split for every run; classes are balanced."""
    pixels, labels = (np.asarray(part) for part in load_digits(return_X_y=True))
    pixels = (pixels - pixels.mean()) / pixels.std()
    cut = patches(pixels.reshape(-1, SIDE, SIDE)).astype(np.float32)
    learn, test = train_test_split(
        np.arange(len(labels)), test_size=TEST, random_state=0, stratify=labels
    )
    return Images(cut[learn], labels[learn]), Images(cut[test], labels[test])


def signs(kind: str, count: int, seed: list[int]) -> np.ndarray:
    """Contrast of every image [image]: 1 for plain images, 1 or -1 at random for reversed ones."""
    if kind == PLAIN:
        return np.ones(count, np.float32)
    return np.random.default_rng(seed).choice(np.array([-1, 1], np.float32), count)


def seen_with(images: Images, contrast: np.ndarray) -> Images:
    """The images with this contrast [image]."""
    return Images(images.patches * contrast[:, None, None], images.labels)
