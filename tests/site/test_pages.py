"""Every page of the built site as a reader meets it: wide and narrow, light and dark, with no network."""

from __future__ import annotations

import gzip
import re
from functools import cache
from urllib.parse import unquote, urldefrag, urljoin, urlparse

import pytest
from axe_playwright_python.sync_playwright import Axe
from built import SITE, pages, pages_with_knobs, soup

WIDTHS = {"wide": 1280, "narrow": 390}
HEAVIEST = 1.5e6  # bytes of a page with all that it asks for, compressed as servers do
ON_DEMAND = "_static/live_data/"  # the weights of the model that runs in a page
SLOWEST = 5000  # milliseconds to the first paint: 60 to 390 on an idle machine, and over a second beside other work
# What is left in a page's text when something was not turned into what it stands for.
LEFTOVERS = {
    "raw TeX": re.compile(
        r"\$[^$\n]*\\[a-zA-Z]+[^$\n]*\$|\\(frac|mathbb|mathbf|sum|begin\{|left|right|lVert)|\\\(|\\\["
    ),
    "a role that Sphinx does not know": re.compile(r"\{(glue|ref|numref|doc|eq|cite|term|prf)[:}]"),
    "a widget that was never drawn": re.compile(
        r"(IntSlider|FloatSlider|HBox|VBox|Output|interactive)\(|Loading widget"
    ),
    "a citation without an entry": re.compile(r"\[\?\]|\(\?\?\)"),
}


class Visit:
    """An opened page and all that went wrong on the way."""

    def __init__(self, browser, address: str, path: str, width: int = 1280, theme: str = "light") -> None:
        self.context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=theme, reduced_motion="reduce"
        )
        self.context.set_default_timeout(120_000)  # a page full of formulas takes its time on a busy machine
        self.problems: list[str] = []
        self.fetched: set[str] = set()  # files of the site
        self.page = self.context.new_page()
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.problems.append(f"script error: {error}"))
        self.page.on("requestfailed", lambda request: self.problems.append(f"failed: {request.url} {request.failure}"))
        self.page.on("response", self._response)
        self.context.route("**/*", lambda route: self._route(route, address))
        self.page.goto(f"{address}/{path}", wait_until="load")
        if 'http-equiv="refresh"' in (SITE / path).read_text("utf8")[:1000].lower():  # leads elsewhere
            self.page.wait_for_url(lambda url: not url.endswith(f"{address}/{path}"), wait_until="load")
        self.settle()

    def settle(self) -> None:
        """Wait for what a page does by itself after it has loaded: fonts, formulas, and files that scripts ask for.

        Not for "networkidle": on a busy machine one lost event keeps that waiting for ever.
        """
        self.page.evaluate(
            """async () => {
                await document.fonts.ready;
                if (window.MathJax && MathJax.startup) await MathJax.startup.promise;
                const asked = () => performance.getEntriesByType('resource').length;
                for (let before = -1; before !== asked();) {
                    before = asked();
                    await new Promise(done => setTimeout(done, 300));
                }
            }"""
        )

    def _route(self, route, address: str) -> None:
        url = route.request.url
        if url.startswith((address + "/", "data:", "blob:")):
            route.continue_()
        else:
            self.problems.append(f"a request left the machine: {url}")
            route.abort()

    def _console(self, message) -> None:
        if message.type == "error":
            self.problems.append(f"console: {message.text}")

    def _response(self, response) -> None:
        if response.status >= 400:
            self.problems.append(f"{response.status}: {response.url}")
        self.fetched.add(unquote(urlparse(response.url).path).lstrip("/"))

    def sizes(self) -> dict[str, int]:
        """Bytes of all that the page has fetched by itself, as a server compresses it."""
        return {file: packed(file) for file in self.fetched if not file.startswith(ON_DEMAND)}

    def text(self) -> str:
        """The visible text of the article, without code, and with formulas taken out."""
        return self.page.evaluate(
            """() => {
                const article = document.querySelector('article') || document.body;
                const hide = document.createElement('style');
                hide.textContent = 'article pre, article code, article mjx-container {display: none !important}';
                document.head.append(hide);
                const text = article.innerText;
                hide.remove();
                return text;
            }"""
        )

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()


@cache
def packed(file: str) -> int:
    """Bytes of a file of the site, as a server sends it."""
    content = (SITE / file).read_bytes() if (SITE / file).is_file() else b""
    return len(content if file.endswith((".png", ".woff", ".woff2")) else gzip.compress(content, 6))


def test_page(browser, address, page_path):
    """One visit, and all that is asked of a page: what came of the sources, knobs, both themes, a phone's width."""
    with Visit(browser, address, page_path, WIDTHS["wide"]) as visit:
        assert not (found := unfinished(visit) + too_heavy(visit) + slow_to_paint(visit.page)), "\n".join(found)
        move_knobs(visit.page)
        play_knobs(visit.page)
        assert not visit.problems, "\n".join(visit.problems)
        visit.page.set_viewport_size({"width": WIDTHS["narrow"], "height": 900})
        visit.page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        assert not (found := unfinished(visit)), f"{WIDTHS['narrow']} pixels wide:\n" + "\n".join(found)
        move_knobs(visit.page)
        assert not visit.problems, "\n".join(visit.problems)
        visit.page.set_viewport_size({"width": WIDTHS["wide"], "height": 900})
        visit.page.wait_for_timeout(1000)  # the theme makes code that scrolls focusable a while after a change of size
        three_of_a_kind(visit.page)
        assert not (found := inaccessible(visit.page)), "\n".join(found)
        samples_alone(visit.page)
        for theme in ("light", "dark"):
            visit.page.emulate_media(color_scheme=theme, reduced_motion="reduce")
            assert not (pale := too_pale(visit.page, theme)), f"in the {theme} theme:\n" + "\n".join(pale)


def three_of_a_kind(page) -> None:
    """Of the API's entries leave three functions, three classes and so on, alike: axe needs minutes for all."""
    page.evaluate(
        """() => {
            const seen = {};
            for (const entry of document.querySelectorAll('dl.py')) {
                seen[entry.className] = (seen[entry.className] || 0) + 1;
                if (seen[entry.className] > 3) entry.remove();
            }
        }"""
    )


def unfinished(visit: Visit) -> list[str]:
    """What went wrong while a page opened, what was left in it, and what does not fit."""
    page, problems, text = visit.page, list(visit.problems), visit.text()
    for what, pattern in LEFTOVERS.items():
        problems += [f"left in the text: {what}: {match.group()}" for match in pattern.finditer(text)]
    unset = page.evaluate(
        """() => [...document.querySelectorAll('.math')]
            .filter(e => !e.querySelector('mjx-container')).map(e => e.textContent)"""
    )
    problems += [f"a formula that MathJax has not set: {formula}" for formula in unset]
    wrong = page.evaluate("() => [...document.querySelectorAll('mjx-merror')].map(e => e.textContent)")
    problems += [f"a formula with an error: {formula}" for formula in wrong]
    shown = [visible_frames(knob) for knob in page.locator(".knob").all()]
    problems += [f"a knob shows {number} pictures, not one" for number in shown if number != 1]
    if page.locator(".jupyter-widgets, [type='application/vnd.jupyter.widget-view+json']").count():
        problems.append("a widget that needs a kernel was left in the page")
    width, scroll_width = page.viewport_size["width"], page.evaluate("() => document.documentElement.scrollWidth")
    if scroll_width > width:
        problems.append(f"the page is {scroll_width} px wide on a {width} px screen: {too_wide(page)}")
    return problems


def too_heavy(visit: Visit) -> list[str]:
    sizes = visit.sizes()
    heaviest = sorted(sizes.items(), key=lambda item: -item[1])[:4]
    total = sum(sizes.values())
    return [f"the page weighs {total / 1e6:.2f} MB, most of it {heaviest}"] if total > HEAVIEST else []


def slow_to_paint(page) -> list[str]:
    paints = [first_paint(page)]
    while paints[-1] >= SLOWEST and len(paints) < 3:  # something else may have been running
        page.reload(wait_until="load")
        paints.append(first_paint(page))
    return [f"the first paint takes {min(paints):.0f} ms"] if min(paints) >= SLOWEST else []


def first_paint(page) -> float:
    """Milliseconds from the request to the first paint."""
    return page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")


def visible_frames(knob) -> int:
    return sum(frame.is_visible() for frame in knob.locator(".knob-frame").all())


def too_wide(page) -> list[str]:
    """What reaches over the right border and does not scroll in a box of its own, for the failure's message."""
    return page.evaluate(
        """() => {
            const scrolls = e => e && e !== document.body && e.tagName !== 'HTML' &&
                (getComputedStyle(e).overflowX !== 'visible' || scrolls(e.parentElement));
            return [...document.querySelectorAll('article *')]
                .filter(e => e.getBoundingClientRect().right > innerWidth + 1 && !scrolls(e.parentElement))
                .slice(0, 5).map(e => e.outerHTML.slice(0, 150));
        }"""
    )


def move_knobs(page) -> None:
    """Each knob by a key: another picture and another value beside it."""
    for number, knob in enumerate(page.locator(".knob").all(), 1):
        slider, output = knob.locator("input[type=range]"), knob.locator("output").first
        slider.scroll_into_view_if_needed()
        before = (shown(knob), output.inner_text())
        at_end = float(slider.input_value()) >= float(slider.get_attribute("max"))
        slider.focus()
        page.keyboard.press("ArrowLeft" if at_end else "ArrowRight")
        after = (shown(knob), output.inner_text())
        assert visible_frames(knob) == 1, f"knob {number} shows {visible_frames(knob)} pictures after a move"
        assert before[0] != after[0], f"knob {number}: the picture did not change"
        assert before[1] != after[1], f"knob {number}: the value beside it did not change: {before[1]!r}"


def play_knobs(page) -> None:
    for button in page.locator(".knob-play").all():
        knob = button.locator("xpath=ancestor::*[contains(@class, 'knob')][last()]")
        before = shown(knob)
        button.click()
        assert "Stop" in button.inner_text()
        page.wait_for_function(
            "([knob, text]) => knob.querySelector('output').textContent !== text",
            arg=[knob.element_handle(), knob.locator("output").inner_text()],
        )
        assert shown(knob) != before
        button.click()
        assert "Play" in button.inner_text()


def test_tables_sort_by_their_headings(browser, address):
    sorted_ones = [page for page in pages() if soup(page).select_one(".table-sort")]
    for name in sorted_ones:
        with Visit(browser, address, name, 1280) as visit:
            for table in [t for t in visit.page.locator("table:has(.table-sort)").all() if t.is_visible()]:
                heading = table.locator("th").last
                for direction in ("ascending", "descending"):
                    heading.locator("button").press("Enter")
                    assert heading.get_attribute("aria-sort") == direction, name
                    column = table.locator("tbody tr td:last-child").all_inner_texts()
                    found = [float(cell.split()[0].replace("−", "-")) for cell in column if cell[:1].isdigit()]
                    assert found == sorted(found, reverse=direction == "descending"), name


def shown(knob) -> str:
    """The picture that a knob shows."""
    return next(
        frame.evaluate("frame => frame.outerHTML") for frame in knob.locator(".knob-frame").all() if frame.is_visible()
    )


def inaccessible(page) -> list[str]:
    """What axe finds serious, colours apart."""
    return grave(page, None, {"rules": {"color-contrast": {"enabled": False}}})


def too_pale(page, theme: str) -> list[str]:
    """Text that stands out too little from what is behind it, in the theme that the reader's system asks for."""
    if page.locator("html[data-theme]").count():
        page.wait_for_function("theme => document.documentElement.dataset.theme === theme", arg=theme)
    return grave(page, "[data-sample]", {"runOnly": ["color-contrast"]})


def samples_alone(page) -> None:
    """Mark two texts of each kind, and take what holds neither out of the page: axe needs minutes for every word."""
    page.evaluate(
        """() => {
            const seen = {}, look = ['class', 'style', 'fill', 'data-state'];
            for (const e of document.querySelectorAll('body *')) {
                if (![...e.childNodes].some(n => n.nodeType === Node.TEXT_NODE && n.data.trim())) continue;
                let kind = '';
                for (let a = e; a !== document.body; a = a.parentElement)
                    kind += a.tagName + look.map(name => a.getAttribute(name)) + '/';
                seen[kind] = (seen[kind] || 0) + 1;
                if (seen[kind] <= 2) e.dataset.sample = '';
            }
            for (const e of document.querySelectorAll('article p, article li, article tr, article g, article dl'))
                if (!e.matches('[data-sample]') && !e.querySelector('[data-sample]')) e.remove();
        }"""
    )


def grave(page, part: str | None, options: dict) -> list[str]:
    """What axe says of a page or a part of it, as far as it is serious."""
    found = Axe().run(page, part, {"resultTypes": ["violations"], **options}).response["violations"]
    return [
        f"{violation['id']}: {node['html'][:160]}\n  {node['failureSummary']}"
        for violation in found
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"][:5]
    ]


def test_pictures_have_a_name(page_path):
    page = soup(page_path)
    article = page.find("article") or page
    nameless = [str(image)[:120] for image in article.find_all("img") if not (image.get("alt") or "").strip()]
    # Sphinx puts the file's name where no text is given, and "../_images/<hash>.png" tells nobody anything.
    nameless += [
        str(image)[:120]
        for image in article.find_all("img")
        if re.search(r"_images/|\.(png|svg)$", image.get("alt") or "")
    ]
    for svg in article.select("figure svg, .knob svg"):
        if svg.find_parent(attrs={"aria-hidden": "true"}) or svg.get("aria-hidden") == "true":
            continue
        # A figure's caption or a role="img" with a label around the drawing names it as well.
        names = [svg.get("aria-label"), svg.get("aria-labelledby"), svg.find("title", recursive=False)]
        names += [parent.get("aria-label") for parent in svg.parents if parent.name in ("figure", "div")]
        if not any(names):
            nameless.append(str(svg)[:120])
    assert not nameless, "pictures without a text for those who cannot see them:\n" + "\n".join(nameless)


@pytest.mark.parametrize(
    ("asked", "page"),
    [
        ("unlearning", "notebooks/"),
        ("causal tracing", "03_locating_a_fact"),
        ("null space", "08_alphaedit"),
        ("codebook", "06_grace"),
        ("jailbreak", "12_is_it_really_gone"),
        ("right to erasure", "what_may_be_claimed"),
        ("second moment", "glossary"),
    ],
)
def test_search_finds_it_among_the_first_five(browser, address, asked, page):
    with Visit(browser, address, "search.html") as visit:
        box = visit.page.locator("form input[name=q]:visible").first
        box.fill(asked)
        box.press("Enter")
        visit.page.wait_for_function(
            "() => /^(Search finished|Found)/.test(document.querySelector('#search-results p')?.textContent.trim())"
        )
        found = visit.page.locator("#search-results li > a").all()
        links = [link.get_attribute("href") for link in found[:5]]
        assert any(page in link for link in links), f"the search for {asked!r} finds {links}"
        assert not visit.problems, "\n".join(visit.problems)


def test_a_chapter_that_is_named_is_one_click_away(page_path):
    article = soup(page_path).find("article")
    named = article.find_all(string=re.compile(r"[Cc]hapter \d\d")) if article else []
    outside = ("a", "h1", "h2", "h3", "pre", "code", "svg", "title", "script")
    unlinked = [str(text).strip()[:100] for text in named if not text.find_parent(outside)]
    assert not unlinked, f"chapters that are named without a link: {unlinked}"


def test_links_inside_the_site_resolve(page_path):
    broken = []
    for link in soup(page_path).find_all("a", href=True):
        if urlparse(link["href"]).scheme:
            continue
        path, fragment = urldefrag(urljoin("/" + page_path, link["href"]))
        target = SITE / unquote(path).lstrip("/")
        if not target.is_file():
            broken.append(link["href"])
        elif "=" in fragment:  # what a page is set to, not a place in it
            continue
        elif fragment and target.suffix == ".html" and unquote(fragment) not in anchors(unquote(path).lstrip("/")):
            broken.append(link["href"])
    assert not broken, f"links that lead nowhere: {broken}"


@cache
def anchors(page: str) -> set[str]:
    """The names of the places in a page that a link can lead to."""
    html = soup(page)
    return {tag["id"] for tag in html.find_all(id=True)} | {
        tag["name"] for tag in html.find_all("a", attrs={"name": True})
    }


def test_every_kind_of_page_is_there(address):
    chapters = [page for page in pages() if re.match(r"notebooks/\d\d_", page)]  # not the computed appendices
    assert {"index.html", "search.html", "book/api.html", "book/bibliography.html"} <= set(pages())
    assert len(chapters) >= 2
    assert set(chapters) <= set(pages_with_knobs()), "a chapter without a knob"
