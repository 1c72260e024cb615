"""What lies behind the face in a still: the person's outline, hair and shoulders, background."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]


def fill_in(image: F32, known: F32) -> F32:
    """Push-pull: pixels (H, W, C) where `known` (H, W) in 0..1 is low come from around.

    Averages of known pixels are taken at coarser and coarser scales and laid under the finer ones.
    """
    weight = np.clip(known, 0, 1).astype(np.float32)
    levels: list[tuple[F32, F32]] = [((image * weight[..., None]).astype(np.float32), weight)]
    while min(levels[-1][1].shape) > 2:
        colour, share = levels[-1]
        levels.append((_pixels(cv2.pyrDown(colour)), _pixels(cv2.pyrDown(share))))
    colour, share = levels[-1]
    out = colour / np.maximum(share, 1e-6)[..., None]
    for colour, share in reversed(levels[:-1]):
        height, width = share.shape
        under = _pixels(cv2.pyrUp(out, dstsize=(width, height)))
        keep = np.clip(share * 4, 0, 1)[..., None]
        out = keep * colour / np.maximum(share, 1e-6)[..., None] + (1 - keep) * under
    return np.asarray(out, np.float32)


def _pixels(image: Any) -> F32:
    """What OpenCV returns, typed."""
    return np.asarray(image, np.float32)


def person_mask(image: U8, face: NDArray[np.bool_], chin_y: float) -> F32:
    """Where the person is, (H, W) in 0..1, by GrabCut started from the face's own outline.

    Sure: the face. Likely: a ring of hair around it and the shoulders below. Surely not: the
    picture's upper and side borders beside the head. `chin_y` in pixels.
    """
    size = len(image)
    xs = np.nonzero(face)[1]
    if len(xs) == 0:
        raise ValueError("no face in the picture")
    reach = int(0.28 * (xs.max() - xs.min())) | 1
    ring = cv2.dilate(face.astype(np.uint8), cv2.getStructuringElement(2, (reach, reach)))
    labels = np.full((size, size), cv2.GC_PR_BGD, np.uint8)
    labels[ring > 0] = cv2.GC_PR_FGD
    middle, half = int(xs.mean()), int(0.75 * (xs.max() - xs.min()))
    labels[min(int(chin_y + 0.12 * size), size - 1) :, max(middle - half, 0) : middle + half] = (
        cv2.GC_PR_FGD
    )
    border = max(2, size // 40)
    far = np.ones((size, size), bool)
    far[:, border:-border] = False
    far[int(chin_y) :] = False
    # Hair often leaves the picture at the top: nothing above the head is sure.
    far[:, max(int(middle - 1.15 * half), 0) : int(middle + 1.15 * half)] = False
    labels[far & (ring == 0)] = cv2.GC_BGD
    labels[cv2.erode(face.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0] = cv2.GC_FGD
    cv2.setRNGSeed(1)
    # Half the size is enough for an outline that is softened anyway, and four times as fast.
    half_size = (size // 2, size // 2)
    bgr = cv2.resize(
        np.ascontiguousarray(image[..., ::-1]), half_size, interpolation=cv2.INTER_AREA
    )
    labels = np.asarray(cv2.resize(labels, half_size, interpolation=cv2.INTER_NEAREST), np.uint8)
    none = (0, 0, 0, 0)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(bgr, labels, none, *models, 4, cv2.GC_INIT_WITH_MASK)
    small = np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.float32)
    mask = (cv2.resize(small, (size, size)) > 0.5).astype(np.uint8)
    count, parts, stats, _ = cv2.connectedComponentsWithStats(mask)
    if count > 1:
        mask = (parts == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())).astype(np.uint8)
    closed = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((15, 15), np.uint8))
    # People have no holes: bright foreheads and glasses look like background to colour alone.
    outlines, _ = cv2.findContours(closed, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    closed = cv2.drawContours(closed, outlines, -1, (1,), cv2.FILLED)
    soft = cv2.GaussianBlur(closed.astype(np.float32), (0, 0), size / 200)
    return np.asarray(soft, np.float32)


def spread_depth(depth: F32, known: NDArray[np.bool_], blur_px: float) -> F32:
    """Depth (H, W) continued outside `known` from the nearest known pixel, then smoothed."""
    unknown = (~known).astype(np.uint8)
    _, labels = cv2.distanceTransformWithLabels(
        unknown, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    table = np.zeros(int(labels.max()) + 1, np.float32)
    table[labels[known]] = depth[known]
    return np.asarray(cv2.GaussianBlur(table[labels], (0, 0), blur_px), np.float32)
