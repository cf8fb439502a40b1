"""The systems of the results page: what is trained, what was tried, and the page's texts."""

from typing import NamedTuple

SIGMAS = (0.25, 0.5, 0.75, 1.0)


KERAS_SEEDS = {0, 1, 2}


PATCHES = "--longest 160 --stride 4 --per-photo 300"


COLOUR = "--recipe colorize"


CEILING = "--sigma 0.1 1.05 --denoiser digits-unet --shift 0 --epochs 2 --learning-rate 1e-3"


OURS = "--optimizer nadam --learning-rate 5e-3 --schedule one-cycle --batch-size 32 --centering"


class System(NamedTuple):
    """A row of a table.

    Fields:
      label: its name on the page.
      command: the flags of `experiments.run`.
      seeds: how many, from 0.
      stages: the names of its stages, with the published loss of each, or None.
    """

    label: str
    command: str
    seeds: int = 1
    stages: tuple[tuple[str, float | None], ...] = ()


NETWORKS = {
    "classic": System("`classic`, 10 epochs at 0.5", "--recipe classic"),
    "default": System("`default`, 5 epochs at 0.5", "--recipe default", 3),
    "default-10": System("`default`, 10 epochs at 0.5", "--recipe default --epochs 10", 3),
    "blind": System(
        "`blind`, 120 epochs at 0.15 to 1.05, bfloat16", "--recipe blind --dtype bfloat16", 3
    ),
    "unet": System("`unet`, 24 epochs at 0.1 to 1.05", "--recipe unet", 3),
}


KERAS = "Keras, 10 epochs at 0.5"


CLASSICAL = "best classical denoiser at each sigma"


PUBLISHED = {
    "classic": System("strided, at sigma 0.5", "--recipe classic", 1, (("noisy", 0.0157),)),
    "classic-0.75": System("strided, at sigma 0.75", "--recipe classic --sigma 0.75"),
    "classic-1": System("strided, at sigma 1.0", "--recipe classic --sigma 1.0"),
    "default-10": System("strided, at sigma 0.5, our training", "--recipe default --epochs 10", 3),
    "default-0.75": System(
        "strided, at sigma 0.75, our training", "--recipe default --epochs 10 --sigma 0.75"
    ),
    "default-1": System(
        "strided, at sigma 1.0, our training", "--recipe default --epochs 10 --sigma 1.0"
    ),
    "maxpool": System(
        "max-pool 16-8-8", "--recipe maxpool-noisy", 1, (("clean", 0.0993), ("noisy", 0.1130))
    ),
    "maxpool-ours": System(
        "max-pool 16-8-8, our training",
        f"--recipe maxpool-noisy --clean-epochs 10 --epochs 10 {OURS}",
        1,
        (("clean", 0.0993), ("noisy", 0.1130)),
    ),
    "keras-io": System(
        "keras.io 32-32",
        "--recipe keras-io --clean-epochs 5 --epochs 10",
        1,
        (("clean", 0.0622), ("noisy", 0.0839)),
    ),
    "keras-io-ours": System(
        "keras.io 32-32, our training",
        f"--recipe keras-io --clean-epochs 10 --epochs 10 {OURS}",
        1,
        (("clean", 0.0622), ("noisy", 0.0839)),
    ),
    "dense": System("dense", "--recipe dense"),
    "dense-ours": System("dense, our training", f"--recipe dense {OURS}"),
}


# What was tried: three epochs of a recipe, tested on held-out training images.
TRY = "--epochs 3 --validation-images 5000"


DEFAULT_TRIED = {
    "base": ("the recipe", ""),
    "no-centering": ("without centring", "--no-centering"),
    "adam": ("Adam", "--optimizer adam"),
    "b2": ("faster decay of the second moment", "--b2 0.99"),
    "rate-high": ("learning rate 0.01", "--learning-rate 1e-2"),
    "batch-16": ("batches of 16, learning rate 0.0035", "--batch-size 16 --learning-rate 3.5e-3"),
    "batch-64": ("batches of 64, learning rate 0.007", "--batch-size 64 --learning-rate 7e-3"),
    "decay": ("AdamW, weight decay 0.01", "--optimizer adamw --weight-decay 0.01"),
    "average": ("exponential average of the weights, decay 0.999", "--ema-decay 0.999"),
    "bce": ("binary cross-entropy", "--loss bce"),
}


BLIND_TRIED = {
    "base": ("sigma from 0.1 to 1.05", "--sigma 0.1 1.05 --learning-rate 3e-3"),
    "rate-high": ("the same, a higher learning rate", "--sigma 0.1 1.05 --learning-rate 5e-3"),
    "range-high": ("sigma from 0.1 to 1.2", "--sigma 0.1 1.2 --learning-rate 3e-3"),
    "range-low": (
        "sigma from 0.2 to 1.1, a higher learning rate",
        "--sigma 0.2 1.1 --learning-rate 5e-3",
    ),
    "taught": (
        "distillation: the outputs of digits-unet as targets",
        "--sigma 0.1 1.05 --learning-rate 3e-3 --teacher digits-unet",
    ),
}


# By the name of the run: the recipe, what was changed, and the words that change it.
TRIED = {
    f"{recipe}-{name}": (recipe, *change)
    for recipe, changes in [("default", DEFAULT_TRIED), ("blind", BLIND_TRIED)]
    for name, change in changes.items()
}


# The same, with code that was not kept.
BY_HAND = [
    "Centring with one mean for each input and output of a layer, instead of one for each input: "
    "0.0150 to 0.0151 after 3 epochs, no better. `blind` at learning rate 0.005 diverged in epoch "
    "6.",
    "Adam in the eigenbasis of the gradient's second moment (one side of each kernel, as in SOAP), "
    "without centring: 0.0157; Nadam has 0.0156.",
    "Standardised noisy images as the input, without centring: 0.0154; without this, 0.0156.",
    "A third of the learning rate for the encoder's dense layer, without centring: 0.0158.",
    "Random shifts by up to one pixel in every step: 0.01592 after 3 epochs of `default`; without "
    "them, 0.01510.",
    "Sigma drawn so that its square is uniform, from 0.1 to 1.05, for `blind`: 0.01314, 0.01678, "
    "0.02339 and 0.03169; drawn uniformly, 0.01187, 0.01615, 0.02351 and 0.03221.",
    "Muon, five epochs, without centring: 0.0151 and 0.0154 (learning rates 0.004 and 0.012) in "
    "twice the time; Nadam has 0.0149.",
    "Cosine decay, five epochs of Adam without centring: 0.0152; linear decay has 0.0151.",
    "A teacher for longer: `--recipe blind --sigma 0.1 1.05 --epochs 20`, on the test images. With "
    "`--teacher digits-unet --learning-rate 5e-3` (an earlier version of that network): 0.00981, "
    "0.01429, 0.02155 and 0.03005. With `--learning-rate 3e-3` and no teacher: 0.01002, 0.01437, "
    "0.02166 and 0.03023, in two fifths of the time. A teacher helps for the same number of steps, "
    "and not for the same time.",
    "A classifier like that of clean digits, trained on noisy digits (`benchmarks.classifier "
    "--sigma 0.1 1.05 --features 64 128 --shift 0 --epochs 12`): an accuracy of 98.9, 97.4, 92.2 "
    "and 82.0%. The classifier of clean digits is more accurate on the U-Net's outputs.",
    "A classifier in the loss of `blind`: the cross-entropy between its predictions for the "
    "restored and for the clean digit (a second classifier, of 99.4% on clean test digits, not the "
    "one that measures). After 3 epochs at sigma 0.5 the accuracy on held-out digits is 94.7% "
    "without it, 95.1% at weight 0.001 and 95.2% at 0.004; the error is 0.01615, 0.01629 and "
    "0.01677.",
    "`unet` on the same held-out images after 2 epochs at learning rate 0.003: 0.00417, 0.00954, "
    "0.01656 and 0.02501. With a relu after each sum, as it was before: 0.00423, 0.00969, 0.01673 "
    "and 0.02522; this with batches of 64: 0.00439, 0.00990, 0.01703 and 0.02543; this with one "
    "more convolution at the smallest size (996,753 parameters): 0.00424, 0.00971, 0.01681 and "
    "0.02527.",
    "The same `unet` with GELU instead of relu: 0.00429, 0.00972, 0.01684 and 0.02536; with `--b2 "
    "0.99`: 0.00413, 0.00955, 0.01659 and 0.02509; with `--learning-rate 5e-3`: 0.00414, 0.00963, "
    "0.01672 and 0.02525; with `--features 24 48 96`, a sixth slower: 0.00411, 0.00950, 0.01653 "
    "and 0.02497.",
    "`unet` at learning rate 0.003 for 20 epochs, on the test images: 0.00367, 0.00876, 0.01538 "
    "and 0.02351 (seeds 0 and 1). From the third to the fifth epoch, at the highest rate, the "
    "error rose; trials of two epochs do not show this. With `--features 24 64 128` (1,157,593 "
    "parameters) the error was no lower after 11 epochs at that rate. After ten epochs the error "
    "over all levels was 0.01251 at rate 0.003, 0.01205 at 0.0016 and 0.01190 at 0.001.",
    "`unet` with `--features 16 48 96 --epochs 20` (913,713 parameters): 0.00363, 0.00854, 0.01506 "
    "and 0.02305, one seed.",
    "`blind` at learning rate 0.004 for 40 epochs, three seeds, on the test images: 0.01009, "
    "0.01435, 0.02152 and 0.02992, and an accuracy of 94.9% at sigma 0.5. The rate came from "
    "trials of 3 epochs, and short trials prefer high rates.",
    "`blind` from 0.15 to 1.08 in float32: three seeds of 40 epochs at learning rate 0.002 have "
    "0.00992, 0.01420, 0.02137 and 0.02974, and an accuracy of 95.1% at 0.5; two seeds of 80 "
    "epochs at 0.0015 have 0.00967, 0.01396, 0.02116 and 0.02952, and 95.3%. Longer training "
    "lowers the error further, and the accuracy stays the same.",
]


# --- the page ----------------------------------------------------------------------------------
SUMMARY = """\
Each row names the epochs and the noise level of the training. The error is the mean squared error
on the 10,000 test images of MNIST; lower is better. The accuracy is that of a classifier, trained
on clean digits, on the restored test digits; on the clean ones it has 99.5%. The noise is
N(0.5, sigma²), added to images in [0, 1] and clipped. It is the same for all rows. Figures are
means over three seeds, except for `classic` (one seed).

- `unet` is the best at every level. It has 923,673 parameters and no latent vector.
- All other networks have the same 178,001 parameters and a latent vector of 16 numbers. They differ
  in how they are trained. `default` reaches a lower error in five epochs than the tutorial's own
  training (`classic`, Keras) in ten.
- A network trained at one level is worse at other levels. `blind` is trained at all of them.
- At sigma 0.25 most classical denoisers have a lower error than any network with a latent vector of
  16 numbers, because such a network redraws the digit. From 0.5 on they have a higher one.
"""


CLASSICAL_TEXT = """\
The classical denoisers are tuned on noisy training images, and know the noise's mean and its
clipping (`pip install -e ".[peers]"`; `python -m benchmarks.denoisers --help` says how). BM3D is
the package of its authors (Dabov, Foi, Katkovnik, Egiazarian; Mäkinen, Azzari); the others are from
scikit-image and SciPy.
*noisy* is the input itself, and *pixelwise* maps each pixel by itself. Non-local means and BM3D are
slow, and were given the first 1,000 test images.
"""


ACCURACY = f"""\
A low error does not show if an image still shows the same digit. So a classifier that was trained
on clean digits only (`jaxdae.recognition`) classifies the restored test digits. The table gives its
accuracy in percent. One row is a U-Net with a classifier behind it, trained together on noisy
digits and their labels: `unet` reaches the same without labels. That row takes a few minutes:
`python -m benchmarks.classifier {CEILING}`.
"""


DIFFERENCE = """\
Three things make `default` better than `classic`: new noise in every step, Nadam with a one-cycle
learning rate, and centred coordinates (`jaxdae.optimizers.centered`). The first two bring the error
at sigma 0.5 from 0.0156 in ten epochs to 0.0147 in five (`--no-centering`), the third to 0.0145.

Centring is a linear change of variables. After a relu the inputs of a layer have a mean far from
zero, so a change of its kernel and a change of its bias have much the same effect. An optimiser
that treats each number alone, such as Adam, is slow along what they share. `centered` lets it step
in coordinates in which the inputs have mean zero. The network, and what it computes, stay the same.
It wraps any optax optimiser.
"""


PUBLISHED_TEXT = f"""\
Test loss at the end of each stage of training: mean squared error for the strided and the dense
network, binary cross-entropy for the max-pool ones. *Our training* is
`{OURS}`.
The max-pool networks were published after 50 epochs without noise and 100 with noise. keras.io's
own recipe is run for a tenth of its epochs here. `tests/model/test_model.py` holds the networks to
Keras's weights, outputs and gradients.
"""


TRIED_TEXT = f"""\
Each change on its own: mean squared error on the last 5,000 training images, which were held out
(`{TRY}`, seed 0). Only the U-Net that teaches, an earlier version,
was trained on them too. Differences of less than 1% may be chance. First `default`, trained at
sigma 0.5:
"""


BY_HAND_TEXT = """\
Then changes that have no flag. Four numbers are errors at the four sigmas. All are on the same
held-out images, unless a line says otherwise.
"""
