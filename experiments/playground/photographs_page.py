"""The tab for photographs of the page of `demo`: its elements, and its reactions to the user."""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from jaxdae.errors import InputError

from .parts import error_text

if TYPE_CHECKING:
    from .photographs import Photographs, Settings, Shown

STRENGTHS, BLENDS, NOISES = (0.5, 2.0), (0.0, 1.0), (0.0, 0.5)  # the smallest and the largest
EMPTY = '<p class="rule">Before and after appear here.</p>'


# Parts of the tab, as HTML.
def comparison(shown: "Shown") -> str:
    """Before and after, one above the other, and the line between them."""
    width, height = shown.size
    images = "".join(
        f'<img id="{name}" alt="{name}" draggable="false" src="gradio_api/file={quote(str(path))}">'
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


def controls(noise: float) -> str:
    """The controls: strength, blend, and the noise to add, which is `noise` at first.

    The strength is 2 to the power of its range's value: 1 is in the middle.
    """

    def control(name: str, text: str, value: float, low: float, high: float, step: float) -> str:
        key = f"photo-{name.lower().replace(' ', '-')}"
        return (
            f'<div><output></output><label for="{key}">{name}</label><input id="{key}" '
            f'type="range" min="{low:g}" max="{high:g}" step="{step}" value="{value:g}">'
            f'<span class="rule">{text}</span></div>'
        )

    strength = (
        "Multiplies the noise level that the network estimates. Below 1 more detail stays, above "
        "1 more noise goes."
    )
    blend = "The share of the photograph that is mixed back in."
    add = "For a photograph without noise: the standard deviation of noise to add, where white is 1"
    rows = (
        control("Strength", strength, 0, -1, 1, 0.05),
        control("Blend", blend, 0, *BLENDS, 0.05),
        control("Add noise", f"{add}.", noise, *NOISES, 0.01),
    )
    return f'<div class="sliders">{"".join(rows)}</div>'


def checked(values: Sequence[float]) -> "Settings":
    """The values of the controls, as the browser sends them."""
    from .photographs import Settings

    ends = zip(values, (STRENGTHS, BLENDS, NOISES), strict=True)
    return Settings(*(min(max(float(value), low), high) for value, (low, high) in ends))


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
    with gr.Row(elem_id="photo"):
        with gr.Column(min_width=300, elem_id="photo-in"):
            upload = gr.File(
                label="A photograph", file_types=["image"], height=150, elem_id="photo-file"
            )
            gr.HTML(
                '<p class="rule">Gray or RGB, with 8 bits, or 16 if it is gray.</p>',
                js_on_load=None,
            )
            error = gr.HTML("", js_on_load=None, elem_id="photo-error")
        with gr.Column(min_width=300, elem_id="photo-out"):
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
        with gr.Column(min_width=300, elem_id="photo-controls"):
            ranges = gr.HTML(controls(noise), js_on_load=MOVE)
    state = gr.State((None, Settings(noise=noise)))  # the photograph's file, and the settings

    def shown(path: str | None, settings: Settings, progress: Any) -> Any:
        """State, error, comparison, line about it, download button."""
        same = gr.skip()
        if path is None:
            return [(path, settings), same, same, same, same]
        try:
            found = photographs.show(Path(path), settings, progress)
        except InputError as problem:
            return [same, error_text(problem), same, same, same]
        line = f'<p class="rule">{html.escape(found.about)}</p>'
        return [(path, settings), "", comparison(found), line, gr.Button(interactive=True)]

    def uploaded(state: Any, path: str, progress: Any = gr.Progress()) -> Any:  # noqa: B008
        return [*shown(path, state[1], progress), None]

    def moved(state: Any, event: gr.EventData, progress: Any = gr.Progress()) -> Any:  # noqa: B008
        return shown(state[0], checked(event.values), progress)

    def written(state: Any) -> Any:
        try:
            return "", str(photographs.write(Path(state[0]), state[1]))
        except InputError as problem:
            return error_text(problem), None

    views: list[Any] = [state, error, view, about, download]
    options: dict[str, Any] = {
        "trigger_mode": "always_last",
        "show_progress": "minimal",
        "show_progress_on": about,
        "api_visibility": "private",
        "concurrency_id": "photographs",
    }
    upload.upload(uploaded, [state, upload], [*views, upload], **options)
    ranges.input(moved, state, views, **options)
    saved = download.click(written, state, [error, file], **options)
    saved.then(None, file, None, js=SAVE, api_visibility="private")


# Styles, and scripts that run in the browser.
CSS = """
#photo { display: grid; gap: 16px; grid-template: "in out" auto "controls out" 1fr / 4fr 7fr; }
#photo-in { grid-area: in; }
#photo-out { grid-area: out; }
#photo-controls { grid-area: controls; }
#photo-controls .sliders { grid-template-columns: 1fr; gap: 16px; }
#photo-controls .rule { display: block; margin-top: 3px; }
#photo-about { min-height: 3.2em; }
.compare { position: relative; overflow: hidden; contain: inline-size; user-select: none;
  border-radius: 8px; margin: auto; width: min(100%, calc(70vh * var(--w) / var(--h))); }
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
@media (max-width: 760px) {
  #photo { grid-template: "in" "out" "controls" / minmax(0, 1fr); }
}
"""

# The line is the thumb of a range.
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
"""

# A range says "input" while it moves, and "change" when it is released.
MOVE = """
const ranges = [...element.querySelectorAll('input')];
const outputs = [...element.querySelectorAll('output')];
function values() {
    return ranges.map((range, i) => {
        const value = i ? range.value : 2 ** range.value;
        return outputs[i].value = Number(value).toFixed(2);
    });
}
element.addEventListener('input', values);
element.addEventListener('change', () => trigger('input', {values: values().map(Number)}));
values();
"""

SAVE = """file => {
    if (!file) return;
    const link = document.createElement('a');
    link.href = file.url; link.download = file.orig_name; link.click();
}"""
