"""Judges the end of a task: the last answer and the files, never the phrasing."""
import re


def stands_in(value, answer):
    return re.search(r"(?<!\w)" + re.escape(value.lower()) + r"(?!\w)", answer.lower()) is not None


def faults(check, answer, read):
    """What is wrong, as texts; nothing = right. read(path) gives a file's content, or None where there is no such file."""
    out = []
    for want in check["answer_contains"]:
        options = [want] if isinstance(want, str) else want
        if not any(stands_in(o, answer) for o in options):
            out.append(f"answer lacks {want!r}")
    out += [f"answer has {bad!r}" for bad in check["answer_excludes"] if stands_in(bad, answer)]
    for path, content in check["files"].items():
        have = read(path)
        if content is None:
            if have is not None:
                out.append(f"{path} still exists")
        elif have is None:
            out.append(f"{path} does not exist")
        elif have.rstrip("\n") != content.rstrip("\n"):
            out.append(f"{path} holds {have!r}, not {content!r}")
    return out
