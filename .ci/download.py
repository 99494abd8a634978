"""Prints how much `pip install` of a requirement would download, before it is done.

Stdlib only: it runs in an environment that holds nothing but pip. pip resolves (``--dry-run --report``), so its mirrors
and proxies count; the size of each file is asked from where pip would fetch it. What cannot be asked is said.
Usage: python .ci/download.py REQUIREMENT [--json]
"""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor


def main(arguments: list[str]) -> int:
    requirement = arguments[0]
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--report", "-", requirement]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, check=False
    )
    if done.returncode != 0:
        return 1
    text = done.stdout.decode("utf-8", "replace")
    urls = [item["download_info"]["url"] for item in json.loads(text[text.index("{") :])["install"]]
    urls = [url for url in urls if not os.path.isdir(_local(url))]
    with ThreadPoolExecutor(16) as pool:
        sizes = list(pool.map(size_bytes, urls))
    total_mb = sum(size for size in sizes if size is not None) / 1e6
    unknown = sum(size is None for size in sizes)
    if "--json" in arguments:
        print(json.dumps({"packages": len(urls), "download_mb": round(total_mb, 1), "unknown": unknown}))
        return 0
    note = f" and {unknown} whose size could not be asked" if unknown else ""
    print(f"   to download: {total_mb:.0f} MB in {len(urls)} packages{note} (less what pip has cached)", flush=True)
    return 0


def size_bytes(url: str) -> int | None:
    """The size of what `url` names, or None when its server does not say."""
    local = _local(url)
    if local:
        return os.path.getsize(local) if os.path.exists(local) else None
    try:
        context = ssl.create_default_context(cafile=os.environ.get("PIP_CERT") or None)
        request = urllib.request.Request(url, method="HEAD")
        with urllib.request.urlopen(request, timeout=10, context=context) as answer:
            return int(answer.headers["Content-Length"])
    except (OSError, TypeError, ValueError):
        return None


def _local(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    return urllib.request.url2pathname(parts.path) if parts.scheme == "file" else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
