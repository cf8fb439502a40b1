"""The page of `demo`: what is on it, and what happens when it is touched."""

import base64
import html
import io
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxdae.errors import InputError

if TYPE_CHECKING:
    from .playground import Image, Latent, Picture, Playground, Ranges, Read, Restored


MAX_UPLOAD = "50mb"


# Pieces of the page, as HTML.
def png(image: "Image | Picture") -> str:
    """An image, bytes or in [0, 1], as the data URL of a PNG file of the same size."""
    from PIL import Image as Pillow

    if image.dtype != np.uint8:
        image = np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)
    file = io.BytesIO()
    Pillow.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def figure(name: str, image: "Image | Picture", *notes: str) -> str:
    """An image under its name, with what is to be said of it."""
    lines = "".join(f"<span>{note}</span>" for note in notes if note)
    return (
        f'<figure><img id="{name}" alt="{name} image" src="{png(image)}">'
        f"<figcaption><b>{name.capitalize()}</b>{lines}</figcaption></figure>"
    )


def pictures(clean: "Picture", restored: "Restored") -> str:
    """The clean, the noisy and the denoised image, with the mean squared errors of these two."""
    images = {"clean": clean, "noisy": restored.noisy, "denoised": restored.denoised}
    reads = restored.reads or (None, None, None)
    figures = []
    for (name, image), read in zip(images.items(), reads, strict=True):
        error = "" if name == "clean" else f"error {np.mean((image - clean / 255) ** 2):.4f}"
        figures.append(figure(name, image, said(read), error))
    return f'<div class="pictures">{"".join(figures)}</div>'


def said(read: "Read | None") -> str:
    """What the classifier reads, in words."""
    return f"read as {read[0]} ({read[1]:.0%})" if read else ""


def thumbnails(test: Any) -> str:
    """Ten test images to choose from, one of each class where there are as many."""
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
    """A slider for each value; each `turn` sets them anew, wherever the user has moved them."""
    rows = "".join(
        f"<label>{i}<output>{value:.2f}</output>"
        f'<input type="range" min="{low:.9g}" max="{high:.9g}" step="any" value="{value:.9g}">'
        "</label>"
        for i, (value, (low, high)) in enumerate(zip(latent, ranges, strict=True), 1)
    )
    return f'<div class="sliders" data-turn="{turn}">{rows}</div>'


def complaint(error: InputError) -> str:
    """What is wrong, where the user sees it."""
    text = str(error)
    return f'<p role="alert">{html.escape(text[:1].upper() + text[1:])}.</p>'


def rule(play: "Playground") -> str:
    """What is done to an image that is uploaded."""
    height, width, channels = play.shape
    if not play.digits:
        gray = " and made gray" * (channels == 1)
        return f"Any size and colour: its middle is scaled to {width}x{height} pixels{gray}."
    return (
        "Any size and colour, a digit on a plain background. It is turned upright, made gray and, "
        "if the background is the lighter, inverted; strokes thinner than 2 pixels are thickened "
        "to that. As MNIST was made, it is then fitted into 20x20 pixels, and put on 28x28 by its "
        "centre of mass. An image of 28x28 that is light on dark is taken as it is."
    )


# How it looks, and what it does in the browser.
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
#complaint p { color: #b91c1c; }
.dark #complaint p { color: #fca5a5; }
.sliders { display: grid; gap: 10px 22px;
  grid-template-columns: repeat(auto-fill, minmax(130px, 1fr)); }
.sliders label { display: block; font-variant-numeric: tabular-nums; }
.sliders output { float: right; color: var(--faint); }
.sliders input { width: 100%; height: 24px; margin: 0; display: block; cursor: pointer;
  accent-color: var(--color-accent); }
#redrawn-box { max-width: 260px; }
#again { align-self: center; }
@media (max-width: 640px) {
  .gradio-container .main { padding: 12px 16px; }
  .pictures { gap: 8px; }
  figcaption { font-size: .82em; }
  #redrawn-box { position: sticky; top: 0; z-index: 5; max-width: none; padding: 6px 0;
    background: var(--body-background-fill); }
  #redrawn-box figure { display: flex; gap: 12px; align-items: center; }
  #redrawn-box img { width: 110px; }
}
"""


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
    target.setAttribute('value', target.value);  // what gradio compares with, to set it anew
    trigger('input', {values: sliders().map(slider => Number(slider.value))});
});
"""


def build(play: "Playground") -> Any:
    """The page, as gradio has it."""
    import gradio as gr

    from . import uploads
    from .playground import around

    noise = play.noise
    test: Any = play.test
    turns = itertools.count()
    start = np.full(play.shape, 128, np.uint8) if test is None else test.images[0]
    first = play.restore(start, 0, noise.start)
    # Nothing waits in a queue; while an answer is under way, only the latest change waits for it.
    live: dict[str, Any] = {
        "queue": False,
        "trigger_mode": "always_last",
        "show_progress": "hidden",
        "preprocess": False,
        "api_visibility": "private",
    }

    def redrawn(latent: Any) -> str:
        image, read = play.redraw(latent)
        return figure("redrawn", image, "from the sliders", said(read))

    def by_hand(latent: Any) -> list[str]:
        return [redrawn(latent), sliders(latent, around(play.ranges, latent), next(turns))]

    def shown(state: dict[str, Any], strength: float, complaint: str = "", **changed: Any) -> Any:
        """All that follows from the image, the seed of its noise, and the strength."""
        state = state | changed
        restored = play.restore(state["clean"], state["seed"], strength)
        state["latent"] = restored.latent
        views = [state, complaint, pictures(state["clean"], restored)]
        return views + by_hand(restored.latent) if play.sliders else views

    def renewed(state: dict[str, Any], strength: float) -> Any:
        return shown(state, strength, seed=state["seed"] + 1)

    def picked(state: dict[str, Any], strength: float, event: gr.EventData) -> Any:
        return shown(state, strength, clean=test.images[event.index])

    def surprising(state: dict[str, Any], strength: float) -> Any:
        index = np.random.default_rng().integers(len(test))
        return shown(state, strength, clean=test.images[index])

    def drawn(state: dict[str, Any], strength: float, event: gr.EventData) -> Any:
        return shown(state, strength, clean=uploads.drawing(event.strokes))

    def uploaded(state: dict[str, Any], strength: float, file: str) -> Any:
        try:
            image = uploads.open_image(Path(file))
            clean = uploads.digit(image) if play.digits else uploads.scaled(image, play.shape)
        except InputError as error:
            return [*shown(state, strength, complaint(error)), None]
        return [*shown(state, strength, clean=clean), None]

    with gr.Blocks(title=f"jaxdae: {play.name}", analytics_enabled=False) as page:
        state = gr.State({"clean": start, "seed": 0, "latent": first.latent})
        name = html.escape(Path(play.name).name)
        gr.HTML(f"<h1>Denoising with {name}</h1><p>{html.escape(play.about)}</p>", js_on_load=None)
        with gr.Row():
            with gr.Column(scale=4, min_width=300):
                with gr.Tabs():
                    if test is not None:
                        with gr.Tab("Test images"):
                            thumbs = gr.HTML(thumbnails(test), js_on_load=PICK)
                            surprise = gr.Button("Surprise me", size="md", elem_id="surprise")
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
                        gr.HTML(f'<p class="rule">{rule(play)}</p>', js_on_load=None)
                wrong = gr.HTML("", js_on_load=None, elem_id="complaint")
            with gr.Column(scale=7, min_width=320):
                views = gr.HTML(pictures(start, first), js_on_load=None)
                with gr.Row():
                    low, high = noise.ends
                    ends = " to ".join(f"{value:g}" for value in noise.trained)
                    strength = gr.Slider(
                        *(low, high, noise.start),
                        step=0.01 if high < 10 else 1,
                        label=f"Noise: {noise.strength}",
                        info=f"trained at {ends}" if ends else None,
                        scale=5,
                        min_width=200,
                        elem_id="strength",
                    )
                    again = gr.Button("New noise", size="md", min_width=110, elem_id="again")
        outputs = [state, wrong, views]
        if play.sliders:
            image, values = by_hand(first.latent)
            with gr.Row():
                with gr.Column(scale=3, min_width=200, elem_id="redrawn-box"):
                    redraw = gr.HTML(image, js_on_load=None)
                with gr.Column(scale=9, min_width=300):
                    gr.HTML(
                        f"<p>The <b>{play.sliders} numbers</b> that the network makes of the noisy "
                        "image, and all that it then draws from. Move them.</p>",
                        js_on_load=None,
                    )
                    latent = gr.HTML(values, js_on_load=SLIDE, elem_id="latent")
                    back = gr.Button("Back to the encoder's numbers", size="md", elem_id="back")
            outputs += [redraw, latent]

            def moved(event: gr.EventData) -> str:
                return redrawn(event.values)

            latent.input(moved, None, redraw, **live)
            back.click(lambda state: by_hand(state["latent"]), state, [redraw, latent], **live)
        inputs = [state, strength]
        strength.change(shown, inputs, outputs, **live)
        again.click(renewed, inputs, outputs, **live)
        if test is not None:
            thumbs.select(picked, inputs, outputs, **live)
            surprise.click(surprising, inputs, outputs, **live)
        if play.digits:
            sheet.input(drawn, inputs, outputs, **live)
        files = live | {"preprocess": True}
        upload.upload(uploaded, [*inputs, upload], [*outputs, upload], **files)
    return page
