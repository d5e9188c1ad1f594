// Reads what the model samples, token by token, into text, reasoning, content and calls. The same
// reader serves the turn that is running, the rebuilding of a turn after a restart, and the events
// that a client sees: so all three agree.
#ifndef AGENTD_AGENTD_OUTPUT_READER_H_
#define AGENTD_AGENTD_OUTPUT_READER_H_

#include <string>
#include <vector>

#include "agentd/model_bundle.h"
#include "tools/dsml.h"

namespace agentd::daemon {

// One assistant message. One thread.
class OutputReader {
 public:
  // What some tokens added.
  struct Delta {
    std::string text;  // decoded, special tokens included, whole characters only
    std::string content;
    std::string reasoning;
  };

  // `thinking`: the prompt ended with <think>.
  OutputReader(const ModelBundle& model, bool thinking)
      : model_(&model), decoder_(*model.tokenizer), parser_(thinking) {}

  // The end-of-sentence token finishes the message; tokens after it only add text.
  void Feed(TokenId token, Delta& delta);
  // No more will come: what was begun is closed.
  void Finish(Delta& delta);

  bool finished() const { return finished_; }
  const tools::DsmlParser& parser() const { return parser_; }

 private:
  void FeedText(const std::string& text, bool special, Delta& delta);
  void Collect(Delta& delta);

  const ModelBundle* model_;
  model::StreamDecoder decoder_;
  tools::DsmlParser parser_;
  std::vector<tools::DsmlEvent> events_;
  bool finished_ = false;
};

}  // namespace agentd::daemon

#endif  // AGENTD_AGENTD_OUTPUT_READER_H_
