#include <cstring>

#include "base/status.h"
#include "model/v4/bench.h"

namespace agentd::model::v4 {
namespace {

// Where an anchor has its position (model/anchor.h).
constexpr size_t kAnchorPosition = 32;

}  // namespace

absl::StatusOr<RepeatedPast> RepeatedPast::Make(Engine* engine, std::span<const TokenId> tokens) {
  AGENTD_CHECK(tokens.size() == kSeedTokens);
  RepeatedPast past;
  past.engine_ = engine;
  const auto seed = engine->NewSequence();
  StepRow row = {.sequence = seed.get(), .tokens = tokens, .logits = {}, .status = {}};
  RETURN_IF_ERROR(engine->Step({&row, 1}));
  RETURN_IF_ERROR(row.status);
  for (int64_t i = 0; i < kSeedTokens / kBlockTokens; ++i) {
    ASSIGN_OR_RETURN(BlockPayload block, seed->ExportBlock(i));
    past.blocks_.push_back(std::move(block));
  }
  ASSIGN_OR_RETURN(past.anchor_, seed->ExportAnchor());
  return past;
}

absl::StatusOr<std::unique_ptr<Sequence>> RepeatedPast::NewSequence(int64_t context) {
  const int64_t count = context / kBlockTokens;
  const int64_t position = count * kBlockTokens;
  std::string anchor = anchor_;
  std::memcpy(anchor.data() + kAnchorPosition, &position, sizeof(position));
  auto sequence = engine_->NewSequence();
  for (int64_t b = 0; b < count; ++b)
    RETURN_IF_ERROR(sequence->ImportBlock(blocks_[size_t(b) % blocks_.size()]));
  RETURN_IF_ERROR(sequence->ImportAnchor(anchor));
  return sequence;
}

}  // namespace agentd::model::v4
