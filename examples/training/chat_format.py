"""The prompt text in chat (non-thinking) mode, as DeepSeek-V4's published chat format writes it."""
import json
import os

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
USER, ASSISTANT, THINK_END, DSML = "<｜User｜>", "<｜Assistant｜>", "</think>", "｜DSML｜"
SYSTEM = "You are a helpful agent."
BUILTIN = os.path.join(os.path.dirname(__file__), "..", "..", "tools", "builtin.json")

TOOLS_BLOCK = """

## Tools

You have access to a set of tools to help answer the user's question. You can invoke tools by writing a "<｜DSML｜tool_calls>" block like the following:

<｜DSML｜tool_calls>
<｜DSML｜invoke name="$TOOL_NAME">
<｜DSML｜parameter name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE</｜DSML｜parameter>
...
</｜DSML｜invoke>
<｜DSML｜invoke name="$TOOL_NAME2">
...
</｜DSML｜invoke>
</｜DSML｜tool_calls>

String parameters should be specified as is and set `string="true"`. For all other types (numbers, booleans, arrays, objects), pass the value in JSON format and set `string="false"`.

If thinking_mode is enabled (triggered by <think>), you MUST output your complete reasoning inside <think>...</think> BEFORE any tool calls or final response.

Otherwise, output directly after </think> with tool calls or final response.

### Available Tool Schemas

%s

You MUST strictly follow the above defined tool name and parameter schemas to invoke tool calls.
"""


def tools_block(tools):
    return TOOLS_BLOCK % "\n".join(json.dumps(t, ensure_ascii=False) for t in tools)


def builtin_tools():
    with open(BUILTIN, encoding="utf-8") as f:
        return json.load(f)


def prefix(system=SYSTEM):
    """What every conversation with all built-in tools begins with."""
    return BOS + system + tools_block(builtin_tools())


def user_turn(text):
    return USER + text + ASSISTANT + THINK_END


def result_turn(results):
    return user_turn("\n\n".join(f"<tool_result>{r}</tool_result>" for r in results))


def call_text(calls):
    """[(tool, arguments)] as the block that the model writes, without EOS."""
    out = []
    for name, arguments in calls:
        rows = []
        for key, value in arguments.items():
            text, flag = (value, "true") if isinstance(value, str) else (json.dumps(value, ensure_ascii=False), "false")
            rows.append(f'<{DSML}parameter name="{key}" string="{flag}">{text}</{DSML}parameter>')
        out.append(f'<{DSML}invoke name="{name}">\n' + "\n".join(rows) + f"\n</{DSML}invoke>")
    return f"\n\n<{DSML}tool_calls>\n" + "\n".join(out) + f"\n</{DSML}tool_calls>"


def parse_calls(text):
    """What the model wrote (without EOS) -> (content, [(tool, arguments)]), or None if the block is malformed."""
    start = f"\n\n<{DSML}tool_calls>\n"
    if start not in text:
        return (text, []) if DSML not in text else None
    content, block = text.split(start, 1)
    end = f"\n</{DSML}tool_calls>"
    if not block.endswith(end):
        return None
    calls = []
    for part in block[:-len(end)].split(f"\n</{DSML}invoke>"):
        part = part.lstrip("\n")
        if not part:
            continue
        opening = f'<{DSML}invoke name="'
        if not part.startswith(opening) or '">\n' not in part:
            return None
        name, rest = part[len(opening):].split('">\n', 1)
        arguments = {}
        for row in rest.split(f"</{DSML}parameter>"):
            row = row.lstrip("\n")
            if not row:
                continue
            opening_row = f'<{DSML}parameter name="'
            if not row.startswith(opening_row) or '" string="' not in row:
                return None
            key, value = row[len(opening_row):].split('" string="', 1)
            flag, _, value = value.partition('">')
            try:
                arguments[key] = value if flag == "true" else json.loads(value)
            except ValueError:
                return None
        calls.append((name, arguments))
    return content, calls
