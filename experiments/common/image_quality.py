"""How near images are to others: PSNR and SSIM, of values in [0, 1]."""

import numpy as np
from scipy.ndimage import gaussian_filter

C1, C2 = 0.01**2, 0.03**2  # of equation 13
SIGMA, RADIUS = 1.5, 5  # of the window of 11 by 11 pixels


def psnr(xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
    """-10 log10 mean (x - y)^2 of each of n images [n, h, w, c], decibels."""
    return -10.0 * np.log10(np.mean(np.square(xs - ys), axis=(1, 2, 3)))


def ssim(xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
    """Structural similarity of each of n images [n, h, w, c], at most 1.

    The mean over windows that lie within the image, and over channels. Wang, Bovik, Sheikh &
    Simoncelli 2004, equation 13, with their Gaussian window.
    """

    def mean(values: np.ndarray) -> np.ndarray:
        local = gaussian_filter(values, (0, SIGMA, SIGMA, 0), radius=(0, RADIUS, RADIUS, 0))
        return local[:, RADIUS:-RADIUS, RADIUS:-RADIUS]

    xs, ys = (np.asarray(images, np.float64) for images in (xs, ys))
    of_x, of_y = mean(xs), mean(ys)
    spread, common = mean(xs**2 + ys**2) - of_x**2 - of_y**2, mean(xs * ys) - of_x * of_y
    alike = (2 * of_x * of_y + C1) * (2 * common + C2)
    return np.mean(alike / ((of_x**2 + of_y**2 + C1) * (spread + C2)), axis=(1, 2, 3))
