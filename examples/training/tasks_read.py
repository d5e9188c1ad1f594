"""Families of tasks that only look: arithmetic, counting, finding, reading values, listing, missing files."""
import wording as w
from conversation import Skip
from wording import listed, named, quoted

PLUS, MINUS = ["plus", "+", "added to"], ["minus", "-"]
TIMES, OVER = ["times", "multiplied by", "*", "x"], ["divided by", "/", "over"]


def plural(n, noun):
    return f"{n} {noun}" if str(n) == "1" else f"{n} {noun}s"


def arithmetic(c):
    r = c.r
    kind = r.random()
    x, y = w.number(r), w.number(r)
    if kind < 0.55:
        op = r.choice("++--***//%")
        if op == "/":
            y = r.randint(2, 99)
            x = y * w.number(r, 3)
        if op == "%":
            y = r.randint(2, 60)
            c.ask(["What is the remainder of {x} divided by {y}?", "What is {x} modulo {y}?", "What is {x} mod {y}?",
                   "What remains when {x} is divided by {y}?", "Give me {x} % {y}"], x=x, y=y)
        else:
            name = r.choice({"+": PLUS, "-": MINUS, "*": TIMES, "/": OVER}[op])
            c.ask(["What is {x} {op} {y}?", "Calculate {x} {op} {y}.", "Compute {x} {op} {y}", "{x} {op} {y} = ?", "How much is {x} {op} {y}?",
                   "What does {x} {op} {y} give?", "Work out {x} {op} {y}.", "I need the result of {x} {op} {y}.", "What's {x} {op} {y}?",
                   "Tell me what {x} {op} {y} is.", "I want to know {x} {op} {y}.", "Could you calculate {x} {op} {y}?", "What is the result of {x} {op} {y}?", "Find {x} {op} {y}", "What do I get for {x} {op} {y}?",
                   "Give me {x} {op} {y}.", "Can you compute {x} {op} {y}?", "Please tell me {x} {op} {y}", "Do the math: {x} {op} {y}", "{x} {op} {y}", "Evaluate {x} {op} {y}", "Solve {x} {op} {y}."], x=x, y=y, op=name)
        expression = f"{x}{op}{y}"
    elif kind < 0.7:
        z = w.number(r)
        form = r.choice(["({x}+{y})*{z}", "{x}*{y}+{z}", "{x}*{y}-{z}", "{x}+{y}+{z}", "{x}+{y}-{z}", "{x}*{y}*{z}"])
        words = {"({x}+{y})*{z}": ["Add {x} and {y}, then multiply by {z}.", "What is ({x} + {y}) * {z}?", "Take the sum of {x} and {y} times {z}."],
                 "{x}*{y}+{z}": ["Multiply {x} by {y} and add {z}.", "What is {x} * {y} + {z}?", "What is {x} times {y} plus {z}?"],
                 "{x}*{y}-{z}": ["Multiply {x} by {y} and subtract {z}.", "What is {x} * {y} - {z}?", "What is {x} times {y} minus {z}?"],
                 "{x}+{y}+{z}": ["Add {x}, {y} and {z}.", "What is the sum of {x}, {y} and {z}?", "What is {x} + {y} + {z}?", "Add up {x}, {y} and {z}."],
                 "{x}+{y}-{z}": ["Add {x} and {y} and subtract {z}.", "What is {x} + {y} - {z}?", "What is {x} plus {y} minus {z}?"],
                 "{x}*{y}*{z}": ["Multiply {x}, {y} and {z}.", "What is {x} * {y} * {z}?", "What is the product of {x}, {y} and {z}?"]}[form]
        c.ask(words, x=x, y=y, z=z)
        expression = form.format(x=x, y=y, z=z)
    elif kind < 0.85:
        op = r.choice("+-*")
        c.order({"+": ["Add {x} and {y}", "Add {x} to {y}", "Sum {x} and {y}", "Give me the sum of {x} and {y}", "Tell me the sum of {x} and {y}"],
                 "-": ["Subtract {y} from {x}", "Take {y} away from {x}", "Give me the difference of {x} and {y}"],
                 "*": ["Multiply {x} by {y}", "Multiply {x} and {y}", "Give me the product of {x} and {y}", "Tell me the product of {x} and {y}"]}[op], x=x, y=y)
        expression = f"{x}{op}{y}"
    else:
        a, thing, box, who = w.number(r, 3), w.word(r) + "s", r.choice(["boxes", "bags", "shelves", "crates", "rooms", "rows"]), r.choice(w.PEOPLE)
        form, words = r.choice([
            ("{x}*{y}", "There are {x} {box} with {y} {t} each. How many {t} are there?"), ("{x}*{y}", "{who} has {x} {box} of {y} {t}. How many {t} is that?"),
            ("{x}+{y}", "{who} has {x} {t} and gets {y} more. How many {t} does {who} have now?"), ("{x}+{y}", "{who} bought {x} {t} and then {y} {t}. How many in total?"),
            ("{x}-{y}", "{who} had {x} {t} and gave away {y}. How many are left?"), ("{x}-{y}", "Of {x} {t}, {y} are broken. How many are fine?"),
            ("{x}*{y}", "One of the {t} costs {x} coins. What do {y} cost?")])
        y = a
        c.user(words.format(x=x, y=y, t=thing, box=box, who=who))
        expression = form.format(x=x, y=y)
    value = c.bash(f"echo $(({expression}))")
    c.last_value = value
    c.say(f"The result is {value}.")


def count_lines(c):
    r = c.r
    rows = w.lines(r, 0, r.choice([3, 12, 40]), 1, 3)
    f = c.new_file(rows)
    kind = r.random()
    if kind < 0.7:
        c.ask(["How many lines are in {f}?", "How many lines does {f} have?", "Count the lines of {f}.", "Count the lines in {f}", "What is the number of lines in {f}?",
               "Tell me the number of lines in {f}.", "Lines in {f}?", "How long is {f} in lines?", "Give me the line count of {f}.",
               "How many lines are there in {f}?", "I need the number of lines of {f}.", "What's the line count of {f}?", "Say the number of lines in {f}.", "{f} has how many lines?", "Find out how many lines {f} has.", "Tell me how many lines {f} has.",
               "How many lines are there in {f}?", "Please count how many lines are in {f}", "Can you count the lines of {f}?", "Check how many lines {f} has"], f=named(r, f))
        n = c.bash(f"wc -l < {f}")
        c.say(f"{f} has {plural(n, 'line')}.")
    elif kind < 0.87:
        c.ask(["How many words are in {f}?", "How many words does {f} have?", "Count the words in {f}.", "Tell me the number of words in {f}.",
               "What is the word count of {f}?", "Give me the number of words of {f}."], f=named(r, f))
        n = c.bash(f"wc -w < {f}")
        c.say(f"{f} has {plural(n, 'word')}.")
    else:
        c.ask(["How many bytes are in {f}?", "How big is {f} in bytes?", "What is the size of {f}?", "How large is {f}?", "Tell me the size of {f} in bytes."], f=named(r, f))
        n = c.bash(f"wc -c < {f}")
        c.say(f"{f} has {plural(n, 'byte')}.")
    c.last_value = n


def rows_with(r, target, low=1, high=10, share=0.5):
    """Lines, some of which contain the word; and how many do."""
    rows, other = [], [x for x in w.words(r, 6, 12) if target not in x]
    for _ in range(r.randint(low, high)):
        row = [r.choice(other) for _ in range(r.randint(1, 4))]
        if r.random() < share:
            row.insert(r.randint(0, len(row)), target)
        rows.append(" ".join(row))
    return rows


def count_matches(c):
    r = c.r
    t = w.words(r, 1, 1)[0]
    f = c.new_file(rows_with(r, t, 1, 14, r.choice([0.0, 0.3, 0.6])))
    c.ask(["How many lines in {f} contain {t}?", "Count the lines of {f} that contain {t}.", "How many lines of {f} mention {t}?", "In {f}, how many lines have the word {t}?",
           "Count the lines with {t} in {f}.", "How many lines contain the word {t} in {f}?", "On how many lines of {f} does {t} appear?", "How often does {t} occur in {f}?",
           "Tell me how many lines in {f} contain {t}.", "Count how many times {t} is in {f}.", "How many times does {t} appear in {f}?", "Count {t} in {f}.", "How many of {f}'s lines contain {t}?", "Can you count the lines with {t} in {f}?", "In {f}, count the lines that mention {t}.", "Find out how many lines in {f} have {t}.",
           "The word {t}: how many lines of {f} have it?", "How many lines have {t} in {f}?", "Count all lines containing {t} in {f}."],
          f=named(r, f), t=quoted(r, t))
    n = c.bash(f"grep -c {t} {f}").split("\n")[0]
    c.last_value = n
    c.say(f"{plural(n, 'line')} of {f} {'contains' if n == '1' else 'contain'} {t}.")


def find_word(c):
    r = c.r
    t = w.words(r, 1, 1)[0]
    c.ws.clear()
    hits = r.choice([0, 1, 1, 1, 1, 1, 1, 2, 2, 3])
    for _ in range(r.randint(1, 4)):
        c.new_file([x for x in w.lines(r, 1, 5) if t not in x], folder_share=0.2)
    for _ in range(hits):
        rows = [x for x in w.lines(r, 0, 6) if t not in x]
        row = w.sentence(r, 0, 4).split()
        row.insert(r.randint(0, len(row)), t)
        rows.insert(r.randint(0, len(rows)), " ".join(row))
        c.new_file(rows, folder_share=0.2)
    c.ask(["Which file contains the word {t}?", "Find the file that has {t} in it.", "Where is {t} mentioned?", "Search for {t} and tell me the file.", "Which file contains {t}?",
           "In which file is {t}?", "Which file mentions {t}?", "Find {t} in the files.", "Where can I find the word {t}?", "Look for {t} in the files and name the file.",
           "Which of the files has the word {t}?", "What file is {t} in?", "Find out which file contains {t}.", "Which files contain {t}?", "Search the files for {t}.", "Can you find the word {t}?", "Please tell me which file has {t}", "Name the file that contains {t}.", "I am looking for the word {t}.",
           "Is {t} in any file?", "Which file has {t} in it?", "Find the file with the word {t}.", "Find {t}.", "Search for the file that mentions {t}."],
          t=quoted(r, t))
    out = c.call("grep", pattern=t)
    if out == "(no matches)":
        c.say(f"No file contains {t}.")
        return
    files = list(dict.fromkeys(row.split(":")[0] for row in out.split("\n")))
    c.last_file = files[0]
    c.say(f"The word {t} is in {listed(files)}.")


def find_line(c):
    r = c.r
    t = w.words(r, 1, 1)[0]
    rows = [x for x in w.lines(r, 1, 12, 1, 5) if t not in x] or [w.made_up(r) + "q"]
    row = w.sentence(r, 1, 4).split()
    row.insert(r.randint(0, len(row)), t)
    rows.insert(r.randint(0, len(rows)), " ".join(row))
    f = c.new_file(rows)
    c.ask(["On which line of {f} is {t}?", "Which line of {f} contains {t}?", "Show me the line of {f} with {t}.", "What is the line number of {t} in {f}?",
           "Find the line with {t} in {f}.", "Where in {f} is the word {t}?", "Give me the line in {f} that mentions {t}."], f=named(r, f), t=quoted(r, t))
    out = c.call("grep", pattern=t, path=f).split("\n")[0]
    _, n, text = out.split(":", 2)
    c.say(f"{t} is on line {n} of {f}: {text}")


def show_lines(c):
    r = c.r
    f = c.new_file(w.lines(r, 2, 12, 1, 5))
    kind = r.choice(["first", "last", "nth"])
    if kind == "first":
        c.ask(["What is the first line of {f}?", "Show me the first line of {f}.", "Print the first line of {f}.", "How does {f} begin?"], f=named(r, f))
        out = c.bash(f"head -n 1 {f}")
    elif kind == "last":
        c.ask(["What is the last line of {f}?", "Show me the last line of {f}.", "Print the last line of {f}.", "How does {f} end?"], f=named(r, f))
        out = c.bash(f"tail -n 1 {f}")
    else:
        n = r.randint(1, 12)
        c.ask(["What is line {n} of {f}?", "Show me line {n} of {f}.", "Print line {n} of {f}.", "What does line {n} of {f} say?", "What is on line {n} in {f}?"], f=named(r, f), n=n)
        out = c.bash(f"sed -n {n}p {f}")
        if out == "(no output)":
            c.say(f"{f} has no line {n}.")
            return
        c.say(f"Line {n} of {f} is: {out}")
        return
    c.say(f"The {kind} line of {f} is: {out}")


def settings(r, low=2, high=9):
    """A settings file: its text and its values in order."""
    keys = w.words(r, low, high)
    if r.random() < 0.4:
        keys = [k + "_" + w.word(r) if r.random() < 0.5 else k for k in keys]
    pairs = {k: w.code(r) for k in keys}
    form = r.random()
    if form < 0.2:
        rows = ["{"] + [f'  "{k}": ' + (v if v.isdigit() and (v == "0" or v[0] != "0") else f'"{v}"') + "," for k, v in pairs.items()]
        rows[-1] = rows[-1][:-1]
        return rows + ["}"], pairs, '"{k}": "{v}"'
    sep = r.choice([" = ", "=", ": ", " = ", ": "])
    rows = []
    if r.random() < 0.25:
        rows.append(r.choice(["[main]", "# settings", f"[{w.word(r)}]", f"# {w.sentence(r, 1, 4)}"]))
    for k, v in pairs.items():
        rows.append(f"{k}{sep}{v}")
        if r.random() < 0.05:
            rows.append(f"# {w.sentence(r, 1, 3)}")
    return rows, pairs, "{k}" + sep + "{v}"


CONFIG_EXTENSIONS = [".cfg", ".ini", ".conf", ".env", ".yaml", ".json", ".txt", ".properties", ".toml", ".settings"]
VALUE_QUESTIONS = ["Read {f} and tell me the value of {k}.", "What is {k} set to in {f}?", "In {f}, what is the value of {k}?", "Give me {k} from {f}.", "What is the value of {k} in {f}?",
                   "What value does {k} have in {f}?", "Look up {k} in {f}.", "What does {f} say about {k}?", "What is {k} in {f}?", "Tell me the {k} in {f}.",
                   "Which value is set for {k} in {f}?", "Check {f}: what is {k}?", "Find the value of {k} in {f}.", "According to {f}, what is {k}?", "Get the {k} setting from {f}.", "Can you look up {k} in {f}?", "Please tell me what {k} is in {f}", "I want to know {k} from {f}.", "I need {k} from {f}.", "Look into {f} and tell me {k}.",
                   "What is the {k} in {f}?", "Could you read {k} from {f}?", "Show me the value of {k} in {f}."]


def read_value(c):
    r = c.r
    rows, pairs, _ = settings(r, 2, r.choice([4, 8, 14]))
    f = c.new_file(rows, CONFIG_EXTENSIONS, 0.12)
    k = r.choice(list(pairs))
    missing = r.random() < 0.05
    if missing:
        k = next(x for x in w.words(r, 30, 30) if all(x not in p and p not in x for p in pairs))
    c.ask(VALUE_QUESTIONS, f=named(r, f), k=quoted(r, k))
    c.call("read_file", path=f)
    if missing:
        c.say(f"{f} has no value for {k}.")
        return
    c.last_value = pairs[k]
    c.say(f"{k} is {pairs[k]}.")


SHOW = ["Show me {f}.", "What is in {f}?", "Read {f}.", "Print {f}.", "What does {f} say?", "What are the contents of {f}?", "Show the content of {f}", "Open {f}.",
        "Display {f}.", "Give me the content of {f}.", "What is written in {f}?", "Read {f} to me."]


def show_file(c):
    r = c.r
    f = c.new_file(w.lines(r, 0 if r.random() < 0.1 else 1, 4, 1, 5))
    c.ask(SHOW, f=named(r, f))
    out = c.call("read_file", path=f)
    c.say(f"{f} is empty." if out == "(empty file)" else f"{f} says:\n{out}")


def listing(c):
    r = c.r
    c.ws.clear()
    folder = "" if r.random() < 0.65 else w.words(r, 1, 1)[0]
    for _ in range(r.choice([0, 1, 2, 3, 4, 5, 6, 7])):
        name = c.new_name(folder_share=0.15 if not folder else 0)
        c.ws.put((folder + "/" if folder else "") + name, "\n".join(w.lines(r, 0, 3)) + "\n")
    if folder:
        c.ws.put(folder + "/" + w.made_up(r) + ".txt", "")
        c.ask(["What files are in {d}?", "List the files in {d}.", "What is in the folder {d}?", "Show me the contents of the directory {d}.", "List {d}.", "Which files are in {d}?",
               "What does the folder {d} contain?"], d=r.choice([folder, quoted(r, folder), folder + "/"]))
        out = c.call("list_dir", path=folder)
        c.say(f"{folder} contains {listed(out.split(chr(10)))}.")
        return
    if r.random() < 0.22:
        c.ask(["How many files are here?", "How many files are there?", "Count the files.", "How many files are in the workspace?", "Count the files in this folder.",
               "How many files do I have?", "What is the number of files here?"])
        out = c.bash("ls | wc -l")
        c.last_value = out
        c.say(f"There {'is' if out == '1' else 'are'} {plural(out, 'file')}.")
        return
    c.ask(["What files are here?", "List the files.", "Which files are there?", "Show me the files.", "What is in the workspace?", "What files do I have?", "List all files.",
           "What is in this folder?", "Show the directory.", "Which files are in the workspace?", "Give me a list of the files.", "Show the list of files.", "Please list all files", "Which files do I have?", "Can you list the files?", "Tell me which files are here.", "Show all files in this folder.", "List the files in the current directory.", "ls"])
    out = c.call("list_dir")
    c.say("The workspace is empty." if out == "(empty directory)" else f"The files are {listed(out.split(chr(10)))}.")


def missing_file(c):
    """The name is not quite right: look for it; say so if there is none."""
    r = c.r
    c.ws.clear()
    c.clutter(1, 4)
    kind = r.random()
    name = c.new_name(folder_share=0)
    base, _, ext = name.rpartition(".")
    base = base if len(base) > 2 else base + w.made_up(r)
    asked = base + "." + ext
    value_asked = r.random() < 0.45
    rows, pairs, _ = settings(r, 2, 6)
    if not value_asked:
        rows = w.lines(r, 1, 3, 1, 5)
    real = None
    if kind < 0.45:  # another extension
        real = base + next(e for e in (r.choice(w.EXTENSIONS) for _ in range(99)) if e != "." + ext)
    elif kind < 0.75:  # in a folder
        real = w.made_up(r) + "s/" + asked
    if real:
        c.ws.put(real, "\n".join(rows) + "\n")
    if value_asked:
        k = r.choice(list(pairs))
        c.ask(VALUE_QUESTIONS, f=named(r, asked), k=quoted(r, k))
    else:
        c.ask(SHOW, f=named(r, asked))
    c.call("read_file", path=asked)
    found = c.bash(f"find . -name '{base}*'")
    if found == "(no output)":
        c.say(f"There is no file {asked}.")
        return
    if found != f"./{real}":
        raise Skip
    out = c.call("read_file", path=real)
    if value_asked:
        c.say(f"There is no {asked}, but in {real} {k} is {pairs[k]}.")
    else:
        c.say(f"There is no {asked}, but {real} says:\n{out}")


def missing_count(c):
    """The same for a command that fails."""
    r = c.r
    c.ws.clear()
    c.clutter(0, 3)
    base, ext = w.words(r, 1, 1)[0], r.choice(w.EXTENSIONS)
    asked, real = base + ext, None
    if r.random() < 0.6:
        real = base + next(e for e in (r.choice(w.EXTENSIONS) for _ in range(99)) if e != ext)
        real = w.made_up(r) + "s/" + asked if r.random() < 0.4 else real
        c.ws.put(real, "\n".join(w.lines(r, 1, 9, 1, 3)) + "\n")
    c.ask(["How many lines are in {f}?", "Count the lines of {f}.", "How many lines does {f} have?", "Tell me the number of lines in {f}."], f=named(r, asked))
    c.bash(f"wc -l < {asked}")
    found = c.bash(f"find . -name '{base}*'")
    if found == "(no output)":
        c.say(f"There is no file {asked}.")
        return
    if found != f"./{real}":
        raise Skip
    n = c.bash(f"wc -l < {real}")
    c.say(f"There is no {asked}, but {real} has {plural(n, 'line')}.")
