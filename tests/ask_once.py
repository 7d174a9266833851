"""Wait for a started server and ask it one question about a picture: `python -m tests.ask_once URL`."""

from __future__ import annotations

import base64
import io
import sys
import time

import httpx
from PIL import Image

WAIT_S = 120


def main(url: str) -> int:
    """Print the answer; 0 when the server answered with text."""
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            if httpx.get(f"{url}/ready").status_code == 200:
                break
        except httpx.TransportError:
            pass
        if time.monotonic() > deadline:
            print(f"{url} was not ready after {WAIT_S} s")
            return 1
        time.sleep(0.3)
    file = io.BytesIO()
    Image.new("RGB", (256, 192), (40, 90, 200)).save(file, "PNG")
    picture = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    content = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": "Describe the screen."}]
    body = {"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 64}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)
    print(answer.status_code, answer.text)
    return 0 if answer.status_code == 200 and answer.json()["choices"][0]["message"]["content"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
