"""A data set refuses splits that do not belong together."""

import pytest

from jaxdae import data
from jaxdae.errors import InputError
from tests.data.sources import pixels


def test_dataset_checks_itself():
    split = data.Split(pixels(2, 4, 4, 1))
    for other in (
        pixels(2, 4, 4),
        pixels(2, 4, 4, 1) / 255,
        pixels(0, 4, 4, 1),
        pixels(2, 4, 4, 3),
    ):
        with pytest.raises(InputError, match="test images"):
            data.Dataset("mine", split, data.Split(other))
