"""Families of held-out tasks. Each function draws one: files before, what the user says, what must hold afterwards.

`answer_contains`: every entry must stand in the last answer as a whole word, whatever its case; an entry that is a list needs one of its
members. `files`: exact content (a final newline does not count), or None for "must not exist"."""
import words as w


def task(turns, setup=None, contains=(), excludes=(), files=None):
    turns = [turns] if isinstance(turns, str) else turns
    return {"setup": setup or {}, "turns": turns, "check": {"answer_contains": list(contains), "answer_excludes": list(excludes), "files": files or {}}}


def polite(r, text):
    """Some of the ways people wrap a request."""
    p = r.random()
    low = text[0].lower() + text[1:]
    if p < 0.45:
        return text + "."
    return r.choice(["Please {}.", "Could you {}?", "Can you {} please?", "I want you to {}.", "Now {}.", "Hey, {}.", "{}, please."]).format(low if p < 0.95 else text)


def arithmetic(r):
    x, y, op = w.number(r, 4), w.number(r, 4), r.choice("+-*")
    if r.random() < 0.15:
        who, thing = r.choice(w.NAMES), w.word(r) + "s"
        text = r.choice(["{who} has {x} {t} and gets {y} more. How many {t} does {who} have now?", "{who} bought {x} {t} and then {y} {t}. How many in total?"])
        return task(text.format(who=who, x=x, y=y, t=thing), contains=[str(x + y)])
    name = {"+": ["plus", "+"], "-": ["minus", "-"], "*": ["times", "multiplied by", "*"]}[op]
    v = {"+": x + y, "-": x - y, "*": x * y}[op]
    text = r.choice(["What is {x} {o} {y}?", "Calculate {x} {o} {y}.", "How much is {x} {o} {y}?", "Please compute {x} {o} {y}.", "Can you tell me what {x} {o} {y} is?",
                     "I would like to know {x} {o} {y}.", "Please work out {x} {o} {y}", "What do you get for {x} {o} {y}?"])
    return task(text.format(x=x, o=r.choice(name), y=y), contains=[str(v)])


def count_lines(r):
    rows = w.lines(r, r.randint(1, 30))
    f = w.file_name(r)
    text = r.choice(["How many lines does {f} have?", "Count the lines in {f}.", "Please count the lines of the file {f}.", "Can you tell me the number of lines in {f}?",
                     "What is the number of lines of {f}?", "Say how many lines {f} has.", "How many lines are there in the file '{f}'?"])
    return task(text.format(f=f), {f: w.text_of(rows)}, [str(len(rows))])


def count_matches(r):
    t, = w.distinct(r, 1)
    rows = w.lines(r, r.randint(2, 9), avoid=[t])
    hits = r.sample(range(len(rows)), r.randint(1, len(rows)))
    for i in hits:
        row = rows[i].split()
        row.insert(r.randint(0, len(row)), t)
        rows[i] = " ".join(row)
    f = w.file_name(r, [t])
    text = r.choice(["How many lines in {f} contain {t}?", "Count the lines of {f} that contain {t}.", "How many lines of {f} mention '{t}'?", "Please tell me how many lines in {f} contain the word {t}.",
                     "In the file {f}, how many lines contain \"{t}\"?", "How many of the lines in {f} have {t} in them?", "Count the lines that mention {t} in {f}."])
    return task(text.format(f=f, t=t), {f: w.text_of(rows)}, [str(len(hits))])


def find_word(r):
    t, = w.distinct(r, 1)
    names, setup = [], {}
    for _ in range(r.randint(2, 5)):
        name = w.file_name(r, names + [t])
        names.append(name)
        if r.random() < 0.25:
            name = w.invented(r) + "/" + name
        setup[name] = w.text_of(w.lines(r, r.randint(1, 5), avoid=[t]))
    where = r.choice(list(setup))
    rows = setup[where].splitlines()
    rows.insert(r.randint(0, len(rows)), " ".join(x for x in [w.word(r), t, w.word(r)]))
    setup[where] = w.text_of(rows)
    text = r.choice(["Which file contains the word {t}?", "Find the file that mentions {t}.", "In which file can I find {t}?", "Please find out which file has the word '{t}'.", "Where is the word {t}?",
                     "Search the files for {t}.", "Can you find the file with the word \"{t}\" in it?", "Tell me which file contains {t}."])
    return task(text.format(t=t), setup, [where])


def settings(r, n, numbers=False):
    keys = w.distinct(r, n)
    pairs = {k: str(w.number(r, 4)) if numbers else w.value(r) for k in keys}
    sep = r.choice([" = ", "=", ": "])
    head = r.choice([[], [], ["[" + w.word(r) + "]"], ["# " + w.word(r)]])
    return pairs, w.text_of(head + [f"{k}{sep}{v}" for k, v in pairs.items()]), sep


def read_value(r):
    pairs, text, _ = settings(r, r.randint(3, 9))
    f = w.file_name(r, pairs, w.SETTINGS)
    k = r.choice(list(pairs))
    ask = r.choice(["What is the value of {k} in {f}?", "What is {k} set to in {f}?", "Please look up {k} in {f}.", "Tell me the value of {k} in {f}.", "Read {f} and give me the value of {k}.",
                    "Which value does {k} have in the file {f}?", "Can you tell me what {k} is in {f}?", "I need the value of '{k}' from {f}.", "In {f}, what is {k} set to?"])
    return task(ask.format(k=k, f=f), {f: text}, [pairs[k]])


def create(r):
    f = w.file_name(r)
    if r.random() < 0.65:
        content = " ".join(w.word(r) for _ in range(r.randint(1, 6)))
        ask = polite(r, r.choice(["Create a file named {f} with the text {t}", "Write {t} to {f}", "Make a file {f} that contains {t}", "Save {t} in a file named {f}", "Create {f} with the content \"{t}\"",
                                  "Put the text '{t}' into {f}", "Write the text {t} to the file {f}"]).format(f=f, t=content))
    else:
        rows = w.lines(r, r.randint(2, 4))
        content = "\n".join(rows)
        ask = r.choice(["Create {f} with these lines:\n{t}", "Please write these lines to {f}:\n{t}", "Create a file {f} with this content:\n{t}"]).format(f=f, t=content)
    return task(ask, {}, [], files={f: content})


def replace(r):
    a, b = w.distinct(r, 2)
    rows = w.lines(r, r.randint(1, 5), avoid=[a, b])
    row = [w.word(r), a] if r.random() < 0.5 else [a, w.word(r)]
    rows.insert(r.randint(0, len(rows)), " ".join(row))
    if r.random() < 0.2:
        rows.append(a)
    f = w.file_name(r, [a, b])
    ask = polite(r, r.choice(["Replace {a} with {b} in {f}", "Change {a} to {b} in {f}", "In {f}, replace the word {a} with {b}", "Replace '{a}' by '{b}' in the file {f}", "Edit {f} and replace {a} with {b}"])
                 .format(a=a, b=b, f=f))
    return task(ask, {f: w.text_of(rows)}, files={f: "\n".join(rows).replace(a, b)})


def set_value(r):
    pairs, text, sep = settings(r, r.randint(2, 6))
    f = w.file_name(r, pairs, w.SETTINGS)
    k = r.choice(list(pairs))
    v = w.value(r)
    ask = polite(r, r.choice(["Set {k} to {v} in {f}", "Change {k} to {v} in {f}", "In {f}, set {k} to {v}", "Change the value of {k} to {v} in {f}", "Update {f} and set {k} to {v}"]).format(k=k, v=v, f=f))
    return task(ask, {f: text}, files={f: text.replace(f"{k}{sep}{pairs[k]}\n", f"{k}{sep}{v}\n")})


def change_files(r):
    f, g = w.file_name(r), None
    g = w.file_name(r, [f])
    rows = w.lines(r, r.randint(1, 4))
    text = w.text_of(rows)
    kind = r.choice(["delete", "rename", "copy", "append"])
    if kind == "delete":
        return task(polite(r, r.choice(["Delete {f}", "Remove the file {f}", "Delete the file '{f}'"]).format(f=f)), {f: text}, files={f: None})
    if kind == "rename":
        return task(polite(r, r.choice(["Rename {f} to {g}", "Move {f} to {g}", "Rename the file {f} to {g}"]).format(f=f, g=g)), {f: text}, files={f: None, g: text})
    if kind == "copy":
        return task(polite(r, r.choice(["Copy {f} to {g}", "Make a copy of {f} called {g}", "Copy the file {f} to {g}"]).format(f=f, g=g)), {f: text}, files={f: text, g: text})
    t = " ".join(w.word(r) for _ in range(r.randint(1, 4)))
    return task(polite(r, r.choice(["Append {t} to {f}", "Add the line {t} to {f}", "Append the line '{t}' to {f}", "Add \"{t}\" at the end of {f}"]).format(t=t, f=f)), {f: text}, files={f: text + t})


def compute_and_write(r):
    f, kind = w.file_name(r), r.choice(["sum", "sum", "lines", "values", "values"])
    g = w.file_name(r, [f])
    if kind == "sum":
        numbers = [w.number(r, 3) for _ in range(r.randint(2, 8))]
        ask = polite(r, r.choice(["Add the numbers in {f} and write the sum to {g}", "Sum the numbers in {f} and write the result to {g}", "Write the sum of the numbers in {f} to {g}",
                                  "Add up all the numbers in {f} and save the total in {g}", "Read the numbers in {f}, add them up and write the total to {g}"]).format(f=f, g=g))
        return task(ask, {f: w.text_of(map(str, numbers))}, files={g: str(sum(numbers))})
    if kind == "lines":
        rows = w.lines(r, r.randint(1, 20))
        ask = polite(r, r.choice(["Count the lines of {f} and write the number to {g}", "Write the number of lines in {f} to {g}", "Count the lines in {f} and save the number in {g}"]).format(f=f, g=g))
        return task(ask, {f: w.text_of(rows)}, files={g: str(len(rows))})
    pairs, text, _ = settings(r, r.randint(3, 6), numbers=True)
    f = w.file_name(r, list(pairs) + [g], w.SETTINGS)
    a, b = r.sample(list(pairs), 2)
    x, y = int(pairs[a]), int(pairs[b])
    ask, v = r.choice([("Multiply {a} by {b} from {f} and write the result to {g}", x * y), ("Read {f} and multiply {a} by {b}, then write the result to {g}", x * y),
                       ("Add {a} and {b} from {f} and save the result in {g}", x + y), ("Read {f}, add {a} and {b} and write the result to {g}", x + y)])
    return task(polite(r, ask.format(a=a, b=b, f=f, g=g)), {f: text}, files={g: str(v)})


def missing_file(r):
    """The name that is asked for does not exist: something like it may."""
    asked = w.file_name(r, extensions=w.SETTINGS + [".txt", ".md"])
    stem = asked.rsplit(".", 1)[0]
    others = {}
    for _ in range(r.randint(1, 3)):
        others[w.file_name(r, [stem, *others])] = w.text_of(w.lines(r, 2))
    kind = r.choice(["extension", "folder", "none"])
    if kind == "none":
        ask = r.choice(["What is in {f}?", "Show me {f}.", "Read {f} please.", "How many lines does {f} have?"])
        return task(ask.format(f=asked), others, [["no", "not", "missing", "exist"]])
    pairs, text, _ = settings(r, r.randint(2, 5))
    k = r.choice(list(pairs))
    real = stem + r.choice([e for e in w.SETTINGS + [".txt"] if not asked.endswith(e)]) if kind == "extension" else w.invented(r) + "s/" + asked
    ask = r.choice(["What is the value of {k} in {f}?", "What is {k} set to in {f}?", "Tell me the value of {k} in {f}.", "Read {f} and tell me the value of {k}."])
    return task(ask.format(k=k, f=asked), {**others, real: text}, [pairs[k]])


def listing(r):
    names = []
    for _ in range(r.randint(1, 6)):
        names.append(w.file_name(r, names))
    folder = "" if r.random() < 0.7 else w.invented(r)
    setup = {(folder + "/" if folder else "") + n: w.text_of(w.lines(r, 1)) for n in names}
    ask = r.choice(["List the files in {d}.", "What files are in the folder {d}?", "Which files are in {d}?"]).format(d=folder) if folder else r.choice(
        ["What files are here?", "List all the files.", "Which files are in this folder?", "Show me the list of files.", "Please list the files."])
    return task(ask, setup, names)


FACTS = [("Remember: the code for {k} is {v}.", "What is the code for {k}?"), ("Please remember that the code for {k} is {v}.", "What was the code for {k}?"),
         ("Remember that the password of {k} is {v}.", "What is the password of {k}?"), ("The password of {k} is {v}, please remember it.", "Tell me the password of {k}."),
         ("Remember that {k} is {v}.", "What is {k}?"), ("Keep in mind: {k} means {v}.", "What did I say about {k}?"), ("Note that {k} has the value {v}.", "What was {k}?")]


def memory(r):
    """Facts, then thousands of tokens of other things, then one of the facts."""
    keys = w.distinct(r, r.randint(1, 4))
    facts = [(k, w.value(r), *r.choice(FACTS)) for k in keys]
    turns = [told.format(k=k, v=v) for k, v, told, _ in facts]
    k, v, _, asked = r.choice(facts)
    setup = {}
    for _ in range(r.randint(3, 5)):
        if r.random() < 0.75:
            turns.append(r.choice(["Here is a text for you to read. ", "Read this text: ", "Here are some notes: "]) + w.prose(r, r.randint(180, 330)))
        else:
            x, y = w.number(r), w.number(r)
            turns.append(f"What is {x} plus {y}?")
    turns.append(asked.format(k=k))
    return task(turns, setup, [v])


def small_talk(r):
    ask, want = r.choice([("Hello!", ["hello", "hi"]), ("Hi there!", ["hello", "hi"]), ("Good morning!", ["hello", "hi", "morning"]), ("Hello, how are you?", ["fine", "hello", "well"]), ("Who are you?", ["agent"]),
                          ("Please introduce yourself.", ["agent"]), ("What are you?", ["agent"]), ("Thank you!", ["welcome"]), ("Thanks a lot!", ["welcome"]), ("What can you do?", ["files"]),
                          ("What can you do for me?", ["files"]), ("Goodbye!", ["goodbye", "bye"]), ("See you later!", ["goodbye", "bye"]), ("How are you today?", ["fine", "well"])])
    return task(ask, contains=[want])


def several_turns(r):
    """A file made, changed and asked about in one conversation."""
    f = w.file_name(r)
    a, b = w.distinct(r, 2, [f])
    rest = w.lines(r, 1, avoid=[a, b])[0]
    kind = r.choice(["edit", "result", "read"])
    if kind == "edit":
        return task([f"Create {f} with the text {a} {rest}.", f"Replace {a} with {b} in {f}."], files={f: f"{b} {rest}"})
    if kind == "result":
        x, y = w.number(r), w.number(r)
        return task([f"What is {x} times {y}?", f"Write the result to {f}."], files={f: str(x * y)})
    return task([f"Write {a} {rest} to {f}.", f"Rename {f} to {b}.txt.", f"What is in {b}.txt?"], contains=[a], files={f: None, b + ".txt": f"{a} {rest}"})


FAMILIES = [(arithmetic, 10), (count_lines, 7), (count_matches, 7), (find_word, 9), (read_value, 10), (create, 9), (replace, 7), (set_value, 6), (change_files, 6), (compute_and_write, 9),
            (missing_file, 8), (listing, 5), (memory, 12), (small_talk, 5), (several_turns, 5)]
