"""The parts of the page that are made anew as a conversation goes on; texts from outside are escaped."""

from __future__ import annotations

from sinklora.chat.limits import Limits
from sinklora.chat.marks import SHADES, escaped
from sinklora.chat.session import OPENING, READING, WAITING, WRITING, Turn, View

DOING = {
    WAITING: "Waiting for the model …",
    OPENING: "Opening the document …",
    READING: "Reading …",
    WRITING: "Writing …",
}
PUT_ASIDE = (
    "This conversation is no longer kept: it was unused for long, or others took its place. Reload the page "
    "to begin another."
)


def status_html(view: View) -> str:
    """What is being done, with a bar while a document is read, and the program's last sentence."""
    doing = DOING.get(view.phase, "")
    if view.phase == READING:
        percent = round(100 * view.share)
        doing = f'{doing} {percent} %<progress value="{percent}" max="100"></progress>'
    words = [f"<p>{doing}</p>" if doing else "", f"<p>{escaped(view.message)}</p>" if view.message else ""]
    return f'<div class="said-by-page" role="status">{"".join(words)}</div>'


def turns_html(turns: tuple[Turn, ...]) -> str:
    """Questions and answers, each answer with what it cost in small print."""
    return "".join(
        f'<div class="turn"><p class="question">{escaped(turn.question)}</p>'
        f'<p class="answer">{escaped(turn.answer)}</p><small>{escaped(turn.cost)}</small></div>'
        for turn in turns
    )


def document_html(view: View, layer: int) -> str:
    """The document as the cache keeps it, in a box of its own."""
    if view.marked is None:
        return '<p class="legend">The document will stand here, with what the cache keeps of it marked.</p>'
    return (
        f'<p class="legend">{escaped(view.document)}. {view.marked.legend(layer)}</p>'
        f'<div class="marked" tabindex="0">{view.marked.html(layer)}</div>'
    )


def head_html(model: str, limits: Limits, tokens: int) -> str:
    """What the page is, and how much it takes: documents of so many tokens, for one."""
    return (
        "<h1>Chat about a document</h1>"
        f"<p>{escaped(model)} reads it once into a cache that keeps only part of its tokens, and answers "
        "from what is kept. A small model makes up what it does not find.</p>"
        f"<small>Text, Markdown, HTML, PDF, EPUB or DOCX, up to {limits.document_bytes / 2**20:g} MiB and "
        f"{tokens} tokens. Nothing leaves this machine; what was not used for "
        f"{limits.minutes:g} minutes is forgotten.</small>"
    )


def _shade(step: int) -> str:
    red, green, blue = (round(255 + step / SHADES * (part - 255)) for part in (16, 52, 110))
    letters = "#fff" if step > SHADES // 2 else "#1a1a1a"
    return f".marked .k{step} {{ background: rgb({red},{green},{blue}); color: {letters}; }}"


CSS = """
.gradio-container { max-width: 76rem !important; margin: 0 auto !important; }
.gradio-container h1 { font-size: 1.4rem; font-weight: 600; margin: 0 0 .3rem; }
.gradio-container p { margin: 0; }
.gradio-container small, .legend { font-size: .8rem; opacity: .75; }
.said-by-page { min-height: 1.5rem; font-style: italic; overflow-wrap: anywhere; }
.said-by-page progress { appearance: none; width: 100%; height: .4rem; display: block; border: 0;
  background: #ddd; }
.said-by-page progress::-webkit-progress-bar { background: #ddd; }
.said-by-page progress::-webkit-progress-value { background: #10346e; }
.said-by-page progress::-moz-progress-bar { background: #10346e; }
.turn { padding: .6rem 0; border-top: 1px solid #ddd; }
.turn p { white-space: pre-wrap; overflow-wrap: anywhere; }
.turn .question { font-weight: 600; }
.marked { white-space: pre-wrap; overflow-wrap: anywhere; overflow-y: auto; height: 32rem; padding: .6rem;
  border: 1px solid #ddd; background: #fff; color: #1a1a1a; line-height: 1.55; font-size: .9rem; }
.legend { padding-bottom: .3rem; }
@media (max-width: 40rem) { .marked { height: 20rem; } }
""" + "\n".join(_shade(step) for step in range(SHADES + 1))
