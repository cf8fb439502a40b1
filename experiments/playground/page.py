"""The page of `demo`: its elements, and its reactions to the user."""

import base64
import html
import io
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxdae.errors import InputError

from . import photographs_page
from .parts import error_text

if TYPE_CHECKING:
    from .backend import Image, Latent, Picture, Playground, Prediction, Ranges, Restored
    from .photographs import Photographs


MAX_UPLOAD = "400mb"  # the photographs: 16 bits without compression


# Parts of the page, as HTML.
def png(image: "Image | Picture") -> str:
    """An image (uint8, or in [0, 1]) as the data URL of a PNG file of the same size."""
    from PIL import Image as Pillow

    if image.dtype != np.uint8:
        image = np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)
    file = io.BytesIO()
    Pillow.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def figure(name: str, image: "Image | Picture", *notes: str) -> str:
    """An image with its name and notes."""
    lines = "".join(f"<span>{note}</span>" for note in notes if note)
    return (
        f'<figure><img id="{name}" alt="{name} image" src="{png(image)}">'
        f"<figcaption><b>{name.capitalize()}</b>{lines}</figcaption></figure>"
    )


def pictures(clean: "Picture", restored: "Restored") -> str:
    """The clean, the noisy and the denoised image, with predictions and mean squared errors."""
    images = {"clean": clean, "noisy": restored.noisy, "denoised": restored.denoised}
    predictions = restored.predictions or (None, None, None)
    figures = []
    for (name, image), prediction in zip(images.items(), predictions, strict=True):
        error = "" if name == "clean" else f"error {np.mean((image - clean / 255) ** 2):.4f}"
        figures.append(figure(name, image, in_words(prediction), error))
    return f'<div class="pictures">{"".join(figures)}</div>'


def in_words(prediction: "Prediction | None") -> str:
    """A prediction of the digit classifier in words."""
    return f"classified as {prediction[0]} ({prediction[1]:.0%})" if prediction else ""


def thumbnails(test: Any) -> str:
    """Ten test images to choose from: one of each class, if there are ten classes."""
    chosen = np.arange(min(10, len(test)))
    if test.labels is not None:
        firsts = np.unique(test.labels, return_index=True)[1]
        chosen = firsts[:10] if len(firsts) >= 10 else chosen
    buttons = "".join(
        f'<button type="button" data-index="{i}" aria-label="test image {i}">'
        f'<img alt="" src="{png(test.images[i])}"></button>'
        for i in chosen
    )
    return f'<div class="thumbs">{buttons}</div>'


def sliders(latent: "Latent", ranges: "Ranges", turn: int) -> str:
    """A slider for each latent value. A new `turn` resets the sliders that the user has moved."""
    rows = "".join(
        f"<label>{i}<output>{value:.2f}</output>"
        f'<input type="range" min="{low:.9g}" max="{high:.9g}" step="any" value="{value:.9g}">'
        "</label>"
        for i, (value, (low, high)) in enumerate(zip(latent, ranges, strict=True), 1)
    )
    return f'<div class="sliders" data-turn="{turn}">{rows}</div>'


def upload_text(play: "Playground") -> str:
    """Explains how an uploaded image is prepared."""
    height, width, channels = play.shape
    if not play.digits:
        gray = " and made gray" * (channels == 1)
        return f"Any size and colour. Its middle is scaled to {width}x{height} pixels{gray}."
    return (
        "A digit on a plain background, of any size and colour. The image is turned upright and "
        "made gray. Dark digits are inverted, and thin strokes are thickened to 2 pixels. Then it "
        "is prepared like MNIST: fitted into 20x20 pixels, and centred on 28x28 by its centre of "
        "mass. A light digit on a dark image of 28x28 stays as it is."
    )


# Styles, and scripts that run in the browser.
CSS = """
.gradio-container { max-width: 1120px !important; margin: auto;
  --faint: color-mix(in srgb, var(--body-text-color) 75%, transparent); }
.gradio-container .html-container { padding: 0; }
h1 { margin: 0 0 .15em; }
.pictures { display: grid; grid-template-columns: repeat(3, 1fr); gap: 14px; }
figure { margin: 0; }
figure img { width: 100%; image-rendering: pixelated;
  border-radius: 8px; background: #000; display: block; margin: 0; }
figcaption { display: flex; flex-wrap: wrap; gap: 0 .7em; padding-top: .3em; line-height: 1.35;
  color: var(--faint); font-variant-numeric: tabular-nums; }
figcaption b { color: var(--body-text-color); width: 100%; }
.thumbs { display: grid; grid-template-columns: repeat(5, 1fr); gap: 8px; }
.thumbs button { padding: 0; margin: 0 !important; border: 2px solid transparent;
  border-radius: 8px; cursor: pointer; overflow: hidden; background: #000; }
.thumbs button:hover, .thumbs button:focus-visible { border-color: var(--color-accent); }
.thumbs img { width: 100%; image-rendering: pixelated; display: block; margin: 0; }
#sheet canvas { width: 100%; max-width: 280px; aspect-ratio: 1; background: #000; display: block;
  margin: 0 auto; border-radius: 8px; touch-action: none; cursor: crosshair; }
#sheet button { margin: 8px auto 0; display: block; padding: .35em 1.2em; border-radius: 8px;
  background: var(--button-secondary-background-fill); cursor: pointer;
  color: var(--button-secondary-text-color); }
.rule { color: var(--faint); font-size: .9em; line-height: 1.45; }
[role=alert] { color: #b91c1c; }
.dark [role=alert] { color: #fca5a5; }
.sliders { display: grid; gap: 10px 22px;
  grid-template-columns: repeat(auto-fill, minmax(130px, 1fr)); }
.sliders label { display: block; font-variant-numeric: tabular-nums; }
.sliders output { float: right; color: var(--faint); }
.sliders input { width: 100%; height: 24px; margin: 0; display: block; cursor: pointer;
  accent-color: var(--color-accent); }
#decoded-box { max-width: 260px; }
#again { align-self: center; }
@media (max-width: 640px) {
  .gradio-container .main { padding: 12px 16px; }
  .pictures { gap: 8px; }
  figcaption { font-size: .82em; }
  #decoded-box { position: sticky; top: 0; z-index: 5; max-width: none; padding: 6px 0;
    background: var(--body-background-fill); }
  #decoded-box figure { display: flex; gap: 12px; align-items: center; }
  #decoded-box img { width: 110px; }
}
"""
CSS += photographs_page.CSS


SHEET = """
<canvas width="300" height="300" aria-label="Draw a digit here"></canvas>
<button type="button">Clear</button>
"""


DRAW = """
const canvas = element.querySelector('canvas'), pen = canvas.getContext('2d');
const scale = canvas.width / 100;
let strokes = [], drawing = null;
function paint() {
    pen.clearRect(0, 0, canvas.width, canvas.height);
    pen.strokeStyle = '#fff'; pen.lineWidth = 10 * scale; pen.lineCap = pen.lineJoin = 'round';
    for (const [first, ...rest] of strokes) {
        pen.beginPath(); pen.moveTo(first[0] * scale, first[1] * scale);
        for (const [x, y] of rest.length ? rest : [first]) pen.lineTo(x * scale, y * scale);
        pen.stroke();
    }
    if (!strokes.length) {
        pen.fillStyle = '#999'; pen.font = '18px sans-serif'; pen.textAlign = 'center';
        pen.fillText('Draw a digit here', canvas.width / 2, canvas.height / 2);
    }
}
function add(event) {
    const box = canvas.getBoundingClientRect();
    const place = (at, from, size) => Math.round(1000 * (at - from) / size) / 10;
    strokes.at(-1).push([
        place(event.clientX, box.left, box.width), place(event.clientY, box.top, box.height)]);
    paint();
    trigger('input', {strokes});
}
canvas.addEventListener('pointerdown', event => {
    if (event.button || drawing !== null) return;
    drawing = event.pointerId; canvas.setPointerCapture(drawing); strokes.push([]); add(event);
});
canvas.addEventListener('pointermove', event => { if (event.pointerId === drawing) add(event); });
for (const end of ['pointerup', 'pointercancel'])
    canvas.addEventListener(end, event => { if (event.pointerId === drawing) drawing = null; });
element.querySelector('button').addEventListener('click', () => { strokes = []; paint(); });
paint();
"""


PICK = """
element.addEventListener('click', event => {
    const chosen = event.target.closest('button');
    if (chosen) trigger('select', {index: Number(chosen.dataset.index)});
});
"""


SLIDE = """
const sliders = () => [...element.querySelectorAll('input')];
element.addEventListener('input', event => {
    const {target} = event;
    target.previousElementSibling.value = Number(target.value).toFixed(2);
    target.setAttribute('value', target.value);  // gradio compares it to decide on a reset
    trigger('input', {values: sliders().map(slider => Number(slider.value))});
});
"""


def build(
    play: "Playground", photographs: "Photographs | None" = None, noise: float | None = None
) -> Any:
    """The page, a gradio Blocks.

    Args:
      photographs: for their tab; without, there is none.
      noise: the standard deviation of noise to add to photographs at first; their tab is open then.
    """
    import gradio as gr

    with gr.Blocks(title=f"jaxdae: {play.name}", analytics_enabled=False) as page:
        if photographs is None:
            tab(play)
            return page
        with gr.Tabs(selected="images" if noise is None else "photographs"):
            with gr.Tab("Digits" if play.digits else "Images", id="images"):
                tab(play)
            with gr.Tab("Photographs", id="photographs"):
                photographs_page.tab(photographs, noise or 0.0)
    return page


def tab(play: "Playground") -> None:
    """Fills the tab for small images."""
    import gradio as gr

    from . import uploads
    from .backend import widened

    noise = play.noise
    test: Any = play.test
    turns = itertools.count()
    start = np.full(play.shape, 128, np.uint8) if test is None else test.images[0]
    first = play.restore(start, 0, noise.start)
    # No queue: while a request is running, only the latest change waits.
    live: dict[str, Any] = {
        "queue": False,
        "trigger_mode": "always_last",
        "show_progress": "hidden",
        "preprocess": False,
        "api_visibility": "private",
    }

    def decoded(latent: Any) -> str:
        image, prediction = play.decode(latent)
        return figure("decoded", image, "from the sliders", in_words(prediction))

    def latent_views(latent: Any) -> list[str]:
        return [decoded(latent), sliders(latent, widened(play.ranges, latent), next(turns))]

    def shown(state: dict[str, Any], strength: float, error: str = "", **changed: Any) -> Any:
        """Everything that depends on the image, the seed of its noise and the strength."""
        state = state | changed
        restored = play.restore(state["clean"], state["seed"], strength)
        state["latent"] = restored.latent
        views = [state, error, pictures(state["clean"], restored)]
        return views + latent_views(restored.latent) if play.sliders else views

    def new_noise(state: dict[str, Any], strength: float) -> Any:
        return shown(state, strength, seed=state["seed"] + 1)

    def picked(state: dict[str, Any], strength: float, event: gr.EventData) -> Any:
        return shown(state, strength, clean=test.images[event.index])

    def random_image(state: dict[str, Any], strength: float) -> Any:
        index = np.random.default_rng().integers(len(test))
        return shown(state, strength, clean=test.images[index])

    def drawn(state: dict[str, Any], strength: float, event: gr.EventData) -> Any:
        return shown(state, strength, clean=uploads.drawing(event.strokes))

    def uploaded(state: dict[str, Any], strength: float, file: str) -> Any:
        try:
            image = uploads.open_image(Path(file))
            clean = uploads.digit(image) if play.digits else uploads.scaled(image, play.shape)
        except InputError as error:
            return [*shown(state, strength, error_text(error)), None]
        return [*shown(state, strength, clean=clean), None]

    state = gr.State({"clean": start, "seed": 0, "latent": first.latent})
    name = html.escape(Path(play.name).name)
    gr.HTML(f"<h1>Denoising with {name}</h1><p>{html.escape(play.about)}</p>", js_on_load=None)
    with gr.Row():
        with gr.Column(scale=4, min_width=300):
            with gr.Tabs():
                if test is not None:
                    with gr.Tab("Test images"):
                        thumbs = gr.HTML(thumbnails(test), js_on_load=PICK)
                        surprise = gr.Button("Random image", size="md", elem_id="surprise")
                if play.digits:
                    with gr.Tab("Draw"):
                        sheet = gr.HTML(SHEET, js_on_load=DRAW, elem_id="sheet")
                with gr.Tab("Upload"):
                    upload = gr.File(
                        label="A digit" if play.digits else "An image",
                        file_types=["image"],
                        height=150,
                        elem_id="upload",
                    )
                    gr.HTML(f'<p class="rule">{upload_text(play)}</p>', js_on_load=None)
            error_view = gr.HTML("", js_on_load=None, elem_id="error")
        with gr.Column(scale=7, min_width=320):
            views = gr.HTML(pictures(start, first), js_on_load=None)
            with gr.Row():
                low, high = noise.ends
                ends = " to ".join(f"{value:g}" for value in noise.trained)
                strength = gr.Slider(
                    *(low, high, noise.start),
                    step=0.01 if high < 10 else 1,
                    label=f"Noise: {noise.strength}",
                    info=f"training: {ends}" if ends else None,
                    scale=5,
                    min_width=200,
                    elem_id="strength",
                )
                again = gr.Button("New noise", size="md", min_width=110, elem_id="again")
    outputs = [state, error_view, views]
    if play.sliders:
        image, values = latent_views(first.latent)
        with gr.Row():
            with gr.Column(scale=3, min_width=200, elem_id="decoded-box"):
                view = gr.HTML(image, js_on_load=None)
            with gr.Column(scale=9, min_width=300):
                gr.HTML(
                    f"<p>The latent vector: the encoder turns the noisy image into these "
                    f"<b>{play.sliders} numbers</b>, and the decoder makes an image from them. "
                    "Move the sliders to change it.</p>",
                    js_on_load=None,
                )
                latent = gr.HTML(values, js_on_load=SLIDE, elem_id="latent")
                back = gr.Button("Reset to the encoder's values", size="md", elem_id="back")
        outputs += [view, latent]

        def moved(event: gr.EventData) -> str:
            return decoded(event.values)

        latent.input(moved, None, view, **live)
        back.click(lambda s: latent_views(s["latent"]), state, [view, latent], **live)
    inputs = [state, strength]
    strength.change(shown, inputs, outputs, **live)
    again.click(new_noise, inputs, outputs, **live)
    if test is not None:
        thumbs.select(picked, inputs, outputs, **live)
        surprise.click(random_image, inputs, outputs, **live)
    if play.digits:
        sheet.input(drawn, inputs, outputs, **live)
    files = live | {"preprocess": True}
    upload.upload(uploaded, [*inputs, upload], [*outputs, upload], **files)
