#include "model/cuda/emulator/matrix.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "base/status.h"
#include "model/cuda/emulator/grid.h"
#include "model/numeric.h"

namespace agentd::model::cuda::emulator {
namespace {

float Half(uint32_t pair, int half) { return Bf16ToFloat(uint16_t(pair >> (16 * half))); }

// 16 rows of a, as the lanes of a warp hold them.
struct RowsOfA {
  double of[16][16];

  void Set(int lane, const uint32_t (&a)[4]) {
    const int row = lane / 4;
    const int column = lane % 4 * 2;
    for (int i = 0; i < 4; ++i) {
      for (int half = 0; half < 2; ++half)
        of[row + i % 2 * 8][column + i / 2 * 8 + half] = Half(a[i], half);
    }
  }
};

// d[m][n] += the 16 products; b is [k][n].
template <int kColumns>
void AddProducts(const RowsOfA& a, const double (&__restrict b)[16][kColumns],
                 double (&__restrict d)[16][kColumns]) {
  for (int m = 0; m < 16; ++m) {
    for (int k = 0; k < 16; ++k) {
      const double factor = a.of[m][k];
      for (int n = 0; n < kColumns; ++n) d[m][n] += factor * b[k][n];
    }
  }
}

struct MmaPart {
  float* d;
  const uint32_t* a;
  uint32_t b[2];
};

void MultiplyTogether(void* const* brought, unsigned) {
  static RowsOfA a;
  static double b[16][8];
  static double d[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto* part = static_cast<const MmaPart*>(brought[lane]);
    if (part == nullptr) Fail("mma without all lanes of the warp");
    a.Set(lane, *reinterpret_cast<const uint32_t(*)[4]>(part->a));
    for (int i = 0; i < 4; ++i) {
      b[lane % 4 * 2 + i / 2 * 8 + i % 2][lane / 4] = Half(part->b[i / 2], i % 2);
      d[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2] = part->d[i];
    }
  }
  AddProducts(a, b, d);
  for (int lane = 0; lane < 32; ++lane) {
    const auto* part = static_cast<const MmaPart*>(brought[lane]);
    for (int i = 0; i < 4; ++i) part->d[i] = float(d[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2]);
  }
}

struct LoadPart {
  uint32_t* r;
  const uint8_t* row;
};

template <bool kTransposed>
void LoadTogether(void* const* brought, unsigned) {
  for (int lane = 0; lane < 32; ++lane) {
    const auto* part = static_cast<const LoadPart*>(brought[lane]);
    if (part == nullptr) Fail("ldmatrix without all lanes of the warp");
    for (int matrix = 0; matrix < 4; ++matrix) {
      uint16_t pair[2];
      for (int i = 0; i < 2; ++i) {
        const int row = kTransposed ? lane % 4 * 2 + i : lane / 4;
        const int column = kTransposed ? lane / 4 : lane % 4 * 2 + i;
        const auto* from = static_cast<const LoadPart*>(brought[8 * matrix + row]);
        if (from == nullptr) Fail("ldmatrix without all lanes of the warp");
        std::memcpy(&pair[i], from->row + 2 * column, 2);
      }
      part->r[matrix] = uint32_t{pair[1]} << 16 | pair[0];
    }
  }
}

// Core matrices in shared memory, of 8 x 16 bytes, whose distances the descriptor has.
struct CoreMatrices {
  uint32_t address, by_k, by_n;

  explicit CoreMatrices(uint64_t descriptor)
      : address(uint32_t(descriptor & 0x3FFF) << 4),
        by_k(uint32_t(descriptor >> 16 & 0x3FFF) << 4),
        by_n(uint32_t(descriptor >> 32 & 0x3FFF) << 4) {
    if (descriptor >> 62 != 0) Fail("wgmma with a swizzle that the emulator does not know");
  }
  double At(int k, int n, bool n_major) const {
    const unsigned row = unsigned(n_major ? k : n) % 8;
    const unsigned column = unsigned(n_major ? n : k) % 8;
    uint16_t bits;
    std::memcpy(&bits,
                SharedAt(address + unsigned(k / 8) * by_k + unsigned(n / 8) * by_n + row * 16, 16) +
                    2 * column,
                2);
    return Bf16ToFloat(bits);
  }
};

// b [k][n].
template <int kColumns>
void ReadB(const Product& product, double (&b)[16][kColumns]) {
  const CoreMatrices matrices(product.descriptor);
  for (int k = 0; k < 16; ++k) {
    for (int n = 0; n < kColumns; ++n) b[k][n] = matrices.At(k, n, product.n_major);
  }
}
// The rows of a of a warp of the warpgroup.
void ReadA(const Product& product, int warp, RowsOfA* a) {
  const CoreMatrices matrices(product.a_descriptor);
  for (int m = 0; m < 16; ++m) {
    for (int k = 0; k < 16; ++k) a->of[m][k] = matrices.At(k, 16 * warp + m, false);
  }
}

// Place i of a thread's sums: row and column of the warp's 16 rows.
int RowOf(int lane, int i) { return lane / 4 + i / 2 % 2 * 8; }
int ColumnOf(int lane, int i) { return i / 4 * 8 + lane % 4 * 2 + i % 2; }

// The first product of each lane.
template <int kColumns>
void RunProduct(Warp* warp) {
  static RowsOfA a;
  static double b[16][kColumns];
  static double d[16][kColumns];
  const Product first = warp->threads[0]->products.front();
  for (int lane = 0; lane < 32; ++lane) {
    Thread* thread = warp->threads[lane];
    const Product& product = thread->products.front();
    if (product.descriptor != first.descriptor || product.a_descriptor != first.a_descriptor ||
        product.n_major != first.n_major)
      Fail("lanes of a warp do not agree about a wgmma");
    a.Set(lane, product.a);
    const std::vector<float>& sums = thread->sums[product.sums];
    for (int i = 0; i < product.count; ++i) d[RowOf(lane, i)][ColumnOf(lane, i)] = sums[size_t(i)];
  }
  if (first.a_shared) ReadA(first, int(warp->threads[0]->index.x) / 32 % 4, &a);
  ReadB(first, b);
  AddProducts(a, b, d);
  for (int lane = 0; lane < 32; ++lane) {
    Thread* thread = warp->threads[lane];
    std::vector<float>& sums = thread->sums[thread->products.front().sums];
    for (int i = 0; i < int(sums.size()); ++i)
      sums[size_t(i)] = float(d[RowOf(lane, i)][ColumnOf(lane, i)]);
    thread->products.pop_front();
  }
}

struct ProductWait {
  Thread* thread;
  int pending;
};

void RunProducts(void* const* brought, unsigned) {
  if (std::count(brought, brought + 32, nullptr) > 0) Fail("wgmma without all lanes of the warp");
  const auto* wait = static_cast<const ProductWait*>(brought[0]);
  Warp* warp = wait->thread->warp;
  const Thread& first = *warp->threads[0];
  while (!first.products.empty() &&
         first.products.front().group < first.product_group - wait->pending) {
    for (int lane = 0; lane < 32; ++lane) {
      const std::deque<Product>& products = warp->threads[lane]->products;
      if (products.empty() || products.front().count != first.products.front().count)
        Fail("lanes of a warp do not agree about a wgmma");
    }
    switch (first.products.front().count) {
      case 16:
        RunProduct<32>(warp);
        break;
      case 32:
        RunProduct<64>(warp);
        break;
      case 48:
        RunProduct<96>(warp);
        break;
      case 56:
        RunProduct<112>(warp);
        break;
      case 64:
        RunProduct<128>(warp);
        break;
      default:
        Fail("a wgmma of a size that the emulator does not know");
    }
  }
}

}  // namespace

void MultiplyWarp(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  MmaPart part = {d, a, {b0, b1}};
  Meet(Meeting::kProduct, ~0u, &part, MultiplyTogether);
}

void LoadMatrixRows(uint32_t (&r)[4], const void* row, bool transposed) {
  SharedAt(AddressOfShared(row), 16);
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) Fail("ldmatrix of a row that is not aligned");
  LoadPart part = {r, static_cast<const uint8_t*>(row)};
  Meet(Meeting::kMatrices, ~0u, &part, transposed ? LoadTogether<true> : LoadTogether<false>);
}

void Finish(const Copy& copy) {
  std::memcpy(copy.to, copy.from, size_t(copy.bytes));
  std::memset(static_cast<uint8_t*>(copy.to) + copy.bytes, 0, size_t(copy.zeros));
}

void StartCopy(void* to, const void* from, int bytes, int size) {
  SharedAt(AddressOfShared(to), size_t(size));
  const auto address = reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from);
  if (address % unsigned(size) != 0) Fail(fmt::format("cp.async of {} bytes, not aligned", size));
  if (bytes < 0 || bytes > size) Fail(fmt::format("cp.async of {} bytes of {}", bytes, size));
  std::memset(to, kPoison, size_t(size));
  current->open_copies.push_back({.to = to, .from = from, .bytes = bytes, .zeros = size - bytes});
}

void CommitCopies() {
  current->copy_groups.push_back(std::move(current->open_copies));
  current->open_copies.clear();
}

void WaitForCopies(int pending) {
  while (int(current->copy_groups.size()) > pending) {
    for (const Copy& copy : current->copy_groups.front()) Finish(copy);
    current->copy_groups.pop_front();
  }
}

void StartStore(void* to, const void* from, int bytes) {
  SharedAt(AddressOfShared(from), size_t(bytes));
  const auto address = reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from);
  if (bytes <= 0 || (address | unsigned(bytes)) % 16 != 0)
    Fail(fmt::format("a bulk copy of {} bytes, not aligned", bytes));
  current->stores.push_back({.to = to, .from = from, .bytes = bytes});
}

void WaitForStores() {
  for (const Copy& copy : current->stores) Finish(copy);
  current->stores.clear();
}

const uint8_t* SharedOfCluster(const void* own, uint32_t rank) {
  const Cluster& cluster = *current->block->cluster;
  if (rank >= cluster.blocks.size()) Fail(fmt::format("the cluster has no block {}", rank));
  const Block& block = cluster.blocks[rank];
  if (block.running == 0) Fail(fmt::format("block {} of the cluster has ended", rank));
  return block.shared + (SharedAt(AddressOfShared(own), 4) - current->block->shared);
}

namespace {

void Start(Product product) {
  product.group = current->product_group;
  float* sums = product.sums;
  if (current->sums.try_emplace(sums, sums, sums + product.count).second)
    std::fill(sums, sums + product.count, std::numeric_limits<float>::quiet_NaN());
  current->products.push_back(product);
}

}  // namespace

void StartProduct(float* sums, int count, const uint32_t (&a)[4], uint64_t b, Major major) {
  Product product = {.sums = sums, .count = count, .n_major = major == Major::kN, .descriptor = b};
  std::copy(a, a + 4, product.a);
  Start(product);
}

void StartProduct(float* sums, int count, uint64_t a, uint64_t b) {
  Start({.sums = sums, .count = count, .a_shared = true, .a_descriptor = a, .descriptor = b});
}

void CommitProducts() { ++current->product_group; }

void WaitForProducts(int pending) {
  ProductWait wait = {current, pending};
  Meet(Meeting::kWarpgroup, ~0u, &wait, RunProducts);
  if (!current->products.empty()) return;
  for (const auto& [sums, values] : current->sums) std::copy(values.begin(), values.end(), sums);
  current->sums.clear();
}

}  // namespace agentd::model::cuda::emulator
