"""The page at `/`: what runs here and how to connect. Needs no other host, unlike MONAI Label's own."""

from __future__ import annotations

from html import escape
from typing import Any

from ultrarefiner_monai.core.types import NOTICE

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; color: #1c2733; }
.notice { background: #fff3d6; border: 1px solid #e0b95a; padding: .6rem 1rem; border-radius: .4rem; }
table { border-collapse: collapse; width: 100% }
td, th { text-align: left; padding: .35rem .6rem; border-bottom: 1px solid #d6dde4 }
code { background: #eef2f6; padding: .1rem .3rem; border-radius: .2rem }
"""


def front_page(info: dict[str, Any], address: str) -> str:
    """HTML from MONAI Label's /info/ and the address under which the client reached the server."""
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td>{escape(str(getattr(m['type'], 'value', m['type'])))}</td>"
        f"<td>{escape(m['description'].replace(NOTICE, '').strip())}</td>"
        f"<td>{escape(str(m.get('version', '')))}, refiner: {escape(str(m.get('refiner', '')))}</td></tr>"
        for name, m in info["models"].items()
    )
    counts = info["datastore"]
    problem = info.get("pacs", {}).get("problem", "")
    notes = f"<p><strong>The PACS is away:</strong> {escape(problem)}</p>" if problem else ""
    problems = [text for text in info.get("problems", []) if text != problem]
    told = "".join(f"<li>{escape(text)}</li>" for text in problems)
    notes += f'<div class="notice"><strong>To be looked at:</strong><ul>{told}</ul></div>' if told else ""
    left = info.get("not_offered", {})
    reasons = "".join(f"<li>{count} x {escape(reason)}</li>" for reason, count in left.items())
    if left:
        count = sum(left.values())
        notes += f"<p>{count} files in the studies are not offered (the log names them):</p><ul>{reasons}</ul>"
    address = escape(address)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(info["name"])}</title><style>{_STYLE}</style></head><body>
<h1>{escape(info["name"])}</h1>
<p class="notice"><strong>{escape(NOTICE)}</strong></p>
<p>The server is running: {counts.get("total", 0)} images in the studies,
{counts.get("completed", 0)} with a final label.</p>
{notes}
<p><a href="/ultrarefiner/status"><strong>What it learns</strong></a>: labels, clicks, models, trainings.</p>
<p><a href="/ultrarefiner/worklist"><strong>Worklist</strong></a>: open an image in this browser, outline, correct, accept.</p>
<h2>Connect 3D Slicer</h2>
<ol>
<li>In 3D Slicer install the extension <em>MONAILabel</em> (Extensions Manager), restart,
open the module <em>MONAILabel</em>.</li>
<li>Enter <code>{address}</code> as <em>MONAI Label server</em> and press the refresh button.</li>
<li><em>Next Sample</em> loads an image; <em>Run</em> in <em>Auto Segmentation</em> (<code>ultrarefiner</code>) outlines it.</li>
<li>To correct: under <em>SmartEdit</em> choose <code>sam_refiner</code>, click into the lesion (foreground)
or beside it (background); or draw a ROI box. Then <em>Submit Label</em>.</li>
</ol>
<h2>Models</h2>
<table><tr><th>name</th><th>type</th><th>what it does</th><th>version</th></tr>{rows}</table>
<p>Networks: {escape(info["serving"]["networks"])}</p>
<h2>For programs</h2>
<p><a href="/info/">/info/</a> and <a href="/openapi.json">/openapi.json</a> describe the interface;
<a href="/datastore/">/datastore/</a> the studies; <a href="/logs/">/logs/</a> the log; <a href="/metrics">/metrics</a> is for Prometheus.</p>
</body></html>"""
