#!/usr/bin/env python3
"""A small MCP server over standard input and output that misbehaves as it is told: hostile_server.py [WAY...].

Ways: stateless (revision 2026-07-28; else 2025-11-25), dies-at-unknown, silent-at-unknown, hangs, crashes, banner, noise, huge-line,
ignores-eof, bytewise, pages, same-page, clash, resources, resource-clash, bad-schema, bad-version, big-output, label:TEXT (a tool
whose name, description and parameter are that)."""
import json
import os
import sys
import time

WAYS = set(sys.argv[1:])
STATELESS = "stateless" in WAYS
LABELS = [way.removeprefix("label:") for way in WAYS if way.startswith("label:")]
raw_line = ""
running = True


def write(text):
    data = (text + "\n").encode()
    step = 1 if "bytewise" in WAYS else len(data)
    for i in range(0, len(data), step):
        os.write(1, data[i:i + step])


def send(**message):
    write(json.dumps({"jsonrpc": "2.0", **message}))


def tool(name, properties=None, required=(), **more):
    return {"name": name, "description": f"Does {name}.", **more,
            "inputSchema": {"type": "object", "properties": properties or {}, "required": list(required)}}


def tools():
    text = {"text": {"type": "string"}}
    found = [tool("echo", {**text, "number": {"type": "number"}}), tool("raw", {"number": {"type": "number"}}), tool("meta"),
             tool("pid", annotations={"readOnlyHint": True}), tool("hang"), tool("crash", {"file": {"type": "string"}}),
             tool("huge"), tool("sleep", {"seconds": {"type": "number"}}), tool("progress", {"steps": {"type": "integer"}}),
             tool("ask"), tool("fail", text), tool("refuse"), tool("surrogate"),
             tool("set", annotations={"idempotentHint": True}), tool("mixed")]
    if "clash" in WAYS:
        found += [tool("a.b"), tool("a_b")]
    for label in LABELS:
        found += [tool(label, {label: {"type": "string", "description": label, "enum": [label]}}, [label])]
    if "resource-clash" in WAYS:
        found += [tool("read_resource")]
    if "bad-schema" in WAYS:
        found += [{"name": "no_schema"}, {**tool("bad_schema"), "inputSchema": {"type": 7}},
                  {**tool("far_schema"), "inputSchema": {"type": "object", "properties": {"x": {"$ref": "http://127.0.0.1:1/x.json"}}}}]
    return found


def text(value, **more):
    return {"content": [{"type": "text", "text": value}], **more}


def read_response():
    return json.loads(sys.stdin.readline())


def call(message):
    params = message["params"]
    name, arguments = params["name"], params.get("arguments", {})
    if name == "echo":
        return text(arguments.get("text", ""))
    if name == "raw":
        return text(raw_line.strip())
    if name == "meta":
        return text(json.dumps(params.get("_meta")))
    if name == "pid":
        return text(str(os.getpid()))
    if name == "hang":
        time.sleep(3600)
    if name == "crash":
        if "file" in arguments:
            with open(arguments["file"], "a") as file:
                file.write("called\n")
        print("about to crash", file=sys.stderr, flush=True)
        os._exit(3)
    if name == "huge":
        for _ in range(64):
            os.write(1, b"x" * 1_000_000)
    if name == "sleep":
        time.sleep(arguments["seconds"])
    if name == "progress":
        token = params["_meta"]["progressToken"]
        for i in range(arguments["steps"]):
            send(method="notifications/progress", params={"progressToken": token, "progress": i + 1, "total": arguments["steps"], "message": "step"})
            time.sleep(0.05)
    if name == "ask":
        send(id="p1", method="ping")
        pong = read_response()
        send(id="s1", method="sampling/createMessage", params={})
        refusal = read_response()
        return text(json.dumps([pong, refusal]))
    if name == "fail":
        return text("it did not work", isError=True)
    if name == "refuse":
        return None
    if name == "surrogate":
        write('{"jsonrpc":"2.0","id":%d,"result":{"content":[{"type":"text","text":"a\\ud800b"}]}}' % message["id"])
        return ()
    if name == "mixed":
        return {"content": [{"type": "text", "text": "one"}, {"type": "image", "mimeType": "image/png", "data": "AAAA"},
                            {"type": "resource_link", "uri": "x://y", "name": "why"},
                            {"type": "resource", "resource": {"uri": "x://z", "text": "zed"}}],
                "structuredContent": {"n": 1}}
    if "big-output" in WAYS:
        return text("line\n" * 10_000)
    return text("done")


def page(params):
    all_tools = tools()
    if "pages" not in WAYS and "same-page" not in WAYS:
        return {"tools": all_tools}
    at = int(params.get("cursor", "0"))
    next_at = 3 if "same-page" in WAYS else at + 3
    return {"tools": all_tools[at:at + 3], **({"nextCursor": str(next_at)} if next_at < len(all_tools) else {})}


def answer(message):
    method, params = message["method"], message.get("params", {})
    capabilities = {"tools": {}, **({"resources": {}} if WAYS & {"resources", "resource-clash"} else {})}
    if method == "server/discover" and STATELESS:
        return {"supportedVersions": ["2026-07-28"], "capabilities": capabilities,
                "_meta": {"io.modelcontextprotocol/serverInfo": {"name": "hostile", "version": "1"}}}
    if method == "initialize" and not STATELESS:
        version = "1999-01-01" if "bad-version" in WAYS else params["protocolVersion"]
        return {"protocolVersion": version, "capabilities": capabilities, "serverInfo": {"name": "hostile", "version": "1"}}
    if method == "tools/list":
        return page(params)
    if method == "tools/call":
        return call(message)
    if method == "ping":
        return {}
    if method == "resources/list":
        return {"resources": [{"uri": "x://one", "name": "One", "mimeType": "text/plain"}]}
    if method == "resources/read":
        if params["uri"] == "x://one":
            return {"contents": [{"uri": "x://one", "text": "the first"}]}
        return None
    if "dies-at-unknown" in WAYS:
        os._exit(1)
    if "silent-at-unknown" in WAYS:
        return ()
    return None


def main():
    global raw_line
    if "crashes" in WAYS:
        print("no config file", file=sys.stderr, flush=True)
        os._exit(2)
    if "hangs" in WAYS:
        time.sleep(3600)
    if "banner" in WAYS:
        write("Welcome to this server!")
    if "noise" in WAYS:
        while True:
            write("not json, line after line")
    if "huge-line" in WAYS:
        while True:
            os.write(1, b"x" * 1_000_000)
    for raw_line in sys.stdin:
        message = json.loads(raw_line)
        if "id" not in message or "method" not in message:
            continue
        result = answer(message)
        if result is None:
            send(id=message["id"], error={"code": -32601 if message["method"] != "tools/call" else -32000, "message": "no such thing"})
        elif result != ():
            send(id=message["id"], result={**result, **({"resultType": "complete"} if STATELESS else {})})
    while "ignores-eof" in WAYS:
        time.sleep(3600)


main()
