// Bytes of KV entries and indexer keys: the lossless storage types of the checkpoint, the same on
// every backend, in memory as on disk.
//
// Entry (window key, CSA or HCA entry; c channels of which the last r are rotary), low precision:
//   [c-r] E4M3 codes, [ceil((c-r)/64)] E8M0 scales, zeros up to a multiple of 8, [r] BF16.   c=512,
//   r=64: 584 bytes.
// Indexer key (c channels), low precision:
//   [c/2] bytes of two E2M1 codes (low nibble: the even channel), [ceil(c/32)] E8M0 scales.  c=128:
//   68 bytes.
// Of a float checkpoint both are [c] F32. All numbers are little-endian.
#ifndef AGENTD_MODEL_KV_FORMAT_H_
#define AGENTD_MODEL_KV_FORMAT_H_

#include <cstdint>

namespace agentd::model {

// Storage of one KV entry.
struct EntryShape {
  int channels = 0;  // c
  int rotary = 0;    // r
  bool low_precision = false;
  int bytes = 0;
};

EntryShape MakeEntryShape(int channels, int rotary, bool low_precision);
int IndexKeyBytes(int channels, bool low_precision);

// Rounds as spec section 4 says. Values of low-precision rotary channels must be BF16 already.
void EncodeEntry(const EntryShape& shape, const float* values, uint8_t* entry);
void DecodeEntry(const EntryShape& shape, const uint8_t* entry, float* values);

// Whether these bytes can be an entry: every number is one, the padding is zero.
bool IsEntry(const EntryShape& shape, const uint8_t* entry);
bool IsIndexKey(int channels, bool low_precision, const uint8_t* key);

void EncodeIndexKey(int channels, bool low_precision, const float* values, uint8_t* key);
void DecodeIndexKey(int channels, bool low_precision, const uint8_t* key, float* values);

// In place: values * Hadamard (Sylvester order) / sqrt(n), to BF16. n is a power of two.
void HadamardBf16(float* values, int n);
// In place: to what an indexer key or query of 4 bits holds.
void QuantizeFp4(float* values, int n);

}  // namespace agentd::model

#endif  // AGENTD_MODEL_KV_FORMAT_H_
