"""Families of tasks that change files, and those in several steps."""
import wording as w
from conversation import Skip
from tasks_read import CONFIG_EXTENSIONS, plural, settings
from wording import listed, named, quoted


def create(c):
    r = c.r
    f = c.new_name(folder_share=0.15)
    kind = r.random()
    if kind < 0.62:
        text = w.sentence(r, 1, 7)
        if r.random() < 0.15:
            text = text.capitalize() + r.choice([".", "!", "?"])
        c.order(["Create a file named {f} that contains the text {t}", "Write {t} to {f}", "Make a file {f} with the content {t}", "Save the text {t} in {f}", "Create {f} with the text {t}",
                 "Put {t} into a new file {f}", "Write a file {f} that says {t}", "Create a file called {f} containing {t}", "Write the text {t} into {f}", "Store {t} in {f}",
                 "Make {f} and write {t} in it", "Save {t} to {f}", "Create the file {f} with the content {t}", "Create {f} containing {t}", "Write the line {t} to {f}"], f=quoted(r, f), t=quoted(r, text))
    elif kind < 0.85:
        rows = w.lines(r, 2, 5, 1, r.choice([2, 4, 8]))
        text = "\n".join(rows)
        c.user(r.choice(["Create {f} with these lines:\n{t}", "Write these lines to {f}:\n{t}", "Make a file {f} with the following content:\n{t}", "Save this in {f}:\n{t}",
                         "Please create the file {f} with this content:\n{t}", "Create a file {f} with the following lines:\n{t}", "Put these lines into {f}:\n{t}", "{f} should have these lines:\n{t}", "Create {f}:\n{t}"]).format(f=quoted(r, f), t=text))
    else:
        items = [str(w.number(r)) for _ in range(r.randint(2, 6))] if r.random() < 0.5 else w.words(r, 2, 5)
        text = "\n".join(items)
        what = "numbers" if items[0].isdigit() else "words"
        c.order(["Create a file {f} with the " + what + " {t}, one per line", "Write the " + what + " {t} to {f}, one per line", "Make {f} with the " + what + " {t} on separate lines",
                 "Save the " + what + " {t} in {f}, each on its own line"], f=quoted(r, f), t=listed(items))
    c.call("write_file", path=f, content=text)
    c.last_file = f
    c.say(f"I wrote {f}.")


def write_then(c):
    """A file made and at once used."""
    r = c.r
    f = c.new_name(extensions=[".sh", ".sh", ".bash"], folder_share=0)
    word = w.sentence(r, 1, 3)
    if r.random() < 0.5:
        c.order(["Write a script {f} that prints {t} and run it", "Create a shell script {f} that prints {t}, then run it", "Make a script called {f} that echoes {t} and execute it",
                 "Create {f} that prints {t} and run it"], f=f, t=quoted(r, word))
        c.call("write_file", path=f, content=f"echo {word}")
        out = c.bash(f"bash {f}")
        c.say(f"I wrote {f} and ran it. It printed: {out}")
    else:
        g = c.new_name(folder_share=0)
        f = c.new_name(folder_share=0)
        c.order(["Create {f} with the text {t} and copy it to {g}", "Write {t} to {f}, then copy {f} to {g}", "Make a file {f} containing {t} and a copy of it named {g}"], f=f, g=g, t=quoted(r, word))
        c.call("write_file", path=f, content=word)
        c.bash(f"cp {f} {g}")
        c.say(f"I wrote {f} and copied it to {g}.")


# "Change a to b in F" is about a word in a text, or about a setting where F is a settings file.
TEXT_EXTENSIONS = [".txt", ".txt", ".txt", ".md", ".log", ".csv", ".list", ".dat", ".out", ".text", ".notes", ".tmp"]
SETTINGS_EXTENSIONS = [".cfg", ".ini", ".conf", ".env", ".yaml", ".toml", ".properties", ".settings"]


def replace_text(c):
    r = c.r
    old, new = w.words(r, 2, 2)
    rows = [x for x in w.lines(r, 1, 6, 1, 5) if old not in x] or ["x"]
    times = 1 if r.random() < 0.75 else r.choice([0, 2, 2, 3])
    for _ in range(times):
        i = r.randrange(len(rows))
        row = rows[i].split()
        row.insert(r.randint(0, len(row)), old)
        rows[i] = " ".join(row)
    f = c.new_file(rows, TEXT_EXTENSIONS)
    c.order(["Replace {a} with {b} in {f}", "In {f}, replace {a} with {b}", "Change {a} to {b} in {f}", "Edit {f}: replace {a} by {b}", "Swap {a} for {b} in {f}", "In {f}, change the word {a} to {b}",
             "Replace the word {a} by {b} in {f}", "Edit {f} so that {a} becomes {b}", "Substitute {b} for {a} in {f}", "Fix {f}: {a} should be {b}", "Turn {a} into {b} in {f}"],
            a=quoted(r, old), b=quoted(r, new), f=named(r, f))
    out = c.call("edit_file", path=f, old=old, new=new)
    if out.endswith("not found"):
        c.say(f"{f} does not contain {old}.")
        return
    if "occurs" in out:
        c.bash(f"sed -i 's/{old}/{new}/g' {f}")
    c.say(f"I replaced {old} with {new} in {f}.")


def set_value(c):
    r = c.r
    rows, pairs, form = settings(r, 2, 7)
    f = c.new_file(rows, [".json"] if rows[0] == "{" else SETTINGS_EXTENSIONS, 0.08)
    k, v = r.choice(list(pairs)), w.code(r)
    c.order(["Set {k} to {v} in {f}", "In {f}, set {k} to {v}", "Change the value of {k} in {f} to {v}", "Change {k} in {f} to {v}", "Update {k} to {v} in {f}", "Edit {f} and set {k} to {v}",
             "Make {k} equal to {v} in {f}", "In {f}, change {k} to {v}", "Update {f} so that {k} is {v}", "Change {k} to {v} in {f}", "Change the value of {k} to {v} in {f}", "Change {k} to {v} in {f}",
             "Set the value of {k} to {v} in {f}", "Set {k} in {f} to {v}", "Give {k} the value {v} in {f}", "In {f}, set the value of {k} to {v}", "Update {f}: set {k} to {v}", "Change {f} so that {k} is {v}"], k=quoted(r, k), v=quoted(r, v), f=named(r, f))
    out = c.call("read_file", path=f)
    row = next((x for x in out.split("\n") if x.strip().strip('"').startswith(k) and x.strip().strip('"')[len(k):][:1] in ' =:"'), None)
    if row is None:
        raise Skip
    old = row.strip().rstrip(",")
    head = old[:len(old) - len(pairs[k])] if not old.endswith('"') else old[:len(old) - len(pairs[k]) - 1]
    new = head + v + ('"' if old.endswith('"') else "")
    if c.call("edit_file", path=f, old=old, new=new) != f"Edited {f}":
        raise Skip
    c.say(f"{k} is now {v} in {f}.")


def append(c):
    r = c.r
    f = c.new_file(w.lines(r, 1, 5))
    c.ws.put(f, c.ws.get(f).rstrip("\n") + "\n")
    t = w.sentence(r, 1, 5)
    c.order(["Append {t} to {f}", "Add the line {t} to {f}", "Add {t} at the end of {f}", "Append the line {t} to {f}", "Put {t} at the end of {f}", "Add a line saying {t} to {f}",
             "Append a line with {t} to {f}", "Add {t} as the last line of {f}"], t=quoted(r, t), f=named(r, f))
    c.bash(f"echo '{t}' >> {f}")
    c.say(f"I added the line to {f}.")


def file_operation(c):
    r = c.r
    f = c.new_file(w.lines(r, 1, 4))
    g = c.new_name()
    kind = r.choice(["rm", "mv", "cp", "mkdir", "touch"])
    if kind == "rm":
        c.order(["Delete {f}", "Remove {f}", "Delete the file {f}", "Get rid of {f}", "Remove the file {f}", "Erase {f}"], f=quoted(r, f))
        c.bash(f"rm {f}")
        c.say(f"I deleted {f}.")
    elif kind in ("mv", "cp"):
        g = g.split("/")[-1]
        c.order({"mv": ["Rename {f} to {g}", "Move {f} to {g}", "Change the name of {f} to {g}", "Rename the file {f} to {g}"],
                 "cp": ["Copy {f} to {g}", "Make a copy of {f} named {g}", "Duplicate {f} as {g}", "Copy the file {f} to {g}", "Create a copy of {f} called {g}"]}[kind], f=quoted(r, f), g=quoted(r, g))
        c.bash(f"{kind} {f} {g}")
        c.say(f"I {'renamed' if kind == 'mv' else 'copied'} {f} to {g}.")
    elif kind == "mkdir":
        d = w.words(r, 1, 1)[0] + "s"
        c.order(["Create a folder {d}", "Make a directory {d}", "Create a directory named {d}", "Make a new folder called {d}", "Create the folder {d}"], d=quoted(r, d))
        c.bash(f"mkdir -p {d}")
        c.say(f"I created the folder {d}.")
    else:
        c.order(["Create an empty file {g}", "Make an empty file named {g}", "Create an empty file called {g}", "Touch {g}"], g=quoted(r, g.split("/")[-1]))
        c.bash(f"touch {g.split('/')[-1]}")
        c.say(f"I created {g.split('/')[-1]}.")


def delete_lines(c):
    r = c.r
    from tasks_read import rows_with
    t = w.words(r, 1, 1)[0]
    f = c.new_file(rows_with(r, t, 2, 7))
    c.order(["Delete the lines with {t} from {f}", "Remove every line that contains {t} from {f}", "Remove the lines containing {t} from {f}", "In {f}, delete all lines with {t}"],
            t=quoted(r, t), f=named(r, f))
    c.bash(f"sed -i '/{t}/d' {f}")
    c.say(f"I removed the lines with {t} from {f}.")


def number_rows(r):
    return [str(w.number(r, 3)) for _ in range(r.randint(2, 9))]


def sum_numbers(c):
    r = c.r
    f = c.new_file(number_rows(r))
    kind, words = r.choice([("sum", "sum"), ("sum", "total"), ("max", "largest number"), ("max", "maximum"), ("min", "smallest number"), ("min", "minimum")])
    command = {"sum": f"awk '{{s+=$1}} END {{print s}}' {f}", "max": f"sort -n {f} | tail -n 1", "min": f"sort -n {f} | head -n 1"}[kind]
    write = r.random() < 0.6
    if not write:
        cores = ["What is the {n} of the numbers in {f}?", "What is the {n} in {f}?", "Tell me the {n} in {f}.", "Find the {n} in {f}.", "Give me the {n} of {f}."]
        if kind == "sum":
            cores = ["What is the {n} of the numbers in {f}?", "Add up the numbers in {f}.", "Sum the numbers in {f}.", "What is the {n} of {f}?", "Tell me the {n} of the numbers in {f}.",
                     "Add all numbers in {f} together.", "How much do the numbers in {f} add up to?"]
        c.ask(cores, n=words, f=named(r, f))
        v = c.bash(command)
        c.last_value = v
        c.say(f"The {kind_name(kind)} is {v}.")
        return
    g = c.new_name()
    cores = ["Find the {n} in {f} and write it to {g}", "Write the {n} of {f} to {g}", "Take the {n} in {f} and save it in {g}", "Put the {n} from {f} into {g}", "Read {f} and write the {n} to {g}"]
    if kind == "sum":
        cores = ["Add the numbers in {f} and write the {n} to {g}", "Sum the numbers in {f} and save the {n} in {g}", "Write the {n} of the numbers in {f} to {g}", "Add up {f} and store the {n} in {g}",
                 "Compute the {n} of the numbers in {f} and write it to {g}", "Read the numbers in {f}, add them up and write the result to {g}", "Save the {n} of {f} in {g}"]
    c.order(cores, n=words, f=named(r, f), g=quoted(r, g))
    v = c.bash(command)
    c.call("write_file", path=g, content=v)
    c.last_file = g
    c.say(f"The {kind_name(kind)} is {v}. I wrote it to {g}.")


def kind_name(kind):
    return {"sum": "sum", "max": "largest number", "min": "smallest number"}[kind]


def count_and_write(c):
    r = c.r
    t = w.words(r, 1, 1)[0]
    from tasks_read import rows_with
    f = c.new_file(rows_with(r, t, 2, 10))
    g = c.new_name()
    if r.random() < 0.5:
        c.order(["Count the lines of {f} and write the number to {g}", "Write the number of lines in {f} to {g}", "Count the lines in {f} and save the result in {g}", "Save the line count of {f} in {g}",
                 "Count the lines of {f} and store the count in {g}"], f=named(r, f), g=quoted(r, g))
        n = c.bash(f"wc -l < {f}")
        c.call("write_file", path=g, content=n)
        c.say(f"{f} has {plural(n, 'line')}. I wrote the number to {g}.")
    else:
        c.order(["Count the lines with {t} in {f} and write the number to {g}", "Write the number of lines of {f} that contain {t} to {g}", "Count how many lines of {f} contain {t} and save it in {g}",
                 "Save the number of lines with {t} in {f} to {g}"], f=named(r, f), g=quoted(r, g), t=quoted(r, t))
        n = c.bash(f"grep -c {t} {f}").split("\n")[0]
        c.call("write_file", path=g, content=n)
        c.say(f"{plural(n, 'line')} of {f} {'contains' if n == '1' else 'contain'} {t}. I wrote the number to {g}.")


def compute_values(c):
    """Two values of a settings file, a calculation, and perhaps a file for the result."""
    r = c.r
    keys = w.words(r, 3, 6)
    pairs = {k: str(w.number(r, 4)) for k in keys}
    sep = r.choice([" = ", "=", ": "])
    f = c.new_file([f"{k}{sep}{v}" for k, v in pairs.items()], CONFIG_EXTENSIONS)
    a, b = r.sample(keys, 2)
    op = r.choice("*+-")
    g = c.new_name()
    cores = {"*": ["Multiply {a} by {b} from {f}", "Read {f} and multiply {a} by {b}", "Compute {a} times {b} with the values in {f}", "Multiply {a} and {b} in {f}"],
             "+": ["Add {a} and {b} from {f}", "Read {f} and add {a} and {b}", "Compute {a} plus {b} with the values in {f}", "Sum {a} and {b} in {f}"],
             "-": ["Subtract {b} from {a} in {f}", "Read {f} and subtract {b} from {a}", "Compute {a} minus {b} with the values in {f}"]}[op]
    write = r.random() < 0.6
    if write:
        cores = [x + r.choice([" and write the result to {g}", ", then write the result to {g}", " and save the result in {g}", " and put the result into {g}"]) for x in cores]
    c.order(cores, a=quoted(r, a), b=quoted(r, b), f=named(r, f), g=quoted(r, g))
    c.call("read_file", path=f)
    v = c.bash(f"echo $(({pairs[a]}{op}{pairs[b]}))")
    if write:
        c.call("write_file", path=g, content=v)
        c.last_file = g
        c.say(f"The result is {v}. I wrote it to {g}.")
    else:
        c.last_value = v
        c.say(f"The result is {v}.")


def transform_file(c):
    r = c.r
    t = w.words(r, 1, 1)[0]
    from tasks_read import rows_with
    f, g = c.new_file(rows_with(r, t, 2, 7)), c.new_name()
    g = g.split("/")[-1]
    cores, command, done = r.choice([
        (["Sort the lines of {f} and save them in {g}", "Sort {f} into {g}", "Write the sorted lines of {f} to {g}", "Sort {f} and write the result to {g}"], "sort {f} > {g}", "I sorted {f} into {g}."),
        (["Copy the lines of {f} that contain {t} to {g}", "Write the lines with {t} from {f} to {g}", "Save all lines of {f} containing {t} in {g}", "Put the lines of {f} with {t} into {g}"], "grep {t} {f} > {g}",
         "I wrote the lines with {t} to {g}."),
        (["Reverse the order of the lines of {f} and save them in {g}", "Write the lines of {f} in reverse order to {g}"], "tac {f} > {g}", "I wrote the lines in reverse order to {g}."),
        (["Convert {f} to upper case and write it to {g}", "Write {f} in upper case to {g}", "Save an upper case copy of {f} in {g}"], "tr a-z A-Z < {f} > {g}", "I wrote the text in upper case to {g}."),
        (["Write the first line of {f} to {g}", "Save the first line of {f} in {g}", "Copy the first line of {f} into {g}"], "head -n 1 {f} > {g}", "I wrote the first line of {f} to {g}."),
        (["Write the last line of {f} to {g}", "Save the last line of {f} in {g}", "Copy the last line of {f} into {g}"], "tail -n 1 {f} > {g}", "I wrote the last line of {f} to {g}.")])
    c.order(cores, f=named(r, f), g=quoted(r, g), t=quoted(r, t))
    c.bash(command.format(f=f, g=g, t=t))
    c.last_file = g
    c.say(done.format(f=f, g=g, t=t))


def run_command(c):
    r = c.r
    f = c.new_file(w.lines(r, 1, 5))
    a, b = w.words(r, 2, 2)
    command = r.choice([f"echo {a} {b}", f"echo {a} | rev", f"wc -w {f}", f"head -n 1 {f}", f"tail -n 1 {f}", f"sort {f} | head -n 1", f"echo {a} | tr a-z A-Z", f"seq {r.randint(1, 5)}",
                        f"expr {w.number(r)} + {w.number(r)}", f"basename {f}", f"printf {a}", f"echo {a} | wc -c", f"cat {f}", f"echo $(({w.number(r)}-{w.number(r)}))", f"ls {f}", f"cut -c1-4 {f}", f"echo {a} >> {b}.txt; echo {w.word(r)} >> {b}.txt", f"sleep 0.00{w.number(r)}", f"mkdir -p {a}/{b} && ls {a}", f"echo {a} > {b}.log && cat {b}.log",
                        f"echo {w.sentence(r, 1, 4)} >> {a}.txt; sleep 0.00{r.randint(1, 99)}; echo {w.sentence(r, 1, 4)} >> {a}.txt", f"grep -n {w.word(r)} {f}", f"cat {f} | wc -l", f"ls -1 | sort | head -n {r.randint(1, 3)}",
                        f"for x in {a} {b}; do echo $x; done", f"printf '{a}\\n{b}\\n' | sort", f"test -f {f} && echo yes", f"sed -n 1p {f}", f"rm -f {a}.tmp", f"echo {w.code(r)} | cat"])
    c.user(r.choice(["Run {c}", "Run the command {c}", "Execute {c}", "Please run {c}", "Run {c} and tell me the output.", "What does {c} print?", "Execute the command {c} and show me the output.",
                     "Run this command: {c}"]).format(c=command if r.random() < 0.4 else f"`{command}`"))
    out = c.bash(command)
    c.say("It printed nothing." if out == "(no output)" else f"The output is: {out}")


def word_tricks(c):
    r = c.r
    t = w.words(r, 1, 1)[0]
    cores, command, done = r.choice([
        (["How many letters does the word {t} have?", "How many characters are in {t}?", "How long is the word {t}?", "Count the letters of {t}."], "echo -n {t} | wc -c", "{t} has {v} letters."),
        (["Reverse the word {t}.", "Spell {t} backwards.", "What is {t} backwards?", "Write {t} in reverse."], "echo {t} | rev", "{t} backwards is {v}."),
        (["Write {t} in capital letters.", "Convert {t} to upper case.", "What is {t} in upper case?", "Make {t} upper case."], "echo {t} | tr a-z A-Z", "{t} in upper case is {v}.")])
    c.ask(cores, t=quoted(r, t))
    v = c.bash(command.format(t=t))
    c.say(done.format(t=t, v=v))


def follow_up(c):
    """Goes on from what was just answered."""
    r = c.r
    if c.last_value and r.random() < 0.6:
        g = c.new_name()
        c.order(["Write that to {g}", "Save that number in {g}", "Write the result to {g}", "Put that into {g}", "Save it to {g}", "Store the result in {g}", "Write it to a file named {g}", "Now save it in {g}"],
                g=quoted(r, g))
        c.call("write_file", path=g, content=c.last_value)
        c.last_file, c.last_value = g, None
        c.say(f"I wrote {g}.")
    elif c.last_file and c.ws_has(c.last_file):
        f, c.last_file = c.last_file, None
        c.ask(["Read {f} back.", "Now show me {f}.", "What is in {f} now?", "Show {f} now.", "Check {f}."], f=f)
        out = c.call("read_file", path=f)
        c.say(f"{f} is empty." if out == "(empty file)" else f"{f} says:\n{out}")
