// The V4 engine: a loaded model (Engine) and the timelines that run on it (Sequence).
//
// Under one numerics_id() the logits at a position are a function of the tokens alone, bit for bit:
// chunking, what else is in the batch, thread count, instruction set, and whether the cache was
// computed or imported make no difference.
//
// Threads: one thread at a time may call into an Engine and its Sequences (the daemon's scheduler
// owns it); Step() uses a pool of its own inside. What never changes, Engine's config(),
// fingerprint() and numerics_id(), may be read from anywhere; nothing of a Sequence may.
#ifndef AGENTD_MODEL_ENGINE_H_
#define AGENTD_MODEL_ENGINE_H_

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/sha256.h"
#include "model/config.h"

namespace agentd::model {

using TokenId = int32_t;

// Tokens of one persisted block. 256 closes a block of every layer kind (lcm(4, 128) = 128).
inline constexpr int kBlockTokens = 256;
// Sequence::Truncate reaches back this many tokens at least.
inline constexpr int kMaxTruncateTokens = 32;

// EngineOptions::host_expert_layers: as many as the device's memory asks for.
inline constexpr int kAutoHostExperts = -1;
// Room for two sequences of a million tokens of V4-Flash, 3.4 GiB each, and what a step needs.
inline constexpr int64_t kDefaultStateBytes = int64_t{8} << 30;

struct EngineOptions {
  std::string backend = "cpu";
  int threads = 0;  // 0: one per core
  // Rows that one Step evaluates together inside; more rows are split. Affects speed and memory,
  // never results.
  int max_batch_rows = 512;

  // Where routed experts lie; of the cuda backend, and never of influence on results.
  // Layers whose experts stay in host memory and are fetched when a token is routed to them; the
  // MTP block counts as one.
  int host_expert_layers = kAutoHostExperts;
  // Of device memory for such experts, shared by their layers; 0: what is left.
  int64_t expert_cache_bytes = 0;
  // Of device memory to leave for sequences' state where the engine chooses one of the two above;
  // 0: kDefaultStateBytes.
  int64_t state_bytes = 0;
};

// Routed experts in host memory, and what became of lookups since the model was loaded.
struct HostExperts {
  std::vector<int> layers;   // whose experts; none: all are on the device
  int64_t host_bytes = 0;    // page-locked
  int experts = 0;           // of these layers together
  int cached = 0;            // how many of them the cache on the device holds
  int64_t expert_bytes = 0;  // of one
  int64_t hits = 0;          // experts that a layer of a batch needed and that were in the cache
  int64_t misses = 0;        // and that were fetched
  int64_t fetched_bytes = 0;
};
// Where they are, as a line.
std::string DescribeHostExperts(const HostExperts& experts);

// One persisted block, in the storage types of the checkpoint (lossless, the same layout on every
// backend).
struct BlockPayload {
  std::string index;  // indexer keys of the CSA layers, then HCA entries: what every step reads
  std::vector<std::string> csa;  // per CSA layer in layer order: its kBlockTokens/4 entries, read
                                 // only when top-k picks them
};

// The CSA entries of one layer of a block: what BlockPayload::csa[csa_layer] holds.
struct CsaPart {
  int64_t block = 0;
  int csa_layer = 0;
};

// Supplies entries of imported blocks that were not given with them: entries[i] of parts[i]. Called
// inside Step, on the calling thread, with all parts that a layer misses. An error ends that Step
// for the sequence, which stays at its position.
using CsaSource =
    std::function<absl::StatusOr<std::vector<std::string>>(std::span<const CsaPart> parts)>;

// State on its way out of a sequence: on a device, bytes leave it while later steps run. What was
// asked for is as it was when the export started, whatever becomes of the sequence. Must not
// outlive the Engine.
class Export {
 public:
  struct State {
    std::vector<BlockPayload> blocks;  // from the first one asked for on
    // All the rest that is needed to go on at position(): window keys of the last `sliding_window`
    // tokens in all layers (MTP's too), compressor frontiers, entries of the open block, last
    // streams. Empty if not asked for.
    std::string anchor;
  };
  virtual ~Export() = default;
  // Waits for the bytes. Any thread, once.
  virtual absl::StatusOr<State> Take() = 0;
};

// One timeline's state: KV entries, window keys, compressor frontiers. Made by Engine::NewSequence;
// must not outlive it.
class Sequence {
 public:
  virtual ~Sequence() = default;

  // Tokens evaluated so far: the next token's position.
  virtual int64_t position() const = 0;
  // Bytes of memory held.
  virtual int64_t memory_bytes() const = 0;

  // Forgets every token from `position` on. OutOfRange if that is more than kMaxTruncateTokens
  // before the furthest position evaluated, before what Import set up, or ahead; then nothing
  // changed.
  virtual absl::Status Truncate(int64_t position) = 0;

  // Blocks `first_block`, `first_block` + 1, ...: block b = tokens [b*256, b*256+256), all
  // evaluated and resident; and the anchor at position().
  virtual absl::StatusOr<std::unique_ptr<Export>> StartExport(int64_t first_block, int64_t blocks,
                                                              bool anchor) const = 0;
  // One block, or the anchor, waited for.
  absl::StatusOr<BlockPayload> ExportBlock(int64_t block) const;
  absl::StatusOr<std::string> ExportAnchor() const;

  // Import: on an empty sequence, blocks 0, 1, ... in order, in as many calls as wanted, then the
  // anchor of a position t with t/256 == blocks given. InvalidArgument if sizes or shapes do not
  // fit this model, DataLoss if what should be a number is none (other damage goes unseen:
  // checksums are the store's); any other error is no fault of what was given. After a failed
  // import the sequence is empty again. A block whose `csa` is empty has its entries fetched
  // through the source set here, when first needed.
  //
  // Several threads check and copy, but errors are those of the blocks taken one by one: of the
  // first that does not fit. `*fitting` (may be null): how many were taken before the error, all if
  // there is none.
  virtual absl::Status ImportBlocks(std::span<const BlockPayload> blocks, size_t* fitting) = 0;
  absl::Status ImportBlock(const BlockPayload& block) { return ImportBlocks({&block, 1}, nullptr); }
  virtual absl::Status ImportAnchor(std::string_view anchor) = 0;
  virtual void SetCsaSource(CsaSource source) = 0;
  // Hands over CSA entries that were left out (streaming the rest in between steps): entries[i] of
  // parts[i], no part twice. InvalidArgument and DataLoss as above, of the first part that does not
  // fit; then nothing changed. After another error some may be there.
  virtual absl::Status ImportCsa(std::span<const CsaPart> parts,
                                 std::span<const std::string> entries) = 0;
  // Whether no CSA entries are left out.
  virtual bool all_resident() const = 0;
};

// What Step does for one sequence.
struct StepRow {
  Sequence* sequence = nullptr;
  std::span<const TokenId> tokens;  // appended at sequence->position(); not empty
  // Where logits go: empty = none, [vocab_size] = after the last token, [tokens, vocab_size] =
  // after each.
  std::span<float> logits;
  // Set by Step. When not OK, this row's sequence is where it was and the other rows are not
  // affected. A row that exceeds max_position_embeddings or has a bad token is not begun.
  absl::Status status;
};

class Engine {
 public:
  virtual ~Engine() = default;

  // Loads config.json and the checkpoint beside it. Errors name the file, tensor or field and say
  // what was expected. ResourceExhausted names what is lacking: threads, or memory for the weights.
  static absl::StatusOr<std::unique_ptr<Engine>> Load(const std::filesystem::path& model_dir,
                                                      const EngineOptions& options);

  virtual const Config& config() const = 0;
  // SHA-256 of what determines the results: configuration and every weight.
  virtual const Sha256Digest& fingerprint() const = 0;
  // Backend, kernel-order version and mode, e.g. "cpu/1/exact".
  virtual const std::string& numerics_id() const = 0;

  // Waits for what is under way on a device.
  virtual absl::StatusOr<HostExperts> host_experts() { return HostExperts{}; }

  virtual std::unique_ptr<Sequence> NewSequence() = 0;

  // Evaluates all rows in one pass over the weights (decode rows and prefill chunks together). A
  // sequence may appear once. The returned Status is for the whole call (a row naming the same
  // sequence twice, wrong span sizes); then no row ran.
  virtual absl::Status Step(std::span<StepRow> rows) = 0;

  // Logits [vocab_size] of the MTP block: a draft of the token after `next_token`, which is the
  // token at sequence.position() and not yet evaluated. Changes nothing. Unimplemented if the
  // checkpoint has no MTP block.
  virtual absl::Status Draft(const Sequence& sequence, TokenId next_token,
                             std::span<float> logits) = 0;

  // One layer alone, for `v4 layer`: streams [tokens, hc_mult, hidden_size] before layer `layer` ->
  // after it, from position 0. layer == num_hidden_layers is the MTP block's own layer.
  virtual absl::Status RunLayer(int layer, std::span<const TokenId> tokens,
                                std::span<const float> streams_in,
                                std::span<float> streams_out) = 0;
};

}  // namespace agentd::model

#endif  // AGENTD_MODEL_ENGINE_H_
