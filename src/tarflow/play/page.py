"""The page itself, in gradio: five tabs, whose answers come from `answers`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from tarflow.jsontext import to_json
from tarflow.play.answers import Answers
from tarflow.play.wishes import (
    ALL,
    MOST_GUIDANCE,
    MOST_IMAGES,
    MOST_SECONDS,
    MOST_SEED,
    MOST_STEPS,
    MOST_VARIATIONS,
    NULL,
    RULES,
)
from tarflow.sampling.guidance import Guidance

HERE = Path(__file__).resolve().parent / "templates"
FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif"]
WAITING = 64  # requests that wait at most; who comes then is told so
LATE = 700  # milliseconds within which what a stopped answer still said has come
EMPTY = "; empty is no condition, which a model knows only where its training dropped some"
ONE = "tarflow"  # what all that compute share: one at a time


def page(answers: Answers, title: str) -> Any:
    """The page as `gradio.Blocks`, its queue set."""
    with gr.Blocks(title=title, analytics_enabled=False) as blocks:
        gr.HTML(f"<h1>{_escaped(title)}</h1>", elem_classes="tf")
        with gr.Tabs(overflow_behavior="wrap"):
            for name, tab in TABS.items():
                with gr.Tab(name):
                    tab(answers)
    blocks.queue(max_size=WAITING, default_concurrency_limit=1, api_open=False)
    return blocks


def looks() -> dict[str, Any]:
    """Theme, style and script, as `gradio.mount_gradio_app` takes them. Nothing of it is loaded from anywhere."""
    theme = gr.themes.Default(
        primary_hue="blue",
        secondary_hue="blue",
        neutral_hue="gray",
        font=FONTS,
        font_mono=["ui-monospace", "monospace"],
    ).set(  # gradio's own greys and blues are too light to be read by everybody
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        block_title_text_color="*neutral_700",
        block_title_text_color_dark="*neutral_200",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_hover_dark="*primary_600",
    )
    script, style = ((HERE / name).read_text(encoding="utf-8") for name in ("page.js", "page.css"))
    return {
        "theme": theme,
        "css": style,
        "head": f"<script>{script}</script>",
    }


def events_of(blocks: Any) -> dict[int, int]:
    """How many values each event takes that is answered here, by its number; some the browser does alone."""
    return {number: len(event.inputs) for number, event in blocks.fns.items() if event.fn is not None}


# --- the tabs ------------------------------------------------------------------------------------------------------


def _draw(answers: Answers) -> None:
    with gr.Row():
        with gr.Column(min_width=280, scale=1):
            values = []
            for name in answers.drawing:
                known = _CONTROLS.get(name)
                values += [known(answers)] if known else _field(answers, "draw", int(name.split()[1]))
            with gr.Row():
                start, stop = _start("Draw", "draw"), gr.Button("Stop", min_width=100, elem_id="draw-stop")
        with gr.Column(min_width=280, scale=3):
            word, result = _outcome("draw")
            with gr.Row(equal_height=True):
                which = _raw(gr.Slider(1, MOST_IMAGES, 1, step=1, label="Which image to follow", min_width=160))
                follow = gr.Button("From noise to image", min_width=160, elem_id="follow-start")
            follow_word, film = _outcome("follow")
    drawing = _on(start, answers.draw, values, word, result)
    following = _on(follow, answers.follow, [which, *values], follow_word, film)
    _stops(stop, answers, word, [drawing, following])


def _score(answers: Answers) -> None:
    with gr.Row():
        with gr.Column(min_width=280, scale=1):
            source = _source(answers, "score", "Pictures to score", many=True)
            given = _condition(answers, "score-given", "Scored as", ("any class", ALL))
            with gr.Row():
                start, stop = _start("Score", "score"), gr.Button("Stop", min_width=100, elem_id="score-stop")
        with gr.Column(min_width=280, scale=3):
            word, result = _outcome("score")
    scoring = _on(start, answers.score, [*source, *given], word, result)
    _stops(stop, answers, word, [scoring])


def _walk(answers: Answers) -> None:
    with gr.Row():
        with gr.Column(min_width=280, scale=1):
            first = _source(answers, "first", "From", seed=0)
            given = _condition(answers, "first-given", "Class of the first", usual="0")
            last = _source(answers, "last", "To", seed=1)
            given += _condition(answers, "last-given", "Class of the last", usual="0")
            steps = _raw(gr.Slider(3, MOST_STEPS, 13, step=1, label="Images on the way"))
            start = _start("Walk", "walk")
        with gr.Column(min_width=280, scale=3):
            word, result = _outcome("walk")
    _on(start, answers.walk, [*first, *last, steps, *given], word, result)


def _edit(answers: Answers) -> None:
    with gr.Row():
        with gr.Column(min_width=280, scale=1):
            source = _source(answers, "edit", "The picture")
            gr.HTML(answers.region("edit"), elem_classes="tf")
            region = _sent(gr.Textbox(visible=False), "window.tarflowRegion('edit')")
            images = _raw(gr.Slider(1, MOST_VARIATIONS, 6, step=1, label="Drawings"))
            seconds = _raw(
                gr.Slider(1, MOST_SECONDS, 20, step=1, label="Seconds at most", info="more of them draw more exactly")
            )
            seed = _raw(gr.Number(0, precision=0, minimum=0, maximum=MOST_SEED, label="Seed of what is new"))
            given = _condition(answers, "edit-given", "Class", usual="0")
            with gr.Row():
                start, stop = _start("Draw anew", "edit"), gr.Button("Stop", min_width=100, elem_id="edit-stop")
        with gr.Column(min_width=280, scale=3):
            word, result = _outcome("edit")
    redrawing = _on(start, answers.redraw, [*source, region, images, seed, seconds, *given], word, result)
    _stops(stop, answers, word, [redrawing])


def _look(answers: Answers) -> None:
    start = _start("Look inside", "inside")
    word, result = _outcome("inside")
    _on(start, answers.look, [], word, result)


TABS: dict[str, Callable[[Answers], None]] = {
    "Draw": _draw,
    "Score": _score,
    "Walk": _walk,
    "Edit": _edit,
    "Look inside": _look,
}

# --- what they are made of ------------------------------------------------------------------------------------------

_CONTROLS: dict[str, Callable[[Answers], Any]] = {
    "images": lambda _: _raw(gr.Slider(1, MOST_IMAGES, 16, step=1, label="Images")),
    "seed": lambda _: _raw(gr.Number(0, precision=0, minimum=0, maximum=MOST_SEED, label="Seed")),
    "class": lambda answers: _class_choice(answers, "Class", ("all in turn", ALL)),
    "guidance": lambda answers: _raw(
        gr.Slider(0, MOST_GUIDANCE / 2, _usual(answers).scale, step=0.05, label="Guidance", info="0 guides nothing")
    ),
    "rule": lambda answers: _raw(gr.Radio(list(RULES), value=_usual(answers).rule, label="Rule of the guidance")),
    "temperature": lambda answers: _raw(
        gr.Slider(
            *(0.1, 3, _usual(answers).temperature),
            step=0.05,
            label="Temperature",
            info="of the attention of the unguided branch; 1 leaves it",
        )
    ),
    "denoise": lambda answers: _raw(
        gr.Checkbox(answers.studio.usual.denoise is not None, label=f"Denoise (σ = {answers.studio.sigma:g})")
    ),
}


def _usual(answers: Answers) -> Guidance:
    return answers.studio.usual.guidance


def _raw(component: Any) -> Any:
    """A control whose value comes as it was sent: `wishes` checks it, and says in one line what is wrong."""
    component.preprocess = lambda payload: payload
    return component


def _sent(component: Any, script: str) -> Any:
    """A control in whose place the page sends what some JavaScript gives, where VALUE is its own."""
    component.sent = script
    return _raw(component)


def _class_choice(answers: Answers, text: str, first: tuple[str, str] | None = None, usual: str | None = None) -> Any:
    """A class, or none, or what `first` stands for; `usual` is chosen at first, else the first of them."""
    choices = [*([first] if first else []), ("no class", NULL)]
    choices += [(name, str(number)) for number, name in enumerate(answers.studio.classes)]
    return _raw(gr.Dropdown(choices, value=usual or choices[0][1], label=text, filterable=len(choices) > 20))


def _condition(
    answers: Answers, name: str, text: str, first: tuple[str, str] | None = None, usual: str | None = None
) -> list[Any]:
    """What a picture is conditioned on: a class under the name `text`, or a control for each condition, or nothing."""
    studio = answers.studio
    if studio.classes:
        return [_class_choice(answers, text, first, usual)]
    return [control for number in range(len(studio.fields)) for control in _field(answers, name, number)]


def _field(answers: Answers, name: str, number: int) -> list[Any]:
    """The control of one condition that is more than a class."""
    field = answers.studio.fields[number]
    if field.kind == "image":
        source = f"{name}-{number}"
        gr.HTML(answers.given(source, field), elem_classes="tf")
        return [_sent(gr.Textbox(visible=False), f"window.tarflowSource('{source}')[0]")]
    if field.kind == "classes":
        names = field.names or [str(k) for k in range(field.sizes[0])]
        choices = [("no class", NULL), *((name, str(k)) for k, name in enumerate(names))]
        return [_raw(gr.Dropdown(choices, value=NULL, label="Class", filterable=len(choices) > 20))]
    lines = field.sizes[0] if field.kind == "tokens" else 1
    info = "with commas" + (", a line for each token" if field.kind == "tokens" else "") + EMPTY
    box = gr.Textbox(field.start, label=f"Given: {field.name}", info=info, lines=min(lines, 8), max_lines=max(lines, 8))
    return [_sent(box, "`[${VALUE}]`")]  # in brackets, by which the gate knows a list


def _source(answers: Answers, name: str, legend: str, **options: Any) -> list[Any]:
    """Where pictures come from, and the hidden fields in whose place `tarflowSource` puts them: files and seed."""
    gr.HTML(answers.source(name, legend, **options), elem_classes="tf")
    hidden = gr.Textbox(visible=False), gr.Number(visible=False)
    return [_sent(field, f"window.tarflowSource('{name}')[{k}]") for k, field in enumerate(hidden)]


def _start(text: str, name: str) -> Any:
    return gr.Button(text, variant="primary", min_width=100, elem_id=f"{name}-start")


def _outcome(name: str) -> tuple[Any, Any]:
    """The line that says how it is going, and what comes out."""
    word = gr.HTML("", elem_classes="tf", elem_id=f"{name}-word", min_height=24)
    return word, gr.HTML("", elem_classes="tf", elem_id=f"{name}-result")


def _on(button: Any, answer: Any, inputs: list[Any], word: Any, result: Any) -> Any:
    """Answer a click, one after the other with all other answers."""
    sent = {k: getattr(control, "sent", None) for k, control in enumerate(inputs)}
    lines = "".join(f"v[{k}] = {script.replace('VALUE', f'v[{k}]')}; " for k, script in sent.items() if script)

    def stream(*values: Any) -> Any:
        for text, found in answer(*values):
            yield text, (gr.skip() if found is None else found)

    return button.click(
        stream,
        inputs,
        [word, result],
        js=f"(...v) => {{ {lines}return v; }}" if lines else None,
        concurrency_id=ONE,
        concurrency_limit=1,
        show_progress="full",
        show_progress_on=[word],
        api_visibility="private",
    )


def _stops(button: Any, answers: Answers, word: Any, events: list[Any]) -> None:
    """End what is going on. The page says so by itself: what the server said would be lost with what is ended.

    It says so twice, as a word that was on its way when the button was pressed may come after the first time.
    """
    text = to_json(answers.stopped())
    stopped = button.click(None, outputs=word, cancels=events, js=f"() => {text}")
    stopped.then(None, outputs=word, js=f"() => new Promise((say) => setTimeout(() => say({text}), {LATE}))")


def _escaped(text: str) -> str:
    from markupsafe import escape

    return str(escape(text))
