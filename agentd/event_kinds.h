// The daemon's events in the store: kind = the field number of agentd.v1.Event's oneof, payload =
// that message, serialised.
#ifndef AGENTD_AGENTD_EVENT_KINDS_H_
#define AGENTD_AGENTD_EVENT_KINDS_H_

#include <cstdint>
#include <string>

#include "agentd/v1/agentd.pb.h"
#include "base/status.h"
#include "sessions/store.h"

namespace agentd::daemon {

template <typename Message>
struct KindOf;
#define AGENTD_EVENT_KIND(Message, number)   \
  template <>                                \
  struct KindOf<v1::Message> {               \
    static constexpr uint8_t value = number; \
  };                                         \
  static_assert(number >= sessions::kFirstCallerKind)
AGENTD_EVENT_KIND(UserMessage, v1::Event::kUserMessageFieldNumber);
AGENTD_EVENT_KIND(TurnStarted, v1::Event::kTurnStartedFieldNumber);
AGENTD_EVENT_KIND(ToolStarted, v1::Event::kToolStartedFieldNumber);
AGENTD_EVENT_KIND(ToolFinished, v1::Event::kToolFinishedFieldNumber);
AGENTD_EVENT_KIND(TurnFinished, v1::Event::kTurnFinishedFieldNumber);
AGENTD_EVENT_KIND(Resumed, v1::Event::kResumedFieldNumber);
AGENTD_EVENT_KIND(Rewound, v1::Event::kRewoundFieldNumber);
AGENTD_EVENT_KIND(SeedChanged, v1::Event::kSeedChangedFieldNumber);
AGENTD_EVENT_KIND(Note, v1::Event::kNoteFieldNumber);
AGENTD_EVENT_KIND(ModelAdopted, v1::Event::kModelAdoptedFieldNumber);
AGENTD_EVENT_KIND(ApprovalAsked, v1::Event::kApprovalAskedFieldNumber);
AGENTD_EVENT_KIND(ApprovalAnswered, v1::Event::kApprovalAnsweredFieldNumber);
AGENTD_EVENT_KIND(OutputKept, v1::Event::kOutputKeptFieldNumber);
#undef AGENTD_EVENT_KIND

template <typename Message>
sessions::NewEvent MakeEvent(const Message& message) {
  return sessions::NewEvent::Caller(KindOf<Message>::value, message.SerializeAsString());
}

// DataLoss when the payload is not this message: the checksum was right, so another version wrote
// it.
template <typename Message>
absl::StatusOr<Message> ReadPayload(const sessions::Event& event) {
  Message message;
  if (!message.ParseFromString(event.payload)) {
    return DataLoss("event {} (kind {}) does not hold a {}", event.seq,
                    static_cast<int>(event.kind), Message::descriptor()->name());
  }
  return message;
}

}  // namespace agentd::daemon

#endif  // AGENTD_AGENTD_EVENT_KINDS_H_
