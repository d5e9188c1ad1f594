#!/usr/bin/env python3
"""An MCP server over HTTP that wants OAuth tokens, and its authorization server, on two ports of loopback for tests: oauth_server.py [WAY...]
prints both ports, ends when its standard input closes. GET /log at either port lists all that was asked of both.

Ways, most of them hostile: legacy (no metadata of any kind), wrong-issuer, wrong-resource, no-s256, no-registration, private-metadata,
plain-metadata, script-endpoint (a token endpoint that is no https), redirect-metadata, redirect-token, huge, hang, page (200 and HTML where nothing
is), iss-wrong, iss-missing, state-wrong, echo-secrets (errors repeat what was sent), refuse-refresh, bad-token, mac-token, other-server (names
an authorization server elsewhere), step-up (calls want the scope write), greedy (calls want another scope each time), lifetime=S."""
import base64
import hashlib
import http.server
import json
import secrets
import sys
import threading
import time
import urllib.parse

from replying_handler import ReplyingHandler

WAYS = set(sys.argv[1:])
LIFETIME = next((int(way.removeprefix("lifetime=")) for way in WAYS if way.startswith("lifetime=")), 3600)
lock = threading.Lock()
log = []
codes = {}  # code -> (challenge, redirect_uri, scope, client_id)
tokens = {}  # access token -> (scopes, end)
refresh_tokens = {}  # -> scope
clients = {"known": "s3cret-of-known"}  # id -> secret


class Handler(ReplyingHandler):
    def handle_one(self, body):
        url = urllib.parse.urlsplit(self.path)
        fields = dict(urllib.parse.parse_qsl(url.query))
        content = self.headers.get("content-type", "")
        if content.startswith("application/x-www-form-urlencoded"):
            fields = dict(urllib.parse.parse_qsl(body.decode()))
        elif body:
            fields = json.loads(body)
        if url.path == "/log":
            return self.reply(200, log)
        with lock:
            log.append({"at": self.server.role, "path": url.path, "fields": fields, "authorization": self.headers.get("authorization", "")})
        self.answer(url.path, fields)

    def do_GET(self):
        self.handle_one(b"")

    def do_POST(self):
        self.handle_one(self.rfile.read(int(self.headers["content-length"])))

    def nothing(self):
        if "page" in WAYS:
            return self.reply(200, "<html>hello</html>", "text/html")
        return self.reply(404, "", "text/plain")


class McpHandler(Handler):
    def answer(self, path, fields):
        own = f"http://127.0.0.1:{mcp.server_address[1]}"
        if path == "/mcp":
            return self.message(fields, own)
        if "legacy" in WAYS and path in ("/authorize", "/token", "/register"):
            return AuthHandler.answer(self, path, fields)
        if path != "/.well-known/oauth-protected-resource/mcp" or "legacy" in WAYS:
            return self.nothing()
        if "huge" in WAYS:
            return self.reply(200, b'{"resource": "' + b"x" * 3_000_000 + b'"}')
        if "hang" in WAYS:
            time.sleep(60)
        if "redirect-metadata" in WAYS:
            return self.reply(302, "", headers=[("Location", f"{auth_origin()}/elsewhere")])
        issuer = "https://elsewhere.example" if "other-server" in WAYS else auth_origin()
        resource = "https://elsewhere.example/mcp" if "wrong-resource" in WAYS else own + "/mcp"
        self.reply(200, {"resource": resource, "authorization_servers": [issuer], "scopes_supported": ["read"]})

    def message(self, message, own):
        place = f"{own}/.well-known/oauth-protected-resource/mcp"
        if "private-metadata" in WAYS:
            place = "https://10.1.2.3/metadata"
        if "plain-metadata" in WAYS:
            place = "http://169.254.169.254/latest"
        metadata = "" if WAYS & {"legacy", "page", "hang", "huge"} else f', resource_metadata="{place}"'
        scopes, end = tokens.get(self.headers.get("authorization", "").removeprefix("Bearer "), ([], 0))
        if time.time() >= end:
            return self.reply(401, f"you sent {self.headers.get('authorization')}", "text/plain", [("WWW-Authenticate", f'Bearer realm="x, y"{metadata}')])
        calls = message.get("method") == "tools/call"
        wanted = f"write{len(log)}" if "greedy" in WAYS else "write"
        if calls and WAYS & {"step-up", "greedy"} and wanted not in scopes:
            challenge = f'Basic realm="b", Bearer error="insufficient_scope", scope="{wanted}"{metadata}'
            return self.reply(403, "more", "text/plain", [("WWW-Authenticate", challenge)])
        if "id" not in message:
            return self.reply(202, "")
        results = {"server/discover": {"supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}},
                   "tools/list": {"tools": [{"name": "echo", "inputSchema": {"type": "object", "properties": {"text": {"type": "string"}}}}]},
                   "tools/call": {"content": [{"type": "text", "text": message.get("params", {}).get("arguments", {}).get("text", "")}]}}
        self.reply(200, {"jsonrpc": "2.0", "id": message["id"], "result": {**results[message["method"]], "resultType": "complete"}})


class AuthHandler(Handler):
    def answer(self, path, fields):
        handler = {"/.well-known/oauth-authorization-server": AuthHandler.metadata, "/authorize": AuthHandler.authorize, "/token": AuthHandler.token,
                   "/register": AuthHandler.register}.get(path)
        return handler(self, fields) if handler else self.nothing()

    def metadata(self, _):
        origin = auth_origin()
        document = {"issuer": "https://evil.example" if "wrong-issuer" in WAYS else origin, "authorization_endpoint": f"{origin}/authorize",
                    "token_endpoint": "ftp://127.0.0.1/token" if "script-endpoint" in WAYS else f"{origin}/token",
                    "token_endpoint_auth_methods_supported": ["none", "client_secret_basic"], "scopes_supported": ["read", "write", "offline_access"],
                    "authorization_response_iss_parameter_supported": True}
        if "no-registration" not in WAYS:
            document["registration_endpoint"] = f"{origin}/register"
        if "no-s256" not in WAYS:
            document["code_challenge_methods_supported"] = ["plain", "S256"]
        self.reply(200, document)

    def register(self, fields):
        client = "client-" + secrets.token_hex(8)
        clients[client] = ""
        self.reply(201, {**fields, "client_id": client})

    def authorize(self, fields):
        code = "code-" + secrets.token_hex(8)
        codes[code] = (fields["code_challenge"], fields["redirect_uri"], fields.get("scope", ""), fields["client_id"])
        answer = {"code": code, "state": "another" if "state-wrong" in WAYS else fields["state"]}
        if "iss-missing" not in WAYS and "legacy" not in WAYS:
            answer["iss"] = "https://evil.example" if "iss-wrong" in WAYS else auth_origin()
        self.reply(302, "", headers=[("Location", fields["redirect_uri"] + "?" + urllib.parse.urlencode(answer))])

    def refuse(self, error, fields):
        text = "no: " + " ".join(fields.values()) if "echo-secrets" in WAYS else "no"
        self.reply(400, {"error": error, "error_description": text})

    def client_of(self, fields):
        basic = self.headers.get("authorization", "")
        if not basic.startswith("Basic "):
            return fields.get("client_id") if clients.get(fields.get("client_id")) == "" else None
        name, _, secret = base64.b64decode(basic.removeprefix("Basic ")).decode().partition(":")
        return name if clients.get(name) == secret else None

    def token(self, fields):
        if "redirect-token" in WAYS:
            return self.reply(307, "", headers=[("Location", f"http://127.0.0.1:{mcp.server_address[1]}/elsewhere")])
        client = AuthHandler.client_of(self, fields)
        if client is None:
            return AuthHandler.refuse(self, "invalid_client", fields)
        grant = fields["grant_type"]
        scope = fields.get("scope", "")
        if grant == "authorization_code":
            with lock:
                challenge, redirect_uri, scope, owner = codes.pop(fields["code"], (None, None, None, None))
            verified = base64.urlsafe_b64encode(hashlib.sha256(fields["code_verifier"].encode()).digest()).decode().rstrip("=")
            if challenge != verified or redirect_uri != fields["redirect_uri"] or owner != client or "echo-secrets" in WAYS:
                return AuthHandler.refuse(self, "invalid_grant", fields)
        elif grant == "refresh_token":
            with lock:
                scope = refresh_tokens.pop(fields["refresh_token"], None)  # each is good once
            if scope is None or "refuse-refresh" in WAYS:
                return AuthHandler.refuse(self, "invalid_grant", fields)
        token, refresh = "token-" + secrets.token_hex(8), "refresh-" + secrets.token_hex(8)
        tokens[token] = (scope.split(), time.time() + LIFETIME)
        refresh_tokens[refresh] = scope
        answer = {"access_token": token, "token_type": "Bearer", "expires_in": LIFETIME, "scope": scope}
        if grant != "client_credentials":
            answer["refresh_token"] = refresh
        if "bad-token" in WAYS:
            answer["access_token"] = "a\r\nX-Evil: 1"
        if "mac-token" in WAYS:
            answer["token_type"] = "mac"
        self.reply(200, answer)


def auth_origin():
    return f"http://127.0.0.1:{(mcp if 'legacy' in WAYS else auth).server_address[1]}"


def start(role, handler):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.role = role
    return server


mcp = start("mcp", McpHandler)
auth = start("auth", AuthHandler)
for one in (mcp, auth):
    threading.Thread(target=one.serve_forever, daemon=True).start()
print(mcp.server_address[1], auth.server_address[1], flush=True)
sys.stdin.read()
