"""How often each family comes, and whole conversations."""
import random

import tasks_read as look
import tasks_talk as talk
import tasks_write as change
from conversation import Conversation, Skip
from workspace import Workspace

FAMILIES = [(look.arithmetic, 10), (look.count_lines, 6), (look.count_matches, 7), (look.find_word, 9), (look.find_line, 3), (look.show_lines, 3), (look.read_value, 10), (look.show_file, 4),
            (look.listing, 6), (look.missing_file, 9), (look.missing_count, 3), (change.create, 11), (change.write_then, 3), (change.replace_text, 7), (change.set_value, 10), (change.append, 4),
            (change.file_operation, 5), (change.delete_lines, 2), (change.sum_numbers, 8), (change.count_and_write, 5), (change.compute_values, 9), (change.transform_file, 5),
            (change.run_command, 3), (change.word_tricks, 2), (talk.small_talk, 6), (talk.beyond, 1)]
FUNCTIONS, WEIGHTS = [f for f, _ in FAMILIES], [n for _, n in FAMILIES]


def add_task(c, facts):
    """One turn, or a few: a task, or something told, asked or only read. `facts` is how much of it is about memory."""
    r = c.r
    p = r.random()
    if p < 0.30 * facts:
        talk.tell_fact(c)
    elif p < 0.72 * facts and c.told:
        talk.ask_fact(c)
    elif p < 0.76 * facts:
        talk.ask_unknown(c)
    elif p < 0.90 * facts:
        talk.long_text(c)
    else:
        if r.random() < 0.5:
            c.ws.clear()
        c.last_value = c.last_file = None
        before = len(c.segments)
        try:
            r.choices(FUNCTIONS, WEIGHTS)[0](c)
        except (Skip, OSError, ValueError, LookupError):  # the draw does not work out: names that clash, a text that is not unique
            del c.segments[before:]
            c.ws.clear()
            return
        if r.random() < 0.18:
            change.follow_up(c)


def conversations(seed, parent=None):
    """Endless: callables that add turns to a fresh conversation; the workspace is reused."""
    r = random.Random(seed)
    workspace = Workspace(parent)
    try:
        while True:
            workspace.clear()
            yield Conversation(r, workspace), r.choice([0.15, 0.4, 0.7])
    finally:
        workspace.close()
