// agentctl: the command line of agentd.
#include <CLI/CLI.hpp>
#include <charconv>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <limits>
#include <string>
#include <system_error>
#include <vector>

#include "agentd/ctl/client.h"
#include "agentd/ctl/commands.h"
#include "agentd/ctl/exit_code.h"
#include "agentd/ctl/text.h"
#include "base/usage_message.h"

namespace agentd::ctl {
namespace {

constexpr char kExitCodes[] =
    "Exit codes:\n"
    "  0  the turn ended with an answer (other commands: done)\n"
    "  1  error: the daemon refused, or the turn ended with an error\n"
    "  2  wrong usage; nothing was sent\n"
    "  3  the turn met its token or call limit, or the context is full\n"
    "  4  the turn was cancelled\n"
    "  5  no daemon answers, or it went away\n"
    "  6  doctor: something is damaged\n"
    "  7  apply: what is in the folder is in the way of some changes\n";

constexpr char kRunFooter[] =
    "Without text, goes on with a turn of --session that was interrupted.\n"
    "The answer goes to standard output, everything else to standard error. Ctrl-C asks the "
    "daemon\n"
    "to cancel; a second one leaves, and the turn goes on (see it with watch).\n\n"
    "--json prints one object a line. The first has \"type\":\"session\" with id, workspace, "
    "state,\n"
    "config, seed, last_seq, tokens, created_us, updated_us, forked_from, forked_at_seq, "
    "timeline, import_directory, in_place.\n"
    "Then events, each with type, seq, time_us, position, session_id, timeline, and by type:\n"
    "  user_message   text\n"
    "  turn_started   turn\n"
    "  tokens         sampled, ids, text, content (answer part), reasoning\n"
    "  tool_started   call_id, name, arguments_json, attempt, missing_walls\n"
    "  tool_finished  call_id, name, outcome (ok error refused cancelled unknown), text, "
    "exit_code,\n"
    "                 output_bytes, wall_time_us, network (each host, port, address, allowed, "
    "reason,\n"
    "                 bytes_up, bytes_down)\n"
    "  workspace      tree\n"
    "  turn_finished  end (answer token_limit call_limit context_full cancelled error), answer,\n"
    "                 error, prompt_tokens, sampled_tokens, tool_calls, repaired_calls, "
    "duration_ms,\n"
    "                 refused_calls\n"
    "  resumed        restored, replayed, prefilled_again, duration_us, after_crash\n"
    "  rewound        from_timeline, to_seq, to_position\n"
    "  seed_changed   seed\n"
    "  note           text\n"
    "  model_adopted  from_model, from_fingerprint, to_model, to_fingerprint\n"
    "  approval_asked call_id, name, arguments_json, rule, reason\n"
    "  approval_answered  call_id, decision (allow_once allow_session deny), reason, rule\n"
    "  output_kept    call_id, text (a piece of an output that is cut in its result)\n"
    "  progress       what, done, total (not stored: seq 0)\n"
    "  tool_output    call_id, chunk (not stored: seq 0)\n"
    "If the command fails, the last has \"type\":\"error\" with code, message, exit_code. Later\n"
    "versions may add types and fields; none is taken away or given another meaning.\n\n";

// CLI11 takes "-1" for a very large number where none below zero exists, and the largest that there
// is for all that are larger.
template <typename Number>
CLI::Validator Whole(Number least) {
  const auto check = [least](std::string& text) -> std::string {
    if (text.starts_with('-')) return text + " is below zero";
    Number number = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (error == std::errc::result_out_of_range)
      return text + " is too large: at most " + std::to_string(std::numeric_limits<Number>::max());
    if (error != std::errc() || end != text.data() + text.size())
      return "\"" + text + "\" is no whole number";
    return number < least ? text + " is not above zero" : std::string();
  };
  return CLI::Validator(check, "", "");
}
template <typename Number>
CLI::Validator NotNegative() {
  return Whole<Number>(0);
}
template <typename Number>
CLI::Validator AboveZero() {
  return Whole<Number>(1);
}

// In a script that is a variable without a value: another session or folder would be meant.
CLI::Validator NotEmpty() {
  return CLI::Validator(
      [](std::string& text) { return text.empty() ? "it is empty" : std::string(); }, "", "");
}

void AddSessionOptions(CLI::App* app, SessionOptions* o) {
  const std::string group = "A new session's settings";
  auto* workspace =
      app->add_option("--workspace", o->workspace, "Folder to copy into the session's workspace")
          ->type_name("DIR")
          ->check(NotEmpty())
          ->group(group);
  app->add_option("--in-place", o->in_place, "Folder to work in itself, not in a copy")
      ->type_name("DIR")
      ->check(NotEmpty())
      ->group(group)
      ->excludes(workspace);
  app->add_option("--title", o->title, "What lists call it (default: the first line said)")
      ->group(group);
  app->add_option("--system", o->system, "System text (default: the model's own)")->group(group);
  app->add_option("--tool", o->tools,
                  "A tool it may call; repeat for more (default: those\n"
                  "offered by default)")
      ->type_size(1)
      ->allow_extra_args(false)
      ->group(group);
  app->add_flag("--no-tools", o->no_tools, "No tools at all")->group(group);
  app->add_option("--thinking", o->thinking, "Reason before answering (default: the model's own)")
      ->check(CLI::IsMember({"off", "on", "max"}))
      ->group(group);
  app->add_option("--temperature", o->temperature, "0 = always the likeliest token")->group(group);
  app->add_option("--top-p", o->top_p, "Only tokens within this share of probability")
      ->group(group);
  app->add_option("--min-p", o->min_p, "Only tokens at least this likely, relative to the best")
      ->group(group);
  app->add_option("--top-k", o->top_k, "Only the K likeliest tokens")->group(group);
  app->add_option("--seed", o->seed, "Of all sampling (default: drawn)")
      ->check(NotNegative<uint64_t>())
      ->group(group);
  app->add_option("--max-tokens", o->max_tokens, "Sampled tokens in a turn")
      ->check(AboveZero<int64_t>())
      ->group(group);
  app->add_option("--max-calls", o->max_calls, "Tool calls in a turn")
      ->check(AboveZero<int32_t>())
      ->group(group);
}

using Chosen = std::function<int()>;

void AddRun(CLI::App* app, const GlobalOptions& global, RunOptions* o, Chosen* chosen) {
  CLI::App* run = app->add_subcommand("run", "Give a task and see it done");
  run->add_option("text", o->text, "The task; - reads standard input");
  run->add_option("--file", o->file, "Read the task from a file")
      ->type_name("FILE")
      ->check(NotEmpty());
  run->add_flag("--new", o->make_new, "In a new session (the default)");
  run->add_option("--session", o->session_id, "In this session")
      ->type_name("ID")
      ->check(NotEmpty());
  run->add_flag("--adopt", o->adopt,
                "Go on with the daemon's model if another made the session: its tokens stay, their "
                "state is computed again");
  run->add_flag("--json", o->json, "One event a line, as JSON (see below)");
  run->add_flag("-q,--quiet", o->quiet, "The answer only");
  AddSessionOptions(run, &o->session);
  run->footer(std::string(kRunFooter) + kExitCodes);
  run->callback(
      [&global, o, chosen] { *chosen = [&global, o] { return RunCommand(global, *o); }; });
}

void AddChat(CLI::App* app, const GlobalOptions& global, RunOptions* o, Chosen* chosen) {
  CLI::App* chat = app->add_subcommand("chat", "Talk, line by line; reads a pipe as well");
  chat->add_flag("--new", o->make_new, "In a new session (the default)");
  chat->add_option("--session", o->session_id, "In this session")
      ->type_name("ID")
      ->check(NotEmpty());
  chat->add_flag("--adopt", o->adopt, "With the daemon's model if another made the session");
  chat->add_flag("-q,--quiet", o->quiet, "Answers only");
  AddSessionOptions(chat, &o->session);
  chat->footer("The exit code is the last turn's.");
  chat->callback(
      [&global, o, chosen] { *chosen = [&global, o] { return ChatCommand(global, *o); }; });
}

void AddSessions(CLI::App* app, const GlobalOptions& global, ListOptions* list, UsageOptions* usage,
                 Chosen* chosen) {
  CLI::App* sessions = app->add_subcommand("sessions", "List sessions, newest first");
  sessions->add_flag("--json", list->json, "One session a line, as JSON");
  sessions->add_option("--limit", list->limit, "At most N (default: all)")
      ->type_name("N")
      ->check(AboveZero<int64_t>());
  sessions->callback([&global, list, chosen, sessions] {
    if (sessions->get_subcommands().empty())
      *chosen = [&global, list] { return SessionsCommand(global, *list); };
  });

  CLI::App* du = sessions->add_subcommand("du", "What takes how much space in the store");
  du->add_flag("--reclaim", usage->reclaim,
               "First take every byte of what was deleted off the disk, and keep the budget");
  du->add_flag("--json", usage->json, "As one JSON object");
  du->callback([&global, usage, chosen] {
    *chosen = [&global, usage] { return UsageCommand(global, *usage); };
  });
}

void AddViews(CLI::App* app, const GlobalOptions& global, ShowOptions* show, WatchOptions* watch,
              Chosen* chosen) {
  CLI::App* view = app->add_subcommand("show", "Print a session's transcript");
  view->add_option("id", show->session_id, "The session")->required();
  auto* json = view->add_flag("--json", show->json, "Its events as JSON (see run --help)");
  view->add_flag("--tokens", show->tokens, "A line for each token: given or sampled, and its id")
      ->excludes(json);
  view->callback([&global, show, chosen] {
    *chosen = [&global, show] { return ShowCommand(global, *show); };
  });

  CLI::App* follow = app->add_subcommand("watch", "Follow a session's events as they come");
  follow->add_option("id", watch->session_id, "The session")->required();
  follow->add_option("--from", watch->from_seq, "First event (default: 1)")
      ->type_name("SEQ")
      ->check(NotNegative<uint64_t>());
  follow->add_flag("--until-idle", watch->until_idle,
                   "End when no turn runs; the exit code is the last turn's that was seen, 1 if it "
                   "was interrupted");
  follow->add_flag("--json", watch->json, "One event a line, as JSON (see run --help)");
  follow->add_flag("-q,--quiet", watch->quiet, "Answers only");
  follow->callback([&global, watch, chosen] {
    *chosen = [&global, watch] { return WatchCommand(global, *watch); };
  });
}

void AddPointOptions(CLI::App* command, const std::string& seq_name, PointOptions* o) {
  command->add_option("id", o->session_id, "The session")->required();
  auto* seq = command->add_option(seq_name, o->seq, "Just after this event (show prints numbers)")
                  ->type_name("SEQ")
                  ->check(NotNegative<uint64_t>());
  command->add_option("--position", o->position, "After exactly N tokens")
      ->type_name("N")
      ->check(NotNegative<int64_t>())
      ->excludes(seq);
  auto* seed = command->add_option("--seed", o->seed, "Sample with this seed from there on")
                   ->check(NotNegative<uint64_t>());
  command->add_flag("--keep-seed", o->keep_seed, "Sample as before (default: a newly drawn seed)")
      ->excludes(seed);
  command->add_flag("--json", o->json, "Print the session as JSON");
}

void AddTimeTravel(CLI::App* app, const GlobalOptions& global, PointOptions* fork,
                   PointOptions* rewind, Chosen* chosen) {
  CLI::App* forking =
      app->add_subcommand("fork", "Make a session that shares another's past; prints its id");
  AddPointOptions(forking, "--at", fork);
  forking->add_option("--title", fork->title, "What lists call it");
  forking->callback([&global, fork, chosen] {
    *chosen = [&global, fork] { return ForkCommand(global, *fork); };
  });

  CLI::App* rewinding =
      app->add_subcommand("rewind", "Take a session and its files back to a point");
  AddPointOptions(rewinding, "--to", rewind);
  rewinding->add_flag("--discard-changes", rewind->discard_changes,
                      "In place: and undo what others changed in the folder meanwhile");
  rewinding->callback([&global, rewind, chosen] {
    *chosen = [&global, rewind] { return RewindCommand(global, *rewind); };
  });
}

void AddDiff(CLI::App* app, const GlobalOptions& global, DiffOptions* o, Chosen* chosen) {
  CLI::App* diff = app->add_subcommand("diff", "What a session changed in its files");
  diff->add_option("id", o->session_id, "The session")->required();
  diff->add_option("paths", o->paths, "These files and folders of the workspace (default: all)")
      ->type_name("PATH");
  diff->add_option("--from", o->from_seq,
                   "Since this event (default: since the session was made; show prints numbers)")
      ->type_name("SEQ")
      ->check(NotNegative<uint64_t>());
  diff->add_option("--to", o->to_seq, "Up to this event (default: the last)")
      ->type_name("SEQ")
      ->check(NotNegative<uint64_t>());
  auto* stat = diff->add_flag("--stat", o->stat, "How much changed in which file");
  auto* names = diff->add_flag("--name-only", o->name_only, "The names alone")->excludes(stat);
  diff->add_flag("--json", o->json, "One change a line, as JSON")->excludes(stat)->excludes(names);
  diff->add_flag("--binary", o->binary,
                 "Binary files whole, as git apply takes them (default: named with their sizes)");
  diff->footer(
      "Prints what git apply and patch -p1 take. Empty folders are named, a patch cannot hold "
      "them.\nBinary files without --binary, and files over 8 MiB, are named with their sizes, and "
      "git apply\nrefuses such a patch. patch itself changes no links and puts no folder in a "
      "file's "
      "place.\nagentctl apply carries everything over. What lies in .git is left out unless a PATH "
      "names it.\n\n"
      "--json: the first line has \"type\":\"diff\", from_seq, to_seq, timeline, left_out (paths "
      "of "
      ".git);\nthen each has \"type\":\"change\", path, before and after (missing: not there; "
      "type, mode, size_bytes, "
      "content_sha256, target),\nrenamed_from, shown (text, binary, too_large; unspecified: no "
      "text), added_lines, removed_lines.");
  diff->callback(
      [&global, o, chosen] { *chosen = [&global, o] { return DiffCommand(global, *o); }; });
}

void AddApply(CLI::App* app, const GlobalOptions& global, ApplyOptions* o, Chosen* chosen) {
  CLI::App* apply =
      app->add_subcommand("apply", "Carry what a session changed into the folder it came from");
  apply->add_option("id", o->session_id, "The session")->required();
  apply->add_option("paths", o->paths, "These files and folders of the workspace (default: all)")
      ->type_name("PATH");
  apply->add_option("--to", o->to, "Into this folder instead")->type_name("DIR")->check(NotEmpty());
  apply->add_option("--at", o->at_seq, "As it was after this event (default: as it is now)")
      ->type_name("SEQ")
      ->check(NotNegative<uint64_t>());
  apply->add_flag("--dry-run", o->dry_run, "Say what would be done, and write nothing");
  auto* force = apply->add_flag("--force", o->force, "Write over what was changed in the folder");
  apply->add_flag("--skip-conflicts", o->skip_conflicts, "Leave that as it is, carry over the rest")
      ->excludes(force);
  apply->add_flag("--json", o->json, "One line for each change, as JSON, then a summary");
  apply->footer(
      "A file is carried over if the folder has it as the session found it, or as the session had "
      "it\nsince. Any other is a conflict: all are listed, and nothing is written. A command that "
      "was cut off\ngoes on when it is given again.\n\n"
      "--json: lines have \"type\" (applied, would_apply, conflict), path, action (new, change, "
      "mode,\ndelete), remark. The last has \"type\":\"summary\", folder, applied, to_apply, "
      "done_before, conflicts, exit_code.");
  apply->callback(
      [&global, o, chosen] { *chosen = [&global, o] { return ApplyCommand(global, *o); }; });
}

void AddApprovals(CLI::App* app, const GlobalOptions& global, ApprovalOptions* o, Chosen* chosen) {
  CLI::App* approve = app->add_subcommand("approve", "Let a call run that waits for consent");
  approve->add_option("id", o->session_id, "The session")->required();
  approve->add_option("--call", o->call_id, "Which call, if several wait (show prints them)")
      ->type_name("CALL");
  approve->add_flag("--session", o->for_session,
                    "And for the rest of the session all that the same rule asks about");
  approve->callback(
      [&global, o, chosen] { *chosen = [&global, o] { return ApproveCommand(global, *o); }; });

  CLI::App* deny = app->add_subcommand("deny", "Refuse a call that waits for consent");
  deny->add_option("id", o->session_id, "The session")->required();
  deny->add_option("--call", o->call_id, "Which call, if several wait (show prints them)")
      ->type_name("CALL");
  deny->add_option("--reason", o->reason, "Why; the model reads it")->type_name("TEXT");
  deny->callback(
      [&global, o, chosen] { *chosen = [&global, o] { return DenyCommand(global, *o); }; });
}

void AddRest(CLI::App* app, const GlobalOptions& global, std::string* id, bool* json,
             Chosen* chosen) {
  CLI::App* cancel = app->add_subcommand("cancel", "End a session's running turn");
  cancel->add_option("id", *id, "The session")->required();
  cancel->callback(
      [&global, id, chosen] { *chosen = [&global, id] { return CancelCommand(global, *id); }; });

  CLI::App* erase = app->add_subcommand("delete", "Erase a session");
  erase->add_option("id", *id, "The session")->required();
  erase->callback(
      [&global, id, chosen] { *chosen = [&global, id] { return DeleteCommand(global, *id); }; });

  CLI::App* info = app->add_subcommand("info", "The daemon, its model, its tools and their walls");
  info->add_flag("--json", *json, "As one JSON object");
  info->callback([&global, json, chosen] {
    *chosen = [&global, json] { return InfoCommand(global, *json); };
  });
}

void AddMcp(CLI::App* app, const GlobalOptions& global, McpOptions* o, Chosen* chosen) {
  CLI::App* mcp = app->add_subcommand("mcp", "Logins at MCP servers");
  mcp->require_subcommand(1);
  CLI::App* login = mcp->add_subcommand(
      "login",
      "Log in at a server of the configuration: prints an address for a browser, waits "
      "for its answer");
  login->add_option("name", o->server, "The server")->required();
  login
      ->add_option("--port", o->port,
                   "Of 127.0.0.1, where the browser is sent back to, for a client that was "
                   "registered with it (default: any)")
      ->type_name("PORT")
      ->check(NotNegative<uint16_t>());
  login->callback(
      [&global, o, chosen] { *chosen = [&global, o] { return McpLoginCommand(global, *o); }; });
  CLI::App* logout = mcp->add_subcommand("logout", "Forget the tokens for a server");
  logout->add_option("name", o->server, "The server")->required();
  logout->callback(
      [&global, o, chosen] { *chosen = [&global, o] { return McpLogoutCommand(global, *o); }; });
}

void AddKeeping(CLI::App* app, const GlobalOptions& global, ExportOptions* bundle,
                ImportOptions* import, BackupOptions* backup, Chosen* chosen) {
  CLI::App* exporting =
      app->add_subcommand("export", "Write a session to a file, for another store or machine");
  exporting->add_option("id", bundle->session_id, "The session")->required();
  exporting
      ->add_option("file", bundle->file, "A new file (- for standard output); it is not encrypted")
      ->required();
  exporting->add_flag("--no-kv", bundle->no_kv,
                      "Without the state of its tokens: smaller, but to be computed again");
  exporting->callback([&global, bundle, chosen] {
    *chosen = [&global, bundle] { return ExportCommand(global, *bundle); };
  });

  CLI::App* importing =
      app->add_subcommand("import", "Make a session from such a file; prints its id");
  importing->add_option("file", import->file, "What export wrote (- for standard input)")
      ->required();
  importing->add_flag("--no-kv", import->no_kv,
                      "Compute the state of its tokens again: for files of people whom you would "
                      "not let choose your answers");
  importing->add_flag("--json", import->json, "Print the session as JSON");
  importing->callback([&global, import, chosen] {
    *chosen = [&global, import] { return ImportCommand(global, *import); };
  });

  CLI::App* backing = app->add_subcommand("backup", "Back the whole store up while it is in use");
  backing->add_option("dir", backup->directory, "A directory for this store's backups")
      ->type_name("DIR")
      ->required();
  auto* list = backing->add_flag("--list", backup->list, "List the backups there instead");
  auto* verify = backing->add_flag("--verify", backup->verify, "Read all of one there instead")
                     ->excludes(list);
  backing->add_option("--id", backup->id, "Which one to verify (default: the newest)")
      ->needs(verify)
      ->check(AboveZero<uint32_t>());
  backing->add_option("--keep", backup->keep, "Keep the newest N, remove older ones (default: all)")
      ->type_name("N")
      ->check(AboveZero<uint32_t>())
      ->excludes(list)
      ->excludes(verify);
  backing->add_flag("--json", backup->json, "As JSON");
  backing->footer("A store is made of a backup by agentd: see agentd restore --help");
  backing->callback([&global, backup, chosen] {
    *chosen = [&global, backup] { return BackupCommand(global, *backup); };
  });
}

void AddDoctor(CLI::App* app, DoctorOptions* o, Chosen* chosen) {
  CLI::App* doctor = app->add_subcommand(
      "doctor", "Read all of a stopped daemon's store, say what is damaged and what mends it");
  doctor->add_option("data", o->directory, "What agentd has as --data")
      ->type_name("DIR")
      ->required();
  doctor->add_option("--store-key-file", o->store_key_file,
                     "File of the key of an encrypted store, as agentd has it; without it "
                     "$AGENTD_STORE_KEY, if that is set");
  doctor->add_option("--old-store-key-file", o->old_store_key_files,
                     "File of an older key that is still in use; may be repeated; and "
                     "$AGENTD_OLD_STORE_KEY");
  doctor->add_flag("--json", o->json, "One finding a line, as JSON, then a summary");
  doctor->add_flag("--mend", o->mend,
                   "First drop damaged cached values (they are computed again) and write anew what "
                   "other records tell");
  doctor->add_flag("--cut-log", o->cut_log,
                   "First give up what follows the damage in a log; it is kept beside the store");
  doctor->footer(
      "--json: findings have \"type\":\"finding\", harm (store: refused; session: refused; files: "
      "a\n"
      "workspace is not whole at an event; time: computed again; nothing), kind, what, reason, "
      "costs,\n"
      "mend, sessions (ids). The last line has \"type\":\"summary\", store, sessions, records, "
      "bytes,\n"
      "leftovers (swept by the next start), findings, not_checked, exit_code.\n\n"
      "Without the key of an encrypted store what needs no key is checked; exit code 1 then, "
      "unless "
      "something\n"
      "is damaged.");
  doctor->callback([o, chosen] { *chosen = [o] { return DoctorCommand(*o); }; });
}

struct Options {
  GlobalOptions global;
  RunOptions run, chat;
  ListOptions list;
  UsageOptions usage;
  ShowOptions show;
  WatchOptions watch;
  PointOptions fork, rewind;
  DiffOptions diff;
  ApplyOptions apply;
  ExportOptions bundle;
  ImportOptions import;
  BackupOptions backup;
  DoctorOptions doctor;
  ApprovalOptions approval;
  McpOptions mcp;
  std::string id;
  bool info_json = false;
};

void AddGlobalOptions(CLI::App& app, GlobalOptions* o) {
  app.set_version_flag("--version", AGENTD_VERSION);
  app.require_subcommand(1);
  app.fallthrough();
  NameTheProgram(app, "agentctl");
  o->socket = DefaultSocket();
  app.add_option("--socket", o->socket,
                 "The daemon's socket (default: $AGENTD_SOCKET, else\n"
                 "$XDG_RUNTIME_DIR/agentd.sock, else ~/.agentd/agentd.sock)")
      ->type_name("PATH");
  app.add_option("--wait", o->wait_seconds, "Wait so long for the daemon to appear")
      ->type_name("SECONDS")
      ->check(CLI::Validator(
          [](std::string& text) {
            return text.starts_with('-') ? text + " is below zero" : std::string();
          },
          "", ""));
  app.footer(
      std::string("A session is named by its id, the beginning of its id, or \"last\".\n\n") +
      kExitCodes);
}

void AddCommands(CLI::App* app, Options* o, Chosen* chosen) {
  AddRun(app, o->global, &o->run, chosen);
  AddChat(app, o->global, &o->chat, chosen);
  AddSessions(app, o->global, &o->list, &o->usage, chosen);
  AddViews(app, o->global, &o->show, &o->watch, chosen);
  AddTimeTravel(app, o->global, &o->fork, &o->rewind, chosen);
  AddDiff(app, o->global, &o->diff, chosen);
  AddApply(app, o->global, &o->apply, chosen);
  AddApprovals(app, o->global, &o->approval, chosen);
  AddRest(app, o->global, &o->id, &o->info_json, chosen);
  AddMcp(app, o->global, &o->mcp, chosen);
  AddKeeping(app, o->global, &o->bundle, &o->import, &o->backup, chosen);
  AddDoctor(app, &o->doctor, chosen);
}

int UsageError(const CLI::App& app, const CLI::ParseError& error) {
  // CLI11 would ask for a subcommand although one was given that it does not know.
  const std::vector<std::string> rest = app.remaining();
  if (app.get_subcommands().empty() && !rest.empty() && !rest[0].starts_with('-')) {
    std::fprintf(stderr, "agentctl: there is no command \"%s\". List them: agentctl --help\n",
                 Printable(rest[0]).c_str());
    return kUsage;
  }
  return app.exit(error) == 0 ? kAnswer : kUsage;
}

int Main(int argc, char** argv) {
  Options options;
  Chosen chosen;
  CLI::App app("agentctl: talk to agentd, a daemon for long-lived agents", "agentctl");
  AddGlobalOptions(app, &options.global);
  AddCommands(&app, &options, &chosen);
  // CLI11 reports by throwing; nothing else here does.
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return UsageError(app, error);
  }
  const int exit_code = chosen();
  // A full disk behind a redirection must not look like success.
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return exit_code;
  std::fputs("agentctl: not everything could be written to standard output\n", stderr);
  return exit_code == kAnswer ? kError : exit_code;
}

}  // namespace
}  // namespace agentd::ctl

int main(int argc, char** argv) { return agentd::ctl::Main(argc, argv); }
