#include "agentd/output_reader.h"

namespace agentd::daemon {

void OutputReader::Collect(Delta& delta) {
  for (const tools::DsmlEvent& event : events_) {
    if (event.kind == tools::DsmlEvent::Kind::kContent) delta.content += event.text;
    if (event.kind == tools::DsmlEvent::Kind::kReasoning) delta.reasoning += event.text;
  }
  events_.clear();
}

void OutputReader::FeedText(const std::string& text, bool special, Delta& delta) {
  delta.text += text;
  if (text.empty() || finished_) return;
  parser_.Feed(text, special, events_);
  Collect(delta);
}

void OutputReader::Feed(TokenId token, Delta& delta) {
  const model::Tokenizer& tokenizer = *model_->tokenizer;
  if (!tokenizer.IsAddedToken(token)) {
    FeedText(decoder_.Feed(token), /*special=*/false, delta);
    return;
  }
  FeedText(decoder_.Flush(), /*special=*/false, delta);
  if (token == model_->special.eos) {
    Finish(delta);
    delta.text += tokenizer.Bytes(token);
    return;
  }
  FeedText(std::string(tokenizer.Bytes(token)), /*special=*/true, delta);
}

void OutputReader::Finish(Delta& delta) {
  if (finished_) return;
  FeedText(decoder_.Flush(), /*special=*/false, delta);
  parser_.Finish(events_);
  Collect(delta);
  finished_ = true;
}

}  // namespace agentd::daemon
