"""Uses the dashboard as a person does, in Chromium by its DevTools protocol, and says as JSON what it saw.

    python dashboard.py URL TOKEN FOLDER          what a person does, and pictures of it
    python dashboard.py URL TOKEN FOLDER marks    how three actors of the kind `probe` look; one is made anew meanwhile
    python dashboard.py URL TOKEN FOLDER live     what the page spends on each second of a stream with many sessions
"""

import asyncio
import base64
import json
import os
import re
import shutil
import statistics
import sys
import tempfile

import websockets

PATIENCE = 30


class Page:
    """One tab."""

    def __init__(self, socket):
        self.socket, self.number, self.session, self.waiting, self.faults = socket, 0, None, {}, []
        self.reader = asyncio.create_task(self.read())

    async def read(self):
        async for text in self.socket:
            said = json.loads(text)
            if "id" in said:
                self.waiting.pop(said["id"]).set_result(said)
            elif said["method"] == "Runtime.exceptionThrown":
                self.faults.append(said["params"]["exceptionDetails"].get("exception", {}).get("description", "?"))
            elif said["method"] == "Log.entryAdded" and said["params"]["entry"]["level"] == "error":
                self.faults.append(said["params"]["entry"]["text"] + " " + said["params"]["entry"].get("url", ""))

    async def do(self, method, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        answer = self.waiting[self.number] = asyncio.get_running_loop().create_future()
        await self.socket.send(json.dumps(message))
        said = await asyncio.wait_for(answer, PATIENCE)
        assert "error" not in said, said
        return said["result"]

    async def js(self, text):
        said = await self.do("Runtime.evaluate", expression=text, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in said, said
        return said["result"].get("value")

    async def until(self, what, text):
        end = asyncio.get_running_loop().time() + PATIENCE
        while True:
            found = await self.js(f"Boolean({text})")
            if found:
                return found
            assert asyncio.get_running_loop().time() < end, f"not in time: {what}; faults {self.faults}; the page: {await self.js('document.body.innerText')}"
            await asyncio.sleep(0.05)

    async def press(self, key, text=None):
        for kind in ("keyDown", "keyUp"):
            more = {"text": text} if text and kind == "keyDown" else {}
            codes = {"Enter": 13, "ArrowRight": 39, "ArrowDown": 40, "Tab": 9}
            await self.do("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=codes.get(key, 0), **more)

    async def write(self, text):
        await self.do("Input.insertText", text=text)

    async def click(self, selector):
        await self.js(f"document.querySelector({json.dumps(selector)}).scrollIntoView({{block: 'center'}})")
        box = await self.js(
            f"(() => {{ const b = document.querySelector({json.dumps(selector)}).getBoundingClientRect();"
            " return {x: b.x + b.width / 2, y: b.y + b.height / 2}; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            await self.do("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **box)

    async def shot(self, name, width, height, scheme):
        await self.do("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        await self.do("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        await self.js("scrollTo(0, 0)")
        await self.js("theme_colours(); draw(); new Promise((go) => requestAnimationFrame(() => requestAnimationFrame(go)))")
        overflow = await self.js("document.documentElement.scrollWidth - innerWidth")
        assert overflow <= 0, f"{name} is {overflow} pixels too wide"
        high = await self.js("document.documentElement.scrollHeight")
        clip = {"x": 0, "y": 0, "width": width, "height": min(high, 1500), "scale": 1}
        taken = await self.do("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
        with open(os.path.join(sys.argv[3], name + ".png"), "wb") as file:
            file.write(base64.b64decode(taken["data"]))


MANY = """(() => {
  if (!state.paused) $("pause").click();
  const top = {...state.top, sessions: 20000}, lane = (n) => ({name: "portway-" + n, busy_permille: 300 + 100 * n, delay_us: 90, answered: true, actors: 5000});
  const add = [], spent = [], list = [0, 1, 2, 3].map(lane);
  for (let n = 0; n < 20000; n++) add.push(n % 4, n + 1, n % 5, n % 8, n % 97 ? 0 : n % 2 ? 1 : 2, 0);
  const kinds = [["framed", "framed"], ["http", "http"], ["quic", "quic"], ["relay", "relay"], ["wireguard_peer", "wireguard"]];
  let began = performance.now();
  apply({first: true, number: 1, top, lanes: list, kinds, add});
  const first = performance.now() - began;
  for (let round = 2; round < 32; round++) {
    const set = [];
    for (let n = 0; n < 20000; n++) set.push(n + 1, (n + round) % 8, n % 97 ? 0 : 1, 0);
    began = performance.now();
    apply({first: false, number: round, top, lanes: list, set});
    spent.push(performance.now() - began);
  }
  const quiet = [];
  for (let round = 32; round < 62; round++) { began = performance.now(); apply({first: false, number: round, top, lanes: list}); quiet.push(performance.now() - began); }
  return {first, spent, quiet, cells: lanes.cells.size};
})()"""


async def use(page, token):
    saw = {}
    await page.until("the page is there", "typeof state === 'object' && document.readyState === 'complete'")
    await page.until("the stream has begun", "state.number > 0 && state.top.sessions >= 41")
    saw["sessions"] = await page.js("state.top.sessions")
    saw["title"] = await page.js("document.title")
    saw["state"] = await page.js("document.querySelector('#state').textContent")
    # By keys alone: to the lanes, the busiest session, and around.
    await page.js("document.querySelector('#lanes').focus()")
    await page.until("somebody is busy", "[...lanes.cells.values()].some((cell) => cell.family === 'framed' && cell.level > 1)")
    await page.press("s", "s")
    await page.until("its actor is shown", "document.querySelector('#detail dl')")
    saw["detail"] = await page.js("document.querySelector('#detail').innerText")
    await page.shot("dashboard-1280-dark", 1280, 900, "dark")
    await page.shot("dashboard-1280-light", 1280, 900, "light")
    await page.shot("dashboard-390-dark", 390, 844, "dark")
    await page.shot("dashboard-390-light", 390, 844, "light")
    await page.do("Emulation.setDeviceMetricsOverride", width=1280, height=900, deviceScaleFactor=1, mobile=False)
    # A wrong token first: it is refused, and asked for again.
    await page.click("#close")
    await page.until("the token is asked for", "document.querySelector('#ask').open")
    await page.write("x" * 16)
    await page.press("Enter", "\r")
    await page.until("it is asked for again", "document.querySelector('#ask').open && !document.querySelector('#token').value")
    saw["alive_after_refusal"] = await page.js("lanes.cells.has(state.chosen)")
    await page.write(token)
    await page.press("Enter", "\r")
    await page.until("the session has ended", "state.gone && !lanes.cells.has(state.chosen)")
    saw["said"] = await page.js("document.querySelector('#said').textContent")
    await page.until("it is told", "document.querySelector('#tail').innerText.includes('close actor')")
    await page.click("#reload")
    await page.until("the reload is seen", "document.querySelector('#config').innerText.includes('no. 2')")
    saw["config"] = await page.js("document.querySelector('#config').innerText")
    await page.until("it is told", "document.querySelector('#tail').innerText.includes('reloaded')")
    # A click on a cell, and the arrow keys from there.
    await page.js("(() => { const cell = [...lanes.cells.values()].find((cell) => cell.family === 'framed'); const box = document.querySelector('#lanes').getBoundingClientRect(); canvas.dispatchEvent(new MouseEvent('click', {clientX: box.left + cell.x + 2, clientY: box.top + cell.y + 2})); window.clicked = cell.id; })()")
    await page.until("the clicked one is shown", "document.querySelector('#detail').innerText.includes(String(window.clicked))")
    await page.js("document.querySelector('#lanes').focus()")
    before = await page.js("state.cursor")
    await page.press("ArrowRight")
    await page.press("ArrowDown")
    saw["moved"] = await page.js("state.cursor") != before
    # The other theme by its button.
    was = await page.js("isDark()")
    await page.click("#theme")
    saw["theme"] = await page.js("isDark()") != was
    # A refused token and an actor that has just ended are answers; nothing else may go wrong.
    own = ("401", "/api/actors/")
    saw["faults"] = [fault for fault in page.faults if not any(word in fault for word in own)]
    many = await page.js(MANY)
    saw["many"] = {
        "cells": many["cells"],
        "first_ms": round(many["first"], 1),
        "median_ms": round(statistics.median(many["spent"]), 1),
        "worst_ms": round(max(many["spent"]), 1),
        "quiet_ms": round(statistics.median(many["quiet"]), 1),
    }
    await page.shot("dashboard-20000", 1280, 900, "dark")
    return saw


# The colour of a cell in its middle, and of its edge.
MARKS = """(() => {
  const at = (x, y) => [...pen.getImageData(x * devicePixelRatio, y * devicePixelRatio, 1, 1).data].slice(0, 3);
  const probe = document.createElement("canvas").getContext("2d");
  const plain = (colour) => { probe.fillStyle = colour; probe.fillRect(0, 0, 1, 1); return [...probe.getImageData(0, 0, 1, 1).data].slice(0, 3); };
  const cells = [...lanes.cells.values()].filter((cell) => cell.kind === "probe");
  return {bad: plain(rgb["--bad"]), text: plain(rgb["--text"]), cells: cells.map((cell) => ({
    id: cell.id, flags: cell.flags, restarts: cell.restarts, flash: cell.flash > Date.now(),
    middle: at(cell.x + shape.size / 2, cell.y + shape.size / 2), edge: at(cell.x + 1, cell.y + shape.size / 2),
  }))};
})()"""


async def marks(page):
    await page.until("the stream has begun", "typeof state === 'object' && state.number > 0")
    await page.until("one is crowded and one drains", "[...lanes.cells.values()].filter((cell) => cell.kind === 'probe' && cell.flags).length === 2")
    saw = {"still": await page.js(MARKS)}
    print("ready", flush=True)
    await page.until("one is made anew", "[...lanes.cells.values()].some((cell) => cell.kind === 'probe' && cell.flash > Date.now())")
    saw["flash"] = []
    for _ in range(20):
        saw["flash"].append(await page.js(MARKS))
        await asyncio.sleep(0.08)
    await page.until("it is over", "![...lanes.cells.values()].some((cell) => cell.flash > Date.now() - 400)")
    saw["after"] = await page.js(MARKS)
    return saw


async def live(page):
    await page.until("all are there", "typeof state === 'object' && state.number > 0 && state.top.sessions >= 20000")
    await page.js("state.spent = []")
    await page.until("twenty seconds", "state.spent.length >= 20")
    spent = await page.js("state.spent")
    return {"sessions": await page.js("state.top.sessions"), "median_ms": statistics.median(spent), "worst_ms": max(spent)}


async def main():
    url, token, folder = sys.argv[1:4]
    mode = sys.argv[4] if len(sys.argv) > 4 else "use"
    home = tempfile.mkdtemp()
    browser = await asyncio.create_subprocess_exec(
        "chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--remote-debugging-port=0",
        f"--user-data-dir={home}", "about:blank", env={**os.environ, "HOME": home},
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )
    try:
        address = None
        while not address:
            line = (await asyncio.wait_for(browser.stderr.readline(), PATIENCE)).decode()
            assert line, "chromium ended"
            address = re.search(r"ws://\S+", line)
        drained = asyncio.create_task(browser.stderr.read())
        async with websockets.connect(address.group(0), max_size=1 << 26) as socket:
            page = Page(socket)
            target = (await page.do("Target.createTarget", url="about:blank"))["targetId"]
            page.session = (await page.do("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
            for domain in ("Page", "Runtime", "Log"):
                await page.do(domain + ".enable")
            await page.do("Emulation.setDeviceMetricsOverride", width=1280, height=900, deviceScaleFactor=1, mobile=False)
            await page.do("Emulation.setFocusEmulationEnabled", enabled=True)
            await page.do("Page.navigate", url=url)
            saw = await {"use": lambda: use(page, token), "marks": lambda: marks(page), "live": lambda: live(page)}[mode]()
            page.reader.cancel()
        print(json.dumps(saw))
    finally:
        browser.kill()
        await browser.wait()
        drained.cancel()
        shutil.rmtree(home, ignore_errors=True)


asyncio.run(main())
