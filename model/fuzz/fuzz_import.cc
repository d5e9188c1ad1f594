// Damage to the persisted state of a sequence: import refuses it or takes it as other numbers, and
// then the engine runs on them. Input: places and values that are written over a good state.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "base/status.h"
#include "model/engine.h"

using namespace agentd::model;  // NOLINT: one short program

namespace {

struct State {
  std::unique_ptr<Engine> engine;
  BlockPayload block;
  std::string anchor;
};

void Run(Engine& engine, Sequence& sequence, const std::vector<TokenId>& tokens) {
  std::vector<float> logits(size_t(engine.config().vocab_size));
  StepRow row = {.sequence = &sequence, .tokens = tokens, .logits = logits, .status = {}};
  AGENTD_CHECK(engine.Step({&row, 1}).ok() && row.status.ok());
}

const State& Good() {
  static const State* const state = [] {
    auto* made = new State;
    auto engine = Engine::Load(MODEL_DIR, {.threads = 1});
    AGENTD_CHECK(engine.ok());
    made->engine = std::move(*engine);
    const auto sequence = made->engine->NewSequence();
    std::vector<TokenId> tokens(300);
    for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = TokenId(i * 37 % 256);
    Run(*made->engine, *sequence, tokens);
    made->block = *sequence->ExportBlock(0);
    made->anchor = *sequence->ExportAnchor();
    return made;
  }();
  return *state;
}

}  // namespace

// Loading is no part of an input's time.
extern "C" int LLVMFuzzerInitialize(int*, char***) {
  Good();
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const State& good = Good();
  BlockPayload block = good.block;
  std::string anchor = good.anchor;
  // Records of 5 bytes: which part, where (3 bytes), the value.
  for (; size >= 5; data += 5, size -= 5) {
    std::string* parts[] = {&anchor, &block.index, &block.csa[0]};
    std::string& part = *parts[data[0] % 3];
    const size_t at = data[1] | size_t(data[2]) << 8 | size_t(data[3]) << 16;
    part[at % part.size()] = static_cast<char>(data[4]);
  }
  // What is left cuts the anchor.
  if (size > 0) anchor.resize(anchor.size() - std::min<size_t>(anchor.size(), data[0]));
  const auto sequence = good.engine->NewSequence();
  absl::Status status = sequence->ImportBlock(block);
  if (status.ok()) status = sequence->ImportAnchor(anchor);
  if (!status.ok()) {
    AGENTD_CHECK(sequence->position() == 0);
    return 0;
  }
  AGENTD_CHECK(*sequence->ExportAnchor() == anchor);
  Run(*good.engine, *sequence, {1, 2, 3, 4, 5});
  return 0;
}
