"""The page docs/photos.md: a function of the figures, with the published ones beside them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from benchmarks import photo_levels
from benchmarks.photo_protocol import REAL, SETS, Case
from benchmarks.photo_speed import OURS, PEERS, table
from benchmarks.timing import markdown

Rows = Mapping[str, Mapping[str, Any]]  # method to case to row

GRAY, COLOUR = ("Set12", "BSD68"), ("CBSD68", "Kodak24", "McMaster")
TOLD, BLIND = (15.0, 25.0, 50.0), (5.0, 15.0, 25.0, 50.0)
LABELS = {"noisy": "noisy images", "bm3d": "BM3D"}

# PSNR at sigma 15, 25 and 50, as published: a row for each method, sets in the order above.
PUBLISHED_GRAY = {
    "BM3D": ("32.37 / 29.97 / 26.72", "31.08 / 28.57 / 25.60"),
    "WNNM": ("32.70 / 30.28 / 27.05", "31.37 / 28.83 / 25.87"),
    "DnCNN-S, 0.56M parameters": ("32.86 / 30.44 / 27.18", "31.73 / 29.23 / 26.23"),
    "FFDNet, 0.49M": ("32.75 / 30.43 / 27.32", "31.63 / 29.19 / 26.29"),
    "DRUNet, 32.6M": ("33.25 / 30.94 / 27.90", "31.91 / 29.48 / 26.59"),
}
PUBLISHED_COLOUR = {
    "CBM3D": ("33.52 / 30.71 / 27.38", "34.28 / 31.68 / 28.46", "34.06 / 31.66 / 28.51"),
    "CDnCNN-B": ("33.90 / 31.24 / 27.95", "34.60 / 32.14 / 28.95", "33.45 / 31.52 / 28.62"),
    "FFDNet, 0.85M": ("33.87 / 31.21 / 27.96", "34.63 / 32.13 / 28.98", "34.66 / 32.35 / 29.18"),
    "DRUNet, 32.6M": ("34.30 / 31.69 / 28.51", "35.31 / 32.89 / 29.86", "35.40 / 33.14 / 30.08"),
}

INTRO = """\
# Photographs

How close denoised photographs come to the clean ones, beside BM3D and published networks.

White Gaussian noise of standard deviation sigma (in 8-bit levels) is added to the test images and
not clipped. Outputs are clipped and rounded to 8 bits. PSNR is that of whole images, averaged over
a set; higher is better. Every method that was *measured here* got the same noisy images. Rows
marked *published* are the papers' own figures by the same protocol, on other draws of the noise.

`python -m benchmarks.photos` writes this page from the figures in
[results/photos.json](results/photos.json), which name the command, the machine, the versions and
the date of each row. The test sets are not part of the repository.
"""
TOLD_TEXT = """\
## White Gaussian noise

Each method is told the noise level (CDnCNN-B is not). PSNR in dB at sigma 15 / 25 / 50.
"""
SSIM_TEXT = """\
SSIM of the same images, with uniform windows of 7×7, as scikit-image computes it by default. Papers
use other windows, so none of their figures stands here.
"""
BLIND_TEXT = """\
## Noise level not given

The same images, but nothing tells the network how much noise there is. PSNR in dB at sigma
5 / 15 / 25 / 50.
"""
REAL_TEXT = """\
## Noise of cameras

CC15: fifteen photographs of 512×512 pixels, by three cameras at ISO 1600 to 6400, beside the mean
of many shots of the same scene (Nam, Hwang, Matsushita and Kim, "A holistic approach to
cross-channel image noise modeling", 2016). A network that must be told a noise level is told 15;
BM3D gets an estimate (the median of the finest wavelet coefficients).
"""
LEVELS_TEXT = """\
## How strong is the noise?

A network gets the true noise level, its own estimate at each pixel, or scikit-image's
`estimate_sigma`: PSNR in dB, and in brackets the mean of the level in 8-bit levels. The images are
the first eight of Kodak24 with white noise, and of CC15.

{table}

`{command}`, {date}.
"""
CLEAN_TEXT = """\
## What must not change

Clean images given without a noise level should come back as they were: the lowest PSNR of an image,
against itself. And denoising should keep the colours: the largest relative change of the mean of a
channel, of all images, from the noisy image to the denoised one.
"""
BM3D_TEXT = """\
BM3D measured here is the package `bm3d` of the method's authors, at its default profile (Dabov,
Foi, Katkovnik and Egiazarian, 2007; Mäkinen, Azzari and Foi, 2020). It is free for non-commercial
use only.
"""
SPEED_TEXT = """\
## Speed and memory

The same network (`{network}`) in jaxdae, PyTorch and onnxruntime, beside DnCNN (17 layers of 64
channels, random parameters) and BM3D, on {channels_text} of {side}×{side} pixels, whole. The
network estimates the noise level itself; BM3D is told it. Each runs in its own process, is compiled
and warm, and takes its turn for a second or more: the median of {turns} turns, with the lowest and
the highest, and the median of the ratio within a turn; above 1× is slower than jaxdae. jaxdae
compiles the parameters in; PyTorch has channels last, and `torch.compile` runs at max-autotune with
frozen parameters; onnxruntime reads jaxdae's ONNX file. The images of the same network agree with
jaxdae's to {worst:.0e} in float32.

Memory is the peak of a fresh process that denoises one image: *MB a megapixel* is its growth from
{small}×{small} to {large}×{large} pixels. `denoise` takes a large photograph tile by tile, and does
not need that much.

{table}

{machine}, {cores} cores, {date}; {versions}. `{command}`, with nothing else running.
"""
STRIPS_TEXT = """\
![Crops of photographs: noisy, denoised and clean](images/{name})

*Crops of Kodak24 at sigma {sigma}, enlarged twice: those with most texture. The figures are the
PSNR of the crops.*
"""
SOURCES = """\
## Sources

Published figures: Zhang, Zuo, Chen, Meng and Zhang, "Beyond a Gaussian denoiser" (2017: DnCNN, with
BM3D and WNNM); Zhang, Zuo and Zhang, "FFDNet" (2018, with CBM3D); Zhang, Li, Zuo, Zhang, Van Gool
and Timofte, "Plug-and-play image restoration with deep denoiser prior" (2021: DRUNet).

Test sets: Set12 and the 68 images of Berkeley's data set, in gray and in colour (BSD68, CBSD68);
Kodak24, cropped to 500×500; McMaster (Zhang, Wu, Buades and Li, 2011).
"""


def page(figures: Mapping[str, Any]) -> str:
    """The page, from the figures alone. A section without a row is left out."""
    rows: Rows = figures.get("quality", {})
    told = {name: row for name, row in rows.items() if name in LABELS or is_told(row)}
    blind = {name: row for name, row in rows.items() if name == "noisy" or not is_told(row)}
    parts = [INTRO]
    tables = [
        psnr_table(told, sets, published)
        for sets, published in ((GRAY, PUBLISHED_GRAY), (COLOUR, PUBLISHED_COLOUR))
    ]
    parts += [TOLD_TEXT, *(f"{table}\n" for table in tables)]
    if "bm3d" in rows:
        parts.append(BM3D_TEXT)
    for name in figures.get("strips", []):
        sigma = name.removesuffix(".png").rpartition("-")[2]
        parts.append(STRIPS_TEXT.format(name=name, sigma=sigma))
    ssim = cells_table(told, (*GRAY, *COLOUR), TOLD, lambda row: f"{row['ssim']:.3f}")
    parts += [f"{SSIM_TEXT}\n{ssim}\n"] if ssim else []
    if len(blind) > 1:
        table = cells_table(blind, (*GRAY, *COLOUR), BLIND, psnr)
        parts += [f"{BLIND_TEXT}\n{table}\n"] if table else []
    parts += [f"{REAL_TEXT}\n{table}\n"] if (table := real_table(rows)) else []
    if levels := figures.get("levels"):
        text = {"command": levels["command"], "date": levels["machine"]["date"]}
        parts.append(LEVELS_TEXT.format(table=photo_levels.table(levels["networks"]), **text))
    parts += [f"{CLEAN_TEXT}\n{table}\n"] if (table := kept_table(rows)) else []
    if "speed" in figures:
        parts.append(speed_text(figures["speed"]))
    return "\n".join([*parts, SOURCES])


def speed_text(report: Mapping[str, Any]) -> str:
    """The section on speed and memory."""
    versions: dict[str, str] = {}
    for about in report["about"].values():
        versions |= about
    exact = [x for name, x in report["differences"].items() if PEERS[name].dtype == "float32"]
    small, large = report["memory_sides"]
    about = report["machine"]
    return SPEED_TEXT.format(
        network=report["network"],
        channels_text="colour images" if report["channels"] == 3 else "gray images",
        side=report["side"],
        turns=len(report["seconds"][OURS]),
        worst=max(exact, default=0.0),
        small=small,
        large=large,
        table=table(report),
        machine=about["device"],
        cores=about["cores"],
        date=about["date"],
        versions=", ".join(f"{name} {version}" for name, version in versions.items()),
        command=report["command"],
    )


def is_told(row: Mapping[str, Any]) -> bool:
    """True if a method is told the noise level; its rows say so."""
    return all(case.get("told", True) for case in row.values())


def label(method: str) -> str:
    """How a method is called on the page."""
    name, comma, how = method.partition(",")
    return LABELS.get(method, f"`{name}`{comma}{how}")


def psnr(row: Mapping[str, Any]) -> str:
    """A row's mean PSNR, with the number of images if some of the set are missing."""
    return "equal" if row["psnr"] is None else f"{row['psnr']:.2f}"


def cell(
    row: Mapping[str, Any],
    name: str,
    sigmas: Iterable[float],
    text: Callable[[Mapping[str, Any]], str],
) -> str:
    """The figures of a method on a set, by noise level; empty if there are none."""
    found = [row.get(Case(name, sigma).key) for sigma in sigmas]
    if not any(found):
        return ""
    images = {case["images"] for case in found if case}
    some = ", ".join(map(str, sorted(images - {SETS[name].images})))
    note = f" ({some} of {SETS[name].images} images)" if some else ""
    return " / ".join(text(case) if case else "–" for case in found) + note


def cells_table(
    rows: Rows,
    sets: Sequence[str],
    sigmas: Sequence[float],
    text: Callable[[Mapping[str, Any]], str],
) -> str:
    """Methods in rows, sets in columns; empty if only the noisy images are measured."""
    lines = [
        [label(name), *(cell(row, set_name, sigmas, text) for set_name in sets)]
        for name, row in rows.items()
    ]
    lines = [line for line in lines if any(line[1:])]
    return markdown(["method", *sets], lines) if len(lines) > 1 else ""


def psnr_table(rows: Rows, sets: Sequence[str], published: Mapping[str, Sequence[str]]) -> str:
    """PSNR at the three usual levels: published figures, then those that were measured."""
    lines = [[name, "published", *cells] for name, cells in published.items()]
    for name, row in rows.items():
        cells = [cell(row, set_name, TOLD, psnr) for set_name in sets]
        method = "CBM3D" if name == "bm3d" and sets == COLOUR else label(name)
        if any(cells):
            lines.append([method, "measured here", *cells])
    return markdown(["method", "figures", *sets], lines)


def real_table(rows: Rows) -> str:
    """PSNR and SSIM on the noise of cameras."""
    lines = []
    for name, row in rows.items():
        if found := row.get(REAL):
            told = ", told sigma 15" if found.get("told") else ""
            lines.append([f"{label(name)}{told}", psnr(found), f"{found['ssim']:.3f}"])
    return markdown(["method", "PSNR, dB", "SSIM"], lines) if lines else ""


def kept_table(rows: Rows) -> str:
    """What the networks do to clean images, and to colours."""

    def change(row: Mapping[str, Any], sigma: float | None) -> str:
        found = [row.get(Case(name, sigma).key) for name in ([REAL] if sigma is None else SETS)]
        colours = [case["colour"] for case in found if case]
        return f"{max(colours):.2%}" if colours else ""

    lines = []
    for name, row in rows.items():
        clean = [case["lowest_psnr"] for key, case in row.items() if key.endswith("-0")]
        if clean:
            lowest = [psnr for psnr in clean if psnr is not None]
            worst = f"{min(lowest):.1f} dB" if lowest else "equal"
            lines.append([label(name), worst, *(change(row, sigma) for sigma in (0, *TOLD, None))])
    levels = ["of clean images", *(f"at sigma {sigma:g}" for sigma in TOLD), f"of {REAL}"]
    columns = ["network", "clean images", *(f"colour {level}" for level in levels)]
    return markdown(columns, lines) if lines else ""
