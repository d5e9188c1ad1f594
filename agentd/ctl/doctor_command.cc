// agentctl doctor: the one command that talks to no daemon, since it is for stores that none opens.
#include <fmt/format.h>

#include <cstdio>
#include <filesystem>
#include <string>

#include "agentd/ctl/commands.h"
#include "agentd/ctl/exit_code.h"
#include "agentd/ctl/json.h"
#include "agentd/ctl/output.h"
#include "agentd/ctl/text.h"
#include "base/status.h"
#include "sessions/doctor.h"
#include "sessions/store_keys.h"

namespace agentd::ctl {
namespace {

void Say(const std::string& text) { std::fwrite(text.data(), 1, text.size(), stdout); }

// The daemon's --data holds its store in a folder of this name.
std::filesystem::path StoreIn(const std::filesystem::path& directory) {
  std::error_code error;
  return std::filesystem::exists(directory / "store", error) ? directory / "store" : directory;
}

int DoctorExitCode(const sessions::DoctorReport& report) {
  if (!report.findings.empty()) return kDamaged;
  return report.not_checked.empty() ? kAnswer : kError;
}

}  // namespace

std::string DoctorText(const std::filesystem::path& store, const sessions::DoctorReport& report) {
  std::string text =
      fmt::format("store {}: {} sessions, {} records, {} read\n", Printable(store.string()),
                  report.sessions, report.records, Bytes(report.bytes));
  if (report.leftovers > 0)
    text += fmt::format("{} values of commits that a crash cut off; the next start sweeps them\n",
                        report.leftovers);
  for (const sessions::Finding& finding : report.findings) {
    text += fmt::format("\ndamaged: {}\n", OneLine(finding.what, 500));
    text += fmt::format("  why    {}\n", OneLine(finding.reason, 500));
    text += fmt::format("  costs  {}\n", finding.costs);
    text += fmt::format("  mend   {}\n", OneLine(finding.mend, 500));
  }
  text += report.findings.empty() ? "nothing is damaged\n"
                                  : fmt::format("\n{} damaged\n", report.findings.size());
  if (!report.not_checked.empty()) text += fmt::format("not checked: {}\n", report.not_checked);
  return text;
}

std::string DoctorJson(const std::filesystem::path& store, const sessions::DoctorReport& report) {
  std::string lines;
  for (const sessions::Finding& finding : report.findings) {
    const Json line = {{"type", "finding"},        {"harm", NameOf(finding.harm)},
                       {"kind", finding.kind},     {"what", finding.what},
                       {"reason", finding.reason}, {"costs", finding.costs},
                       {"mend", finding.mend},     {"sessions", finding.sessions}};
    lines += Dump(line) + "\n";
  }
  const Json summary = {{"type", "summary"},
                        {"store", store.string()},
                        {"sessions", report.sessions},
                        {"records", report.records},
                        {"bytes", report.bytes},
                        {"leftovers", report.leftovers},
                        {"findings", report.findings.size()},
                        {"not_checked", report.not_checked},
                        {"exit_code", DoctorExitCode(report)}};
  return lines + Dump(summary) + "\n";
}

int DoctorCommand(const DoctorOptions& options) {
  const std::filesystem::path store = StoreIn(options.directory);
  const auto keys = sessions::ReadStoreKeys(options.store_key_file, options.old_store_key_files);
  if (!keys.ok()) return Refuse(options.json, keys.status(), kError);
  if (options.cut_log) {
    const auto kept = sessions::CutLog(store);
    if (!kept.ok()) return Refuse(options.json, kept.status(), kError);
    fmt::print(stderr, "the log is cut; what was after the damage is in {}\n",
               Printable(kept->string()));
  }
  if (options.mend) {
    const auto mended = sessions::Mend(store, *keys);
    if (!mended.ok()) return Refuse(options.json, mended.status(), kError);
    fmt::print(stderr, "{} records mended\n", *mended);
  }
  SideLine line(stderr);
  const auto report = sessions::Examine(store, *keys, [&](const sessions::DoctorReport& so_far) {
    line.Show(fmt::format("{} records, {} read", so_far.records, Bytes(so_far.bytes)));
  });
  line.Clear();
  if (!report.ok()) return Refuse(options.json, report.status(), kError);
  Say(options.json ? DoctorJson(store, *report) : DoctorText(store, *report));
  return DoctorExitCode(*report);
}

}  // namespace agentd::ctl
