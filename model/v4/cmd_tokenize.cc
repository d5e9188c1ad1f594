// v4 tokenize: text <-> token ids, a line at a time.
#include <memory>
#include <nlohmann/json.hpp>

#include "base/status.h"
#include "model/json_file.h"
#include "model/json_python.h"
#include "model/tokenizer.h"
#include "model/v4/command.h"

namespace agentd::model::v4 {
namespace {

struct Options {
  std::string model;
  bool decode = false;
  bool plain = false;
};

absl::Status EncodeLine(const Tokenizer& tokenizer, bool plain, std::string_view line) {
  ASSIGN_OR_RETURN(const PythonJson json, PythonJson::Parse(line));
  if (!json.IsString()) return InvalidArgument("is not a JSON string");
  const std::vector<TokenId> ids =
      plain ? tokenizer.Encode(json.text()) : tokenizer.EncodeWithAddedTokens(json.text());
  std::string out = "[";
  for (size_t i = 0; i < ids.size(); ++i)
    fmt::format_to(std::back_inserter(out), "{}{}", i > 0 ? ", " : "", ids[i]);
  Print(out + "]\n");
  return absl::OkStatus();
}

absl::Status DecodeLine(const Tokenizer& tokenizer, std::string_view line) {
  ASSIGN_OR_RETURN(const nlohmann::json json, ParseJson(line, "an array of ids is expected"));
  if (!json.is_array()) return InvalidArgument("is not a JSON array of token ids");
  std::vector<TokenId> ids;
  for (const nlohmann::json& id : json) {
    if (!id.is_number_integer() || id < 0 || id >= tokenizer.vocab_size()) {
      return InvalidArgument("{} is not a token id below {}",
                             id.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace),
                             tokenizer.vocab_size());
    }
    ids.push_back(id.get<TokenId>());
  }
  std::string out;
  AppendPythonString(tokenizer.Decode(ids), &out);
  Print(out + "\n");
  return absl::OkStatus();
}

absl::Status Run(const Options& options) {
  ASSIGN_OR_RETURN(const auto tokenizer, Tokenizer::Load(options.model));
  const absl::Status status = ForEachInputLine([&](std::string_view line) {
    return options.decode ? DecodeLine(*tokenizer, line)
                          : EncodeLine(*tokenizer, options.plain, line);
  });
  // What was done before an error is written all the same.
  const absl::Status flushed = FlushOutput();
  return status.ok() ? flushed : status;
}

}  // namespace

void RegisterTokenize(CLI::App& app, int* exit_code) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand(
      "tokenize", "A JSON string per line in, a JSON array of token ids per line out");
  command->add_option("--model", options->model, "Directory with tokenizer.json")->required();
  command->add_flag("--decode", options->decode, "The other way: ids in, strings out");
  command->add_flag("--plain", options->plain,
                    "Match no special tokens: the text of a user or a tool");
  command->callback([options, exit_code] { *exit_code = Report(Run(*options)); });
}

}  // namespace agentd::model::v4
