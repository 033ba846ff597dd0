/* Small repairs for those who read by keyboard or screen reader. */
(function () {
  // Sphinx breaks long signatures by lists of definitions without a term, and puts anchors between the
  // entries of the bibliography: neither is a list to a screen reader.
  function plain() {
    document.querySelectorAll("dt.sig dl, dt.sig dl > dd").forEach((part) => part.setAttribute("role", "presentation"));
    document.querySelectorAll(".citation-list").forEach((list) => list.removeAttribute("role"));
  }

  // What scrolls must be reachable by keyboard: it can take the focus as long as it is wider than its box.
  const boxes = [
    "pre", ".text_html", ".pst-scrollable-table-container", "div.math", "mjx-container[display]",
  ].map((box) => ".bd-article " + box).join(", ");
  function reachable() {
    document.querySelectorAll(boxes).forEach((box) => {
      if (box.scrollWidth > box.clientWidth + 1) {
        box.tabIndex = 0;
      } else if (box.tagName !== "MJX-CONTAINER") {
        box.removeAttribute("tabindex");
      }
    });
  }

  plain(); // the script is deferred: the page is there
  window.addEventListener("load", reachable);
  window.addEventListener("resize", reachable);
})();
