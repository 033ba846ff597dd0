"""Who handed in what: the submissions in a folder, as course systems pack it.

Each system has its own place for the student's name. Where none of them is recognised, the name is that of a folder, or
what stands in the file's name before or behind the assignment's. An earlier hand-in is left out only where the system's
own numbering says which one is later. Everything else that goes by one name is kept, and marked so that the lecturer
sees it.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

# The assignment's name is a * where these are matched. `id` tells students apart, `version` one student's hand-ins.
CANVAS = re.compile(r"(?P<name>[^ _]+)(?:_LATE)?_(?P<id>\d{2,})_(?P<version>\d{2,})_.*")
MOODLE = re.compile(r"(?P<name>.+)_(?P<id>\d+)_assignsubmission_.*")
BLACKBOARD = re.compile(r"(?P<id>(?:\*_|.*_)?(?P<name>(?<=\*_).+|[^_]+))_attempt_(?P<version>\d{4}[\d-]+)(?:_.*)?")
GITHUB = re.compile(r"\*[-_](?P<name>.+)")
GRADESCOPE = re.compile(r"(?P<id>submission_\d+)")
FILE_SYSTEMS, FOLDER_SYSTEMS = (MOODLE, BLACKBOARD, CANVAS), (MOODLE, GITHUB)
NOBODY = re.compile(r"(?:\*|submissions?|submitted( files)?|files?|notebooks?|assignments?|work|home|src)?", re.I)
COPY = re.compile(r"^(copy of |kopie von )|[-_ ]*\(\d+\)$|[-_ ]+copy$", re.I)


@dataclass(frozen=True)
class Submission:
    """A file that a student handed in for an assignment; ``mark`` tells it from others that go by the same name."""

    student: str
    assignment: str
    file: Path
    mark: str = ""

    @property
    def name(self) -> str:
        return f"{self.student} ({self.mark})" if self.mark else self.student


@dataclass(frozen=True)
class Claim:
    """What a file's name and its folders say: whose it is, and which of several."""

    student: str
    id: str
    version: str
    file: Path


def submissions(
    folder: Path, known: Sequence[str], names: Sequence[str] = ()
) -> tuple[list[Submission], list[tuple[Path, str]]]:
    """The submissions in a folder, and the files that are none, with the reason.

    ``known`` holds the assignments' names, ``names`` the students' as the lecturer spells them, where there is a list.
    """
    files: dict[str, list[Path]] = defaultdict(list)
    left: list[tuple[Path, str]] = []
    for file in sorted(folder.rglob("*")):
        hidden = any(part.startswith((".", "__MACOSX")) for part in file.relative_to(folder).parts)
        if hidden or not file.is_file():
            continue
        if assignment := assignment_of(file, folder, known):
            files[assignment].append(file)
        else:
            left.append((file, f"names none of the assignments {', '.join(known)}"))
    groups: dict[tuple[str, str], list[Claim]] = defaultdict(list)
    for assignment, some in files.items():
        for claim in claims(folder, some, assignment):
            if claim.student:
                claim = replace(claim, student=spelled(claim, folder, assignment, names))
                groups[assignment, claim.student.casefold()].append(claim)
            else:
                why = "names no student: put it in a folder with the name, or begin the file's name with it"
                left.append((claim.file, why))
    kept: dict[tuple[str, str], list[Claim]] = {}
    for key, group in groups.items():
        kept[key], earlier = latest(group)
        left += earlier
    shared = {student for (_, student), group in kept.items() if len(group) > 1}
    found = [
        Submission(claim.student, assignment, claim.file, mark(claim, group, folder) if student in shared else "")
        for (assignment, student), group in kept.items()
        for claim in group
    ]
    return sorted(found, key=lambda s: (s.assignment, s.name)), left


def assignment_of(file: Path, folder: Path, known: Sequence[str]) -> str | None:
    """The assignment that a file's name, a notebook's own metadata, or a folder's name says."""
    of_name = next((name for name in known if pattern(name).search(file.stem)), None)
    if of_name or file.suffix != ".ipynb":
        return of_name
    with file.open(encoding="utf8", errors="replace") as opened:
        inside = re.search(r'"assignment_name":\s*"(\w+)"', opened.read(50_000_000))
    if inside and inside[1] in known:
        return inside[1]
    return next((name for name in known if pattern(name).search(str(file.parent.relative_to(folder)))), None)


def pattern(assignment: str) -> re.Pattern:
    """An assignment's name with or without its number, and with any separators in the place of its underscores."""
    number, *words = assignment.split("_")
    return re.compile(rf"({number}[-_ ]+)?" + "[-_ ]+".join(words), re.I)


def claims(folder: Path, files: Iterable[Path], assignment: str) -> list[Claim]:
    """Whose each file of one assignment is; the student is empty where nothing says so."""
    found, plain = [], {}
    people = {file: gradescope(file.parent) for file in folder.rglob("submission_metadata.yml")}
    for file in files:
        parts = [*file.relative_to(folder).parts[:-1], file.stem]
        *folders, name = [pattern(assignment).sub("*", nfc(part)) for part in parts]
        signs = [m for system in FILE_SYSTEMS if (m := system.fullmatch(name))]
        signs += [m for part in folders[::-1] for system in FOLDER_SYSTEMS if (m := system.fullmatch(part))]
        signs = [m for m in signs if not NOBODY.fullmatch(m["name"])]
        export = next((p for p in folders if GRADESCOPE.fullmatch(p)), "")
        if export:
            who = next((them[export] for them in people.values() if export in them), export)
            found.append(Claim(who, export, "", file))
        elif signs:
            sign = signs[0].groupdict()
            version = sign.get("version", "")
            found.append(Claim(sign["name"].strip("_* "), sign.get("id", sign["name"]), version.zfill(20), file))
        else:
            plain[file] = [p for p in map(beside, folders) if not NOBODY.fullmatch(p)], beside(name)
    return found + by_folder(plain)


def by_folder(plain: dict[Path, tuple[list[str], str]]) -> list[Claim]:
    """Claims of files in folders that no system named: the students' level is the one at which most names differ."""
    inside = {file: folders for file, (folders, _) in plain.items() if folders}
    depth = max(map(len, inside.values()), default=0)
    level = [{folders[i].casefold() for folders in inside.values() if len(folders) > i} for i in range(depth)]
    widest = max(range(depth), key=lambda i: len(level[i]), default=0)
    own = {plain[file][1].casefold() for file in inside} - {""}
    # A folder for a whole class, or for those who were late, with the names in the files' names.
    shared = depth > 0 and len(level[widest]) == 1 and len(own) == len(inside) and len(plain) > 1
    found = []
    for file, (folders, who) in plain.items():
        if folders and not shared:
            at = min(widest, len(folders) - 1)
            found.append(Claim(folders[at], "/".join(folders[: at + 1]), "", file))
        else:
            found.append(Claim(who, "", "", file))
    return found


def beside(name: str) -> str:
    """What a file's name says beside the assignment, without the words for a copy."""
    while (shorter := COPY.sub("", name)) != name:
        name = shorter
    before, _, behind = name.partition("*")
    return before.strip("_-. ") or re.sub(r"^[-_ ]*\d*$", "", behind).strip("_-. ")


def gradescope(export: Path) -> dict[str, str]:
    """Of the folders of an export the students' names, as its metadata say."""
    text = (export / "submission_metadata.yml").read_text("utf8", errors="replace")
    found = {}
    for entry in re.split(r"^(?=submission_\d+:)", text, flags=re.M)[1:]:
        who = [name.strip().strip("'\"") for name in re.findall(r"^\s*-?\s*:name:[ ]*(.+)$", entry, re.M)]
        found[entry.partition(":")[0]] = nfc(" and ".join(who)).replace("/", "-") or entry.partition(":")[0]
    return found


def latest(group: list[Claim]) -> tuple[list[Claim], list[tuple[Path, str]]]:
    """Of the files that go by one name those to grade: without what the system's numbers say is earlier."""
    left = []
    notebooks = [claim for claim in group if claim.file.suffix == ".ipynb"] or group
    left += [(c.file, "is no notebook, and one of the same student is there") for c in group if c not in notebooks]
    same: dict[str, list[Claim]] = defaultdict(list)
    for claim in notebooks:
        same[claim.id].append(claim)
    kept = []
    for some in same.values():
        versions = {claim.version for claim in some if claim.version.strip("0")}
        if len(some) == len(versions):
            *earlier, last = sorted(some, key=lambda claim: claim.version)
            left += [(claim.file, f"{last.file.name} of the same student is later") for claim in earlier]
            kept.append(last)
        else:
            kept += some
    return kept, left


def mark(claim: Claim, group: list[Claim], folder: Path) -> str:
    """What tells a file from the others that go by the same name: the system's number, or else where it lies."""
    if claim.id not in ("", claim.student) and [other.id for other in group].count(claim.id) == 1:
        return claim.id.replace("/", ", ")
    return claim.file.relative_to(folder).as_posix().replace("/", ", ") if len(group) > 1 else ""


def spelled(claim: Claim, folder: Path, assignment: str, names: Sequence[str]) -> str:
    """The student as the lecturer spells the name, where the claim, a folder or the file holds it."""
    known: dict[str, set[str]] = defaultdict(set)
    for name in names:
        words = name.split()
        for i in range(len(words)):  # Canvas has "Ada Lovelace" as lovelaceada
            known[letters("".join(words[i:] + words[:i]))].add(name)
    folders = claim.file.parent.relative_to(folder).parts
    for text in (claim.student, *folders[::-1], beside(pattern(assignment).sub("*", claim.file.stem))):
        if len(found := known.get(letters(text), set())) == 1:
            return next(iter(found))
    return claim.student


def letters(text: str) -> str:
    """A name's letters and digits, without accents, case and separators."""
    return "".join(c for c in unicodedata.normalize("NFKD", text.casefold()) if c.isalnum())


def nfc(text: str) -> str:
    """Accents as one character each: macOS writes them as two, and one student would be two."""
    return unicodedata.normalize("NFC", text)
