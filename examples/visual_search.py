"""Draw a small booklet and ask a running server (`onsight serve`) which of its pages answers a question."""

import base64
import io
import sys

import httpx
from PIL import Image, ImageDraw, ImageFont

PAGES = ["Harbour\nsailor, cargo", "Hospital\nnurse, medicine", "Night\ntelescope, comet", "Farm\nmaize, goat"]


def drawn(text: str) -> str:
    """The page as a data: URL."""
    page, file = Image.new("RGB", (300, 400), "white"), io.BytesIO()
    ImageDraw.Draw(page).multiline_text((20, 30), text, "black", ImageFont.load_default(22), spacing=16)
    page.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


query = sys.argv[1] if len(sys.argv) > 1 else "which page is about the mariner?"
url = sys.argv[2] if len(sys.argv) > 2 else "http://127.0.0.1:8000"
body = {"query": query, "documents": [{"image": drawn(text)} for text in PAGES]}
answer = httpx.post(url + "/v1/rerank", json=body, timeout=60).raise_for_status().json()
for found in answer["results"]:
    print(f"{found['relevance_score']:.2f} page {found['index'] + 1}: {PAGES[found['index']]!r}")
