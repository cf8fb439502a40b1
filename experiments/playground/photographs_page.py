"""The tab for photographs of the page of `demo`: its elements, and its reactions to the user."""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from jaxdae.errors import InputError

from .parts import error_text

if TYPE_CHECKING:
    from .photographs import Photographs, Shown

STRENGTHS, BLENDS, NOISES = (0.5, 2.0), (0.0, 1.0), (0.0, 0.5)  # the smallest and the largest
EMPTY = '<p class="rule">Before and after appear here.</p>'


def comparison(shown: "Shown") -> str:
    """Before and after, one above the other, and the line between them."""
    width, height = shown.size
    images = "".join(
        f'<img id="{name}" alt="{name}" src="gradio_api/file={quote(str(path))}">'
        for name, path in (("before", shown.before), ("after", shown.after))
    )
    return (
        f'<div class="compare" style="--w:{width};--h:{height}">'
        f'<div class="pane"><div class="both">{images}</div></div><i class="line"></i>'
        '<input type="range" min="0" max="1000" aria-label="The line between before and after">'
        "<b>Before</b><b>After</b></div>"
        '<label class="pixels"><input type="checkbox"> Pixel by pixel</label>'
        '<p class="rule">Drag the line: left of it is the photograph before, right of it after.</p>'
    )


def tab(photographs: "Photographs", noise: float) -> None:
    """Fills the tab.

    Args:
      noise: the standard deviation of noise to add, at first.
    """
    import gradio as gr

    from .photographs import COLOUR, GRAY, Settings, missing, missing_text

    gr.HTML(
        "<h1>Denoising photographs</h1><p>Removes the noise of a photograph of any size. It stays "
        "on this computer.</p>",
        js_on_load=None,
    )
    lacking = missing()
    if lacking:
        gr.HTML(error_text(InputError(missing_text(lacking))), js_on_load=None, elem_id="lacking")
    if len(lacking) == len((COLOUR, GRAY)):
        return
    with gr.Row():
        with gr.Column(scale=4, min_width=300):
            upload = gr.File(
                label="A photograph", file_types=["image"], height=150, elem_id="photograph"
            )
            gr.HTML(
                '<p class="rule">Gray or RGB, with 8 bits, or 16 if it is gray.</p>',
                js_on_load=None,
            )
            error = gr.HTML("", js_on_load=None, elem_id="photo-error", elem_classes="error")
            strength = gr.Slider(
                *(*STRENGTHS, 1.0),
                step=0.05,
                label="Strength",
                info="Below 1 more detail stays, above 1 more noise goes: it multiplies the noise "
                "level that the network estimates.",
                elem_id="photo-strength",
            )
            blend = gr.Slider(
                *(*BLENDS, 0.0),
                step=0.05,
                label="Blend",
                info="The share of the photograph that is mixed back in.",
                elem_id="photo-blend",
            )
            add = gr.Slider(
                *(*NOISES, noise),
                step=0.01,
                label="Add noise",
                info="For a photograph without noise: the standard deviation of noise to add "
                "first, where white is 1.",
                elem_id="photo-noise",
            )
        with gr.Column(scale=7, min_width=320):
            view = gr.HTML(EMPTY, js_on_load=COMPARE, elem_id="photo-view")
            about = gr.HTML("", js_on_load=None, elem_id="photo-about")
            download = gr.Button(
                "Download the result", variant="primary", interactive=False, elem_id="photo-save"
            )
            gr.HTML(
                '<p class="rule">With the format, size, bit depth and metadata of the photograph.'
                "</p>",
                js_on_load=None,
            )
            file = gr.DownloadButton(visible="hidden")
    state = gr.State(None)  # where the photograph is
    controls = [strength, blend, add]

    def settings(values: Sequence[float | None]) -> Settings:
        """The values of the controls; a typed one can be out of its range, or missing."""
        ends = zip(values, Settings(), (STRENGTHS, BLENDS, NOISES), strict=True)
        return Settings(
            *(
                float(min(max(start if value is None else value, low), high))
                for value, start, (low, high) in ends
            )
        )

    def shown(path: str | None, *values: float, progress: Any = gr.Progress()) -> Any:  # noqa: B008
        """Error, comparison, line about it, download button."""
        if path is None:
            return [gr.skip()] * 4
        try:
            found = photographs.show(Path(path), settings(values), progress)
        except InputError as problem:
            return [error_text(problem), gr.skip(), gr.skip(), gr.skip()]
        line = f'<p class="rule">{html.escape(found.about)}</p>'
        return ["", comparison(found), line, gr.Button(interactive=True)]

    def uploaded(path: str | None, *values: float, progress: Any = gr.Progress()) -> Any:  # noqa: B008
        views = shown(path, *values, progress=progress)
        return [gr.skip() if views[0] else path, None, *views]

    def written(path: str, *values: float) -> Any:
        try:
            return "", str(photographs.write(Path(path), settings(values)))
        except InputError as problem:
            return error_text(problem), None

    views: list[Any] = [error, view, about, download]
    options: dict[str, Any] = {
        "trigger_mode": "always_last",
        "show_progress_on": about,
        "api_visibility": "private",
        "concurrency_id": "photographs",
    }
    raw = options | {"preprocess": False}
    upload.upload(uploaded, [upload, *controls], [state, upload, *views], **options)
    for control in controls:
        control.release(shown, [state, *controls], views, **raw)
    saved = download.click(written, [state, *controls], [error, file], **raw)
    saved.then(None, file, None, js=SAVE, api_visibility="private")


CSS = """
.compare { position: relative; overflow: hidden; border-radius: 8px; margin: auto;
  width: min(100%, calc(70vh * var(--w) / var(--h))); }
.compare .pane { overflow: auto; max-height: 70vh; }
.compare .both { display: grid; width: 100%; }
.compare .both img { grid-area: 1 / 1; width: 100%; margin: 0; display: block; max-width: none;
  aspect-ratio: var(--w) / var(--h); }
.compare #after { clip-path: inset(0 0 0 var(--cut, 50%)); }
.compare .line { position: absolute; inset: 0 auto 0 var(--at, 50%); width: 2px; margin-left: -1px;
  background: #fff; box-shadow: 0 0 3px #000; pointer-events: none; }
.compare .line::after { content: "\\2194"; position: absolute; top: 50%; left: 50%; width: 34px;
  height: 34px; margin: -17px; border-radius: 50%; background: #fff; color: #222;
  box-shadow: 0 0 4px #000; font: 20px/34px system-ui, sans-serif; text-align: center; }
.compare input { appearance: none; position: absolute; top: 0; left: -22px; height: 100%; margin: 0;
  width: calc(100% + 44px); background: none; pointer-events: none; touch-action: pan-y; }
.compare input::-webkit-slider-runnable-track { height: 100%; background: none; }
.compare input::-webkit-slider-thumb { appearance: none; width: 44px; height: 100%; opacity: 0;
  cursor: ew-resize; pointer-events: auto; }
.compare input::-moz-range-track { height: 100%; background: none; }
.compare input::-moz-range-thumb { width: 44px; height: 100%; opacity: 0; border: 0;
  cursor: ew-resize; pointer-events: auto; }
.compare:has(input:focus-visible) { outline: 2px solid var(--color-accent); outline-offset: 2px; }
.compare b { position: absolute; top: 8px; left: 8px; padding: 1px 8px; border-radius: 6px;
  background: #000a; color: #fff; font-size: .8em; pointer-events: none; }
.compare b:last-child { left: auto; right: 8px; }
.compare:has(+ .pixels :checked) { width: min(100%, calc(1px * var(--w))); }
.compare:has(+ .pixels :checked) .both { width: calc(1px * var(--w)); }
.pixels { display: block; margin-top: .5em; cursor: pointer; }
"""

# The line's place in the browser: a range input, whose thumb is the line. `release` of gradio's
# sliders lacks the keyboard's.
COMPARE = """
function paint() {
    const pane = element.querySelector('.pane'), range = element.querySelector('[type=range]');
    if (!pane) return;
    const at = range.value / 1000;
    element.style.setProperty('--at', 100 * at + '%');
    element.style.setProperty('--cut', pane.scrollLeft + at * pane.offsetWidth + 'px');
}
element.addEventListener('input', paint);
element.addEventListener('scroll', paint, true);
new ResizeObserver(paint).observe(element);
new MutationObserver(paint).observe(element, {childList: true, subtree: true});
document.addEventListener('keyup', event => {
    const {target, key} = event;
    if (target.matches('[id^=photo-] .slider_input_container input') ||
        target.matches('[id^=photo-] input[type=number]') && key === 'Enter')
        target.dispatchEvent(new PointerEvent('pointerup', {bubbles: true}));
});
"""

SAVE = """file => {
    if (!file) return;
    const link = document.createElement('a');
    link.href = file.url; link.download = file.orig_name; link.click();
}"""
