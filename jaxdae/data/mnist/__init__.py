"""MNIST, from the copy inside this package: no network, nothing to prepare.

LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition", 1998.
"""

from pathlib import Path

from jaxdae.data.dataset import Dataset
from jaxdae.data.idx import load_idx
from jaxdae.errors import InputError

FOLDER = Path(__file__).parent
SHA256 = {  # of the unpacked files
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


def load_mnist() -> Dataset:
    """60,000 training and 10,000 test digits, uint8 [n 28 28 1], with labels 0 to 9.

    Raises:
      InputError: a file does not have its SHA-256.
    """
    try:
        return load_idx("mnist", FOLDER, SHA256)
    except InputError as error:
        raise InputError(f"the package's own copy is damaged, reinstall jaxdae: {error}") from None
