"""The drawn pictures of docs/concepts.md: `python docs/images/concepts.py` writes concept_*.svg beside itself.

Colours follow the reader's preference, light or dark, as a picture in a page cannot ask the page.
"""

from __future__ import annotations

from pathlib import Path

STYLE = """
text { font: 13px system-ui, "DejaVu Sans", sans-serif; fill: #1f2328; } .soft { fill: #57606a; font-size: 12px; }
.box { fill: #f3f5f8; stroke: #57606a; stroke-width: 1.3; } .a { stroke: #0072b2; fill: #0072b2; } .b { stroke: #d55e00; fill: #d55e00; }
.c { stroke: #008a66; fill: #008a66; } path { fill: none; stroke: #57606a; stroke-width: 1.6; } path.a { fill: none; stroke: #0072b2; stroke-width: 2.4; }
path.b { fill: none; stroke: #d55e00; stroke-width: 2.4; } text.a, text.b, text.c { stroke: none; } rect.a, rect.b, rect.c { fill-opacity: .18; stroke-width: 1.3; }
@media (prefers-color-scheme: dark) { text { fill: #e6e9ed; } .soft { fill: #a3acb8; } .box { fill: #1f252d; stroke: #a3acb8; } path { stroke: #a3acb8; }
.a { stroke: #4ba3e3; fill: #4ba3e3; } .b { stroke: #ff8f4d; fill: #ff8f4d; } .c { stroke: #34c79a; fill: #34c79a; }
path.a { stroke: #4ba3e3; } path.b { stroke: #ff8f4d; } }
"""
HEADS = "".join(
    f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    f'<polygon points="0,0.5 8,4 0,7.5" style="stroke:none{fill}" class="{cls}"/></marker>'
    for name, cls, fill in (("head", "soft", ""), ("heada", "a", ""), ("headb", "b", ""))
)


def box(x: float, y: float, w: float, h: float, *lines: str, cls: str = "box") -> str:
    """A rectangle with centred lines of text."""
    first = y + h / 2 + 4.5 - 8 * (len(lines) - 1)
    said = "".join(words(x + w / 2, first + 16 * i, line) for i, line in enumerate(lines))
    return f'<rect class="{cls}" x="{x}" y="{y}" width="{w}" height="{h}" rx="5"/>{said}'


def words(x: float, y: float, text: str, cls: str = "", anchor: str = "middle") -> str:
    """A line of text."""
    return f'<text x="{x}" y="{y}" class="{cls}" text-anchor="{anchor}">{text}</text>'


def arrow(way: str, cls: str = "") -> str:
    """A path with a head."""
    return f'<path d="{way}" class="{cls}" marker-end="url(#head{cls})"/>'


def picture(name: str, title: str, width: int, height: int, *parts: str) -> None:
    """Write one SVG."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="{title}">'
    body = f"<title>{title}</title><style>{STYLE}</style><defs>{HEADS}</defs>{''.join(parts)}</svg>\n"
    (Path(__file__).parent / f"concept_{name}.svg").write_text(head + body)


def chunk() -> None:
    """Two chunks of T steps: what backpropagation sees, and what the carry brings from before."""
    parts = []
    for k, left in enumerate((20, 390)):
        parts.append(f'<rect class="a" x="{left}" y="34" width="330" height="86" rx="8" style="fill-opacity:.07"/>')
        parts.append(words(left + 165, 24, "chunk before: θ is constant" if k == 0 else "this chunk: θ is constant", "soft"))
        parts += [box(left + 18 + 78 * i, 58, 60, 38, f"t = {i + 1}" if i < 3 else "t = T") for i in range(4)]
        parts += [arrow(f"M{left + 78 + 78 * i} 77H{left + 95 + 78 * i}") for i in range(3)]
    parts.append(arrow("M332 77H407"))
    parts.append(words(370, 28, "state_0", "soft"))
    parts.append(arrow("M690 108V140H424V106", "a"))
    parts.append(words(438, 158, "∂L/∂θ inside the chunk, by backpropagation", "a", "start"))
    parts.append(arrow("M40 108V178H414V106", "b"))
    parts.append(words(227, 196, "the carry S = dstate_0/dθ, of all that came before", "b"))
    picture("chunk", "A chunk and its carry", 740, 210, *parts)


def stream() -> None:
    """Tasks over time, and who hears of a border."""
    names, parts = ("repeat", "maze", "cartpole"), []
    parts.append(words(20, 24, "stream: a function of the step and a seed", "soft", "start"))
    parts += [box(20 + 233 * i, 36, 233, 40, name, cls="abc"[i]) for i, name in enumerate(names)]
    parts.append(arrow("M20 92H719"))
    parts.append(words(715, 110, "environment steps", "soft", "end"))
    for at in (253, 486):
        parts.append(f'<path d="M{at} 30V150" stroke-dasharray="4 4"/>')
    parts.append(box(30, 128, 200, 50, "the log", "knows every border"))
    parts.append(box(270, 128, 200, 50, "strategies", "given, detected or hidden"))
    parts.append(box(510, 128, 200, 50, "the policy", "reads the task, or not"))
    picture("stream", "A stream of tasks, and who is told of a border", 740, 192, *parts)


def strategy() -> None:
    """Where the hooks of strategies stand in an update."""
    steps = ("chunk", "loss", "gradients", "optimiser", "parameters")
    hooks = ("transform_batch", "extra_loss", "transform_gradients", "transform_update", "after_update")
    parts = []
    for i, (step, hook) in enumerate(zip(steps, hooks, strict=True)):
        left = 14 + 146 * i
        parts.append(box(left, 30, 108, 40, step))
        if i < 4:
            parts.append(arrow(f"M{left + 108} 50H{left + 144}"))
        parts.append(arrow(f"M{left + 54} 108V72", "b"))
        parts.append(words(left + 54, 124, hook, "b"))
    parts.append(words(14, 18, "one update, from left to right; every strategy of the list, in its order:", "soft", "start"))
    parts.append(words(14, 156, "at a border, if there is one to hear of: on_task_end, with fresh experience of the task, and on_task_start", "soft", "start"))
    picture("strategy", "The hooks of a strategy in an update", 740, 168, *parts)


if __name__ == "__main__":
    chunk()
    stream()
    strategy()
