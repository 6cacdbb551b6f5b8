"""The obvious, slow way to make pictures: one pixel at a time. What tests of pictures compare with."""

import math

import numpy as np


def value_at(picture, y, x):
    """Bilinear value of (H, W) at (y, x), measured from the middle of pixel (0, 0); black outside."""
    height, width = picture.shape
    total = 0.0
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < height and 0 <= column < width:
                total += (1 - abs(y - row)) * (1 - abs(x - column)) * picture[row, column]
    return total


def moved(picture, crop, dy=0.0, dx=0.0, degrees=0.0, scale=1.0):
    """(H, W) rotated clockwise and scaled about the middle, then moved down and right, then its centre crop."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))

    def source(y, x):  # the position before rotating by (x, y) -> (x cos - y sin, x sin + y cos), y downwards
        y, x = y - dy, x - dx
        return (-x * sin + y * cos) / scale, (x * cos + y * sin) / scale

    return warped(picture, crop, source)


def tilted(picture, crop, degrees):
    """(H, W) turned in space about its vertical, then its horizontal middle line; seen from the diagonal's length."""
    height, width = picture.shape
    far = math.sqrt(height**2 + width**2)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    about_x = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    about_y = np.array([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]])
    turn = about_x @ about_y

    def source(y, x):  # the point (a, b) of the plane that is seen along t * (x, y, far)
        columns = np.stack([turn[:, 0], turn[:, 1], -np.array([x, y, far])], axis=1)
        a, b, _ = np.linalg.solve(columns, [0, 0, -far])
        return b, a

    return warped(picture, crop, source)


def warped(picture, crop, source):
    """The centre crop whose pixel at (y, x) from the canvas' middle shows the canvas at source(y, x)."""
    height, width = picture.shape
    top, left = (height - crop[0]) // 2, (width - crop[1]) // 2
    result = np.zeros(crop)
    for row in range(crop[0]):
        for column in range(crop[1]):
            y, x = source(top + row - (height - 1) / 2, left + column - (width - 1) / 2)
            result[row, column] = value_at(picture, y + (height - 1) / 2, x + (width - 1) / 2)
    return result
