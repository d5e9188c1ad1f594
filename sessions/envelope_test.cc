// The cipher against its specification, the envelope against every change, and the list of keys.
#include "sessions/envelope.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#define XXH_INLINE_ALL
#include <sys/stat.h>
#include <xxhash.h>

#include <fstream>
#include <set>

#include "sessions/keyring.h"
#include "sessions/keys.h"
#include "sessions/record.h"
#include "sessions/store_files.h"
#include "sessions/test_util.h"
#include "sessions/worked_example.h"

namespace agentd::sessions::internal {
namespace {

using ::testing::HasSubstr;
using testing::Must;
using ::testing::Not;

std::string ToHex(std::string_view bytes) {
  std::string text;
  for (const char byte : bytes) text += fmt::format("{:02x}", static_cast<uint8_t>(byte));
  return text;
}

StoreKey KeyOf(char digit) { return Must(StoreKey::FromHex(std::string(64, digit), "a test")); }

const Place kTestPlace = {1, "the key"};

// https://c2sp.org/XAES-256-GCM: one vector for each value of the bit that CMAC's subkey depends
// on.
TEST(XaesGcmTest, ThePublishedVectors) {
  struct Vector {
    char key;
    std::string additional, sealed;
  };
  for (const Vector& vector :
       {Vector{1, "", "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"},
        Vector{3, "c2sp.org/XAES-256-GCM",
               "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d"}}) {
    const XaesGcm cipher(std::string(kCipherKeyBytes, vector.key));
    const std::string nonce = "ABCDEFGHIJKLMNOPQRSTUVWX", plaintext = "XAES-256-GCM";
    for (size_t cut = 0; cut <= vector.additional.size(); ++cut) {
      const std::string_view first = std::string_view(vector.additional).substr(0, cut);
      const std::string_view rest = std::string_view(vector.additional).substr(cut);
      std::string sealed(plaintext.size() + kTagBytes, '\0');
      cipher.Encrypt(nonce, first, rest, plaintext, sealed.data(),
                     sealed.data() + plaintext.size());
      EXPECT_EQ(ToHex(sealed), vector.sealed);
      std::string back(plaintext.size(), '\0');
      const std::string_view text = std::string_view(sealed).substr(0, plaintext.size());
      const std::string_view tag = std::string_view(sealed).substr(plaintext.size());
      EXPECT_TRUE(cipher.Decrypt(nonce, first, rest, text, tag, back.data()));
      EXPECT_EQ(back, plaintext);
      EXPECT_FALSE(cipher.Decrypt(nonce, first, "another", text, tag, back.data()));
    }
  }
}

TEST(EnvelopeTest, RoundTripsOfAllSizes) {
  testing::Random random(testing::NewSeed());
  const EnvelopeKey key(KeyOf('7'));
  for (int i = 0; i < 200; ++i) {
    const std::string value = testing::RandomBytes(
        random, static_cast<size_t>(testing::Below(random, i < 100 ? 100 : 200000)));
    const std::string envelope = key.Seal(kTestPlace, value);
    EXPECT_EQ(envelope.size(), value.size() + kEnvelopeHeaderBytes + kTagBytes);
    EXPECT_EQ(Must(EnvelopeKeyId(kTestPlace, envelope)), key.id());
    std::string back = "something";
    ASSERT_OK(key.Open(kTestPlace, envelope, back));
    EXPECT_EQ(back, value);
  }
}

TEST(EnvelopeTest, NoNonceComesTwice) {
  const EnvelopeKey key(KeyOf('7'));
  std::set<std::string> seen;
  for (int i = 0; i < 1000; ++i) {
    const std::string envelope = key.Seal(kTestPlace, std::string(32, 'v'));
    EXPECT_TRUE(seen.insert(envelope.substr(16, kNonceBytes)).second);
    EXPECT_TRUE(seen.insert(envelope.substr(kEnvelopeHeaderBytes, 32)).second);
  }
}

TEST(EnvelopeTest, EveryFlippedBitTruncationAndExtensionIsDataLoss) {
  const EnvelopeKey key(KeyOf('7'));
  const std::string whole = key.Seal(kTestPlace, "a value");
  const auto open = [&](const Place& place, std::string_view envelope) {
    std::string value = "old";
    const absl::StatusOr<uint64_t> id = EnvelopeKeyId(place, envelope);
    const absl::Status opened = key.Open(place, envelope, value);
    EXPECT_EQ(value.empty(), !opened.ok());
    return id.ok() ? opened : id.status();
  };
  ASSERT_OK(open(kTestPlace, whole));
  for (size_t bit = 0; bit < whole.size() * 8; ++bit) {
    std::string damaged = whole;
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << bit % 8));
    ASSERT_TRUE(absl::IsDataLoss(open(kTestPlace, damaged))) << bit;
    // The key alone sees it too: who can compute the checksum cannot make an envelope.
    std::string value;
    ASSERT_TRUE(absl::IsDataLoss(key.Open(kTestPlace, damaged, value))) << bit;
  }
  for (size_t size = 0; size < whole.size(); ++size)
    ASSERT_TRUE(absl::IsDataLoss(open(kTestPlace, whole.substr(0, size)))) << size;
  EXPECT_TRUE(absl::IsDataLoss(open(kTestPlace, whole + '\0')));
  EXPECT_TRUE(absl::IsDataLoss(open({1, "the kez"}, whole)));
  EXPECT_TRUE(absl::IsDataLoss(open({2, "the key"}, whole)));
  std::string value;
  EXPECT_TRUE(absl::IsDataLoss(key.Open({1, "the kez"}, whole, value)));
  EXPECT_TRUE(absl::IsDataLoss(EnvelopeKey(KeyOf('8')).Open(kTestPlace, whole, value)));
}

TEST(EnvelopeTest, ANewerVersionIsRefusedByName) {
  std::string envelope = EnvelopeKey(KeyOf('7')).Seal({1, EventKey(7, 12)}, "a value");
  envelope[4] = kEnvelopeVersion + 1;
  const std::string checked = envelope.substr(0, kEnvelopeHeaderBytes - 8) + EventKey(7, 12);
  const uint64_t checksum = XXH3_64bits(checked.data(), checked.size());
  std::memcpy(envelope.data() + kEnvelopeHeaderBytes - 8, &checksum, sizeof(checksum));
  const auto keyring = Keyring::Create({KeyOf('7'), {}}, Keyring::NewSecret());
  std::string value;
  const absl::Status opened = keyring->Open({1, EventKey(7, 12)}, envelope, value);
  // As it reaches the reader of a record.
  const absl::Status status = DecodeEvent(EventKey(7, 12), UnopenedNote(opened)).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_THAT(Text(status), HasSubstr("event 12 of timeline 7 is encrypted in version 2"));
}

TEST(EnvelopeTest, TheWorkedExample) {
  std::string hex;
  for (int i = 0; i < 32; ++i) hex += fmt::format("{:02x}", i);
  const EnvelopeKey key(Must(StoreKey::FromHex(hex, "the example")));
  EXPECT_EQ(KeyIdText(key.id()), "e53e26d88d2ef0aa");
  const std::string place = HeadKey(7);
  const std::string record = EncodeHead(place, {12, 100, 1'700'000'000'000'000});
  const std::string envelope = key.SealWithNonce({0, place}, record, "ABCDEFGHIJKLMNOPQRSTUVWX");
  const auto example = testing::WorkedExample("The head of timeline 7");
  EXPECT_EQ(ToHex(place), example.at("key"));
  EXPECT_EQ(ToHex(record), example.at("record"));
  EXPECT_EQ(ToHex(envelope), example.at("value"));
}

// ---- keys

TEST(StoreKeyTest, AFileHoldsOneKeyThatOthersMayNotRead) {
  const testing::TemporaryDirectory directory;
  const std::filesystem::path path = directory.path() / "key";
  const auto read = [&](const std::string& text, mode_t mode) {
    std::ofstream(path) << text;
    EXPECT_EQ(::chmod(path.c_str(), mode), 0);
    return StoreKey::FromFile(path);
  };
  const std::string hex = "00112233445566778899aAbBcCdDeEfF00112233445566778899aabbccddeeff";
  EXPECT_EQ(Must(read(hex + "\n", 0600)).id(), Must(StoreKey::FromHex(hex, "")).id());
  EXPECT_EQ(Must(read(hex, 0400)).bytes().substr(0, 3), std::string_view("\x00\x11\x22", 3));
  for (const mode_t mode : {0640, 0604, 0620}) {
    const absl::Status status = read(hex, mode).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_THAT(Text(status), HasSubstr("chmod 600"));
  }
  for (const std::string& text : {hex.substr(1), hex + "0", hex + "\n\n", std::string(),
                                  "x" + hex.substr(1), hex.substr(0, 63) + " "}) {
    const absl::Status status = read(text, 0600).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_THAT(Text(status), HasSubstr(path.string()));
    EXPECT_THAT(Text(status), Not(HasSubstr("445566"))) << "a key's bytes are in an error";
  }
  std::filesystem::remove(path);
  EXPECT_TRUE(absl::IsNotFound(StoreKey::FromFile(path).status()));
}

TEST(KeyringTest, TheListOpensWithEveryKeyThatItNames) {
  const auto made = Keyring::Create({KeyOf('1'), {}}, Keyring::NewSecret());
  const std::string first = made->Encode();
  EXPECT_EQ(Must(ListedKeys(first)), std::vector<uint64_t>{KeyOf('1').id()});
  // A second key comes in front; the first is still needed.
  const auto rotated = Must(Keyring::Unlock(first, {KeyOf('2'), {KeyOf('1')}}, "S"));
  EXPECT_TRUE(rotated->is_new());
  const std::string second = rotated->Encode();
  EXPECT_EQ(Must(ListedKeys(second)), (std::vector<uint64_t>{KeyOf('2').id(), KeyOf('1').id()}));
  EXPECT_EQ(rotated->OwnerTag("alice"), made->OwnerTag("alice"));
  EXPECT_NE(rotated->OwnerTag("alice"), rotated->OwnerTag("bob"));
  std::string value;
  ASSERT_OK(rotated->Open(kTestPlace, made->Seal(kTestPlace, "old"), value));
  EXPECT_EQ(value, "old");
  EXPECT_TRUE(absl::IsDataLoss(made->Open(kTestPlace, rotated->Seal(kTestPlace, "new"), value)));
  // The order in which they are given does not matter, nor one too many.
  EXPECT_FALSE(
      Must(Keyring::Unlock(second, {KeyOf('1'), {KeyOf('3'), KeyOf('2')}}, "S"))->is_new());

  struct Wrong {
    StoreKeys keys;
    char wanted;
  };
  for (const Wrong& wrong :
       {Wrong{{}, '2'}, Wrong{{KeyOf('2'), {}}, '1'}, Wrong{{KeyOf('3'), {KeyOf('1')}}, '2'},
        Wrong{{std::nullopt, {KeyOf('1')}}, '2'}}) {
    const absl::Status status = Keyring::Unlock(second, wrong.keys, "/the/store").status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_THAT(Text(status), HasSubstr("/the/store"));
    EXPECT_THAT(Text(status), HasSubstr(KeyIdText(KeyOf(wrong.wanted).id())));
  }
  for (size_t i = 0; i < second.size(); ++i) {
    std::string damaged = second;
    damaged[i] ^= 4;
    EXPECT_TRUE(
        absl::IsDataLoss(Keyring::Unlock(damaged, {KeyOf('2'), {KeyOf('1')}}, "S").status()))
        << i;
  }
  // Well made, but with the secret of another store.
  ByteWriter mixed;
  mixed.Put(uint32_t{2});
  mixed.Sized(EnvelopeKey(KeyOf('2')).Seal({kKeysColumn, "KEYS"}, Keyring::NewSecret()));
  mixed.Sized(EnvelopeKey(KeyOf('1')).Seal({kKeysColumn, "KEYS"}, Keyring::NewSecret()));
  EXPECT_TRUE(absl::IsDataLoss(Keyring::Unlock(Frame(RecordKind::kKeys, "KEYS", mixed.str()),
                                               {KeyOf('2'), {KeyOf('1')}}, "S")
                                   .status()));
  EXPECT_TRUE(absl::IsFailedPrecondition(
      ListedKeys(FrameWithVersion(RecordKind::kKeys, "KEYS", "", kRecordVersion + 1)).status()));
}

TEST(FormatFileTest, SaysVersionAndEncryption) {
  for (const Format& format :
       {Format{1, false}, Format{2, true}, Format{3, false}, Format{3, true}}) {
    const Format read = Must(ParseFormat(FormatText(format), "S"));
    EXPECT_EQ(read.version, format.version);
    EXPECT_EQ(read.encrypted, format.encrypted);
  }
  EXPECT_EQ(FormatText({1, false}), "agentd-sessions 1\n");
  EXPECT_EQ(FormatText({2, true}), "agentd-sessions 2 encrypted\n");
  for (const char* newer : {"agentd-sessions 4\n", "agentd-sessions 4 with more\n"}) {
    const absl::Status status = ParseFormat(newer, "/the/store").status();
    EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
    EXPECT_THAT(Text(status), HasSubstr("/the/store has format version 4"));
  }
  for (const char* damaged :
       {"", "agentd-sessions ", "agentd-sessions 0\n", "agentd-sessions -1\n",
        "agentd-sessions x\n", "agentd-sessions 1", "agentd-sessions 1 encrypted\n",
        "agentd-sessions 2 encrypted", "agentd-sessions 2 encryptee\n",
        "agentd-sessions 99999999999\n", "agentd-session 1\n"}) {
    EXPECT_TRUE(absl::IsDataLoss(ParseFormat(damaged, "S").status())) << damaged;
  }
}

}  // namespace
}  // namespace agentd::sessions::internal
