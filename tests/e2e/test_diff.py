"""A session's edits against a real daemon: agentctl diff, apply, run --in-place."""
import pathlib
import shutil
import subprocess
import unittest

from harness import WithDaemon, folder, tree

CONFIG = "width = 48\nheight = 217\ndepth = 7\n"
TASK = "Read shop.cfg and multiply width by height and write the result to area.txt."


class Diff(WithDaemon):
    def ctl(self, *arguments, code=0, **more):
        done = super().ctl(*arguments, **more)
        self.assertEqual(done.code, code, done)
        return done

    def run_task(self, *arguments, task=TASK):
        """A session that wrote area.txt."""
        done = self.ctl("run", "--json", *arguments, task)
        self.assertIn("10416", done.of_type("turn_finished")[-1]["answer"], done)
        return done.events[0]

    def project(self):
        return folder({"shop.cfg": CONFIG, "src/a.txt": "x\n"})

    def test_the_patch_makes_the_folder_what_the_workspace_is(self):
        place = self.project()
        session = self.run_task("--workspace", place)
        self.assertEqual(session["import_directory"], str(place.resolve()))
        patch = self.ctl("diff", session["id"]).out
        self.assertTrue(patch.startswith("diff --git a/area.txt b/area.txt\nnew file mode 100644\n--- /dev/null\n+++ b/area.txt\n@@ -0,0 +1 @@\n+10416\n"), patch)
        self.assertIn(" area.txt | 1 +\n 1 file changed, 1 insertion(+)\n", self.ctl("diff", "--stat", session["id"]).out)
        self.assertEqual(self.ctl("diff", "--name-only", session["id"]).out, "area.txt\n")
        self.assertEqual(self.ctl("diff", session["id"], "src", "shop.cfg").out, "")
        begin, change = self.ctl("diff", "--json", session["id"]).events
        self.assertEqual((begin["type"], begin["from_seq"]), ("diff", 1))
        self.assertEqual((change["type"], change["path"], change["added_lines"], change["shown"]), ("change", "area.txt", 1, "text"))
        self.assertNotIn("before", change)
        subprocess.run(["git", "apply"], input=patch.encode(), cwd=place, check=True)
        self.assertEqual(tree(place), self.daemon.workspace(session["id"]))
        # Of the part of the log before the call there is nothing; backwards it goes away.
        self.assertEqual(self.ctl("diff", "--to", "1", session["id"]).out, "")
        last = self.daemon.session(session["id"])["last_seq"]
        self.assertIn("deleted file mode", self.ctl("diff", "--from", str(last), "--to", "1", session["id"]).out)
        self.assertIn(f"has no event {last + 1}", self.ctl("diff", "--to", str(last + 1), session["id"], code=1).err)
        self.assertIn("leads out of the workspace", self.ctl("diff", session["id"], "../x", code=1).err)

    def test_what_git_would_run_is_not_run(self):
        """Hooks and the programs of .git/config: in a folder that is copied, in one worked in, and in a workspace."""
        for in_place in (False, True):
            place = self.project()
            canary = folder({}) / "canary"
            trap = f"#!/bin/sh\ntouch {canary}\n"

            def set_trap(root):
                if not (root / ".git").exists():
                    subprocess.run(["git", "init", "-q", root], check=True)
                (root / ".git/hooks").mkdir(exist_ok=True)
                for hook in ("post-checkout", "pre-commit", "post-index-change", "fsmonitor"):
                    (root / ".git/hooks" / hook).write_text(trap)
                    (root / ".git/hooks" / hook).chmod(0o755)
                with open(root / ".git/config", "a") as file:
                    file.write(f'[core]\n\tfsmonitor = "touch {canary}; false"\n\tpager = "touch {canary}"\n[diff]\n\texternal = "touch {canary}"\n')

            set_trap(place)
            session = self.run_task("--in-place" if in_place else "--workspace", place)["id"]
            workspace = pathlib.Path(self.daemon.session(session)["workspace"])
            if not in_place:  # and as a call would change it
                set_trap(workspace)
            self.run_task("--session", session)
            fork = self.ctl("fork", session).out.split()[0]
            self.ctl("diff", session)
            self.ctl("diff", "--stat", session, ".", ".git")
            if not in_place:
                self.ctl("apply", "--dry-run", session, ".", ".git")
                self.ctl("apply", "--force", session, ".", ".git")
            self.ctl("export", session, canary.with_name("bundle"))
            self.ctl("rewind", "--to", "1", *(["--discard-changes"] if in_place else []), session)
            self.ctl("show", session)
            for each in (fork, session):
                self.ctl("delete", each)
            self.assertFalse(canary.exists())
            # The control.
            subprocess.run(["git", "status"], cwd=place, capture_output=True)
            self.assertTrue(canary.exists())

    def test_apply_carries_the_edits_over_once(self):
        place = self.project()
        session = self.run_task("--workspace", place)["id"]
        before = tree(place)
        dry = self.ctl("apply", "--dry-run", session)
        self.assertEqual(dry.out, "new      area.txt\n")
        self.assertEqual(tree(place), before)
        done = self.ctl("apply", session)
        self.assertEqual(done.out, "new      area.txt\n")
        self.assertIn("1 carried over, 0 there already, 0 conflicts", done.err)
        self.assertEqual(tree(place), self.daemon.workspace(session))
        again = self.ctl("apply", "--json", session)
        self.assertEqual([e["type"] for e in again.events], ["summary"])
        self.assertEqual((again.events[0]["applied"], again.events[0]["done_before"]), (0, 1))
        # Into another folder, and not everything.
        other = folder({})
        self.assertIn("0 carried over", self.ctl("apply", "--to", other, session, "src").err)
        self.ctl("apply", "--to", other, session)
        self.assertEqual(tree(other), {"area.txt": b"10416"} if b"\n" not in (place / "area.txt").read_bytes() else {"area.txt": b"10416\n"})
        # What it was made with may be gone by now.
        shutil.rmtree(place)
        self.assertIn("No such file", self.ctl("apply", session, code=1).err)

    def test_a_conflict_stops_everything(self):
        place = self.project()
        session = self.run_task("--workspace", place)["id"]
        (place / "area.txt").write_text("mine\n")
        before = tree(place)
        refused = self.ctl("apply", session, code=7)
        self.assertEqual(refused.out, "conflict area.txt: is in the folder already, and another one\n")
        self.assertIn("1 conflict in", refused.err)
        self.assertEqual(tree(place), before)
        skipped = self.ctl("apply", "--skip-conflicts", session, code=7)
        self.assertIn("0 carried over, 0 there already, 1 conflict", skipped.err)
        self.assertEqual(tree(place), before)
        self.ctl("apply", "--force", session)
        self.assertEqual(tree(place), self.daemon.workspace(session))

    def test_without_a_folder_it_has_to_be_named(self):
        session = self.ctl("run", "--json", "What is 17 + 25?").events[0]["id"]
        self.assertIn("--to DIR", self.ctl("apply", session, code=1).err)

    def test_in_place(self):
        place = self.project()
        session = self.run_task("--in-place", place)
        self.assertTrue(session["in_place"])
        self.assertEqual(session["workspace"], str(place.resolve()))
        self.assertIn("10416", (place / "area.txt").read_text())
        self.assertIn("+10416", self.ctl("diff", session["id"]).out)
        self.assertIn("changes are there already", self.ctl("apply", session["id"], code=1).err)
        # A second one is kept out, and the daemon's own folders and the home directory are.
        self.assertIn(session["id"], self.ctl("run", "--in-place", place / "src", "Hello", code=1).err)
        self.assertIn("--in-place: ", self.ctl("run", "--in-place", self.daemon.directory, "Hello", code=1).err)
        self.assertIn("--in-place: ", self.ctl("run", "--in-place", pathlib.Path.home(), "Hello", code=1).err)
        self.assertIn("--in-place", self.ctl("run", "--in-place", place, "--workspace", place, "Hello", code=2).err)
        # What people do meanwhile is seen, outlives a crash, and is not undone unasked.
        last = self.daemon.session(session["id"])["last_seq"]
        (place / "mine.txt").write_text("mine\n")
        self.daemon.kill()
        self.daemon.start()
        self.assertIn("mine.txt", self.ctl("rewind", session["id"], "--to", "1", code=1).err)
        self.assertEqual((place / "mine.txt").read_text(), "mine\n")
        self.ctl("run", "--session", session["id"], "What is 17 + 25?")
        events = self.daemon.events(session["id"])
        self.assertEqual([e["type"] for e in events[last:last + 3]], ["note", "workspace", "turn_started"])
        self.assertIn("(1 path: mine.txt)", events[last]["text"])
        fork = self.ctl("fork", session["id"]).out.strip()
        self.ctl("rewind", session["id"], "--to", "1")
        self.assertEqual(tree(place), tree(self.project()))
        self.assertEqual(self.daemon.workspace(fork)["mine.txt"], b"mine\n")
        # A fork works in a copy; its edits come back the other way.
        self.assertFalse(self.daemon.session(fork)["in_place"])
        self.assertIn("in use", self.ctl("apply", fork, code=1).err)
        self.ctl("delete", session["id"])
        self.assertEqual(tree(place), tree(self.project()))
        self.ctl("apply", fork)
        self.assertEqual(tree(place), self.daemon.workspace(fork))

    def test_in_place_folder_that_is_gone(self):
        place = self.project()
        session = self.run_task("--in-place", place)["id"]
        moved = place.with_name(place.name + ".moved")
        place.rename(moved)
        try:
            said = self.ctl("run", "--session", session, "What is 17 + 25?", code=1).err
            self.assertIn(str(place), said)
            self.assertIn("put the folder back", said)
            self.assertFalse(place.exists())
        finally:
            moved.rename(place)
        self.ctl("run", "--session", session, "What is 17 + 25?")


if __name__ == "__main__":
    unittest.main(verbosity=2)
