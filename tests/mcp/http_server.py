#!/usr/bin/env python3
"""A small MCP server over HTTP on loopback for tests: http_server.py [WAY...] prints its port, ends when its standard input closes.

Ways: stateless (revision 2026-07-28; else 2025-11-25 with session ids), stream (answers as events), redirect, unauthorized, broken (HTTP 500),
html, count=FILE, events (a GET is a stream that pings, ends after each answer and counts how it is asked for). Tools: echo, count (appends a line to FILE), headers (what it was sent), huge, hang (a stream that stays open), closed (whether a client closed that), forget (all
sessions), change (the tools: there is "new" instead of "cut"), clash (two more tools, of one name for the model), cut (a stream that ends without an answer), pings (waits for some answered pings and tells how the stream was asked for)."""
import http.server
import json
import sys
import threading
import time

from replying_handler import ReplyingHandler

WAYS = set(sys.argv[1:])
STATELESS = "stateless" in WAYS
COUNT = next((way.removeprefix("count=") for way in WAYS if way.startswith("count=")), None)
sessions = set()
closed = threading.Event()
cancelled = threading.Event()
started = threading.Event()
streams = []  # Last-Event-ID of each GET
pongs = []
heard = threading.Condition()
tools = ["echo", "count", "headers", "huge", "hang", "closed", "forget", "cut", "pings", "change", "clash"]


class Handler(ReplyingHandler):
    def begin_stream(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True

    def do_GET(self):
        if "events" not in WAYS or self.headers.get("mcp-session-id") not in sessions:
            return self.reply(405, "", "text/plain")
        with heard:
            streams.append(self.headers.get("last-event-id", ""))
            number = len(streams)
        self.begin_stream()
        ping = json.dumps({"jsonrpc": "2.0", "id": f"ping-{number}", "method": "ping"})
        self.wfile.write(f"id: event-{number}\nretry: 10\ndata: {ping}\n\n".encode())
        with heard:
            heard.wait_for(lambda: f"ping-{number}" in pongs, 20)

    def do_DELETE(self):
        sessions.discard(self.headers.get("mcp-session-id"))
        self.reply(200, "")

    def do_POST(self):
        message = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if "redirect" in WAYS:
            return self.reply(307, "", headers=[("Location", "http://127.0.0.1:1/elsewhere")])
        if "unauthorized" in WAYS and self.headers.get("authorization") != "Bearer s3cret":
            return self.reply(401, "who are you?", "text/plain")
        if "broken" in WAYS:
            return self.reply(500, "oh no", "text/plain")
        if "html" in WAYS:
            return self.reply(200, "<html>hello</html>", "text/html")
        if "method" not in message and str(message.get("id", "")).startswith("ping-"):
            with heard:
                pongs.append(message["id"])
                heard.notify_all()
        if message.get("method") == "notifications/cancelled":
            cancelled.set()
        if "id" not in message or "method" not in message:
            return self.reply(202, "")
        headers = []
        if message["method"] == "initialize" and not STATELESS:
            session = f"session-{len(sessions)}-{time.monotonic_ns()}"
            sessions.add(session)
            headers = [("Mcp-Session-Id", session)]
        elif not STATELESS and message["method"] != "server/discover" and self.headers.get("mcp-session-id") not in sessions:
            return self.reply(404, "no such session", "text/plain")
        self.answer(message, headers)

    def answer(self, message, headers):
        method, params = message["method"], message.get("params", {})
        capabilities = {"tools": {}}
        result = None
        if method == "server/discover" and STATELESS:
            result = {"supportedVersions": ["2026-07-28"], "capabilities": capabilities}
        elif method == "initialize" and not STATELESS:
            result = {"protocolVersion": params["protocolVersion"], "capabilities": capabilities, "serverInfo": {"name": "http", "version": "1"}}
        elif method == "ping":
            result = {}
        elif method == "tools/list":
            result = {"tools": [{"name": name, "inputSchema": {"type": "object", "properties": {"text": {"type": "string", "x-mcp-header": "Text"}}}}
                                for name in tools]}
        elif method == "tools/call":
            if params["name"] not in tools:
                return self.reply(200, json.dumps({"jsonrpc": "2.0", "id": message["id"], "error": {"code": -32602, "message": "no such tool"}}))
            result = self.call(params["name"], params.get("arguments", {}))
            if result is None:
                return
        if result is None:
            code = 404 if STATELESS else 200
            return self.reply(code, json.dumps({"jsonrpc": "2.0", "id": message["id"], "error": {"code": -32601, "message": "no such method"}}))
        text = json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": {**result, **({"resultType": "complete"} if STATELESS else {})}})
        changes = method == "tools/call" and params["name"] in ("change", "clash")
        if not changes and ("stream" not in WAYS or headers):
            return self.reply(200, text, headers=headers)
        self.begin_stream()
        if changes:
            self.wfile.write(b'data: {"jsonrpc": "2.0", "method": "notifications/tools/list_changed"}\n\n')
        self.wfile.write(b": a comment\r\n\r\nevent: message\r\ndata: " + text.encode() + b"\r\n\r\n")

    def call(self, name, arguments):
        value = "done"
        if name == "echo":
            value = arguments.get("text", "")
        if name == "count":
            with open(COUNT, "a") as file:
                file.write(arguments["text"] + "\n")
            value = "counted"
        if name == "headers":
            value = json.dumps({key.lower(): value for key, value in self.headers.items()})
        if name == "huge":
            self.begin_stream()
            try:
                for _ in range(64):
                    self.wfile.write(b"data: " + b"x" * 1_000_000)
            except OSError:
                pass
            return None
        if name == "hang":
            self.begin_stream()
            started.set()
            try:
                while True:
                    self.wfile.write(b": still here\n\n")
                    time.sleep(0.02)
            except OSError:
                closed.set()
            return None
        if name == "closed":
            value = f"started {started.wait(20)} closed {closed.wait(20)} cancelled {cancelled.is_set()}"
        if name == "change":
            tools[tools.index("cut")] = "new"
        if name == "clash":
            tools.extend(["a.b", "a:b"])
        if name == "pings":
            with heard:
                heard.wait_for(lambda: len(pongs) >= 6, 20)
                value = json.dumps({"streams": streams, "pongs": pongs})
        if name == "forget":
            sessions.clear()
        if name == "cut":
            self.begin_stream()
            self.wfile.write(b": bye\n\n")
            return None
        return {"content": [{"type": "text", "text": value}]}


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
server.daemon_threads = True
threading.Thread(target=server.serve_forever, daemon=True).start()
print(server.server_address[1], flush=True)
sys.stdin.read()
