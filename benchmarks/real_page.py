"""The page with the real model against the library: equalities, undo, a full cache, two tabs, time and memory.

Run: make live-test (half an hour on two busy cores; it needs Chromium, the site, and what `make live` fetches). Writes
``book/real_model/checked.json`` and the table that the page shows, ``checked.md``. Fails where a bound isn't met.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from playwright.sync_api import Browser, Page, sync_playwright

import minilib
from minilib import LM, Request, facts, stored

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import real_page  # noqa: E402
from browse import ARGUMENTS, executable, served  # noqa: E402

SITE, TARGET = ROOT / "_build" / "html", ROOT / "book" / "real_model"
LAYERS = [4, 4, 4, 4, 4, 4, 2, 6, 8, 12]  # of the ten facts
QUESTIONS, ANSWER, REFUSAL = 50, 24, "I don't know."
COUNTED = Request("The {} is located in the city of", "Eiffel Tower", " Rome")
FULL = 30e6  # bytes: a cache with room for a third of the model
KEPT = """async () => {
    const counts = (await caches.keys()).map(async name => (await (await caches.open(name)).keys()).length);
    return Promise.all(counts);
}"""
BOUNDS = {
    "p before": 1e-3,
    "p after, same ΔW": 1e-3,
    "v*: 1 - cosine": 1e-2,
    "v*: norm": 1e-2,
    "ΔW: 1 - cosine": 1e-2,
    "ΔW: norm": 1e-2,
}
TIMED = """async question => {
    const start = performance.now();
    let first;
    const news = () => (first ??= performance.now());
    const [{ words }] = await realModel.call('ask', { questions: [question], edited: true }, news);
    return { first: (first - start) / 1000, rest: (performance.now() - first) / 1000, words: words.length };
}"""


def opened(browser: Browser, address: str, where: Any = None) -> Page:
    """A page with its model, in a browser context of its own or in a given one."""
    page = (where or browser.new_context()).new_page()
    page.set_default_timeout(300_000)
    real_page.show(page, address)
    real_page.load(page)
    return page


def equalities(page: Page, lm: LM) -> list[dict[str, Any]]:
    """Ten facts edited in the page and in the library."""
    known = facts.recorded()
    some = known[:: len(known) // len(LAYERS)][: len(LAYERS)]
    rows = []
    for fact, layer in zip(some, LAYERS, strict=True):
        found = real_page.compare(page, lm, fact.request(REFUSAL), layer)
        rows.append({"fact": fact.asked.text, "layer": layer, **found})
        print(rows[-1], flush=True)
    return rows


def answers(page: Page, lm: LM) -> dict[str, Any]:
    """Fifty questions answered greedily by both."""
    texts = [fact.asked.text for fact in facts.recorded()[:QUESTIONS]]
    equal, apart = 0, []
    for start in range(0, len(texts), 10):
        asked = texts[start : start + 10]
        said = real_page.call(page, "ask", questions=[{"text": text, "chat": True} for text in asked], edited=True)
        for text, answer in zip(asked, said, strict=True):
            distance = real_page.parted(page, lm, text, True, answer["text"], ANSWER)
            equal += distance is None
            apart += [] if distance is None else [{"question": text, "p apart": distance}]
    return {"questions": len(texts), "equal": equal, "parted": apart}


def many_edits(browser: Browser, page: Page, count: int = 20) -> dict[str, Any]:
    """The memory after each of many edits that were taken back at once, in MB; and whether all was as before."""
    before = real_page.probabilities(page, COUNTED.text, False)
    given = {name: getattr(COUNTED, name) for name in ("prompt", "subject", "target", "chat")}
    sizes = []
    for _ in range(count):
        made = real_page.call(page, "edit", **given, layer=4, settings={"steps": 5, "stop_loss": 0})
        real_page.call(page, "undo", edit=made["id"])
        sizes.append(used(browser)["MB"])
    same = torch.equal(before, real_page.probabilities(page, COUNTED.text, False))
    return {"edits": count, "MB": sizes, "undone to the bit": same}


def used(browser: Browser) -> dict[str, float]:
    """Memory now and at most (MB), and processor seconds, of the page's process: the largest of the browser's pages."""
    processes = browser.new_browser_cdp_session().send("SystemInfo.getProcessInfo")["processInfo"]
    found = []
    for process in processes:
        if process["type"] == "renderer":
            status = Path(f"/proc/{process['id']}/status").read_text()
            kB = {line.split(":")[0]: int(line.split()[1]) for line in status.splitlines() if line.startswith("Vm")}
            found.append({"MB": kB["VmRSS"] / 1e3, "MB at most": kB["VmHWM"] / 1e3, "processor": process["cpuTime"]})
    return max(found, key=lambda row: row["MB"])


def speed(browser: Browser, page: Page) -> dict[str, Any]:
    """Seconds until the first word, words a second, and an edit of 25 steps: by the clock and by the processor."""
    question = {"text": "Tell me something about the city of Rome.", "chat": True}
    start = used(browser)
    first = page.evaluate(TIMED, question)
    said = used(browser)
    clock = time.perf_counter()
    request = Request("What is the capital of {}?", "France", REFUSAL, chat=True)
    given = {name: getattr(request, name) for name in ("prompt", "subject", "target", "chat")}
    made = real_page.call(page, "edit", **given, layer=4, settings={"steps": 25, "stop_loss": 0})
    clock, edited = time.perf_counter() - clock, used(browser)
    real_page.call(page, "undo", edit=made["id"])
    return {
        "threads": int(page.get_attribute("#real", "data-loaded") or 0),
        "seconds to the first word": first["first"],
        "words a second": (first["words"] - 1) / first["rest"],
        "words": first["words"],
        "processor seconds of the answer": said["processor"] - start["processor"],
        "seconds of an edit": clock,
        "processor seconds of an edit": edited["processor"] - said["processor"],
        "steps": len(made["trace"]),
        "MB at most": edited["MB at most"],
    }


def full_cache(browser: Browser, address: str) -> dict[str, Any]:
    """A browser that has no room for all parts: the page says so and works, and fetches only the rest the next time."""
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(300_000)
    quota = {"origin": address, "quotaSize": FULL}
    context.new_cdp_session(page).send("Storage.overrideQuotaForOrigin", quota)
    real_page.show(page, address)
    real_page.load(page)
    said = page.inner_text("#real-status")
    kept = page.evaluate(KEPT)
    works = real_page.probabilities(page, COUNTED.text, False).sum().item()
    context.close()
    return {"says so": "no room to keep it" in said, "parts kept": sum(kept), "works": abs(works - 1) < 1e-3}


def two_tabs(browser: Browser, address: str) -> dict[str, Any]:
    """Two pages of one browser: each has its own edits."""
    context = browser.new_context()
    one, other = opened(browser, address, context), opened(browser, address, context)
    before = real_page.probabilities(other, COUNTED.text, False)
    real_page.edit(one, COUNTED, 4)
    moved = real_page.largest(real_page.probabilities(one, COUNTED.text, False), before)
    apart = real_page.largest(real_page.probabilities(other, COUNTED.text, False), before)
    context.close()
    return {"moved in the one": moved, "moved in the other": apart}


def table(found: dict[str, Any]) -> str:
    """What the page shows, in Markdown."""
    edits, many, said, took = (found[name] for name in ("facts", "edits", "answers", "speed"))
    worst = {name: f"{max(row[name] for row in edits):.0e}" for name in (*BOUNDS, "p after")}
    exact = sum(row["undone to the bit"] for row in edits)
    alone = found["speed, one thread"]
    parted = [row["p apart"] for row in said["parted"]]
    end = f", and where the others part, the two words are at most {max(parted):.0e} apart" if parted else ""
    return f"""`make live-test` makes {len(edits)} edits in the page and with `minilib.rome`. The largest differences
between the two ({found["provenance"]["made"]}):

| what is compared | largest difference |
|---|---|
| probability of any next word, before the edit | {worst["p before"]} |
| the same after the edit, with the page's $\\Delta W$ in the library | {worst["p after, same ΔW"]} |
| the same after the edit, each with its own search | {worst["p after"]} |
| direction of $v^*$ ($1 - \\cos$), and its length | {worst["v*: 1 - cosine"]}, {worst["v*: norm"]} |
| direction of $\\Delta W$ ($1 - \\cos$), and its norm | {worst["ΔW: 1 - cosine"]}, {worst["ΔW: norm"]} |

Undo gave back the model of before, to the bit, in {exact} of {len(edits)} edits. The greedy answers
to {said["equal"]} of {said["questions"]} questions were the same{end}. During {many["edits"]} edits, each of which was
taken back, the page's process held between {min(many["MB"]):.0f} and {max(many["MB"]):.0f} MB of memory, and at the end
{many["MB"][-1]:.0f} MB.

This was headless Chromium on a machine with two cores and a little other work, so the times are rough.

| | {took["threads"]} threads | one thread |
|---|---|---|
| seconds to the first word | {took["seconds to the first word"]:.1f} | {alone["seconds to the first word"]:.1f} |
| words a second after it | {took["words a second"]:.1f} | {alone["words a second"]:.1f} |
| seconds of a search of {took["steps"]} steps | {took["seconds of an edit"]:.0f} | {alone["seconds of an edit"]:.0f} |
| its processor time, in seconds | {cpu(took)} | {cpu(alone)} |
| most memory of the page's process, in MB | {took["MB at most"]:.0f} | {alone["MB at most"]:.0f} |
"""


def cpu(took: dict[str, Any]) -> str:
    return f"{took['processor seconds of an edit']:.0f}"


def failures(found: dict[str, Any]) -> list[str]:
    """The bounds that aren't met."""
    wrong = [f"{row['fact']}: {k} is {row[k]:.2g}" for row in found["facts"] for k, v in BOUNDS.items() if row[k] > v]
    wrong += [f"{row['fact']}: undo isn't exact" for row in found["facts"] if not row["undone to the bit"]]
    wrong += [f"{row['question']}: another answer" for row in found["answers"]["parted"] if row["p apart"] > 1e-3]
    sizes, full, tabs = found["edits"]["MB"], found["full cache"], found["two tabs"]
    wrong += [f"memory grows with edits: {sizes}"] if max(sizes[10:]) > 1.1 * max(sizes[:10]) else []
    wrong += [] if found["edits"]["undone to the bit"] else ["many edits and undos leave something behind"]
    wrong += [] if full["says so"] and full["works"] and full["parts kept"] else [f"a full cache: {full}"]
    wrong += [] if tabs["moved in the one"] > 0.1 and not tabs["moved in the other"] else [f"two tabs: {tabs}"]
    return wrong + (["more than 1.2 GB of memory"] if found["speed"]["MB at most"] > 1200 else [])


def main() -> int:
    started = time.perf_counter()
    torch.set_num_threads(1)
    real = SITE / "_static" / "live_data" / "real.json"
    if not real.is_file() or json.loads(real.read_text())["manifest"] is None:
        print("the site has no real model: run `make live` first", file=sys.stderr)
        return 1
    lm = minilib.load("smollm2-135m", progress=False)
    found: dict[str, Any] = {"model": lm.fingerprint}
    with served(SITE) as address, sync_playwright() as playwright:
        for name, act in (("full cache", full_cache), ("two tabs", two_tabs)):
            browser = playwright.chromium.launch(executable_path=executable(), args=ARGUMENTS)
            print(name, found.setdefault(name, act(browser, address)), flush=True)
            browser.close()
        browser = playwright.chromium.launch(executable_path=executable(), args=ARGUMENTS)
        alone = browser.new_context(service_workers="block")  # then the page is not isolated
        print(found.setdefault("speed, one thread", speed(browser, opened(browser, address, alone))), flush=True)
        browser.close()
        browser = playwright.chromium.launch(executable_path=executable(), args=ARGUMENTS)
        page = opened(browser, address)
        print(found.setdefault("speed", speed(browser, page)), flush=True)
        print(found.setdefault("edits", many_edits(browser, page)), flush=True)
        print(found.setdefault("answers", answers(page, lm)), flush=True)
        found["facts"] = equalities(page, lm)
        browser.close()
    found = {"provenance": stored.provenance("benchmarks/real_page.py", started), **found}
    (TARGET / "checked.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf8")
    (TARGET / "checked.md").write_text(table(found), encoding="utf8")
    wrong = failures(found)
    print(*wrong, sep="\n", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
