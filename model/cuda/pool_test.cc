// Pooling and commit: whatever the chunks, the sequences' memory must be byte for byte what folding
// token by token leaves, and nothing else may be written.
#include <cstring>

#include "model/cpu/forward.h"
#include "model/cuda/elementwise.h"
#include "model/cuda/elementwise_test_util.h"
#include "model/kv_format.h"
#include "model/math.h"

namespace agentd::model::cuda {
namespace {

constexpr float kEps = 1e-6f;
constexpr int kSlots = 24;
constexpr int kCsaLayers = 2;
constexpr int kHcaLayers = 2;

// One sequence on the device, and what its memory must hold.
struct TestSequence {
  TestSequence(const StateShape& s, int64_t start, int64_t tokens, const Floats& frontier)
      : position(start),
        end(start + tokens),
        frontiers(size_t(kSlots) * size_t(s.frontier_floats), std::bit_cast<float>(0xFFFFFFFFu)),
        device_frontiers([&] {
          std::copy(frontier.begin(), frontier.end(), frontiers.begin());
          return frontiers;
        }()),
        pages(size_t(end / 256 + 1)),
        page_bytes(size_t(kCsaLayers * 64 * s.key_bytes + kHcaLayers * 2 * s.entry_bytes)),
        csa_page_bytes(size_t(kCsaLayers * 64 * s.entry_bytes)),
        index_page(pages * page_bytes, 0xFF),
        csa_page(pages * csa_page_bytes, 0xFF),
        device_index_page(index_page),
        device_csa_page(csa_page),
        index_pointers(Pointers(device_index_page.get(), page_bytes)),
        csa_pointers([&] {
          std::vector<uint8_t*> out;
          for (int layer = 0; layer < kCsaLayers; ++layer) {
            for (uint8_t* page : Pointers(device_csa_page.get(), csa_page_bytes))
              out.push_back(page + layer * 64 * s.entry_bytes);
          }
          return out;
        }()) {}

  std::vector<uint8_t*> Pointers(uint8_t* first, size_t bytes) const {
    std::vector<uint8_t*> out;
    for (size_t i = 0; i < pages; ++i) out.push_back(first + i * bytes);
    return out;
  }

  int64_t position;
  int64_t end;
  int slot = 0;  // the current frontier
  Floats frontiers;
  OnDevice<float> device_frontiers;
  size_t pages;
  size_t page_bytes;
  size_t csa_page_bytes;
  std::vector<uint8_t> index_page;
  std::vector<uint8_t> csa_page;
  OnDevice<uint8_t> device_index_page;
  OnDevice<uint8_t> device_csa_page;
  OnDevice<uint8_t*> index_pointers;
  OnDevice<uint8_t*> csa_pointers;
};

class PoolTest : public ElementwiseTest {
 protected:
  struct Shape {
    int ratio;
    int channels;
    int rotary;
    bool index;
  };

  // Folds a row of k and gate into a frontier's states, in place; returns the pooled values if the
  // block closes.
  static Floats FoldRow(const PoolArgs& a, const Floats& ape, int64_t t, const Floats& k,
                        const Floats& gate, float* states) {
    const int c = a.channels;
    const int width = a.ratio == 4 ? 2 * c : c;
    const int slot = int(t % a.ratio);
    auto load = [&](int state, int i) {
      const float* at = states + 3 * state * c + i;
      return reference::Pool{at[0], at[c], at[2 * c]};
    };
    auto store = [&](int state, int i, const reference::Pool& p) {
      float* at = states + 3 * state * c + i;
      at[0] = p.max;
      at[c] = p.sum;
      at[2 * c] = p.weighted;
    };
    Floats pooled;
    for (int i = 0; i < c; ++i) {
      auto fold = [&](int state, int at) {
        const float g = gate[size_t(at)] + ape[size_t(slot * width + at)];
        store(state, i, reference::Fold(load(state, i), k[size_t(at)], g, slot == 0));
      };
      if (a.ratio != 4) {
        fold(0, i);
        if (slot == a.ratio - 1) pooled.push_back(reference::Finish(nullptr, load(0, i)));
        continue;
      }
      fold(1, i);
      fold(2, c + i);
      if (slot != 3) continue;
      const reference::Pool before = load(0, i);
      pooled.push_back(reference::Finish(t < 4 ? nullptr : &before, load(2, i)));
      store(0, i, load(1, i));
    }
    return pooled;
  }

  static void EmitEntry(const PoolArgs& a, const std::vector<double>& frequencies,
                        const Floats& norm, int64_t entry, const Floats& pooled, TestSequence* s) {
    const bool low = a.state.low;
    Floats x = OrderedRmsNorm(Rounded(pooled, low), norm, a.eps, low);
    const int rotary = a.state.rotary;
    Floats cosine(frequencies.size());
    Floats sine(frequencies.size());
    RopeTable(frequencies, double(entry * a.ratio), cosine.data(), sine.data());
    float* const turned = x.data() + x.size() - size_t(rotary);
    RotatePairs(turned, rotary / 2, cosine.data(), sine.data(), false);
    for (int i = 0; low && i < rotary; ++i) turned[i] = RoundBf16(turned[i]);
    if (a.index) {
      if (low) HadamardBf16(x.data(), a.channels);
      EncodeIndexKey(a.channels, low, x.data(),
                     s->index_page.data() + size_t(entry / 64) * s->page_bytes +
                         size_t((a.number * 64 + entry % 64) * a.state.key_bytes));
      return;
    }
    const EntryShape shape = MakeEntryShape(a.channels, rotary, low);
    uint8_t* at = s->csa_page.data() + size_t(entry / 64) * s->csa_page_bytes +
                  size_t((a.number * 64 + entry % 64) * shape.bytes);
    if (a.ratio == 128) {
      at = s->index_page.data() + size_t(entry / 2) * s->page_bytes +
           size_t(kCsaLayers * 64 * a.state.key_bytes) +
           size_t((a.number * 2 + entry % 2) * shape.bytes);
    }
    EncodeEntry(shape, x.data(), at);
  }

  // What Latents makes of some rows, and room for the same again.
  struct TestLatents {
    TestLatents(PoolTest& test, int rows, const StateShape& state)
        : q(test.MakePlanes(rows, q_rank = test.Draw(1, 1200))),
          kv(test.MakePlanes(rows, state.channels)),
          weights(test.Values(size_t(q_rank + state.channels))),
          angles(test.Values(size_t(rows * state.rotary))),
          alone_q(size_t(rows * q_rank), state.low),
          beside_q(size_t(rows * q_rank), state.low),
          alone_keys(size_t(rows * state.entry_bytes)),
          beside_keys(size_t(rows * state.entry_bytes)) {
      beside = {.rows = rows,
                .low = state.low,
                .eps = kEps,
                .q = q.get(),
                .q_rank = q_rank,
                .q_norm = weights.get(),
                .q_out = beside_q.get(),
                .kv = kv.get(),
                .kv_norm = weights.get() + q_rank,
                .state = state,
                .cosine = angles.get(),
                .sine = angles.get() + rows * state.rotary / 2,
                .window_keys = beside_keys.get()};
      LatentArgs alone = beside;
      alone.q_out = alone_q.get();
      alone.window_keys = alone_keys.get();
      Latents(alone, nullptr);
    }
    void ExpectTheSame() const {
      Same(beside_q.Read(), alone_q.Read(), "queries beside the compressors");
      SameNumbers(beside_keys.Read(), alone_keys.Read(), "keys beside the compressors");
    }

    int q_rank;
    TestPlanes q;
    TestPlanes kv;
    OnDevice<float> weights;
    OnDevice<float> angles;
    ValuesOnDevice alone_q;
    ValuesOnDevice beside_q;
    OnDevice<uint8_t> alone_keys;
    OnDevice<uint8_t> beside_keys;
    LatentArgs beside;
  };

  void Run(const Shape& shape, bool low) {
    SCOPED_TRACE(testing::Message()
                 << "ratio " << shape.ratio << ", " << shape.channels << ", " << shape.rotary
                 << ", index " << shape.index << ", low " << low);
    const int c = shape.channels;
    const bool overlaps = shape.ratio == 4;
    PoolArgs args;
    args.state.low = low;
    args.state.channels = shape.index ? 2 * c : c;
    args.state.rotary = shape.rotary;
    // Of ratio 4 an indexer's compressor too, sometimes.
    const bool two = overlaps && !shape.index && Flip();
    args.state.index_channels =
        shape.index ? c : int(std::bit_ceil(unsigned(std::max(16, shape.rotary))));
    args.state.entry_bytes = MakeEntryShape(args.state.channels, shape.rotary, low).bytes;
    args.state.key_bytes = IndexKeyBytes(args.state.index_channels, low);
    args.state.csa_layers = kCsaLayers;
    args.state.hca_layers = kHcaLayers;
    args.ratio = shape.ratio;
    args.channels = c;
    args.index = shape.index;
    args.number = Draw(0, 1);
    args.frontier = Draw(0, 9);
    args.eps = kEps;
    std::vector<double> frequencies;
    for (int i = 0; i < shape.rotary / 2; ++i) frequencies.push_back(std::exp2(-double(i) / 2));
    const OnDevice<double> frequencies_device(frequencies);
    args.frequencies = frequencies_device.get();
    std::vector<PoolArgs> compressors{args};
    if (two) {
      PoolArgs index = args;
      index.index = true;
      index.channels = args.state.index_channels;
      index.number = Draw(0, 1);
      index.frontier += (overlaps ? 9 : 3) * c + Draw(0, 9);
      compressors.push_back(index);
    }
    const PoolArgs& last = compressors.back();
    const int64_t frontier_floats = last.frontier + (overlaps ? 9 : 3) * last.channels + Draw(0, 9);
    std::vector<Floats> apes;
    std::vector<Floats> norms;
    std::vector<OnDevice<float>> weights;
    for (PoolArgs& a : compressors) {
      a.state.frontier_floats = frontier_floats;
      apes.push_back(Values(size_t(a.ratio * (overlaps ? 2 : 1) * a.channels)));
      norms.push_back(Values(size_t(a.channels), low));
      weights.emplace_back(apes.back());
      a.ape = weights.back().get();
      weights.emplace_back(norms.back());
      a.norm = weights.back().get();
    }

    // States that a sequence can have: sums are positive.
    std::vector<std::unique_ptr<TestSequence>> sequences;
    for (int i = Draw(1, 3); i > 0; --i) {
      Floats frontier(size_t(frontier_floats), std::bit_cast<float>(0xFFFFFFFFu));
      for (const PoolArgs& a : compressors) {
        for (int state = 0; state < (overlaps ? 3 : 1); ++state) {
          float* const at = frontier.data() + a.frontier + 3 * state * a.channels;
          const Floats numbers = Values(size_t(3 * a.channels));
          std::copy(numbers.begin(), numbers.end(), at);
          for (int channel = 0; channel < a.channels; ++channel)
            at[a.channels + channel] = 1 + std::fabs(at[a.channels + channel]);
        }
      }
      const int64_t start = Draw(0, 2) == 0 ? 0 : Draw(1, 600);
      const int64_t tokens = overlaps ? Draw(10, 150) : Draw(120, 400);
      sequences.push_back(
          std::make_unique<TestSequence>(compressors[0].state, start, tokens, frontier));
    }

    while (!HasFatalFailure()) {
      std::vector<SegmentView> segments;
      std::vector<TestSequence*> owners;
      std::vector<std::vector<int>> kept;
      int rows = 0;
      int max_rows = 0;
      const bool one_by_one = Draw(0, 2) == 0;
      for (const auto& s : sequences) {
        constexpr int kChunks[] = {1, 1, 2, 3, 4, 5, 17, 64, 130, 300};
        const auto count = int(
            std::min<int64_t>(s->end - s->position, one_by_one ? 1 : kChunks[size_t(Draw(0, 9))]));
        if (count == 0) continue;
        // Frontiers of some rows are kept, the last one's always.
        std::vector<int> free;
        for (int i = 0; i < kSlots; ++i) {
          if (i != s->slot) free.push_back(i);
        }
        std::shuffle(free.begin(), free.end(), random_);
        std::vector<int> slots(static_cast<size_t>(count + 1), -1);
        slots[0] = s->slot;
        for (int j = count; j >= std::max(1, count - 18); --j) {
          if (j < count && Flip()) continue;
          slots[size_t(j)] = free.back();
          free.pop_back();
        }
        SegmentView view;
        view.start = s->position;
        view.row_begin = rows;
        view.rows = count;
        view.index_pages = s->index_pointers.get();
        view.csa_pages = s->csa_pointers.get();
        view.csa_stride = int64_t(s->pages);
        view.frontiers = s->device_frontiers.get();
        segments.push_back(view);
        owners.push_back(s.get());
        kept.push_back(slots);
        rows += count;
        max_rows = std::max(max_rows, count);
      }
      if (rows == 0) break;
      std::vector<OnDevice<int>> slots_device;
      for (size_t i = 0; i < segments.size(); ++i) {
        slots_device.emplace_back(kept[i]);
        segments[i].slots = slots_device.back().get();
      }
      const OnDevice<SegmentView> segments_device(segments);
      std::vector<TestPlanes> k;
      std::vector<TestPlanes> gate;
      for (PoolArgs& a : compressors) {
        k.push_back(MakePlanes(rows, (overlaps ? 2 : 1) * a.channels));
        gate.push_back(MakePlanes(rows, (overlaps ? 2 : 1) * a.channels));
        a.batch.rows = rows;
        a.batch.segment_count = int(segments.size());
        a.batch.segments = segments_device.get();
        a.max_segment_rows = max_rows;
        a.k = k.back().get();
        a.gate = gate.back().get();
      }
      const TestLatents latents(*this, rows, args.state);
      if (Flip()) {
        LatentsAndPool(latents.beside, compressors[0], two ? compressors[1] : PoolArgs(), nullptr);
        latents.ExpectTheSame();
      } else {
        Pool(compressors[0], two ? compressors[1] : PoolArgs(), nullptr);
      }
      CheckCuda(cudaGetLastError());

      for (size_t i = 0; i < segments.size(); ++i) {
        TestSequence& s = *owners[i];
        for (size_t n = 0; n < compressors.size(); ++n) {
          const PoolArgs& a = compressors[n];
          const auto floats = int64_t(overlaps ? 9 : 3) * a.channels;
          auto states = [&](int slot) {
            return s.frontiers.begin() + slot * frontier_floats + a.frontier;
          };
          Floats now(states(s.slot), states(s.slot) + floats);
          for (int j = 0; j < segments[i].rows; ++j) {
            const int64_t t = s.position + j;
            const int row = segments[i].row_begin + j;
            const Floats pooled =
                FoldRow(a, apes[n], t, k[n].Row(row, false), gate[n].Row(row, false), now.data());
            if (!pooled.empty()) EmitEntry(a, frequencies, norms[n], t / a.ratio, pooled, &s);
            const int slot = kept[i][size_t(j + 1)];
            if (slot >= 0) std::copy(now.begin(), now.end(), states(slot));
          }
        }
        s.slot = kept[i].back();
        s.position += segments[i].rows;
        SCOPED_TRACE(testing::Message()
                     << "position " << s.position << " after " << segments[i].rows << " rows");
        SameBits(s.device_frontiers.Read(), s.frontiers);
        SameNumbers(s.device_index_page.Read(), s.index_page, "index pages");
        SameNumbers(s.device_csa_page.Read(), s.csa_page, "CSA pages");
      }
    }
  }

  // NaN too, as what was not written is; -0 is 0.
  static void SameBits(const Floats& got, const Floats& want) {
    for (size_t i = 0; i < want.size(); ++i) {
      if (got[i] == 0 && want[i] == 0) continue;
      ASSERT_EQ(std::bit_cast<uint32_t>(got[i]), std::bit_cast<uint32_t>(want[i]))
          << "frontiers, float " << i << ": " << got[i] << ", expected " << want[i];
    }
  }
};

TEST_F(PoolTest, AsTokenByToken) {
  for (const Shape& shape :
       {Shape{4, 512, 64, false}, Shape{4, 128, 64, true}, Shape{4, 32, 8, false},
        Shape{4, 32, 4, true}, Shape{4, 1028, 4, false}, Shape{128, 512, 64, false},
        Shape{128, 34, 6, false}, Shape{4, 82, 82, false}, Shape{4, 4, 2, true}}) {
    for (const bool low : {false, true}) {
      for (int i = 0; i < 3 && !HasFatalFailure(); ++i) Run(shape, low);
    }
  }
}

TEST_F(PoolTest, CommitWritesRingsAndStreams) {
  for (int repeat = 0; repeat < 12; ++repeat) {
    const bool low = Flip();
    const int channels = 2 * Draw(4, 40);
    const int layers = Draw(1, 4);
    const bool with_streams = Draw(0, 3) != 0;
    CommitArgs args;
    args.layers = layers;
    args.mtp = Flip();
    args.mtp_in_place = Flip();
    args.state.low = low;
    args.state.ring = Draw(1, 9);
    args.state.entry_bytes = MakeEntryShape(channels, 4, low).bytes;
    args.stream_floats = Draw(1, 9000);
    args.state.frontier_floats = args.stream_floats + Draw(0, 5);
    struct Owner {
      std::vector<uint8_t> rings;
      Floats frontiers;
      OnDevice<uint8_t> device_rings;
      OnDevice<float> device_frontiers;
      std::vector<int> slots;
      OnDevice<int> device_slots;
    };
    const int bytes = args.state.entry_bytes;
    const size_t ring_bytes = size_t(layers * args.state.ring * bytes);
    std::vector<std::unique_ptr<Owner>> owners;
    std::vector<SegmentView> segments;
    std::vector<int> segment_of;
    int rows = 0;
    for (int i = Draw(1, 3); i > 0; --i) {
      const int count = Draw(1, 12);
      std::vector<int> slots{0};
      for (int j = 0; j < count; ++j) slots.push_back(Flip() ? j + 1 : -1);
      const size_t floats = size_t(13 * args.state.frontier_floats);
      owners.push_back(std::make_unique<Owner>(Owner{
          std::vector<uint8_t>(ring_bytes, 0xFF), Floats(floats, std::bit_cast<float>(0xFFFFFFFFu)),
          OnDevice<uint8_t>(ring_bytes), OnDevice<float>(floats), slots, OnDevice<int>(slots)}));
      SegmentView view;
      view.start = Draw(0, 20);
      view.row_begin = rows;
      view.rows = count;
      view.failed = Draw(0, 4) == 0;
      view.rings = owners.back()->device_rings.get();
      view.frontiers = owners.back()->device_frontiers.get();
      view.slots = owners.back()->device_slots.get();
      for (int j = 0; j < count; ++j) segment_of.push_back(int(segments.size()));
      segments.push_back(view);
      rows += count;
    }
    std::vector<uint8_t> keys(size_t(layers * rows * bytes));
    for (uint8_t& b : keys) b = uint8_t(Draw(0, 255));
    const size_t wide = size_t(args.stream_floats);
    const Floats streams = Values(size_t(rows) * wide, low);
    const OnDevice<SegmentView> segments_device(segments);
    const OnDevice<int> segment_of_device(segment_of);
    const OnDevice<uint8_t> keys_device(keys);
    const ValuesOnDevice streams_device(streams, low);
    args.batch.rows = rows;
    args.batch.segment_count = int(segments.size());
    args.batch.segments = segments_device.get();
    args.batch.segment_of = segment_of_device.get();
    args.window_keys = keys_device.get();
    args.streams = with_streams ? streams_device.get() : nullptr;
    Commit(args, nullptr);
    CheckCuda(cudaGetLastError());

    for (size_t i = 0; i < segments.size(); ++i) {
      Owner& owner = *owners[i];
      const SegmentView& g = segments[i];
      // In order: a later row overwrites an earlier one. A segment that failed stays as it was.
      for (int j = 0; j < (g.failed ? 0 : g.rows); ++j) {
        for (int layer = 0; layer < layers; ++layer) {
          const bool early = args.mtp && layer == layers - 1 && !args.mtp_in_place;
          const int64_t position = g.start + j - (early ? 1 : 0);
          if (position < 0) continue;
          std::memcpy(owner.rings.data() +
                          size_t((layer * args.state.ring + position % args.state.ring) * bytes),
                      keys.data() + size_t((layer * rows + g.row_begin + j) * bytes),
                      size_t(bytes));
        }
        const int slot = owner.slots[size_t(j + 1)];
        if (slot < 0 || !with_streams) continue;
        const Floats row = Part(streams, size_t(g.row_begin + j) * wide, wide);
        std::copy(
            row.begin(), row.end(),
            owner.frontiers.begin() + (slot + 1) * args.state.frontier_floats - args.stream_floats);
      }
      SameNumbers(owner.device_rings.Read(), owner.rings, "rings");
      SameBits(owner.device_frontiers.Read(), owner.frontiers);
    }
    if (HasFatalFailure()) return;
  }
}

}  // namespace
}  // namespace agentd::model::cuda
